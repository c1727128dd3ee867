"""How far two reward models agree on the order of a prompt's responses, many prompts at a time.

Scores have shape (..., N): the last axis runs over the responses of one prompt, and a boolean mask `valid` of the same shape
is False at padding and at responses that are left out. One prompt, (N,), gives a float; a block, (P, N), gives a (P,)
float64 array. Pure NumPy without a loop over prompts; a block needs a few boolean arrays of shape (P, N, N), so some
thousand prompts at a time are a good size. Unequal shapes and places outside 0..N-1 raise ValueError.

Every measure works on ranks, so the two models' scales need not match: replacing either model's scores by a strictly
increasing function of them changes nothing. A NaN among the valid scores makes a measure NaN, and so do fewer than two valid
responses, which have no order. How large a value has to be depends on N: see `reward.agreement_null`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]
Scores: TypeAlias = Sequence[float] | Sequence[Sequence[float]] | Floats
Places: TypeAlias = int | Sequence[int] | NDArray[np.integer[Any]]
Valid: TypeAlias = ArrayLike | None
Values: TypeAlias = Any  # a float for one prompt, a (P,) float64 array for a block; types cannot tell (N,) from (P, N)

MEASURES = ("gap", "kendall", "spearman", "sign", "top1", "bottom1", "overlap")


@dataclass(frozen=True)
class Order:
    """How one model orders the valid responses of each prompt; what all measures are made of.

    Attributes:
        above: (..., N, N), response i scores above response j; False in the rows and columns of invalid places.
        lower: (..., N), valid responses that score below this one.
        higher: (..., N), valid responses that score above this one.
        valid: (..., N).
        count: (...), the number n of valid responses.
        complete: (...), no valid score is NaN.
    """

    above: NDArray[np.bool_]
    lower: NDArray[np.int64]
    higher: NDArray[np.int64]
    valid: NDArray[np.bool_]
    count: NDArray[np.int64]
    complete: NDArray[np.bool_]

    @classmethod
    def of(cls, scores: Scores, valid: Valid = None) -> Order:
        """The order of (..., N) scores.

        Raises:
            ValueError: scores without an axis of responses, or a mask of another shape.
        """
        values = np.asarray(scores, dtype=np.float64)
        mask = np.ones(values.shape, dtype=np.bool_) if valid is None else np.asarray(valid, dtype=np.bool_)
        if not values.ndim or mask.shape != values.shape:
            raise ValueError(f"scores of shape {values.shape} and a mask of shape {mask.shape}")
        missing = np.isnan(values)
        complete = np.asarray(~(missing & mask).any(axis=-1))
        # No comparison with NaN is true, so invalid places stand neither above nor below any other.
        values = np.where(mask, values, np.nan)
        above = values[..., :, None] > values[..., None, :]
        return cls(above, above.sum(axis=-1), above.sum(axis=-2), mask, mask.sum(axis=-1), complete)

    @property
    def ranks(self) -> Floats:
        """(..., N) average ranks, NaN at invalid places and in prompts with a NaN score."""
        # lower + (equal + 1) / 2 with equal = n - lower - higher, the response itself among the equal ones.
        ranks = (self.count[..., None] + 1 + self.centred) / 2
        return np.where(self.valid & self.complete[..., None], ranks, np.nan)

    @property
    def centred(self) -> NDArray[np.int64]:
        """(..., N), twice the distance of the average rank from its mean (n + 1) / 2; 0 at invalid places."""
        return self.lower - self.higher

    @property
    def best(self) -> NDArray[np.bool_]:
        """(..., N), none scores above it."""
        return self.valid & (self.higher == 0)

    @property
    def worst(self) -> NDArray[np.bool_]:
        """(..., N), none scores below it."""
        return self.valid & (self.lower == 0)

    def membership(self, k: NDArray[np.int64]) -> Floats:
        """(..., N) probabilities to be among the `k` (...) best when ties are broken at random."""
        tied = np.maximum(self.count[..., None] - self.lower - self.higher, 1)
        return np.where(self.valid, np.clip((k[..., None] - self.higher) / tied, 0.0, 1.0), 0.0)


def _orders(scores1: Scores, scores2: Scores, valid: Valid) -> tuple[Order, Order]:
    if np.shape(scores1) != np.shape(scores2):
        raise ValueError(f"scores of shape {np.shape(scores1)} of one model and {np.shape(scores2)} of the other")
    return Order.of(scores1, valid), Order.of(scores2, valid)


def as_values(array: NDArray[Any]) -> Values:
    """A float where there is one prompt without an axis, else the array itself."""
    return float(array) if array.ndim == 0 else array


def slots(top_k: int, count: NDArray[np.int64]) -> NDArray[np.int64]:
    """(...) size of the top-k set: `top_k`, but at most n - 1, since all n of both models always overlap.

    Raises:
        ValueError: `top_k` below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k {top_k} must be at least 1")
    return np.clip(top_k, 1, np.maximum(count - 1, 1))


def _at(array: Floats, places: Places) -> Floats:
    """(...) entries of (..., N) at one place each."""
    index = np.broadcast_to(np.asarray(places, dtype=np.int64), array.shape[:-1])
    if ((index < 0) | (index >= array.shape[-1])).any():
        raise ValueError(f"winner or loser outside of the {array.shape[-1]} responses")
    return np.take_along_axis(array, index[..., None], axis=-1)[..., 0]


def _where(defined: NDArray[np.bool_], values: NDArray[Any]) -> Floats:
    return np.where(defined, values, np.nan)


def _ratio(numerator: NDArray[np.int64], square1: NDArray[np.int64], square2: NDArray[np.int64]) -> Floats:
    """numerator / sqrt(square1 * square2) in [-1, 1], NaN where a square is 0.

    The three are integers. The root of the one exact product keeps a perfect 1 at exactly 1, so that a threshold of 1 means
    what it says; two roots would not.
    """
    product = square1.astype(np.float64) * square2
    return numerator / np.sqrt(_where(product > 0, product))


def _gap(order: Order, winner: Places, loser: Places) -> Floats:
    ranks = order.ranks
    distance = _at(ranks, winner) - _at(ranks, loser)
    return distance / _where(order.count > 1, order.count - 1)


def _kendall(first: Order, second: Order) -> Floats:
    concordant = (first.above & second.above).sum(axis=(-2, -1))
    discordant = (first.above & second.above.swapaxes(-2, -1)).sum(axis=(-2, -1))
    tau = _ratio(concordant - discordant, first.lower.sum(axis=-1), second.lower.sum(axis=-1))
    return _where(first.complete & second.complete, tau)


def _spearman(first: Order, second: Order) -> Floats:
    covariance = (first.centred * second.centred).sum(axis=-1)
    rho = _ratio(covariance, (first.centred**2).sum(axis=-1), (second.centred**2).sum(axis=-1))
    return _where(first.complete & second.complete, rho)


def _same_set(first: Order, second: Order, set1: NDArray[np.bool_], set2: NDArray[np.bool_]) -> Floats:
    return _where(first.complete & second.complete & (first.count > 1), np.asarray((set1 == set2).all(axis=-1)))


def _overlap(first: Order, second: Order, top_k: int) -> Floats:
    k = slots(top_k, first.count)
    shared = (first.membership(k) * second.membership(k)).sum(axis=-1) / k
    return _where(first.complete & second.complete & (first.count > 1), shared)


def _measure(name: str, first: Order, second: Order, winner: Places, loser: Places, top_k: int) -> Values:
    if name == "gap":
        value = _gap(second, winner, loser)
    elif name == "sign":
        value = np.sign(_gap(second, winner, loser))
    elif name == "kendall":
        value = _kendall(first, second)
    elif name == "spearman":
        value = _spearman(first, second)
    elif name == "top1":
        value = _same_set(first, second, first.best, second.best)
    elif name == "bottom1":
        value = _same_set(first, second, first.worst, second.worst)
    elif name == "overlap":
        value = _overlap(first, second, top_k)
    else:
        raise ValueError(f"unknown agreement {name!r}; known are {', '.join(MEASURES)}")
    return as_values(value)


def average_ranks(scores: Scores, valid: Valid = None) -> Floats:
    """(..., N) ranks from 1 (lowest) to n (highest) among the n valid responses; equal scores share their mean place.

    NaN at invalid places. Infinities are ordinary extremes. Any NaN score among the valid ones makes all ranks of that
    prompt NaN, since the place of every other score is then unknown.
    """
    return Order.of(scores, valid).ranks


def gap(scores2: Scores, winner: Places, loser: Places, valid: Valid = None) -> Values:
    """Normalised rank distance of the pair under the second model: (rank2[winner] - rank2[loser]) / (n - 1), in [-1, 1].

    1 = the second model too puts the winner first and the loser last; 0 = it scores them equal; negative = it prefers the
    loser. Ties elsewhere shrink it, because tied responses share a rank. NaN for n < 2, where a valid score is NaN, and
    where the winner or the loser is not valid.
    """
    return as_values(_gap(Order.of(scores2, valid), winner, loser))


def sign(scores2: Scores, winner: Places, loser: Places, valid: Valid = None) -> Values:
    """1 where the second model also scores the winner above the loser, 0 where equal, -1 where below; NaN as for `gap`."""
    return as_values(np.sign(_gap(Order.of(scores2, valid), winner, loser)))


def kendall_tau_b(scores1: Scores, scores2: Scores, valid: Valid = None) -> Values:
    """Kendall's tau-b: (C - D) / sqrt((P - T1)(P - T2)), in [-1, 1].

    C and D count pairs of responses in the same and in opposite order, P = n(n-1)/2, T1 and T2 the pairs tied under each
    model (Kendall 1945; as `scipy.stats.kendalltau`). NaN where a valid score is NaN, n < 2, or one model ties everything.
    """
    return as_values(_kendall(*_orders(scores1, scores2, valid)))


def spearman(scores1: Scores, scores2: Scores, valid: Valid = None) -> Values:
    """Spearman's rho: the Pearson correlation of the average ranks, in [-1, 1] (as `scipy.stats.spearmanr`).

    NaN where a valid score is NaN, n < 2, or one model ties everything.
    """
    return as_values(_spearman(*_orders(scores1, scores2, valid)))


def top1(scores1: Scores, scores2: Scores, valid: Valid = None) -> Values:
    """1 where both models have the same best response, else 0; with a tie for best the sets of best must be equal.

    NaN where a valid score is NaN or n < 2.
    """
    first, second = _orders(scores1, scores2, valid)
    return as_values(_same_set(first, second, first.best, second.best))


def bottom1(scores1: Scores, scores2: Scores, valid: Valid = None) -> Values:
    """1 where both models have the same worst response, else 0; with a tie for worst the sets of worst must be equal.

    NaN where a valid score is NaN or n < 2.
    """
    first, second = _orders(scores1, scores2, valid)
    return as_values(_same_set(first, second, first.worst, second.worst))


def top_k_overlap(scores1: Scores, scores2: Scores, k: int = 2, valid: Valid = None) -> Values:
    """Share of the k best responses that the two models have in common, in [0, 1]; k is at most n - 1.

    Where a tie crosses the border of the top k, each tied response is in the set with probability slots / tied, its
    membership m; the overlap is sum(m1 * m2) / k, its mean over independent random breaks of the ties. It is therefore below
    1 where both models have the same tie at the border. NaN where a valid score is NaN or n < 2.

    Raises:
        ValueError: k below 1.
    """
    return as_values(_overlap(*_orders(scores1, scores2, valid), k))


def measure(
    name: str,
    selector_scores: Scores,
    validator_scores: Scores,
    winner: Places,
    loser: Places,
    valid: Valid = None,
    top_k: int = 2,
) -> Values:
    """The measure `name` of one prompt or of a block.

    Args:
        name: one of `MEASURES`.
        selector_scores: (..., N) scores of the model that chose the pair.
        validator_scores: (..., N) scores of the other model, same responses in the same order.
        winner: place of the chosen response, an int or (...) ints.
        loser: place of the rejected one.
        valid: (..., N), see the module.
        top_k: size of the sets that "overlap" compares.

    Raises:
        ValueError: an unknown name, unequal shapes, a place outside of the responses, or `top_k` below 1.
    """
    return _measure(name, *_orders(selector_scores, validator_scores, valid), winner, loser, top_k)


def all_measures(
    selector_scores: Scores, validator_scores: Scores, winner: Places, loser: Places, valid: Valid = None, top_k: int = 2
) -> dict[str, Values]:
    """Every one of `MEASURES` by name, from one comparison of the scores; arguments and errors as for `measure`."""
    first, second = _orders(selector_scores, validator_scores, valid)
    return {name: _measure(name, first, second, winner, loser, top_k) for name in MEASURES}
