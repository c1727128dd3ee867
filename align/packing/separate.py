"""The plain layout: one right-padded row per sequence, nothing shared, nothing packed.

It is the oracle of every faster layout, so it is kept as simple as it can be.

Shapes: B = sequences, T = tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def separate_batch(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int
) -> dict[str, torch.Tensor]:
    """Right-padded rows `prompt + completion`.

    Every mask is made from lengths, never from `ids != pad_id`: models whose pad token is their end token keep the end
    token in the loss.

    Args:
        prompts: B lists of token ids, none empty (the first completion token is predicted from the last prompt token).
        completions: B lists of token ids, none empty.
        pad_id: fills the rows up; its value changes no result.

    Returns:
        input_ids (B, T) int64; attention_mask (B, T) int64, 1 on real tokens; position_ids (B, T) int64, from 0 in each
        row; completion_mask (B, T) bool, True exactly on completion tokens.

    Raises:
        ValueError: the lists differ in length, or a prompt or a completion is empty.
    """
    if not prompts or len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts and {len(completions)} completions do not make a batch")
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if not prompt or not completion:
            raise ValueError(f"row {row} has an empty {'completion' if prompt else 'prompt'}")
    num_rows = len(prompts)
    width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    input_ids_BT = torch.full((num_rows, width), pad_id, dtype=torch.long)
    attention_mask_BT = torch.zeros((num_rows, width), dtype=torch.long)
    completion_mask_BT = torch.zeros((num_rows, width), dtype=torch.bool)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        start, stop = len(prompt), len(prompt) + len(completion)
        input_ids_BT[row, :stop] = torch.tensor([*prompt, *completion], dtype=torch.long)
        attention_mask_BT[row, :stop] = 1
        completion_mask_BT[row, start:stop] = True
    return {
        "input_ids": input_ids_BT,
        "attention_mask": attention_mask_BT,
        "position_ids": torch.arange(width).expand(num_rows, width).contiguous(),
        "completion_mask": completion_mask_BT,
    }
