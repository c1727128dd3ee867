"""What the runs of a study say together: gains of every arm over seeds, and comparisons of arms with their intervals.

All differences are within a seed and a prompt. Intervals are 95 % of a hierarchical bootstrap: seeds are drawn first, then
the prompts of each drawn seed (Davison and Hinkley 1997, section 3.8), and every seed weighs the same. What comes out is
ready for JSON: None where a number is undefined.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from align.evaluate.metrics import BOOTSTRAPS, Floats, number, quantile_interval
from align.evaluate.overoptimization import Checkpoint, Reward

Measure = Literal["final_gold", "gap"]
# The sign of the difference that speaks for a claim: more gold, or a smaller gap.
CLAIMED = {"final_gold": 1, "gap": -1}
SEED = 17  # of the bootstraps


@dataclass(frozen=True, kw_only=True)
class ArmRun:
    """One finished run of an arm.

    Attributes:
        arm, seed: which.
        checkpoints: M0 first, at sqrt_kl 0; `fraction` is of all optimizer steps of the run.
        pairs, steps, tokens: of each stage: pairs trained on, optimizer steps, tokens trained on in all epochs.
        start_digest: of M0's weights, the same in all arms of a seed.
        seconds: of the call that finished the run; what it took over or an earlier call did is not in it.
        reward_accuracy: of the selector and the validator on held-out noisy labels.
    """

    arm: str
    seed: int
    checkpoints: tuple[Checkpoint, ...]
    pairs: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    start_digest: str = ""
    seconds: float = 0.0
    reward_accuracy: Mapping[str, float] = field(default_factory=dict)


def gain(run: ArmRun, index: int, reward: Reward) -> dict[str, float]:
    """A checkpoint's reward less M0's on the same prompt, by prompt id; a prompt that either lacks is left out."""
    first, mine = (getattr(run.checkpoints[k], reward) for k in (0, index))
    return {p: mine[p] - first[p] for p in sorted(set(first) & set(mine))}


def spread(run: ArmRun, reward: Reward) -> float:
    """Standard deviation (ddof 1) of M0's reward over prompts, the unit of standardised gains; NaN where it is 0."""
    values = list(getattr(run.checkpoints[0], reward).values())
    found = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return found if found > 0 else math.nan


def gap_at(run: ArmRun, distance: float) -> dict[str, float]:
    """Proxy gain less gold gain, each in M0's standard deviations, by prompt, interpolated linearly at a distance.

    Args:
        run: the checkpoints with a measured distance are used, in order of it.
        distance: sqrt(KL) in nats, not beyond the run's largest.
    """
    measured = sorted((c.sqrt_kl, k) for k, c in enumerate(run.checkpoints) if math.isfinite(c.sqrt_kl))
    units: dict[Reward, float] = {"proxy": spread(run, "proxy"), "gold": spread(run, "gold")}
    gaps = []
    for _, k in measured:
        proxy, gold = gain(run, k, "proxy"), gain(run, k, "gold")
        gaps.append({p: proxy[p] / units["proxy"] - gold[p] / units["gold"] for p in set(proxy) & set(gold)})
    shared = sorted(set.intersection(*map(set, gaps)))
    distances = [d for d, _ in measured]
    found = {p: float(np.interp(distance, distances, [of[p] for of in gaps])) for p in shared}
    return {p: value for p, value in found.items() if math.isfinite(value)}


def over_seeds(values: Sequence[Sequence[float] | Floats], *, seed: int = SEED) -> dict[str, Any]:
    """Mean of the seeds' means with its hierarchical bootstrap interval; with one seed the interval is over prompts alone.

    Args:
        values: one number per prompt for each seed; a seed without any is left out.
        seed: of the bootstrap.

    Returns:
        mean, low, high, `seeds` and `prompts` (of all seeds together).
    """
    data = [np.asarray(v, dtype=float) for v in values if len(v)]
    found: dict[str, Any] = {"mean": None, "low": None, "high": None, "seeds": len(data), "prompts": sum(map(len, data))}
    if not data:
        return found
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(data), (BOOTSTRAPS, len(data)))
    means = np.empty(picks.shape)
    for k, of_seed in enumerate(data):
        drawn = picks == k
        means[drawn] = of_seed[rng.integers(0, len(of_seed), (int(drawn.sum()), len(of_seed)))].mean(axis=1)
    low, high = quantile_interval(means.mean(axis=1))
    mean = float(np.mean([v.mean() for v in data]))
    if found["prompts"] < 2:
        low = high = math.nan
    return found | {"mean": number(mean), "low": number(low), "high": number(high)}


def difference(first: ArmRun, second: ArmRun, measure: Measure) -> tuple[list[float], float]:
    """Per-prompt differences of two runs of one seed, first less second, and the distance at which they are taken.

    `final_gold` compares the last models, at their own distances (NaN). `gap` compares at the largest distance that both
    runs reached.
    """
    if measure == "final_gold":
        sides, at = [gain(run, -1, "gold") for run in (first, second)], math.nan
    else:
        reached = [[c.sqrt_kl for c in run.checkpoints if math.isfinite(c.sqrt_kl)] for run in (first, second)]
        at = min(max(distances) for distances in reached)
        sides = [gap_at(run, at) for run in (first, second)]
    shared = sorted(set(sides[0]) & set(sides[1]))
    return [sides[0][p] - sides[1][p] for p in shared], at


def verdict(estimate: Mapping[str, Any], measure: Measure) -> str:
    """supported or contradicted where the whole interval lies on one side of 0 and two seeds or more say so."""
    if estimate["low"] is None or estimate["seeds"] < 2:
        return "not decided"
    sign = CLAIMED[measure]
    low, high = sorted(sign * estimate[key] for key in ("low", "high"))
    return "supported" if low > 0 else "contradicted" if high < 0 else "not decided"


def compare(runs: Sequence[ArmRun], first: str, second: str, measure: Measure, *, seed: int = SEED) -> dict[str, Any]:
    """Two arms over the seeds that both have.

    Returns:
        `mean`, `low`, `high`, `seeds`, `prompts` (see `over_seeds`), `of_seeds` (seed -> mean difference), `distance` (mean,
        None for final_gold), `verdict`, and `missing`: the arms without a finished run in any seed.
    """
    by_seed: dict[int, dict[str, ArmRun]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, {})[run.arm] = run
    both = {s: of for s, of in sorted(by_seed.items()) if first in of and second in of}
    found = {s: difference(of[first], of[second], measure) for s, of in both.items()}
    estimate = over_seeds([values for values, _ in found.values()], seed=seed)
    distances = [at for _, at in found.values() if math.isfinite(at)]
    return estimate | {
        "of_seeds": {str(s): float(np.mean(values)) for s, (values, _) in found.items() if values},
        "distance": float(np.mean(distances)) if distances else None,
        "verdict": verdict(estimate, measure),
        "missing": [name for name in (first, second) if not any(run.arm == name for run in runs)],
    }


def _mean(values: Sequence[float]) -> float | None:
    known = [v for v in values if math.isfinite(v)]
    return number(float(np.mean(known))) if known else None


def _standardised(runs: Sequence[ArmRun], index: int, reward: Reward, seed: int) -> dict[str, Any]:
    """The gain at a checkpoint in M0's standard deviations; a seed whose M0 has no spread is left out."""
    units = [(run, unit) for run in runs if math.isfinite(unit := spread(run, reward))]
    return over_seeds([np.array(list(gain(run, index, reward).values())) / unit for run, unit in units], seed=seed)


def summarize_arm(runs: Sequence[ArmRun], *, seed: int = SEED) -> dict[str, Any]:
    """What the finished runs of one arm say.

    Returns:
        `seeds`, `prompts`, `pairs`, `steps`, `tokens`, `seconds` (means of the runs' totals), `distance` (mean final
        sqrt(KL)), `final_gold` and `start_gold` in gold's own units and `final_proxy` in M0's standard deviations
        (`over_seeds`), `peak_gold` (mean over runs of the best checkpoint's mean gain; of several noisy numbers the best, so
        it is too high), `fall` (peak less final), and `curve`: for each checkpoint `fraction`, `distance`, `gold` and
        `proxy`, both in M0's standard deviations.

    Raises:
        ValueError: no run, or runs with different numbers of checkpoints.
    """
    if not runs or len({len(run.checkpoints) for run in runs}) > 1:
        raise ValueError("an arm needs runs, all with the same number of checkpoints")
    count = len(runs[0].checkpoints)
    golds = [[float(np.mean(list(gain(run, k, "gold").values()) or [math.nan])) for k in range(1, count)] for run in runs]
    curve = [
        {
            "fraction": _mean([run.checkpoints[k].fraction for run in runs]),
            "distance": _mean([run.checkpoints[k].sqrt_kl for run in runs]),
            **{reward: _standardised(runs, k, reward, seed) for reward in ("gold", "proxy")},
        }
        for k in range(count)
    ]
    last = [list(gain(run, count - 1, "gold").values()) for run in runs]
    return {
        "seeds": [run.seed for run in runs],
        "prompts": [len(values) for values in last],
        **{name: _mean([float(sum(getattr(run, name))) for run in runs]) for name in ("pairs", "steps", "tokens")},
        "seconds": _mean([run.seconds for run in runs]),
        "distance": curve[-1]["distance"],
        "start_gold": over_seeds([list(run.checkpoints[0].gold.values()) for run in runs], seed=seed),
        "final_gold": over_seeds(last, seed=seed),
        "final_proxy": curve[-1]["proxy"],
        "peak_gold": _mean([max(of) for of in golds]),
        "fall": _mean([max(of) - of[-1] for of in golds]),
        "curve": curve,
    }


def same_start(runs: Sequence[ArmRun]) -> bool:
    """Whether all arms of each seed began from the same M0."""
    digests: dict[int, set[str]] = {}
    for run in runs:
        digests.setdefault(run.seed, set()).add(run.start_digest)
    return all(len(of) == 1 for of in digests.values())
