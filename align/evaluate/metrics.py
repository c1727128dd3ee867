"""Numbers of an evaluation, with intervals: pure functions of per-prompt values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]

BOOTSTRAPS = 2000
BLOCK = 250  # resamples in memory at a time
BEYOND = 20  # resamples that lie beyond each end of an interval, at least
SAME = 1e-9  # differences of rewards that are closer to each other differ by rounding alone


def bootstrap_interval(values: Sequence[float] | Floats, *, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, over prompts; (nan, nan) for fewer than two values.

    A level so high that fewer than `BEYOND` of `BOOTSTRAPS` resamples lie beyond an end draws more of them.
    """
    data = np.asarray(values, dtype=float)
    if data.size < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    draws = max(BOOTSTRAPS, math.ceil(2 * BEYOND / (1 - level)))
    blocks = [min(BLOCK, draws - start) for start in range(0, draws, BLOCK)]
    means = [data[rng.integers(0, data.size, (block, data.size))].mean(axis=1) for block in blocks]
    return quantile_interval(np.concatenate(means), level=level)


def t_interval(values: Sequence[float] | Floats, *, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean, over prompts (Student 1908, doi:10.1093/biomet/6.1.1); (nan, nan) where undefined.

    For decisions: it keeps its level with few values, where a percentile bootstrap is too narrow (Hesterberg, arXiv
    1411.5279). Values that are all the same have no spread to divide by, and the sign test decides: n of them lie on one
    side by chance with probability 2^(1-n). If that is at most 1 - level the interval is the value itself, else undefined.
    """
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    data = np.asarray(values, dtype=float)
    if data.size < 2:
        return math.nan, math.nan
    mean = float(data.mean())
    if np.ptp(data) <= SAME:
        value = mean if abs(mean) > SAME else 0.0
        return (value, value) if 2.0 ** (1 - data.size) <= 1 - level else (math.nan, math.nan)
    half = float(stdtrit(data.size - 1, (1 + level) / 2) * data.std(ddof=1)) / math.sqrt(data.size)
    return mean - half, mean + half


def resampled_means(values: ArrayLike, weights: ArrayLike | None = None, *, seed: int) -> Floats:
    """Weighted means of the columns of `values` (P, K) in `BOOTSTRAPS` resamples of its rows, (BOOTSTRAPS, K).

    A resample draws whole rows, so the columns stay paired. NaN are left out; a column without a value in a resample has a
    NaN mean there. `weights` have the shape of `values`; without them all are 1.
    """
    data = np.asarray(values, dtype=float)
    given = np.isfinite(data) * (1.0 if weights is None else np.asarray(weights, dtype=float))
    sums = np.where(given > 0, data, 0.0) * given
    rng, rows = np.random.default_rng(seed), len(data)
    means = np.empty((BOOTSTRAPS, data.shape[1]))
    for start in range(0, BOOTSTRAPS, BLOCK):
        picks = rng.integers(0, rows, (min(BLOCK, BOOTSTRAPS - start), rows))
        counts = np.stack([np.bincount(pick, minlength=rows) for pick in picks]).astype(float)
        with np.errstate(invalid="ignore"):
            means[start : start + len(picks)] = (counts @ sums) / (counts @ given)
    return means


def quantile_interval(draws: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """The central `level` of the finite draws; (nan, nan) if there are none."""
    finite = draws[np.isfinite(draws)]
    if not finite.size:
        return math.nan, math.nan
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def number(value: float) -> float | None:
    """The value for JSON, which has neither NaN nor infinity: None in their place."""
    return float(value) if math.isfinite(value) else None


def wins(ours: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """1 where our score is higher, 0 where it is lower, 0.5 at a tie; one value per prompt.

    Raises:
        ValueError: different numbers of prompts.
    """
    return [1.0 if a > b else 0.0 if a < b else 0.5 for a, b in zip(ours, baseline, strict=True)]


def mean_with_interval(values: Sequence[float] | Floats, *, seed: int) -> dict[str, float | None]:
    """Mean and 95 % bootstrap interval, rounded; None where undefined (JSON has no NaN)."""
    low, high = bootstrap_interval(values, seed=seed)
    mean = float(np.mean(values)) if len(values) else float("nan")
    return {k: None if np.isnan(v) else round(v, 4) for k, v in (("mean", mean), ("low", low), ("high", high))}
