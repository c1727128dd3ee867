"""Inputs, arms and gate of `benchmarks.loss_head`: what is called, and what it must give before it is timed.

Shapes: N = rows, V = vocabulary, d = hidden size, B = pairs, T = rows of one completion (N = 2 B T).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from align.train.kernels.head import fused_loss
from align.train.kernels.reference import reference_logprobs
from align.train.losses import PairLogprobs, find_loss
from benchmarks import peers
from benchmarks.gpu import Call

BETA = 0.1
GATE = {"loss": 0.02, "dX": 0.03, "dW": 0.03}  # absolute (nats), and norms of differences relative to the reference's
TAIL = 2.5  # standard deviation of the logits that are not the target's


@dataclass(frozen=True, kw_only=True)
class Case:
    """The inputs of one shape.

    Attributes:
        hidden_Nd: rows of pair 0's chosen completion, pair 0's rejected one, pair 1's chosen one, ...; a leaf.
        weight_Vd: a leaf.
        targets_N: int64.
        reference_B2: float32, summed log-probabilities of chosen and rejected under a reference.
    """

    hidden_Nd: Tensor
    weight_Vd: Tensor
    targets_N: Tensor
    reference_B2: Tensor

    @property
    def rows(self) -> int:
        return self.hidden_Nd.shape[0]

    @property
    def rows_of_pair(self) -> int:
        return self.rows // len(self.reference_B2)

    def sums(self, logps: Tensor) -> Tensor:
        """(pairs, 2) summed log-probabilities of whole pairs' rows."""
        return logps.view(-1, 2, self.rows_of_pair // 2).sum(dim=2)

    def loss_of(self, logps: Tensor, first: int, last: int) -> Tensor:
        """DPO of pairs [first, last), so that the mean over all pairs is their sum."""
        sums, reference = self.sums(logps), self.reference_B2[first:last]
        tokens = torch.full((last - first,), self.rows_of_pair // 2, device=logps.device)
        pairs = PairLogprobs(
            chosen=sums[:, 0], rejected=sums[:, 1], chosen_tokens=tokens, rejected_tokens=tokens,
            reference_chosen=reference[:, 0], reference_rejected=reference[:, 1],
        )  # fmt: skip
        losses, _ = find_loss("dpo").bind({"beta": BETA})(pairs)
        return losses.sum() / len(self.reference_B2)

    def whole_loss(self, logps: Tensor) -> Tensor:
        return self.loss_of(logps, 0, len(self.reference_B2))

    def gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        """Loss, dX and, unless the head is frozen, dW."""
        wanted = [self.hidden_Nd, *([self.weight_Vd] if self.weight_Vd.requires_grad else [])]
        return (loss.detach(), *torch.autograd.grad(loss, wanted))

    def frozen(self) -> Case:
        return replace(self, weight_Vd=self.weight_Vd.detach())


def peaked_case(rows: int, hidden: int, vocab: int, pairs: int, device: torch.device, dtype: torch.dtype, seed: int) -> Case:
    """Inputs whose targets have probabilities between 0.1 and 0.99; how, see the top of the file."""
    generator = torch.Generator(device).manual_seed(seed)
    options: dict[str, Any] = {"generator": generator, "device": device}
    weight_Vd = torch.randn(vocab, hidden, dtype=dtype, **options).mul_(hidden**-0.5)
    targets_N = torch.randint(vocab, (rows,), **options)
    rows_Nd = weight_Vd[targets_N].float()
    squared_N1 = rows_Nd.square().sum(dim=1, keepdim=True)
    hidden_Nd = torch.randn(rows, hidden, **options).mul_(TAIL)
    hidden_Nd -= (hidden_Nd * rows_Nd).sum(dim=1, keepdim=True) / squared_N1 * rows_Nd
    wanted_N1 = 0.1 + 0.89 * torch.rand(rows, 1, **options)
    # A sum of exp over many normal logits is V exp(variance / 2); the target's own part adds a^2 / d to the variance.
    height_N1 = math.log(vocab - 1) + TAIL**2 / 2 + torch.logit(wanted_N1)
    height_N1 += height_N1**2 / hidden / 2
    hidden_Nd += height_N1 / squared_N1 * rows_Nd
    case = Case(
        hidden_Nd=hidden_Nd.to(dtype).requires_grad_(),
        weight_Vd=weight_Vd.requires_grad_(),
        targets_N=targets_N,
        reference_B2=torch.zeros(pairs, 2, device=device),
    )
    # A cached reference near the policy: margins of about 1, where the loss has a slope.
    shift_B2 = torch.randn(pairs, 2, **options) / BETA / 2**0.5
    return replace(case, reference_B2=case.sums(logprobs_of(case)) + shift_B2)


@torch.no_grad()
def logprobs_of(case: Case) -> Tensor:
    """(N,) in plain torch, 2,048 rows at a time."""
    parts = zip(case.hidden_Nd.split(2048), case.targets_N.split(2048), strict=True)
    return torch.cat([-F.cross_entropy((h @ case.weight_Vd.T).float(), t, reduction="none") for h, t in parts])


# Arms: (case) -> what to call. A call returns loss, dX, dW (without dW for a frozen head).

Make = Callable[[Case], Call]


def ours(case: Case, *, impl: str, rows: int | None = None, one_unit: bool = False) -> Call:
    """Our fused loss; `rows` is the budget in rows of logits, None the default. `one_unit`: recompute what exceeds it."""
    budget = None if rows is None else rows * case.weight_Vd.shape[0] * case.hidden_Nd.dtype.itemsize
    bounds = (0, case.rows) if one_unit else range(0, case.rows + 1, case.rows_of_pair)
    loss_of = (lambda logps, first, last: case.whole_loss(logps)) if one_unit else case.loss_of

    def call() -> tuple[Tensor, ...]:
        loss, _ = fused_loss(
            case.hidden_Nd, case.weight_Vd, case.targets_N, bounds, loss_of, impl=impl, budget_bytes=budget
        )  # fmt: skip
        return case.gradients(loss)

    return call


def trl(case: Case, *, function: Any, tile: int, outputs: Sequence[str] = ()) -> Call:
    def call() -> tuple[Tensor, ...]:
        arguments = (case.hidden_Nd, case.weight_Vd, case.targets_N)
        return case.gradients(case.whole_loss(peers.trl_logprobs(function, *arguments, tile=tile, outputs=outputs)))

    return call


def plain(case: Case) -> Call:
    """The logits as a matrix, in float32 for the softmax."""

    def call() -> tuple[Tensor, ...]:
        logits_NV = case.hidden_Nd @ case.weight_Vd.T
        return case.gradients(case.whole_loss(-F.cross_entropy(logits_NV.float(), case.targets_N, reduction="none")))

    return call


def liger_scaled(case: Case, *, function: Any) -> Call:
    def call() -> tuple[Tensor, ...]:
        return case.gradients(case.whole_loss(-function.apply(case.hidden_Nd, case.weight_Vd, case.targets_N)))

    return call


def liger_dpo(case: Case, *, loss_class: Any, chunk: int, compiled: bool) -> Call:
    """Liger's DPO takes no cached reference, so its reference is 0, which costs the same. Rows stacked as it wants them."""
    pairs, hidden = len(case.reference_B2), case.hidden_Nd.shape[1]
    length = case.rows_of_pair // 2
    stacked = case.hidden_Nd.detach().view(pairs, 2, length, hidden).transpose(0, 1).reshape(2 * pairs, length, hidden)
    leaf = stacked.contiguous().requires_grad_()
    targets = case.targets_N.view(pairs, 2, length).transpose(0, 1).reshape(2 * pairs, length).contiguous()
    loss_of = loss_class(beta=BETA, use_ref_model=False, compute_nll_loss=False, compiled=compiled, chunk_size=chunk)

    def call() -> tuple[Tensor, ...]:
        loss, *_ = loss_of(case.weight_Vd, leaf, targets)
        wanted = [leaf, *([case.weight_Vd] if case.weight_Vd.requires_grad else [])]
        gradient, *others = torch.autograd.grad(loss, wanted)
        # A view in the order of the rows: free, and what the gate compares.
        return loss.detach(), gradient.view(2, pairs, length, hidden).transpose(0, 1), *others

    return call


def reference_call(case: Case, score: Callable[[], Tensor]) -> Call:
    def call() -> Tensor:
        with torch.no_grad():
            return score()

    return call


# The gate


def exact(case: Case) -> tuple[Tensor, ...]:
    """Loss, dX, dW in float64 from the same bfloat16 numbers."""
    hidden, weight = (tensor.detach().double().requires_grad_() for tensor in (case.hidden_Nd, case.weight_Vd))
    twin = replace(case, hidden_Nd=hidden, weight_Vd=weight, reference_B2=case.reference_B2.double())
    return twin.gradients(twin.whole_loss(reference_logprobs(hidden, weight, case.targets_N)))


def errors_of(found: Sequence[Tensor], expected: Sequence[Tensor]) -> dict[str, float]:
    """Differences from the reference: the loss in nats, gradients by norm, and the worst row of dX."""

    def relative(a: Tensor, b: Tensor) -> float:
        return float((a.double() - b).norm() / b.norm())

    dx_Nd = found[1].reshape(expected[1].shape)
    row_N = (dx_Nd.double() - expected[1]).norm(dim=1) / expected[1].norm(dim=1)
    return {
        "loss": float((found[0].double() - expected[0]).abs()),
        "dX": relative(dx_Nd, expected[1]),
        "dW": relative(found[2], expected[2]),
        "dX_worst_row": float(row_N.max()),
    }


def passes(errors: dict[str, float]) -> bool:
    return all(errors[name] <= most for name, most in GATE.items())  # a NaN does not pass
