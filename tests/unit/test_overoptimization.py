"""The over-optimization meter: planted curves are found again, and series made by hand are stopped where they should be."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from align.evaluate.overoptimization import (
    Checkpoint,
    chains,
    choose_checkpoint,
    divergence,
    fit_forms,
    gains,
    rewards,
    stop_rule,
)

NAN = float("nan")


def checkpoint(
    index: int, gold: Any, proxy: Any = None, *, sqrt_kl: float | None = None, parent: str | None = None
) -> Checkpoint:
    def by_prompt(values: Any) -> dict[str, float]:
        return {f"p{i:03}": float(v) for i, v in enumerate(values)}

    return Checkpoint(
        name=f"c{index}", stage="dpo", step=10 * index, fraction=index / 10,
        sqrt_kl=float(index) if sqrt_kl is None else sqrt_kl,
        gold=by_prompt(gold), proxy=by_prompt(gold if proxy is None else proxy), parent=parent,
    )  # fmt: skip


def run(means: list[float], noise: float = 0.2, prompts: int = 200, seed: int = 0) -> list[Checkpoint]:
    """A series with exactly these mean gold gains; prompts differ a lot, a prompt's checkpoints little."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0, 3, prompts)
    changes = rng.normal(0, noise, (len(means), prompts))
    changes -= changes.mean(axis=1, keepdims=True)
    return [checkpoint(i, level + mean + change) for i, (mean, change) in enumerate(zip(means, changes, strict=True))]


D = np.array([0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0])


def planted(form: str, a: float, b: float, noise: float, prompts: int = 150, seed: int = 1) -> np.ndarray:
    curve = D * (a - b * (D if form == "best_of_n" else np.log(np.maximum(D, 1e-9))))
    return curve[:, None] + np.random.default_rng(seed).normal(0, noise, (len(D), prompts)) * (D > 0)[:, None]


@pytest.mark.parametrize(("form", "a", "b"), [("best_of_n", 1.2, 0.15), ("rl", 0.9, 0.5)])
def test_fit_finds_planted_coefficients_and_the_peak(form: str, a: float, b: float) -> None:
    exact = fit_forms(D, planted(form, a, b, 0.0))[form]
    assert (exact["a"], exact["b"]) == (pytest.approx(a), pytest.approx(b))
    assert exact["residual"] == pytest.approx(0, abs=1e-9) and exact["r2"] == pytest.approx(1)
    at, best = (a / (2 * b), a * a / (4 * b)) if form == "best_of_n" else (math.exp(a / b - 1), b * math.exp(a / b - 1))
    assert (exact["peak"]["d"], exact["peak"]["reward"]) == (pytest.approx(at), pytest.approx(best))
    assert (exact["peak"]["where"], exact["peak"]["share_inside"], exact["no_peak"]) == ("inside", 1.0, "")
    curve = exact["curve"]
    assert (curve[0]["d"], curve[0]["reward"], curve[-1]["d"]) == (0.0, 0.0, 6.0)
    highest = max(curve, key=lambda point: point["reward"])
    assert highest["d"] == pytest.approx(at, abs=6 / 50) and highest["reward"] <= best + 1e-9
    noisy = fit_forms(D, planted(form, a, b, 1.0))
    assert noisy[form]["peak"]["low"] < at < noisy[form]["peak"]["high"]
    assert all(p["low"] <= p["reward"] <= p["high"] for p in noisy[form]["curve"])
    other = noisy["rl" if form == "best_of_n" else "best_of_n"]
    assert other["residual"] > 2 * noisy[form]["residual"] and other["r2"] < noisy[form]["r2"]


def test_bands_cover_the_planted_curve_as_often_as_they_say() -> None:
    covered, widths, at = 0, [], D.max() * 33 / 50
    for seed in range(60):
        curve = fit_forms(D, planted("best_of_n", 1.2, 0.15, 2.0, prompts=60, seed=seed), seed=seed)["best_of_n"]["curve"]
        point = curve[33]
        covered += point["low"] <= at * (1.2 - 0.15 * at) <= point["high"]
        widths.append(point["high"] - point["low"])
    assert point["d"] == pytest.approx(at) and 0.88 <= covered / 60 < 1
    # Least squares by hand: the fitted height is a sum of the points' means, each with noise 2 / sqrt(60).
    d = D[D > 0]
    lever = np.array([at, -at * at]) @ np.linalg.pinv(np.stack([d, -d * d], axis=1))
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 2 / math.sqrt(60) * np.linalg.norm(lever), rel=0.04)


def test_bands_resample_prompts_and_not_points() -> None:
    """A level that all checkpoints of a prompt share moves the whole curve: bands as wide as that level's mean is unsure."""
    level = np.random.default_rng(5).normal(0, 1, 100)
    gain = np.outer(D, level) + D[:, None]
    fit = fit_forms(D, gain)["best_of_n"]
    last = fit["curve"][-1]
    assert (last["high"] - last["low"]) / 6 == pytest.approx(2 * 1.96 * level.std() / 10, rel=0.15)


@pytest.mark.parametrize(
    ("curve", "reason"),
    [(D * (1.0 + 0.1 * D), "does not bend"), (D * (-1.0 - 0.1 * D), "falls from"), (D * (1.0 - 0.001 * D), "beyond 3")],
)
def test_no_peak_where_it_makes_no_sense(curve: np.ndarray, reason: str) -> None:
    fit = fit_forms(D, np.tile(curve[:, None], (1, 5)))["best_of_n"]
    assert fit["peak"] is None and reason in fit["no_peak"]


@pytest.mark.filterwarnings("error")
def test_peak_outside_the_observed_range_says_so() -> None:
    beyond = fit_forms(D, np.tile((D * (1.0 - 0.05 * D))[:, None], (1, 5)))["best_of_n"]["peak"]
    assert (beyond["d"], beyond["where"], beyond["share_inside"]) == (pytest.approx(10.0), "beyond", 0.0)
    before = fit_forms(D[2:], np.tile((D * (0.5 - 0.4 * D))[2:, None], (1, 5)))["best_of_n"]["peak"]
    assert (before["d"], before["where"]) == (pytest.approx(0.625), "before")
    # Still rising in many resamples: the data do not bound the peak from above.
    unsure = fit_forms(D, planted("best_of_n", 1.0, 0.06, 8.0, prompts=40))["best_of_n"]["peak"]
    assert unsure is not None and unsure["low"] is not None and unsure["high"] is None and unsure["share_inside"] < 1
    # All resamples bend down, but some so little that their peaks are far out of what was seen.
    far = fit_forms(D, planted("rl", 1.0, 0.5, 3.0, prompts=60))["rl"]["peak"]
    assert far["low"] < math.e and far["high"] is None


def test_too_few_distances_are_no_fit_but_a_reason() -> None:
    for d in ([0.0, 1.0, 2.0], [0.0, 1.0, 1.0, 2.0], [0.0, 1.0, 2.0, NAN]):
        found = fit_forms(d, np.ones((len(d), 9)))
        assert found["best_of_n"] is None and found["rl"] is None and "fewer than 3" in found["reason"]
    assert fit_forms([0.0, 1.0, 2.0, 3.0], np.ones((4, 9)))["best_of_n"] is not None
    missing = fit_forms(D, np.where((D == 1)[:, None], NAN, planted("rl", 0.9, 0.5, 0.0)))
    assert (missing["points"], missing["unmeasured"], missing["reason"]) == (5, 1, "")
    assert missing["rl"]["a"] == pytest.approx(0.9)
    assert fit_forms([0.0, NAN, 1, 2, 3], np.ones((5, 4)))["unmeasured"] == 1
    clipped = fit_forms([0.0, 0.0, 1, 2, 3, 0.0], np.ones((6, 4)))
    assert (clipped["points"], clipped["at_zero"], clipped["unmeasured"]) == (3, 2, 0), "the start itself is not counted"
    assert missing["at_zero"] == 0
    assert fit_forms([], np.empty((0, 0)))["points"] == 0
    with pytest.raises(ValueError, match="gains of shape"):
        fit_forms([0.0, 1.0], [[1.0]])
    single = fit_forms(D, planted("best_of_n", 1.2, 0.15, 0.0, prompts=1))["best_of_n"]
    assert single["a"] == pytest.approx(1.2) and single["curve"][3]["low"] is None and single["peak"]["low"] is None


def test_missing_rewards_do_not_bend_the_fit() -> None:
    gain = planted("best_of_n", 1.2, 0.15, 0.0)
    gain[3, :75] = NAN
    assert fit_forms(D, gain)["best_of_n"]["b"] == pytest.approx(0.15)


def test_rewards_are_aligned_by_prompt_id() -> None:
    first = Checkpoint(name="a", stage="", step=0, fraction=0, sqrt_kl=0, gold={"y": 1.0, "x": 2.0}, proxy={})
    second = Checkpoint(name="b", stage="", step=1, fraction=1, sqrt_kl=1, gold={"x": 5.0, "z": math.inf}, proxy={"x": 1.0})
    assert np.array_equal(rewards([first, second], "gold"), [[2.0, 1.0, NAN], [5.0, NAN, NAN]], equal_nan=True)
    assert np.array_equal(gains([first, second], "gold"), [[0.0, 0.0, NAN], [3.0, NAN, NAN]], equal_nan=True)
    assert np.isnan(gains([first, second], "proxy")).all()
    for wrong in ([], [second]):
        with pytest.raises(ValueError, match="began from"):
            gains(wrong, "gold")
    with pytest.raises(ValueError, match="sqrt_kl is -1"):
        checkpoint(1, [1.0], sqrt_kl=-1.0)


def test_chosen_checkpoint_has_the_best_lower_bound() -> None:
    found = choose_checkpoint(run([0.0, 0.3, 0.8, 0.4]))
    assert (found["chosen"], found["name"]) == (2, "c2")
    assert [row["name"] for row in found["gains"]] == ["c1", "c2", "c3"] and found["gains"][1]["prompts"] == 200
    best = found["gains"][1]
    assert best["low"] < 0.8 < best["high"] and best["high"] - best["low"] < 0.2, "paired: prompts differ by 3"
    # The higher mean, but far less sure, loses to the lower bound.
    rng = np.random.default_rng(7)
    sure, unsure = 0.5 + rng.normal(0, 0.05, 100), 0.7 + rng.normal(0, 3.0, 100)
    assert choose_checkpoint([checkpoint(0, np.zeros(100)), checkpoint(1, unsure), checkpoint(2, sure)])["chosen"] == 2
    same = checkpoint(1, np.ones(9))
    assert choose_checkpoint([checkpoint(0, np.zeros(9)), same, same])["chosen"] == 1, "the earlier one at a tie"


def test_start_is_chosen_where_nothing_is_above_it() -> None:
    for series in (run([0.0, -0.5, -0.1]), run([0.0]), [checkpoint(0, [1.0] * 5), checkpoint(1, [1.0] * 5)]):
        found = choose_checkpoint(series)
        assert (found["chosen"], found["name"]) == (0, "c0") and "no checkpoint" in found["reason"]
    few = checkpoint(1, [9.0, 9.0, NAN, NAN, NAN])
    found = choose_checkpoint([checkpoint(0, [0.0] * 5), few])
    assert found["chosen"] == 0 and not found["gains"][0]["eligible"] and found["gains"][0]["missing"] == 3


def test_bonferroni_keeps_luck_from_winning() -> None:
    chosen = {True: 0, False: 0}
    for seed in range(40):  # 10 checkpoints that are all as good as the start
        series = [checkpoint(i, gold) for i, gold in enumerate(np.random.default_rng(seed).normal(size=(11, 60)))]
        for bonferroni in chosen:
            chosen[bonferroni] += choose_checkpoint(series, bonferroni=bonferroni)["chosen"] > 0
    assert chosen[True] <= 5 < chosen[False]
    assert choose_checkpoint(series)["level"] == pytest.approx(1 - 0.05 / 10)


@pytest.mark.parametrize("prompts", [2, 4, 8, 12, 24, 60])
def test_luck_decides_no_more_often_than_the_level_says(prompts: int) -> None:
    """Four checkpoints that equal the start: 2.5 % of runs may choose one, or see gold fall on the first step.

    A percentile bootstrap chooses in 52, 23, 8, 6, 4 and 4 % of them and sees a fall in 27, 10, 6, 5, 3 and 3 %.
    """
    rng, runs, chosen, fallen, stopped = np.random.default_rng(prompts), 1000, 0, 0, 0
    for _ in range(runs):
        series = [checkpoint(i, gold) for i, gold in enumerate(rng.normal(size=(5, prompts)))]
        chosen += choose_checkpoint(series)["chosen"] > 0
        found = stop_rule(series)
        fallen += found["comparisons"][0]["below"]
        stopped += found["stop"] is not None
    room = 2.5 * math.sqrt(0.025 * 0.975 / runs)
    assert max(chosen, fallen, stopped) / runs <= 0.025 + room
    assert fallen / runs >= 0.025 - room, "and no less often, or it would see too little"


def test_two_prompts_decide_nothing_that_is_not_far_beyond_their_spread() -> None:
    zeros = checkpoint(0, [0.0, 0.0])
    assert choose_checkpoint([zeros, checkpoint(1, [0.01, 0.02])])["chosen"] == 0
    assert not divergence([zeros, checkpoint(1, [-0.01, -0.02], [0.01, 0.02])])[0]["over_optimized"]
    falling = [zeros, checkpoint(1, [-0.01, -0.02]), checkpoint(2, [-0.02, -0.03])]
    assert stop_rule(falling)["stop"] is None
    assert choose_checkpoint([zeros, checkpoint(1, [5.0, 5.1])])["chosen"] == 1


def test_gains_that_are_all_the_same_decide_where_a_sign_test_would() -> None:
    def chosen(prompts: int, others: int) -> dict[str, Any]:
        return choose_checkpoint([checkpoint(k, [float(k > 0)] * prompts) for k in range(others + 1)])

    assert [chosen(prompts, 1)["chosen"] for prompts in (2, 5, 6)] == [0, 0, 1], "2^(1-6) is at most 0.05"
    assert [chosen(prompts, 4)["chosen"] for prompts in (7, 8)] == [0, 1], "and 2^(1-8) at most 0.05 / 4"
    few = chosen(5, 1)["gains"][0]
    assert (few["mean"], few["low"], few["high"], few["eligible"]) == (1.0, None, None, False)


def test_a_branch_is_compared_along_its_own_chain() -> None:
    """M2 begins from M1@1: it falls once from there, though M1 fell before it in the order of training."""
    rng = np.random.default_rng(3)
    level = rng.normal(0, 3, 60)

    def at(index: int, gold: float, proxy: float, parent: str | None = None) -> Checkpoint:
        return checkpoint(
            index, level + gold + rng.normal(0, 0.05, 60), level + proxy + rng.normal(0, 0.05, 60), parent=parent
        )

    golds = [(0.0, 0.0), (0.5, 0.5), (0.3, 0.7), (0.2, 0.6)]
    line = [at(k, *values) for k, values in enumerate(golds)]
    branch = [*line[:3], replace(line[3], parent="c1")]
    assert chains(line) == [[0, 1, 2, 3]] and chains(branch) == [[0, 1, 2], [0, 1, 3]]
    assert stop_rule(line)["stop"] == 3 and stop_rule(line)["others"] == []
    found = stop_rule(branch)
    assert (found["end"], found["stop"], found["best"]) == ("c3", None, 1)
    assert [(r["name"], r["best"], r["below"]) for r in found["comparisons"]] == [("c1", "c0", False), ("c3", "c1", True)]
    assert [(one["end"], one["stop"]) for one in found["others"]] == [("c2", None)]
    steps = divergence(branch)
    assert [(s["start"], s["end"]) for s in steps] == [("c0", "c1"), ("c1", "c2"), ("c1", "c3")]
    assert [s["over_optimized"] for s in steps] == [False, True, True]
    assert steps[2]["proxy"]["mean"] == pytest.approx(0.1, abs=0.05), "from c1, not from c2, where it would be -0.1"


def test_each_chain_stops_by_itself() -> None:
    series = run([0.0, 1.0, 0.6, 0.5, 1.2])
    found = stop_rule([*series[:4], replace(series[4], parent="c1")])
    assert (found["end"], found["stop"], found["best"]) == ("c4", None, 4)
    assert [(one["end"], one["stop"], one["best"]) for one in found["others"]] == [("c3", 3, 1)]
    # A model from outside the chain is no step of this training, and its own chain begins with what came of it.
    outside = [*series[:2], replace(series[2], parent="base"), series[3]]
    assert chains(outside) == [[0, 1], [2, 3]] and [s["end"] for s in divergence(outside)] == ["c1", "c3"]
    assert choose_checkpoint(outside)["name"] == "c1", "all are compared with the start"


def test_stop_after_two_falls_in_a_row() -> None:
    found = stop_rule(run([0.0, 0.5, 1.0, 0.7, 0.6, 0.2]))
    assert (found["stop"], found["best"]) == (4, 2)
    assert [(r["name"], r["best"], r["below"]) for r in found["comparisons"]] == [
        ("c1", "c0", False), ("c2", "c1", False), ("c3", "c2", True), ("c4", "c2", True),
    ]  # fmt: skip
    assert stop_rule(run([0.0, 0.5, 1.0, 0.7, 0.6, 0.2]), patience=1)["stop"] == 3
    assert stop_rule(run([0.0, 0.5, 1.0, 0.7, 0.6, 0.2]), patience=4)["stop"] is None


def test_a_recovery_or_a_fall_within_the_interval_breaks_the_row() -> None:
    recovered = stop_rule(run([0.0, 1.0, 0.5, 1.5, 0.9, 1.6]))
    assert (recovered["stop"], recovered["best"]) == (None, 5)
    between = stop_rule(run([0.0, 1.0, 0.5, 0.98, 0.5, 0.98], noise=0.4))
    assert (between["stop"], between["best"]) == (None, 1)
    assert [row["below"] for row in between["comparisons"]] == [False, True, False, True, False]
    assert stop_rule(run([0.0, -0.5, -0.6]))["stop"] == 2 and stop_rule(run([0.0, -0.5, -0.6]))["best"] == 0
    slow = stop_rule(run([0.0, 0.02, 0.04, 0.06], noise=1.0))
    assert slow["best"] == 3 and all(row["low"] < 0 for row in slow["comparisons"]), "the best is the highest mean"
    noisy = stop_rule(run([0.0, -0.05, -0.05, -0.05], noise=3.0))
    assert noisy["stop"] is None and not any(row["below"] for row in noisy["comparisons"])


def test_stop_rule_without_data_does_not_stop() -> None:
    empty = [checkpoint(0, [1.0, 2.0]), checkpoint(1, [NAN, NAN]), checkpoint(2, [NAN, NAN])]
    found = stop_rule(empty)
    assert (found["stop"], found["best"]) == (None, 0) and found["comparisons"][0]["mean"] is None
    for series, patience in (([], 2), (empty, 0)):
        with pytest.raises(ValueError, match="patience"):
            stop_rule(series, patience=patience)


def test_divergence_flags_only_where_proxy_rises_and_gold_falls() -> None:
    golds, proxies = [0.0, 0.5, 0.5, 0.1, -0.3], [0.0, 0.6, 1.0, 1.4, 1.4]
    rng = np.random.default_rng(11)
    level = rng.normal(0, 3, 150)
    series = [
        checkpoint(i, level + g + rng.normal(0, 0.2, 150), level + p + rng.normal(0, 0.2, 150))
        for i, (g, p) in enumerate(zip(golds, proxies, strict=True))
    ]
    steps = divergence(series)
    assert [(s["start"], s["end"]) for s in steps] == [("c0", "c1"), ("c1", "c2"), ("c2", "c3"), ("c3", "c4")]
    assert [s["over_optimized"] for s in steps] == [False, False, True, False]
    assert steps[2]["gold"]["low"] < -0.4 < steps[2]["gold"]["high"] < 0 < steps[2]["proxy"]["low"]
    assert steps[2]["gold"]["prompts"] == 150
    assert divergence([]) == [] == divergence(series[:1])


def test_results_are_ready_for_json_and_do_not_depend_on_the_order_of_prompts() -> None:
    series = run([0.0, 0.5, 0.2, 0.1])
    series[2] = checkpoint(2, [NAN] * 200)
    turned = [
        Checkpoint(
            name=c.name, stage=c.stage, step=c.step, fraction=c.fraction, sqrt_kl=c.sqrt_kl,
            gold=dict(reversed(c.gold.items())), proxy=dict(reversed(c.proxy.items())),
        )
        for c in series
    ]  # fmt: skip
    d = [c.sqrt_kl for c in series]

    def everything(of: list[Checkpoint]) -> list[Any]:
        return [choose_checkpoint(of), stop_rule(of), divergence(of), fit_forms(d, gains(of, "gold"))]

    assert json.dumps(everything(series), allow_nan=False) == json.dumps(everything(turned), allow_nan=False)
