"""Numbers of a suite: weights, pairing with the first model, failures, intervals of shares."""

from __future__ import annotations

import math

import pytest

from align.core.rows import SuiteResult
from align.evaluate.suite import Grade, summarize


def row(
    model: str, item: str, value: float, weight: float = 1.0, *, metric: str = "m", key: str = "", **more: str
) -> SuiteResult:
    values = {"category": "", "lang": "en", "failure": "", "raw": ""} | more
    return SuiteResult(
        id=f"{model}{item}{metric}{key}",
        item_id=item,
        model=model,
        metric=metric,
        key=key,
        value=value,
        weight=weight,
        **values,
    )


def test_items_weigh_as_their_grades_say() -> None:
    rows = [row("a", "1", 0.5, 2.0), row("a", "2", 1.0, 1.0), row("a", "3", 0.25, 4.0)]
    found = summarize(rows, ["a"], seed=1)["m"]["a"]
    assert found["mean"] == pytest.approx((1.0 + 1.0 + 1.0) / 7, abs=1e-4)
    assert found["low"] <= found["mean"] <= found["high"]
    assert (found["items"], found["failed"], found["change"]) == (3, {}, None)


def test_several_grades_of_an_item_are_one_item() -> None:
    rows = [row("a", "1", 4.0, key="1"), row("a", "1", 8.0, key="2"), row("a", "2", 3.0, key="1")]
    found = summarize(rows, ["a"], seed=1)["m"]["a"]
    assert (found["mean"], found["items"]) == (5.0, 2)


def test_a_failure_has_no_value_and_is_counted() -> None:
    rows = [row("a", "1", 1.0), row("a", "2", math.nan, failure="no_score"), row("a", "3", math.nan, failure="no_score")]
    rows += [row("b", "1", math.nan, failure="timeout"), row("b", "2", 1.0), row("b", "3", 0.0)]
    found = summarize(rows, ["a", "b"], seed=1)["m"]
    assert (found["a"]["mean"], found["a"]["items"], found["a"]["failed"]) == (1.0, 1, {"no_score": 2})
    assert (found["b"]["mean"], found["b"]["failed"]) == (0.5, {"timeout": 1})
    # They share no graded item, so nothing can be said of the change.
    assert found["b"]["change"] == {"mean": None, "low": None, "high": None, "items": 0}


def test_the_change_is_over_the_same_items() -> None:
    rows = [row("a", str(k), 10.0 * k) for k in range(20)] + [
        row("b", str(k), 10.0 * k + 1 + 0.1 * (k % 2)) for k in range(20)
    ]
    found = summarize([*rows, row("b", "only", 500.0)], ["a", "b"], seed=1)["m"]["b"]["change"]
    assert found["mean"] == pytest.approx(1.05) and found["items"] == 20
    assert 1.0 <= found["low"] <= 1.05 <= found["high"] <= 1.1, "unpaired it would be as wide as the items differ"


def test_the_change_is_over_the_same_turns() -> None:
    """Model a lacks the second turn of every item: its first turns alone are compared with the first turns of b."""
    rows = []
    for k in range(10):
        rows += [row("a", str(k), 8.0, metric="score", key="1")]
        rows += [row("a", str(k), math.nan, metric="score", key="2", failure="no_score")]
        rows += [row("b", str(k), value, metric="score", key=key) for key, value in (("1", 8.0), ("2", 2.0))]
    for models in (("a", "b"), ("b", "a")):
        found = summarize(rows, models, seed=1)["score"]
        assert found[models[1]]["change"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "items": 10}
        assert (found["a"]["mean"], found["b"]["mean"]) == (8.0, 5.0), "means are over all grades"


def test_an_item_of_which_no_turn_is_in_both_has_no_change() -> None:
    rows = [row("a", "1", 8.0, key="1"), row("a", "1", math.nan, key="2", failure="no_score")]
    rows += [row("b", "1", math.nan, key="1", failure="no_score"), row("b", "1", 2.0, key="2")]
    assert summarize(rows, ["a", "b"], seed=1)["m"]["b"]["change"] == {"mean": None, "low": None, "high": None, "items": 0}


@pytest.mark.parametrize("metric", ["score", "score_without_penalty", "turn_1", "nats_per_token"])
def test_marks_that_happen_to_be_one_are_no_shares(metric: str) -> None:
    rows = [row(model, str(k), 1.0, metric=metric) for model in "ab" for k in range(3)]
    found = summarize(rows, ["a", "b"], seed=1)[metric]
    assert (found["a"]["mean"], found["a"]["low"], found["a"]["high"]) == (1.0, 1.0, 1.0)
    assert (found["b"]["change"]["low"], found["b"]["change"]["high"]) == (0.0, 0.0)


def test_shares_have_intervals_that_know_doubt() -> None:
    rows = [row("a", str(k), 0.0) for k in range(12)] + [row("b", str(k), float(k < 3)) for k in range(12)]
    found = summarize(rows, ["a", "b"], seed=1)["m"]
    assert (found["a"]["mean"], found["a"]["low"]) == (0.0, 0.0)
    assert found["a"]["high"] == pytest.approx(0.2425, abs=1e-4)  # Wilson: z^2 / (n + z^2)
    # Agresti and Min: cells 3.5 and 0.5 of 14, so 3 / 14 -+ 1.96 sqrt(4 - 9 / 14) / 14.
    half = 1.959964 * math.sqrt(4 - 9 / 14) / 14
    change = found["b"]["change"]
    assert (change["mean"], change["low"], change["high"]) == pytest.approx((0.25, 3 / 14 - half, 3 / 14 + half), abs=1e-4)


def test_categories_and_metrics_are_apart() -> None:
    rows = [row("a", "1", 1.0, category="x"), row("a", "2", 0.0, category="y"), row("a", "1", 7.0, metric="other")]
    found = summarize(rows, ["a"], seed=1)
    assert found["m"]["a"]["categories"] == {"x": {"mean": 1.0, "items": 1}, "y": {"mean": 0.0, "items": 1}}
    assert found["other"]["a"]["mean"] == 7.0


def test_a_grade_is_a_number_or_a_failure() -> None:
    with pytest.raises(ValueError, match="with failure"):
        Grade(metric="m", value=math.nan)
    with pytest.raises(ValueError, match="with failure"):
        Grade(metric="m", value=1.0, failure="no_score")
