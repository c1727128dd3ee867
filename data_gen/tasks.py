"""What instructions are asked for: task types, personas, levels, system prompts, and how many of each topic.

An instruction is asked of (topic, knowledge unit, task type, persona, language, difficulty). All draws are by hash of the
unit's id, so that more documents never change what is asked of the others, unless a quota divides it anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from align.core.hashing import derive_seed, unit_interval
from align.core.language import OTHER_LANGUAGE
from align.core.rows import Knowledge

# The request stands alone.
PLAIN_TASKS = (
    "question", "explain", "list", "compare", "advise", "reason", "plan", "code", "format", "role_play",
)  # fmt: skip
# The request is about a text that follows it.
INPUT_TASKS = ("summarize", "extract", "rewrite", "translate", "classify")
LEVELS = ("easy", "medium", "hard")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """One instruction asked of a unit; `number` tells repeated wishes of one unit and task type apart.

    `persona`, `level` and `system` are empty where nothing is said of them.
    """

    unit: Knowledge
    task_type: str
    number: int
    persona: str = ""
    level: str = ""
    system: str = ""

    @property
    def id(self) -> str:
        return f"{self.unit.id}/{self.task_type}/{self.number}"

    @property
    def answer_lang(self) -> str:
        return OTHER_LANGUAGE[self.unit.lang] if self.task_type == "translate" else self.unit.lang


@dataclass(frozen=True, kw_only=True)
class WishRules:
    """How many instructions are asked of what; the recipe's section `instructions` says what each is for.

    `per_unit` and `task_types` are by language.
    """

    per_unit: Mapping[str, int]
    task_types: Mapping[str, Sequence[str]]
    per_topic: int | None
    max_per_unit: int
    topic_weights: Mapping[str, float]
    personas: float
    levels: Sequence[str]
    system_prompts: float


def number_of_wishes(unit: Knowledge, path: str, units_in_topic: int, rules: WishRules, run_seed: int) -> int:
    """How many instructions are asked of a unit.

    Without a quota `per_unit` of its language; with `per_topic` an equal part of its topic's quota, so that topics with few
    units are asked more of each and full ones less. Times the weight of the topic or of the nearest node above it. What is
    left of a whole number decides by hash. A quota asks at most `max_per_unit`: one fact carries only so many requests.

    Args:
        path: of the unit's topic in the tree, domain/field/topic.
        units_in_topic: of its language.
    """
    wanted = rules.per_topic / units_in_topic if rules.per_topic else rules.per_unit[unit.lang]
    wanted *= weight_of(path, rules.topic_weights)
    whole = math.floor(wanted)
    more = unit_interval(run_seed, "quota", unit.id) < wanted - whole
    return min(whole + more, rules.max_per_unit) if rules.per_topic else whole + more


def weight_of(path: str, weights: Mapping[str, float]) -> float:
    """The weight of a topic: its own, else that of the nearest node above it that has one, else 1."""
    for node in reversed(path.split("/")):
        if node in weights:
            return weights[node]
    return 1.0


def wishes(
    unit: Knowledge, count: int, rules: WishRules, personas: Sequence[str], system_prompts: Sequence[str], run_seed: int
) -> Iterator[Wish]:
    """`count` wishes of a unit: task types in turn from a seeded place; persona, level and system prompt by hash."""

    def draw(what: str, number: int) -> int:
        return derive_seed(run_seed, what, unit.id, number)

    types = rules.task_types[unit.lang]
    start = derive_seed(run_seed, "task-type", unit.id) % len(types)
    for i in range(count):
        has_persona = unit_interval(run_seed, "has-persona", unit.id, i) < rules.personas
        has_system = unit_interval(run_seed, "has-system", unit.id, i) < rules.system_prompts
        yield Wish(
            unit=unit,
            task_type=types[(start + i) % len(types)],
            number=i // len(types),
            persona=personas[draw("persona", i) % len(personas)] if has_persona else "",
            level=rules.levels[draw("level", i) % len(rules.levels)] if rules.levels else "",
            system=system_prompts[draw("system", i) % len(system_prompts)] if has_system else "",
        )
