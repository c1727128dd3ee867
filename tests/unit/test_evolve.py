"""Evolution: who is evolved how, what becomes of a rewriting, trees of generations, the judge, the method that learns."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from align.core.formats import split_input
from align.core.rows import Instruction, Made
from align.engines.complete import Ask, Reply
from data_gen.auto_evolve import optimised, report
from data_gen.eliminators import elimination_reason
from data_gen.evolve import EvolutionRules, evolution_job, operator_of, operators_for
from data_gen.instruct import difficulty
from data_gen.prompts import Prompts
from data_gen.request_parts import is_statement
from tests.jobs import SAMPLING, failed, instruction, run_job, said

PROMPTS = Prompts()
PARENT = {"en": "Why does salt melt ice on roads?", "ko": "소금은 왜 도로의 얼음을 녹이나요?"}
FACT = {
    "en": "Salt lowers the freezing point of water, so ice on roads melts below zero degrees.",
    "ko": "소금은 물의 어는점을 낮추므로 도로의 얼음이 영하에서도 녹는다.",
}
GOOD = {
    "en": [
        "Why does salt melt ice on roads, and below which temperature does it stop working?",
        "Why does salt melt ice on roads, and which other substances do cold cities spread, and at what cost?",
    ],
    "ko": [
        "소금은 왜 도로의 얼음을 녹이며, 어느 온도 아래에서는 녹이지 못하나요?",
        "소금은 왜 도로의 얼음을 녹이며, 추운 도시들은 어떤 다른 물질을 뿌리고 그 비용은 얼마인가요?",
    ],
}
OPERATORS = ("constrain", "deepen", "reason")


def row(number: int = 1, lang: str = "en", **changes: Any) -> Instruction:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PARENT[lang]}]
    about = {"id": f"i{number}", "messages": messages, "difficulty": difficulty(PARENT[lang]), "split": "M1"}
    return replace(instruction(PARENT[lang], lang), **(about | changes))


def rules(**changes: Any) -> EvolutionRules:
    about: dict[str, Any] = {
        "rounds": 1, "operators": ("deepen",), "share": 1.0, "judge": False, "tries": 2, "sampling": SAMPLING, "methods": {},
    }  # fmt: skip
    return EvolutionRules(**(about | changes))


def grown(answer: Any, root: Instruction | None = None, **changes: Any) -> tuple[Made, list[Ask]]:
    root = root or row()
    made, asked = run_job(evolution_job(root, FACT[root.lang], PROMPTS, rules(**changes), 17), answer)
    assert made.asked == len(made.rows) + len(made.rejects)
    assert len({r.id for r in (*made.rows, *made.rejects)}) == made.asked
    return made, asked


def test_choice_is_by_hash_and_does_not_move() -> None:
    pool = [row(i) for i in range(900)]
    some = rules(operators=OPERATORS, share=0.3)
    chosen = {r.id: operator_of(r, some, 1, 17) for r in pool}
    counts = [list(chosen.values()).count(operator) for operator in OPERATORS]
    assert 210 < sum(counts) < 330 and all(60 < count < 130 for count in counts)
    assert {r.id: operator_of(r, some, 2, 17) for r in pool} != chosen
    assert {r.id: operator_of(r, some, 1, 18) for r in pool} != chosen
    assert not any(operator_of(r, rules(share=0.0), 1, 17) for r in pool)
    assert all(operator_of(r, rules(share=1.0), 1, 17) for r in pool)


def test_operators_that_suit_a_row() -> None:
    everything = ("deepen", "complicate_input", "auto", "breadth")
    assert operators_for(row(), everything) == list(everything)
    with_input = row(messages=[{"role": "user", "content": "Summarize the text below.\n\nSalt melts ice."}])
    assert operators_for(with_input, everything) == ["deepen", "auto"]
    follow_up = row(messages=[*row().messages, {"role": "assistant", "content": "So."}, {"role": "user", "content": "Why?"}])
    assert operators_for(follow_up, everything) == []
    assert operator_of(with_input, rules(operators=("breadth",)), 1, 17) == ""


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_a_child_keeps_its_parents_place_and_system_prompt(lang: str) -> None:
    parent = row(1, lang, judged_quality=7.0, judged_difficulty=3.0)
    label = "Question" if lang == "en" else "질문"
    made, asked = grown(lambda ask: said(f"{label}: {GOOD[lang][0]}\nand more", cut=True), parent)
    assert len(asked) == 1 and PARENT[lang] in asked[0].messages[-1]["content"]
    assert made.rows[0] == parent
    child = made.rows[1]
    assert child == replace(
        parent, id=child.id, parent_id=parent.id, generation=1, operator="deepen",
        messages=[parent.messages[0], {"role": "user", "content": GOOD[lang][0]}], difficulty=difficulty(GOOD[lang][0]),
        judged_difficulty=0.0, judged_quality=0.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (said(PARENT["en"]), "no_information_gain"), (said("..."), "no_content"), (said(""), "no_content"),
        (said(GOOD["en"][0], cut=True), "truncated"), (failed("prompt_too_long: 900 tokens"), "prompt_too_long"),
        (said("Name salt ice brine."), "no_rise_in_difficulty"),
        (said("How do penguins hunt for krill under thick floes?"), "lost_subject"),
    ],
)  # fmt: skip
def test_a_bad_child_is_a_reject_and_its_parent_stays(reply: Reply, reason: str) -> None:
    made, _ = grown(lambda ask: reply)
    assert made.rows == [row()]
    (reject,) = made.rejects
    assert reject.topic_id == "honey" and reject.raw.startswith(f"[deepen] {PARENT['en']} -> ") and reply.raw in reject.raw
    assert reject.reason == reason


def test_rounds_grow_a_tree() -> None:
    def answer(ask: Ask) -> str:
        before = ask.messages[-1]["content"].removeprefix("Question: ")
        city = {"round 1": "Oslo", "round 2": "Turin", "round 3": "Lagos"}[ask.purpose[-7:]]
        return f"{before} And what changed in {city} by {1900 + len(before)}?"

    made, asked = grown(answer, rounds=3)
    assert sorted(r.generation for r in made.rows) == [0, 1, 1, 1, 2, 2, 2, 3] and len(asked) == 7
    known = {r.id: r for r in made.rows}
    for child in made.rows[1:]:
        parent = known[child.parent_id]
        assert child.generation == parent.generation + 1
        assert child.messages[-1]["content"].startswith(parent.messages[-1]["content"])
        assert child.difficulty > parent.difficulty


def test_an_input_goes_along_and_only_the_request_is_rewritten() -> None:
    passage = "Salt lowers the freezing point. Roads stay free of ice."
    parent = row(
        messages=[{"role": "user", "content": f"Summarize the text below.\n\n{passage}"}],
        task_type="summarize",
        difficulty=difficulty("Summarize the text below."),
    )
    harder = "Summarize the text below in two sentences, and name one city where salt is spread."
    made, asked = grown(lambda ask: harder, parent)
    assert passage not in asked[0].messages[-1]["content"]
    child = made.rows[1].messages[-1]["content"]
    assert split_input(child) == (
        harder,
        passage,
    )


def test_complicated_input_is_laid_out_and_asked_again_when_broken() -> None:
    replies = iter(["no json", None])

    def answer(ask: Ask) -> str:
        fields = json.loads(ask.json_schema or "")["properties"]
        if next(replies) is not None:
            return "Sure, here you are"
        if "code" in fields:
            return json.dumps(
                {"request": "Why does salt melt ice on roads, given the code below?", "code": "x = 1\nprint(x)"}
            )
        return json.dumps({
            "request": "Why does salt melt ice on roads, and in which city of the table below first?",
            "columns": ["city", "degrees"], "rows": [["Oslo", "-4"], ["Turin", "1"]],
        })  # fmt: skip

    made, asked = grown(answer, operators=("complicate_input",))
    assert len(asked) == 2 and asked[0].sampling.max_tokens == 256
    request, given = split_input(made.rows[1].messages[-1]["content"])
    assert request.startswith("Why does salt melt ice on roads") and given.startswith(("| city", "```"))
    broken, asked = grown(lambda ask: "Sure!", operators=("complicate_input",))
    assert len(asked) == 2 and [(r.reason, r.raw.endswith("Sure!")) for r in broken.rejects] == [("not_json", True)]


def judge(marks: dict[str, tuple[int, int]]) -> Any:
    def answer(ask: Ask) -> str:
        if ask.purpose != "judge-instruction":
            return GOOD["en"][0]
        text = ask.messages[-1]["content"]
        hard, good = next(found for part, found in marks.items() if part in text)
        return json.dumps({"difficulty": hard, "quality": good})

    return answer


def test_the_judge_marks_and_decides_about_the_rise() -> None:
    harder, asked = grown(judge({"below which": (6, 8), "Why does salt": (3, 9)}), judge=True)
    assert [(r.judged_difficulty, r.judged_quality) for r in harder.rows] == [(3, 9), (6, 8)]
    assert [ask.purpose for ask in asked].count("judge-instruction") == 2
    easier, _ = grown(judge({"below which": (2, 8), "Why does salt": (3, 9)}), judge=True)
    assert [r.reason for r in easier.rejects] == ["no_rise_in_difficulty"]
    # Equal marks leave it to the measure, which rises here.
    assert len(grown(judge({"below which": (3, 8), "Why does salt": (3, 9)}), judge=True)[0].rows) == 2
    # A judge that cannot be read leaves it to the measure.
    mute, _ = grown(lambda ask: GOOD["en"][0], judge=True)
    assert len(mute.rows) == 2 and mute.rows[0].judged_difficulty == 0


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("operator", ["constrain", "deepen", "concretize", "reason", "breadth"])
def test_worked_examples_pass_the_eliminators_and_may_not_be_copied(operator: str, lang: str) -> None:
    messages = PROMPTS.render(f"evolve-{operator}", lang, instruction="x")
    parents = [m["content"].partition(":")[2].strip() for m in messages if m["role"] == "user"][:-1]
    children = [m["content"] for m in messages if m["role"] == "assistant"]
    assert len(parents) == len(children) >= 2
    for parent, child in zip(parents, children, strict=True):
        scores = {"parent_score": difficulty(parent), "child_score": difficulty(child)}
        assert elimination_reason(parent, child, operator, lang, fact="", examples=(), **scores) == ""
        assert not is_statement(child, lang)
        if len(child.split()) > 6:  # a child that repeats an example comes from the prompt, not from its parent
            other = PARENT[lang]
            assert elimination_reason(other, child, operator, lang, fact="", examples=children) == "copied_example"


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_the_method_with_the_lowest_failure_rate_is_kept(lang: str) -> None:
    dev = [(row(i, lang), FACT[lang]) for i in range(4)]
    methods = iter(["worse", "better"])
    tries = []

    def answer(ask: Ask) -> str:
        if ask.purpose == "auto-optimize":
            text = ask.messages[-1]["content"]
            assert "no_information_gain" in text and PARENT[lang] in text
            return next(methods)
        method = ask.messages[0]["content"]
        tries.append(method)
        works = "better" in method or ("worse" not in method and ask.id.endswith(("i0", "i1")))
        return GOOD[lang][0] if works else PARENT[lang]

    found, _ = run_job(
        optimised(dev, PROMPTS, rounds=2, candidates=1, sampling=SAMPLING, optimiser_sampling=SAMPLING), answer
    )
    assert [(m.text if m.round else "first", m.failure_rate) for m in found] == [
        ("better", 0.0),
        ("first", 0.5),
        ("worse", 1.0),
    ]
    assert found[1].reasons == {"no_information_gain": 2} and len(tries) == 12
    assert report(found)["chosen"] == "better" and len(report(found)["tried"]) == 3


def test_a_method_that_never_fails_is_not_rewritten() -> None:
    dev = [(row(i), FACT["en"]) for i in range(3)]
    found, asked = run_job(
        optimised(dev, PROMPTS, rounds=3, candidates=2, sampling=SAMPLING, optimiser_sampling=SAMPLING),
        lambda ask: GOOD["en"][0],
    )
    assert len(found) == 1 and {ask.purpose for ask in asked} == {"auto-try"}
