"""The over-optimization meter: distances and gains from rows of the evaluation."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from scipy.stats import sem, t

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


def test_a_negative_estimate_is_a_distance_of_zero_and_is_counted() -> None:
    made = [*rows("M0", 0.0, 0.0, 0.0), *rows("M1", 0.0, 0.0, -3.0), *rows("M2", 0.0, 0.0, 1.0)]
    found = meter(made, PLACES, seed=1)
    assert found["points"][1]["sqrt_kl"]["mean"] == 0.0
    assert [(fit["points"], fit["at_zero"], fit["unmeasured"]) for fit in found["fits"].values()] == [(1, 1, 0)] * 2


def test_intervals_of_gains_are_those_that_decide() -> None:
    made = [*rows("M0", 0.0, 0.0, 0.0, prompts=5), *rows("M1", 1.0, 0.0, 1.0, prompts=5)]
    made = [replace(r, gold=r.gold + 0.1 * int(r.prompt_id[1:]) ** 2) if r.model == "M1" else r for r in made]
    found = meter(made, PLACES, seed=1)
    gain = found["points"][1]["gold_gain"]
    changes = [0.1 * p * p for p in range(5)]
    assert (gain["low"], gain["high"]) == pytest.approx(t.interval(0.95, 4, loc=gain["mean"], scale=sem(changes)))
    (chosen,) = found["choice"]["gains"]
    assert (chosen["mean"], chosen["low"], chosen["high"]) == (gain["mean"], gain["low"], gain["high"])
    assert found["intervals"]["gains"].startswith("Student's t")


@pytest.mark.parametrize("evaluated", [("base", "M1@1", "M1"), ("base",)])
@pytest.mark.parametrize("gold", [0.5, math.nan])
def test_without_answers_of_the_start_there_is_a_reason_and_no_number(evaluated: tuple[str, ...], gold: float) -> None:
    """Another checkpoint would be at distance 0 from itself, though its KL to the start is 4."""
    found = meter([row for name in evaluated for row in rows(name, 1.0, gold, 4.0)], PLACES, seed=1)
    assert "M0" in found["reason"] and "add M0 to evaluation.models" in found["reason"]
    assert found["points"] == found["steps"] == [] and found["choice"] is found["stop"] is None
    assert found["fits"].keys() == ({"proxy"} if math.isnan(gold) else {"proxy", "gold"})
    assert all(fit["best_of_n"] is None and fit["points"] == 0 for fit in found["fits"].values())
    assert json.dumps(found, allow_nan=False)


def test_with_answers_of_the_start_there_is_no_reason() -> None:
    assert meter(rows("M0", 0.0, 0.0, 0.0), PLACES, seed=1)["reason"] == ""
    with pytest.raises(ValueError, match="began from"):
        meter(rows("M0", 0.0, 0.0, 0.0), [], seed=1)


def test_steps_and_stops_follow_the_branches_of_training() -> None:
    """M2 begins from the snapshot M1@1, not from M1; gold falls once on either way from there."""
    places = [*PLACES[:3], replace(PLACES[3], parent="M1@1")]
    made = [row for k, place in enumerate(places) for row in rows(place.name, 1.0 * k, (0.0, 0.5, 0.3, 0.1)[k], k * k)]
    found = meter(made, places, seed=1)
    assert [(s["start"], s["end"]) for s in found["steps"]] == [("M0", "M1@1"), ("M1@1", "M1"), ("M1@1", "M2")]
    assert [p["parent"] for p in found["points"]] == [None, "M0", "M1@1", "M1@1"]
    assert found["stop"]["stop"] is None and [one["end"] for one in found["stop"]["others"]] == ["M1"]
    assert run((0.0, 0.5, 0.3, 0.1))["stop"]["stop"] == 3, "in one line it would stop"  # type: ignore[index]


def test_a_step_leads_from_the_nearest_ancestor_that_was_evaluated() -> None:
    places = [*PLACES[:3], replace(PLACES[3], parent="M1@1")]

    def parents(*names: str) -> list[str | None]:
        found = meter([row for name in names for row in rows(name, 0.0, 0.0, 1.0)], places, seed=1)
        assert [(s["start"], s["end"]) for s in found["steps"]] == [(p["parent"], p["name"]) for p in found["points"][1:]]
        return [p["parent"] for p in found["points"]]

    assert parents("M0", "M1@1", "M2") == [None, "M0", "M1@1"]
    assert parents("M0", "M1", "M2") == [None, "M0", "M0"], "M1 is no ancestor of M2"
    places[3] = replace(PLACES[3], parent="base")
    found = meter([row for name in ("M0", "M2") for row in rows(name, 0.0, 0.0, 1.0)], places, seed=1)
    assert found["points"][1]["parent"] == "base" and found["steps"] == []
