"""The over-optimization meter of a run: each checkpoint from M0 on with its distance, proxy and gold reward, and drift.

The proxy is the selector, whose choices training follows; gold took no part in choosing or filtering pairs. The validator is
not gold: it filtered the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from align.core.rows import EvalResult
from align.evaluate.metrics import Floats, number, quantile_interval, resampled_means, t_interval
from align.evaluate.overoptimization import (
    Checkpoint,
    Reward,
    choose_checkpoint,
    divergence,
    fit_forms,
    gains,
    parents,
    stop_rule,
)
from align.evaluate.table import per_prompt

DRIFT = ("chosen_logps", "rejected_logps", "chosen_drift", "rejected_drift", "margin", "accuracy")
# Those of gains and of their differences decide; those of fitted curves are of the kind of the distances'.
INTERVALS = {"gains": "Student's t over prompts", "distances": "percentile bootstraps over prompts"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a checkpoint stands in training.

    Attributes:
        name: of the model, such as M1@2 or M1.
        stage: 0 for the start, 1, 2, ...
        step: optimizer steps within the stage.
        steps: of the whole stage.
        drift: what training measured there on fixed examples, some of `DRIFT`.
        parent: name of the model that training came from, the stage's init for the first checkpoint of a stage; None = the
            place before it.
    """

    name: str
    stage: int
    step: int = 0
    steps: int = 0
    drift: Mapping[str, float] = field(default_factory=dict)
    parent: str | None = None


def meter(rows: Sequence[EvalResult], places: Sequence[Place], *, seed: int) -> dict[str, Any]:
    """All numbers of the meter, ready for JSON; None where undefined.

    Args:
        rows: of all evaluated models.
        places: the checkpoints in the order of training, the model the run began from first. One without rows is no point;
            what went on from it counts as going on from its nearest ancestor that has rows.
        seed: of the bootstraps.

    Returns:
        `points`, one for each checkpoint (name, parent, stage, step, steps, sqrt_kl and sqrt_previous_kl with low and high,
        proxy_gain, validator_gain and gold_gain over the start with intervals, tokens, repetition, finished, and drift);
        `fits` of gold and of proxy (`fit_forms`); `steps` (`divergence`); where there is gold, `choice`
        (`choose_checkpoint`) and `stop` (`stop_rule`), else None; `intervals`, their kinds; and `reason`, empty,
        or why there are no points: a start without rows leaves nothing to measure against.

    Raises:
        ValueError: no place.
    """
    if not places:
        raise ValueError("the meter needs the model that the run began from")
    by_model: dict[str, list[EvalResult]] = {}
    for row in rows:
        by_model.setdefault(row.model, []).append(row)
    start, reason = places[0].name, ""
    if start not in by_model:
        reason = (
            f"The meter has no points, since {start}, which training began from and all checkpoints are measured against, "
            f"was not evaluated: add {start} to evaluation.models."
        )
    origin = parents([place.name for place in places], [place.parent for place in places])
    shown = [k for k, place in enumerate(places) if place.name in by_model and not reason]
    checkpoints = [
        _checkpoint(places[k], by_model[places[k].name], _parent(k, places, origin, by_model), start=not k, seed=seed)
        for k in shown
    ]
    found: dict[str, Any] = {
        "reason": reason,
        "points": [_point(places[k], c, by_model, start, seed) for k, c in zip(shown, checkpoints, strict=True)],
        "fits": {"proxy": _fits(checkpoints, "proxy", seed)},
        "steps": divergence(checkpoints),
        "choice": None,
        "stop": None,
        "intervals": INTERVALS,
    }
    if any(math.isfinite(row.gold) for row in rows):
        found["fits"]["gold"] = _fits(checkpoints, "gold", seed)
        found["choice"] = choose_checkpoint(checkpoints) if checkpoints else None
        found["stop"] = stop_rule(checkpoints) if checkpoints else None
    return found


def _parent(
    k: int, places: Sequence[Place], origin: Sequence[int | None], by_model: Mapping[str, Sequence[EvalResult]]
) -> str | None:
    """Name of the nearest ancestor that has rows, or of the model outside of the places that training went on from."""
    while (before := origin[k]) is not None:
        if places[before].name in by_model:
            return places[before].name
        k = before
    return places[k].parent


def _fits(checkpoints: Sequence[Checkpoint], reward: Reward, seed: int) -> dict[str, Any]:
    if not checkpoints:
        return fit_forms([], np.empty((0, 0)), seed=seed)
    return fit_forms([checkpoint.sqrt_kl for checkpoint in checkpoints], gains(checkpoints, reward), seed=seed)


def _distance(rows: Sequence[EvalResult], column: str, seed: int) -> tuple[float, float, float]:
    """sqrt(max(0, mean log-ratio)) with its bootstrap interval over prompts, since a prompt's answers go together."""
    by_prompt: dict[str, list[float]] = {}
    for row in rows:
        if math.isfinite(value := float(getattr(row, column))):
            by_prompt.setdefault(row.prompt_id, []).append(value)
    if not by_prompt:
        return math.nan, math.nan, math.nan
    values = np.array([[np.mean(v)] for _, v in sorted(by_prompt.items())])
    low, high = quantile_interval(resampled_means(values, seed=seed)[:, 0]) if len(values) > 1 else (math.nan, math.nan)
    found = [math.sqrt(max(0.0, v)) if math.isfinite(v) else math.nan for v in (float(values.mean()), low, high)]
    return found[0], found[1], found[2]


def _checkpoint(place: Place, rows: Sequence[EvalResult], parent: str | None, *, start: bool, seed: int) -> Checkpoint:
    distance, low, high = (0.0, 0.0, 0.0) if start else _distance(rows, "start_log_ratio", seed)
    return Checkpoint(
        name=place.name, stage=str(place.stage), step=place.step,
        fraction=place.step / place.steps if place.steps else 0.0, sqrt_kl=distance, sqrt_kl_interval=(low, high),
        gold=per_prompt(rows, "gold"), proxy=per_prompt(rows, "selector"), parent=parent,
    )  # fmt: skip


def _gain(rows: Sequence[EvalResult], start: Sequence[EvalResult], column: str) -> dict[str, float | None]:
    mine, first = per_prompt(rows, column), per_prompt(start, column)
    shared: Floats = np.array([mine[p] - first[p] for p in sorted(set(mine) & set(first))])
    return _interval(float(shared.mean()) if shared.size else math.nan, *t_interval(shared))


def _point(
    place: Place, checkpoint: Checkpoint, by_model: Mapping[str, Sequence[EvalResult]], start: str, seed: int
) -> dict[str, Any]:
    rows = by_model[place.name]
    low, high = checkpoint.sqrt_kl_interval or (math.nan, math.nan)
    previous = _distance(rows, "previous_log_ratio", seed)
    return {
        "name": place.name, "parent": checkpoint.parent, "stage": place.stage, "step": place.step, "steps": place.steps,
        "answers": len(rows),
        "sqrt_kl": _interval(checkpoint.sqrt_kl, low, high), "sqrt_previous_kl": _interval(*previous),
        **{
            f"{name}_gain": _gain(rows, by_model[start], column)
            for name, column in (("proxy", "selector"), ("validator", "validator"), ("gold", "gold"))
        },
        **{name: float(np.mean([getattr(row, name) for row in rows])) for name in ("num_tokens", "repetition", "finished")},
        "drift": {name: number(float(place.drift[name])) for name in DRIFT if name in place.drift},
    }  # fmt: skip


def _interval(mean: float, low: float, high: float) -> dict[str, float | None]:
    return {"mean": number(mean), "low": number(low), "high": number(high)}
