"""Preference files: rows with a prompt, a chosen and a rejected answer, as the field publishes them."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from align.core.errors import UserError
from align.core.hashing import content_id, unit_interval
from align.core.language import detect
from align.core.records import Line, parse_line, read_jsonl
from align.core.rows import Message, Reject, RewardPair

EXPECTED_COLUMNS = ("prompt", "chosen", "rejected")


def reward_pair(
    prompt_id: str, prompt: list[Message], good: str, bad: str, *, subset: str, lang: str, split: str, margin: float = 0.0
) -> RewardPair:
    """A pair whose id is its content's."""
    return RewardPair(
        id=content_id("reward_pair", prompt_id, prompt, good, bad),
        prompt_id=prompt_id,
        prompt=prompt,
        chosen=[{"role": "assistant", "content": good}],
        rejected=[{"role": "assistant", "content": bad}],
        subset=subset,
        margin=margin,
        lang=lang,
        split=split,
    )


def _messages(value: Any, role: str) -> list[Message]:
    """A column as messages: text becomes one message of `role`.

    Raises:
        ValueError: neither text nor a list of {"role", "content"} texts; the text is the reject's reason.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    ):
        raise ValueError("not_text_or_messages")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _margin(value: Any) -> float:
    """The column `margin`; 0 where it is absent.

    Raises:
        ValueError: no finite number of at least 0.
    """
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise ValueError("bad_margin")
    return float(value)


def _read_record(record: dict[str, Any], run_seed: int, held_out: float) -> RewardPair:
    """One line of a preference file as a pair.

    Raises:
        ValueError: the text is the reject's reason.
    """
    if record.get("chosen") is None or record.get("rejected") is None:
        raise ValueError("missing_column")
    given = record.get("prompt")
    if given is None and (isinstance(record["chosen"], str) or isinstance(record["rejected"], str)):
        raise ValueError("no_prompt")  # plain text has no turns to split at
    prompt = _messages(given, "user") if given is not None else []
    chosen, rejected = _messages(record["chosen"], "assistant"), _messages(record["rejected"], "assistant")
    if chosen == rejected:
        raise ValueError("chosen_equals_rejected")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    # Whole dialogues repeat the prompt on both sides; where a prompt is given as well, it is the same one.
    if shared and prompt and chosen[:shared] != prompt:
        raise ValueError("prompt_differs_from_dialogue")
    prompt = prompt or chosen[:shared]
    good, bad = chosen[shared:], rejected[shared:]
    if not prompt:
        raise ValueError("no_prompt")
    if [m["role"] for m in good] != ["assistant"] or [m["role"] for m in bad] != ["assistant"]:
        raise ValueError("not_one_assistant_turn")
    if not good[0]["content"].strip():
        raise ValueError("empty_chosen")
    prompt_id = content_id("prompt", prompt)
    split = "test" if unit_interval(run_seed, "reward-split", prompt_id) < held_out else "train"
    answer, subset = good[0]["content"], record.get("subset")
    if not isinstance(subset, str | None):
        raise ValueError("bad_subset")
    return reward_pair(
        prompt_id, prompt, answer, bad[0]["content"], subset=subset or "file", lang=detect(answer), split=split,
        margin=_margin(record.get("margin")),
    )  # fmt: skip


def _read_lines(path: Path) -> Iterator[Line]:
    """The rows of a Parquet file, or the lines of JSON Lines, compressed or not."""
    if path.suffix == ".parquet":
        for number, row in enumerate(pq.read_table(path).to_pylist(), 1):
            # As JSON would give it: a timestamp is text, and half a character is found here too.
            yield parse_line(f"{path}:{number}", json.dumps(row, default=str).encode())
    elif path.suffix == ".gz":
        with gzip.open(path, "rb") as handle:
            for number, data in enumerate(handle, 1):
                if data.strip():
                    yield parse_line(f"{path}:{number}", data)
    else:
        yield from read_jsonl(path)


def pairs_from_file(path: Path, *, run_seed: int = 0, held_out: float = 0.0) -> tuple[list[RewardPair], list[Reject]]:
    """Pairs from a preference file with the columns `prompt`, `chosen` and `rejected`, each messages or text.

    The ending tells the format: `.parquet`, `.gz` (JSON Lines, gzipped), any other JSON Lines. `prompt` may be missing
    where `chosen` and `rejected` are whole dialogues: they are split where they part. `subset` (text; "file" where absent)
    and `margin` (a number of at least 0; 0 where absent) are read, other columns are not. The language is told from the
    chosen answer. Blank lines do not count; every other line is a pair or a reject with the line as its text. Reasons:
    `not_json`, `not_utf8`, `half_a_character`, `not_an_object`, `missing_column`, `no_prompt`, `not_text_or_messages`,
    `prompt_differs_from_dialogue`, `not_one_assistant_turn`, `empty_chosen`, `chosen_equals_rejected`, `bad_subset`,
    `bad_margin`, `duplicate_pair`.

    Args:
        path: the file.
        run_seed: the run's seed, for the split.
        held_out: share of prompts on the "test" side, in [0, 1).

    Raises:
        UserError: the file cannot be read, has no line, or no line has the columns `chosen` and `rejected`.
    """
    pairs: dict[str, RewardPair] = {}
    rejects: list[Reject] = []
    seen: set[str] = set()
    usable = False
    try:
        lines = list(_read_lines(path))
    except (pa.ArrowException, OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        first_line, *_ = str(error).split("\n")
        raise UserError(f"{path}: cannot be read ({first_line})") from None
    for number, line in enumerate(lines, 1):
        raw = line.raw
        try:
            if line.record is None:
                raise ValueError("not_json" if line.reason == "malformed_json" else line.reason)
            raw = json.dumps(line.record, ensure_ascii=False)
            seen |= line.record.keys()
            usable = usable or {"chosen", "rejected"} <= line.record.keys()
            pair = _read_record(line.record, run_seed, held_out)
            if pair.id in pairs:
                raise ValueError("duplicate_pair")
            pairs[pair.id] = pair
        except ValueError as error:
            rejects.append(Reject(id=content_id("preference_line", path.name, number), reason=str(error), raw=raw))
    if not usable:
        raise UserError(
            f"{path}: no line has the columns of a preference set; expected {', '.join(EXPECTED_COLUMNS)}, "
            f"found {', '.join(sorted(seen)) or 'no JSON object'}"
        )
    return list(pairs.values()), rejects
