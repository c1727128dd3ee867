"""The two passes over rows of logits as Triton kernels: each reads the logits once, the second writes them once.

The matrix products stay with the vendor's library; only what happens between them is here. Importing this module needs
Triton, so it is imported where it is used. With TRITON_INTERPRET=1 in the environment from the start of the process the
kernels run on CPU tensors.

Row numbers are widened to int64 before they are multiplied by a stride: rows x V passes 2^31 at 20,972 rows of V = 102,400.

Shapes: n = rows, V = vocabulary.
"""

# The compiler reads the kernels' annotations, so they carry no others than its own; Triton has no stubs.
# mypy: disable-error-code="no-untyped-def, import-untyped, import-not-found"

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Logits that one program handles at a time: 16 of them in each of 256 threads. The interpreter does not care.
BLOCK = 4096
NUM_WARPS = 8


@triton.jit
def _finish(raw, columns, inside, bias_ptr, scale, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    """softcap(scale (raw + bias)) in float32."""
    z = raw.to(tl.float32)
    if HAS_BIAS:
        z += tl.load(bias_ptr + columns, mask=inside, other=0.0)
    z = z * scale
    if HAS_SOFTCAP:
        # tanh(x) = 2 sigmoid(2x) - 1; the language itself has no tanh. Its error is 1e-7 of the cap.
        z = softcap * (2.0 * tl.sigmoid(2.0 * z / softcap) - 1.0)
    return z


@triton.jit
def _read_kernel(
    logits_ptr,
    row_stride,
    targets_ptr,
    bias_ptr,
    lse_ptr,
    target_logit_ptr,
    scale,
    softcap,
    VOCAB: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row: the online log-sum-exp, rescaled whenever a block has a larger logit than all before it."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    scale = tl.cast(scale, tl.float32)
    softcap = tl.cast(softcap, tl.float32)
    largest = tl.full((), -float("inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, VOCAB, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < VOCAB
        raw = tl.load(row_ptr + columns, mask=inside, other=0.0)
        z = _finish(raw, columns, inside, bias_ptr, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
        z = tl.where(inside, z, -float("inf"))
        new_largest = tl.maximum(largest, tl.max(z, axis=0))
        # While every logit so far is -inf, subtract 0: -inf - (-inf) is not a number.
        shift = tl.where(new_largest == -float("inf"), 0.0, new_largest)
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(z - shift), axis=0)
        largest = new_largest
    target = tl.load(targets_ptr + row)
    raw = tl.load(row_ptr + target)
    z = _finish(raw, target, target < VOCAB, bias_ptr, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
    tl.store(lse_ptr + row, largest + tl.log(total))
    tl.store(target_logit_ptr + row, z)


@triton.jit
def _write_kernel(
    logits_ptr,
    row_stride,
    targets_ptr,
    bias_ptr,
    lse_ptr,
    coefficient_ptr,
    scale,
    softcap,
    VOCAB: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row and block: the logits become their own gradient."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    scale = tl.cast(scale, tl.float32)
    softcap = tl.cast(softcap, tl.float32)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < VOCAB
    raw = tl.load(row_ptr + columns, mask=inside, other=0.0)
    z = _finish(raw, columns, inside, bias_ptr, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
    is_target = (columns == tl.load(targets_ptr + row)).to(tl.float32)
    gradient = tl.load(coefficient_ptr + row) * (is_target - tl.exp(z - tl.load(lse_ptr + row)))
    if HAS_SOFTCAP:
        capped = z / softcap
        gradient = gradient * (1.0 - capped * capped)
    gradient = gradient * scale
    tl.store(row_ptr + columns, gradient.to(logits_ptr.dtype.element_ty), mask=inside)


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _arguments(logits_nV: Tensor, bias_V: Tensor | None, softcap: float | None) -> dict[str, Any]:
    """What both launches have in common.

    Raises:
        ValueError: float64 logits (the kernels compute in float32), or rows that are not contiguous.
    """
    if logits_nV.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"the Triton kernels take bfloat16 and float32 logits, not {logits_nV.dtype}")
    if logits_nV.stride(1) != 1:
        raise ValueError("the logits of a row must be contiguous")
    return {
        "VOCAB": logits_nV.shape[1],
        "HAS_BIAS": bias_V is not None,
        "HAS_SOFTCAP": softcap is not None,
        "BLOCK": min(BLOCK, triton.next_power_of_2(logits_nV.shape[1])),
        "num_warps": NUM_WARPS,
    }


def read_rows(
    logits_nV: Tensor, targets_n: Tensor, bias_V: Tensor | None = None, softcap: float | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of each row and its target's logit; as `torch_rows.read_rows`, for bfloat16 and float32 logits.

    Args:
        logits_nV: h W^T, unchanged afterwards.
        targets_n: int64 in [0, V).
        bias_V: float32, contiguous.
        softcap: c, or None.
        scale: factor on the logits.

    Returns:
        lse_n and target_logit_n, float32, nats.
    """
    num_rows = logits_nV.shape[0]
    arguments = _arguments(logits_nV, bias_V, softcap)
    lse_n = torch.empty(num_rows, dtype=torch.float32, device=logits_nV.device)
    target_logit_n = torch.empty_like(lse_n)
    with _on(logits_nV.device):
        # Pointers and numbers that a flag switches off still need some value of the right type.
        _read_kernel[(num_rows,)](
            logits_nV,
            logits_nV.stride(0),
            targets_n.contiguous(),
            lse_n if bias_V is None else bias_V,
            lse_n,
            target_logit_n,
            float(scale),
            float(softcap or 1.0),
            **arguments,
        )
    return lse_n, target_logit_n


def write_gradient_(
    logits_nV: Tensor,
    targets_n: Tensor,
    lse_n: Tensor,
    coefficient_n: Tensor,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> None:
    """Overwrite h W^T by the gradient of the loss with respect to it; as `torch_rows.write_gradient_`.

    Args:
        logits_nV: h W^T; changed in place, in its own dtype.
        targets_n: int64 in [0, V).
        lse_n: of `read_rows`.
        coefficient_n: dL/dlogp, float32.
        bias_V, softcap, scale: as in `read_rows`.
    """
    num_rows, vocab = logits_nV.shape
    arguments = _arguments(logits_nV, bias_V, softcap)
    grid = (num_rows, triton.cdiv(vocab, arguments["BLOCK"]))
    with _on(logits_nV.device):
        _write_kernel[grid](
            logits_nV,
            logits_nV.stride(0),
            targets_n.contiguous(),
            lse_n if bias_V is None else bias_V,
            lse_n,
            coefficient_n.contiguous(),
            float(scale),
            float(softcap or 1.0),
            **arguments,
        )
