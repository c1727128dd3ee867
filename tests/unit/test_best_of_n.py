"""Best-of-n: against every subset and every way to break ties, the KL bound, and curves whose prompts differ in size."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.evaluate.best_of_n import best_of_n_curve, expected_best_of_n, kl_best_of_n

NAN = float("nan")
EXAMPLES = settings(max_examples=60, deadline=None)


def by_enumeration(proxy: list[float], gold: list[float], n: int) -> float:
    """Mean over all subsets of n, and within a subset over the responses that tie for the highest proxy."""
    found = []
    for subset in itertools.combinations(range(len(proxy)), n):
        best = max(proxy[i] for i in subset)
        found.append(np.mean([gold[i] for i in subset if proxy[i] == best]))
    return float(np.mean(found))


@st.composite
def scored(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    size = draw(st.integers(1, 7))
    proxy = draw(st.lists(st.integers(-2, 2).map(float), min_size=size, max_size=size))  # few values, many ties
    return proxy, draw(st.lists(st.floats(-5, 5), min_size=size, max_size=size))


@given(scored())
@EXAMPLES
def test_expectation_is_the_mean_over_all_subsets_and_ties(rewards: tuple[list[float], list[float]]) -> None:
    proxy, gold = rewards
    for n in range(1, len(proxy) + 1):
        assert expected_best_of_n(proxy, gold, n) == pytest.approx(by_enumeration(proxy, gold, n), abs=1e-9)
    assert math.isnan(expected_best_of_n(proxy, gold, len(proxy) + 1))


def test_expectation_by_hand() -> None:
    # Sorted by proxy the gold rewards are 1, 5, 3: the pairs choose 5, 3, 3.
    assert expected_best_of_n([0.1, 0.9, 0.5], [1.0, 3.0, 5.0], 2) == pytest.approx(11 / 3)
    assert expected_best_of_n([7.0, 7.0, 0.0], [1.0, 3.0, 99.0], 3) == pytest.approx(2.0), "a tie at the top is shared"
    assert math.isnan(expected_best_of_n([], [], 1))


@given(st.integers(0, 2**32 - 1))
@EXAMPLES
def test_block_is_every_prompt_alone_without_what_is_missing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    proxy, gold = rng.integers(0, 4, (5, 6)).astype(float), rng.normal(size=(5, 6))
    proxy[rng.random((5, 6)) < 0.2] = NAN
    gold[rng.random((5, 6)) < 0.2] = rng.choice([NAN, math.inf, -math.inf])
    for n in range(1, 7):
        block = expected_best_of_n(proxy, gold, n)
        assert block.shape == (5,)
        for row in range(5):
            valid = np.isfinite(proxy[row]) & np.isfinite(gold[row])
            if valid.sum() < n:
                assert math.isnan(block[row])
            else:
                expected = by_enumeration(proxy[row][valid].tolist(), gold[row][valid].tolist(), n)
                assert block[row] == pytest.approx(expected, abs=1e-9)


@pytest.mark.filterwarnings("error")
def test_many_responses_stay_exact() -> None:
    gold = np.arange(1.0, 2001.0)
    # The expected maximum of n of 1..N is n (N + 1) / (n + 1).
    for n in (1, 2, 64, 1000, 2000):
        assert expected_best_of_n(gold, gold, n) == pytest.approx(n * 2001 / (n + 1), rel=1e-9)
    half = np.where(gold <= 1000, gold, NAN)
    assert expected_best_of_n(half, half, 999) == pytest.approx(999 * 1001 / 1000)


def test_shapes_and_sizes_that_are_refused() -> None:
    for proxy, gold, n in (([1.0], [1.0, 2.0], 1), (1.0, 1.0, 1), ([1.0], [1.0], 0), (np.ones((1, 1, 1)),) * 2 + (1,)):
        with pytest.raises(ValueError, match="best of"):
            expected_best_of_n(proxy, gold, n)
    with pytest.raises(ValueError, match="best of 0"):
        kl_best_of_n(0)
    with pytest.raises(ValueError, match="curve needs"):
        best_of_n_curve([1.0], [1.0])


def exact_kl(probabilities: np.ndarray, n: int) -> float:
    """KL(best-of-n || model) for outcomes whose rewards rise with their index: best-of-n has the CDF F^n."""
    upper = np.cumsum(probabilities)
    best = upper**n - np.concatenate([[0.0], upper[:-1]]) ** n
    kept = best > 0  # F^n underflows far down in the tail, where the terms are 0 in any case
    return float((best[kept] * np.log(best[kept] / probabilities[kept])).sum())


@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_kl_is_reached_without_ties_and_a_bound_with_them(n: int) -> None:
    assert exact_kl(np.full(200_000, 1 / 200_000), n) == pytest.approx(kl_best_of_n(n), abs=1e-5)
    coarse = exact_kl(np.array([0.5, 0.3, 0.2]), n)
    assert coarse < kl_best_of_n(n) - 0.05 if n > 1 else coarse == pytest.approx(0.0) == kl_best_of_n(1)


def test_curve_of_a_proxy_that_is_gold_and_of_one_that_is_noise() -> None:
    rng = np.random.default_rng(3)
    gold = rng.normal(2.0, 1.0, (300, 16))
    rows = best_of_n_curve(gold, gold)
    assert [row["n"] for row in rows] == [1, 2, 3, 4, 6, 8, 12, 16]
    assert rows[0]["kl"] == 0 and rows[0]["gain"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    four = rows[3]
    assert four["gain"]["low"] < 1.0294 < four["gain"]["high"]  # the expected maximum of 4 standard normals
    assert four["sqrt_kl"] == pytest.approx(math.sqrt(math.log(4) - 0.75))
    assert four["gold"] == four["proxy"] and four["gold"]["mean"] == pytest.approx(2 + four["gain"]["mean"], abs=0.05)
    noise = best_of_n_curve(rng.normal(size=(300, 16)), gold)[-1]
    assert noise["gain"]["low"] < 0 < noise["gain"]["high"] and noise["proxy"]["mean"] == pytest.approx(1.766, abs=0.1)


def test_gain_is_paired_within_prompts() -> None:
    rng = np.random.default_rng(4)
    level = rng.normal(0, 50, (40, 1))  # prompts differ far more than responses
    gold = level + rng.normal(size=(40, 4))
    row = best_of_n_curve(gold, gold)[-1]
    assert row["gain"]["high"] - row["gain"]["low"] < 1 < 20 < row["gold"]["high"] - row["gold"]["low"]


def test_prompts_with_too_few_responses_are_left_out_and_counted() -> None:
    # The second prompt has two responses and a far higher level: in n = 3 it must not enter either side of the gain.
    gold = np.array([[1.0, 2.0, 3.0], [101.0, 102.0, NAN], [NAN] * 3, [0.0, 0.0, math.inf]])
    one, two, three = best_of_n_curve(gold, gold)
    assert [(r["n"], r["prompts"], r["left_out"]) for r in (one, two, three)] == [(1, 3, 1), (2, 3, 1), (3, 1, 3)]
    assert three["gain"] == {"mean": 1.0, "low": None, "high": None} and three["gold"]["mean"] == 3.0
    assert one["gold"]["mean"] == pytest.approx((2 + 101.5 + 0) / 3, abs=1e-4)
    # A response without gold does not count for the proxy's mean either.
    proxy = np.array([[1.0, 2.0, 9.0]])
    assert best_of_n_curve(proxy, np.array([[0.0, 0.0, NAN]]))[-1]["proxy"]["mean"] == 2.0
    assert best_of_n_curve(gold, gold, ns=[9])[0] == {
        "n": 9, "kl": kl_best_of_n(9), "sqrt_kl": math.sqrt(kl_best_of_n(9)), "prompts": 0, "left_out": 4,
        **{name: {"mean": None, "low": None, "high": None} for name in ("gold", "proxy", "gain")},
    }  # fmt: skip
    assert best_of_n_curve(np.empty((3, 0)), np.empty((3, 0))) == [] == best_of_n_curve(np.full((2, 2), NAN), gold[:2, :2])
    assert json.dumps(best_of_n_curve(gold, gold), allow_nan=False)


def test_sizes_end_at_the_largest_number_of_responses() -> None:
    for size, expected in ((1, [1]), (5, [1, 2, 3, 4, 5]), (33, [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 33])):
        rewards = np.arange(float(size))[None]
        assert [row["n"] for row in best_of_n_curve(rewards, rewards)] == expected
