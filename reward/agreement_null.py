"""What values of agreement two unrelated reward models would show.

Null hypothesis: the validator's scores are a random permutation among the prompt's valid responses. Ties of either model
keep their pattern, and the pair (winner, loser), however the selector's scores chose it, then lies at a uniformly random
ordered pair of the validator's places.

Exact for every number n of responses: gap and sign (counting), top1, bottom1 and overlap (hypergeometric), and kendall where
at least one model has no ties (inversions of a multiset permutation). kendall with ties of both models and spearman are
exact by enumeration up to n = 8, and beyond it estimated from 20,000 permutations of a fixed seed. Distributions are
cached by the tie patterns, so that any number of prompts without ties costs one per n.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward.agreement import MEASURES, Floats, Order, Places, Scores, Valid, Values, as_values, measure, slots

MAX_ENUMERATED = 8  # 8! = 40,320 permutations
DRAWS = 20_000
SEED = 0
TOLERANCE = 1e-9  # of values and probabilities that are equal but for rounding

Ranks = tuple[int, ...]  # doubled average ranks, which are integers, ascending


@dataclass(frozen=True)
class _Null:
    """A distribution of V: K ascending values, their probabilities, and K + 1 tails, tails[i] = P(V >= values[i])."""

    values: Floats
    probabilities: Floats
    tails: Floats

    def p_value(self, observed: Floats) -> Floats:
        """P(V >= observed), elementwise; the last tail is that of an observation beyond all values."""
        return self.tails[np.searchsorted(self.values, observed - TOLERANCE)]


def _null(values: NDArray[Any], counts: NDArray[Any], *, drawn: bool = False) -> _Null:
    """The distribution with these counts, integers of any size, of which some may be 0.

    Tails of drawn permutations are (1 + count) / (1 + draws), which keeps a p-value valid (Phipson & Smyth 2010).
    """
    values, counts = values[counts > 0].astype(np.float64), counts[counts > 0]
    at_least = np.append(np.cumsum(counts[::-1])[::-1], 0)
    total = at_least[0]
    tails = (at_least + drawn) / (total + drawn)
    return _Null(values, (counts / total).astype(np.float64), tails.astype(np.float64))


def _pair_p_values(name: str, observed: Floats, ranks: Floats) -> Floats:
    """P for gap and sign: the share of ordered pairs (i, j), i != j, whose rank difference is at least the observed one."""
    count = (~np.isnan(ranks)).sum(axis=-1)
    # Ranks that differ do so by 1 or more, and by less than their number.
    least = observed * (count - 1) - TOLERANCE if name == "gap" else np.where(observed < 0, -count, observed / 2)
    pairs = (ranks[..., :, None] >= (ranks + least[..., None])[..., None, :]).sum(axis=(-2, -1))
    pairs = pairs - np.where(least <= 0, count, 0)  # i = j was counted too
    return np.where(np.isnan(observed), np.nan, pairs / np.maximum(count * (count - 1), 1))


@lru_cache(maxsize=4096)
def _same_set_null(n: int, size: int) -> _Null:
    """top1 and bottom1: a random set of this size out of n is the given one.

    The selector's set has that size. Should the validator's have another, the value is 0, and P(V >= 0) = 1 all the same.
    """
    return _null(np.array([0, 1]), np.array([math.comb(n, size) - 1, 1], dtype=object))


@lru_cache(maxsize=4096)
def _overlap_null(n: int, k: int, full1: int, split1: int, full2: int, split2: int) -> _Null:
    """overlap: each model has `full` responses in its top k for certain, and `split` tied ones share the slots left.

    Counted in units of 1 / (k * split1 * split2), over how the second model's two sets fall on the first's (multivariate
    hypergeometric).
    """
    left1, left2 = k - full1, k - full2
    split1, split2 = max(split1, 1), max(split2, 1)  # without a tie at the border no slot is left, and any size will do
    counts: dict[int, int] = {}
    for a, b in itertools.product(range(full1 + 1), range(min(full1, split2) + 1)):
        for c, d in itertools.product(range(split1 + 1), range(min(split1, split2) + 1)):
            rest = n - full1 - split1
            outside_full, outside_split = full2 - a - c, split2 - b - d
            if min(outside_full, outside_split) < 0 or a + b > full1 or c + d > split1 or rest < outside_full:
                continue
            ways = math.comb(full1, a) * math.comb(full1 - a, b) * math.comb(split1, c) * math.comb(split1 - c, d)
            ways *= math.comb(rest, outside_full) * math.comb(rest - outside_full, outside_split)
            units = a * split1 * split2 + b * split1 * left2 + c * left1 * split2 + d * left1 * left2
            counts[units] = counts.get(units, 0) + ways
    units_seen = sorted(counts)
    values = np.array(units_seen, dtype=np.float64) / (k * split1 * split2)
    return _null(values, np.array([counts[u] for u in units_seen], dtype=object))


def _inversions(sizes: list[int]) -> NDArray[Any]:
    """Arrangements of a multiset with these multiplicities by their number of inversions, 0 up to the untied pairs.

    The coefficients of the q-multinomial (MacMahon 1915); for sizes 1, 1, ... the Mahonian numbers. Python integers.
    """
    counts = np.array([1], dtype=object)
    placed = 0
    for size in sizes:
        for part in range(1, size + 1):  # times (1 - q^placed) / (1 - q^part); every quotient is a polynomial
            placed += 1
            grown = np.append(counts, np.zeros(placed, dtype=object))
            grown[placed:] -= counts
            for start in range(part):
                grown[start::part] = np.cumsum(grown[start::part])
            counts = grown[: len(counts) + placed - part]
    return counts


@lru_cache(maxsize=16)
def _permutations(n: int) -> NDArray[np.intp]:
    """(n, R): all n! permutations in columns, or `DRAWS` random ones above `MAX_ENUMERATED`."""
    if n <= MAX_ENUMERATED:
        rows = np.array(list(itertools.permutations(range(n))), dtype=np.intp)
    else:
        rows = np.random.default_rng(SEED).permuted(np.tile(np.arange(n), (DRAWS, 1)), axis=1)
    return np.ascontiguousarray(rows.T)


def _untied_pairs(ranks: Ranks) -> int:
    return math.comb(len(ranks), 2) - sum(math.comb(ranks.count(rank), 2) for rank in set(ranks))


def _kendall_null(ranks1: Ranks, ranks2: Ranks) -> _Null:
    untied1, untied2 = _untied_pairs(ranks1), _untied_pairs(ranks2)
    scale = math.sqrt(untied1 * untied2)
    for untied, other, ranks in ((untied1, untied2, ranks2), (untied2, untied1, ranks1)):
        if untied == math.comb(len(ranks), 2):  # without ties of the one, the other's untied pairs are inverted or not
            sizes = [ranks.count(rank) for rank in sorted(set(ranks))]
            return _null(np.arange(-other, other + 1, 2) / scale, _inversions(sizes))
    # Bytes while they suffice: one place adds at most n - 1 to the difference, and comparing bytes is several times as fast.
    small: type[np.signedinteger[Any]] = np.int8 if len(ranks2) <= 127 else np.int16
    permuted = np.searchsorted(np.unique(ranks2), ranks2).astype(small).take(_permutations(len(ranks2)))
    difference = np.zeros(permuted.shape[1], dtype=np.int64)  # C - D of each permutation
    for place, rank in enumerate(ranks1):
        at_place: NDArray[np.signedinteger[Any]] = np.zeros(permuted.shape[1], dtype=small)
        for above in range(bisect_right(ranks1, rank), len(ranks1)):
            at_place += (permuted[above] > permuted[place]).view(np.int8)
            at_place -= (permuted[above] < permuted[place]).view(np.int8)
        difference += at_place
    return _counted(difference, scale, len(ranks1))


def _spearman_null(ranks1: Ranks, ranks2: Ranks) -> _Null:
    mean = len(ranks1) + 1  # of doubled ranks
    first, second = (np.array(ranks, dtype=np.float64) - mean for ranks in (ranks1, ranks2))
    # Whole numbers in float64: exact, and several times as fast as an integer product.
    covariance = (first @ second.take(_permutations(len(ranks2)))).astype(np.int64)
    return _counted(covariance, math.sqrt(float(first @ first) * float(second @ second)), len(ranks1))


def _counted(numerators: NDArray[np.int64], scale: float, n: int) -> _Null:
    """The distribution of numerators / scale, one numerator for each of `_permutations(n)`."""
    lowest = int(numerators.min())
    counts = np.bincount(numerators - lowest)
    return _null((np.arange(len(counts)) + lowest) / scale, counts, drawn=n > MAX_ENUMERATED)


def _rank_null(name: str, ranks1: Ranks, ranks2: Ranks) -> _Null:
    return _kendall_null(ranks1, ranks2) if name == "kendall" else _spearman_null(ranks1, ranks2)


# Small n: few values, and at most 2^(n-1) tie patterns a model. Large n: up to `DRAWS` values, and patterns seldom recur.
_small_null = lru_cache(maxsize=2**14)(_rank_null)
_large_null = lru_cache(maxsize=256)(_rank_null)


def _keys(name: str, first: Order, second: Order, top_k: int) -> NDArray[np.int64]:
    """(..., K) integers on which alone the null distribution of a prompt depends."""
    if name in ("kendall", "spearman"):
        both = (np.sort(2 * order.ranks, axis=-1) for order in (first, second))  # NaN comes last
        return np.nan_to_num(np.concatenate(list(both), axis=-1)).astype(np.int64)
    if name in ("top1", "bottom1"):
        chosen = first.best if name == "top1" else first.worst
        return np.stack([first.count, chosen.sum(axis=-1)], axis=-1)
    k = slots(top_k, first.count)
    columns = [first.count, k]
    for order in (first, second):
        member = order.membership(k)
        columns += [(member == 1).sum(axis=-1), ((member > 0) & (member < 1)).sum(axis=-1)]
    return np.stack(columns, axis=-1)


def _distribution(name: str, key: Ranks) -> _Null:
    """The null distribution that belongs to a row of `_keys`."""
    if name == "overlap":
        return _overlap_null(*key)
    if name in ("top1", "bottom1"):
        return _same_set_null(*key)
    halves = key[: len(key) // 2], key[len(key) // 2 :]
    ranks1, ranks2 = sorted(tuple(rank for rank in half if rank) for half in halves)  # both measures are symmetric
    cached = _small_null if len(ranks1) <= MAX_ENUMERATED else _large_null
    return cached(name, ranks1, ranks2)


def _groups(keys: NDArray[np.int64]) -> Iterator[tuple[Ranks, NDArray[np.int64]]]:
    """Each distinct row of (P, K) with the places where it stands."""
    whole_rows = np.ascontiguousarray(keys).view(np.dtype((np.void, keys.itemsize * keys.shape[1])))[:, 0]
    _, first, inverse = np.unique(whole_rows, return_index=True, return_inverse=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    for place, places in zip(first, members, strict=True):
        yield tuple(keys[place].tolist()), places


def null_p_value(
    name: str,
    selector_scores: Scores,
    validator_scores: Scores,
    winner: Places,
    loser: Places,
    valid: Valid = None,
    top_k: int = 2,
) -> Values:
    """P(measure under the null >= the observed value), one-sided: small where the models agree more than by chance.

    NaN where the measure is undefined. Discrete as the measures are, P(p <= alpha) is at most alpha under the null, and can
    be 0: for n = 4 no gap has p <= 0.05.

    Args:
        name: one of `reward.agreement.MEASURES`.
        selector_scores: (..., N) scores of the model that chose the pair.
        validator_scores: (..., N) scores of the other model, same responses in the same order.
        winner: place of the chosen response, an int or (...) ints.
        loser: place of the rejected one.
        valid: (..., N), see `reward.agreement`.
        top_k: size of the sets that "overlap" compares.

    Raises:
        ValueError: as `reward.agreement.measure`.
    """
    observed = np.asarray(measure(name, selector_scores, validator_scores, winner, loser, valid, top_k))
    second = Order.of(validator_scores, valid)
    if name in ("gap", "sign"):
        return as_values(_pair_p_values(name, observed, second.ranks))
    result = np.full(observed.size, np.nan)
    defined = np.flatnonzero(~np.isnan(observed))
    if defined.size:
        keys = _keys(name, Order.of(selector_scores, valid), second, top_k)
        for key, places in _groups(keys.reshape(observed.size, -1)[defined]):
            members = defined[places]
            result[members] = _distribution(name, key).p_value(observed.ravel()[members])
    return as_values(result.reshape(observed.shape))


def _untied_null(name: str, n: int, top_k: int) -> _Null:
    if name not in MEASURES or n < 2:
        raise ValueError(f"no null distribution of {name!r} at n = {n}; n is at least 2 and known are {', '.join(MEASURES)}")
    if name == "gap":
        steps = np.array([m for m in range(1 - n, n) if m])
        return _null(steps / (n - 1), n - np.abs(steps))
    if name == "sign":
        return _null(np.array([-1, 1]), np.array([1, 1]))
    order = Order.of(np.arange(n, dtype=np.float64))
    return _distribution(name, tuple(_keys(name, order, order, top_k).tolist()))


def null_pmf(name: str, n: int, top_k: int = 2) -> tuple[Floats, Floats]:
    """The possible values of a measure, ascending, and their probabilities, for unrelated models without ties.

    For spearman at n > 8 the values that were drawn and their frequencies.

    Raises:
        ValueError: an unknown name, n below 2, or `top_k` below 1.
    """
    null = _untied_null(name, n, top_k)
    return null.values.copy(), null.probabilities.copy()


def null_quantile(name: str, n: int, level: float, top_k: int = 2) -> float:
    """The smallest possible value v of a measure with P(value >= v) <= 1 - level, for unrelated models without ties.

    NaN where no value is that rare, as for a gap at n = 4 and level 0.95, where full agreement has 1/12.

    Raises:
        ValueError: an unknown name, n below 2, `top_k` below 1, or a level outside [0, 1).
    """
    if not 0 <= level < 1:
        raise ValueError(f"level {level} is not within 0 and 1")
    null = _untied_null(name, n, top_k)
    rare = np.flatnonzero(null.tails[:-1] <= 1 - level + TOLERANCE)
    return float(null.values[rare[0]]) if rare.size else math.nan
