"""Evaluation numbers: intervals that cover, ties that count half, and a table checked by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import sem, t

from align.core.rows import EvalResult, Instruction, Response, Score
from align.evaluate.metrics import (
    BOOTSTRAPS,
    bootstrap_interval,
    mean_with_interval,
    number,
    quantile_interval,
    resampled_means,
    t_interval,
    wins,
)
from align.evaluate.table import eval_results, model_table
from tests.jobs import instruction


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = bootstrap_interval(rng.normal(1.5, 2.0, 50).tolist(), seed=trial)
        covered += low <= 1.5 <= high
    assert 0.88 <= covered / 200 <= 0.98  # 0.95 by name; the percentile bootstrap of 50 values gives about 0.94


def test_t_intervals_cover_the_true_mean_of_few_values() -> None:
    """Where the percentile bootstrap of three values covers it in about 75 % of samples."""
    data = np.random.default_rng(0).normal(1.5, 2.0, (3000, 3))
    for level in (0.95, 0.99):
        covered = sum(low <= 1.5 <= high for low, high in (t_interval(row, level=level) for row in data))
        assert covered / 3000 == pytest.approx(level, abs=0.012)


def test_t_interval_is_that_of_scipy() -> None:
    for data, level in (([0.01, 0.02], 0.95), ([3.0, -1.0, 4.0, 1.0], 0.9875)):
        expected = t.interval(level, len(data) - 1, loc=np.mean(data), scale=sem(data))
        assert t_interval(data, level=level) == pytest.approx(expected, rel=1e-9)


def test_t_interval_without_a_spread_is_left_to_the_sign_test() -> None:
    for few in ([], [3.0], [1.0] * 5):
        assert all(map(math.isnan, t_interval(few)))
    assert t_interval([1.0] * 6) == (1.0, 1.0), "six of one sign come by chance in 2 of 64 samples"
    assert all(map(math.isnan, t_interval([1.0] * 6, level=0.98))) and t_interval([1.0] * 7, level=0.98) == (1.0, 1.0)
    third = [0.1 + 0.2 - 0.3, *[0.0] * 7]
    assert t_interval(third) == (0.0, 0.0), "rounding is no gain"
    noisy = [1.1 - 0.1, 2.1 - 1.1, 4.4 - 3.4]
    assert len(set(noisy)) > 1 and all(map(math.isnan, t_interval(noisy))), "and no spread"


def test_interval_narrows_with_data_and_widens_with_level() -> None:
    data = np.random.default_rng(1).normal(0, 1, 400).tolist()
    few, many = bootstrap_interval(data[:25], seed=1), bootstrap_interval(data, seed=1)
    assert many[1] - many[0] == pytest.approx(2 * 1.96 * np.std(data) / 20, rel=0.1)
    assert few[1] - few[0] > 2.5 * (many[1] - many[0])
    wide = bootstrap_interval(data, seed=1, level=0.99)
    assert wide[0] < many[0] < many[1] < wide[1]
    assert bootstrap_interval(data, seed=1) == many != bootstrap_interval(data, seed=2)


def test_interval_of_too_little() -> None:
    assert all(math.isnan(v) for v in (*bootstrap_interval([], seed=1), *bootstrap_interval([3.0], seed=1)))
    assert bootstrap_interval([2.0, 2.0, 2.0], seed=1) == (2.0, 2.0)
    assert mean_with_interval([], seed=1) == {"mean": None, "low": None, "high": None}
    assert mean_with_interval([0.25], seed=1) == {"mean": 0.25, "low": None, "high": None}


def test_interval_is_that_of_one_block_of_resamples() -> None:
    """The resamples come in blocks to save memory; the numbers are those of a single draw of all."""
    data = np.random.default_rng(3).exponential(1, 37)
    means = data[np.random.default_rng(9).integers(0, 37, (BOOTSTRAPS, 37))].mean(axis=1)
    assert bootstrap_interval(data, seed=9) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), rel=1e-12)
    assert np.allclose(resampled_means(data[:, None], seed=9)[:, 0], means, rtol=1e-12), "the same draws of prompts"


def test_a_high_level_draws_enough_resamples_for_its_ends() -> None:
    data = np.random.default_rng(4).normal(0, 1, 30)
    means = data[np.random.default_rng(1).integers(0, 30, (20_000, 30))].mean(axis=1)
    expected = tuple(np.quantile(means, [0.001, 0.999]))
    assert bootstrap_interval(data, seed=1, level=0.998) == pytest.approx(expected, rel=1e-9)


def test_resampled_means_are_paired_weighted_and_skip_what_is_missing() -> None:
    rng = np.random.default_rng(5)
    first = rng.normal(0, 10, 80)
    draws = resampled_means(np.stack([first, first + 1], axis=1), seed=2)
    assert draws.shape == (BOOTSTRAPS, 2) and np.allclose(draws[:, 1] - draws[:, 0], 1.0)
    sparse = np.where(np.arange(80) < 40, first, np.nan)
    assert resampled_means(sparse[:, None], seed=2).mean() == pytest.approx(first[:40].mean(), abs=0.2)
    doubled = resampled_means([[1.0], [4.0]], [[2.0], [1.0]], seed=2)[:, 0]
    assert set(np.round(doubled, 9)) == {1.0, 2.0, 4.0}, "both rows drawn: (2 * 1 + 4) / 3"
    lonely = resampled_means([[1.0], [np.nan]], seed=2)
    assert 0.15 < np.isnan(lonely).mean() < 0.35 and set(lonely[np.isfinite(lonely)]) == {1.0}


def test_numbers_and_quantiles_for_json() -> None:
    assert [number(v) for v in (1.5, math.nan, math.inf, -math.inf)] == [1.5, None, None, None]
    assert quantile_interval(np.array([math.nan, *range(101)])) == pytest.approx((2.5, 97.5))
    assert all(map(math.isnan, quantile_interval(np.array([math.nan]))))


def test_wins_with_ties() -> None:
    assert wins([1, 2, 3, -1], [0, 2, 4, -1.5]) == [1.0, 0.5, 0.0, 1.0]
    assert wins([], []) == []
    with pytest.raises(ValueError):
        wins([1], [1, 2])
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 3, 50).tolist(), rng.integers(0, 3, 50).tolist()
    assert sum(wins(a, b)) + sum(wins(b, a)) == 50


def result(model: str, prompt: str, selector: float, validator: float, **changes: float) -> EvalResult:
    values = {"num_tokens": 10, "finished": 1, "repetition": 0.0, "language_match": 1}
    values |= {name: float("nan") for name in ("gold", "start_log_ratio", "previous_log_ratio")} | changes
    return EvalResult(
        id=f"{model}-{prompt}-{selector}", prompt_id=prompt, model=model, selector=selector, validator=validator, **values,  # type: ignore[arg-type]
    )  # fmt: skip


def test_model_table_by_hand() -> None:
    rows = [
        result("M0", "a", 1.0, 5.0), result("M0", "b", 2.0, 5.0), result("M0", "c", 3.0, 5.0),
        # Two answers to a: their mean 2.0 beats 1.0. A tie at b. Lost at c. d has no counterpart.
        result("M1", "a", 0.0, 6.0, num_tokens=20), result("M1", "a", 4.0, 6.0, num_tokens=30, finished=0),
        result("M1", "b", 2.0, 5.0, repetition=0.5), result("M1", "c", 1.0, 4.0, language_match=0),
        result("M1", "d", 9.0, 9.0),
    ]  # fmt: skip
    baseline, entry, empty = model_table(rows[::-1], ["M0", "M1", "M2"], "M0", seed=17)
    assert (baseline["model"], baseline["answers"], entry["model"], entry["answers"]) == ("M0", 3, "M1", 5)
    assert baseline["selector"]["mean"] == 2.0 and "selector_win_rate" not in baseline
    assert entry["selector"]["mean"] == pytest.approx((2 + 2 + 1 + 9) / 4)
    assert entry["selector_win_rate"]["mean"] == pytest.approx((1 + 0.5 + 0) / 3, abs=1e-4)
    assert entry["validator_win_rate"]["mean"] == pytest.approx((1 + 0.5 + 0) / 3, abs=1e-4)
    assert 0 <= entry["selector_win_rate"]["low"] <= 0.5 <= entry["selector_win_rate"]["high"] <= 1
    assert (entry["num_tokens"], entry["finished"], entry["repetition"], entry["language_match"]) == (16.0, 0.8, 0.1, 0.8)
    assert empty["answers"] == 0 and empty["num_tokens"] is None and empty["selector_win_rate"]["mean"] is None
    assert json.dumps([baseline, entry, empty], allow_nan=False)
    assert model_table(rows, ["M0", "M1", "M2"], "M0", seed=17) == [baseline, entry, empty], "the rows' order is no matter"


def test_three_wins_of_three_are_not_certain_in_the_table() -> None:
    rows = [result(model, p, score, -score) for model, score in (("M0", 1.0), ("M1", 2.0)) for p in "abc"]
    entry = model_table(rows, ["M0", "M1"], "M0", seed=17)[1]
    assert entry["selector_win_rate"] == {"mean": 1.0, "low": 0.4385, "high": 1.0}
    assert entry["validator_win_rate"] == {"mean": 0.0, "low": 0.0, "high": 0.5615}


def prompt(name: str, lang: str) -> Instruction:
    return instruction("?", lang, id=name, split="heldout")


def test_results_are_joined_by_id() -> None:
    texts = ["Honey keeps for years.", "꿀은 오래 간다.", "a b c d " * 10]
    responses = [
        Response(
            id=f"r{i}",
            prompt_id=p,
            model="M1",
            sample_index=i,
            token_ids=[1, 2],
            text=text,
            finish_reason=reason,
            num_tokens=2,
        )
        for i, (p, text, reason) in enumerate(zip(["en", "en", "ko"], texts, ["stop", "length", "stop"], strict=True))
    ]
    scores = {
        role: [
            Score(id=f"{role}{i}", response_id=f"r{i}", prompt_id="x", reward_model=role, score=sign * i) for i in (2, 0, 1)
        ]
        for role, sign in (("selector", 1.0), ("validator", -1.0))
    }
    rows = eval_results({"en": prompt("en", "en"), "ko": prompt("ko", "ko")}, responses, scores)
    assert [(r.selector, r.validator) for r in rows] == [(0.0, 0.0), (1.0, -1.0), (2.0, -2.0)]
    assert [r.finished for r in rows] == [1, 0, 1]
    assert [r.language_match for r in rows] == [1, 0, 0]
    assert rows[0].repetition == 0.0 and rows[2].repetition == pytest.approx(1 - 4 / 37, abs=1e-4)
    assert len({r.id for r in rows}) == 3
    scores["validator"].pop()
    with pytest.raises(KeyError):
        eval_results({"en": prompt("en", "en"), "ko": prompt("ko", "ko")}, responses, scores)
