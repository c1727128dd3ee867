"""Win rates: counts by hand, symmetry, order of rows, the length effect against a simulated truth, Arena-Hard's votes."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from align.core.errors import StepError
from align.evaluate.win_rates import (
    Comparison,
    arena_vote,
    compare_scores,
    compare_win_rates,
    length_controlled_win_rate,
    merge_games,
    win_rate,
)

NAN = float("nan")
EXAMPLES = settings(max_examples=25, deadline=None)


@pytest.fixture
def few_refits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("align.evaluate.win_rates.REFITS", 120)


def row(prompt: int | str, outcome: float, ours: float = NAN, theirs: float = NAN, **changes: object) -> Comparison:
    made = Comparison(
        prompt_id=str(prompt), model="M1", baseline="M0", outcome=outcome, length_model=ours, length_baseline=theirs
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def rows(outcomes: Sequence[float], **changes: object) -> list[Comparison]:
    return [row(i, outcome, **changes) for i, outcome in enumerate(outcomes)]


def swapped(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same games from the baseline's side."""
    return [
        replace(
            c, model=c.baseline, baseline=c.model, outcome=1 - c.outcome,
            length_model=c.length_baseline, length_baseline=c.length_model,
        )
        for c in comparisons
    ]  # fmt: skip


OUTCOMES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, NAN]), min_size=1, max_size=12)


def test_win_rate_by_hand() -> None:
    found = win_rate(rows([1, 1, 1, 1, 1, 1, 1, 0, 0.5, 0.75, NAN]))
    assert {name: found[name] for name in ("model", "baseline", "prompts", "invalid", "wins", "ties", "losses")} == {
        "model": "M1", "baseline": "M0", "prompts": 10, "invalid": 1, "wins": 8, "ties": 1, "losses": 1,
    }  # fmt: skip
    assert found["win_rate"] == pytest.approx(8.25 / 10)
    assert found["p_value"] == pytest.approx(2 * (1 + 9) / 2**9), "9 decided prompts, at most 1 on the rarer side"
    assert found["low"] < 0.825 < found["high"]
    weighted = win_rate([row(0, 1.0, weight=3.0), row(1, 0.0)])
    assert weighted["win_rate"] == 0.75 and weighted["p_value"] == 1.0


def test_win_rate_of_little() -> None:
    assert win_rate([])["win_rate"] is None and win_rate([])["p_value"] is None and win_rate([])["model"] is None
    only_ties = win_rate(rows([0.5, 0.5]))
    assert (only_ties["win_rate"], only_ties["p_value"]) == (0.5, 1.0)
    one = win_rate(rows([1.0, NAN]))
    assert (one["prompts"], one["invalid"], one["low"]) == (1, 1, None)
    assert json.dumps([win_rate([]), only_ties, one, win_rate(rows([NAN]))], allow_nan=False)


@pytest.mark.parametrize(
    ("outcomes", "wins_of"),
    [([1.0] * 3, (3, 3)), ([0.0] * 3, (0, 0)), ([0.5] * 12, (6, 6)), ([0.5] * 3, (1, 2)), ([0.75] * 8, (6, 6))],
)  # fmt: skip
def test_prompts_of_one_outcome_have_the_interval_of_wilson(outcomes: list[float], wins_of: tuple[int, int]) -> None:
    """A resample of three wins is three wins; of an odd number of ties, half a win goes outwards on either side."""
    least, most = (binomtest(won, len(outcomes)).proportion_ci(method="wilson") for won in wins_of)
    found = win_rate(rows(outcomes))
    assert (found["low"], found["high"]) == (pytest.approx(least.low, abs=1e-4), pytest.approx(most.high, abs=1e-4))
    assert found["low"] <= found["win_rate"] <= found["high"] and found["high"] - found["low"] > 0.04


def test_votes_of_one_outcome_count_as_prompts_of_one_weight() -> None:
    heavy = win_rate([row(0, 1.0, weight=6.0), *(row(i, 1.0, weight=2.0) for i in range(1, 4))])
    assert heavy["low"] == win_rate(rows([1.0] * 3))["low"], "(6 + 2 + 2 + 2)^2 / (36 + 4 + 4 + 4) = 3 prompts of 4"


def test_interval_covers_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(0), 0
    for seed in range(100):
        found = win_rate(rows(rng.binomial(1, 0.7, 80).astype(float).tolist()), seed=seed)
        covered += found["low"] <= 0.7 <= found["high"]
    assert 86 <= covered <= 100


@given(OUTCOMES, st.randoms(use_true_random=False))
@EXAMPLES
def test_a_model_and_its_baseline_share_one_win(outcomes: list[float], random: object) -> None:
    ours = rows(outcomes)
    forth, back = win_rate(ours), win_rate(swapped(ours))
    assert (forth["wins"], forth["losses"], forth["ties"]) == (back["losses"], back["wins"], back["ties"])
    assert forth["p_value"] == back["p_value"]
    if forth["prompts"]:
        assert forth["win_rate"] == pytest.approx(1 - back["win_rate"])
    if forth["prompts"] > 1:
        assert forth["low"] == pytest.approx(1 - back["high"]) and forth["high"] == pytest.approx(1 - back["low"])
    shuffled = list(ours)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert win_rate(shuffled) == forth


def test_comparisons_that_do_not_belong_together_are_refused() -> None:
    for wrong, message in (
        ([row(1, 1.0), row(2, 1.0, model="M2")], "different"),
        ([row(1, 1.0), row(1, 0.0)], "twice"),
        ([row(1, 1.0, order="ab"), row(1, 0.0, order="ba")], "merge_games"),
    ):
        for function in (win_rate, length_controlled_win_rate):
            with pytest.raises(ValueError, match=message):
                function(wrong)
    for change in ({"outcome": 1.5}, {"outcome": math.inf}, {"weight": 0.0}, {"weight": NAN}, {"order": "model first"}):
        with pytest.raises(ValueError, match="outcome"):
            replace(row(1, 1.0), **change)  # type: ignore[arg-type]


def test_scores_are_compared_by_prompt() -> None:
    found = compare_scores(
        {"a": 1.0, "b": 2.0, "c": 0.0, "d": math.inf, "e": 1.0}, {"a": 0.5, "b": 2.0, "c": 3.0, "d": 0.0, "f": 1.0},
        model="M1", baseline="M0", lengths={"a": 10, "b": 12}, baseline_lengths={"a": 7},
    )  # fmt: skip
    assert [(c.prompt_id, c.outcome) for c in found if not math.isnan(c.outcome)] == [("a", 1.0), ("b", 0.5), ("c", 0.0)]
    assert [c.prompt_id for c in found if math.isnan(c.outcome)] == ["d", "e", "f"]
    assert (found[0].length_model, found[0].length_baseline) == (10, 7) and math.isnan(found[1].length_baseline)
    assert win_rate(found)["invalid"] == 3


def test_two_games_become_one_outcome() -> None:
    pairs = {"agree": (1, 1), "split": (1, 0), "half": (1, 0.5), "one": (NAN, 0), "none": (NAN, NAN), "flip": (0, 1)}
    games = [row(name, o, order=order) for name, pair in pairs.items() for o, order in zip(pair, ("ab", "ba"), strict=True)]
    games.append(row("lonely", 1.0, 5.0, 4.0, order="ba"))
    merged, counts = merge_games(games[::-1])
    outcomes = {"agree": 1.0, "flip": 0.5, "half": 0.75, "lonely": 1.0, "one": 0.0, "split": 0.5}
    assert {c.prompt_id: c.outcome for c in merged} == outcomes
    assert {c.prompt_id: c.order for c in merged} == {**dict.fromkeys(outcomes, ""), "lonely": "ba", "one": "ba"}
    assert counts == {
        "prompts": 7, "both": 4, "single": 2, "left_out": 1, "failed": ["none"], "invalid_games": 3,
        "contradictory": 2, "inconsistency": 0.5,
    }  # fmt: skip
    assert win_rate(merged)["prompts"] == 6
    assert merge_games([])[1]["inconsistency"] is None
    for wrong, message in (
        ([row(1, 1.0)], "order"),
        ([row(1, 1.0, order="ab"), row(1, 0.0, order="ab")], "twice"),
        ([row(1, 1.0, order="ab", weight=3.0), row(1, 0.0, order="ba")], "weights"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_games(wrong)


def test_paired_difference_of_two_models() -> None:
    first = [*rows([1, 1, 1, 1, 1, 0.5, NAN]), row("x", 1.0)]
    second = [*rows([0, 0, 0, 0, 0, 0.5, 1], model="M2"), row("y", 1.0, model="M2")]
    found = compare_win_rates(first[::-1], second)
    assert (found["model"], found["against"], found["baseline"]) == ("M1", "M2", "M0")
    assert (found["prompts"], found["left_out"], found["difference"]) == (6, 3, pytest.approx(5 / 6))
    assert found["p_value"] == pytest.approx(2 / 2**5), "exact: 5 prompts differ, all in one direction"
    assert found["low"] < 5 / 6 < found["high"] <= 1
    back = compare_win_rates(second, first)
    assert (back["difference"], back["p_value"]) == (pytest.approx(-5 / 6), found["p_value"])
    assert back["low"] == pytest.approx(-found["high"])
    none = compare_win_rates(rows([1.0]), [row("z", 1.0, model="M2")])
    assert none["prompts"] == 0 and none["difference"] is None and none["p_value"] is None
    assert json.dumps([found, none, compare_win_rates([], [])], allow_nan=False)
    with pytest.raises(ValueError, match="different baselines"):
        compare_win_rates(first, rows([1.0], baseline="M9"))


def test_pairing_finds_what_two_separate_rates_hide() -> None:
    rng = np.random.default_rng(2)
    second = rng.binomial(1, 0.5, 300).astype(float)
    first = np.where(rng.random(300) < 0.06, 1.0, second)  # better on a few prompts, equal on all others
    ours, theirs = rows(first.tolist()), rows(second.tolist(), model="M2")
    found = compare_win_rates(ours, theirs)
    assert found["low"] > 0 and found["p_value"] < 0.01
    assert win_rate(ours)["low"] < win_rate(theirs)["high"], "the intervals of the two rates overlap"
    same = compare_win_rates(ours, rows(first.tolist(), model="M2"))
    assert same["p_value"] == 1.0 and same["low"] == same["high"] == 0.0


def biased(theta: float, phi: float, shift: float, prompts: int = 800, seed: int = 0) -> list[Comparison]:
    """Outcomes drawn from the model of AlpacaEval 2, with answers that are `shift` standard deviations longer."""
    rng = np.random.default_rng(seed)
    gap = rng.normal(shift, 1.0, prompts) * 100
    chance = 1 / (1 + np.exp(-(theta + phi * np.tanh(gap / gap.std(ddof=1)))))
    won = rng.binomial(1, chance).astype(float)
    return [row(i, w, 300 + g, 300.0) for i, (w, g) in enumerate(zip(won, gap, strict=True))]


def test_length_control_recovers_the_rate_that_length_hides() -> None:
    truth = 100 / (1 + math.exp(0.4))  # at equal length the model loses
    games = biased(-0.4, 2.0, 1.0)
    found = length_controlled_win_rate(games)
    assert found["length_controlled"]["low"] < truth < found["length_controlled"]["high"]
    assert found["length_controlled"]["high"] < 50 < found["raw"]["low"], "the raw rate says that it wins"
    assert found["length_effect"] == pytest.approx(2.0, abs=0.5)
    assert "points lower than the raw, " in found["warning"] and found["failed_refits"] == 0
    assert found["raw"]["mean"] == pytest.approx(100 * win_rate(games)["win_rate"])
    assert found["raw"]["low"] == pytest.approx(100 * win_rate(games)["low"])


@pytest.mark.usefixtures("few_refits")
def test_length_control_covers_the_truth_as_often_as_it_says() -> None:
    truth, covered, raw = 100 / (1 + math.exp(-0.3)), 0, 0
    for seed in range(24):
        found = length_controlled_win_rate(biased(0.3, 1.5, 0.8, prompts=300, seed=seed), seed=seed)
        covered += found["length_controlled"]["low"] <= truth <= found["length_controlled"]["high"]
        raw += found["raw"]["low"] <= truth <= found["raw"]["high"]
    assert covered >= 19 and raw <= 2


@pytest.mark.usefixtures("few_refits")
def test_length_control_without_a_length_effect_changes_little() -> None:
    found = length_controlled_win_rate(biased(0.5, 0.0, 0.0, prompts=400))
    assert abs(found["length_controlled"]["mean"] - found["raw"]["mean"]) < 1 and found["warning"] == ""


@pytest.mark.usefixtures("few_refits")
def test_length_control_warns_outside_the_raw_interval() -> None:
    found = length_controlled_win_rate(biased(0.0, 0.5, 0.4, prompts=3000))
    assert abs(found["length_controlled"]["mean"] - found["raw"]["mean"]) < 5
    assert "outside the raw rate's interval" in found["warning"]


@pytest.mark.usefixtures("few_refits")
def test_length_control_does_not_hide_a_fit_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    games, fits = biased(0.2, 1.0, 0.5, prompts=60), []

    def fit(features: np.ndarray, outcomes: np.ndarray, weights: np.ndarray) -> np.ndarray | None:
        fits.append(1)
        return np.array([0.1, 1.0]) if len(fits) % 3 == 1 else None

    monkeypatch.setattr("align.evaluate.win_rates._fit", fit)
    found = length_controlled_win_rate(games)
    assert found["failed_refits"] == 80 and found["length_controlled"]["low"] is not None
    with pytest.raises(StepError, match="M1: the logistic fit did not converge"):
        fits.append(1)
        length_controlled_win_rate(games)


@pytest.mark.usefixtures("few_refits")
def test_equal_length_differences_leave_the_raw_rate() -> None:
    outcomes = [1.0, 0.0, 0.5, 1.0, 0.75, 1.0]
    same = length_controlled_win_rate(rows(outcomes, length_model=50.0, length_baseline=50.0))
    assert same["length_controlled"]["mean"] == pytest.approx(100 * np.mean(outcomes)) == same["raw"]["mean"]
    rng = np.random.default_rng(17)
    rates = [100 * np.array(outcomes)[rng.integers(0, 6, 6)].mean() for _ in range(120)]
    low, high = np.quantile(rates, [0.025, 0.975])
    assert (same["length_controlled"]["low"], same["length_controlled"]["high"]) == pytest.approx((low, high), abs=1e-9)
    assert same["length_effect"] is None
    assert same["warning"] == ""
    always = length_controlled_win_rate(rows(outcomes, length_model=90.0, length_baseline=50.0))
    assert always["length_controlled"]["mean"] == same["raw"]["mean"] and "longer on every prompt" in always["warning"]


@pytest.mark.usefixtures("few_refits")
def test_difficulty_is_averaged_over_prompts() -> None:
    rng = np.random.default_rng(6)
    gamma, gap = rng.normal(0, 2, 1500), rng.normal(100, 100, 1500)
    chance = 1 / (1 + np.exp(-(0.8 + 1.5 * np.tanh(gap / gap.std(ddof=1)) + 1.0 * gamma)))
    won = rng.binomial(1, chance).astype(float)
    games = [row(i, w, 200 + g, 200.0) for i, (w, g) in enumerate(zip(won, gap, strict=True))]
    truth = 100 * float((1 / (1 + np.exp(-(0.8 + gamma)))).mean())
    found = length_controlled_win_rate(games, difficulty={str(i): g for i, g in enumerate(gamma)})
    assert found["length_controlled"]["low"] < truth < found["length_controlled"]["high"]
    assert found["length_effect"] == pytest.approx(1.5, abs=0.4), "without gamma it is shrunk towards 0"
    assert length_controlled_win_rate(games)["length_effect"] < found["length_effect"]
    partly = length_controlled_win_rate(games[:30], difficulty={str(i): gamma[i] for i in range(20)} | {"3": NAN})
    assert (partly["prompts"], partly["left_out"]["no_difficulty"]) == (19, 11)


@pytest.mark.usefixtures("few_refits")
def test_separation_neither_crashes_nor_hangs() -> None:
    gaps = np.linspace(-100, 100, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        longer_wins = length_controlled_win_rate([row(i, float(g > 0), 200 + g, 200.0) for i, g in enumerate(gaps)])
        all_won = length_controlled_win_rate([row(i, 1.0, 200 + g, 200.0) for i, g in enumerate(gaps)])
        all_lost = length_controlled_win_rate([row(i, 0.0, 200 + g, 200.0) for i, g in enumerate(gaps)])
    assert longer_wins["length_controlled"]["mean"] == pytest.approx(50, abs=2) and longer_wins["failed_refits"] == 0
    assert longer_wins["length_controlled"]["low"] < 45 and longer_wins["length_controlled"]["high"] > 55
    assert 4 < longer_wins["length_effect"] < 20, "the ridge keeps it finite"
    assert all_won["length_controlled"] == all_won["raw"] == {"mean": 100.0, "low": pytest.approx(91.24), "high": 100.0}
    assert all_lost["length_controlled"]["mean"] == 0.0 and all_lost["length_effect"] is None


@pytest.mark.usefixtures("few_refits")
def test_length_control_counts_what_it_leaves_out() -> None:
    games = [row("a", 1.0, 10, 12), row("b", NAN, 10, 12), row("c", 1.0, 10), row("d", 0.0, 15, 12), row("e", 1.0)]
    found = length_controlled_win_rate(games)
    assert (found["prompts"], found["left_out"]) == (2, {"invalid": 1, "no_length": 2, "no_difficulty": 0})
    assert found["raw"]["mean"] == 50.0, "over the same prompts"
    none, one = length_controlled_win_rate(games[1:3]), length_controlled_win_rate(games[:1])
    assert none["length_controlled"]["mean"] is None and one["length_controlled"] == {
        "mean": 100.0,
        "low": None,
        "high": None,
    }
    assert json.dumps([found, none, one, length_controlled_win_rate([])], allow_nan=False)


@pytest.mark.usefixtures("few_refits")
def test_length_control_is_symmetric_and_indifferent_to_the_order_of_rows() -> None:
    games = biased(0.2, 1.0, 0.5, prompts=60, seed=4)
    found, back = length_controlled_win_rate(games), length_controlled_win_rate(swapped(games))
    assert found["length_controlled"]["mean"] == pytest.approx(100 - back["length_controlled"]["mean"], abs=1e-3)
    assert found["length_controlled"]["low"] == pytest.approx(100 - back["length_controlled"]["high"], abs=1e-3)
    assert length_controlled_win_rate(games[::-1]) == found


def test_arena_votes_by_hand() -> None:
    assert [arena_vote(label) for label in ("A>>B", "A>B", "A=B", "B>A", "B>>A")] == [
        (1.0, 3.0), (1.0, 1.0), (0.5, 1.0), (0.0, 1.0), (0.0, 3.0),
    ]  # fmt: skip
    assert math.isnan(arena_vote("")[0]) and math.isnan(arena_vote("A>>>B")[0])
