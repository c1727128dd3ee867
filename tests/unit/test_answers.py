"""Answers: each fault in both languages, passages, and an SFT set in which every instruction is accounted for."""

from __future__ import annotations

from collections import Counter

import pytest

from align.core.rows import Instruction, Response
from data_gen.answers import answer_fault, answer_messages, document_response, passage_from, sft_set

GOOD = {
    "en": "Honey keeps because it holds little water. Bacteria cannot grow in it.",
    "ko": "꿀은 수분이 적어서 세균이 자라지 못합니다. 그래서 오래 둘 수 있습니다.",
}


def instruction(number: int, lang: str = "en", text: str = "") -> Instruction:
    return Instruction(
        id=f"i{number}", parent_id="k", topic_id="honey", knowledge_id="k", generation=1, operator="deepen", lang=lang,
        messages=[{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."},
                  {"role": "user", "content": text or f"Why {number}?"}],
        task_type="question", difficulty=0.3, split="sft", license="CC0-1.0", pii="email",
    )  # fmt: skip


def response(number: int, text: str, *, index: int = 0, reason: str = "stop") -> Response:
    return Response(
        id=f"r{number}-{index}", prompt_id=f"i{number}", model="base", sample_index=index, token_ids=[1], text=text,
        finish_reason=reason, num_tokens=1,
    )  # fmt: skip


FAULTS = [
    ("en", "", "stop", "empty"),
    ("en", GOOD["en"], "length", "truncated"),
    ("en", GOOD["ko"], "stop", "off_language"),
    ("ko", GOOD["en"], "stop", "off_language"),
    ("en", "12345", "stop", "off_language"),
    ("en", "I'm sorry, but I cannot tell you about honey.", "stop", "refusal"),
    ("ko", "죄송합니다. 그 질문에는 답변해 드릴 수 없습니다.", "stop", "refusal"),
    ("en", "Honey is sweet and good. " * 8, "stop", "repetitive"),
    ("ko", "꿀은 달고 아주 맛있습니다. " * 8, "stop", "repetitive"),
]


@pytest.mark.parametrize(("lang", "text", "reason", "fault"), FAULTS)
def test_each_fault(lang: str, text: str, reason: str, fault: str) -> None:
    assert answer_fault(response(1, text, reason=reason), lang, 0.3) == fault


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_good_answers_have_none(lang: str) -> None:
    assert answer_fault(response(1, GOOD[lang]), lang, 0.3) == ""
    assert answer_fault(response(1, GOOD[lang] + " " + GOOD[lang]), lang, 0.6) == ""
    assert answer_fault(response(1, GOOD[lang] + " " + GOOD[lang]), lang, 0.2) == "repetitive"


def test_every_instruction_is_an_example_or_a_reject() -> None:
    instructions = [instruction(i) for i in range(6)] + [instruction(6, text="Same?"), instruction(7, text="Same?")]
    responses = [
        response(0, GOOD["en"]),
        response(1, "", index=0), response(1, GOOD["en"] + " First.", index=2), response(1, GOOD["en"] + " Next.", index=1),
        response(2, GOOD["en"], reason="length"),
        response(3, GOOD["ko"], index=1), response(3, "", index=0),
        response(5, GOOD["en"]),
        response(6, GOOD["en"]), response(7, GOOD["en"]),
        response(99, GOOD["en"]),
    ]  # fmt: skip
    rows, rejects = sft_set(instructions, responses, max_repetition=0.3)
    assert len(rows) + len(rejects) == len(instructions)
    assert {r.parent_id for r in rows} == {"i0", "i1", "i5", "i6"}
    assert {r.id: r.reason for r in rejects} == {
        "i2": "truncated",
        "i3": "off_language",
        "i4": "no_answer",
        "i7": "duplicate",
    }
    assert Counter(r.id for r in rows).most_common(1)[0][1] == 1
    first = next(r for r in rows if r.parent_id == "i1")
    assert first.messages[-1] == {"role": "assistant", "content": GOOD["en"] + " Next."}, "the first candidate that passes"
    assert first.messages[:-1] == instructions[1].messages
    assert (first.topic_id, first.lang, first.generation, first.task_type) == ("honey", "en", 1, "question")


def test_the_same_answer_to_other_questions_is_no_duplicate() -> None:
    rows, rejects = sft_set(
        [instruction(1), instruction(2)], [response(1, GOOD["en"]), response(2, GOOD["en"])], max_repetition=0.3
    )
    assert len(rows) == 2 and rejects == []


def test_the_fact_is_shown_in_the_last_turn_only() -> None:
    asked = instruction(1)
    assert answer_messages(asked, None) == asked.messages
    shown = answer_messages(asked, "Honey holds little water.")
    assert shown[:2] == asked.messages[:2] and shown[2]["role"] == "user" and len(shown) == 3
    assert "Honey holds little water." in shown[2]["content"] and "Why 1?" in shown[2]["content"]
    korean = answer_messages(instruction(1, "ko", "꿀은 왜 오래 가나요?"), "꿀은 수분이 적다.")
    assert "꿀은 수분이 적다." in korean[2]["content"] and "꿀은 왜 오래 가나요?" in korean[2]["content"]


DOCUMENT = (
    "꿀은 달다. 꿀은 수분이 적어 세균이 자라지 못한다. 꿀벌은 꽃에서 꿀을 모은다. " + "벌집에는 방이 아주 많이 있다. " * 20
)


@pytest.mark.parametrize("max_chars", [60, 100, 160])
def test_a_passage_begins_with_its_statement_and_is_short(max_chars: int) -> None:
    passage = passage_from(DOCUMENT, "꿀은 수분이 적어 세균이 자라지 못한다.", max_chars)
    assert passage.startswith("꿀은 수분이 적어 세균이 자라지 못한다. 꿀벌은 꽃에서 꿀을 모은다.")
    assert passage in DOCUMENT
    assert max_chars / 2 < len(passage) <= max_chars + 10


def test_a_passage_is_whole_sentences() -> None:
    assert passage_from("One. Two.", "Two.", 100) == "Two."
    assert passage_from("One. Two.", "Not there.", 100) == "One. Two."
    assert passage_from("One. Two.", "One.", 6) == "One."
    long = "아주 긴 문장은 그대로 둔다" + "고 말했다" * 100 + "."
    assert passage_from(long + " 다음 문장.", long, 100) == long, "a first sentence is never cut"


def test_a_document_response_stands_for_its_instruction() -> None:
    one, two = document_response(instruction(1), "꿀은 달다."), document_response(instruction(2), "꿀은 달다.")
    assert one.id != two.id and (one.prompt_id, one.model, one.finish_reason) == ("i1", "document", "stop")
    assert one == document_response(instruction(1), "꿀은 달다.")
