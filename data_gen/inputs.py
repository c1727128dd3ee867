"""Inputs that complicate a request: a table, JSON or code (the fifth in-depth operator of Evol-Instruct, arXiv 2304.12244).

A model writes the data in JSON under a schema and this module lays them out, so that a table is a table; code is parsed.
"""

from __future__ import annotations

import ast
import json
from typing import Any

from align.engines.complete import Unfit
from data_gen.prompts import read_object

INPUT_KINDS = ("table", "json", "code")
MIN_ROWS, MAX_ROWS = 2, 8
MAX_CELL = 60


def input_schema(kind: str) -> str:
    """JSON schema of what a model writes: a request, and rows of data or lines of code."""
    text = {"type": "string", "minLength": 1, "maxLength": 400}
    if kind == "code":
        shape: dict[str, Any] = {"request": text, "code": text}
    else:
        cell = {"type": "string", "minLength": 1, "maxLength": MAX_CELL}
        columns = {"type": "array", "items": cell, "minItems": 2, "maxItems": 4}
        rows = {"type": "array", "items": {**columns}, "minItems": MIN_ROWS, "maxItems": MAX_ROWS}
        shape = {"request": text, "columns": columns, "rows": rows}
    return json.dumps({"type": "object", "properties": shape, "required": list(shape)})


def parse_input(text: str, kind: str) -> str:
    """The request with its input laid out below it, from a model's JSON.

    Raises:
        ValueError: not JSON of the agreed shape.
        Unfit: `input_no_table` for rows of unequal length, empty cells or equal column names, `input_no_python` for code
            that does not parse, does nothing or would end its fence.
    """
    data = read_object(text)
    if not isinstance(data.get("request"), str):
        raise ValueError("no request")
    request = " ".join(data["request"].split())
    if not request:
        raise ValueError("the request is empty")
    return f"{request}\n\n{_code(data) if kind == 'code' else _table(data, kind)}"


def _code(data: dict[str, Any]) -> str:
    code = data.get("code")
    if not isinstance(code, str):
        raise ValueError("no code")
    code = code.strip("\n").rstrip()
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Unfit("input_no_python") from error
    # A word or a number is valid Python too.
    if not any(isinstance(node, ast.Assign | ast.Call | ast.FunctionDef | ast.ClassDef) for node in ast.walk(tree)):
        raise Unfit("input_no_python")
    if "```" in code:
        raise Unfit("input_no_python")  # it would end its own fence
    return f"```python\n{code}\n```"


def _table(data: dict[str, Any], kind: str) -> str:
    columns, rows = data.get("columns"), data.get("rows")
    if not isinstance(columns, list) or not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ValueError("no columns and rows")
    if not all(isinstance(cell, str | int | float) for row in [columns, *rows] for cell in row):
        raise ValueError("a cell that is neither text nor number")
    cells = [[" ".join(str(cell).split()) for cell in row] for row in [columns, *rows]]
    names = cells[0]
    if len(names) < 2 or len(set(names)) < len(names) or not MIN_ROWS <= len(rows) <= MAX_ROWS:
        raise Unfit("input_no_table")
    if any(len(row) != len(names) or not all(row) for row in cells):
        raise Unfit("input_no_table")
    if kind == "json":
        records = [dict(zip(names, row, strict=True)) for row in cells[1:]]
        return f"```json\n{json.dumps(records, ensure_ascii=False, indent=1)}\n```"
    lines = [names, ["---"] * len(names), *cells[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
