"""Prompt templates are data: `prompts/<language>/<name>.md`, `{variables}` checked when they are filled in.

A template is a dialogue: sections `## system`, `## user`, `## assistant`. Worked examples stand as earlier turns, which
small models follow far better than a description of the task.
"""

from __future__ import annotations

import re
import string
from functools import cache
from importlib import resources

from align.core.errors import StepError
from align.core.hashing import fingerprint
from align.core.rows import Message


def _root() -> resources.abc.Traversable:
    return resources.files("data_gen").joinpath("prompts")


@cache
def _template(name: str, lang: str) -> str:
    return _root().joinpath(lang, f"{name}.md").read_text(encoding="utf-8").strip()


def variables(name: str, lang: str) -> set[str]:
    """The variables that a template uses."""
    return {field for _, field, _, _ in string.Formatter().parse(_template(name, lang)) if field}


def render(name: str, lang: str, **values: str) -> list[Message]:
    """A template as messages, with its variables filled in.

    Raises:
        StepError: a variable is missing or unused; the message names the template.
    """
    wanted = variables(name, lang)
    if wanted != set(values):
        raise StepError(f"prompt {lang}/{name}.md uses {sorted(wanted)}, given {sorted(values)}")
    parts = re.split(r"^## (system|user|assistant)\n", _template(name, lang), flags=re.MULTILINE)[1:]
    return [
        {"role": role, "content": text.strip().format(**values)} for role, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def templates_fingerprint() -> str:
    """Changes when any shipped template changes, so that the steps that use them run again."""
    texts = {
        f"{lang.name}/{file.name}": file.read_text(encoding="utf-8")
        for lang in _root().iterdir()
        if lang.is_dir()
        for file in lang.iterdir()
        if file.name.endswith(".md")
    }
    return fingerprint(texts)
