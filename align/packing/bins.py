"""Which examples go through the model together: bins of at most so many tokens, even over processes.

Every process works out the same plan from the lengths alone, so nothing is exchanged.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bin:
    """Examples of one micro-batch by index; `real` is False for a repeated one that only keeps processes in step."""

    members: tuple[int, ...]
    real: bool = True


def _packed(sizes: Sequence[int], budget: int, at_least: int) -> list[list[int]]:
    """As few bins as fill evenly within the budget: the largest example first, each into the emptiest bin."""
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    alone = [[i] for i in order if sizes[i] > budget]
    rest = order[len(alone) :]
    count = max(-(-sum(sizes[i] for i in rest) // budget), min(at_least, len(sizes)) - len(alone), 1 if rest else 0)
    while rest:
        heap = [(0, number) for number in range(count)]
        bins: list[list[int]] = [[] for _ in range(count)]
        for i in rest:
            load, number = heap[0]
            heapq.heapreplace(heap, (load + sizes[i], number))
            bins[number].append(i)
        if max(heap)[0] <= budget:
            return alone + [members for members in bins if members]
        count += 1 + count // 50
    return alone


def _split(bins: list[list[int]], count: int) -> list[list[int]]:
    """Halve the fullest bins until there are `count`."""
    while len(bins) < count:
        fullest = max(range(len(bins)), key=lambda b: (len(bins[b]), -b))
        members = bins.pop(fullest)
        bins[fullest:fullest] = [members[: len(members) // 2], members[len(members) // 2 :]]
    return bins


def _padded(sizes: Sequence[int], budget: int, at_least: int) -> list[list[int]]:
    """Runs of like length: a bin costs its longest example times their number."""
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    bins: list[list[int]] = []
    for i in order:
        if bins and sizes[bins[-1][0]] * (len(bins[-1]) + 1) <= budget:
            bins[-1].append(i)
        else:
            bins.append([i])
    return _split(bins, min(at_least, len(sizes)))


def plan_bins(sizes: Sequence[int], budget: int, *, processes: int = 1, padded: bool = False) -> list[list[Bin]]:
    """Part the examples of an optimizer step into micro-batches.

    Args:
        sizes: tokens of each example; where `padded`, of the rectangle it needs.
        budget: most tokens of a micro-batch; an example above it goes alone.
        processes: over how many the step is spread; each gets the same number of micro-batches, so that collective calls
            meet, and those that run side by side are of like size.
        padded: micro-batches are rectangles as wide as their longest example.

    Returns:
        for each process its bins. Every example is in exactly one real bin; bins that are not real repeat the smallest
        example where there are too few, and must be given no weight.

    Raises:
        ValueError: no example, or a budget or number of processes below 1.
    """
    if not sizes or budget < 1 or processes < 1:
        raise ValueError(f"cannot plan {len(sizes)} examples in bins of {budget} tokens for {processes} processes")
    make = _padded if padded else _packed
    bins = make(sizes, budget, processes)
    if len(bins) % processes and len(bins) < len(sizes):
        bins = make(sizes, budget, len(bins) + -len(bins) % processes)
    cost = {id(members): sum(sizes[i] for i in members) for members in bins}
    bins.sort(key=lambda members: (-cost[id(members)], members[0]))
    planned = [Bin(tuple(sorted(members))) for members in bins]
    smallest = min(range(len(sizes)), key=lambda i: (sizes[i], i))
    planned += [Bin((smallest,), real=False)] * (-len(planned) % processes)
    return [planned[rank::processes] for rank in range(processes)]
