"""Each loss once, as a pure function of per-sequence log-probabilities and token counts.

The trainer, the fused kernels and the tests all call these; nothing else computes a loss. All quantities are in nats.

Symbols: lp_w, lp_l = summed log-probability of the chosen (w) and rejected (l) completion under the policy; ref_w, ref_l =
the same under the reference; lr = lp - ref; |w|, |l| = completion tokens, the stop token included; s = sigmoid; B = pairs
or dialogues.

A pair loss returns losses (B,) and the quantities "margin", "chosen_reward" and "rejected_reward", each (B,): the margin is
the difference of the rewards, and a pair is won where it is positive.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Quantities = dict[str, Tensor]
PairLoss = Callable[["PairLogprobs"], tuple[Tensor, Quantities]]
GAMMA_OVER_BETA = 0.5  # of SimPO where no margin is given: where its authors say to start


@dataclass(frozen=True, kw_only=True)
class PairLogprobs:
    """What a pair loss may look at; every tensor is (B,), float32 or float64, token counts integer.

    `flip_rates` holds each pair's own probability of a wrong label, in [0, 0.5), in place of one rate for all.
    `check_flip_rate` belongs where the numbers come from: looking at values here would make every step wait for the device.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None
    flip_rates: Tensor | None = None


def nll(logps_B: Tensor, tokens_B: Tensor) -> tuple[Tensor, Quantities]:
    """Negative log-likelihood of each completion, -lp, summed over its tokens.

    The caller divides the sum over the whole optimizer step by the number of completion tokens of that step, so that every
    token weighs the same however the step is cut into micro-batches. `tokens_B` is returned as a quantity for that.

    Returns:
        losses (B,), nats per completion; {"tokens": (B,)}.
    """
    return -logps_B, {"tokens": tokens_B}


def dpo(
    pairs: PairLogprobs, *, beta: float = 0.1, label_smoothing: float = 0.0, robust: bool = False
) -> tuple[Tensor, Quantities]:
    """Direct preference optimization (arXiv 2305.18290, eq. 7), and two answers to labels that are wrong at a rate e.

        m = beta (lr_w - lr_l)
        loss = -(1 - e) log s(m) - e log s(-m)                     conservative, cDPO (e = 0: plain DPO)
        loss = [-(1 - e) log s(m) + e log s(-m)] / (1 - 2 e)       robust (arXiv 2403.00409): unbiased under such flips

    Log-probabilities are sums over tokens, not means. A policy equal to the reference has m = 0 and loss ln 2, for either
    form and every e.

    Args:
        pairs: policy and reference log-probabilities; its `flip_rates`, where given, are each pair's e.
        beta: strength of the implicit KL constraint, > 0.
        label_smoothing: e of every pair, in [0, 0.5).
        robust: the second form.

    Returns:
        losses (B,), with `robust` negative where m is large; rewards beta lr and their difference m, (B,).

    Raises:
        ValueError: no reference log-probabilities, an option out of range, or both flip rates and label smoothing.
    """
    _positive("dpo", beta=beta)
    chosen, rejected = _log_ratios("dpo", pairs)
    return _smoothed("dpo", pairs, beta * chosen, beta * rejected, label_smoothing, robust)


def dpo_norm(
    pairs: PairLogprobs, *, beta: float = 5.0, label_smoothing: float = 0.0, robust: bool = False
) -> tuple[Tensor, Quantities]:
    """DPO on log-ratios per token (Tulu 3, arXiv 2411.15124), which length alone cannot raise.

        m = beta (lr_w / |w| - lr_l / |l|), then as `dpo`

    Args:
        pairs: as for `dpo`.
        beta: as for `dpo`, but per token: Tulu 3 uses 5.
        label_smoothing: e of every pair, in [0, 0.5).
        robust: as for `dpo`.

    Returns:
        losses (B,); rewards beta lr / |y| and their difference, (B,).

    Raises:
        ValueError: as for `dpo`.
    """
    _positive("dpo_norm", beta=beta)
    chosen, rejected = _log_ratios("dpo_norm", pairs)
    rewards = beta * chosen / pairs.chosen_tokens, beta * rejected / pairs.rejected_tokens
    return _smoothed("dpo_norm", pairs, *rewards, label_smoothing, robust)


def ipo(pairs: PairLogprobs, *, tau: float = 0.1) -> tuple[Tensor, Quantities]:
    """Identity preference optimization (arXiv 2310.12036, eq. 17), with log-ratios averaged over tokens.

        m = lr_w / |w| - lr_l / |l|
        loss = (m - 1 / (2 tau))^2

    The averaged form is TRL's, which its authors settled with those of the paper. OpenRLHF and the original DPO repository
    sum over tokens instead: a tau from there means another target here. tau 0.1 (TRL's default) aims at 5 nats per token.

    Args:
        pairs: policy and reference log-probabilities.
        tau: strength of the regularization, > 0; the margin aimed at is 1 / (2 tau).

    Returns:
        losses (B,), in nats squared; rewards lr / |y|, nats per token, and their difference m, (B,).

    Raises:
        ValueError: no reference log-probabilities, or tau out of range.
    """
    _positive("ipo", tau=tau)
    chosen, rejected = _log_ratios("ipo", pairs)
    rewards = _rewards(chosen / pairs.chosen_tokens, rejected / pairs.rejected_tokens)
    return (rewards["margin"] - 1 / (2 * tau)) ** 2, rewards


def simpo(
    pairs: PairLogprobs, *, beta: float = 2.5, gamma_absolute: float | None = None, gamma_over_beta: float | None = None
) -> tuple[Tensor, Quantities]:
    """Simple preference optimization, reference-free (arXiv 2405.14734, eq. 6).

        loss = -log s(beta lp_w / |w| - beta lp_l / |l| - gamma)

    Programs disagree on what the number called gamma is: the paper's equation, TRL, axolotl and LLaMA-Factory mean gamma
    itself; the authors' code and their table of settings, and open-instruct, mean gamma / beta. So it has two names here.

    Args:
        pairs: policy log-probabilities; reference ones are not looked at.
        beta: scale of the length-normalised reward, > 0.
        gamma_absolute: gamma, >= 0.
        gamma_over_beta: gamma / beta, >= 0; 0.5 where neither is given.

    Returns:
        losses (B,); rewards beta lp / |y| and their difference, gamma not taken off, (B,).

    Raises:
        ValueError: an option out of range, or gamma given twice.
    """
    _positive("simpo", beta=beta)
    if gamma_absolute is not None and gamma_over_beta is not None:
        raise ValueError("simpo: give gamma_absolute or gamma_over_beta, not both")
    if gamma_absolute is None:
        gamma_absolute = beta * (GAMMA_OVER_BETA if gamma_over_beta is None else gamma_over_beta)
    if not 0 <= gamma_absolute < math.inf:
        raise ValueError(f"simpo: gamma must be >= 0, not {gamma_absolute}")
    rewards = _rewards(beta * pairs.chosen / pairs.chosen_tokens, beta * pairs.rejected / pairs.rejected_tokens)
    return -logsigmoid(rewards["margin"] - gamma_absolute), rewards


def simper(pairs: PairLogprobs) -> tuple[Tensor, Quantities]:
    """SimPER, reference-free and without options (arXiv 2502.00883): inverse perplexities.

        loss = -exp(lp_w / |w|) + exp(lp_l / |l|)

    Its gradient is scaled by these mean token probabilities, so it fades where both completions are improbable.

    Args:
        pairs: policy log-probabilities; reference ones are not looked at.

    Returns:
        losses (B,) in (-1, 1); rewards exp(lp / |y|) and their difference, (B,).
    """
    rewards = _rewards(torch.exp(pairs.chosen / pairs.chosen_tokens), torch.exp(pairs.rejected / pairs.rejected_tokens))
    return -rewards["margin"], rewards


def orpo(pairs: PairLogprobs, *, odds_ratio_weight: float = 0.1) -> tuple[Tensor, Quantities]:
    """Odds ratio preference optimization, reference-free (arXiv 2403.07691, eq. 6 and 7).

        p = exp(lp / |y|),  odds = p / (1 - p)
        loss = -lp_w / |w| - lambda log s(log odds_w - log odds_l)

    The first term is over completion tokens; TRL's is over the prompt's as well. `nll_weight` comes on top of it.

    Args:
        pairs: policy log-probabilities; reference ones are not looked at.
        odds_ratio_weight: lambda, >= 0.

    Returns:
        losses (B,); rewards log odds and their difference, (B,).

    Raises:
        ValueError: an option out of range.
    """
    if not 0 <= odds_ratio_weight < math.inf:
        raise ValueError(f"orpo: odds_ratio_weight must be >= 0, not {odds_ratio_weight}")
    mean_chosen, mean_rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    rewards = _rewards(_log_odds(mean_chosen), _log_odds(mean_rejected))
    return -mean_chosen - odds_ratio_weight * logsigmoid(rewards["margin"]), rewards


def check_flip_rate(rate: float, name: str) -> None:
    """Whether a label may be wrong at this rate; from one half on it would say nothing, or the opposite.

    Raises:
        ValueError: outside [0, 0.5), or no number.
    """
    if not 0 <= rate < 0.5:
        raise ValueError(f"{name} must be in [0, 0.5), not {rate}")


def loss_at_reference(function: PairLoss, pairs: PairLogprobs) -> Tensor:
    """(B,) losses that a bound loss gives to a policy equal to its reference: what step 0 must show.

    Raises:
        ValueError: no reference log-probabilities.
    """
    if pairs.reference_chosen is None or pairs.reference_rejected is None:
        raise ValueError("a loss at the reference needs reference log-probabilities")
    return function(replace(pairs, chosen=pairs.reference_chosen, rejected=pairs.reference_rejected))[0]


def _positive(loss: str, **option: float) -> None:
    for name, value in option.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{loss}: {name} must be > 0, not {value}")


def _log_ratios(loss: str, pairs: PairLogprobs) -> tuple[Tensor, Tensor]:
    if pairs.reference_chosen is None or pairs.reference_rejected is None:
        raise ValueError(f"{loss} needs reference log-probabilities")
    return pairs.chosen - pairs.reference_chosen, pairs.rejected - pairs.reference_rejected


def _rewards(chosen: Tensor, rejected: Tensor) -> Quantities:
    return {"margin": chosen - rejected, "chosen_reward": chosen, "rejected_reward": rejected}


def _smoothed(
    loss: str, pairs: PairLogprobs, chosen: Tensor, rejected: Tensor, label_smoothing: float, robust: bool
) -> tuple[Tensor, Quantities]:
    """What `dpo` and `dpo_norm` share, from their rewards on."""
    check_flip_rate(label_smoothing, f"{loss}: label_smoothing")
    rewards = _rewards(chosen, rejected)
    margin = rewards["margin"]
    flip: float | Tensor = label_smoothing
    if pairs.flip_rates is not None:
        if label_smoothing:
            raise ValueError(f"{loss}: the pairs have flip rates of their own, so label_smoothing must be 0")
        if pairs.flip_rates.shape != margin.shape:  # would broadcast to (B, B)
            raise ValueError(f"{loss}: flip_rates are {tuple(pairs.flip_rates.shape)}, the pairs {tuple(margin.shape)}")
        flip = pairs.flip_rates.to(margin.dtype)
    if robust:
        losses = (-(1 - flip) * logsigmoid(margin) + flip * logsigmoid(-margin)) / (1 - 2 * flip)
    else:
        losses = -(1 - flip) * logsigmoid(margin) - flip * logsigmoid(-margin)
    return losses, rewards


def _log_odds(mean_logps: Tensor) -> Tensor:
    """log(p / (1 - p)) for p = exp(mean_logps), without cancellation at either end.

    log(1 - exp(x)) is log(-expm1(x)) near 0 and log1p(-exp(x)) below -ln 2. Nearer to 0 than the dtype can tell from
    probability 1, x is held at the last value it can: the log odds stay finite, and so do both branches' gradients.
    """
    x = mean_logps.clamp(max=-torch.finfo(mean_logps.dtype).eps)
    log1mexp = torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
    return x - log1mexp


@dataclass(frozen=True)
class Loss:
    """A loss and what it needs.

    Attributes:
        name: as recipes write it.
        function: (PairLogprobs, **options), or (logps_B, tokens_B) where `paired` is False.
        needs_reference: whether it reads reference log-probabilities.
        length_normalised: whether it divides by completion lengths itself.
        takes_flip_rates: whether it reads `PairLogprobs.flip_rates`.
        paired: whether it compares two completions of one prompt.
    """

    name: str
    function: Callable[..., tuple[Tensor, Quantities]]
    needs_reference: bool
    length_normalised: bool
    takes_flip_rates: bool = False
    paired: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """Every option with its default: the function's own keywords, and for pair losses `nll_weight`."""
        keywords = [p for p in inspect.signature(self.function).parameters.values() if p.kind == p.KEYWORD_ONLY]
        return {p.name: p.default for p in keywords} | ({"nll_weight": 0.0} if self.paired else {})

    def bind(self, options: Mapping[str, Any]) -> Callable[..., tuple[Tensor, Quantities]]:
        """The function with its options set.

        `nll_weight` a adds -a lp_w / |w| to any pair loss, which holds the chosen log-probability up: 1 in IRPO (arXiv
        2404.19733), 0.005 in RPO (arXiv 2405.16436).

        Raises:
            ValueError: an option this loss does not use, or a negative nll_weight; from the bound function, flip rates
                that the loss does not use, and what the loss itself raises.
        """
        if unused := sorted(set(options) - set(self.options)):
            known = ", ".join(self.options) or "none"
            which = "; gamma is gamma_absolute (the margin itself) or gamma_over_beta (the ratio)"
            hint = which if "gamma" in unused and "gamma_absolute" in self.options else ""
            raise ValueError(f"loss {self.name} does not use {', '.join(unused)}; its options: {known}{hint}")
        own = {**self.options, **options}
        nll_weight = own.pop("nll_weight", 0.0)
        if not 0 <= nll_weight < math.inf:
            raise ValueError(f"{self.name}: nll_weight must be >= 0, not {nll_weight}")
        bound = partial(self.function, **own)
        return partial(self._of_pairs, bound, nll_weight) if self.paired else bound

    def _of_pairs(self, bound: PairLoss, nll_weight: float, pairs: PairLogprobs) -> tuple[Tensor, Quantities]:
        if pairs.flip_rates is not None and not self.takes_flip_rates:
            raise ValueError(f"loss {self.name} does not use flip rates")
        losses, quantities = bound(pairs)
        if nll_weight:
            losses = losses - nll_weight * (pairs.chosen / pairs.chosen_tokens)
        return losses, quantities


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("nll", nll, needs_reference=False, length_normalised=False, paired=False),
        Loss("dpo", dpo, needs_reference=True, length_normalised=False, takes_flip_rates=True),
        Loss("ipo", ipo, needs_reference=True, length_normalised=True),
        Loss("dpo_norm", dpo_norm, needs_reference=True, length_normalised=True, takes_flip_rates=True),
        Loss("simpo", simpo, needs_reference=False, length_normalised=True),
        Loss("simper", simper, needs_reference=False, length_normalised=True),
        Loss("orpo", orpo, needs_reference=False, length_normalised=True),
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
