"""What `align compare` prints: the tables and notes of all that it found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from align.report.artifacts import at

SIDES = ("A", "B")
CUT = 60  # characters of a value of a recipe that are shown
ABSENT = "(not there)"


def comparison_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """All that `align.comparing.compare_runs` returns, as text."""
    for letter, run in zip(SIDES, found["runs"], strict=True):
        yield f"{letter}: {run['name']}, {run['folder']}"
    recipe = found["recipe"]
    values = [(key, *map(_cut, of)) for key, of in recipe["differ"].items()]
    values += [(key, _cut(value), ABSENT) for key, value in recipe["only_a"].items()]
    values += [(key, ABSENT, _cut(value)) for key, value in recipe["only_b"].items()]
    yield from _grid("recipe, where it differs", ("", *SIDES), values)
    yield from _step_lines(found["steps"])
    shared = [(of["what"], *(_count(of[key]) for key in (*SIDES, "both"))) for of in found["shared"]]
    yield from _grid("rows, by id", ("", *SIDES, "in both"), shared)
    numbers = [(name, letter) for name in ("loss", "accuracy", "margin") for letter in SIDES]
    trained = [(of["step"], *(_number(of[letter][name]) for name, letter in numbers)) for of in found["training"]]
    yield from _grid("training, at its end", ("", *(f"{name} {letter}" for name, letter in numbers)), trained)
    yield ""
    yield from (f"{of['role']}: {said}" for of in found["reward_models"] if (said := of["reason"] or of["note"]))
    heads = ("mean A", "mean B", "A less B")
    judged = [
        (of["model"], of["by"], *_means(of, "prompts"), _interval(of["win_rate"], "win_rate")) for of in found["evaluation"]
    ]
    yield from _grid("held-out prompts", ("", "by", *heads, "prompts", "A wins"), judged)
    graded = [(of["suite"], of["metric"], of["model"], *_means(of, "items")) for of in found["suites"]]
    yield from _grid("suites", ("", "metric", "model", *heads, "items"), graded)
    yield from dict.fromkeys(f"{of['suite']}: {of['note']}" for of in found["suites"] if of["note"])


def _means(of: Mapping[str, Any], unit: str) -> list[str]:
    return [*(_interval(of[key]) for key in (*SIDES, "difference")), _count(at(of["difference"], unit))]


def _step_lines(steps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    keys = ("rows", "rejected", "seconds", "tokens")
    rows = []
    for step in steps:
        cells = {
            letter: (
                _count(of["rows"]), _count(sum(of["rejects"].values())), f"{of['seconds']:,.0f}", _count(of["tokens"])
            ) if "rows" in of else (of["state"], "", "", "")
            for letter, of in ((letter, step[letter]) for letter in SIDES)
        }  # fmt: skip
        same = {True: "the same", False: "differ", None: ""}[step["same"]]
        rows.append((step["step"], *(cells[letter][i] for i in range(len(keys)) for letter in SIDES), same))
    yield from _grid("steps", ("", *(f"{key} {letter}" for key in keys for letter in SIDES), "files"), rows)
    for step in steps:
        ours, theirs = (step[letter].get("rejects") for letter in SIDES)
        if ours is not None and theirs is not None and ours != theirs:
            reasons = [f"{name} {ours.get(name, 0):,} | {theirs.get(name, 0):,}" for name in sorted({*ours, *theirs})]
            yield f"{step['step']} rejected: {', '.join(reasons)}"


def _grid(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table with its title in the first head; the first column to the left, the others to the right."""
    lines = [(title, *heads[1:]), *rows] if rows else [(f"{title}: nothing",)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    yield ""
    for line in lines:
        yield "  ".join(f"{c:>{w}}" if i else f"{c:{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True))).rstrip()


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) <= CUT else f"{text[:CUT]}… (+{len(text) - CUT})"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _interval(value: Mapping[str, Any] | None, key: str = "mean") -> str:
    """Mean and interval, - where there is none."""
    if at(value, key) is None:
        return "-"
    low, high = (_number(at(value, end)) or "?" for end in ("low", "high"))
    return f"{_number(at(value, key))} ({low} to {high})"
