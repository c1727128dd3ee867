"""The fused LM head: log-probabilities of tokens, and losses of them, straight from hidden states and the head's weight.

    z = softcap(scale (h W^T + b)),  logp = z[target] - log sum_v exp z[v]

The logits exist a tile of whole rows at a time, in the compute dtype, in one buffer that their gradient overwrites; an N x V
matrix in float32 is never made (`impl="reference"`, the float64 oracle, apart).

Two entry points. `linear_logprobs` takes any gradient per token from upstream, so it must form the logits again in the
backward pass (8NVd operations). `fused_loss` is given the loss as a function: it learns dL/dlogp while the logits of a group
of units are still there, and has all gradients when the forward pass ends (6NVd; arXiv 2410.10989 does so for its losses).

Compute dtype: autocast's where autocast is on, else what hidden and weight promote to. float64 stays float64. Bias, sums
over the vocabulary, log-probabilities and the sums of dW and db are float32 (float64). Rounded to bfloat16 are, as under
autocast in general, the operands of products, the logits, their gradient and dX; on a CPU each tile's part of dW too.

Shapes: N = tokens (rows), V = vocabulary, d = hidden size, U = units, n = rows of a group.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType

import torch
from torch import Tensor

from align.train.kernels import torch_rows
from align.train.kernels.passes import FusedLoss, LinearLogprobs, LossOf, Setting, check_loss, score
from align.train.kernels.plan import CPU_BUDGET_BYTES, CUDA_BUDGET_BYTES
from align.train.kernels.reference import reference_logprobs

IMPLS = ("auto", "triton", "chunked", "reference")
DTYPES = (torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, kw_only=True)
class HeadFeatures:
    """What a model does to its logits: softcap(scale (h W^T + b)), with softcap(x) = c tanh(x / c).

    Attributes:
        softcap: c > 0; None for no cap.
        scale: factor, not 0.

    Raises:
        ValueError: a number out of range.
    """

    softcap: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.softcap is not None and not 0 < self.softcap < math.inf:
            raise ValueError(f"softcap must be > 0 and finite, not {self.softcap}")
        if self.scale == 0 or not math.isfinite(self.scale):
            raise ValueError(f"scale must be finite and not 0, not {self.scale}")


NO_FEATURES = HeadFeatures()


def choose_impl(impl: str, device: torch.device) -> str:
    """`triton`, `chunked` or `reference`; `auto` is triton on CUDA where Triton is installed, else chunked.

    Raises:
        ValueError: another word, or triton where it cannot run.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl {impl!r} is not one of {', '.join(IMPLS)}")
    is_installed = importlib.util.find_spec("triton") is not None
    if impl == "auto":
        return "triton" if device.type == "cuda" and is_installed else "chunked"
    if impl == "triton":
        if not is_installed:
            raise ValueError("impl triton: Triton is not installed")
        is_interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
        if device.type != "cuda" and not is_interpreted:
            raise ValueError(f"impl triton does not run on {device.type} (on cpu only with TRITON_INTERPRET=1)")
    return impl


def _compute_dtype(hidden_Nd: Tensor, weight_Vd: Tensor, bias_V: Tensor | None) -> torch.dtype:
    """Autocast's dtype, or what hidden and weight promote to; the bias is in no product.

    Raises:
        ValueError: a dtype that is not in DTYPES, or float64 beside another one.
    """
    dtypes = {tensor.dtype for tensor in (hidden_Nd, weight_Vd, bias_V) if tensor is not None}
    dtype = torch.promote_types(hidden_Nd.dtype, weight_Vd.dtype)
    if torch.is_autocast_enabled(hidden_Nd.device.type):
        dtype = torch.get_autocast_dtype(hidden_Nd.device.type)
    if unknown := (dtypes | {dtype}) - set(DTYPES):
        raise ValueError(f"dtypes must be bfloat16, float32 or float64, not {', '.join(sorted(map(str, unknown)))}")
    if torch.float64 in dtypes:
        if len(dtypes) > 1:
            raise ValueError("float64 does not mix: hidden, weight and bias must all be float64, or none")
        return torch.float64  # which autocast leaves alone
    return dtype


def _check_operands(hidden_Nd: Tensor, weight_Vd: Tensor, targets_N: Tensor, bias_V: Tensor | None) -> None:
    """ValueError: shapes that do not fit, no rows, targets that are no int64 or (on a CPU) not in [0, V)."""
    if hidden_Nd.ndim != 2 or weight_Vd.ndim != 2 or hidden_Nd.shape[1] != weight_Vd.shape[1]:
        raise ValueError(f"hidden {tuple(hidden_Nd.shape)} and weight {tuple(weight_Vd.shape)} are not (N, d) and (V, d)")
    num_rows, vocab = hidden_Nd.shape[0], weight_Vd.shape[0]
    if num_rows == 0:
        raise ValueError("there are no rows to score")
    if targets_N.shape != (num_rows,) or targets_N.dtype != torch.int64:
        raise ValueError(f"targets must be ({num_rows},) int64, not {tuple(targets_N.shape)} {targets_N.dtype}")
    if bias_V is not None and bias_V.shape != (vocab,):
        raise ValueError(f"bias must be ({vocab},), not {tuple(bias_V.shape)}")
    # On another device looking would mean waiting for it.
    if targets_N.device.type == "cpu" and not 0 <= int(targets_N.min()) <= int(targets_N.max()) < vocab:
        raise ValueError(f"targets lie in [{int(targets_N.min())}, {int(targets_N.max())}], the vocabulary is [0, {vocab})")


def _check_bounds(bounds: Sequence[int], num_rows: int) -> None:
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != num_rows:
        raise ValueError(f"bounds must begin with 0 and end with the number of rows, {num_rows}: {list(bounds)}")
    if any(after <= before for before, after in pairwise(bounds)):
        raise ValueError(f"bounds must rise: a unit without rows has no loss ({list(bounds)})")


def _setting(
    hidden_Nd: Tensor, weight_Vd: Tensor, bias_V: Tensor | None, features: HeadFeatures, impl: str, budget_bytes: int | None
) -> Setting:
    device = hidden_Nd.device
    dtype = _compute_dtype(hidden_Nd, weight_Vd, bias_V)
    chosen = choose_impl(impl, device)
    rows: ModuleType = torch_rows
    if chosen == "triton" and dtype == torch.float64:
        if impl == "triton":
            raise ValueError("impl triton computes in float32 and does not take float64; use chunked")
    elif chosen == "triton":
        from align.train.kernels import triton_rows  # needs Triton, which not every machine has

        rows = triton_rows
    if budget_bytes is None:
        budget_bytes = CUDA_BUDGET_BYTES if device.type == "cuda" else CPU_BUDGET_BYTES
    if budget_bytes <= 0:
        raise ValueError(f"budget_bytes must be > 0, not {budget_bytes}")
    return Setting(rows=rows, dtype=dtype, budget=budget_bytes, softcap=features.softcap, scale=features.scale)


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def linear_logprobs(
    hidden_Nd: Tensor,
    weight_Vd: Tensor,
    targets_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    features: HeadFeatures = NO_FEATURES,
    impl: str = "auto",
    budget_bytes: int | None = None,
) -> Tensor:
    """Log-probability of each target token, differentiable with any gradient per token.

    Costs 2NVd operations without gradients and 8NVd with them (6NVd where the weight is frozen).

    Args:
        hidden_Nd: hidden states, bfloat16, float32 or float64.
        weight_Vd: the head's weight; may be the embedding's.
        targets_N: int64 in [0, V); checked on a CPU only, since looking would make a GPU wait.
        bias_V: the head's bias.
        features: softcap and scale.
        impl: auto, triton, chunked or reference; see `choose_impl`.
        budget_bytes: of logits at a time; None for CUDA_BUDGET_BYTES or CPU_BUDGET_BYTES. One row is the least.

    Returns:
        (N,) float32 (float64 for float64 operands), nats.

    Raises:
        ValueError: operands that do not fit together, a dtype or impl that is not supported.
    """
    _check_operands(hidden_Nd, weight_Vd, targets_N, bias_V)
    setting = _setting(hidden_Nd, weight_Vd, bias_V, features, impl, budget_bytes)
    if impl == "reference":
        return _reference(hidden_Nd, weight_Vd, targets_N, bias_V, features).to(setting.wide)
    if not _needs_gradient(hidden_Nd, weight_Vd, bias_V):
        return score(hidden_Nd, weight_Vd, bias_V, targets_N, setting).logps_N
    logps_N: Tensor = LinearLogprobs.apply(hidden_Nd, weight_Vd, bias_V, targets_N, setting)
    return logps_N


def fused_loss(
    hidden_Nd: Tensor,
    weight_Vd: Tensor,
    targets_N: Tensor,
    bounds: Sequence[int],
    loss_of: LossOf,
    *,
    bias_V: Tensor | None = None,
    features: HeadFeatures = NO_FEATURES,
    impl: str = "auto",
    budget_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum of the units' losses, with gradients to hidden, weight and bias.

    Units (pairs, dialogues) are taken in groups whose logits fit the budget; `plan_groups` says which. A unit that does not
    fit by itself has its logits formed twice. Costs 6NVd operations (8NVd for such units), 2NVd less with a frozen weight,
    and 2NVd in all where no gradient is asked for.

    Args:
        hidden_Nd, weight_Vd, targets_N, bias_V, features, impl, budget_bytes: as in `linear_logprobs`.
        bounds: U + 1 rising row numbers from 0 to N; unit u has rows [bounds[u], bounds[u + 1]).
        loss_of: given the log-probabilities of the rows of units [i, j), and i and j, returns the sum of their losses, a
            scalar in float32 or float64. It is called once for each group, in order. Only the log-probabilities get a
            gradient: a parameter that it uses besides them gets none.

    Returns:
        loss: scalar, float32 or what `loss_of` returns if wider. One backward pass is possible; a second one raises.
        logps_N: float32 (float64 for float64 operands), nats, without gradient.

    Raises:
        ValueError: as `linear_logprobs`; bounds that do not cover the rows; a loss that is no scalar.
    """
    _check_operands(hidden_Nd, weight_Vd, targets_N, bias_V)
    _check_bounds(bounds, hidden_Nd.shape[0])
    setting = _setting(hidden_Nd, weight_Vd, bias_V, features, impl, budget_bytes)
    num_units = len(bounds) - 1
    if impl == "reference":
        exact_N = _reference(hidden_Nd, weight_Vd, targets_N, bias_V, features)
        with torch.autocast(hidden_Nd.device.type, enabled=False):
            return check_loss(loss_of(exact_N, 0, num_units)), exact_N.detach().to(setting.wide)
    if not _needs_gradient(hidden_Nd, weight_Vd, bias_V):
        logps_N = score(hidden_Nd, weight_Vd, bias_V, targets_N, setting).logps_N
        with torch.no_grad(), torch.autocast(hidden_Nd.device.type, enabled=False):
            return check_loss(loss_of(logps_N, 0, num_units)), logps_N
    loss, logps_N = FusedLoss.apply(hidden_Nd, weight_Vd, bias_V, targets_N, bounds, loss_of, setting)
    return loss, logps_N


def _reference(
    hidden_Nd: Tensor, weight_Vd: Tensor, targets_N: Tensor, bias_V: Tensor | None, features: HeadFeatures
) -> Tensor:
    with torch.autocast(hidden_Nd.device.type, enabled=False):
        return reference_logprobs(hidden_Nd, weight_Vd, targets_N, bias_V, features.softcap, features.scale)
