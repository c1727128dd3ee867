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
from align.evaluate.metrics import Floats, mean_with_interval, number, quantile_interval, resampled_means
from align.evaluate.overoptimization import (
    Checkpoint,
    choose_checkpoint,
    divergence,
    fit_forms,
    gains,
    stop_rule,
)
from align.evaluate.table import per_prompt

DRIFT = ("chosen_logps", "rejected_logps", "chosen_drift", "rejected_drift", "margin", "accuracy")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a checkpoint stands in training.

    Attributes:
        name: of the model, such as M1@2 or M1.
        stage: 0 for the start, 1, 2, ...
        step: optimizer steps within the stage.
        steps: of the whole stage.
        drift: what training measured there on fixed examples, some of `DRIFT`.
    """

    name: str
    stage: int
    step: int = 0
    steps: int = 0
    drift: Mapping[str, float] = field(default_factory=dict)


def meter(rows: Sequence[EvalResult], places: Sequence[Place], *, seed: int) -> dict[str, Any]:
    """All numbers of the meter, ready for JSON; None where undefined.

    Args:
        rows: of all evaluated models.
        places: the checkpoints in the order of training, the model the run began from first.
        seed: of the bootstraps.

    Returns:
        `points`, one for each checkpoint (name, stage, step, steps, sqrt_kl and sqrt_previous_kl with low and high,
        proxy_gain, validator_gain and gold_gain over the start with intervals, tokens, repetition, finished, and drift);
        `fits` of gold and of proxy (`fit_forms`); `steps` (`divergence`); and, where there is gold, `choice`
        (`choose_checkpoint`) and `stop` (`stop_rule`).

    Raises:
        ValueError: no place, or a start that has no answers.
    """
    by_model: dict[str, list[EvalResult]] = {}
    for row in rows:
        by_model.setdefault(row.model, []).append(row)
    places = [place for place in places if place.name in by_model]
    checkpoints = [_checkpoint(place, by_model[place.name], start=not k, seed=seed) for k, place in enumerate(places)]
    has_gold = any(math.isfinite(row.gold) for row in rows)
    distances = np.array([checkpoint.sqrt_kl for checkpoint in checkpoints])
    found: dict[str, Any] = {
        "points": [_point(p, c, by_model, places[0].name, seed) for p, c in zip(places, checkpoints, strict=True)],
        "fits": {"proxy": fit_forms(distances, gains(checkpoints, "proxy"), seed=seed)},
        "steps": divergence(checkpoints, seed=seed),
        "choice": None,
        "stop": None,
    }
    if has_gold:
        found["fits"]["gold"] = fit_forms(distances, gains(checkpoints, "gold"), seed=seed)
        found["choice"] = choose_checkpoint(checkpoints, seed=seed)
        found["stop"] = stop_rule(checkpoints, seed=seed)
    return found


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


def _checkpoint(place: Place, rows: Sequence[EvalResult], *, start: bool, seed: int) -> Checkpoint:
    distance, low, high = (0.0, 0.0, 0.0) if start else _distance(rows, "start_log_ratio", seed)
    return Checkpoint(
        name=place.name, stage=str(place.stage), step=place.step,
        fraction=place.step / place.steps if place.steps else 0.0, sqrt_kl=distance, sqrt_kl_interval=(low, high),
        gold=per_prompt(rows, "gold"), proxy=per_prompt(rows, "selector"),
    )  # fmt: skip


def _gain(rows: Sequence[EvalResult], start: Sequence[EvalResult], column: str, seed: int) -> dict[str, float | None]:
    mine, first = per_prompt(rows, column), per_prompt(start, column)
    shared: Floats = np.array([mine[p] - first[p] for p in sorted(set(mine) & set(first))])
    return mean_with_interval(shared, seed=seed)


def _point(
    place: Place, checkpoint: Checkpoint, by_model: Mapping[str, Sequence[EvalResult]], start: str, seed: int
) -> dict[str, Any]:
    rows = by_model[place.name]
    low, high = checkpoint.sqrt_kl_interval or (math.nan, math.nan)
    previous = _distance(rows, "previous_log_ratio", seed)
    return {
        "name": place.name, "stage": place.stage, "step": place.step, "steps": place.steps, "answers": len(rows),
        "sqrt_kl": _interval(checkpoint.sqrt_kl, low, high), "sqrt_previous_kl": _interval(*previous),
        **{
            f"{name}_gain": _gain(rows, by_model[start], column, seed)
            for name, column in (("proxy", "selector"), ("validator", "validator"), ("gold", "gold"))
        },
        **{name: float(np.mean([getattr(row, name) for row in rows])) for name in ("num_tokens", "repetition", "finished")},
        "drift": {name: number(float(place.drift[name])) for name in DRIFT if name in place.drift},
    }  # fmt: skip


def _interval(mean: float, low: float, high: float) -> dict[str, float | None]:
    return {"mean": number(mean), "low": number(low), "high": number(high)}
