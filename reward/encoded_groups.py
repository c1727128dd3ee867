"""Groups of responses as token ids, and their scores back in the order of the groups."""

from __future__ import annotations

import logging
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from align.core.chat import ChatError
from align.packing.layout import common_prefix
from reward.encoder import Encoder
from reward.interface import Group

log = logging.getLogger(__name__)

Ids = Sequence[int]


@dataclass(frozen=True)
class Item:
    """Distinct sequences of one group that begin with the same prompt.

    Attributes:
        place: of the group.
        sequences: their ids.
        responses: for each sequence, the numbers of the group's responses that it is.
    """

    place: int
    sequences: tuple[Ids, ...]
    responses: tuple[tuple[int, ...], ...]

    @property
    def longest(self) -> int:
        return max(map(len, self.sequences))

    @property
    def shared_length(self) -> int:
        """Tokens where the common prefix is computed once."""
        prefix = common_prefix(self.sequences)
        return prefix + sum(len(sequence) - prefix for sequence in self.sequences)

    def single(self) -> list[Item]:
        """An item per sequence."""
        return [self._part(k, k + 1) for k in range(len(self.sequences))]

    def split(self, tokens: int) -> list[Item]:
        """Parts of at most `tokens` tokens or four times the longest sequence, whichever is more.

        A group of very many responses need not fit in memory at once; at four times, repeating the prompt costs little.
        """
        limit, prefix = max(tokens, 4 * self.longest), common_prefix(self.sequences)
        parts, first, size = [], 0, prefix
        for k, sequence in enumerate(self.sequences):
            if size + len(sequence) - prefix > limit:
                parts.append(self._part(first, k))
                first, size = k, prefix
            size += len(sequence) - prefix
        return [*parts, self._part(first, len(self.sequences))]

    def _part(self, first: int, last: int) -> Item:
        return Item(self.place, self.sequences[first:last], self.responses[first:last])


def encode_groups(encoder: Encoder, groups: Sequence[Group]) -> list[Item]:
    """The items of all groups, those of a group one after another.

    Responses whose prompt was cut at another place (see `reward.encoder.fit`) have an item of their own. Those that cannot
    be encoded are in none; they and the responses that lose their end are counted in the log.
    """
    items: list[Item] = []
    refused: Counter[str] = Counter()
    cut = count = 0
    for place, group in enumerate(groups):
        count += len(group.responses)
        by_prompt: dict[int, dict[bytes, list[int]]] = {}  # where the prompt was cut -> ids -> responses
        for number, text in enumerate(group.responses):
            try:
                encoded = encoder.encode(group.prompt, text)
            except ChatError as error:
                refused[str(error)] += 1
                continue
            cut += encoded.response_cut > 0
            packed = array("i", encoded.ids).tobytes()  # a tenth of a list's memory
            by_prompt.setdefault(encoded.prompt_cut, {}).setdefault(packed, []).append(number)
        items += [
            Item(place, tuple(map(_unpacked, distinct)), tuple(map(tuple, distinct.values())))
            for distinct in by_prompt.values()
        ]
    if refused:
        why = ", ".join(f"{number} {reason}" for reason, number in refused.most_common())
        log.warning("%d of %d responses cannot be encoded and score NaN: %s", refused.total(), count, why)
    if cut:
        log.warning(
            "%d of %d responses are longer than %d tokens; their ends are not scored", cut, count, encoder.max_length
        )
    return items


def _unpacked(packed: bytes) -> Ids:
    ids = array("i")
    ids.frombytes(packed)
    return ids


class GroupScores:
    """Scores of groups whose items come back one by one."""

    def __init__(self, groups: Sequence[Group], items: Sequence[Item]) -> None:
        self._scores = [[math.nan] * len(group.responses) for group in groups]
        self._missing = Counter({place: 0 for place in range(len(groups))})
        for item in items:
            self._missing[item.place] += len(item.sequences)

    def without_items(self) -> Iterator[tuple[int, list[float]]]:
        """(place, NaNs) of the groups of which nothing can be scored."""
        return ((place, self._scores[place]) for place, missing in self._missing.items() if not missing)

    def add(self, item: Item, scores: Sequence[float]) -> Iterator[tuple[int, list[float]]]:
        """Take the scores of an item's sequences; (place, N scores) once its group is complete."""
        for responses, score in zip(item.responses, scores, strict=True):
            for number in responses:
                self._scores[item.place][number] = score
        self._missing[item.place] -= len(scores)
        if not self._missing[item.place]:
            yield item.place, self._scores[item.place]
