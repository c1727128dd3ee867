"""Evolution: every elimination reason, true and false, in English and Korean; choice by hash; accounting of one request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from align.core.rows import Instruction, Reject
from align.engines.protocol import Answered, Completion
from data_gen import evolve
from data_gen.evolve import (
    blows_up,
    child_or_reject,
    choose,
    copies_prompt_wording,
    elimination_reason,
    is_refusal,
    loses_subject,
    no_information_gain,
    only_punctuation_or_stop_words,
    switches_language,
)
from data_gen.instruct import difficulty
from data_gen.prompts import render

PARENT = {"en": "Why does salt melt ice on roads?", "ko": "소금은 왜 도로의 얼음을 녹이나요?"}
GOOD = {
    "en": [
        "Why does salt melt ice on roads, and below which temperature does it stop working?",
        "Explain why salt melts ice on roads. Use one example from a northern city.",
        "If a road is covered with ice at minus twenty degrees, why does salt not melt it?",
    ],
    "ko": [
        "소금은 왜 도로의 얼음을 녹이며, 어느 온도 아래에서는 녹이지 못하나요?",
        "소금이 도로의 얼음을 녹이는 까닭을 눈이 많은 도시의 예를 하나 들어 설명해 주세요.",
        "영하 이십 도에서 도로에 뿌린 소금은 왜 얼음을 녹이지 못하나요?",
    ],
}
OTHER_SUBJECT = {
    "en": "How do penguins hunt for krill under thick floes?",
    "ko": "펭귄들은 두꺼운 빙판 밑에서 어떻게 사냥하나요?",
}
# reason -> children that it eliminates, by language
BAD = {
    "no_content": {"en": ["?!", "", "Why is it?", "and the of"], "ko": ["?!", "...", "왜 그런가요?"]},
    "language_switch": {"en": [GOOD["ko"][0], "Почему соль растапливает лёд?"], "ko": [GOOD["en"][0]]},
    "refusal": {
        "en": ["Sorry, why does salt melt ice on mountain roads?", "As an AI I do not know why salt melts glacier ice?"],
        "ko": ["죄송합니다. 소금이 빙하의 얼음을 녹이는지 모릅니다.", "소금에 대한 질문에는 답변을 드릴 수 없습니다."],
    },
    "copied_prompt_wording": {
        "en": ["Rewritten question: why does salt melt glacier ice?", "#The Given Prompt# salt and glacier ice?"],
        "ko": ["새 질문: 소금은 왜 빙하의 얼음을 녹이나요?", "주어진 질문에서 소금은 왜 빙하를 녹이나요?"],
    },
    "no_information_gain": {
        "en": [PARENT["en"], "Does salt melt ice on the roads?"], "ko": [PARENT["ko"], "소금은 어떻게 얼음을 녹이나요?"],
    },
    "lost_subject": {"en": [OTHER_SUBJECT["en"]], "ko": [OTHER_SUBJECT["ko"]]},
    "length_blow_up": {
        "en": ["Why does salt melt ice on roads? " + "Consider one more distant city and its winters. " * 6],
        "ko": [PARENT["ko"] + " 눈이 많은 다른 도시의 겨울도 함께 생각해 주세요." * 6],
    },
    "not_a_request": {
        "en": ["Salt lowers the freezing point of water."], "ko": ["소금은 물의 어는점을 낮추어 얼음을 녹인다."],
    },
}  # fmt: skip


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("operator", ["constrain", "deepen", "concretize", "reason", "breadth"])
def test_good_children_pass(lang: str, operator: str) -> None:
    for child in GOOD[lang]:
        assert elimination_reason(PARENT[lang], child, operator, lang) == "", child


CASES = [
    (reason, lang, child) for reason, by_lang in BAD.items() for lang, children in by_lang.items() for child in children
]


@pytest.mark.parametrize(("reason", "lang", "child"), CASES, ids=[f"{r}-{i}" for i, (r, _, _) in enumerate(CASES)])
def test_each_reason_eliminates(reason: str, lang: str, child: str) -> None:
    assert elimination_reason(PARENT[lang], child, "deepen", lang) == reason


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_each_check_alone_is_true_and_false(lang: str) -> None:
    parent, good = PARENT[lang], GOOD[lang][0]
    checks = {
        "no_content": lambda child: only_punctuation_or_stop_words(child, lang),
        "language_switch": lambda child: switches_language(child, lang),
        "refusal": is_refusal,
        "copied_prompt_wording": copies_prompt_wording,
        "no_information_gain": lambda child: no_information_gain(parent, child, lang),
        "lost_subject": lambda child: loses_subject(parent, child, lang),
        "length_blow_up": lambda child: blows_up(parent, child),
        "not_a_request": lambda child: evolve.is_statement(child, lang),
    }
    assert set(checks) == set(BAD)
    for reason, check in checks.items():
        assert not check(good), reason
        assert all(check(child) for child in BAD[reason][lang]), reason


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_breadth_may_leave_its_parents_words(lang: str) -> None:
    assert elimination_reason(PARENT[lang], OTHER_SUBJECT[lang], "breadth", lang) == ""


@pytest.mark.parametrize(
    "text",
    [
        "물이 없으면 대부분의 생물은 생존할 수 없습니다.", "이 금속은 상온에서 산화할 수 없습니다.",
        "죄송한 마음을 편지로 전하는 방법은 무엇인가요?",
        "Plants that I cannote are rare.", "The sorrow of the poet",
    ],
)  # fmt: skip
def test_plain_statements_are_no_refusals(text: str) -> None:
    assert not is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.", "I cannot answer this.", "As an AI language model, I am not sure.",
        "죄송합니다만 잘 모르겠습니다.", "죄송하지만 답변할 수 없습니다.",
        "그 질문에는 대답해 드릴 수 없습니다.", "도와드릴 수 없어요.",
    ],
)  # fmt: skip
def test_refusals(text: str) -> None:
    assert is_refusal(text)


def examples(operator: str, lang: str) -> list[tuple[str, str]]:
    turns = [m["content"] for m in render(f"evolve-{operator}", lang, instruction="x") if m["role"] != "system"]
    return [(turns[i].split(": ", 1)[1], turns[i + 1]) for i in range(0, len(turns) - 1, 2)]


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("operator", ["constrain", "deepen", "concretize", "reason", "breadth"])
def test_worked_examples_show_what_the_eliminator_wants(operator: str, lang: str) -> None:
    found = examples(operator, lang)
    assert len(found) >= 2
    for parent, child in found:
        assert not only_punctuation_or_stop_words(child, lang) and not switches_language(child, lang)
        assert not is_refusal(child) and not copies_prompt_wording(child)
        assert not no_information_gain(parent, child, lang) and not blows_up(parent, child)
        assert not evolve.is_statement(child, lang)
        if operator != "breadth":
            assert difficulty(child) > difficulty(parent), child
        # A child that repeats an example word by word comes from the prompt, not from its parent.
        if len(child.split()) > 6:
            assert elimination_reason(parent, child, operator, lang) == "copied_example"


def row(number: int, lang: str = "en") -> Instruction:
    return Instruction(
        id=f"i{number}", parent_id="k", topic_id="t", knowledge_id="k", generation=0, operator="generate",
        task_type="question",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": PARENT[lang]}],
        difficulty=0.2, lang=lang, split="M1", license="CC0-1.0", pii="email",
    )  # fmt: skip


def test_choice_is_by_hash_and_does_not_move() -> None:
    operators = ("constrain", "deepen", "reason")
    pool = [row(i) for i in range(900)]
    how = {"operators": operators, "share": 0.3, "round_number": 1, "run_seed": 17}
    chosen = {r.id: operator for r, operator in choose(pool, **how)}  # type: ignore[arg-type]
    assert 210 < len(chosen) < 330
    assert all(60 < list(chosen.values()).count(operator) < 130 for operator in operators)
    part = {r.id: operator for r, operator in choose(pool[::-2], **how)}  # type: ignore[arg-type]
    assert part == {i: chosen[i] for i in part} and len(part) > 90
    assert {r.id for r, _ in choose(pool, **(how | {"round_number": 2}))} != set(chosen)  # type: ignore[arg-type]
    assert choose(pool, **(how | {"share": 0.0})) == []  # type: ignore[arg-type]
    assert len(choose(pool, **(how | {"share": 1.0}))) == 900  # type: ignore[arg-type]


class Written:
    """A tokenizer whose tokens are the characters' code points."""

    def text(self, ids: tuple[int, ...]) -> str:
        return "".join(map(chr, ids)).strip()


def became(text: str, lang: str = "en", *, reason: str = "stop", error: str = "") -> Instruction | Reject:
    completion = Completion(token_ids=tuple(map(ord, text)), finish_reason=reason)
    answered = Answered(request_id="i1", completions=() if error else (completion,), error=error)
    return child_or_reject(row(1, lang), "deepen", answered, Written())  # type: ignore[arg-type]


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_a_child_keeps_its_parents_place_and_earlier_turns(lang: str) -> None:
    parent = row(1, lang)
    child = became(f"{'Question' if lang == 'en' else '질문'}: {GOOD[lang][0]}\nand more", lang, reason="length")
    assert isinstance(child, Instruction)
    assert child.messages == [parent.messages[0], {"role": "user", "content": GOOD[lang][0]}]
    assert child == replace(
        parent, id=child.id, parent_id=parent.id, generation=1, operator="deepen", messages=child.messages,
        difficulty=difficulty(GOOD[lang][0]),
    )  # fmt: skip
    assert child.difficulty > difficulty(PARENT[lang])


def test_what_became_of_bad_children() -> None:
    for lang, text, reason in (("en", PARENT["en"], "no_information_gain"), ("ko", "...", "no_content")):
        rejected = became(text, lang)
        assert isinstance(rejected, Reject) and rejected.reason == reason and text in rejected.raw
    cut = became(GOOD["en"][0], reason="length")
    assert isinstance(cut, Reject) and cut.reason == "truncated"
    failed = became("", error="prompt_too_long: 900 tokens")
    assert isinstance(failed, Reject) and failed.reason == "prompt_too_long"
