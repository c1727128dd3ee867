"""What is asked of a unit: quotas and weights, and the draws of task type, persona, level and system prompt."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from data_gen.tasks import (
    INPUT_TASKS,
    LEVELS,
    PLAIN_TASKS,
    Wish,
    WishRules,
    number_of_wishes,
    weight_of,
    wishes,
)
from tests.jobs import unit

SEED = 17
PATH = "science/biology/honey"
TASKS = (*PLAIN_TASKS, *INPUT_TASKS)
PEOPLE = [f"person {i}" for i in range(5)]
SYSTEMS = [f"system {i}" for i in range(4)]


def rules(**changes: Any) -> WishRules:
    options: dict[str, Any] = {
        "per_unit": {"en": 2, "ko": 1}, "task_types": TASKS, "per_topic": None, "max_per_unit": 8, "topic_weights": {},
        "personas": 0.3, "levels": LEVELS, "system_prompts": 0.2,
    }  # fmt: skip
    options |= changes
    return WishRules(**{**options, "task_types": dict.fromkeys(("en", "ko"), options["task_types"])})


def numbers(count: int, lang: str = "en", *, seed: int = SEED, **changes: Any) -> list[int]:
    """How many are asked of each of the `count` units of a topic."""
    asked = rules(**changes)
    return [number_of_wishes(unit(lang, id=f"{lang}{i}"), PATH, count, asked, seed) for i in range(count)]


def wanted(number: int, count: int, seed: int = SEED, **changes: Any) -> list[Wish]:
    return list(wishes(unit(id=f"k{number}"), count, rules(**changes), PEOPLE, SYSTEMS, seed))


def test_without_a_quota_every_unit_is_asked_the_same_of_its_language() -> None:
    assert numbers(50) == [2] * 50
    assert numbers(50, "ko") == [1] * 50
    assert numbers(3, per_unit={"en": 12}) == [12] * 3, "max_per_unit is for quotas"


@pytest.mark.parametrize("quota", [5, 60, 1000])
@pytest.mark.parametrize("count", [7, 40, 700])
def test_a_quota_is_shared_by_the_units_of_its_topic(quota: int, count: int) -> None:
    share = quota / count
    asked = numbers(count, per_topic=quota, max_per_unit=10**6)
    assert set(asked) <= {math.floor(share), math.ceil(share)}, "an equal part of each"
    part = share - math.floor(share)
    assert abs(sum(asked) - quota) <= 4 * math.sqrt(count * part * (1 - part))


def test_a_quota_is_kept_on_average() -> None:
    """Over many topics the sum is the quota, which rounding each unit down or up would miss."""
    topics = [numbers(3, per_topic=5, seed=seed) for seed in range(1000)]
    deviation = math.sqrt(3 * (2 / 3) * (1 / 3))
    assert abs(sum(map(sum, topics)) / 1000 - 5) < 4 * deviation / math.sqrt(1000)


def test_a_unit_carries_only_so_many_requests() -> None:
    assert numbers(2, per_topic=100, max_per_unit=8) == [8, 8]
    assert numbers(2, per_topic=100, max_per_unit=50) == [50, 50]
    assert max(numbers(40, per_topic=20, max_per_unit=1)) == 1


@pytest.mark.parametrize(
    ("weights", "weight"),
    [
        ({}, 1.0),
        ({"honey": 3.0}, 3.0),
        ({"biology": 2.0}, 2.0),
        ({"science": 0.5}, 0.5),
        ({"honey": 3.0, "biology": 2.0, "science": 0.5}, 3.0),
        ({"biology": 2.0, "science": 0.5}, 2.0),
        ({"history": 9.0, "bio": 9.0}, 1.0),
        ({"science": 2.0, "honey": 0.0}, 0.0),
    ],
)
def test_the_nearest_weight_counts(weights: dict[str, float], weight: float) -> None:
    assert weight_of(PATH, weights) == weight
    asked = numbers(600, topic_weights=weights)
    part = 2 * weight - math.floor(2 * weight)
    assert abs(sum(asked) - 600 * 2 * weight) <= 4 * math.sqrt(600 * part * (1 - part))
    of_quota = numbers(600, per_topic=900, topic_weights=weights, max_per_unit=100)
    part = 1.5 * weight - math.floor(1.5 * weight)
    assert abs(sum(of_quota) - 900 * weight) <= 4 * math.sqrt(600 * part * (1 - part))


def test_weight_0_asks_none() -> None:
    assert numbers(100, topic_weights={"science": 0.0}) == [0] * 100
    assert numbers(100, per_topic=999, topic_weights={"science": 0.0}) == [0] * 100
    assert wanted(1, 0) == []


def test_wishes_do_not_move_when_others_are_added() -> None:
    """A wish depends on its own unit alone: neither on other units nor on how many more are asked of it."""
    for number in range(50):
        assert wanted(number, 20)[:6] == wanted(number, 6)
    before = {f"en{i}": n for i, n in enumerate(numbers(30))}
    after = {f"en{i}": n for i, n in enumerate(numbers(60))}
    assert all(after[name] == n for name, n in before.items())
    assert [wanted(n, 6) for n in range(50)] != [wanted(n, 6, seed=18) for n in range(50)]


def test_task_types_take_turns() -> None:
    starts: Counter[str] = Counter()
    for number in range(600):
        found = wanted(number, 20)
        types = [wish.task_type for wish in found]
        assert sorted(types[:15]) == sorted(TASKS), "all before one comes again"
        assert types[15:] == types[:5]
        assert [wish.number for wish in found] == [0] * 15 + [1] * 5
        assert len({wish.id for wish in found}) == 20
        starts[types[0]] += 1
    assert set(starts) == set(TASKS)
    assert all(abs(n - 40) < 4 * math.sqrt(40) for n in starts.values())


def test_task_types_are_spread_evenly_and_repeatable() -> None:
    types = ("question", "explain", "list")
    chosen = {i: [w.task_type for w in wanted(i, 2, task_types=types)] for i in range(600)}
    assert all(len(set(c)) == 2 for c in chosen.values())
    counts = Counter(t for c in chosen.values() for t in c)
    assert all(330 < counts[t] < 470 for t in types)
    assert [w.task_type for w in wanted(5, 2, task_types=types)] == chosen[5]
    assert Counter(w.task_type for w in wanted(1, 7, task_types=types)).most_common(1)[0][1] == 3


def test_repeated_wishes_are_draws_of_their_own() -> None:
    found = wanted(1, 6, task_types=("list", "explain")) + wanted(2, 1, task_types=("list",))
    assert [(w.unit.id, w.number) for w in found] == [("k1", n) for n in (0, 0, 1, 1, 2, 2)] + [("k2", 0)]
    assert len({w.id for w in found}) == 7


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_personas_and_system_prompts_have_their_shares(share: float) -> None:
    drawn = [wish for n in range(500) for wish in wanted(n, 8, personas=share, system_prompts=share)]
    limit = 4 * math.sqrt(len(drawn) * share * (1 - share))
    for names, allowed in ((Counter(w.persona for w in drawn), PEOPLE), (Counter(w.system for w in drawn), SYSTEMS)):
        without = names.pop("", 0)
        assert abs(len(drawn) - without - share * len(drawn)) <= limit
        assert set(names) == (set(allowed) if share else set())
        mean = share * len(drawn) / len(allowed)
        assert all(abs(n - mean) < 5 * math.sqrt(mean) for n in names.values()), "each as often as the others"


def test_personas_and_system_prompts_are_drawn_apart() -> None:
    drawn = [wish for n in range(1000) for wish in wanted(n, 4, personas=0.5, system_prompts=0.5)]
    both = sum(bool(wish.persona and wish.system) for wish in drawn)
    assert abs(both - len(drawn) / 4) < 4 * math.sqrt(len(drawn) * 3 / 16)


def test_levels_are_drawn_evenly_or_not_at_all() -> None:
    drawn = Counter(wish.level for n in range(500) for wish in wanted(n, 6))
    assert set(drawn) == set(LEVELS)
    assert all(abs(n - 1000) < 4 * math.sqrt(3000 * 2 / 9) for n in drawn.values())
    assert {wish.level for wish in wanted(1, 20, levels=())} == {""}
    assert {wish.level for n in range(50) for wish in wanted(n, 6, levels=("hard",))} == {"hard"}


@pytest.mark.parametrize(("lang", "other"), [("en", "ko"), ("ko", "en")])
def test_only_translations_are_answered_in_the_other_language(lang: str, other: str) -> None:
    found = {w.task_type: w.answer_lang for w in wishes(unit(lang), 15, rules(), PEOPLE, SYSTEMS, SEED)}
    assert found.pop("translate") == other
    assert set(found.values()) == {lang} and len(found) == 14
