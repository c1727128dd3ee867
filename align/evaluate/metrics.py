"""Numbers of an evaluation, with intervals: pure functions of per-prompt values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BOOTSTRAPS = 2000


def bootstrap_interval(values: Sequence[float], *, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, over prompts; (nan, nan) for fewer than two values."""
    data = np.asarray(values, dtype=float)
    if data.size < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = data[rng.integers(0, data.size, (BOOTSTRAPS, data.size))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wins(ours: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """1 where our score is higher, 0 where it is lower, 0.5 at a tie; one value per prompt.

    Raises:
        ValueError: different numbers of prompts.
    """
    return [1.0 if a > b else 0.0 if a < b else 0.5 for a, b in zip(ours, baseline, strict=True)]


def mean_with_interval(values: Sequence[float], *, seed: int) -> dict[str, float | None]:
    """Mean and 95 % bootstrap interval, rounded; None where undefined (JSON has no NaN)."""
    low, high = bootstrap_interval(values, seed=seed)
    mean = float(np.mean(values)) if len(values) else float("nan")
    return {k: None if np.isnan(v) else round(v, 4) for k, v in (("mean", mean), ("low", low), ("high", high))}
