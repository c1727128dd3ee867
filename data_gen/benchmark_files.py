"""Test items of benchmarks, from the JSON Lines files that their authors publish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.core.errors import UserError
from align.core.hashing import file_sha256
from align.core.records import read_jsonl

# Columns that hold what a model is asked or should answer, as GSM8K, HumanEval, MT-Bench, LogicKor, IFEval, MMLU, ARC,
# AlpacaEval, KMMLU and lm-eval's own files call them. Others (ids, categories, constraints' arguments) are no test text.
TEXT_COLUMNS = (
    "question", "questions", "prompt", "prompts", "turns", "instruction", "input", "inputs", "context", "passage", "problem",
    "query", "text", "messages", "answer", "answers", "reference", "references", "output", "target", "solution",
    "canonical_solution", "choices", "options",
)  # fmt: skip


@dataclass(frozen=True)
class TestItem:
    """One test item.

    Attributes:
        benchmark: name of the file without its ending.
        number: line in the file, from 1.
        texts: its prompt, turns, answer, each by itself.
    """

    __test__ = False  # no test case of pytest

    benchmark: str
    number: int
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's file, its content's SHA-256, and its items."""

    name: str
    path: Path
    sha256: str
    items: tuple[TestItem, ...]


def read_benchmarks(paths: Sequence[Path], columns: Sequence[str] | None = None) -> list[Benchmark]:
    """Read benchmark files.

    Args:
        paths: JSON Lines files.
        columns: those that hold test text; None for the usual names in `TEXT_COLUMNS`.

    Raises:
        UserError: a line that is no JSON object, or has text in none of the columns; two files of the same name.
    """
    names = [path.stem for path in paths]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two benchmark files are called {twice[0]}; rename one, since hits are reported by that name")
    return [_read(path, columns or TEXT_COLUMNS) for path in paths]


def _read(path: Path, columns: Sequence[str]) -> Benchmark:
    items = []
    for number, line in enumerate(read_jsonl(path), 1):
        if line.record is None:
            raise UserError(f"{line.where}: a benchmark is JSON Lines, one test item a line ({line.reason})")
        texts = tuple(t for column in columns for t in _texts(line.record.get(column)) if t.strip())
        if not texts:
            raise UserError(
                f"{line.where}: no test text; its columns are {', '.join(line.record)}, those looked for "
                f"{', '.join(columns)}; name the right ones with quality.decontaminate.columns"
            )
        items.append(TestItem(path.stem, number, texts))
    if not items:
        raise UserError(f"{path}: an empty benchmark")
    return Benchmark(path.stem, path, file_sha256(path), tuple(items))


def _texts(value: Any) -> list[str]:
    """All texts in a column's value: text, lists of text, chat messages."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    if isinstance(value, dict):
        return [text for key in ("content", "text", "value") for text in _texts(value.get(key))]
    return []
