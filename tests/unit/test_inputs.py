"""Inputs that a model writes: how they are laid out, and what cannot be used."""

from __future__ import annotations

import ast
import json
from functools import partial
from typing import Any

import pytest

from align.engines.complete import Ask, Reply, Unfit, Unusable, ask_parsed
from data_gen.inputs import INPUT_KINDS, MAX_CELL, MAX_ROWS, input_schema, parse_input
from tests.jobs import SAMPLING, failed, run_job, said

COLUMNS = ["음식", "물 (%)"]
ROWS = [["꿀", "17"], ["빵", "37"]]
CODE = "def keeps(water):\n    return water < 20\n\nprint(keeps(17))"


def table(**changes: Any) -> str:
    return json.dumps({"request": "아래 표에서 무엇이 오래 가나요?", "columns": COLUMNS, "rows": ROWS} | changes)


def code(text: Any, request: Any = "What does the code below print?") -> str:
    return json.dumps({"request": request, "code": text})


def test_a_table_is_a_table() -> None:
    assert parse_input(table(), "table") == (
        "아래 표에서 무엇이 오래 가나요?\n\n| 음식 | 물 (%) |\n| --- | --- |\n| 꿀 | 17 |\n| 빵 | 37 |"
    )


def test_what_would_break_a_table_does_not() -> None:
    text = parse_input(table(rows=[["a | b", " c\n d "], [5, 1.5]], request=" In the table\nbelow,  why? "), "table")
    assert text.splitlines() == [
        "In the table below, why?", "", "| 음식 | 물 (%) |", "| --- | --- |", r"| a \| b | c d |", "| 5 | 1.5 |"
    ]  # fmt: skip


def test_json_is_read_back_as_the_records() -> None:
    request, _, block = parse_input(table(), "json").partition("\n\n")
    assert request == "아래 표에서 무엇이 오래 가나요?"
    assert block.startswith("```json\n") and block.endswith("\n```")
    assert json.loads(block[8:-4]) == [{"음식": "꿀", "물 (%)": "17"}, {"음식": "빵", "물 (%)": "37"}]
    assert "꿀" in block, "letters stay letters"


def test_code_is_fenced_as_it_stands() -> None:
    text = parse_input(code(f"\n{CODE}\n\n"), "code")
    assert text == f"What does the code below print?\n\n```python\n{CODE}\n```"
    ast.parse(text.split("```python\n")[1].removesuffix("```"))


SHAPES = {
    "broken": '{"request": "a", "columns": ["b"',
    "prose around it": f"Here is the table: {table()}",
    "fenced": f"```json\n{table()}\n```",
    "nothing": "",
    "a list": json.dumps([{"request": "a"}]),
    "a text": '"a"',
    "null": "null",
    "nested without end": '{"request": ' + "[" * 5000,
    "half of an emoji": table(request="Why?") .replace("Why", r"\ud83d"),
    "no request": json.dumps({"columns": COLUMNS, "rows": ROWS, "code": CODE}),
    "request that is no text": json.dumps({"request": ["a"], "columns": COLUMNS, "rows": ROWS, "code": CODE}),
    "empty request": json.dumps({"request": " \n", "columns": COLUMNS, "rows": ROWS, "code": CODE}),
}  # fmt: skip
TABLES = {
    "no columns": json.dumps({"request": "a", "rows": ROWS}),
    "no rows": json.dumps({"request": "a", "columns": COLUMNS}),
    "one column": table(columns=["a"], rows=[["b"], ["c"]]),
    "column twice": table(columns=["a", "a"]),
    "column twice but for spaces": table(columns=["a", " a "]),
    "empty column": table(columns=["a", ""]),
    "short row": table(rows=[["a", "b"], ["c"]]),
    "long row": table(rows=[["a", "b"], ["c", "d", "e"]]),
    "empty cell": table(rows=[["a", "b"], ["c", " "]]),
    "cell of nothing": table(rows=[["a", "b"], ["c", None]]),
    "cell of cells": table(rows=[["a", "b"], ["c", ["d", "e"]]]),
    "rows that are no lists": table(rows=["ab", "cd"]),
    "rows of records": table(rows=[{"음식": "꿀"}, {"음식": "빵"}]),
    "columns that are no list": table(columns="ab"),
    "one row": table(rows=[["a", "b"]]),
    "too many rows": table(rows=[["a", "b"]] * (MAX_ROWS + 1)),
}
CODES = {
    "no code": json.dumps({"request": "a", "columns": COLUMNS}),
    "code that is no text": code(["print(1)"]),
    "empty code": code(" \n"),
    "a sentence": code("Print the water content of honey."),
    "a word": code("honey"),
    "a number": code("42"),
    "a comment": code("# prints the water content"),
    "another language": code("int main() { return 0; }"),
    "half of it": code("def keeps(water):\n    return (water <"),
    "fenced code": code(f"```python\n{CODE}\n```"),
    "a fence within": code('print("""\n```\n""")'),
    "wrong indentation": code("def f():\nreturn 1"),
    "brackets without end": code("(" * 3000),
    "minus without end": code("print(" + "-" * 100000 + "1)"),
    "a null byte": code("print(1)\0"),
}
BAD = [
    *[(kind, case, text) for kind in INPUT_KINDS for case, text in SHAPES.items()],
    *[(kind, case, text) for kind in ("table", "json") for case, text in TABLES.items()],
    *[("code", case, text) for case, text in CODES.items()],
]


@pytest.mark.parametrize(("kind", "case", "text"), BAD, ids=[f"{kind}-{case}" for kind, case, _ in BAD])
def test_what_cannot_be_used_is_told_with_its_text(kind: str, case: str, text: str) -> None:
    with pytest.raises(ValueError):
        parse_input(text, kind)
    found, asked = asking(kind, text)
    assert isinstance(found, Unusable) and found.raw == text
    assert found.reason in ("not_json", "input_no_python" if kind == "code" else "input_no_table")
    assert len(asked) == 2


def asking(kind: str, reply: str | Reply) -> tuple[str | Unusable, list[Ask]]:
    ask = Ask(id="i1", purpose="evolve", messages=[], sampling=SAMPLING, json_schema=input_schema(kind))
    return run_job(ask_parsed(ask, partial(parse_input, kind=kind), 2), lambda ask: reply)


def test_half_an_answer_is_none() -> None:
    """Even where the half can be read."""
    assert asking("table", said(table(), cut=True))[0] == Unusable(reason="truncated", raw=table())
    assert asking("table", failed("http_400: bad"))[0] == Unusable(reason="http_400", raw="http_400: bad")
    assert asking("table", table())[0] == parse_input(table(), "table")


def test_schemas_ask_for_what_is_read() -> None:
    for kind in INPUT_KINDS:
        schema = json.loads(input_schema(kind))
        assert schema["required"] == list(schema["properties"]) and schema["required"][0] == "request"
    rows = json.loads(input_schema("table"))["properties"]["rows"]
    assert (rows["minItems"], rows["maxItems"], rows["items"]["items"]["maxLength"]) == (2, MAX_ROWS, MAX_CELL)
    assert set(json.loads(input_schema("code"))["properties"]) == {"request", "code"}


def test_what_is_read_but_not_usable_says_so() -> None:
    unequal = json.dumps({"request": "What does the table below say?", "columns": ["a", "b"], "rows": [["1"], ["2", "3"]]})
    with pytest.raises(Unfit, match=r"^input_no_table$"):
        parse_input(unequal, "table")
    with pytest.raises(Unfit, match=r"^input_no_python$"):
        parse_input(json.dumps({"request": "What does the code below do?", "code": "x = = 1"}), "code")
