"""What the report says of the suites: every model's numbers side by side, what changed, and where a fact was found again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from align.report.artifacts import DONE, at, record, step_names
from align.report.estimates import bounds, compared_items, listed, shown, side
from align.report.meter_charts import heat_map

MARKS = ("mt_bench", "logickor")  # kinds whose numbers are a judge's marks from 1 to 10
NATS = "perplexity"  # the kind whose numbers are nats per token, where lower is better
_COUNTS = (
    ("judge_failures", "judgements that could not be read"),
    ("zeros", "of these counted as 0"),
    ("without_reference", "judged without a reference"),
    ("penalised", "marked down for the language"),
)


@dataclass(frozen=True)
class Suite:
    """One suite as it stands: `metrics` as its manifest has them, empty where it has not finished; `asked` by the recipe or
    left by an earlier one."""

    name: str
    state: str
    metrics: Mapping[str, Any]
    asked: bool = True


@dataclass(frozen=True)
class Cell:
    """One model's number: (mean, interval), its change against the first model, whether that is good, bad or open, how many
    were not graded, by reason, and the items that the change is on where these are not all of both."""

    value: tuple[str, str]
    change: tuple[str, str] | None = None
    verdict: str = "open"
    failed: list[str] = field(default_factory=list)
    compared: int | None = None


@dataclass(frozen=True)
class SuiteRow:
    """One metric of a suite; a model that was not asked has no cell."""

    suite: str
    metric: str
    unit: str
    cells: list[Cell | None]
    items: str


@dataclass(frozen=True)
class SuitesView:
    """The suites for the template; `heat_maps` are (title, CSS class of the group, one figure for each model)."""

    findings: list[str]
    by_chance: str
    models: list[str]
    rows: list[SuiteRow]
    notes: list[str]
    heat_maps: list[tuple[str, str, list[Markup]]]
    missing: list[str]


def suite_names(run_dir: Path, recipe: Mapping[str, Any]) -> list[str]:
    """Suites of the recipe in their order, then others found on disk."""
    found = sorted(p.name for p in (run_dir / "eval" / "suite").glob("*") if p.is_dir() and "." not in p.name)
    return list(dict.fromkeys([*(at(recipe, "evaluation", "suites") or ()), *found]))


def run_steps(run_dir: Path, recipe: Mapping[str, Any]) -> list[str]:
    """All steps of a run in their order, those of the suites before the evaluation, which is the last."""
    *names, last = step_names(run_dir, recipe)
    folders = [p.name for p in sorted((run_dir / "eval" / "suite").glob("*.*.*")) if p.is_dir()]
    for suite in suite_names(run_dir, recipe):
        parts = [f for kind in ("answer", "judge") for f in folders if f.startswith(f"{suite}.{kind}.")]
        names += [f"eval.suite.{name}" for name in (*parts, suite)]
    return [*names, last]


def gather_suites(run_dir: Path, recipe: Mapping[str, Any]) -> list[Suite]:
    """All suites of a run, finished or not."""
    found, asked = [], at(recipe, "evaluation", "suites") or ()
    for name in suite_names(run_dir, recipe):
        step = record(run_dir, f"eval.suite.{name}")
        found.append(Suite(name, step.state, step.manifest.metrics if step.manifest else {}, name in asked))
    return found


def suites_view(suites: Sequence[Suite]) -> SuitesView | None:
    """The suites as one table, sentences and heat maps; None where there is none."""
    if not suites:
        return None
    done = [suite for suite in suites if suite.state == DONE]
    models = list(dict.fromkeys(str(model) for suite in done for model in at(suite.metrics, "models") or ()))
    return SuitesView(
        findings=_findings(done),
        by_chance=_by_chance(done),
        models=models,
        rows=[row for suite in done for row in _rows(suite, models)],
        notes=[note for suite in done for note in _notes(suite)],
        heat_maps=[one for suite in done for one in _heat_maps(suite)],
        missing=[f"{suite.name}: {suite.state}" for suite in suites if suite.state != DONE],
    )


def _metrics(suite: Suite) -> Mapping[str, Mapping[str, Any]]:
    return at(suite.metrics, "metrics") or {}


def _verdict(suite: Suite, change: Mapping[str, Any] | None) -> str:
    """good or bad where the whole interval of a change lies on that side of 0, else open."""
    better = "below" if suite.metrics.get("kind") == NATS else "above"
    found = side(change)
    return "open" if found in ("open", "none") else "good" if found == better else "bad"


def _rows(suite: Suite, models: Sequence[str]) -> list[SuiteRow]:
    found = []
    kind = suite.metrics.get("kind")
    factor, unit = (1.0, "lower is better") if kind == NATS else (1.0, "marks from 1 to 10")
    if kind not in (NATS, *MARKS):
        factor, unit = 100.0, "%"
    for metric, of in _metrics(suite).items():
        first = next(iter(of.values()), None)
        cells = [_cell(suite, of[model], first, factor) if model in of else None for model in models]
        items = f"{suite.metrics.get('items') or 0:,}"
        found.append(SuiteRow(suite.name, metric.replace("_", " "), unit, cells, items))
        if kind == NATS:
            shares = [Cell(_exp(of[model])) if model in of else None for model in models]
            found.append(SuiteRow(suite.name, "perplexity", "exp(nats per token)", shares, items))
    return found


def _cell(suite: Suite, found: Mapping[str, Any], first: Mapping[str, Any] | None, factor: float) -> Cell:
    change = found.get("change")
    return Cell(
        shown(found, factor=factor),
        shown(change, factor=factor, signed=True) if change else None,
        _verdict(suite, change),
        [f"{count:,} {reason}" for reason, count in (found.get("failed") or {}).items()],
        compared_items(found, first) if change and first else None,
    )


def _exp(found: Mapping[str, Any]) -> tuple[str, str]:
    values = zip(("mean", "low", "high"), bounds(found), strict=True)
    return shown({name: None if value is None else math.exp(value) for name, value in values})


def _findings(suites: Sequence[Suite]) -> list[str]:
    """For each model, in which metrics it surely differs from the first model of the suite."""
    verdicts: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for suite in suites:
        first = str((at(suite.metrics, "models") or ("",))[0])
        for metric, of in _metrics(suite).items():
            for model, found in of.items():
                if change := found.get("change"):
                    name = suite.name if len(_metrics(suite)) == 1 else f"{suite.name} {metric.replace('_', ' ')}"
                    verdicts.setdefault((model, first), []).append((_verdict(suite, change), name))
    found = []
    for (model, first), results in verdicts.items():
        parts = []
        for verdict, word in (("good", "better"), ("bad", "worse")):
            if names := [name for one, name in results if one == verdict]:
                parts.append(f"{word} in {listed(names)}")
        count = sum(verdict == "open" for verdict, _ in results)
        if count:
            parts.append(f"{count} of {len(results)} metrics not told apart")
        found.append(f"{model} against {first}: {'; '.join(parts)}.")
    return found


def _by_chance(suites: Sequence[Suite]) -> str:
    """How many differences to expect where there is none."""
    count = sum(bool(found.get("change")) for suite in suites for of in _metrics(suite).values() for found in of.values())
    if count < 10:
        return ""
    return f"Of {count} comparisons at 95 %, about {count / 20:.0f} would leave 0 by chance alone."


def _notes(suite: Suite) -> list[str]:
    """What the suite says of itself, and what of a judge's marks the means do not show."""
    found = [f"{suite.name}: {note}." for note in at(suite.metrics, "notes") or ()]
    found += [] if suite.asked else [f"{suite.name}: of an earlier recipe of this run; the present one does not ask for it."]
    for model, averages in (at(suite.metrics, "averages") or {}).items():
        counts = [f"{words}: {averages[key]:,}" for key, words in _COUNTS if at(averages, key)]
        means = {n: at(averages, f"turn_{n}") for n in (1, 2)}
        turns = [f"turn {n}: {shown(mean)[0]}" for n, mean in means.items() if at(mean, "mean") is not None]
        if counts or turns:
            found.append(f"{suite.name}, {model}: {'; '.join([*turns, *counts])}.")
    return found


def _heat_maps(suite: Suite) -> list[tuple[str, str, list[Markup]]]:
    """One group for each language, with a figure for each model; the more columns, the fewer figures in a row."""
    groups: dict[str, list[Markup]] = {}
    columns = 0
    for model, by_lang in (at(suite.metrics, "heat_maps") or {}).items():
        for lang, found in by_lang.items():
            columns = max(columns, len(found["lengths"]))
            groups.setdefault(f"{suite.name}, {lang}", []).append(heat_map(str(model), found))
    css = "narrow" if columns <= 4 else "panels" if columns <= 9 else "charts"
    return [(title, css, figures) for title, figures in groups.items()]
