"""A judge's marks: what is read, and what becomes of an instruction whose judge cannot be read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from align.engines.complete import Reply
from data_gen.judge import judged, parse_marks
from data_gen.prompts import Prompts
from tests.jobs import SAMPLING, failed, instruction, run_job, said

NAMES = ("difficulty", "quality")
PROMPTS = Prompts()
ASKED = {"en": "Why does honey keep for years?", "ko": "꿀은 왜 여러 해 동안 상하지 않나요?"}


def marks(difficulty: object, quality: object) -> str:
    return json.dumps({"difficulty": difficulty, "quality": quality})


def test_parse_marks() -> None:
    assert parse_marks(marks(1, 10), NAMES) == {"difficulty": 1.0, "quality": 10.0}
    assert parse_marks(marks(2.5, 7), NAMES) == {"difficulty": 2.5, "quality": 7.0}
    assert parse_marks('{"score": 3, "why": "short\nand wrong"}', ("score",)) == {"score": 3.0}


UNREADABLE = [
    marks(0, 5), marks(5, 11), marks(-1, 5), marks("7", 5), marks("high", 5), marks(None, 5), marks(True, 5), marks([7], 5),
    marks({"mark": 7}, 5), '{"difficulty": NaN, "quality": 5}', '{"difficulty": Infinity, "quality": 5}',
    '{"difficulty": 7}', '{"quality": 5}', "{}", "[7, 5]", "7", "null", '"7"', "", "7/10", "Difficulty: 7, quality: 5",
    f"Sure! {marks(7, 5)}", f"```json\n{marks(7, 5)}\n```", '{"difficulty": 7, "quality": ', "[" * 5000, "9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("text", UNREADABLE, ids=range(len(UNREADABLE)))
def test_what_is_no_mark_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_marks(text, NAMES)
    row = instruction(ASKED["en"])
    assert run_job(judged(row, PROMPTS, SAMPLING, 2), lambda ask: text)[0] == row


@pytest.mark.parametrize(
    "reply", [said(marks(7, 5), cut=True), failed("http_400: no"), failed("prompt_too_long: 900 tokens")]
)
def test_without_a_whole_answer_there_is_no_mark(reply: Reply) -> None:
    row = instruction(ASKED["en"])
    assert run_job(judged(row, PROMPTS, SAMPLING, 2), lambda ask: reply)[0] == row


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_an_instruction_gets_both_marks(lang: str) -> None:
    system = {"role": "system", "content": "You are brief."}
    row = instruction(ASKED[lang], lang, messages=[system, {"role": "user", "content": ASKED[lang]}])
    after, (ask,) = run_job(judged(row, PROMPTS, SAMPLING, 2), lambda ask: marks(7, 5))
    assert after == replace(row, judged_difficulty=7.0, judged_quality=5.0)
    assert (ask.id, ask.purpose, ask.sampling) == (row.id, "judge-instruction", SAMPLING)
    assert ASKED[lang] in ask.messages[-1]["content"], "the request is judged"
    assert not any("You are brief." in m["content"] for m in ask.messages), "not its system prompt"
    assert ask.json_schema is not None and json.loads(ask.json_schema)["required"] == ["difficulty", "quality"]


def test_a_dialogue_is_judged_as_a_whole() -> None:
    turns = [
        ("user", "Name two rivers."),
        ("assistant", "The Seine and the Loire."),
        ("user", "How long is the second one?"),
    ]
    row = instruction("", messages=[{"role": role, "content": text} for role, text in turns])
    _, (ask,) = run_job(judged(row, PROMPTS, SAMPLING, 1), lambda ask: marks(7, 5))
    assert "\n".join(text for _, text in turns) in ask.messages[-1]["content"]


def test_a_judge_is_asked_again() -> None:
    row = instruction(ASKED["en"])
    after, asked = run_job(judged(row, PROMPTS, SAMPLING, 2), lambda ask: marks(4, 6) if "#" in ask.id else "hard")
    assert (after.judged_difficulty, after.judged_quality, len(asked)) == (4.0, 6.0, 2)
