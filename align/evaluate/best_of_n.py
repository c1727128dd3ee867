"""Best-of-n: what choosing the best of n responses by a proxy reward does to a gold reward, before any training.

The responses and their scores are those the pipeline has anyway: N per prompt, scored by the model that selects (proxy) and
by one that is held out of selection and filtering (gold). Every subset of n of them is a draw, so a curve over n up to N
costs no generation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from align.evaluate.metrics import Floats, mean_with_interval

Values = Any  # a float for one prompt, a (P,) float64 array for a block


def kl_best_of_n(n: int) -> float:
    """KL(best-of-n || the model) in nats, ln n - (n - 1)/n (Gao et al., 2210.10760).

    An upper bound of the true value, reached where no two responses can tie in reward (Beirami et al., 2401.01879).

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"best of {n} responses")
    return math.log(n) - (n - 1) / n


def expected_best_of_n(proxy: ArrayLike, gold: ArrayLike, n: int) -> Values:
    """Mean gold reward of the response with the highest proxy reward, over all subsets of n of a prompt's responses.

    Without ties, with the responses sorted by proxy, it is sum_i C(i-1, n-1) / C(N, n) * gold_i (unbiased; as WebGPT,
    2112.09332, appendix). Responses that tie in proxy share their weights, which is the expectation when ties are broken at
    random. A response counts if both its rewards are finite.

    Args:
        proxy, gold: (N,) for one prompt or (P, N), NaN where a response is missing.

    Returns:
        A float, or a (P,) array; NaN for a prompt with fewer than n responses that count.

    Raises:
        ValueError: n below 1, or shapes that differ or are neither (N,) nor (P, N).
    """
    proxies, golds = np.asarray(proxy, dtype=float), np.asarray(gold, dtype=float)
    if n < 1 or proxies.shape != golds.shape or proxies.ndim not in (1, 2):
        raise ValueError(f"best of {n} with proxy rewards of shape {proxies.shape} and gold rewards of shape {golds.shape}")
    expected = _expected(np.atleast_2d(proxies), np.atleast_2d(golds), n)
    return float(expected[0]) if proxies.ndim == 1 else expected


def _expected(proxy: Floats, gold: Floats, n: int) -> Floats:
    valid = np.isfinite(proxy) & np.isfinite(gold)
    count = valid.sum(axis=1, keepdims=True)
    order = np.argsort(np.where(valid, proxy, np.inf), axis=1)  # what does not count goes last
    valid = np.take_along_axis(valid, order, axis=1)
    proxy = np.where(valid, np.take_along_axis(proxy, order, axis=1), np.inf)
    gold = np.where(valid, np.take_along_axis(gold, order, axis=1), 0.0)
    size = proxy.shape[1]
    if not size:
        return np.full(len(proxy), np.nan)
    starts = np.ones(proxy.shape, dtype=bool)  # the first of each group of equal proxies
    starts[:, 1:] = proxy[:, 1:] != proxy[:, :-1]
    ends = np.roll(starts, -1, axis=1)
    ends[:, -1] = True
    lower = np.maximum.accumulate(np.where(starts, np.arange(size), 0), axis=1)
    up_to = np.minimum.accumulate(np.where(ends, np.arange(1, size + 1), size)[:, ::-1], axis=1)[:, ::-1]
    weights = (_all_among(up_to, count, n) - _all_among(lower, count, n)) / (up_to - lower)
    expected = (np.where(valid, weights, 0.0) * gold).sum(axis=1)
    return np.where(count[:, 0] >= n, expected, np.nan)


def _all_among(k: Any, count: Any, n: int) -> Floats:
    """C(k, n) / C(count, n), the chance that n of `count` responses all lie among the k lowest; (P, N), 0 where k < n."""
    from scipy.special import gammaln  # type: ignore[import-untyped]

    k = np.minimum(k, count)  # at missing responses, where the ratio would overflow
    logs = gammaln(k + 1) - gammaln(k - n + 1) - gammaln(count + 1) + gammaln(np.maximum(count - n + 1, 1))
    return np.asarray(np.exp(np.where(k >= n, logs, -np.inf)))


def _sizes(largest: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, ... below the largest N, and that N."""
    steps = {1} | {base << i for base in (2, 3) for i in range(largest.bit_length())}
    return sorted({n for n in steps if n < largest} | {largest}) if largest else []


def best_of_n_curve(
    proxy: ArrayLike, gold: ArrayLike, ns: Sequence[int] | None = None, *, seed: int = 17
) -> list[dict[str, Any]]:
    """Mean rewards of best-of-n for each n, as rows for JSON.

    A row has `n`, `kl` (nats) and `sqrt_kl`, `prompts` used, `left_out` (prompts with fewer than n responses that count) and
    `gold`, `proxy` and `gain`, each with mean, low and high: the 95 % bootstrap interval over prompts, None where undefined.
    `gain` is gold less the same prompts' gold at n = 1, subtracted within the prompt, so rows compare even where prompts
    have different numbers of responses; `gold` and `proxy` are in the reward models' own units.

    Args:
        proxy, gold: (P, N), NaN where a response is missing.
        ns: sizes; without them 1, 2, 3, 4, 6, 8, 12, 16, ... up to the largest number of responses of a prompt.

    Raises:
        ValueError: an n below 1, or rewards that are not two (P, N) arrays of one shape.
    """
    proxies, golds = np.asarray(proxy, dtype=float), np.asarray(gold, dtype=float)
    if proxies.ndim != 2 or proxies.shape != golds.shape:
        raise ValueError(f"a curve needs (P, N) rewards, not shapes {proxies.shape} and {golds.shape}")
    valid = np.isfinite(proxies) & np.isfinite(golds)
    proxies = np.where(valid, proxies, np.nan)
    single = expected_best_of_n(proxies, golds, 1)
    rows = []
    for n in _sizes(int(valid.sum(axis=1).max(initial=0))) if ns is None else ns:
        kl = kl_best_of_n(n)
        best, chosen = expected_best_of_n(proxies, golds, n), expected_best_of_n(proxies, proxies, n)
        used = np.isfinite(best)
        row: dict[str, Any] = {"n": int(n), "kl": kl, "sqrt_kl": math.sqrt(kl)}
        row |= {"prompts": int(used.sum()), "left_out": int((~used).sum())}
        for name, values in (("gold", best), ("proxy", chosen), ("gain", best - single)):
            row[name] = mean_with_interval(values[used], seed=seed)
        rows.append(row)
    return rows
