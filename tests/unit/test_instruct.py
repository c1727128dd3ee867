"""Instructions: cleaning what models write, each fault, splits by document, key terms and the difficulty measure."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from align.core.rows import Instruction, Knowledge, Reject
from align.engines.protocol import Answered, Completion
from data_gen.instruct import (
    MAX_WORDS,
    ask_id,
    clean_instruction,
    difficulty,
    enumerate_asks,
    instruction_fault,
    instruction_or_reject,
    keyword,
    split_of,
    task_types_of,
)
from data_gen.taxonomy import Node

FACT = {
    "en": "Honey keeps for years because its low water content stops bacteria from growing.",
    "ko": "꿀은 수분이 적어 세균이 자라지 못하므로 여러 해 동안 상하지 않는다.",
}
GOOD = {
    "en": [
        "Why does honey keep for years?",
        "Explain why bacteria cannot grow in honey.",
        "List what keeps honey from spoiling.",
    ],
    "ko": ["꿀은 왜 여러 해 동안 상하지 않나요?", "꿀에서 세균이 자라지 못하는 까닭을 설명해 주세요."],
}
TOPIC = Node(
    "honey", "food/honey", {"en": "Bees and honey", "ko": "꿀벌과 꿀"}, {"en": "d", "ko": "d"},
    {"en": ["water", "Water content", "wax"], "ko": ["수분", "벌집"]},
)  # fmt: skip


class Written:
    """A tokenizer whose tokens are the characters' code points."""

    def text(self, ids: tuple[int, ...]) -> str:
        return "".join(map(chr, ids)).strip()


def unit(lang: str = "en", number: int = 1) -> Knowledge:
    return Knowledge(
        id=f"k{number}",
        topic_id="honey",
        document_id=f"d{number}",
        statement=FACT[lang],
        quote="",
        lang=lang,
        similarity=0.5,
        license="CC0-1.0",
        pii="email",
    )


def made(text: str, lang: str = "en", *, reason: str = "stop", error: str = "") -> Instruction | Reject:
    completion = Completion(token_ids=tuple(map(ord, text)), finish_reason=reason)
    answered = Answered(request_id="x", completions=() if error else (completion,), error=error)
    return instruction_or_reject(unit(lang), "question", 0, answered, Written(), TOPIC, "sft")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Question: Why does honey keep?", "Why does honey keep?"),
        ("  request :  “Why does honey keep?” \n\nAnswer: because", "Why does honey keep?"),
        ('"Why does honey keep?"', "Why does honey keep?"),
        ("질문: 꿀은 왜 상하지 않나요?\n답: 수분", "꿀은 왜 상하지 않나요?"),
        ("\n\nWhy?\n", "Why?"),
        ("", ""),
        ("The question: why?", "The question: why?"),
    ],
)
def test_clean_instruction(raw: str, clean: str) -> None:
    assert clean_instruction(raw) == clean


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_good_instructions_have_no_fault(lang: str) -> None:
    for text in GOOD[lang]:
        assert instruction_fault(text, FACT[lang], lang) == ""
        row = made(f"Question: {text}\nmore", lang, reason="length")  # cut in a further line: the first one is whole
        assert isinstance(row, Instruction)
        assert row.messages == [{"role": "user", "content": text}]
        assert (row.parent_id, row.knowledge_id, row.topic_id, row.split, row.generation) == ("k1", "k1", "honey", "sft", 0)


@pytest.mark.parametrize(
    ("lang", "text", "fault"),
    [
        ("en", "Why honey?", "too_short"),
        ("en", "", "too_short"),
        ("ko", "왜?", "too_short"),
        ("en", "Why does honey keep " + "for very many years " * 15 + "?", "too_long"),
        ("ko", "꿀은 왜 " + "여러 해 동안 오래 " * 20 + "상하지 않나요?", "too_long"),
        ("en", GOOD["ko"][0], "off_language"),
        ("ko", GOOD["en"][0], "off_language"),
        ("en", "What does this fact say about honey?", "refers_to_source"),
        ("en", "Explain why, according to the text, honey keeps.", "refers_to_source"),
        ("ko", "주어진 글에서 꿀은 왜 상하지 않나요?", "refers_to_source"),
        ("ko", "이 사실은 꿀에 대해 무엇을 말하나요?", "refers_to_source"),
        ("en", "How do penguins hunt for krill?", "not_about_the_fact"),
        ("ko", "펭귄들이 먹이를 사냥하는 방법은 무엇인가요?", "not_about_the_fact"),
    ],
)
def test_each_fault(lang: str, text: str, fault: str) -> None:
    assert instruction_fault(text, FACT[lang], lang) == fault
    rejected = made(text, lang)
    assert isinstance(rejected, Reject) and (rejected.reason, rejected.raw) == (fault, text)


def test_what_repeats_the_fact_or_answers_is_no_instruction() -> None:
    for text in (FACT["en"], FACT["en"].rstrip("."), "honey is sweet and keeps for years."):
        assert instruction_fault(text, "Well, " + FACT["en"], "en") in ("copies_the_fact", "not_a_request")
    assert instruction_fault(FACT["ko"], FACT["ko"], "ko") in ("copies_the_fact", "not_a_request")
    # Words of the fact inside a real question are no copy.
    assert instruction_fault("What stops bacteria from growing?", FACT["en"], "en") == ""


def test_faults_of_the_call_itself() -> None:
    cut = made("Why does honey keep for", reason="length")
    assert isinstance(cut, Reject) and cut.reason == "truncated"
    failed = made("", error="http_500: overloaded")
    assert isinstance(failed, Reject) and (failed.reason, failed.raw) == ("http_500", "http_500: overloaded")
    assert made("x", error="a: 1").id == made("y", error="b: 2").id, "a wish has one id, whatever became of it"


def test_longest_allowed_instruction() -> None:
    text = "Why does honey keep " + "years " * (MAX_WORDS - 4)
    assert instruction_fault(text, FACT["en"], "en") == ""
    assert instruction_fault(text + "more", FACT["en"], "en") == "too_long"


def test_keyword_is_the_longest_term_that_the_fact_names() -> None:
    assert keyword(FACT["en"], TOPIC, "en") == "Water content"
    assert keyword(FACT["ko"], TOPIC, "ko") == "수분"
    assert keyword("Penguins hunt krill.", TOPIC, "en") == "Bees and honey"


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("task_type", ["question", "explain", "list", "compare", "advise"])
def test_templates_name_the_key_term(lang: str, task_type: str) -> None:
    row = instruction_or_reject(unit(lang), task_type, 0, None, None, TOPIC, "M1")
    assert isinstance(row, Instruction)
    text = row.messages[0]["content"]
    assert keyword(FACT[lang], TOPIC, lang) in text and TOPIC.name[lang] in text
    assert (row.operator, row.task_type, row.lang, row.split) == ("template", task_type, lang, "M1")


def test_splits_follow_the_shares_and_do_not_move_when_documents_come() -> None:
    shares = {"sft": 0.5, "M1": 0.2, "M2": 0.2, "heldout": 0.1}
    before = {f"doc-{i}": split_of(f"doc-{i}", 17, shares) for i in range(2000)}
    after = {f"doc-{i}": split_of(f"doc-{i}", 17, shares) for i in reversed(range(4000))}
    assert all(after[name] == split for name, split in before.items())
    counts = Counter(before.values())
    assert all(abs(counts[name] / 2000 - share) < 0.04 for name, share in shares.items())
    assert {f"doc-{i}": split_of(f"doc-{i}", 18, shares) for i in range(2000)} != before


def test_a_split_always_exists_even_where_shares_sum_to_less_by_rounding() -> None:
    shares = {"sft": 0.0, "heldout": 1 - 1e-16}
    assert {split_of(str(i), 17, shares) for i in range(200)} == {"heldout"}
    assert split_of("x", 17, {"a": 0.0, "b": 0.0}) == "b"


def test_task_types_are_spread_evenly_and_repeatable() -> None:
    types = ("question", "explain", "list")
    chosen = {i: task_types_of(unit(number=i), types, 2, 17) for i in range(600)}
    assert all(len(set(c)) == 2 for c in chosen.values())
    counts = Counter(t for c in chosen.values() for t in c)
    assert all(330 < counts[t] < 470 for t in types)
    assert task_types_of(unit(number=5), types, 2, 17) == chosen[5]
    assert Counter(task_types_of(unit(), types, 7, 17)).most_common(1)[0][1] == 3


def test_repeated_wishes_are_draws_of_their_own() -> None:
    wishes = [(unit(number=1), "list"), (unit(number=1), "list"), (unit(number=2), "list"), (unit(number=1), "explain")]
    numbered = enumerate_asks(wishes)
    assert [n for n, _ in numbered] == [0, 1, 0, 0]
    assert len({ask_id(u, t, n) for n, (u, t) in numbered}) == 4


@pytest.mark.parametrize(
    ("easy", "hard"),
    [
        ("Why does honey keep?", "Why does honey keep, and how do bees dry it?"),
        ("Which river flows through Paris?", "Which river flows through Paris in exactly two sentences?"),
        ("꿀은 왜 상하지 않나요?", "꿀은 왜 상하지 않으며, 물에 탄 꿀은 어떻게 되나요?"),
        ("", "Why?"),
    ],
)
def test_difficulty_orders_prompts(easy: str, hard: str) -> None:
    assert 0 <= difficulty(easy) < difficulty(hard) < 1


def test_difficulty_by_hand() -> None:
    values: dict[str, Any] = {
        "one two three four five": 1 - 2.718281828**-0.2,
        "": 0.0,
        "why 12?": 1 - 2.718281828 ** -(2 / 25 + 1),
    }
    for text, value in values.items():
        assert difficulty(text) == pytest.approx(value, abs=1e-4)
    assert difficulty("somehow whyever") == difficulty("other words"), "only whole words count"
