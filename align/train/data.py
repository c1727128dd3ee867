"""Training examples as token ids, and the rules by which one is left out.

Nothing is ever truncated: a cut completion loses its stop token and its true length, and both change the loss.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar


@dataclass(frozen=True, kw_only=True)
class DialogueExample:
    """A prompt (template applied, assistant turn opened) and the completion to learn, its stop token included."""

    id: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    @property
    def completions(self) -> tuple[tuple[int, ...], ...]:
        return (self.completion_ids,)


@dataclass(frozen=True, kw_only=True)
class PairExample:
    """A prompt with a preferred and a rejected completion, the sampled ids as they came from the engine.

    `weight` (>= 0) is the pair's share in its optimizer step; `flip_rate` the probability that its label is wrong, for the
    losses that take one. Both come from the agreement of the reward models; None leaves the loss's own setting.
    """

    id: str
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    weight: float = 1.0
    flip_rate: float | None = None

    @property
    def completions(self) -> tuple[tuple[int, ...], ...]:
        return (self.chosen_ids, self.rejected_ids)


Example = TypeVar("Example", DialogueExample, PairExample)


class Rejected(NamedTuple):
    """An example that is not trained on, and why."""

    id: str
    reason: str


def _fault(example: DialogueExample | PairExample, max_length: int, stop_ids: Collection[int]) -> str | None:
    if not example.prompt_ids:
        return "empty prompt"
    if not all(example.completions):
        return "empty completion"
    if isinstance(example, PairExample) and not (math.isfinite(example.weight) and example.weight >= 0):
        return f"weight {example.weight:g} is not a finite number >= 0"
    if isinstance(example, PairExample) and example.weight == 0:
        return "weight 0"
    if isinstance(example, PairExample) and not 0 <= (example.flip_rate or 0.0) < 0.5:
        return f"flip rate {example.flip_rate:g} is not in [0, 0.5)"
    for ids in example.completions:
        if ids[-1] not in stop_ids:
            return "completion does not end with a stop token"
        if any(token in stop_ids for token in ids[:-1]):
            return "stop token inside the completion"
    length = len(example.prompt_ids) + max(map(len, example.completions))
    return f"longer than max_length: {length} > {max_length} tokens" if length > max_length else None


def keep_within(
    examples: Iterable[Example], max_length: int, stop_ids: Collection[int]
) -> tuple[list[Example], list[Rejected]]:
    """Part examples into those to train on and those left out, in their order.

    Args:
        examples: dialogues or pairs; a pair is as long as its prompt and its longer completion.
        max_length: most tokens of a prompt and completion together.
        stop_ids: tokens that end an assistant turn; a completion must end with one and hold no other.

    Returns:
        (kept, left out with reasons), which together are all examples.
    """
    kept: list[Example] = []
    rejected: list[Rejected] = []
    for example in examples:
        reason = _fault(example, max_length, stop_ids)
        if reason is None:
            kept.append(example)
        else:
            rejected.append(Rejected(example.id, reason))
    return kept, rejected
