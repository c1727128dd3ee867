"""Length bias of a reward model: a fixed price per token, or removal of the linear trend measured within prompts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from align.core.errors import UserError
from reward.interface import Group, RewardModel

Floats = NDArray[np.float64]


class LengthPenalty:
    """Another reward model's score minus `per_token` (in that model's units) for each token of the response."""

    def __init__(self, model: RewardModel, per_token: float) -> None:
        """A price on length.

        Args:
            model: whose scores are changed.
            per_token: below 0 it is a bonus, for a model that prefers short responses.

        Raises:
            UserError: `per_token` is not a finite number.
        """
        if not math.isfinite(per_token):
            raise UserError(f"length penalty: per_token is {per_token}; give a finite number")
        self.model, self.per_token = model, per_token

    def score(self, groups: Sequence[Group]) -> Iterator[tuple[int, list[float]]]:
        """See `reward.interface.RewardModel`. All lengths are checked before the first scores.

        Raises:
            UserError: a group does not have the lengths of all its responses.
        """
        for group in groups:
            if len(group.num_tokens) != len(group.responses):
                raise UserError(
                    f"length penalty: prompt {group.id} has {len(group.num_tokens)} lengths for {len(group.responses)} "
                    "responses; give the number of tokens of each"
                )
        for place, scores in self.model.score(groups):
            lengths = groups[place].num_tokens
            yield place, [score - self.per_token * length for score, length in zip(scores, lengths, strict=True)]


def _columns(
    scores: Sequence[float] | Floats, num_tokens: Sequence[int] | NDArray[np.int64], prompts: Sequence[Hashable]
) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """Scores, lengths less the prompt's mean length of scored responses, and the prompts' numbers; all (R,)."""
    if not len(scores) == len(num_tokens) == len(prompts):
        raise ValueError(f"{len(scores)} scores, {len(num_tokens)} lengths and {len(prompts)} prompts")
    numbers: dict[Hashable, int] = {}
    prompt = np.array([numbers.setdefault(key, len(numbers)) for key in prompts], dtype=np.intp)
    values, lengths = np.asarray(scores, dtype=np.float64), np.asarray(num_tokens, dtype=np.float64)
    return values, lengths - _prompt_means(lengths, prompt, np.isfinite(values)), prompt


def _prompt_means(values: Floats, prompt: NDArray[np.intp], known: NDArray[np.bool_]) -> Floats:
    """(R,) the mean over the prompt's known rows; 0 where there are none."""
    size = int(prompt.max(initial=-1)) + 1
    total = np.bincount(prompt[known], weights=values[known], minlength=size)
    count = np.bincount(prompt[known], minlength=size)
    return np.asarray((total / np.maximum(count, 1))[prompt], dtype=np.float64)


def within_prompt_slope(
    scores: Sequence[float] | Floats, num_tokens: Sequence[int] | NDArray[np.int64], prompt_of: Sequence[Hashable]
) -> float:
    """Score per token: the least-squares slope of score on length with a fixed effect for each prompt.

    sum (L - mean L of the prompt)(s - mean s of the prompt) / sum (L - mean L of the prompt)^2 over all R responses. Prompts
    whose answers are long and good do not count as a preference for length, as they would in a plain regression.

    Args:
        scores: (R,) of one reward model; NaN and infinite ones are left out.
        num_tokens: (R,) lengths.
        prompt_of: (R,) what each response answers, in any order.

    Returns:
        The slope; 0 where no prompt has scored responses of different length.

    Raises:
        ValueError: columns of different length.
    """
    values, centred, prompt = _columns(scores, num_tokens, prompt_of)
    known = np.isfinite(values)
    safe = np.where(known, values, 0.0)
    residual = (safe - _prompt_means(safe, prompt, known))[known]
    variation = float((centred[known] ** 2).sum())
    return float((centred[known] * residual).sum()) / variation if variation else 0.0


def remove_length(
    scores: Sequence[float] | Floats,
    num_tokens: Sequence[int] | NDArray[np.int64],
    prompts: Sequence[Hashable],
    slope: float,
) -> Floats:
    """(R,) scores without their linear trend in length: s - slope * (L - mean L of the prompt).

    Post-hoc reward calibration (arXiv 2409.17407) with a straight line within prompts in place of the paper's locally
    weighted regression. Centring keeps each prompt's mean score and changes no difference between two of its responses, so
    within a prompt it is s - slope * L. NaN and infinite scores stay what they are.

    Args:
        scores: (R,) of one reward model.
        num_tokens: (R,) lengths.
        prompts: (R,) what each response answers, in any order.
        slope: score per token, see `within_prompt_slope`.

    Raises:
        ValueError: columns of different length.
    """
    values, centred, _ = _columns(scores, num_tokens, prompts)
    return values - slope * centred
