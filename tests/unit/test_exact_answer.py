"""Exact answers: GSM8K's files, lm-eval's two ways to read an answer and our own, and the reading of suites' files."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

from align.core.errors import UserError
from align.core.language import detect
from align.evaluate.exact_answer import grade_exact_answer, read_exact_answers
from align.evaluate.suite import Item

SHIPPED = Path(__file__).parents[2] / "recipes/data/suites/arithmetic.jsonl"
METRICS = ("exact_strict", "exact_flexible", "exact_answer")


def write(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def grades(item: Item, answer: str) -> tuple[float, ...]:
    found = grade_exact_answer(item, [{"role": "assistant", "content": answer}], "stop")
    assert tuple(g.metric for g in found) == METRICS
    return tuple(g.value for g in found)


def asking(number: str) -> Item:
    return Item(id="1", turns=("How many?",), data={"answer": number})


@pytest.mark.parametrize(
    ("right", "answer", "expected"),
    [
        ("18", "9 * 2 = 18\n#### 18", (1, 1, 1)),
        ("18", "9 * 2 = 18\n#### 19", (0, 0, 0)),
        ("18", "So the answer is 18.", (0, 1, 1)),
        ("18", "So the answer is $18.00.", (0, 0, 1)),
        ("18", "So the answer is $18.$", (0, 1, 1)),
        ("18", "The answer is 18. That took 3 steps.", (0, 0, 1)),
        ("18", "#### 18\n#### 19", (1, 0, 0)),
        ("70000", "#### $70,000", (0, 1, 1)),
        ("70000", "#### 70,000.", (1, 1, 1)),
        ("-4", "#### -4", (1, 1, 1)),
        ("4", "#### -4", (0, 0, 0)),
        ("3,400", "거스름돈은 3,400원입니다.\n#### 3,400", (1, 1, 1)),
        ("3,400", "정답은 3400원입니다.", (0, 1, 1)),
        ("20", "한 집이 받는 사과는 20개입니다.\n#### 20개", (1, 1, 1)),
        ("70,000", "모두 7만 원입니다.", (0, 0, 1)),
        ("18", "I do not know.", (0, 0, 0)),
        ("18", "", (0, 0, 0)),
        ("1", "#### 18", (0, 0, 0)),
        ("18", "#### 1 8", (0, 0, 0)),
    ],
)
def test_an_answer_is_read_in_three_ways(right, answer, expected):
    assert grades(asking(right), answer) == expected


def test_only_the_models_last_answer_counts():
    turns = [{"role": "user", "content": "#### 18"}, {"role": "assistant", "content": "#### 19"}]
    assert {g.value for g in grade_exact_answer(asking("18"), turns, "stop")} == {0.0}


def plus_one(solution: str) -> str:
    head, _, number = solution.rpartition("#### ")
    return f"{head}#### {int(number.replace(',', '')) + 1}"


@pytest.mark.shared_data
def test_every_gsm8k_solution_is_right_and_none_with_another_number(shared_data):
    path = shared_data / "benchmarks/gsm8k_test.jsonl"
    items = read_exact_answers(path)
    solutions = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(items) == len(solutions) == 1319
    assert {item.lang for item in items} == {"en"}
    for item, solution in zip(items, solutions, strict=True):
        assert grades(item, solution) == (1, 1, 1), solution
        assert grades(item, plus_one(solution)) == (0, 0, 0), solution


@pytest.mark.parametrize("right", ["18", "1,234", "-3", "2.5"])
def test_two_of_the_three_are_lm_evals_own(right):
    pytest.importorskip("lm_eval")
    import lm_eval
    import yaml
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    task = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text(encoding="utf-8"))
    (metric,) = task["metric_list"]
    ignored = {name: metric[name] for name in ("regexes_to_ignore", "ignore_case", "ignore_punctuation")}
    first, last = (one["filter"][0] for one in task["filter_list"])
    strict = RegexFilter(first["regex_pattern"])
    flexible = RegexFilter(last["regex_pattern"], group_select=last["group_select"])
    answers = [
        "#### 18", "#### 1,234", "#### $18", "18.", "It is 18 or 2.5", "#### -3.", "-3", "####18", "#### 2.5.\n#### 18",
        "...", "$1,234.", "no", "", "1234", "정답은 1,234원", "#### ,", "18%", "2.50", "#### 18 개", "-", "1 234", "3-3",
        "$18.$", "It is $18.$", "$1,234.$.", "18.,", "18..", "2.5$.", "$", "$.",
    ]  # fmt: skip
    for answer in answers:
        read = [next(iter(f.apply([[answer]], [{}])))[0] for f in (strict, flexible)]
        found = [exact_match_hf_evaluate([one], [f"So.\n#### {right}"], **ignored)["exact_match"] for one in read]
        assert list(grades(asking(right), answer)[:2]) == found, answer


# Reading.
def test_prompts_ask_for_a_chain_of_thought_in_the_questions_language(tmp_path):
    records = [
        {"question": "How many legs have 3 cats?", "answer": "3 * 4 = 12\n#### 12\n"},
        {"question": "고양이 3마리의 다리는 몇 개입니까?", "answer": "#### 12", "id": 7, "category": "animals"},
        {"question": "고양이 {3}마리?", "answer": "#### 1,200.5", "lang": "en"},
    ]
    english, korean, forced = read_exact_answers(write(tmp_path / "suite.jsonl", *records))
    assert english.turns[0].startswith("How many legs have 3 cats?\n\nThink step by step.") and "####" in english.turns[0]
    assert (english.lang, korean.lang, forced.lang) == ("en", "ko", "en")
    assert "단계별로" in korean.turns[0] and "####" in korean.turns[0]
    assert (korean.id, korean.category, dict(korean.data)) == ("7", "animals", {"answer": "12"})
    assert forced.turns[0].startswith("고양이 {3}마리?\n\nThink") and forced.data["answer"] == "1,200.5"
    assert english.id == read_exact_answers(write(tmp_path / "other.jsonl", records[1], records[0]))[1].id


GOOD = {"question": "How many?", "answer": "#### 3"}


@pytest.mark.parametrize("more", [{}, {"category": None}, {"category": ""}])
def test_without_a_category_there_is_none(tmp_path, more):
    (item,) = read_exact_answers(write(tmp_path / "suite.jsonl", GOOD | more))
    assert item.category == ""


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no items; write one JSON object a line, with question, answer"),
        ([GOOD, GOOD], ":2: the id "),
        ([GOOD | {"id": "a"}, GOOD | {"id": "a", "question": "Why?"}], ":2: the id a is that of"),
        ([GOOD, {"question": "How many?"}], ":2: lacks answer; a line needs question, answer"),
        ([GOOD | {"question": " "}], ":1: question is ' '; write a text"),
        ([GOOD | {"question": 3}], ":1: question is 3; write a text"),
        ([GOOD | {"answer": "3"}], ":1: the answer has no number after ####"),
        ([GOOD | {"answer": "#### three"}], ":1: the answer has no number after ####"),
        ([GOOD | {"answer": "#### 3\nThat is it."}], ":1: the answer has no number after ####"),
        ([GOOD | {"lang": "fr"}], ":1: lang is 'fr'; write en or ko"),
        ([GOOD | {"lang": ["en"]}], ":1: lang is ['en']; write en or ko"),
        ([GOOD | {"lang": None}], ":1: lang is None; write en or ko"),
        ([GOOD | {"category": ["a"]}], ":1: category is ['a']; write a text, or leave it out"),
        ([GOOD | {"id": None}], ":1: id is None; write a text or a whole number"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, records, message):
    path = write(tmp_path / "suite.jsonl", *records)
    with pytest.raises(UserError) as error:
        read_exact_answers(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)


@pytest.mark.parametrize(("line", "reason"), [("[1]", "not_an_object"), ("{", "malformed_json")])
def test_a_line_that_is_no_object_is_named(tmp_path, line, reason):
    path = write(tmp_path / "suite.jsonl", GOOD)
    path.write_text(path.read_text() + line)
    with pytest.raises(UserError, match=f":2: {reason}; write one JSON object a line"):
        read_exact_answers(path)
    with pytest.raises(UserError, match="No such file"):
        read_exact_answers(tmp_path / "none.jsonl")


# The shipped suite.
def test_shipped_solutions_add_up():
    items = read_exact_answers(SHIPPED)
    solutions = [json.loads(line)["answer"] for line in SHIPPED.read_text(encoding="utf-8").splitlines()]
    assert [item.lang for item in items] == ["en"] * 12 + ["ko"] * 12
    for item, solution in zip(items, solutions, strict=True):
        assert detect(item.turns[0].partition("\n")[0]) == item.lang
        assert grades(item, solution) == (1, 1, 1)
        assert grades(item, plus_one(solution)) == (0, 0, 0)
        steps = re.findall(r"([0-9(][0-9 ()*/+-]*(?:\.[0-9]+)?) = \$?([0-9]+)", solution)
        assert steps and all(worked_out(left) == int(right) for left, right in steps), solution
        assert steps[-1][1] == item.data["answer"].replace(",", "")


def worked_out(expression: str) -> Fraction:
    """The value of +, -, *, / and brackets over numbers."""
    parts = re.sub(r"[0-9.]+", lambda number: f"Fraction('{number[0]}')", expression)
    return eval(parts, {"Fraction": Fraction, "__builtins__": {}})
