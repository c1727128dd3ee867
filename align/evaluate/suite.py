"""What evaluation suites have in common: questions from a file, conversations about them, and grades.

A suite's file is read into `Item`s; a model holds a conversation over the turns of each; grading gives one or several
`Grade`s per item. `summarize` turns the rows of many items into numbers with intervals.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.core.rows import SuiteResult
from align.evaluate.metrics import BOOTSTRAPS
from reward.audit import wilson as share_interval


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
        weight: in the mean over items, such as the number of instructions of a prompt.
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
# How the names of metrics begin that are no shares of something: marks of judges (score, turn_1), nats per token.
NO_SHARES = ("score", "turn_", "nats_")


def summarize(results: Sequence[SuiteResult], models: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Means of every metric, by model and category, with 95 % intervals; a failure has no value and is counted.

    An item weighs as its grades say. Intervals are percentile bootstraps over items, the unit that was drawn; the change
    against the first model is over the grades that both have, paired by item and, in it, by turn or game. Where every item
    counts 0 or 1 in a share they are Wilson's (1927) and, for changes, Agresti and Min's (2005, doi:10.1002/sim.1781): a
    bootstrap of twelve zeros would know no doubt. Marks and nats are no shares, whatever their values.

    Args:
        results: of one suite.
        models: what is put side by side, the first as the one that changes are against.
        seed: of the bootstraps.

    Returns:
        {metric: {model: {mean, low, high, items, failed: {reason: count}, categories: {name: {mean, items}},
        change: {mean, low, high, items} against the first model, or None for itself}}}; None where undefined.
    """
    metrics = dict.fromkeys(row.metric for row in results)
    return {metric: _of_metric([r for r in results if r.metric == metric], models, seed) for metric in metrics}


def _of_metric(rows: Sequence[SuiteResult], models: Sequence[str], seed: int) -> dict[str, Any]:
    first = _by_key([r for r in rows if r.model == models[0]])
    share = bool(rows) and not rows[0].metric.startswith(NO_SHARES)
    found = {}
    for model in models:
        mine = [r for r in rows if r.model == model]
        by_key, items = _by_key(mine), _by_item(mine)
        categories = dict.fromkeys(r.category for r in mine if r.category)
        shared = sorted(by_key.keys() & first.keys())
        ours, theirs = (_by_item([of[key] for key in shared]) for of in (by_key, first))
        change = [(*ours[i], *theirs[i]) for i in sorted(ours)]
        found[model] = {
            **_weighted([items[i] for i in sorted(items)], seed, share=share),
            "items": len(items),
            "failed": dict(Counter(r.failure for r in mine if r.failure)),
            "categories": {
                name: {"mean": _weighted(list(part.values()), seed, share=share)["mean"], "items": len(part)}
                for name in categories
                if (part := _by_item([r for r in mine if r.category == name]))
            },
            "change": None if model == models[0] else {**_weighted(change, seed, share=share), "items": len(change)},
        }
    return found


def _by_key(rows: Sequence[SuiteResult]) -> dict[tuple[str, str], SuiteResult]:
    """Rows that have a value, by item and turn or game."""
    return {(row.item_id, row.key): row for row in rows if not row.failure}


def _by_item(rows: Sequence[SuiteResult]) -> dict[str, tuple[float, float]]:
    """(weighted sum, weight) of each item that has a value; an item may have several grades, such as one for each turn."""
    sums: dict[str, tuple[float, float]] = {}
    for row in rows:
        if not row.failure:
            total, weight = sums.get(row.item_id, (0.0, 0.0))
            sums[row.item_id] = total + row.value * row.weight, weight + row.weight
    return sums


def _weighted(items: Sequence[tuple[float, ...]], seed: int, *, share: bool) -> dict[str, float | None]:
    """Mean of (sum, weight) pairs with its interval; of (sum, weight, sum, weight) the difference of the two means.

    `share` says that it is a share if all values are 0 or 1 and weigh 1, or if all weighted values are the same 0 or 1.
    """
    if not items:
        return {"mean": None, "low": None, "high": None}
    data = np.asarray(items, float)

    def mean(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        value: NDArray[np.float64] = sums[..., 0] / sums[..., 1]
        return value if sums.shape[-1] == 2 else value - sums[..., 2] / sums[..., 3]

    low = high = None
    rates = data[:, 0] / data[:, 1]
    if share and data.shape[1] == 2 and rates[0] in (0, 1) and (rates == rates[0]).all():
        low, high = wilson(np.full((effective_count(data[:, 1]), 1), rates[0]))
    elif share and np.isin(data[:, ::2], (0, 1)).all() and (data[:, 1::2] == 1).all():
        low, high = (wilson if data.shape[1] == 2 else _agresti_min)(data[:, ::2])
    elif len(data) > 1:
        draw = np.random.default_rng(seed).integers(0, len(data), (BOOTSTRAPS, len(data)))
        low, high = (round(float(v), 4) for v in np.quantile(mean(data[draw].sum(axis=1)), (0.025, 0.975)))
    return {"mean": round(float(mean(data.sum(axis=0))), 4), "low": low, "high": high}


def effective_count(weights: NDArray[np.float64]) -> int:
    """How many items of one weight say as much as these: sum(w)^2 / sum(w^2) (Kish 1965), rounded down."""
    return int(weights.sum() ** 2 / (weights**2).sum() + 1e-9)


def wilson(values: NDArray[np.float64]) -> tuple[float, float]:
    """Interval of a share, from (I, 1) zeros and ones."""
    low, high = share_interval(int(values.sum()), len(values))
    return (math.nan, math.nan) if low is None or high is None else (round(low, 4), round(high, 4))


def _agresti_min(values: NDArray[np.float64]) -> tuple[float, float]:
    """Interval of the difference of two shares over the same items (I, 2): half an item is added to each of four cells."""
    count = len(values) + 2
    up, down = (float(((values[:, 0] - values[:, 1]) == sign).sum()) + 0.5 for sign in (1, -1))
    middle, half = (up - down) / count, 1.959964 * math.sqrt(up + down - (up - down) ** 2 / count) / count
    return round(max(-1.0, middle - half), 4), round(min(1.0, middle + half), 4)
