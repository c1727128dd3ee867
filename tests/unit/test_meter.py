"""The over-optimization meter: distances and gains from rows of the evaluation."""

from __future__ import annotations

import math

import pytest

from align.core.rows import EvalResult
from align.evaluate.meter import Place, meter

PLACES = [
    Place(name="M0", stage=0),
    Place(name="M1@1", stage=1, step=5, steps=10, drift={"chosen_drift": -1.5, "other": 3.0}),
    Place(name="M1", stage=1, step=10, steps=10),
    Place(name="M2", stage=2, step=4, steps=4),
]


def rows(model: str, proxy: float, gold: float, ratio: float, prompts: int = 40) -> list[EvalResult]:
    """Two answers to each prompt, whose difficulty shifts all models alike and whose noise cancels."""
    return [
        EvalResult(
            id=f"{model}-{p}-{s}", prompt_id=f"p{p}", model=model, selector=proxy + p + (s - 0.5) + 0.01 * (p % 3),
            validator=0.0, gold=gold + p / 10, start_log_ratio=ratio + (p % 2) - 0.5, previous_log_ratio=ratio / 2,
            num_tokens=10 + s, finished=1, repetition=0.0, language_match=1,
        )
        for p in range(prompts)
        for s in range(2)
    ]  # fmt: skip


def run(golds: tuple[float, ...], seed: int = 1) -> dict[str, object]:
    made = [row for k, place in enumerate(PLACES) for row in rows(place.name, 1.0 * k, golds[k], float(k * k))]
    return meter(made, PLACES, seed=seed)


def test_distances_and_gains_by_hand() -> None:
    found = run((0.0, 0.3, 0.5, 0.1))
    points = found["points"]
    assert isinstance(points, list)
    assert [p["name"] for p in points] == ["M0", "M1@1", "M1", "M2"]
    assert [p["sqrt_kl"]["mean"] for p in points] == pytest.approx([0.0, 1.0, 2.0, 3.0])
    assert [p["sqrt_previous_kl"]["mean"] for p in points[1:]] == pytest.approx([math.sqrt(k * k / 2) for k in (1, 2, 3)])
    assert points[2]["sqrt_kl"]["low"] < 2.0 < points[2]["sqrt_kl"]["high"]
    assert [p["proxy_gain"]["mean"] for p in points] == pytest.approx([0.0, 1.0, 2.0, 3.0])
    assert [p["gold_gain"]["mean"] for p in points] == pytest.approx([0.0, 0.3, 0.5, 0.1])
    assert points[1]["drift"] == {"chosen_drift": -1.5} and points[1]["num_tokens"] == 10.5


def test_gold_chooses_and_stops_and_proxy_does_not() -> None:
    found = run((0.0, 0.5, 0.3, 0.1))
    assert found["choice"]["name"] == "M1@1"  # type: ignore[index]
    assert found["stop"]["stop"] == 3 and found["stop"]["best"] == 1  # type: ignore[index]
    assert [step["over_optimized"] for step in found["steps"]] == [False, True, True]  # type: ignore[attr-defined]


def test_without_gold_nothing_is_chosen() -> None:
    found = run((math.nan,) * 4)
    assert found["choice"] is None and found["stop"] is None and "gold" not in found["fits"]  # type: ignore[operator]
    assert found["points"][1]["gold_gain"]["mean"] is None  # type: ignore[index]


def test_a_checkpoint_without_answers_is_no_point() -> None:
    made = [row for place in (PLACES[0], PLACES[2]) for row in rows(place.name, 0.0, 0.0, 1.0)]
    assert [p["name"] for p in meter(made, PLACES, seed=1)["points"]] == ["M0", "M1"]


def test_a_negative_estimate_is_a_distance_of_zero() -> None:
    made = [*rows("M0", 0.0, 0.0, 0.0), *rows("M1", 0.0, 0.0, -3.0)]
    assert meter(made, PLACES, seed=1)["points"][1]["sqrt_kl"]["mean"] == 0.0
