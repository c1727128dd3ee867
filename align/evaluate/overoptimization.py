"""The over-optimization meter: a proxy reward that keeps rising while the gold reward falls, seen over checkpoints.

The proxy is the reward that training follows; the gold reward is held out of selecting and filtering. Distance is
d = sqrt(KL) to the model the run began from. All comparisons are within prompts. Intervals that decide (which checkpoint,
when to stop, whether a step is over-optimized) are Student's t over prompts (`align.evaluate.metrics.t_interval`); bands of
fitted curves are percentile bootstraps over prompts. What comes out is ready for JSON: None where a number is undefined.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from align.evaluate.metrics import Floats, number, quantile_interval, resampled_means, t_interval

LEVEL = 0.95
FURTHEST = 3.0  # a peak further out than this many times the largest observed d is an extrapolation and is not given
GRID = 51  # points of a fitted curve
Reward = Literal["gold", "proxy"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint and its rewards on the same prompts as all others of its run.

    Attributes:
        name: shown in tables.
        stage: such as sft, dpo or simpo.
        step: optimizer steps within the stage.
        fraction: of the stage's steps, in [0, 1].
        sqrt_kl: square root of KL(checkpoint || the model the run began from) in nats; NaN where it was not measured.
        sqrt_kl_interval: low and high of it.
        parent: name of the checkpoint that its training went on from; None = the one before it. One that is not among those
            before it, such as a model outside of the run's chain, is no parent.
        gold: prompt id -> gold reward, a prompt's mean over its responses; NaN or no entry where it is missing.
        proxy: the same with the proxy reward.
    """

    name: str
    stage: str
    step: int
    fraction: float
    sqrt_kl: float
    gold: Mapping[str, float]
    proxy: Mapping[str, float]
    sqrt_kl_interval: tuple[float, float] | None = None
    parent: str | None = None

    def __post_init__(self) -> None:
        if self.sqrt_kl < 0 or math.isinf(self.sqrt_kl):
            raise ValueError(f"{self.name}: sqrt_kl is {self.sqrt_kl}")


def rewards(checkpoints: Sequence[Checkpoint], reward: Reward) -> Floats:
    """(K, P) rewards of K checkpoints, columns by sorted prompt id, NaN where missing or not finite."""
    rows = [c.gold if reward == "gold" else c.proxy for c in checkpoints]
    prompts = sorted({prompt for row in rows for prompt in row})
    values = np.array([[row.get(prompt, math.nan) for prompt in prompts] for row in rows], dtype=float)
    return np.where(np.isfinite(values), values, np.nan).reshape(len(rows), len(prompts))


def gains(checkpoints: Sequence[Checkpoint], reward: Reward) -> Floats:
    """(K, P) rewards less those of the first checkpoint on the same prompt, NaN where either is missing.

    Raises:
        ValueError: the first is not the model the run began from (sqrt_kl 0), or there is none.
    """
    if not checkpoints or checkpoints[0].sqrt_kl != 0:
        raise ValueError("the first checkpoint has to be the model the run began from, with sqrt_kl 0")
    values = rewards(checkpoints, reward)
    return values - values[0]


def parents(names: Sequence[str], given: Sequence[str | None]) -> list[int | None]:
    """Index of the model that each went on from, in the order of training; None for the first and where it is not before it.

    Args:
        names: of the models.
        given: name of each one's parent; None = the one before it.
    """
    found: list[int | None] = []
    before: dict[str, int] = {}
    for index, (name, parent) in enumerate(zip(names, given, strict=True)):
        found.append(before.get(parent) if parent is not None else index - 1 if index else None)
        before[name] = index
    return found


def chains(checkpoints: Sequence[Checkpoint]) -> list[list[int]]:
    """Indices from a checkpoint without a parent to each that no other went on from; the last one is in the last chain."""
    origin = _origins(checkpoints)
    found = []
    for end in (index for index in range(len(origin)) if index not in origin):
        path = [end]
        while (before := origin[path[-1]]) is not None:
            path.append(before)
        found.append(path[::-1])
    return found


def _origins(checkpoints: Sequence[Checkpoint]) -> list[int | None]:
    return parents([c.name for c in checkpoints], [c.parent for c in checkpoints])


def _paired(differences: Floats, *, level: float = LEVEL) -> dict[str, Any]:
    """Mean of per-prompt differences (P,) with its interval; `missing` prompts have none."""
    data = differences[np.isfinite(differences)]
    low, high = t_interval(data, level=level)
    mean = float(data.mean()) if data.size else math.nan
    found = {"mean": number(mean), "low": number(low), "high": number(high)}
    return found | {"prompts": int(data.size), "missing": int(differences.size - data.size)}


def _above(estimate: Mapping[str, Any]) -> bool:
    return estimate["low"] is not None and estimate["low"] > 0


def _below(estimate: Mapping[str, Any]) -> bool:
    return estimate["high"] is not None and estimate["high"] < 0


def _shape(form: str, d: Floats) -> Floats:
    """(..., 2) terms that a and b multiply: R = d (a - b d) for best_of_n, R = d (a - b ln d) for rl; both 0 at d = 0."""
    bend = d * d if form == "best_of_n" else d * np.log(np.where(d > 0, d, 1.0))
    return np.stack([d, -bend], axis=-1)


def _peaks(form: str, a: Floats, b: Floats) -> Floats:
    """d* of the highest reward: a / (2b), or exp(a / b - 1); infinite where b is not positive, 0 where R falls at once."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        peaks = np.maximum(a, 0) / (2 * b) if form == "best_of_n" else np.exp(a / b - 1)
    return np.where(b > 0, peaks, np.inf)


def _fit(form: str, d: Floats, reward: Floats, draws: Floats) -> dict[str, Any]:
    """One form fitted to mean gains (K,) at d (K,), and to their resamples (B, K) for its bands."""
    solve = np.linalg.pinv(_shape(form, d))
    (a, b), (draw_a, draw_b) = solve @ reward, solve @ draws.T
    error = reward - _shape(form, d) @ [a, b]
    spread = float(((reward - reward.mean()) ** 2).sum())
    grid = np.linspace(0.0, d.max(), GRID)
    curve, bands = _shape(form, grid) @ [a, b], np.stack([draw_a, draw_b], axis=1) @ _shape(form, grid).T
    bounds = [quantile_interval(band) for band in bands.T]
    return {
        "a": float(a),
        "b": float(b),
        "residual": float(np.sqrt((error**2).mean())),
        "r2": number(1 - float((error**2).sum()) / spread) if spread > 0 else None,
        **_peak(form, (a, b), d, _peaks(form, draw_a, draw_b)),
        "curve": [
            {"d": float(x), "reward": float(y), "low": number(low), "high": number(high)}
            for x, y, (low, high) in zip(grid, curve, bounds, strict=True)
        ],
    }


def _peak(form: str, coefficients: tuple[float, float], d: Floats, draws: Floats) -> dict[str, Any]:
    """`peak`, or None and the reason in `no_peak`."""
    a, b = coefficients
    at, furthest = float(_peaks(form, np.array(a), np.array(b))), FURTHEST * float(d.max())
    if not b > 0:
        return {"peak": None, "no_peak": "the curve does not bend down (b is not positive)"}
    if at <= 0:
        return {"peak": None, "no_peak": "the reward falls from the start"}
    if at > furthest:
        return {"peak": None, "no_peak": f"it would lie beyond {FURTHEST:g} times the largest distance observed"}
    low = high = math.nan
    if len(draws):  # a quantile that is a draw itself, since some may be infinite
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    where = "before" if at < d.min() else "beyond" if at > d.max() else "inside"
    inside = float(((draws >= d.min()) & (draws <= d.max())).mean()) if len(draws) else math.nan
    peak = {"d": at, "reward": float(_shape(form, np.array(at)) @ [a, b]), "where": where, "share_inside": number(inside)}
    return {"peak": peak | {"low": number(low), "high": number(high) if high <= furthest else None}, "no_peak": ""}


def fit_forms(d: ArrayLike, gain: ArrayLike, *, seed: int = 17) -> dict[str, Any]:
    """Least squares of the two forms of Gao et al. (2210.10760), R = d (a - b d) and R = d (a - b ln d), to mean gains.

    `best_of_n` and `rl` have `a`, `b`, `residual` (root mean square), `r2` against the mean of the points, `curve` on a grid
    from 0 to the largest d, and `peak` (`no_peak` says why there is none): d* = a/(2b) with R* = a^2/(4b), or
    d* = exp(a/b - 1) with R* = b d*, `where` it lies against the smallest and largest d > 0 that were observed (before,
    inside, beyond), and the `share_inside` of the resamples' peaks. A resample draws prompts, takes every checkpoint's mean
    gain anew and fits again; bands and the peak's low and high are 95 % of these fits. A `high` of None with a `low` means
    that the data do not bound the peak. The distances are taken as exact.

    Args:
        d: (K,) distances, as `Checkpoint.sqrt_kl`.
        gain: (K, P) per-prompt gains over d = 0, as of `gains`; NaN where missing.

    Returns:
        `best_of_n`, `rl`, `points` used (d > 0 and a gain), `at_zero` (those after the first at d = 0, where the estimate of
        KL was not positive: both forms are 0 there, whatever a and b), `unmeasured` (those with d > 0 or unknown that lack
        either) and, with fewer than three different d, None for both forms and the `reason`.

    Raises:
        ValueError: `gain` is not (K, P).
    """
    distance, values = np.asarray(d, dtype=float), np.asarray(gain, dtype=float)
    if distance.ndim != 1 or values.ndim != 2 or len(values) != len(distance):
        raise ValueError(f"gains of shape {values.shape} at distances of shape {distance.shape}")
    used = (distance > 0) & np.isfinite(values).any(axis=1)
    found: dict[str, Any] = {"points": int(used.sum()), "at_zero": int((distance[1:] == 0).sum())}
    found |= {"unmeasured": int((~used & (distance != 0)).sum()), "reason": ""}
    distance, values = distance[used], values[used]
    if len(np.unique(distance)) < 3:
        return found | {"best_of_n": None, "rl": None, "reason": "fewer than 3 checkpoints at different distances above 0"}
    draws = resampled_means(values.T, seed=seed) if values.shape[1] > 1 else np.empty((0, len(values)))
    draws = draws[np.isfinite(draws).all(axis=1)]
    means = np.nanmean(values, axis=1)
    return found | {form: _fit(form, distance, means, draws) for form in ("best_of_n", "rl")}


def choose_checkpoint(checkpoints: Sequence[Checkpoint], *, bonferroni: bool = True) -> dict[str, Any]:
    """The checkpoint with the highest lower bound of its mean gold gain over the start, the first of `checkpoints`.

    The winner is the best of several, so its own `mean` is optimistic: of k checkpoints that are equally good, the luckiest
    wins. With `bonferroni` the t intervals have the level 1 - 0.05 / k instead of 0.95 (Dunn 1961,
    doi:10.1080/01621459.1961.10482090), so that all k hold at once. The start is chosen where no lower bound is above 0, and
    the earlier one at a tie. A checkpoint with a gold reward on fewer than half of the start's prompts, or on too few for an
    interval, cannot be chosen.

    Returns:
        `chosen` (index), `name`, `reason`, `level`, and `gains`: for each checkpoint but the first `name`, `mean`, `low`,
        `high`, `prompts`, `missing` and `eligible`.

    Raises:
        ValueError: the first checkpoint is not the start.
    """
    values = gains(checkpoints, "gold")
    level = 1 - (1 - LEVEL) / max(1, len(checkpoints) - 1) if bonferroni else LEVEL
    least = int(np.isfinite(values[0]).sum()) / 2
    rows = [{"name": c.name} | _paired(row, level=level) for c, row in zip(checkpoints, values, strict=True)][1:]
    for row in rows:
        row["eligible"] = row["low"] is not None and row["prompts"] >= least
    bounds = [row["low"] if row["eligible"] else -math.inf for row in rows]
    chosen = 1 + int(np.argmax(bounds)) if bounds and max(bounds) > 0 else 0
    reason = "highest lower bound of the gold gain" if chosen else "no checkpoint's gold gain is above 0 beyond its interval"
    return {"chosen": chosen, "name": checkpoints[chosen].name, "reason": reason, "level": level, "gains": rows}


def stop_rule(checkpoints: Sequence[Checkpoint], *, patience: int = 2) -> dict[str, Any]:
    """Where training should have stopped: gold under the best so far, beyond the paired interval, `patience` times in a row.

    The rule runs along each of the `chains`, since a stage may begin before the end of another. Each checkpoint is compared
    with the best before it in its chain, on the prompts that both have. One with a higher mean becomes the best; one that is
    lower but within the 95 % t interval, or that cannot be compared, ends a row of falls.

    Returns:
        Of the chain that ends with the last checkpoint: `end` (its name), `stop` (index, or None), `best` (index of the best
        up to there), and `comparisons`, one for each checkpoint after the chain's first up to the stop: `name`, `best` (name
        of what it was compared with), `mean`, `low`, `high`, `prompts`, `missing` and `below`. `others` has the same of each
        other chain.

    Raises:
        ValueError: no checkpoint, or a patience below 1.
    """
    if not checkpoints or patience < 1:
        raise ValueError(f"{len(checkpoints)} checkpoints and a patience of {patience}")
    values = rewards(checkpoints, "gold")
    *others, last = [_stop(checkpoints, values, chain, patience) for chain in chains(checkpoints)]
    return last | {"others": others}


def _stop(checkpoints: Sequence[Checkpoint], values: Floats, chain: Sequence[int], patience: int) -> dict[str, Any]:
    """`stop_rule` along one chain; `values` are the gold rewards of all checkpoints (K, P)."""
    best, falls, rows = chain[0], 0, []
    end = checkpoints[chain[-1]].name
    for index in chain[1:]:
        row = _paired(values[index] - values[best])
        below = _below(row)
        rows.append({"name": checkpoints[index].name, "best": checkpoints[best].name} | row | {"below": below})
        falls = falls + 1 if below else 0
        if falls == patience:
            return {"end": end, "stop": index, "best": best, "comparisons": rows}
        if row["mean"] is not None and row["mean"] > 0:
            best = index
    return {"end": end, "stop": None, "best": best, "comparisons": rows}


def divergence(checkpoints: Sequence[Checkpoint]) -> list[dict[str, Any]]:
    """Steps of training, from each checkpoint's parent to it, with the paired change of proxy and gold.

    Returns:
        For each step `start` and `end` (names), `proxy` and `gold` (`mean`, `low`, `high`, `prompts`, `missing`) and
        `over_optimized`: the proxy's 95 % t interval is above 0 and the gold's below 0.
    """
    values: dict[str, Floats] = {"proxy": rewards(checkpoints, "proxy"), "gold": rewards(checkpoints, "gold")}
    steps = []
    for index, before in enumerate(_origins(checkpoints)):
        if before is None:
            continue
        proxy, gold = (_paired(of[index] - of[before]) for of in values.values())
        names = {"start": checkpoints[before].name, "end": checkpoints[index].name}
        steps.append(names | {"proxy": proxy, "gold": gold, "over_optimized": _above(proxy) and _below(gold)})
    return steps
