"""Looking at fixed examples before the first step and inside the run: loss, margins, drift; and snapshots of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from align.core.errors import StepError
from align.train.data import PairExample
from align.train.losses import Loss, PairLogprobs, loss_at_reference
from align.train.reference import PairSums

Pairs = Sequence[PairExample]
EXAMINED = "examined"  # key of its entries in the Trainer's log, which checkpoints keep


def step0_tolerance(precision: str, loss: Loss, options: Mapping[str, Any], pairs: Pairs, reference: PairSums) -> float:
    """How far rounding alone may move a margin that should be 0: at least 1e-5, in the margin's unit.

    A pair's sequences may be scored in batches of other shapes than those of the reference. In fp32 that leaves the rounding
    of four sums. Under bf16 autocast each token's logits are rounded anew, so errors grow with the root of the token count:
    0.013 nats sqrt(tokens) was the largest of 12 pairs measured on SmolLM2-135M; 0.1 leaves room.

    Args:
        precision: bf16 or fp32.
        loss: a loss with a reference.
        options: its options.
        pairs: the examined pairs.
        reference: their reference log-probabilities.
    """

    def noise(pair: PairExample) -> float:
        lengths = [len(ids) for ids in pair.completions]
        nats = 0.1 * math.sqrt(sum(lengths)) if precision == "bf16" else 4 * 2**-23 * max(map(abs, reference[pair.id]))
        return nats / min(lengths) if loss.length_normalised else nats

    beta = {**loss.options, **options}.get("beta", 1.0)
    return max(1e-5, beta * max(map(noise, pairs)))


def check_step0(step0: Mapping[str, float], expected: float, tolerance: float) -> None:
    """Whether a policy that equals its reference has margin 0 and the loss that goes with it.

    Raises:
        StepError: it has not, so the reference log-probabilities are not of this model and data.
    """
    # The slope of every loss with a reference is at most 1 + |loss| there: 1/2 for DPO, 2 sqrt(loss) for IPO.
    if step0["largest_margin"] > tolerance or abs(step0["loss"] - expected) > tolerance * (1 + abs(expected)):
        raise StepError(
            f"training refuses to start: policy and reference have the same weights, yet before the first update the "
            f"largest margin is {step0['largest_margin']:.3g} (must be 0) and the loss {step0['loss']:.6f} (must be "
            f"{expected:.6f}), tolerance {tolerance:g}"
        )


class Examining(TrainerCallback):
    """Examines the same examples before the first step and at given steps, and takes snapshots there.

    Results are entries {"step", "examined": {...}} in the Trainer's log history, so that a resumed run has them too.

    Args:
        examples: to look at.
        steps: after which steps, besides before the first; after the last one nothing is saved, since the model is.
        check: called with the result before the first step; raises where training must not start, may add to the result.
        snapshot: called with the step after each later look; saves the model.
    """

    def __init__(
        self,
        examples: Sequence[Any],
        steps: Sequence[int],
        check: Callable[[dict[str, float]], None],
        snapshot: Callable[[int], None],
    ) -> None:
        self._examples, self._steps, self._check, self._snapshot = examples, set(steps), check, snapshot
        self.trainer: Any = None  # set after the trainer is made with this callback

    def _look(self, state: Any) -> dict[str, float]:
        self.trainer.check_finite()
        found: dict[str, float] = self.trainer.examine(self._examples)
        state.log_history.append({"step": state.global_step, EXAMINED: found})
        return found

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._check(self._look(state))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self._steps:
            self._look(state)
            if state.global_step < state.max_steps:
                self._snapshot(state.global_step)


def expected_at_reference(loss: Loss, options: Mapping[str, Any], pairs: Pairs, reference: PairSums) -> float:
    """The mean loss of these pairs for a policy that equals its reference."""
    chosen, rejected = torch.tensor([reference[pair.id] for pair in pairs], dtype=torch.float64).T
    tokens = torch.tensor([[len(ids) for ids in pair.completions] for pair in pairs])
    weights = torch.tensor([pair.weight for pair in pairs], dtype=torch.float64)
    rates = [pair.flip_rate for pair in pairs if pair.flip_rate is not None]
    logprobs = PairLogprobs(
        chosen=chosen,
        rejected=rejected,
        chosen_tokens=tokens[:, 0],
        rejected_tokens=tokens[:, 1],
        reference_chosen=chosen,
        reference_rejected=rejected,
        flip_rates=torch.tensor(rates, dtype=torch.float64) if rates else None,
    )
    return float((loss_at_reference(loss.bind(options), logprobs) * weights).sum() / weights.sum())
