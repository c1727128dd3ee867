"""Each loss once, as a pure function of per-sequence log-probabilities and token counts.

The trainer, the fused kernels and the tests all call these; nothing else computes a loss. All quantities are in nats.

Symbols: lp_w, lp_l = summed log-probability of the chosen (w) and rejected (l) completion under the policy; ref_w, ref_l =
the same under the reference; |w|, |l| = completion tokens, the stop token included; s = sigmoid; B = pairs or dialogues.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.functional import logsigmoid

Quantities = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class PairLogprobs:
    """What a pair loss may look at; every tensor is (B,), float32 or float64, token counts integer."""

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None


def nll(logps_B: Tensor, tokens_B: Tensor) -> tuple[Tensor, Quantities]:
    """Negative log-likelihood of each completion, -lp, summed over its tokens.

    The caller divides the sum over the whole optimizer step by the number of completion tokens of that step, so that every
    token weighs the same however the step is cut into micro-batches. `tokens_B` is returned as a quantity for that.

    Returns:
        losses (B,), nats per completion; {"tokens": (B,)}.
    """
    return -logps_B, {"tokens": tokens_B}


def dpo(pairs: PairLogprobs, *, beta: float = 0.1, label_smoothing: float = 0.0) -> tuple[Tensor, Quantities]:
    """Direct preference optimization (arXiv 2305.18290, eq. 7) with cDPO's label smoothing.

        m = beta ((lp_w - ref_w) - (lp_l - ref_l))
        loss = -(1 - e) log s(m) - e log s(-m)

    Log-probabilities are sums over tokens, not means. A policy equal to the reference has m = 0 and loss ln 2.

    Args:
        pairs: policy and reference log-probabilities.
        beta: strength of the implicit KL constraint, > 0.
        label_smoothing: e, the assumed share of flipped labels, in [0, 0.5).

    Returns:
        losses (B,); {"margin", "chosen_reward", "rejected_reward"}, each (B,), where a reward is beta (lp - ref).

    Raises:
        ValueError: no reference log-probabilities, or an option out of range.
    """
    if pairs.reference_chosen is None or pairs.reference_rejected is None:
        raise ValueError("dpo needs reference log-probabilities")
    if not beta > 0:
        raise ValueError(f"dpo: beta must be > 0, not {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"dpo: label_smoothing must be in [0, 0.5), not {label_smoothing}")
    chosen_reward = beta * (pairs.chosen - pairs.reference_chosen)
    rejected_reward = beta * (pairs.rejected - pairs.reference_rejected)
    margin = chosen_reward - rejected_reward
    losses = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    return losses, {"margin": margin, "chosen_reward": chosen_reward, "rejected_reward": rejected_reward}


def simpo(pairs: PairLogprobs, *, beta: float = 2.5, gamma: float = 1.25) -> tuple[Tensor, Quantities]:
    """Simple preference optimization, reference-free (arXiv 2405.14734, eq. 6).

        loss = -log s(beta lp_w / |w| - beta lp_l / |l| - gamma)

    `gamma` is the absolute target margin of the paper's equation. Other programs take the ratio gamma / beta: multiply such
    a number by beta.

    Args:
        pairs: policy log-probabilities; reference ones are not looked at.
        beta: scale of the length-normalised reward, > 0.
        gamma: target margin, >= 0.

    Returns:
        losses (B,); {"margin", "chosen_reward", "rejected_reward"}, each (B,): rewards beta lp / |y| and their difference,
        gamma not taken off.

    Raises:
        ValueError: an option out of range.
    """
    if not beta > 0:
        raise ValueError(f"simpo: beta must be > 0, not {beta}")
    if not gamma >= 0:
        raise ValueError(f"simpo: gamma must be >= 0, not {gamma}")
    chosen_reward = beta * pairs.chosen / pairs.chosen_tokens
    rejected_reward = beta * pairs.rejected / pairs.rejected_tokens
    margin = chosen_reward - rejected_reward
    losses = -logsigmoid(margin - gamma)
    return losses, {"margin": margin, "chosen_reward": chosen_reward, "rejected_reward": rejected_reward}


@dataclass(frozen=True)
class Loss:
    """A loss and what it needs.

    Attributes:
        name: as recipes write it.
        function: (PairLogprobs, **options), or (logps_B, tokens_B) where `paired` is False.
        needs_reference: whether it reads reference log-probabilities.
        length_normalised: whether it divides by completion lengths itself.
        options: every option it has, with its default.
        paired: whether it compares two completions of one prompt.
    """

    name: str
    function: Callable[..., tuple[Tensor, Quantities]]
    needs_reference: bool
    length_normalised: bool
    options: Mapping[str, float] = field(default_factory=dict)
    paired: bool = True

    def bind(self, options: Mapping[str, Any]) -> Callable[..., tuple[Tensor, Quantities]]:
        """The function with its options set.

        Raises:
            ValueError: an option this loss does not use.
        """
        if unused := sorted(set(options) - set(self.options)):
            known = ", ".join(self.options) or "none"
            raise ValueError(f"loss {self.name} does not use {', '.join(unused)}; its options: {known}")
        return partial(self.function, **{**self.options, **options})


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("nll", nll, needs_reference=False, length_normalised=False, paired=False),
        Loss("dpo", dpo, needs_reference=True, length_normalised=False, options={"beta": 0.1, "label_smoothing": 0.0}),
        Loss("simpo", simpo, needs_reference=False, length_normalised=True, options={"beta": 2.5, "gamma": 1.25}),
    )
}


def find_loss(name: str) -> Loss:
    """The loss called `name`.

    Raises:
        ValueError: no such loss; the message lists those there are.
    """
    if name not in LOSSES:
        raise ValueError(f"no loss {name!r}; there are {', '.join(LOSSES)}")
    return LOSSES[name]
