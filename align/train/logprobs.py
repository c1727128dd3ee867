"""Log-probabilities of completions: one function for the policy, the reference and KL.

    log pi(y | x) = sum_t log softmax(logits_{t-1})[y_t],  t over completion tokens        (nats)

Shapes: B = sequences, T = tokens, K = columns some row needs logits for, N = completion tokens of the batch, V = vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def resolve_precision(precision: str, device: torch.device) -> str:
    """`bf16` or `fp32`; `auto` is bf16 where the device multiplies bfloat16 matrices natively.

    Raises:
        ValueError: another word.
    """
    if precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f"precision {precision!r} is not auto, bf16 or fp32")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
        return "bf16" if any(check() for check in checks if check is not None) else "fp32"
    return "fp32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 autocast over float32 weights for `bf16`, nothing for `fp32`."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _takes_logits_to_keep(model: Any) -> bool:
    """Whether the model can be asked for logits at chosen columns; wrappers (DDP, PEFT) are looked through."""
    core = getattr(model, "module", model)
    core = core.get_base_model() if hasattr(core, "get_base_model") else core
    # The class's own forward: libraries wrap the instance's and hide its signature.
    return "logits_to_keep" in inspect.signature(type(core).forward).parameters


def token_logprobs(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Log-probability of each completion token, given everything before it in its row.

    The LM head runs on the columns that precede some row's completion token, and only completion positions enter the
    log-softmax, which is in float32 (float64 for a float64 model) whatever the autocast dtype.

    Args:
        model: a causal LM whose output has `logits`.
        batch: `separate_batch`'s tensors, on the model's device.

    Returns:
        (B, T) in float32 (or float64), nats; 0 where `completion_mask` is False.
    """
    # Token t is predicted at t - 1, so the mask of predicting columns is the completion mask moved one to the left.
    predicts_BT = batch["completion_mask"][:, 1:]
    columns_K = predicts_BT.any(dim=0).nonzero().squeeze(1)
    kept = {"logits_to_keep": columns_K} if _takes_logits_to_keep(model) else {}
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        use_cache=False,
        **kept,
    )
    logits_BKV = output.logits if kept else output.logits[:, columns_K]
    predicts_BK = predicts_BT[:, columns_K]
    logits_NV = logits_BKV[predicts_BK]
    targets_N = batch["input_ids"][:, 1:][predicts_BT]
    exact = torch.promote_types(logits_NV.dtype, torch.float32)
    logps_N = -F.cross_entropy(logits_NV.to(exact), targets_N, reduction="none")
    zeros_BT = torch.zeros(batch["input_ids"].shape, dtype=exact, device=logps_N.device)
    return zeros_BT.masked_scatter(batch["completion_mask"], logps_N)


def completion_logprobs(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Summed log-probability and length of each row's completion.

    Returns:
        sum_logps_B (B,) float32 (float64 for a float64 model), nats; num_tokens_B (B,) int64.
    """
    return token_logprobs(model, batch).sum(dim=1), batch["completion_mask"].sum(dim=1)
