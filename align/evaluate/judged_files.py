"""The question files of judged suites, in their official forms: MT-Bench and KoMT-Bench, LogicKor, Arena-Hard."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from align.core.errors import UserError
from align.evaluate.suite import Item
from align.evaluate.suite_file import id_of, read_items, text_of

log = logging.getLogger(__name__)

# Of the answers, by category: FastChat's `temperature_config` (arXiv 2306.05685).
TEMPERATURES: Mapping[str, float] = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
REFERENCE_CATEGORIES = ("math", "reasoning", "coding")  # whose judge is shown a reference answer
MOST_TURNS = 2


def read_mt_bench(path: Path, lang: str, references: Literal["required", "optional"] = "required") -> list[Item]:
    """The items of an MT-Bench file, or of KoMT-Bench, which has its form (lang "ko").

    A record has `question_id` or `id`, `category`, `turns` or `questions` (one or two texts), and `reference` or
    `references` (a text or null for each turn). `Item.data["references"]` holds them, an empty text for none.

    Args:
        path: of the JSON Lines file.
        lang: of the answers, en or ko.
        references: "required" refuses a file with a math, reasoning or coding question that has none; "optional" leaves it
            to the prompt without a reference. A turn without one is counted in the judging either way.

    Raises:
        UserError: no questions, an id twice, a record of another form, an unknown category or a missing reference.
    """

    def item(record: Mapping[str, Any], where: str) -> Item:
        name, category = _name(record, where, "question_id", "id"), text_of(record, "category", where)
        if category not in TEMPERATURES:
            raise UserError(f"{where}: question {name} has category {category!r}; MT-Bench has {', '.join(TEMPERATURES)}")
        turns = _turns(record, where)
        if len(turns) > MOST_TURNS:
            raise UserError(
                f"{where}: question {name} has {len(turns)} turns; MT-Bench grades one or two, leave out the rest"
            )
        known = _references(record, where, len(turns))
        if references == "required" and category in REFERENCE_CATEGORIES and not any(known):
            raise UserError(
                f"{where}: question {name} ({category}) lacks a reference answer; add `reference`, a list with a text for "
                'each turn, or set references to "optional" to have it judged without one'
            )
        return Item(
            id=name, turns=turns, category=category, lang=lang, temperature=TEMPERATURES[category],
            data={"references": known},
        )  # fmt: skip

    return read_items(path, ["category"], item)


def read_logickor(path: Path) -> list[Item]:
    """The items of a LogicKor file: `id`, `category`, `questions` and `references` (a text or null for each turn).

    Answers are greedy. The protocol asks two turns; further ones are left out, which is logged.

    Raises:
        UserError: no questions, an id twice, or a record of another form.
    """
    longer: list[str] = []

    def item(record: Mapping[str, Any], where: str) -> Item:
        name, turns = _name(record, where, "id", "question_id"), _turns(record, where)
        if len(turns) > MOST_TURNS:
            longer.append(name)
        known = _references(record, where, len(turns))
        return Item(
            id=name, turns=turns[:MOST_TURNS], category=text_of(record, "category", where), lang="ko", temperature=0.0,
            data={"references": known[:MOST_TURNS]},
        )  # fmt: skip

    items = read_items(path, ["category"], item)
    if longer:
        log.warning("%s: LogicKor asks two turns; the others of question %s are left out", path, ", ".join(longer))
    return items


def read_arena(path: Path, lang: str = "en") -> list[Item]:
    """The items of an Arena-Hard file: `question_id` or `uid`, `category`, and `prompt` or one of `turns`.

    Answers are greedy, as published (arXiv 2406.11939).

    Raises:
        UserError: no questions, an id twice, or a record of another form, such as one with several turns.
    """

    def item(record: Mapping[str, Any], where: str) -> Item:
        name = _name(record, where, "question_id", "uid", "id")
        turns = _turns({"turns": [record["prompt"]]} if "prompt" in record else record, where)
        if len(turns) > 1:
            raise UserError(f"{where}: question {name} has {len(turns)} turns; Arena-Hard compares answers to one prompt")
        return Item(id=name, turns=turns, category=text_of(record, "category", where), lang=lang, temperature=0.0)

    return read_items(path, ["category"], item)


def _name(record: Mapping[str, Any], where: str, *keys: str) -> str:
    """The record's id, under the first of `keys` that it has."""
    key = next((key for key in keys if key in record), None)
    if key is None:
        raise UserError(f"{where}: lacks an id; give each question one under {' or '.join(keys)}")
    return id_of(record, key, where)


def _turns(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The user's texts; a turn may stand in an object's `content`, as Arena-Hard has it."""
    turns = record.get("turns", record.get("questions"))
    turns = [turn.get("content") if isinstance(turn, dict) else turn for turn in turns] if isinstance(turns, list) else []
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise UserError(f"{where}: a question needs `turns` (or `questions`), a list of texts that are not empty")
    return tuple(turns)


def _references(record: Mapping[str, Any], where: str, count: int) -> tuple[str, ...]:
    """`count` reference answers, an empty text for each that is null or not there."""
    given = record.get("references") if record.get("reference") is None else record["reference"]
    texts = [""] * count if given is None else given
    if not isinstance(texts, list) or not all(text is None or isinstance(text, str) for text in texts):
        raise UserError(f"{where}: there is a `reference` that is no list of texts and nulls, one for each turn")
    if len(texts) > count:
        raise UserError(f"{where}: there are {len(texts)} references for {count} turns; give one for each turn")
    return tuple((text or "").strip() for text in texts) + ("",) * (count - len(texts))
