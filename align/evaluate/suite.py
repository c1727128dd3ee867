"""What evaluation suites have in common: questions from a file, conversations about them, and grades.

A suite's file is read into `Item`s; a model holds a conversation over the turns of each; grading gives one or several
`Grade`s per item. `summarize` turns the rows of many items into numbers with intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question of a suite.

    Attributes:
        id: unique in its suite.
        turns: what the user says, one turn after another; the model answers each before the next.
        category: groups items in the table.
        lang: of the answer that is expected, en or ko.
        temperature: of this item's answers; None = the suite's.
        data: what grading needs, such as references.
    """

    id: str
    turns: tuple[str, ...]
    category: str = ""
    lang: str = "en"
    temperature: float | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Grade:
    """One number about one item's conversation.

    Attributes:
        metric: its name, such as prompt_strict.
        value: NaN where it could not be graded; then `failure` says why.
        weight: in the mean over items, such as the number of instructions of a prompt; 0 only where there is nothing to grade.
        failure: reason in a word or two, such as no_score; empty if there is a value.
    """

    metric: str
    value: float
    weight: float = 1.0
    failure: str = ""

    def __post_init__(self) -> None:
        if math.isnan(self.value) != bool(self.failure):
            raise ValueError(f"{self.metric}: a value of {self.value} with failure {self.failure!r}")


Conversation = Sequence[Mapping[str, str]]  # messages with role and content, the model's last answer at the end
