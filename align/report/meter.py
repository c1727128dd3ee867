"""What the report says of the over-optimization meter: the charts, which checkpoint to use, and whether to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from markupsafe import Markup

from align.report.artifacts import at
from align.report.estimates import decimals, in_words, listed, plot, shown
from align.report.meter_charts import Curve, Line, Mark, by_checkpoint, numbered, panel

# Key of the gain, title of the panel, colour.
REWARDS = (
    ("proxy", "Proxy (selector)", "c-selector"),
    ("validator", "Validator", "c-validator"),
    ("gold", "Gold", "c-gold"),
)
FORMS = (("best_of_n", "d(a − b d)"), ("rl", "d(a − b ln d)"))  # key of the fit, the form as it is written


@dataclass(frozen=True)
class MeterView:
    """The meter for the template: `rows` are checkpoints with a (mean, interval) of each number.

    Without points, `finding` says why, and there are neither charts nor rows.
    """

    start: str
    finding: str
    has_gold: bool
    fitted: bool
    notes: list[str]
    charts: list[Markup]
    drift: list[Markup]
    rows: list[dict[str, Any]]


def meter_view(meter: Mapping[str, Any], before: Mapping[int, Mapping[str, Any]]) -> MeterView | None:
    """The meter as charts and sentences; None where it has neither a checkpoint nor a reason.

    Args:
        meter: as in the manifest of the evaluation.
        before: by stage, what training measured on its fixed examples before the first update.
    """
    points = list(at(meter, "points") or ())
    if not points:
        if not at(meter, "reason"):
            return None
        has_gold = at(meter, "fits", "gold") is not None
        return MeterView("", finding(meter), has_gold, fitted=False, notes=[], charts=[], drift=[], rows=[])
    rewards = [one for one in REWARDS if any(at(p, f"{one[0]}_gain", "mean") is not None for p in points)]
    has_gold = any(key == "gold" for key, _, _ in rewards)
    return MeterView(
        start=str(points[0]["name"]),
        finding=finding(meter),
        has_gold=has_gold,
        fitted=any(at(meter, "fits", "gold", form) for form, _ in FORMS),
        notes=[*(_notes(meter) if has_gold else []), *_unmeasured(points), *_intervals(meter)],
        charts=_panels(meter, points, rewards),
        drift=_side_effects(points, before),
        rows=[_row(point, start=not number) for number, point in enumerate(points)],
    )


def finding(meter: Mapping[str, Any]) -> str:
    """What the meter found, in one or two sentences, or why it found nothing."""
    choice, points = at(meter, "choice"), meter["points"]
    if reason := at(meter, "reason"):
        return str(reason)
    if not choice:
        return "The meter has no gold reward, and proxies alone cannot show over-optimization."
    start, chosen = points[0]["name"], choice["name"]
    if len(points) == 1:
        return f"Only {start} was measured, so there is nothing to compare."
    flagged = [f"from {step['start']} to {step['end']}" for step in at(meter, "steps") or () if step["over_optimized"]]
    use = f"Use {chosen}" if choice["chosen"] else f"Keep {start}"
    if flagged:
        return f"Over-optimization: {listed(flagged)} the proxy rose while gold fell, both beyond their intervals. {use}."
    if late := _too_long(meter["stop"], [point["name"] for point in points]):
        return f"Gold fell below that of {late}. {use}."
    if not choice["chosen"]:
        return f"No checkpoint is better than {start} by gold beyond its interval. {use}, or measure on more prompts."
    return f"{chosen} is the best checkpoint by gold, and no step shows over-optimization beyond the intervals."


def _too_long(stop: Mapping[str, Any], names: Sequence[str]) -> str:
    """Where the stop rule fired, as the end of a sentence; empty where it did not."""
    others = at(stop, "others") or ()
    fired: dict[int, list[str]] = {}
    for one in (*others, stop):
        if one["stop"] is not None:
            fired.setdefault(one["best"], []).append(str(at(one, "end")))
    ways = [f"{names[best]}{f' on the way to {listed(ends)}' if others else ''}" for best, ends in fired.items()]
    return f"{listed(ways)} and stayed there, so training went on too long{' there' if others else ''}" if ways else ""


def _notes(meter: Mapping[str, Any]) -> list[str]:
    """The choice, the stop rule, the fits and what the choice lacks."""
    choice, points = meter["choice"], meter["points"]
    names, found = [point["name"] for point in points], []
    gains = {row["name"]: row for row in choice["gains"]}
    level = f"{100 * choice['level']:.3g} %"
    if choice["chosen"]:
        gain = in_words(gains[choice["name"]], signed=True)
        found.append(
            f"Choice: {choice['name']} has the highest lower bound of the gold gain over {names[0]}, {gain}. The "
            f"interval is of {level}, so that those of all {len(gains)} checkpoints hold at once."
        )
    elif gains:
        found.append(f"Choice: {names[0]}, since no checkpoint's gold gain is above 0 beyond its {level} interval.")
    if len(points) > 1:
        others = at(meter, "stop", "others") or []
        found += [_stop(one, names, f" on the way to {one['end']}" if others else "") for one in (*others, meter["stop"])]
        found.append(_fits(at(meter, "fits", "gold")))
        zero = [str(point["name"]) for point in points[1:] if at(point, "sqrt_kl", "mean") == 0]
        found += [f"Left out of the curves, since their estimate of KL is not above 0: {listed(zero)}."] if zero else []
    for row in choice["gains"]:
        if row["low"] is None:
            found.append(f"{row['name']} could not be chosen: its gold gains on {row['prompts']} prompts give no interval.")
        elif not row["eligible"]:
            found.append(f"{row['name']} could not be chosen: too few of its prompts have a gold reward.")
        elif row["missing"]:
            found.append(f"{row['name']}: {row['missing']} prompts lack a gold reward of it or of {names[0]}.")
    return found


def _stop(stop: Mapping[str, Any], names: Sequence[str], way: str) -> str:
    if stop["stop"] is None:
        return (
            f"Stop rule{way}: no reason to stop earlier; gold did not stay under its best so far beyond the paired interval."
        )
    falls = 0
    for row in reversed(stop["comparisons"]):
        if not row["below"]:
            break
        falls += 1
    return (
        f"Stop rule{way}: stop at {names[stop['stop']]}; gold was under that of {names[stop['best']]}, beyond the paired "
        f"interval, at {falls} checkpoints in a row."
    )


def _fits(fits: Mapping[str, Any] | None) -> str:
    if not fits or fits.get("reason"):
        return f"No curve was fitted: {at(fits, 'reason') or 'gold was not measured'}."
    parts = []
    for form, name in FORMS:
        peak = at(fits, form, "peak")
        told = _peak(peak) if peak else f"no peak, since {at(fits, form, 'no_peak')}"
        r2 = at(fits, form, "r2")
        parts.append(f"{name}{'' if r2 is None else f' (R² {r2:.2f})'} has {told}")
    return f"Curves fitted to gold: {'; '.join(parts)}."


def _peak(peak: Mapping[str, Any]) -> str:
    where = {
        "inside": "inside the measured distances",
        "before": "before the first measured distance",
        "beyond": "beyond the last measured distance, an extrapolation",
    }[peak["where"]]
    if peak["low"] is not None and peak["high"] is None:
        return f"its peak at d = {peak['d']:.{decimals(peak['low'], peak['d'])}f}, {where}, with no upper bound"
    return f"its peak at d = {in_words({'mean': peak['d'], 'low': peak['low'], 'high': peak['high']})}, {where}"


def _unmeasured(points: Sequence[Mapping[str, Any]]) -> list[str]:
    missing = [str(point["name"]) for point in points if at(point, "sqrt_kl", "mean") is None]
    return [f"Without a distance, and so not in the charts over it: {listed(missing)}."] if missing else []


def _intervals(meter: Mapping[str, Any]) -> list[str]:
    """Which intervals stand in the charts and decide; an earlier version did not say."""
    kinds = at(meter, "intervals")
    if not kinds:
        return []
    return [
        f"Intervals of gains, and those that the choice, the stop rule and over-optimized steps rest on, are "
        f"{kinds['gains']}; those of distances and curves are {kinds['distances']}."
    ]


def _runs(points: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Points as training went, one list for each branch, which begins with the point that it went on from."""
    names = [point["name"] for point in points]
    runs: list[list[int]] = []
    for k, point in enumerate(points):
        parent = point.get("parent", names[k - 1] if k else None)  # an earlier version had no branches
        before = names.index(parent) if parent in names[:k] else None
        if before is not None and runs[-1][-1] == before:
            runs[-1].append(k)
        else:
            runs.append([k] if before is None else [before, k])
    return runs


def _panels(
    meter: Mapping[str, Any], points: Sequence[Mapping[str, Any]], rewards: Sequence[tuple[str, str, str]]
) -> list[Markup]:
    """One panel for each reward, all over the same distances."""
    start = points[0]["name"]
    chosen = at(meter, "choice", "name")
    distances = [d for point in points if (d := at(point, "sqrt_kl", "mean")) is not None]
    x_ticks = numbered([0.0, *distances])
    return [
        panel(
            title,
            [
                Mark(str(p["name"]), plot(p["sqrt_kl"])[0], *plot(p[f"{key}_gain"]), chosen=p["name"] == chosen)
                for p in points
            ],
            color=color,
            x_ticks=x_ticks,
            x_label=f"d = √KL to {start}",
            y_label=f"gain over {start}",
            curves=_curves(at(meter, "fits", "gold")) if key == "gold" else (),
            runs=_runs(points),
        )
        for key, title, color in rewards
    ]


def _curves(fits: Mapping[str, Any] | None) -> list[Curve]:
    found = []
    for form, _ in FORMS:
        fit = at(fits, form)
        if fit:
            peak = fit["peak"]
            found.append(
                Curve(
                    [(p["d"], *plot({"mean": p["reward"], "low": p["low"], "high": p["high"]})) for p in fit["curve"]],
                    dashed=form == "rl",
                    peak=(peak["d"], peak["reward"]) if peak and peak["where"] == "inside" else None,
                )
            )
    return found


def _side_effects(points: Sequence[Mapping[str, Any]], before: Mapping[int, Mapping[str, Any]]) -> list[Markup]:
    """Length, repetition and, since each stage began, the log-probability of its pairs: all by checkpoint."""
    names = [str(point["name"]) for point in points]
    runs = _runs(points)

    def line(key: str) -> list[Line]:
        return [Line("", [Mark(names[i], i, float(points[i][key])) for i in run], "c-data") for run in runs]

    drift = []
    for side, color in (("chosen", "c-good"), ("rejected", "c-bad")):
        marks = [
            (point["stage"], Mark(names[i], i, now - start))
            for i, point in enumerate(points)
            if (now := at(point, "drift", f"{side}_logps")) is not None
            and (start := at(before, point["stage"], f"{side}_logps")) is not None
        ]
        # One line for each stage: their pairs are other ones.
        drift += [Line(side, [mark for _, mark in part], color) for _, part in groupby(marks, key=lambda one: one[0])]
    return [
        by_checkpoint("Tokens of an answer", names, line("num_tokens"), y_label="tokens", within=(0, 1)),
        by_checkpoint("Repeated word 4-grams", names, line("repetition"), y_label="share", within=(0, 0.05)),
        by_checkpoint("Log-probability of the stage's pairs", names, drift, y_label="change in nats", within=(0, 0)),
    ]


def _row(point: Mapping[str, Any], *, start: bool) -> dict[str, Any]:
    """A line of the table; the start is compared with itself, which needs no interval."""
    distance, previous = shown(point["sqrt_kl"]), shown(at(point, "sqrt_previous_kl"))
    gains = {key: shown(at(point, f"{key}_gain"), signed=True) for key, _, _ in REWARDS}
    if start:
        distance, gains = ("0", ""), {key: ("0" if found[1] else "–", "") for key, found in gains.items()}
    plain = {key: float(value) for key in ("num_tokens", "repetition", "finished") if math.isfinite(value := point[key])}
    names = {key: point[key] for key in ("name", "step", "steps", "answers")}
    return {**names, **plain, "distance": distance, "previous": previous, "gains": gains}
