"""Preference files: JSON Lines with a prompt, a chosen and a rejected answer, as the field publishes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from align.core.errors import UserError
from align.core.hashing import content_id, unit_interval
from align.core.language import detect
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
    answer = good[0]["content"]
    return reward_pair(prompt_id, prompt, answer, bad[0]["content"], subset="file", lang=detect(answer), split=split)


def pairs_from_file(path: Path, *, run_seed: int = 0, held_out: float = 0.0) -> tuple[list[RewardPair], list[Reject]]:
    """Pairs from a JSONL preference file with the columns `prompt`, `chosen` and `rejected`, each messages or text.

    `prompt` may be missing where `chosen` and `rejected` are whole dialogues: they are split where they part. The language
    is told from the chosen answer, `degradation` is "file". Blank lines do not count; every other line is a pair or a
    reject with the line as its text. Reasons: `not_json`, `not_an_object`, `missing_column`, `no_prompt`,
    `not_text_or_messages`, `prompt_differs_from_dialogue`, `not_one_assistant_turn`, `empty_chosen`,
    `chosen_equals_rejected`, `duplicate_pair`.

    Args:
        path: the file.
        run_seed: the run's seed, for the split.
        held_out: share of prompts on the "test" side, in [0, 1).

    Raises:
        UserError: the file cannot be read, has no line, or no line has the columns `chosen` and `rejected`.
    """
    try:
        lines = [(n, line) for n, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    pairs: dict[str, RewardPair] = {}
    rejects: list[Reject] = []
    seen: set[str] = set()
    usable = False
    for number, line in lines:
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not_an_object")
            seen |= record.keys()
            usable = usable or {"chosen", "rejected"} <= record.keys()
            pair = _read_record(record, run_seed, held_out)
            if pair.id in pairs:
                raise ValueError("duplicate_pair")
            pairs[pair.id] = pair
        except ValueError as error:
            reason = "not_json" if isinstance(error, json.JSONDecodeError) else str(error)
            rejects.append(Reject(id=content_id("preference_line", path.name, number), reason=reason, raw=line))
    if not usable:
        raise UserError(
            f"{path}: no line has the columns of a preference set; expected {', '.join(EXPECTED_COLUMNS)}, "
            f"found {', '.join(sorted(seen)) or 'no JSON object'}"
        )
    return list(pairs.values()), rejects
