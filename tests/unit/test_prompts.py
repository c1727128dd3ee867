"""Prompt templates: every shipped file, its twin in the other language, worked examples, and a folder of replacements."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from align.core.errors import UserError
from align.core.language import detect
from data_gen import prompts
from data_gen.inputs import INPUT_KINDS, parse_input
from data_gen.judge import parse_marks
from data_gen.knowledge import parse_choice, parse_facts
from data_gen.prompts import Prompts, fields, read_object
from data_gen.tasks import INPUT_TASKS, LEVELS, PLAIN_TASKS

SHIPPED = Path(prompts.__file__).parent / "prompts"
NAMES = sorted(p.stem for p in (SHIPPED / "en").glob("*.md"))
LISTS = ("personas", "system-prompts")
TASKS = (*PLAIN_TASKS, *INPUT_TASKS)
PROMPTS = Prompts()


def variables(name: str, lang: str) -> set[str]:
    text = (SHIPPED / lang / f"{name}.md").read_text(encoding="utf-8")
    return {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}


@pytest.mark.parametrize("name", NAMES)
def test_templates_are_twins_and_render(name: str) -> None:
    wanted = variables(name, "en")
    assert variables(name, "ko") == wanted
    for lang in ("en", "ko"):
        # Braces and headings in what users bring must come out as they went in.
        values = {key: f"{{{key}}} ## user {{}}" for key in wanted}
        messages = PROMPTS.render(name, lang, **values)
        assert messages[-1]["role"] == "user"
        turns = [m["role"] for m in messages if m["role"] != "system"]
        assert turns == ["user", "assistant"] * (len(turns) // 2) + ["user"]
        text = "\n".join(m["content"] for m in messages)
        assert all(value in text for value in values.values())
        assert all(m["content"] for m in messages)
        assert "##" not in text.replace("## user {}", "")


def test_no_korean_template_lacks_its_english_twin() -> None:
    assert sorted(p.stem for p in (SHIPPED / "ko").glob("*.md")) == NAMES
    assert len(NAMES) >= 17
    for lang in ("en", "ko"):
        assert sorted(p.stem for p in (SHIPPED / lang).glob("*.txt")) == sorted(LISTS)
        assert all(p.suffix in (".md", ".txt") for p in (SHIPPED / lang).iterdir())


def test_what_steps_ask_for_is_there() -> None:
    """Names that are put together from a task type, a level or a kind of input."""
    needed = {f"{start}-{task}" for start in ("instruct", "template") for task in TASKS}
    needed |= {f"brief-{level}" for level in LEVELS} | {f"evolve-input_{kind}" for kind in INPUT_KINDS}
    assert needed <= set(NAMES)


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("name", NAMES)
def test_a_templates_own_words_are_in_its_language(name: str, lang: str) -> None:
    messages = PROMPTS.render(name, lang, **dict.fromkeys(variables(name, lang), ""))
    texts = [m["content"] for m in messages if len(m["content"].strip()) > 1 and not m["content"].startswith("{")]
    assert [text for text in texts if detect(text) != lang] == []


# worked examples: what a template shows a model, the code must be able to read


def worked(name: str, lang: str) -> list[str]:
    """The answers that a template shows."""
    messages = PROMPTS.render(name, lang, **dict.fromkeys(variables(name, lang), "x"))
    return [m["content"] for m in messages if m["role"] == "assistant"]


PARSERS: dict[str, Callable[[str], Any]] = {
    "knowledge": parse_facts,
    "judge-answer": partial(parse_marks, names=("score",)),
    "judge-instruction": partial(parse_marks, names=("difficulty", "quality")),
    **{f"evolve-input_{kind}": partial(parse_input, kind=kind) for kind in INPUT_KINDS},
    "name-topic": lambda text: [str(read_object(text)[key]) for key in ("name", "definition")],
}


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("name", PARSERS)
def test_worked_examples_are_accepted_by_the_parser(name: str, lang: str) -> None:
    examples = worked(name, lang)
    assert examples
    for example in examples:
        assert PARSERS[name](example)


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_worked_choices_are_of_the_topics_shown(lang: str) -> None:
    messages = PROMPTS.render("choose-topic", lang, text="x", topics="y")
    chosen = []
    for question, answer in zip(messages[1:-1:2], messages[2:-1:2], strict=True):
        shown = [line.split(":")[0] for line in question["content"].splitlines() if " - " in line]
        chosen.append(parse_choice(answer["content"], [*shown, "none"]))
    assert "none" in chosen and len(set(chosen)) > 1, "both a topic and none are shown"


def test_json_is_worked_out_wherever_the_code_reads_json() -> None:
    with_json = {name for name in NAMES if any(example.startswith("{") for example in worked(name, "en"))}
    assert with_json == {*PARSERS, "choose-topic"}


# lists


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("name", LISTS)
def test_lists_have_no_duplicates_and_are_in_their_language(name: str, lang: str) -> None:
    found = PROMPTS.lines(name, lang)
    assert len(found) >= 20
    assert len({line.lower().rstrip(".") for line in found}) == len(found)
    assert [line for line in found if detect(line) != lang] == []
    assert all(line == line.strip() for line in found)


def test_lists_are_as_long_in_both_languages() -> None:
    for name in LISTS:
        assert len(PROMPTS.lines(name, "en")) == len(PROMPTS.lines(name, "ko"))


# a folder of replacements


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_a_folder_replaces_the_files_that_it_has(tmp_path: Path) -> None:
    mine = Prompts(write(tmp_path, "en/answer-plain.md", "## system\nBe brief.\n\n## user\n{instruction} ({fact})\n"))
    assert mine.render("answer-plain", "en", instruction="Why?", fact="Honey keeps.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why? (Honey keeps.)"},
    ]
    values = {"instruction": "Why?", "fact": "Honey keeps."}
    assert mine.render("answer-plain", "ko", **values) == PROMPTS.render("answer-plain", "ko", **values)
    assert mine.render("answer", "en", **values) == PROMPTS.render("answer", "en", **values)
    assert Prompts().render("answer-plain", "en", **values) == PROMPTS.render("answer-plain", "en", **values)


def test_a_list_can_be_replaced(tmp_path: Path) -> None:
    mine = Prompts(write(tmp_path, "ko/personas.txt", "\n제주도의 해녀\n\n  부산의 어부  \n"))
    assert mine.lines("personas", "ko") == ["제주도의 해녀", "부산의 어부"]
    assert mine.lines("personas", "en") == PROMPTS.lines("personas", "en")


def test_optional_variables_may_be_left_out(tmp_path: Path) -> None:
    mine = Prompts(write(tmp_path, "en/instruct-question.md", "## user\nAsk about this: {fact}"))
    assert mine.render("instruct-question", "en", fact="a", brief="b", topic="c")[-1]["content"] == "Ask about this: a"


def test_hidden_files_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, ".DS_Store", b"\xff\xfe")
    assert Prompts(tmp_path).fingerprint() == PROMPTS.fingerprint()


def test_the_fingerprint_covers_every_file(tmp_path: Path) -> None:
    seen = {PROMPTS.fingerprint()}
    files = sorted(p for p in SHIPPED.rglob("*") if p.suffix in (".md", ".txt"))
    for number, path in enumerate(files):
        name = path.relative_to(SHIPPED).as_posix()
        text = path.read_text(encoding="utf-8")
        changed = text + "one more\n" if name.endswith(".txt") else text.replace("## user\n", "## user\nNow: ", 1)
        seen.add(Prompts(write(tmp_path / str(number), name, changed)).fingerprint())
    assert len(seen) == 1 + len(files)
    same = Prompts(write(tmp_path / "same", "en/answer.md", (SHIPPED / "en" / "answer.md").read_bytes()))
    assert same.fingerprint() == PROMPTS.fingerprint()


BAD: dict[str, tuple[str, str | bytes, str]] = {
    "unknown file": ("en/knowlege.md", "## user\n{text} {count}", "no step uses a prompt en/knowlege.md"),
    "unknown language": ("fr/knowledge.md", "## user\n{text} {count}", "no step uses a prompt fr/knowledge.md"),
    "no language": ("knowledge.md", "## user\n{text} {count}", "no step uses a prompt knowledge.md"),
    "wrong suffix": ("en/knowledge.txt", "## user\n{text} {count}", "no step uses a prompt en/knowledge.txt"),
    "missing variable": ("en/knowledge.md", "## user\n{text}", "the variable {count} is missing"),
    "unknown variable": ("ko/answer.md", "## user\n{fact} {instruction} {topic}", "unknown variable {topic}"),
    "unnamed variable": ("en/answer.md", "## user\n{fact} {instruction} {}", "unknown variable {}"),
    "part of a variable": ("en/answer.md", "## user\n{fact} {instruction} {fact.lower}", "unknown variable {fact.lower}"),
    "format of a variable": ("en/answer.md", "## user\n{fact:>9} {instruction}", "unknown variable {fact:>9}"),
    "conversion of a variable": ("en/answer.md", "## user\n{fact} {instruction!x}", "unknown variable {instruction!x}"),
    "JSON with single braces": ("en/knowledge.md", '## user\n{"facts": []} {text} {count}', "unknown variable"),
    "JSON over several lines": ("en/knowledge.md", '## user\n{"facts": [\n"a"\n]} {text} {count}', "unknown variable"),
    "opening brace": ("en/answer.md", "## user\n{fact} {instruction} {", "braces that are no variable twice: {{ and }}"),
    "closing brace": ("en/answer.md", "## user\n{fact} {instruction} }", "braces that are no variable twice: {{ and }}"),
    "no section": ("en/answer.md", "{fact} {instruction}", "a prompt is sections"),
    "text before the sections": ("en/answer.md", "Hi.\n## user\n{fact} {instruction}", "a prompt is sections"),
    "a section of another name": ("en/answer.md", "## System\nHi.\n## user\n{fact} {instruction}", "a prompt is sections"),
    "user is not last": ("en/answer.md", "## user\n{fact}\n## assistant\n{instruction}", "'## user' comes last"),
    "empty": ("en/answer.md", "", "a prompt is sections"),
    "not UTF-8": ("ko/answer.md", "## user\n{fact} {instruction} 답".encode("euc-kr"), "cannot be read"),
    "list that is not UTF-8": ("ko/personas.txt", "해녀".encode("euc-kr"), "cannot be read"),
    "empty list": ("en/personas.txt", " \n\n", "the list is empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_replacement_is_one_clear_error(case: str, tmp_path: Path) -> None:
    name, text, message = BAD[case]
    write(tmp_path, name, text)
    with pytest.raises(UserError) as raised:
        Prompts(tmp_path)
    line = str(raised.value)
    assert line.startswith(f"{tmp_path / name}: ") and message in line and "\n" not in line


def test_the_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder of prompts \(prompts\.folder\)"):
        Prompts(tmp_path / "none")
    with pytest.raises(UserError, match="no such folder"):
        Prompts(write(tmp_path, "file", "x") / "file")


def test_schemas_of_fields() -> None:
    texts, numbers = json.loads(fields("a", "b")), json.loads(fields("a", numbers=True))
    assert texts["required"] == ["a", "b"] and texts["properties"]["b"] == {"type": "string", "minLength": 1}
    assert numbers["properties"]["a"] == {"type": "integer", "minimum": 1, "maximum": 10}
