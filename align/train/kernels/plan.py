"""Which rows the fused loss takes together, and by which route.

Routes, with the matrix products each costs (one product is 2 N V d operations):
    kept        logits, dX, dW (6NVd): the logits of the rows stay until their loss is known, then become its gradient.
    recomputed  logits twice, dX, dW (8NVd): only tiles of logits fit, so they are formed again once the loss is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

# Bytes that logits may take. 1 GiB is 5,242 rows of bfloat16 at V = 102,400: enough for reading W and dW once a group to
# matter little, and small beside the float32 dW of such a head (1.6 GiB at d = 4,096).
CUDA_BUDGET_BYTES = 2**30
# 2,730 bfloat16 rows at V = 49,152. On a CPU speed hardly depends on it (measured there with 2,048 rows: 64 MiB is 5 %
# faster, 16 MiB 10 % and 8 MiB 40 % slower), but a pair that does not fit costs a third more: hence room for long pairs.
CPU_BUDGET_BYTES = 2**28


@dataclass(frozen=True)
class Group:
    """Units [start_unit, stop_unit) that are handled at once."""

    start_unit: int
    stop_unit: int
    route: Literal["kept", "recomputed"]


def plan_groups(bounds: Sequence[int], vocab: int, bytes_per_logit: int, budget: int) -> list[Group]:
    """Consecutive units in groups as large as the budget allows; a unit is never cut.

    Args:
        bounds: unit u has rows [bounds[u], bounds[u + 1]).
        vocab: logits of a row.
        bytes_per_logit: of the compute dtype.
        budget: bytes that logits may take, > 0.

    Returns:
        groups that cover all units in order. A unit whose logits alone exceed the budget is a group of its own and
        recomputed; all others are kept.
    """
    rows_allowed = budget // (vocab * bytes_per_logit)
    groups: list[Group] = []
    start = 0
    for unit in range(len(bounds) - 1):
        if bounds[unit + 1] - bounds[start] <= rows_allowed:
            continue
        if unit > start:
            groups.append(Group(start, unit, "kept"))
        start = unit
        if bounds[unit + 1] - bounds[unit] > rows_allowed:
            groups.append(Group(unit, unit + 1, "recomputed"))
            start = unit + 1
    if start < len(bounds) - 1:
        groups.append(Group(start, len(bounds) - 1, "kept"))
    return groups


def cut_tiles(start: int, stop: int, vocab: int, bytes_per_logit: int, budget: int) -> list[tuple[int, int]]:
    """Rows [start, stop) in the fewest tiles whose logits fit the budget, of nearly equal size, one row at least each."""
    rows_allowed = max(1, budget // (vocab * bytes_per_logit))
    count = -(-(stop - start) // rows_allowed)
    return list(pairwise(start + (stop - start) * k // count for k in range(count + 1)))
