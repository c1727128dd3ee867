"""Prompt templates are data: `prompts/<language>/<name>.md`, replaceable one by one from a folder of the user's.

A template is a dialogue: sections `## system`, `## user`, `## assistant`. Worked examples stand as earlier turns, which
small models follow far better than a description of the task. Lists of short texts (personas, system prompts) are
`<name>.txt`, one a line.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from align.core.errors import UserError
from align.core.hashing import fingerprint
from align.core.rows import Message
from data_gen.tasks import INPUT_TASKS

LANGUAGES = ("en", "ko")
# By the beginning of a template's name: the variables it must use and those that it may use.
VARIABLES: Mapping[str, tuple[set[str], set[str]]] = {
    "answer": ({"fact", "instruction"}, set()),
    "auto-method": (set(), set()),
    "auto-optimize": ({"method", "failures"}, set()),
    "brief-persona": ({"persona"}, set()),
    "brief-": (set(), set()),
    "choose-topic": ({"text", "topics"}, set()),
    "compare-responses": ({"instruction", "response_a", "response_b"}, set()),
    "evolve-auto": ({"method", "instruction"}, set()),
    "evolve-": ({"instruction"}, set()),
    "follow-up": ({"question", "answer"}, set()),
    **{f"instruct-{task}": ({"passage"}, {"brief", "topic"}) for task in INPUT_TASKS},
    "instruct-": ({"fact"}, {"brief", "topic"}),
    "judge-answer": ({"instruction", "answer"}, set()),
    "judge-instruction": ({"instruction"}, set()),
    "judge-response": ({"instruction", "response", "scale"}, {"middle"}),
    "knowledge": ({"text", "count"}, set()),
    "name-topic": ({"terms", "examples"}, set()),
    "rewrite-answer": ({"passage", "instruction"}, set()),
    "template-": (set(), {"keyword", "topic"}),
}
_SECTION = re.compile(r"^## (system|user|assistant)\n", re.MULTILINE)


class Prompts:
    """The shipped templates, with those of `folder` in their place where it has files of the same names.

    Raises:
        UserError: a file that cannot be read, that no step uses, that is no dialogue, or whose variables are not those of
            its name.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._texts = dict(_shipped())
        if folder is not None:
            self._texts |= _replacements(folder, self._texts)
        self._parts: dict[str, list[tuple[str, str]]] = {}

    def render(self, name: str, lang: str, **values: str) -> list[Message]:
        """A template as messages, with its variables filled in."""
        file = f"{lang}/{name}.md"
        if file not in self._parts:
            self._parts[file] = _parts(self._texts[file])
        return [{"role": role, "content": text.format(**values).strip()} for role, text in self._parts[file]]

    def lines(self, name: str, lang: str) -> list[str]:
        """The entries of a list."""
        return [line.strip() for line in self._texts[f"{lang}/{name}.txt"].splitlines() if line.strip()]

    def fingerprint(self) -> str:
        """Changes when any template changes, so that the steps that use them run again."""
        return fingerprint(self._texts)


def _parts(text: str) -> list[tuple[str, str]]:
    found = _SECTION.split(text)[1:]
    return [(role, part.strip()) for role, part in zip(found[::2], found[1::2], strict=True)]


@cache
def _shipped() -> Mapping[str, str]:
    root = resources.files("data_gen").joinpath("prompts")
    return {
        f"{lang}/{file.name}": _checked(file.read_text(encoding="utf-8"), f"{lang}/{file.name}")
        for lang in LANGUAGES
        for file in root.joinpath(lang).iterdir()
    }


def _replacements(folder: Path, shipped: Mapping[str, str]) -> dict[str, str]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of prompts (prompts.folder)")
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        name = path.relative_to(folder).as_posix()
        if name not in shipped:
            raise UserError(f"{path}: no step uses a prompt {name}; the shipped ones are named like en/knowledge.md")
        try:
            found[name] = _checked(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from None
    return found


def _checked(text: str, where: str) -> str:
    """The text, if a step can use it."""
    text = text.strip() + "\n"
    name = Path(where).stem
    if where.endswith(".txt"):
        if not text.strip():
            raise UserError(f"{where}: the list is empty")
        return text
    must, may = next(wanted for start, wanted in VARIABLES.items() if name.startswith(start))
    if not _SECTION.match(text) or _parts(text)[-1][0] != "user":
        raise UserError(f"{where}: a prompt is sections '## system', '## user', '## assistant', and '## user' comes last")
    try:
        found = [parsed[1:] for parsed in string.Formatter().parse(text) if parsed[1] is not None]
    except ValueError as error:
        raise UserError(f"{where}: {error}; write braces that are no variable twice: {{{{ and }}}}") from None
    # A variable stands alone: what follows it in its braces would be read as a format.
    used = {f"{field}{f'!{how}' if how else ''}{f':{form}' if form else ''}" for field, form, how in found}
    if unknown := used - must - may:
        known = ", ".join(f"{{{v}}}" for v in sorted(must | may)) or "none"
        first = " ".join(min(unknown).split())
        raise UserError(f"{where}: unknown variable {{{first}}}; it may use {known} (other braces are written twice)")
    if missing := must - used:
        raise UserError(f"{where}: the variable {{{min(missing)}}} is missing")
    return text


def read_object(text: str) -> dict[str, Any]:
    """The JSON object in a model's answer.

    Raises:
        ValueError: not JSON, not an object, nested too deeply, or with half a surrogate pair in a string.
    """
    try:
        data = json.loads(text, strict=False)  # grammar-constrained strings may hold raw control characters
        json.dumps(data, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError("not an object")
    return data


def fields(*names: str, numbers: bool = False) -> str:
    """JSON schema of an object with these fields, each a text, or each a whole number from 1 to 10."""
    kind = {"type": "integer", "minimum": 1, "maximum": 10} if numbers else {"type": "string", "minLength": 1}
    return json.dumps({"type": "object", "properties": dict.fromkeys(names, kind), "required": list(names)})
