"""How far two reward models agree on the order of one prompt's responses.

Every measure works on ranks, so the two models' scales need not match: replacing either model's scores by a strictly
increasing function of them changes nothing. A measure is 1 where the models agree fully; a NaN score makes it NaN, and so
does a prompt with one response, because one response has no order. Pure NumPy on N numbers.

How large a value has to be depends on N: for unrelated models tau-b has standard deviation sqrt(2(2N+5) / (9N(N-1))), 0.41
at N = 5 and 0.19 at N = 16, so one fixed threshold means different things at different N.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Scores = Sequence[float] | Floats


def average_ranks(scores: Scores) -> Floats:
    """Ranks 1 (lowest) to N (highest); equal scores share the mean of their places.

    Infinities are ordinary extremes. Any NaN makes all ranks NaN, since the place of every other score is then unknown.
    """
    values = np.asarray(scores, dtype=np.float64)
    if np.isnan(values).any():
        return np.full(len(values), np.nan)
    lower = (values[None, :] < values[:, None]).sum(axis=1)
    equal = (values[None, :] == values[:, None]).sum(axis=1)
    return np.asarray(lower + (equal + 1) / 2, dtype=np.float64)


def _checked(scores1: Scores, scores2: Scores) -> tuple[Floats, Floats] | None:
    """Both rank vectors, or None where no measure is defined (a NaN, or fewer than two responses)."""
    if len(scores1) != len(scores2):
        raise ValueError(f"{len(scores1)} scores of one model and {len(scores2)} of the other")
    ranks1, ranks2 = average_ranks(scores1), average_ranks(scores2)
    if len(ranks1) < 2 or np.isnan(ranks1).any() or np.isnan(ranks2).any():
        return None
    return ranks1, ranks2


def gap(scores2: Scores, winner: int, loser: int) -> float:
    """Normalised rank distance of the pair under the second model: (rank2[winner] - rank2[loser]) / (N - 1), in [-1, 1].

    1 = the second model too puts the winner first and the loser last; 0 = it scores them equal; negative = it prefers the
    loser. Ties elsewhere shrink it, because tied responses share a rank. NaN for N = 1 and where any score is NaN.

    For an unrelated second model without ties, P(distance >= k ranks) = sum over m = k..N-1 of (N - m) / (N(N-1)).
    """
    ranks = average_ranks(scores2)
    if len(ranks) < 2:
        return float("nan")
    return float((ranks[winner] - ranks[loser]) / (len(ranks) - 1))


def kendall_tau_b(scores1: Scores, scores2: Scores) -> float:
    """Kendall's tau-b: (C - D) / sqrt((P - T1)(P - T2)), in [-1, 1].

    C and D count pairs of responses in the same and in opposite order, P = N(N-1)/2, T1 and T2 the pairs tied under each
    model (Kendall 1945; as `scipy.stats.kendalltau`). NaN where a score is NaN, N = 1, or one model ties everything.
    """
    checked = _checked(scores1, scores2)
    if checked is None:
        return float("nan")
    upper = np.triu_indices(len(checked[0]), k=1)
    order1, order2 = (np.sign(ranks[:, None] - ranks[None, :])[upper] for ranks in checked)
    untied = float(np.count_nonzero(order1)) * float(np.count_nonzero(order2))
    return float((order1 * order2).sum() / np.sqrt(untied)) if untied else float("nan")


def spearman(scores1: Scores, scores2: Scores) -> float:
    """Spearman's rho: the Pearson correlation of the average ranks, in [-1, 1] (as `scipy.stats.spearmanr`).

    NaN where a score is NaN, N = 1, or one model ties everything.
    """
    checked = _checked(scores1, scores2)
    if checked is None:
        return float("nan")
    first, second = (ranks - ranks.mean() for ranks in checked)
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    # Rounding may carry a perfect correlation past 1 by an ulp; a threshold of 1.0 must still mean what it says.
    return float(np.clip((first * second).sum() / scale, -1.0, 1.0)) if scale else float("nan")


def sign(scores2: Scores, winner: int, loser: int) -> float:
    """1 where the second model also scores the winner above the loser, 0 where equal, -1 where below.

    NaN for N = 1 and where any score is NaN.
    """
    return float(np.sign(gap(scores2, winner, loser)))


def top1(scores1: Scores, scores2: Scores) -> float:
    """1 where both models have the same best response, else 0; with a tie for best the sets of best must be equal.

    NaN where a score is NaN or N = 1.
    """
    checked = _checked(scores1, scores2)
    if checked is None:
        return float("nan")
    best1, best2 = (ranks == ranks.max() for ranks in checked)
    return float((best1 == best2).all())


MEASURES: dict[str, Callable[[Scores, Scores, int, int], float]] = {
    "gap": lambda _, scores2, winner, loser: gap(scores2, winner, loser),
    "kendall": lambda scores1, scores2, _, __: kendall_tau_b(scores1, scores2),
    "spearman": lambda scores1, scores2, _, __: spearman(scores1, scores2),
    "sign": lambda _, scores2, winner, loser: sign(scores2, winner, loser),
    "top1": lambda scores1, scores2, _, __: top1(scores1, scores2),
}


def agreement(name: str, selector_scores: Scores, validator_scores: Scores, winner: int, loser: int) -> float:
    """The measure `name` for one prompt.

    Args:
        name: a key of `MEASURES`.
        selector_scores: N scores of the model that chose the pair.
        validator_scores: N scores of the other model, same responses in the same order.
        winner: index of the chosen response.
        loser: index of the rejected one.

    Raises:
        ValueError: an unknown name, or the two lists differ in length.
    """
    if name not in MEASURES:
        raise ValueError(f"unknown agreement {name!r}; known are {', '.join(MEASURES)}")
    if len(selector_scores) != len(validator_scores):
        raise ValueError(f"{len(selector_scores)} selector scores and {len(validator_scores)} validator scores")
    return MEASURES[name](selector_scores, validator_scores, winner, loser)
