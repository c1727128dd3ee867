"""What the report says of the instructions after evolution: how hard each generation is, and how many there are of what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from align.report.artifacts import at
from align.report.charts import Bar, Distribution, bars, distribution

# Metric, title, the lowest value on the axis and the highest; a judge's marks are whole numbers in the middle of their bins.
MARKS = (
    ("difficulty", "Measured difficulty", (0.0, 1.0)),
    ("judged_difficulty", "Difficulty by the judge", (0.5, 10.5)),
    ("judged_quality", "Quality by the judge", (0.5, 10.5)),
)


@dataclass(frozen=True)
class Generation:
    """One generation with a histogram for each kind of marks that it has; `unmarked` are the titles of the others."""

    name: str
    count: int
    charts: list[Markup]
    unmarked: list[str]


@dataclass(frozen=True)
class DifficultyView:
    """The section's content: `judged` is whether any generation has a judge's marks; `facts` are (name, numbers)."""

    generations: list[Generation]
    judged: bool
    facts: list[tuple[str, str]]
    charts: list[Markup]


def difficulty_view(metrics: Mapping[str, Any]) -> DifficultyView:
    """The metrics of the step evolve as charts; what a manifest does not have is left out."""
    known = at(metrics, "generations") or {}
    found = {name: _distributions(of) for name, of in known.items()}
    shown = [mark for mark, _, _ in MARKS if any(of[mark] for of in found.values())]
    highest = max((one.highest for of in found.values() for one in of.values() if one), default=1.0)
    generations = []
    for name, of in found.items():
        drawn = [
            distribution(title, one, within=within, highest=highest)
            for mark, title, within in MARKS
            if mark in shown and (one := of[mark])
        ]
        unmarked = [title for mark, title, _ in MARKS if mark in shown and not of[mark]]
        generations.append(Generation(name, int(at(known[name], "count") or 0), drawn, unmarked))
    return DifficultyView(
        generations=generations,
        judged=len(shown) > 1,
        facts=_facts(metrics, sum(generation.count for generation in generations)),
        charts=[
            bars(title, [Bar(name, n, f"{n:,}", "c-data") for name, n in _most_first(counts)])
            for title, key in (("Instructions by operator", "by_operator"), ("Instructions by task type", "by_task_type"))
            if (counts := at(metrics, key))
        ],
    )


def _distributions(generation: Mapping[str, Any]) -> dict[str, Distribution | None]:
    """By kind of marks; None where nobody marked anything."""
    found: dict[str, Distribution | None] = {}
    for mark, _, _ in MARKS:
        counts = at(generation, mark, "counts") or []
        found[mark] = Distribution(counts, float(at(generation, mark, "mean") or 0.0)) if any(counts) else None
    return found


def _facts(metrics: Mapping[str, Any], total: int) -> list[tuple[str, str]]:
    facts = []
    if turns := at(metrics, "by_turns"):
        ordered = sorted(turns.items(), key=lambda item: int(item[0]))
        facts.append(("user turns", ", ".join(f"{n:,} with {turn}" for turn, n in ordered)))
    for name, key in (("with a system prompt", "with_system_prompt"), ("with a persona", "with_persona")):
        if (n := at(metrics, key)) is not None:
            facts.append((name, f"{n:,}" + (f" of {total:,}" if total else "")))
    for name, key in (("languages", "by_lang"), ("splits", "by_split")):
        if counts := at(metrics, key):
            facts.append((name, ", ".join(f"{value} {n:,}" for value, n in counts.items())))
    return facts


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
