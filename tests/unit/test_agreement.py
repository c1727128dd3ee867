"""Rank agreement: against SciPy, at the edges (ties, NaN, one response), and unchanged by increasing rescaling."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from reward.agreement import MEASURES, agreement, average_ranks, gap, kendall_tau_b, sign, spearman, top1

SCORES = st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=9)
PAIRS = st.integers(2, 9).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(-4, 4).map(float), min_size=n, max_size=n)] * 2)
)
NAN = float("nan")


def test_average_ranks_are_one_for_the_lowest_and_ties_share() -> None:
    assert average_ranks([0.3, -2.0, 0.3, 9.0]).tolist() == [2.5, 1.0, 2.5, 4.0]
    assert average_ranks([-math.inf, 0.0, math.inf]).tolist() == [1.0, 2.0, 3.0]
    assert np.isnan(average_ranks([1.0, NAN])).all()
    assert average_ranks([]).tolist() == []


@given(SCORES)
def test_average_ranks_equal_scipy(scores: list[float]) -> None:
    assert average_ranks(scores).tolist() == stats.rankdata(scores).tolist()


def test_gap_by_hand() -> None:
    assert gap([5.0, 1.0, 2.0, 3.0], 0, 1) == 1.0
    assert gap([5.0, 1.0, 2.0, 3.0], 1, 0) == -1.0
    assert gap([5.0, 1.0, 2.0, 3.0], 3, 2) == pytest.approx(1 / 3)
    assert gap([1.0, 1.0, 7.0], 0, 1) == 0.0
    assert gap([2.0, 1.0, 1.0], 0, 1) == 0.75  # ranks 3 and 1.5 of 3


@given(PAIRS)
def test_kendall_and_spearman_equal_scipy(scores: tuple[list[float], list[float]]) -> None:
    first, second = scores
    assume(len(set(first)) > 1 and len(set(second)) > 1)
    assert kendall_tau_b(first, second) == pytest.approx(stats.kendalltau(first, second).statistic, abs=1e-12)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)


def test_a_model_that_ties_everything_has_no_correlation() -> None:
    assert math.isnan(kendall_tau_b([1.0, 1.0], [1.0, 2.0]))
    assert math.isnan(spearman([1.0, 2.0], [1.0, 1.0]))


def test_sign_and_top1() -> None:
    assert [sign([1.0, 2.0, 2.0], winner, loser) for winner, loser in ((1, 0), (0, 1), (1, 2))] == [1.0, -1.0, 0.0]
    assert top1([1.0, 5.0, 2.0], [0.1, 0.3, 0.2]) == 1.0
    assert top1([1.0, 5.0, 2.0], [0.1, 0.2, 0.3]) == 0.0
    assert top1([5.0, 5.0, 2.0], [1.0, 1.0, 0.0]) == 1.0
    assert top1([5.0, 5.0, 2.0], [1.0, 0.5, 0.0]) == 0.0  # the sets of best differ


@pytest.mark.parametrize("name", MEASURES)
def test_nan_and_one_response_give_nan(name: str) -> None:
    assert math.isnan(agreement(name, [1.0], [2.0], 0, 0))
    assert math.isnan(agreement(name, [1.0, 2.0, 3.0], [1.0, NAN, 3.0], 2, 0))


@pytest.mark.parametrize("name", MEASURES)
def test_full_agreement_is_one(name: str) -> None:
    assert agreement(name, [1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 21.0, 400.0], 3, 0) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["kendall", "spearman", "gap", "sign"])
def test_reversed_order_is_minus_one(name: str) -> None:
    assert agreement(name, [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0], 3, 0) == pytest.approx(-1.0)


@pytest.mark.parametrize("name", MEASURES)
@given(scores=PAIRS, slope=st.floats(0.1, 50), shift=st.floats(-100, 100))
def test_increasing_rescaling_changes_nothing(
    name: str, scores: tuple[list[float], list[float]], slope: float, shift: float
) -> None:
    first, second = scores
    winner, loser = first.index(max(first)), first.index(min(first))
    before = agreement(name, first, second, winner, loser)
    stretched = [math.exp(slope / 50 * s) + shift for s in first]
    cubed = [slope * s**3 + s + shift for s in second]
    after = agreement(name, stretched, cubed, winner, loser)
    assert (math.isnan(before) and math.isnan(after)) or before == after


def test_unknown_name_and_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="known are gap"):
        agreement("tau", [1.0, 2.0], [1.0, 2.0], 1, 0)
    with pytest.raises(ValueError, match="2 selector scores and 1"):
        agreement("gap", [1.0, 2.0], [1.0], 1, 0)
