"""A reward model whose scores were made elsewhere and came with the data, by response id."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.core.errors import UserError
from align.core.records import read_jsonl
from reward.interface import Group

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Entry:
    score: float
    prompt_id: str | None
    where: str


def _number(value: Any, where: str, column: str) -> float:
    """A score as a float; null is NaN, as strict JSON has no other word for it."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: {column} is {value!r:.80}; give a number, or null where there is no score")
    try:
        return float(value)
    except OverflowError:
        raise UserError(f"{where}: {column} is too large for a 64-bit float") from None


class Column:
    """Scores from a JSON Lines file, matched by response id and never by position.

    A line has `response_id`, a number under `column` and, as a check, perhaps `prompt_id`; other keys are ignored. NaN, null
    and the infinities are kept as they are, so that whoever makes pairs rejects the prompt with its reason.
    """

    def __init__(self, path: Path, column: str = "score") -> None:
        """Read the whole file.

        Raises:
            UserError: the file cannot be read, or a line is no JSON object, lacks a key, holds something else than a number,
                or has a response id that an earlier line has.
        """
        self.path, self._entries = path, dict[str, _Entry]()
        for line in read_jsonl(path):
            if line.record is None:
                raise UserError(f"{line.where}: {line.reason}; scores are JSON Lines with response_id and {column}")
            if missing := [key for key in ("response_id", column) if key not in line.record]:
                raise UserError(f"{line.where}: no {' and no '.join(missing)}; the line has {', '.join(line.record)}")
            key, prompt_id = line.record["response_id"], line.record.get("prompt_id")
            if not isinstance(key, str) or not isinstance(prompt_id, str | None):
                raise UserError(f"{line.where}: response_id and prompt_id must be text")
            if key in self._entries:
                raise UserError(
                    f"{line.where}: response {key} has a score already, in {self._entries[key].where}; keep one of the lines"
                )
            self._entries[key] = _Entry(_number(line.record[column], line.where, column), prompt_id, line.where)

    def score(self, groups: Sequence[Group]) -> Iterator[tuple[int, list[float]]]:
        """See `reward.interface.RewardModel`. All ids are checked before the first scores.

        Raises:
            UserError: a response has no score, or the file gives it to another prompt.
        """
        asked = [(group.id, key) for group in groups for key in group.response_ids]
        if missing := [key for _, key in asked if key not in self._entries]:
            raise UserError(
                f"{self.path}: no score for {len(missing)} of {len(asked)} responses, the first is {missing[0]}; add them"
            )
        for prompt_id, key in asked:
            entry = self._entries[key]
            if entry.prompt_id not in (None, prompt_id):
                raise UserError(f"{entry.where}: response {key} is of prompt {prompt_id}, not of {entry.prompt_id}")
        if others := len(self._entries) - len(asked):
            # No warning: with shards, or a step that goes on, the file always holds more than one call asks for.
            log.info("%s: %d of %d scores are for responses not asked for now", self.path, others, len(self._entries))
        for place, group in enumerate(groups):
            yield place, [self._entries[key].score for key in group.response_ids]
