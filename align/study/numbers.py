"""What the runs of a study say together: gains of every arm over seeds, and comparisons of arms with their intervals.

All differences are within a seed and a prompt. Intervals are 95 % of a hierarchical bootstrap: seeds are drawn first, then
the prompts of each drawn seed (Davison and Hinkley 1997, section 3.8), and every seed weighs the same. A few seeds make it
too narrow, so a verdict asks for Student's t over the seeds' means too. What comes out is ready for JSON: None where a
number is undefined.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from align.evaluate.metrics import BOOTSTRAPS, Floats, number, quantile_interval, t_interval
from align.evaluate.overoptimization import Checkpoint, Reward

Measure = Literal["final_gold", "gap"]
# The sign of the difference that speaks for a claim: more gold, or a smaller gap.
CLAIMED = {"final_gold": 1, "gap": -1}
SEED = 17  # of the bootstraps
PERMUTATIONS = 2000


@dataclass(frozen=True, kw_only=True)
class ArmRun:
    """One finished run of an arm.

    Attributes:
        arm, seed: which.
        checkpoints: M0 first, at sqrt_kl 0; `fraction` is of all optimizer steps of the run.
        pairs, steps, tokens: of each stage: pairs trained on, optimizer steps, tokens trained on in all epochs.
        start_digest: of M0's weights, the same in all arms of a seed.
        answers: of each checkpoint, on the held-out prompts: `num_tokens`, `finished` and `repetition`, means over answers.
        reward_right: of the selector and the validator: held-out pairs that they order as gold does, and how many there are.
    """

    arm: str
    seed: int
    checkpoints: tuple[Checkpoint, ...]
    pairs: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    start_digest: str = ""
    answers: tuple[Mapping[str, float], ...] = ()
    reward_right: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def gain(run: ArmRun, index: int, reward: Reward) -> dict[str, float]:
    """A checkpoint's reward less M0's on the same prompt, by prompt id; a prompt that either lacks is left out."""
    first, mine = (getattr(run.checkpoints[k], reward) for k in (0, index))
    return {p: mine[p] - first[p] for p in sorted(set(first) & set(mine))}


def spread(run: ArmRun, reward: Reward) -> float:
    """Standard deviation (ddof 1) of M0's reward over prompts, the unit of standardised gains; NaN where it is 0."""
    values = list(getattr(run.checkpoints[0], reward).values())
    found = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return found if found > 0 else math.nan


def gain_at(run: ArmRun, reward: Reward, distance: float) -> dict[str, float]:
    """A reward's gain over M0, by prompt, interpolated linearly at a distance; gold in its own unit, the proxy in M0's
    standard deviations.

    Args:
        run: the checkpoints with a measured distance are used, in order of it.
        reward: proxy or gold.
        distance: sqrt(KL), in square roots of nats, not beyond the run's largest.
    """
    measured = sorted((c.sqrt_kl, k) for k, c in enumerate(run.checkpoints) if math.isfinite(c.sqrt_kl))
    gains = [gain(run, k, reward) for _, k in measured]
    unit = spread(run, "proxy") if reward == "proxy" else 1.0
    distances = [d for d, _ in measured]
    shared = sorted(set.intersection(*map(set, gains)))
    found = {p: float(np.interp(distance, distances, [of[p] for of in gains])) / unit for p in shared}
    return {p: value for p, value in found.items() if math.isfinite(value)}


def gap_at(run: ArmRun, distance: float) -> dict[str, float]:
    """Proxy gain less gold gain, each in M0's standard deviations, by prompt; arguments as in `gain_at`."""
    proxy, gold, unit = gain_at(run, "proxy", distance), gain_at(run, "gold", distance), spread(run, "gold")
    found = {p: proxy[p] - gold[p] / unit for p in sorted(set(proxy) & set(gold))}
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


def common_distance(first: ArmRun, second: ArmRun) -> float:
    """The largest sqrt(KL) that both runs reached."""
    return min(max(c.sqrt_kl for c in run.checkpoints if math.isfinite(c.sqrt_kl)) for run in (first, second))


def difference(first: ArmRun, second: ArmRun, measure: Measure | Reward) -> list[float]:
    """Per-prompt differences of two runs of one seed, first less second.

    Args:
        first: a run.
        second: another.
        measure: `final_gold` compares the last models, at their own distances; `gap`, `gold` and `proxy` compare at
            `common_distance`.
    """
    if measure == "final_gold":
        sides = [gain(run, -1, "gold") for run in (first, second)]
    else:
        at = common_distance(first, second)
        sides = [gap_at(run, at) if measure == "gap" else gain_at(run, measure, at) for run in (first, second)]
    return [sides[0][p] - sides[1][p] for p in sorted(set(sides[0]) & set(sides[1]))]


def verdict(estimate: Mapping[str, Any], measure: Measure) -> str:
    """supported or contradicted where both intervals lie wholly on one side of 0.

    Args:
        estimate: `low` and `high` of the bootstrap, `t_low` and `t_high` of the seeds' means.
        measure: which side speaks for the claim.
    """
    edges = [estimate[key] for key in ("low", "high", "t_low", "t_high")]
    if None in edges:
        return "not decided"
    low, *_, high = sorted(CLAIMED[measure] * edge for edge in edges)
    return "supported" if low > 0 else "contradicted" if high < 0 else "not decided"


def compare(runs: Sequence[ArmRun], first: str, second: str, measure: Measure, *, seed: int = SEED) -> dict[str, Any]:
    """Two arms over the seeds that both have.

    Returns:
        `mean`, `low`, `high`, `seeds`, `prompts` (see `over_seeds`), `of_seeds` (seed -> mean difference), `t_low`, `t_high`
        (of these), `verdict`, `final_distances` (of first and second, means over seeds), `equal_distance` (`distance`, the
        mean of `common_distance`, and the differences there: `gold` in its own unit, `proxy` in M0's standard deviations),
        and `missing`: the arms without a finished run in any seed.
    """
    by_seed: dict[int, dict[str, ArmRun]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, {})[run.arm] = run
    both = {s: of for s, of in sorted(by_seed.items()) if first in of and second in of}
    sides = [(of[first], of[second]) for of in both.values()]
    found = dict(zip(both, (difference(*of, measure) for of in sides), strict=True))
    of_seeds = {str(s): float(np.mean(values)) for s, values in found.items() if values}
    estimate = over_seeds(list(found.values()), seed=seed)
    estimate["t_low"], estimate["t_high"] = map(number, t_interval(list(of_seeds.values())))
    equal = {reward: over_seeds([difference(*of, reward) for of in sides], seed=seed) for reward in ("gold", "proxy")}
    return estimate | {
        "of_seeds": of_seeds,
        "verdict": verdict(estimate, measure),
        "final_distances": [_mean([of[k].checkpoints[-1].sqrt_kl for of in sides]) for k in (0, 1)],
        "equal_distance": {"distance": _mean([common_distance(*of) for of in sides]), **equal},
        "missing": [name for name in (first, second) if not any(run.arm == name for run in runs)],
    }


def _mean(values: Sequence[float]) -> float | None:
    known = [v for v in values if math.isfinite(v)]
    return number(float(np.mean(known))) if known else None


def _standardised(runs: Sequence[ArmRun], index: int, reward: Reward, seed: int) -> dict[str, Any]:
    """The gain at a checkpoint in M0's standard deviations; a seed whose M0 has no spread is left out."""
    units = [(run, unit) for run in runs if math.isfinite(unit := spread(run, reward))]
    return over_seeds([np.array(list(gain(run, index, reward).values())) / unit for run, unit in units], seed=seed)


def fall_from_peak(runs: Sequence[ArmRun], *, seed: int = SEED) -> dict[str, Any]:
    """How far gold lies under its best checkpoint at the end, and whether that is more than chance.

    The best of several noisy means lies above the last one also where nothing happens. So checkpoints after M0 are exchanged
    at random within each prompt (`PERMUTATIONS` times), which keeps everything but their order.

    Returns:
        `mean` (over runs), `by_chance` (its mean over permutations) and `p` (share of permutations that fall as far or
        farther, with one added).
    """
    rng = np.random.default_rng(seed)
    observed, drawn = 0.0, np.zeros(PERMUTATIONS)
    for run in runs:
        gains = [gain(run, k, "gold") for k in range(1, len(run.checkpoints))]
        shared = sorted(set.intersection(*map(set, gains)))
        if not shared:
            return {"mean": None, "by_chance": None, "p": None}
        table = np.array([[of[p] for of in gains] for p in shared])
        mixed = np.array([rng.permuted(table, axis=1).mean(axis=0) for _ in range(PERMUTATIONS)])
        observed += float(table.mean(axis=0).max() - table.mean(axis=0)[-1]) / len(runs)
        drawn += (mixed.max(axis=1) - mixed[:, -1]) / len(runs)
    as_far = int((drawn >= observed - 1e-12).sum())
    return {"mean": observed, "by_chance": float(drawn.mean()), "p": (1 + as_far) / (1 + PERMUTATIONS)}


def summarize_arm(runs: Sequence[ArmRun], *, seed: int = SEED) -> dict[str, Any]:
    """What the finished runs of one arm say.

    Returns:
        `seeds`, `prompts`, `pairs` (of every run, by stage), `steps`, `tokens` (means of the runs' totals), `distance` (mean
        final sqrt(KL)), `final_gold` and `start_gold` in gold's own units and `final_proxy` in M0's standard deviations
        (`over_seeds`), `fall` (`fall_from_peak`), `answers` (of M0 and of the last model, means over runs), and `curve`: for
        each checkpoint `fraction`, `distance`, `gold` and `proxy`, both in M0's standard deviations.

    Raises:
        ValueError: no run, or runs with different numbers of checkpoints.
    """
    if not runs or len({len(run.checkpoints) for run in runs}) > 1:
        raise ValueError("an arm needs runs, all with the same number of checkpoints")
    count = len(runs[0].checkpoints)
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
        "pairs": [list(run.pairs) for run in runs],
        **{name: _mean([float(sum(getattr(run, name))) for run in runs]) for name in ("steps", "tokens")},
        "distance": curve[-1]["distance"],
        "start_gold": over_seeds([list(run.checkpoints[0].gold.values()) for run in runs], seed=seed),
        "final_gold": over_seeds(last, seed=seed),
        "final_proxy": curve[-1]["proxy"],
        "fall": fall_from_peak(runs, seed=seed),
        "answers": [{name: _mean([run.answers[k][name] for run in runs]) for name in runs[0].answers[k]} for k in (0, -1)],
        "curve": curve,
    }


def same_start(runs: Sequence[ArmRun]) -> bool:
    """Whether all arms of each seed began from the same M0."""
    digests: dict[int, set[str]] = {}
    for run in runs:
        digests.setdefault(run.seed, set()).add(run.start_digest)
    return all(len(of) == 1 for of in digests.values())
