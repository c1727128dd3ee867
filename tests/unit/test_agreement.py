"""Rank agreement and its null: against SciPy and brute force, at the edges (ties, NaN, masks), and in blocks as alone."""

import itertools
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from reward import agreement_null
from reward.agreement import (
    MEASURES,
    all_measures,
    average_ranks,
    bottom1,
    gap,
    kendall_tau_b,
    measure,
    sign,
    spearman,
    top1,
    top_k_overlap,
)
from reward.agreement_null import null_p_value, null_pmf, null_quantile

NAN = float("nan")
EXAMPLES = settings(max_examples=40, deadline=None)  # the first call for a tie pattern makes a distribution
ONE_MODEL = ("gap", "sign")  # of the validator's scores alone


def pairs(largest: int) -> st.SearchStrategy[tuple[list[float], list[float]]]:
    scores = st.integers(-4, 4).map(float)
    return st.integers(2, largest).flatmap(lambda n: st.tuples(*[st.lists(scores, min_size=n, max_size=n)] * 2))


@st.composite
def blocks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores of both models with ties, NaN at some places, a mask, and a winner and a loser, of 1 to 6 prompts."""
    prompts, n = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    first, second = rng.integers(0, 5, size=(2, prompts, n)).astype(float)
    valid = rng.random((prompts, n)) < 0.8
    second[rng.random((prompts, n)) < 0.05] = NAN
    first[~valid] = rng.choice([NAN, math.inf, 0.0], size=(~valid).sum())
    return first, second, rng.integers(0, n, prompts), rng.integers(0, n, prompts), valid


def same(first: Any, second: Any) -> bool:
    return bool(np.array_equal(np.asarray(first), np.asarray(second), equal_nan=True))


def extremes(scores: list[float]) -> tuple[int, int]:
    return scores.index(max(scores)), scores.index(min(scores))


def test_average_ranks_are_one_for_the_lowest_and_ties_share() -> None:
    assert average_ranks([0.3, -2.0, 0.3, 9.0]).tolist() == [2.5, 1.0, 2.5, 4.0]
    assert average_ranks([-math.inf, 0.0, math.inf]).tolist() == [1.0, 2.0, 3.0]
    assert average_ranks([math.inf, math.inf]).tolist() == [1.5, 1.5]
    assert np.isnan(average_ranks([1.0, NAN])).all()
    assert average_ranks([7.0]).tolist() == [1.0]
    assert average_ranks([]).tolist() == []


def test_masked_places_have_no_rank_and_change_no_other() -> None:
    ranks = average_ranks(
        [[5.0, NAN, 1.0, 5.0], [NAN, 2.0, 9.0, 3.0]], [[True, False, True, True], [True, True, False, True]]
    )
    assert same(ranks, [[2.5, NAN, 1.0, 2.5], [NAN] * 4])
    for name in MEASURES:
        masked = null_p_value(name, [4.0, 9.0, 1.0, 2.0, 3.0], [4.0, 0.0, 1.0, 2.0, 3.0], 0, 2, [True, False, *[True] * 3])
        assert masked == null_p_value(name, [4.0, 1.0, 2.0, 3.0], [4.0, 1.0, 2.0, 3.0], 0, 1) < 0.51


def test_gap_by_hand() -> None:
    assert gap([5.0, 1.0, 2.0, 3.0], 0, 1) == 1.0
    assert gap([5.0, 1.0, 2.0, 3.0], 1, 0) == -1.0
    assert gap([5.0, 1.0, 2.0, 3.0], 3, 2) == pytest.approx(1 / 3)
    assert gap([1.0, 1.0, 7.0], 0, 1) == 0.0
    assert gap([2.0, 1.0, 1.0], 0, 1) == 0.75  # ranks 3 and 1.5 of 3
    assert gap([2.0, 9.0, 1.0], 0, 2, [True, False, True]) == 1.0
    assert math.isnan(gap([2.0, 9.0, 1.0], 1, 2, [True, False, True]))  # the winner is left out


@given(pairs(9))
@EXAMPLES
def test_ranks_kendall_and_spearman_equal_scipy(scores: tuple[list[float], list[float]]) -> None:
    first, second = scores
    assert same(average_ranks(scores), stats.rankdata(scores, axis=-1))
    assume(len(set(first)) > 1 and len(set(second)) > 1)
    assert kendall_tau_b(first, second) == pytest.approx(stats.kendalltau(first, second).statistic, abs=1e-12)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)


@pytest.mark.parametrize("n", [3, 7, 11, 60, 200])
def test_perfect_correlation_is_exactly_one(n: int) -> None:
    scores = np.random.default_rng(n).integers(0, n, n).astype(float)  # with ties
    assert kendall_tau_b(scores, 3 * scores) == spearman(scores, 3 * scores) == 1.0
    assert kendall_tau_b(scores, -scores) == spearman(scores, -scores) == -1.0
    assert math.isnan(kendall_tau_b(scores, 0 * scores)) and math.isnan(spearman(0 * scores, scores))  # one ties everything


def test_sign_top1_and_bottom1() -> None:
    assert [sign([1.0, 2.0, 2.0], winner, loser) for winner, loser in ((1, 0), (0, 1), (1, 2))] == [1.0, -1.0, 0.0]
    assert top1([1.0, 5.0, 2.0], [0.1, 0.3, 0.2]) == 1.0
    assert top1([1.0, 5.0, 2.0], [0.1, 0.2, 0.3]) == 0.0
    assert top1([5.0, 5.0, 2.0], [1.0, 1.0, 0.0]) == 1.0
    assert top1([5.0, 5.0, 2.0], [1.0, 0.5, 0.0]) == 0.0  # the sets of best differ
    assert bottom1([1.0, 5.0, 2.0], [0.1, 0.2, 0.3]) == 1.0
    assert bottom1([1.0, 1.0, 2.0], [0.0, 1.0, 2.0]) == 0.0


def test_overlap_by_hand() -> None:
    assert top_k_overlap([4.0, 3.0, 2.0, 1.0], [4.0, 1.0, 3.0, 2.0]) == 0.5
    assert top_k_overlap([4.0, 3.0, 2.0, 1.0], [3.0, 4.0, 1.0, 2.0]) == 1.0
    assert top_k_overlap([4.0, 3.0, 3.0, 1.0], [4.0, 3.0, 2.0, 1.0]) == 0.75  # (1 * 1 + 1/2 * 1) / 2
    assert top_k_overlap([5.0, 5.0, 5.0], [5.0, 5.0, 5.0]) == pytest.approx(2 / 3)
    assert top_k_overlap([1.0, 2.0], [1.0, 2.0], 5) == 1.0  # k is n - 1 = 1
    assert top_k_overlap([1.0, 2.0], [2.0, 1.0], 5) == 0.0


@given(pairs(5), st.integers(1, 4))
@EXAMPLES
def test_overlap_is_the_mean_over_random_breaks_of_ties(scores: tuple[list[float], list[float]], k: int) -> None:
    n = len(scores[0])
    size = min(k, n - 1)

    def mean_membership(values: list[float]) -> np.ndarray:
        tops = [sorted(range(n), key=lambda i: (-values[i], order[i]))[:size] for order in itertools.permutations(range(n))]
        seen = Counter(itertools.chain.from_iterable(tops))
        return np.array([seen[i] / len(tops) for i in range(n)])

    expected = (mean_membership(scores[0]) * mean_membership(scores[1])).sum() / size
    assert top_k_overlap(*scores, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", MEASURES)
def test_nan_and_one_response_give_nan(name: str) -> None:
    for value in (measure, null_p_value):
        assert math.isnan(value(name, [1.0], [2.0], 0, 0))
        assert math.isnan(value(name, [1.0, 2.0, 3.0], [1.0, NAN, 3.0], 2, 0))
        assert math.isnan(value(name, [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 2, 2, [False, False, True]))
        assert math.isnan(value(name, [1.0, NAN, 3.0], [1.0, 2.0, 3.0], 2, 0)) == (name not in ONE_MODEL)


@pytest.mark.parametrize("name", MEASURES)
def test_full_agreement_is_one_and_reversal_the_least(name: str) -> None:
    assert measure(name, [1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 21.0, 400.0], 3, 0) == 1.0
    least = -1.0 if name in ("kendall", "spearman", "gap", "sign") else 0.0
    assert measure(name, [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0], 3, 0) == least


@pytest.mark.parametrize("value", [measure, null_p_value])
@pytest.mark.parametrize("name", MEASURES)
@given(scores=pairs(5), slope=st.floats(0.1, 50), shift=st.floats(-100, 100))
@EXAMPLES
def test_increasing_rescaling_changes_nothing(
    name: str, value: Callable[..., float], scores: tuple[list[float], list[float]], slope: float, shift: float
) -> None:
    first, second = scores
    winner, loser = extremes(first)
    before = value(name, first, second, winner, loser)
    stretched = [math.exp(slope / 50 * s) + shift for s in first]
    cubed = [slope * s**3 + s + shift for s in second]
    assert same(before, value(name, stretched, cubed, winner, loser))


@given(pairs(9), st.randoms(use_true_random=False), st.integers(1, 4))
@EXAMPLES
def test_the_order_of_responses_changes_nothing_and_values_stay_in_range(
    scores: tuple[list[float], list[float]], random: Any, top_k: int
) -> None:
    first, second = scores
    winner, loser = extremes(first)
    places = list(range(len(first)))
    random.shuffle(places)
    before = all_measures(first, second, winner, loser, None, top_k)
    moved = [[values[i] for i in places] for values in scores]
    after = all_measures(*moved, places.index(winner), places.index(loser), None, top_k)
    assert tuple(before) == MEASURES
    for name in MEASURES:
        assert np.isclose(before[name], after[name], atol=1e-12, equal_nan=True)
        lowest = -1 if name in ("gap", "kendall", "spearman", "sign") else 0
        assert math.isnan(before[name]) or lowest <= before[name] <= 1


@given(blocks(), st.integers(1, 4))
@EXAMPLES
def test_a_block_gives_what_each_prompt_gives_alone(block: tuple[np.ndarray, ...], top_k: int) -> None:
    first, second, winner, loser, valid = block
    together = all_measures(first, second, winner, loser, valid, top_k)
    for name in MEASURES:
        p_values = null_p_value(name, first, second, winner, loser, valid, top_k)
        for p, keep in enumerate(valid):
            alone = (first[p], second[p], int(winner[p]), int(loser[p]), keep, top_k)
            assert type(measure(name, *alone)) is type(null_p_value(name, *alone)) is float
            assert same(together[name][p], measure(name, *alone))
            assert same(p_values[p], null_p_value(name, *alone))
            if keep[winner[p]] and keep[loser[p]]:  # padding is as good as no response at all
                short = (first[p][keep], second[p][keep], keep[: winner[p]].sum(), keep[: loser[p]].sum(), None, top_k)
                assert np.isclose(measure(name, *short), together[name][p], atol=1e-12, equal_nan=True)
                assert np.isclose(null_p_value(name, *short), p_values[p], atol=1e-12, equal_nan=True)


def test_shapes() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 2, 3, 5))
    for name, value in all_measures(first, second, first.argmax(-1), first.argmin(-1)).items():
        assert value.shape == (2, 3) and value.dtype == np.float64
        assert null_p_value(name, first, second, 0, 1).shape == (2, 3)
        assert null_p_value(name, first[0, :0], second[0, :0], 0, 1).shape == (0,)
    assert isinstance(spearman(first[0, 0], second[0, 0]), float) and isinstance(sign(second[0, 0], 0, 1), float)


def test_misuse_is_refused() -> None:
    for value in (measure, null_p_value):
        with pytest.raises(ValueError, match="known are gap, kendall"):
            value("tau", [1.0, 2.0], [1.0, 2.0], 1, 0)
        with pytest.raises(ValueError, match=r"\(2,\) of one model and \(1,\)"):
            value("gap", [1.0, 2.0], [1.0], 1, 0)
        with pytest.raises(ValueError, match="outside of the 2 responses"):
            value("gap", [1.0, 2.0], [1.0, 2.0], 1, -1)
        with pytest.raises(ValueError, match="top_k 0"):
            value("overlap", [1.0, 2.0], [1.0, 2.0], 1, 0, None, 0)
    with pytest.raises(ValueError, match="a mask of shape"):
        average_ranks([1.0, 2.0], [True])
    with pytest.raises(ValueError, match="n = 1"):
        null_pmf("gap", 1)
    with pytest.raises(ValueError, match="level 1"):
        null_quantile("gap", 5, 1.0)


def brute_force(name: str, first: list[float], second: list[float], winner: int, loser: int, top_k: int) -> float:
    """The share of all permutations of the validator's scores that agree at least as much."""
    observed = measure(name, first, second, winner, loser, None, top_k)
    permuted = np.array(list(itertools.permutations(second)))
    values = measure(name, np.broadcast_to(first, permuted.shape), permuted, winner, loser, None, top_k)
    return NAN if math.isnan(observed) else float((values >= observed - 1e-9).mean())


@pytest.mark.parametrize("name", MEASURES)
@given(scores=pairs(5), top_k=st.integers(1, 4))
@EXAMPLES
def test_p_values_equal_brute_force(name: str, scores: tuple[list[float], list[float]], top_k: int) -> None:
    winner, loser = extremes(scores[0])
    assume(winner != loser)
    expected = brute_force(name, *scores, winner, loser, top_k)
    assert np.isclose(null_p_value(name, *scores, winner, loser, None, top_k), expected, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([3, 1, 4, 15, 9, 2, 6], [2, 7, 1, 8, 28, 18, 4]),  # no ties
        ([3, 1, 4, 15, 9, 2, 6], [2, 2, 1, 8, 8, 8, 0]),  # one model ties
        ([3, 3, 1, 1, 1, 0, 7], [2, 2, 1, 1, 8, 8, 8]),  # both
        ([5, 5, 5, 5, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1]),
        ([2, 1, 1, 0], [1, 0, 0, 0]),  # rounding carries its overlap past the exact value
    ],
)
def test_p_values_of_chosen_scores_equal_brute_force(name: str, first: list[float], second: list[float]) -> None:
    for top_k in (1, 2, 3, 5):
        expected = brute_force(name, first, second, *extremes(first), top_k)
        assert null_p_value(name, first, second, *extremes(first), None, top_k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [2, 4, 5, 8, 26, 64])
def test_gap_of_untied_scores_has_its_closed_form(n: int) -> None:
    """P(rank difference >= k) = sum over m = k..n-1 of (n - m) / (n (n - 1))."""
    scores = np.arange(n, dtype=float)
    values, probabilities = null_pmf("gap", n)
    for k in range(1, n):
        expected = sum(n - m for m in range(k, n)) / (n * (n - 1))
        assert null_p_value("gap", scores, scores, k, 0) == pytest.approx(expected)
        assert probabilities[values > (k - 0.5) / (n - 1)].sum() == pytest.approx(expected)


def test_known_gaps() -> None:
    assert null_p_value("gap", np.arange(5.0), np.arange(5.0), 4, 0) == pytest.approx(0.05)
    assert null_p_value("gap", np.arange(8.0), np.arange(8.0), 7, 1) == pytest.approx(0.0536, abs=5e-5)
    assert math.isnan(null_quantile("gap", 4, 0.95))
    assert null_quantile("gap", 5, 0.95) == 1.0
    assert null_quantile("gap", 8, 0.9) == pytest.approx(6 / 7)
    assert null_quantile("gap", 16, 0.95) == pytest.approx(0.8)


@pytest.mark.parametrize("n", [2, 3, 8, 9, 16, 64])
def test_kendall_has_its_known_mean_and_deviation(n: int) -> None:
    values, probabilities = null_pmf("kendall", n)
    assert len(values) == n * (n - 1) / 2 + 1
    assert values @ probabilities == pytest.approx(0.0, abs=1e-12)
    assert math.sqrt(values**2 @ probabilities) == pytest.approx(math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1))))
    values[:] = 0.0
    assert null_pmf("kendall", n)[0][-1] == 1.0  # the cache is not the caller's to change


@pytest.mark.parametrize("n", [9, 14, 25])
def test_kendall_of_many_untied_scores_equals_scipy(n: int) -> None:
    first, second = np.random.default_rng(n).normal(size=(2, n))
    second += first / 2
    expected = stats.kendalltau(first, second, method="exact", alternative="greater").pvalue
    assert null_p_value("kendall", first, second, 0, 1) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "n"), [(name, n) for name in MEASURES for n in (2, 3, 7, 12) if (name, n) != ("spearman", 12)]
)
def test_distributions_and_quantiles(name: str, n: int) -> None:
    for top_k in (1, 2, 4):
        values, probabilities = null_pmf(name, n, top_k)
        assert (np.diff(values) > 0).all() and (probabilities > 0).all()
        assert probabilities.sum() == pytest.approx(1.0)
        expected = {"top1": 1 / n, "bottom1": 1 / n, "overlap": min(top_k, n - 1) / n}.get(name, 0.0)
        assert values @ probabilities == pytest.approx(expected, abs=1e-12)
        tails = np.cumsum(probabilities[::-1])[::-1]
        for level in (0.0, 0.5, 0.9, 0.95):
            rare = values[tails <= 1 - level + 1e-9]
            assert same(null_quantile(name, n, level, top_k), rare[0] if len(rare) else NAN)


@pytest.mark.parametrize("name", ["kendall", "spearman"])
@pytest.mark.parametrize(("first", "second"), [((2, 5, 5, 8, 10, 12), (3, 3, 6, 8, 11, 11)), ((4, 4, 4, 8, 11, 11),) * 2])
def test_drawn_permutations_estimate_the_enumerated(
    name: str, first: tuple[int, ...], second: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = agreement_null._rank_null(name, first, second)
    monkeypatch.setattr(agreement_null, "_permutations", agreement_null._permutations.__wrapped__)
    monkeypatch.setattr(agreement_null, "MAX_ENUMERATED", 5)
    drawn = agreement_null._rank_null(name, first, second)
    assert drawn.p_value(np.array([1.1])) == 1 / 20_001  # never 0
    assert exact.p_value(np.array([1.1])) == 0
    assert drawn.p_value(exact.values) == pytest.approx(exact.tails[:-1], abs=0.015)  # 4 deviations
    assert not same(drawn.p_value(exact.values), exact.tails[:-1])


def test_spearman_of_many_responses_is_never_impossible() -> None:
    scores = np.arange(20.0)
    assert null_p_value("spearman", scores, scores, 19, 0) == 1 / 20_001
    assert null_p_value("spearman", scores, -scores, 19, 0) == 1.0


@pytest.mark.parametrize("n", [3, 5, 8, 11])
@pytest.mark.parametrize("name", MEASURES)
def test_unrelated_models_are_as_rare_as_said(name: str, n: int) -> None:
    """Calibration: P(p <= alpha) <= alpha, whatever the ties and although the pair is chosen by the selector's scores."""
    rng = np.random.default_rng(n)
    for first, second in (rng.normal(size=(2, 4000, n)), rng.integers(0, 3, size=(2, 300, n))):
        p_values = null_p_value(name, first, second, first.argmax(axis=-1), first.argmin(axis=-1))
        p_values = p_values[~np.isnan(p_values)]
        assert len(p_values) > 200
        for alpha in (0.01, 0.05, 0.1, 0.3):
            assert (p_values <= alpha).mean() <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / len(p_values))


def test_prompts_without_ties_share_one_enumeration() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 2000, 7))
    agreement_null._small_null.cache_clear()
    for name in ("kendall", "spearman"):
        null_p_value(name, first, second, 0, 1)
    assert agreement_null._small_null.cache_info().misses == 2
    assert agreement_null._small_null.cache_info().hits == 0  # grouped: one look-up a block


def test_no_python_loop_over_prompts() -> None:
    """100,000 prompts in blocks; a block of 10,000 makes as many calls as one of 10."""
    first, second = np.random.default_rng(1).normal(size=(2, 100_000, 8))
    winner, loser = first.argmax(axis=1), first.argmin(axis=1)

    def run(block: slice) -> int:
        all_measures(first[block], second[block], winner[block], loser[block])
        return len(null_p_value("gap", first[block], second[block], winner[block], loser[block]))

    def calls(block: slice) -> int:
        events: list[str] = []
        sys.setprofile(lambda frame, event, argument: events.append(event))
        try:
            run(block)
        finally:
            sys.setprofile(None)
        return len(events)

    assert calls(slice(10)) == calls(slice(10_000))
    assert sum(run(slice(start, start + 5000)) for start in range(0, 100_000, 5000)) == 100_000


def test_it_loads_numpy_only() -> None:
    code = (
        "import sys, reward.agreement, reward.agreement_null; "
        "print([name for name in ('torch', 'transformers', 'pyarrow', 'scipy', 'pandas') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
