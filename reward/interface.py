"""What every reward model is: something that scores the responses of a prompt, many prompts at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from align.core.errors import StepError
from align.core.journal import Journal
from align.core.progress import Progress
from align.core.rows import Message


@dataclass(frozen=True, kw_only=True)
class Group:
    """A prompt and its N responses, which are scored together so that the prompt is read once.

    Attributes:
        id: of the prompt.
        prompt: the dialogue so far.
        response_ids: N ids, none twice.
        responses: their N texts.
        num_tokens: their N lengths in tokens of the model that wrote them.
        lang: the language that an answer should have, "en" or "ko".
        reference: the right answer where one is known, else empty.
    """

    id: str
    prompt: Sequence[Message]
    response_ids: tuple[str, ...]
    responses: tuple[str, ...]
    num_tokens: tuple[int, ...] = ()
    lang: str = "en"
    reference: str = ""


class RewardModel(Protocol):
    """Scores responses; higher is better, and the unit is the model's own."""

    def score(self, groups: Sequence[Group]) -> Iterator[tuple[int, list[float]]]:
        """Yield (place in `groups`, N scores) for every group, in any order, as soon as they are known.

        A score depends on the prompt and the response alone, never on the other groups or their order. NaN says that a
        response cannot be scored.
        """
        ...


def score_groups(
    model: RewardModel, groups: Sequence[Group], *, journal: Journal, bar: Progress | None = None
) -> dict[str, float]:
    """Scores by response id. Each group's are in the journal as soon as they are known, and none is computed twice.

    Args:
        model: the reward model.
        groups: of different prompts.
        journal: of this reward model alone, keyed by the prompt's id; it holds null for NaN.
        bar: told of each group's responses, those in the journal as done earlier.

    Raises:
        StepError: the model gave a group another number of scores than it has responses.
    """
    todo = [group for group in groups if group.id not in journal]
    if bar is not None:
        bar.advance(sum(len(group.responses) for group in groups if group.id in journal), earlier=True)
    for place, scores in model.score(todo):
        group = todo[place]
        if len(scores) != len(group.responses):
            raise StepError(f"prompt {group.id}: {len(scores)} scores for {len(group.responses)} responses")
        journal.put(group.id, [None if math.isnan(score) else score for score in scores])
        if bar is not None:
            bar.advance(len(scores))
    return {
        key: math.nan if score is None else float(score)
        for group in groups
        for key, score in zip(group.response_ids, journal.get(group.id), strict=True)
    }
