"""Answers: how they are asked for, each fault in both languages, and an SFT set that accounts for every instruction."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from align.core.formats import demands, draw
from align.core.rows import Instruction, Made, Response
from align.engines.complete import Ask, Reply
from data_gen.answers import (
    AnswerRules,
    Source,
    answer_fault,
    answer_job,
    answer_messages,
    document_response,
    score_job,
    sft_set,
)
from data_gen.prompts import Prompts
from data_gen.tasks import INPUT_TASKS, PLAIN_TASKS
from tests import jobs
from tests.jobs import FACTS, SAMPLING, TEXTS, failed, run_job, said

PROMPTS = Prompts()
GOOD = {
    "en": "Honey keeps because it holds little water. Bacteria cannot grow in it.",
    "ko": "꿀은 수분이 적어서 세균이 자라지 못합니다. 그래서 오래 둘 수 있습니다.",
}
ASKED = {"en": "Why does honey keep for years?", "ko": "꿀은 왜 여러 해 동안 상하지 않나요?"}


def instruction(number: int, lang: str = "en", text: str = "", **changes: Any) -> Instruction:
    """The last turn of a dialogue."""
    turns = [("user", "Hi."), ("assistant", "Hello."), ("user", text or f"Why {number}?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    return jobs.instruction("", lang, **{"id": f"i{number}", "messages": messages, "generation": 1, **changes})


def response(number: int, text: str, *, index: int = 0, reason: str = "stop") -> Response:
    return jobs.response(f"i{number}", text, id=f"r{number}-{index}", sample_index=index, finish_reason=reason)


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
    assert answer_fault(response(1, text, reason=reason), instruction(1, lang), 0.3) == fault


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_good_answers_have_none(lang: str) -> None:
    asked = instruction(1, lang)
    assert answer_fault(response(1, GOOD[lang]), asked, 0.3) == ""
    assert answer_fault(response(1, GOOD[lang] + " " + GOOD[lang]), asked, 0.6) == ""
    assert answer_fault(response(1, GOOD[lang] + " " + GOOD[lang]), asked, 0.2) == "repetitive"


CODE = "```python\ndef keeps(water):\n    return water < 20\n```"


@pytest.mark.parametrize(
    ("lang", "text", "fault"),
    [
        ("ko", CODE, ""),
        ("ko", '{"name": "honey", "keeps": true}', ""),
        ("ko", '["honey", "salt"]', ""),
        ("ko", f"다음 함수는 꿀이 상하는지 알려 줍니다.\n\n{CODE}", ""),
        ("ko", f"{CODE}\n수분이 20% 미만이면 참입니다.", ""),
        ("ko", f"Here is the function that you asked for.\n\n{CODE}", "off_language"),
        ("en", f"The function below tells whether honey keeps.\n\n{CODE}", ""),
        ("en", f"다음 함수는 꿀이 상하는지 알려 줍니다.\n\n{CODE}", "off_language"),
        ("ko", "def keeps(water): return water < 20", "off_language"),
    ],
)
def test_code_and_json_are_in_no_language(lang: str, text: str, fault: str) -> None:
    assert answer_fault(response(1, text), instruction(1, lang), 0.3) == fault


DEMANDS = [
    ("en", "Answer in exactly two sentences.", GOOD["en"], GOOD["en"] + " It is dry."),
    ("en", "Answer in at most eight words.", "Honey keeps because it holds little water.", GOOD["en"]),
    ("en", "Do not use the word 'bacteria'.", "It holds very little water.", GOOD["en"]),
    ("en", "Answer as a JSON object.", '{"cause": "little water"}', GOOD["en"]),
    ("en", "Use a table.", "| cause |\n| --- |\n| little water |\n| acid |", GOOD["en"]),
    ("ko", "두 문장으로 답해 주세요.", GOOD["ko"], GOOD["ko"] + " 꿀은 산성입니다."),
    ("ko", "'수분'이라는 말을 꼭 사용하세요.", GOOD["ko"], "꿀은 세균이 자라지 못해서 상하지 않습니다."),
    ("ko", "JSON 객체로 답해 주세요.", '{"까닭": "수분"}', GOOD["ko"]),
]


@pytest.mark.parametrize(("lang", "demand", "kept", "broken"), DEMANDS)
def test_a_demand_on_the_form_is_checked(lang: str, demand: str, kept: str, broken: str) -> None:
    asked = instruction(1, lang, f"{ASKED[lang]} {demand}")
    assert len(demands(demand, lang)) == 1
    assert answer_fault(response(1, kept), asked, 0.3) == ""
    fault = answer_fault(response(1, broken), asked, 0.3)
    assert fault not in ("", "off_language")
    rows, rejects = sft_set([asked], [response(1, broken)], max_repetition=0.3)
    assert rows == [] and [(r.id, r.reason, r.topic_id) for r in rejects] == [("i1", fault, "honey")]
    assert rejects[0].raw.endswith(f"-> {broken}")
    rows, rejects = sft_set([asked], [response(1, broken), response(1, kept, index=1)], max_repetition=0.3)
    assert [row.messages[-1]["content"] for row in rows] == [kept] and rejects == []


@pytest.mark.parametrize(("lang", "demand"), [("en", "Answer in exactly one sentence."), ("ko", "한 문장으로만 답하세요.")])
def test_what_an_input_says_is_no_demand(lang: str, demand: str) -> None:
    """The text to be summarised may itself ask for something."""
    request = {"en": "Summarize the text below.", "ko": "아래 글을 요약해 주세요."}[lang]
    text = jobs.instruction(f"{request}\n\n{TEXTS[lang]} {demand}", lang, task_type="summarize")
    assert answer_fault(jobs.response("i1", GOOD[lang]), text, 0.3) == ""
    below = jobs.instruction(f"{request} {demand}\n\n{TEXTS[lang]}", lang, task_type="summarize")
    assert answer_fault(jobs.response("i1", GOOD[lang]), below, 0.3) != ""


def test_an_earlier_turns_demand_is_met_already() -> None:
    asked = instruction(1, "en", "How long does it keep?")
    asked.messages[0]["content"] = "Why does honey keep? Answer as a JSON object."
    assert answer_fault(response(1, GOOD["en"]), asked, 0.3) == ""


@pytest.mark.parametrize(("lang", "other"), [("en", "ko"), ("ko", "en")])
def test_a_translation_is_checked_in_the_other_language(lang: str, other: str) -> None:
    request = {"en": "Translate the text below into Korean.", "ko": "아래 글을 영어로 옮겨 주세요."}[lang]
    asked = jobs.instruction(f"{request}\n\n{TEXTS[lang]}", lang, task_type="translate", answer_lang=other)

    def fault(text: str) -> str:
        return answer_fault(jobs.response("i1", text), asked, 0.3)

    assert fault(GOOD[other]) == ""
    assert fault(GOOD[lang]) == "off_language"
    refusal = {"en": "I'm sorry, but I cannot translate that.", "ko": "죄송합니다. 그 요청에는 답변해 드릴 수 없습니다."}
    assert fault(refusal[other]) == "refusal"
    rows, rejects = sft_set([asked], [jobs.response("i1", GOOD[other])], max_repetition=0.3)
    assert [row.lang for row in rows] == [other] and rejects == [], "an example is in its answer's language"


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
    assert {r.topic_id for r in rejects} == {"honey"}
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


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        (None, 1),
        ({}, 1),
        ({"r1-1": 3.0, "r1-2": 7.0, "r1-3": 5.0}, 2),
        ({"r1-0": 9.0, "r1-1": 3.0, "r1-2": 4.0, "r1-3": 8.0, "r1-4": 9.5}, 3),  # 0 is empty, 4 is cut
        ({"r1-1": -3.0, "r1-2": -1.5, "r1-3": -2.0}, 2),
        ({"r1-1": 7.0, "r1-2": 7.0, "r1-3": 7.0}, 1),  # the first of equals
        ({"r1-3": -100.0}, 3),  # one without a score comes last
        ({"r2-1": 9.0}, 1),  # another instruction's
    ],
)
def test_the_best_candidate_that_passes_is_chosen(scores: dict[str, float] | None, chosen: int) -> None:
    texts = ["", *(f"{GOOD['en']} It keeps for {n} years." for n in ("one", "two", "three"))]
    found = [response(1, text, index=index) for index, text in enumerate(texts)]
    found.append(response(1, GOOD["en"], index=4, reason="length"))
    for order in (found, found[::-1]):
        rows, rejects = sft_set([instruction(1)], order, max_repetition=0.3, scores=scores)
        assert [row.messages[-1]["content"] for row in rows] == [texts[chosen]] and rejects == []


# what the answering model sees


def test_the_fact_is_shown_in_the_last_turn_only() -> None:
    asked = instruction(1)
    assert answer_messages(asked, None, PROMPTS) == asked.messages
    shown = answer_messages(asked, "Honey holds little water.", PROMPTS)
    assert shown[:2] == asked.messages[:2] and shown[2]["role"] == "user" and len(shown) == 3
    assert "Honey holds little water." in shown[2]["content"] and "Why 1?" in shown[2]["content"]
    korean = answer_messages(instruction(1, "ko", "꿀은 왜 오래 가나요?"), "꿀은 수분이 적다.", PROMPTS)
    assert "꿀은 수분이 적다." in korean[2]["content"] and "꿀은 왜 오래 가나요?" in korean[2]["content"]


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_an_answer_of_a_form_of_its_own_is_asked_for_as_it_is(lang: str) -> None:
    """ "In two or three sentences" would contradict a list, code, or what the request itself demands."""

    def ending(task_type: str, text: str = ASKED[lang]) -> str:
        (message,) = answer_messages(jobs.instruction(text, lang, task_type=task_type), FACTS[lang], PROMPTS)
        assert FACTS[lang] in message["content"] and text in message["content"]
        return message["content"].partition(text)[2]

    own = {task for task in PLAIN_TASKS if not ending(task)}
    assert own == {"code", "format", "list", "plan", "role_play"}
    for seed in range(20):
        assert not ending("question", f"{ASKED[lang]} {draw(seed, lang)[1]}")
    assert not ending("question", f"{ASKED[lang]}\n\n```python\nprint(1)\n```"), "an input stays last"


@pytest.mark.parametrize("task_type", INPUT_TASKS)
def test_a_request_about_an_input_is_answered_from_it(task_type: str) -> None:
    asked = jobs.instruction(f"Do it to the text below.\n\n{TEXTS['en']}", task_type=task_type)
    assert answer_messages(asked, FACTS["en"], PROMPTS) == asked.messages


def test_a_system_prompt_stays_first() -> None:
    system = {"role": "system", "content": "You are brief."}
    asked = jobs.instruction("", messages=[system, {"role": "user", "content": ASKED["en"]}])
    shown = answer_messages(asked, FACTS["en"], PROMPTS)
    assert shown[0] == system and [m["role"] for m in shown] == ["system", "user"]


# jobs


def job(
    asked: Instruction, how: str, answer: Callable[[Ask], str | Reply], *, candidates: int = 1, grounded: bool = True
) -> tuple[Made, list[Ask]]:
    rules = AnswerRules(writer={"en": how, "ko": how}, grounded=grounded, candidates=candidates, sampling=SAMPLING)
    source = Source(fact=FACTS[asked.lang], passage=TEXTS[asked.lang])
    made, asks = run_job(answer_job(asked, source, PROMPTS, rules), answer)
    assert made.asked == len(made.rows) + len(made.rejects), "every answer asked for is a row or a reject"
    return made, asks


def test_a_model_writes_the_candidates() -> None:
    asked = jobs.instruction(ASKED["en"])
    made, (ask,) = job(asked, "model", lambda ask: said("One.", "Two.", "Three."), candidates=3)
    assert [(r.text, r.sample_index, r.prompt_id, r.finish_reason) for r in made.rows] == [
        (text, index, "i1", "stop") for index, text in enumerate(("One.", "Two.", "Three."))
    ]
    assert len({r.id for r in made.rows}) == 3
    assert (ask.id, ask.purpose, ask.n, ask.sampling) == ("i1", "answer", 3, SAMPLING)
    assert ask.messages == answer_messages(asked, FACTS["en"], PROMPTS)
    assert job(asked, "model", lambda ask: "One.", grounded=False)[1][0].messages == asked.messages


@pytest.mark.parametrize("how", ["model", "rewrite"])
def test_a_failed_call_rejects_every_candidate(how: str) -> None:
    made, _ = job(jobs.instruction(ASKED["en"]), how, lambda ask: failed("prompt_too_long: 900 tokens"), candidates=3)
    assert [(r.reason, r.raw) for r in made.rejects] == [("prompt_too_long", "prompt_too_long: 900 tokens")] * 3
    assert len({r.id for r in made.rejects}) == 3


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_a_rewriting_must_rest_on_its_passage(lang: str) -> None:
    free = {"en": "Penguins of Antarctica hunt for krill.", "ko": "펭귄은 두꺼운 얼음 아래에서 크릴을 사냥합니다."}[lang]
    made, (ask,) = job(jobs.instruction(ASKED[lang], lang), "rewrite", lambda ask: said(GOOD[lang], free, ""), candidates=3)
    assert [row.text for row in made.rows] == [GOOD[lang], ""], "an empty answer is another step's matter"
    assert [(r.reason, r.raw, r.topic_id) for r in made.rejects] == [("not_grounded", free, "honey")]
    assert TEXTS[lang] in ask.messages[-1]["content"] and ASKED[lang] in ask.messages[-1]["content"]
    assert FACTS[lang] not in "".join(m["content"] for m in ask.messages).replace(TEXTS[lang], "")
    assert [row.text for row in job(jobs.instruction(ASKED[lang], lang), "model", lambda ask: free)[0].rows] == [free]


def test_a_rewriting_keeps_the_dialogue_before_it() -> None:
    _, (ask,) = job(instruction(1), "rewrite", lambda ask: GOOD["en"])
    assert ask.messages[:2] == instruction(1).messages[:2]


@pytest.mark.parametrize("task_type", INPUT_TASKS)
def test_an_input_is_not_rewritten_as_its_own_answer(task_type: str) -> None:
    asked = jobs.instruction(f"Do it to the text below.\n\n{TEXTS['en']}", task_type=task_type)
    made, (ask,) = job(asked, "rewrite", lambda ask: "Penguins hunt krill.")
    assert ask.messages == asked.messages
    assert [row.text for row in made.rows] == ["Penguins hunt krill."] and not made.rejects


def test_the_writer_is_that_of_the_answers_language() -> None:
    asked = jobs.instruction(f"Translate the text below.\n\n{TEXTS['en']}", task_type="translate", answer_lang="ko")
    rules = AnswerRules(writer={"en": "model", "ko": "document"}, grounded=True, candidates=1, sampling=SAMPLING)
    source = Source(fact=FACTS["en"], passage=TEXTS["en"])
    assert run_job(answer_job(asked, source, PROMPTS, rules), lambda ask: "no")[1] == []


def test_a_document_response_stands_for_its_instruction() -> None:
    one, two = document_response(instruction(1), "꿀은 달다."), document_response(instruction(2), "꿀은 달다.")
    assert one.id != two.id and (one.prompt_id, one.model, one.finish_reason) == ("i1", "document", "stop")
    assert one == document_response(instruction(1), "꿀은 달다.")
    made, asks = job(jobs.instruction(ASKED["ko"], "ko"), "document", lambda ask: "no")
    assert [(row.text, row.model) for row in made.rows] == [(TEXTS["ko"], "document")] and asks == []


# a judge's scores


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_an_answer_gets_a_score(lang: str) -> None:
    system = {"role": "system", "content": "You are brief."}
    asked = jobs.instruction("", lang, messages=[system, {"role": "user", "content": ASKED[lang]}])
    made, (ask,) = run_job(
        score_job(asked, jobs.response("i1", GOOD[lang]), PROMPTS, SAMPLING, 2), lambda ask: '{"score": 7}'
    )
    (score,) = made.rows
    assert (score.response_id, score.prompt_id, score.reward_model, score.score) == ("i1-0", "i1", "judge", 7.0)
    assert (made.asked, list(made.rejects), ask.id, ask.purpose) == (1, [], "i1-0", "judge-answer")
    assert ASKED[lang] in ask.messages[-1]["content"] and GOOD[lang] in ask.messages[-1]["content"]
    assert "You are brief." not in ask.messages[-1]["content"]
    assert ask.json_schema is not None and json.loads(ask.json_schema)["required"] == ["score"]


UNREADABLE: list[tuple[str | Reply, str, str]] = [
    ("7", "not_json", "7"),
    ("", "not_json", ""),
    ('{"score": 11}', "not_json", '{"score": 11}'),
    ('{"score": "7"}', "not_json", '{"score": "7"}'),
    ('Sure! {"score": 7}', "not_json", 'Sure! {"score": 7}'),
    (said('{"score": 7}', cut=True), "truncated", '{"score": 7}'),
    (failed("http_400: no"), "http_400", "http_400: no"),
]


@pytest.mark.parametrize(("reply", "reason", "raw"), UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_score_that_cannot_be_read_is_a_reject(reply: str | Reply, reason: str, raw: str) -> None:
    asked, answer = jobs.instruction(ASKED["en"]), jobs.response("i1", GOOD["en"])
    made, _ = run_job(score_job(asked, answer, PROMPTS, SAMPLING, 2), lambda ask: reply)
    assert (list(made.rows), made.asked) == ([], 1)
    assert [(r.reason, r.raw, r.topic_id) for r in made.rejects] == [(reason, raw, "honey")]
