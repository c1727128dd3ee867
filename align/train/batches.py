"""Micro-batches of training examples: packed tokens with the ids, weights and reference values that belong to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from align.packing.layout import PackedBatch
from align.train.data import DialogueExample, PairExample
from align.train.scoring import Setup


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """E examples that go through the model at once.

    Attributes:
        packed: their tokens.
        ids: (E) of the examples.
        weights: (E,) float64; 0 in a batch that is not real.
        reference_EK: (E, 2) float64 reference log-probabilities, or None.
        flip_rates: (E,) float64, or None where the examples have none.
        real: False for a repeated example that only keeps processes in step.
    """

    packed: PackedBatch
    ids: tuple[str, ...]
    weights: Tensor
    reference_EK: Tensor | None
    flip_rates: Tensor | None
    real: bool

    def to(self, device: torch.device) -> MicroBatch:
        """The same batch on a device."""
        moved: dict[str, Any] = {n: v.to(device, non_blocking=True) for n, v in vars(self).items() if torch.is_tensor(v)}
        return replace(self, packed=self.packed.to(device), **moved)

    def record(self) -> dict[str, Any]:
        """Ids and token ids, for a file."""
        return {
            "ids": list(self.ids),
            "input_ids": self.packed.input_ids.tolist(),
            "position_ids": self.packed.position_ids.tolist(),
            "completion_tokens": self.packed.tokens_EK.tolist(),
        }


def micro_batch(
    examples: Sequence[PairExample | DialogueExample],
    setup: Setup,
    reference: Mapping[str, tuple[float, float]] | None,
    *,
    real: bool = True,
) -> MicroBatch:
    """Lay examples out and look their reference values up by id."""
    packed = setup.build([(example.prompt_ids, example.completions) for example in examples])
    rates = [rate for example in examples if (rate := getattr(example, "flip_rate", None)) is not None]
    return MicroBatch(
        packed=packed,
        ids=tuple(example.id for example in examples),
        weights=torch.tensor([getattr(e, "weight", 1.0) if real else 0.0 for e in examples], dtype=torch.float64),
        reference_EK=torch.tensor([reference[e.id] for e in examples], dtype=torch.float64) if reference else None,
        flip_rates=torch.tensor(rates, dtype=torch.float64) if rates else None,
        real=real,
    )
