"""The LM head written down plainly in float64: what every faster implementation is compared with.

It is the one place of this package that forms all N x V logits at once, and in eight bytes each; use it on small inputs.

Shapes: N = tokens, V = vocabulary, d = hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference_logprobs(
    hidden_Nd: Tensor,
    weight_Vd: Tensor,
    targets_N: Tensor,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Log-probability of each target token.

        z = softcap(scale (h W^T + b)),  softcap(x) = c tanh(x / c)
        logp = z[target] - log sum_v exp z[v]

    Args:
        hidden_Nd: any floating dtype; it is cast, so its gradient comes back in its own dtype.
        weight_Vd: likewise.
        targets_N: int64 in [0, V).
        bias_V: added to the product before `scale`.
        softcap: c; None for no cap.
        scale: factor on the logits (a temperature is 1 / scale).

    Returns:
        (N,) float64, nats, differentiable by autograd.
    """
    logits_NV = hidden_Nd.double() @ weight_Vd.double().T
    if bias_V is not None:
        logits_NV = logits_NV + bias_V.double()
    logits_NV = logits_NV * scale
    if softcap is not None:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)
    return logits_NV.log_softmax(dim=-1).gather(1, targets_N[:, None]).squeeze(1)
