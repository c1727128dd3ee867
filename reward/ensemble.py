"""Several reward models as one, against over-optimisation of any single one (Coste et al., arXiv 2310.02743)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from align.core.errors import StepError, UserError
from reward.interface import Group, RewardModel


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def _variance(scores: Sequence[float]) -> float:
    """Population variance across members, as in the paper."""
    mean = _mean(scores)
    return _mean([(score - mean) * (score - mean) for score in scores])  # `**` raises where this is infinite


_COMBINE: dict[str, Callable[[Sequence[float], float], float]] = {
    "mean": lambda scores, _: _mean(scores),
    "min": lambda scores, _: min(scores),
    "mean_minus_variance": lambda scores, weight: _mean(scores) - weight * _variance(scores),
}


class Ensemble:
    """Members' scores combined by the mean, the worst case (WCO) or mean - weight * variance (UWO).

    Members must be on one scale. `scales` puts them there by (score - mean) / sd with numbers fixed in advance, from a
    sample scored once: taken from the groups at hand, they would make a score depend on the other groups.
    """

    def __init__(
        self,
        members: Sequence[RewardModel],
        combine: str,
        variance_weight: float = 1.0,
        scales: Sequence[tuple[float, float]] | None = None,
    ) -> None:
        """An ensemble of reward models.

        Args:
            members: two or more.
            combine: "mean", "min" or "mean_minus_variance".
            variance_weight: of the population variance across members, for "mean_minus_variance"; at least 0.
            scales: (mean, standard deviation) of each member's scores; None if the members share a scale already.

        Raises:
            UserError: fewer than two members, an unknown `combine`, or numbers that make no scale.
        """
        if len(members) < 2:
            raise UserError(f"ensemble: {len(members)} members; give at least two")
        if combine not in _COMBINE:
            raise UserError(f"ensemble: combine {combine!r}; known are {', '.join(_COMBINE)}")
        if not 0 <= variance_weight < math.inf:
            raise UserError(f"ensemble: variance_weight is {variance_weight}; give a number from 0")
        if scales is not None and len(scales) != len(members):
            raise UserError(f"ensemble: {len(scales)} scales for {len(members)} members; give one pair for each")
        for mean, sd in scales or ():
            if not math.isfinite(mean) or not 0 < sd < math.inf:
                raise UserError(f"ensemble: scale ({mean}, {sd}); give a mean and a standard deviation above 0")
        self.members, self.variance_weight = tuple(members), variance_weight
        self.scales = tuple(scales) if scales is not None else ((0.0, 1.0),) * len(members)
        self._combine = _COMBINE[combine]

    def score(self, groups: Sequence[Group]) -> Iterator[tuple[int, list[float]]]:
        """See `reward.interface.RewardModel`. NaN from one member is NaN.

        Members take turns, a group at a time each, and a group comes out as soon as all have scored it; only what some have
        and others have not yet is kept.

        Raises:
            StepError: a member leaves a group out, scores one twice or gives it another number of scores than responses.
        """
        waiting: dict[int, dict[int, list[float]]] = {}
        finished = [set[int]() for _ in self.members]
        running = [(number, member.score(groups)) for number, member in enumerate(self.members)]
        while running:
            still = []
            for number, member in running:
                if (scored := next(member, None)) is None:
                    if len(finished[number]) < len(groups):
                        raise StepError(f"ensemble: member {number} scored {len(finished[number])} of {len(groups)} prompts")
                    continue
                still.append((number, member))
                place, scores = scored
                group = groups[place]
                if place in finished[number]:
                    raise StepError(f"ensemble: member {number} scored prompt {group.id} twice")
                if len(scores) != len(group.responses):
                    raise StepError(
                        f"ensemble: member {number} gave prompt {group.id} {len(scores)} scores for "
                        f"{len(group.responses)} responses"
                    )
                finished[number].add(place)
                mean, sd = self.scales[number]
                waiting.setdefault(place, {})[number] = [(score - mean) / sd for score in scores]
                if len(waiting[place]) == len(self.members):
                    yield place, self._combined(waiting.pop(place))
            running = still

    def _combined(self, by_member: dict[int, list[float]]) -> list[float]:
        rows = zip(*(by_member[number] for number in sorted(by_member)), strict=True)
        return [math.nan if any(map(math.isnan, row)) else self._combine(row, self.variance_weight) for row in rows]
