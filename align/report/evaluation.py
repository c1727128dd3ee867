"""What the report says of the evaluation: win rates, the meter, best of n before training, and the suites.

Everything is read from manifests and Parquet; each part has a sentence that says what was found, no surer than its
intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from align.report.artifacts import at, scan
from align.report.estimates import in_words, listed, p_text, plot, shown, side
from align.report.meter import MeterView, meter_view
from align.report.meter_charts import Line, Mark, Rates, by_size, forest
from align.report.stages import Evaluation, Stage
from align.report.suites import Suite, SuitesView, suites_view

ROLES = {"selector": "the selector", "validator": "the validator", "gold": "gold"}  # reward models as sentences name them
_BEST_OF_N = ("proxy", "n", "prompts", "proxy_reward", "gold", "gain", "gain_low", "gain_high")


@dataclass(frozen=True)
class WinRow:
    """One model by one reward model: rates as (mean, interval)."""

    by: str
    model: str
    raw: tuple[str, str]
    controlled: tuple[str, str]
    wins: int
    ties: int
    losses: int
    p_value: str


@dataclass(frozen=True)
class WinsView:
    """Win rates for the template."""

    finding: str
    has_gold: bool
    charts: list[Markup]
    rows: list[WinRow]
    warnings: list[str]


@dataclass(frozen=True)
class BestOfNView:
    """Best of n at one stage: the gold gain, and each proxy's own reward."""

    title: str
    finding: str
    charts: list[Markup]
    note: str


@dataclass(frozen=True)
class EvaluationView:
    """The parts of the section, each None or empty where its steps have not run."""

    wins: WinsView | None
    meter: MeterView | None
    best_of_n: list[BestOfNView]
    suites: SuitesView | None


def gather_best_of_n(run_dir: Path, stages: int) -> dict[int, list[dict[str, Any]]]:
    """The curves of each stage that has them, rows in the order of n."""
    found = {}
    for k in range(1, stages + 1):
        if rows := list(scan(run_dir / f"stage{k}" / "best_of_n", _BEST_OF_N)):
            found[k] = sorted(rows, key=lambda row: row["n"])
    return found


def evaluation_view(
    evaluation: Evaluation | None,
    stages: Sequence[Stage],
    best_of_n: Mapping[int, Sequence[Mapping[str, Any]]],
    suites: Sequence[Suite],
) -> EvaluationView:
    """All parts of the evaluation for the template."""
    names = {stage.number: stage.name for stage in stages}
    before = {s.number: s.train.metrics["examined"][0] for s in stages if s.train and s.train.metrics.get("examined")}
    return EvaluationView(
        wins=wins_view(evaluation) if evaluation and evaluation.wins else None,
        meter=meter_view(evaluation.meter, before) if evaluation and evaluation.meter else None,
        best_of_n=[_best_of_n(f"Stage {k} ({names.get(k, k)})", rows) for k, rows in best_of_n.items()],
        suites=suites_view(suites),
    )


def wins_view(evaluation: Evaluation) -> WinsView:
    """Win rates as they are and at equal length, by each reward model."""
    rows = evaluation.wins
    roles = [role for role in ROLES if any(row["by"] == role for row in rows)]
    charts = [
        forest(
            f"By {ROLES[role]}",
            [
                Rates(str(row["model"]), plot(_raw(row), 100.0), plot(row["length"]["length_controlled"]))
                for row in rows
                if row["by"] == role
            ],
            color=f"c-{role}",
            guide="50 %",
        )
        for role in roles
    ]
    return WinsView(
        finding=wins_finding(rows, evaluation.baseline),
        has_gold="gold" in roles,
        charts=charts,
        rows=[
            WinRow(
                by=str(row["by"]),
                model=str(row["model"]),
                raw=shown(_raw(row), factor=100.0, unit="\N{NO-BREAK SPACE}%"),
                controlled=shown(row["length"]["length_controlled"], unit="\N{NO-BREAK SPACE}%"),
                wins=row["wins"],
                ties=row["ties"],
                losses=row["losses"],
                p_value=p_text(row["p_value"]),
            )
            for row in rows
        ],
        warnings=[warning for row in rows for warning in _warnings(row)],
    )


def _raw(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"mean": row["win_rate"], "low": row["low"], "high": row["high"]}


def wins_finding(rows: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """Who is ahead of the baseline by whom, models that stand alike together."""
    sides: dict[str, dict[str, str]] = {}
    lost = []
    for row in rows:
        here = sides.setdefault(str(row["model"]), {})[row["by"]] = side(_raw(row), 0.5)
        if here == "above" and side(row["length"]["length_controlled"], 50.0) in ("open", "below"):
            lost.append(f"{row['model']} by {ROLES[row['by']]}")
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for model, found in sides.items():
        groups.setdefault(tuple(found.items()), []).append(model)
    clauses = []
    for placed, models in groups.items():
        are = "are" if len(models) > 1 else "is"
        parts = []
        for place, words in (
            ("above", f"ahead of {baseline}"), ("below", f"behind {baseline}"), ("open", f"not told apart from {baseline}"),
            ("none", "compared on too few prompts"),
        ):  # fmt: skip
            by = [ROLES[role] for role, one in placed if one == place]
            if by:
                everyone = "any reward model" if place == "open" else "every reward model"
                parts.append(f"{words} by {everyone if len(by) == len(placed) > 1 else listed(by)}")
        clauses.append(f"{listed(models)} {are} {', '.join(parts)}")
    end = f" At equal length the lead is not sure for {listed(lost)}." if lost else ""
    return f"{'; '.join(clauses)}.{end}"


def _warnings(row: Mapping[str, Any]) -> list[str]:
    """What to know before trusting a model's rates by one reward model."""
    length = row["length"]
    found = [length["warning"]] if length["warning"] else []
    if row["invalid"]:
        found.append(f"{row['invalid']} of {row['invalid'] + row['prompts']} prompts lack a score and are left out")
    if missing := at(length, "left_out", "no_length"):
        found.append(f"{missing} prompts lack a length and are left out at equal length")
    if length["failed_refits"]:
        found.append(f"{length['failed_refits']} refits of the interval at equal length failed")
    return [f"{row['model']} by {ROLES[row['by']]}: {text}." for text in found]


def _best_of_n(title: str, rows: Sequence[Mapping[str, Any]]) -> BestOfNView:
    """One stage's curves: gold under both proxies in one chart, and a chart of each proxy's own reward."""
    by_proxy = {role: [row for row in rows if row["proxy"] == role] for role in ROLES}
    by_proxy = {role: found for role, found in by_proxy.items() if found}

    def marks(found: Sequence[Mapping[str, Any]], *keys: str) -> list[Mark]:
        return [Mark(f"n = {row['n']}", row["n"], *(row[key] for key in keys)) for row in found]

    gains = [Line(f"best by {ROLES[r]}", marks(f, "gain", "gain_low", "gain_high"), f"c-{r}") for r, f in by_proxy.items()]
    charts = [by_size("Gold gain over one answer", gains, y_label="gain of gold", guide=True)]
    for role, found in by_proxy.items():
        line = Line(role, marks(found, "proxy_reward"), f"c-{role}")
        charts.append(by_size(f"Reward by {ROLES[role]} itself", [line], y_label="reward", guide=False))
    most = max(row["prompts"] for row in rows)
    fewer = [f"n = {n} on {count}" for n, count in {row["n"]: row["prompts"] for row in rows}.items() if count < most]
    note = f"Of {most:,} prompts, {listed(fewer)}: the others have fewer answers." if fewer else f"Over {most:,} prompts."
    finding = " ".join(best_of_n_finding(ROLES[role], found) for role, found in by_proxy.items())
    return BestOfNView(title, finding, charts, note)


def best_of_n_finding(proxy: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """What the best by a proxy does to gold at the largest n, and whether a smaller n did better beyond both intervals."""
    last = rows[-1]
    gain = {"mean": last["gain"], "low": last["gain_low"], "high": last["gain_high"]}
    sure = {"open": ", not told apart from no change", "none": ", on too few prompts for an interval"}.get(side(gain), "")
    end = f"The best of {last['n']} by {proxy} changes gold by {in_words(gain, signed=True)}{sure}."
    better = [row for row in rows if not math.isnan(row["gain_low"]) and row["gain_low"] > last["gain_high"]]
    if better:
        best = max(better, key=lambda row: float(row["gain"]))
        end += f" The best of {best['n']} was better beyond both intervals: choosing harder by {proxy} loses gold."
    return end
