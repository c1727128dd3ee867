"""The forward and backward passes of the fused head, as autograd functions over checked operands.

Weight and bias are arguments of the functions and get their gradients from `backward`, never by writing `.grad`, so that the
hooks of data-parallel wrappers see them.

Shapes: N = tokens (rows), V = vocabulary, d = hidden size, n = rows of a tile or group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from align.train.kernels.gradients import HeadGradients, scale_sums
from align.train.kernels.plan import cut_tiles, plan_groups

# (log-probabilities of the rows of units [i, j), i, j) -> the loss of these units, a scalar.
LossOf = Callable[[Tensor, int, int], Tensor]
Tiles = Sequence[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How to compute, apart from the operands.

    Attributes:
        rows: the module with the passes over rows, `torch_rows` or `triton_rows`.
        dtype: of the matrix products and the logits.
        budget: bytes that logits may take.
        softcap, scale: the head's features.
    """

    rows: ModuleType
    dtype: torch.dtype
    budget: int
    softcap: float | None
    scale: float

    @property
    def wide(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def tiles(self, start: int, stop: int, vocab: int) -> Tiles:
        return cut_tiles(start, stop, vocab, self.dtype.itemsize, self.budget)


class _Head:
    """The operands in the compute dtype, and the steps on tiles of their rows, which share one logits buffer.

    Attributes:
        x_Nd, weight_Vd: hidden states and weight in the compute dtype.
        lse_N, logps_N: wide dtype; filled by `score`.
    """

    def __init__(
        self,
        hidden_Nd: Tensor,
        weight_Vd: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        setting: Setting,
        tile_rows: int,
    ) -> None:
        self.x_Nd, self.weight_Vd = hidden_Nd.to(setting.dtype), weight_Vd.to(setting.dtype)
        self._targets_N, self._rows = targets_N, setting.rows
        self._features: dict[str, Any] = {
            "bias_V": None if bias_V is None else bias_V.to(setting.wide).contiguous(),
            "softcap": setting.softcap,
            "scale": setting.scale,
        }
        shape, device = (tile_rows, weight_Vd.shape[0]), hidden_Nd.device
        self._buffer_nV = torch.empty(shape, dtype=setting.dtype, device=device)
        self.lse_N = torch.empty(hidden_Nd.shape[0], dtype=setting.wide, device=device)
        self.logps_N = torch.empty_like(self.lse_N)

    def form_logits(self, start: int, stop: int) -> Tensor:
        """h W^T of rows [start, stop), in the buffer."""
        return torch.mm(self.x_Nd[start:stop], self.weight_Vd.T, out=self._buffer_nV[: stop - start])

    def score(self, tiles: Tiles) -> Tensor:
        """Fill `lse_N` and `logps_N` of the tiles' rows; returns the logits of the last tile, which are still there."""
        for start, stop in tiles:
            logits_nV = self.form_logits(start, stop)
            lse_n, target_logit_n = self._rows.read_rows(logits_nV, self._targets_N[start:stop], **self._features)
            self.lse_N[start:stop] = lse_n
            self.logps_N[start:stop] = target_logit_n - lse_n
        return logits_nV

    def differentiate_(self, start: int, stop: int, logits_nV: Tensor, coefficient_n: Tensor) -> None:
        """Turn the logits of scored rows into their gradient; `coefficient_n` is dL/dlogp."""
        targets_n, lse_n = self._targets_N[start:stop], self.lse_N[start:stop]
        self._rows.write_gradient_(logits_nV, targets_n, lse_n, coefficient_n, **self._features)


def _largest(tiles: Tiles) -> int:
    return max(stop - start for start, stop in tiles)


def _dtypes(*tensors: Tensor | None) -> list[torch.dtype | None]:
    return [None if tensor is None else tensor.dtype for tensor in tensors]


def score(hidden_Nd: Tensor, weight_Vd: Tensor, bias_V: Tensor | None, targets_N: Tensor, setting: Setting) -> _Head:
    """Log-probabilities of all rows by tiles, 2NVd, nothing kept but `lse_N` and `logps_N`."""
    tiles = setting.tiles(0, hidden_Nd.shape[0], weight_Vd.shape[0])
    with torch.no_grad(), torch.autocast(hidden_Nd.device.type, enabled=False):
        head = _Head(hidden_Nd, weight_Vd, bias_V, targets_N, setting, _largest(tiles))
        head.score(tiles)
    return head


def _refuse_second_derivatives() -> None:
    """Gradients are recorded in a backward pass only with create_graph=True. torch's `once_differentiable` lets that pass
    where the upstream gradient is a constant, and what depends on our gradients would silently lose a term."""
    if torch.is_grad_enabled():
        raise RuntimeError("the fused head has no second derivative (create_graph=True)")


class LinearLogprobs(torch.autograd.Function):
    """Log-probabilities now; the logits once more, with their gradient, when the upstream gradient is known."""

    @staticmethod
    def forward(
        ctx: Any, hidden_Nd: Tensor, weight_Vd: Tensor, bias_V: Tensor | None, targets_N: Tensor, setting: Setting
    ) -> Tensor:
        head = score(hidden_Nd, weight_Vd, bias_V, targets_N, setting)
        ctx.save_for_backward(hidden_Nd, weight_Vd, bias_V, targets_N, head.lse_N)
        ctx.setting = setting
        return head.logps_N

    @staticmethod
    def backward(ctx: Any, upstream_N: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        hidden_Nd, weight_Vd, bias_V, targets_N, lse_N = ctx.saved_tensors
        tiles = ctx.setting.tiles(0, hidden_Nd.shape[0], weight_Vd.shape[0])
        # The pass may run inside the caller's autocast, or outside of the one the forward pass was in.
        with torch.autocast(hidden_Nd.device.type, enabled=False):
            head = _Head(hidden_Nd, weight_Vd, bias_V, targets_N, ctx.setting, _largest(tiles))
            head.lse_N = lse_N
            gradients = HeadGradients(head.x_Nd, head.weight_Vd, ctx.needs_input_grad[:3])
            for start, stop in tiles:
                logits_nV = head.form_logits(start, stop)
                head.differentiate_(start, stop, logits_nV, upstream_N[start:stop])
                gradients.add(start, stop, logits_nV)
            return (*scale_sums(gradients.sums, None, _dtypes(hidden_Nd, weight_Vd, bias_V)), None, None)


class FusedLoss(torch.autograd.Function):
    """The loss and, already in the forward pass, its gradients; the backward pass only multiplies them by a number."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_Nd: Tensor,
        weight_Vd: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        bounds: Sequence[int],
        loss_of: LossOf,
        setting: Setting,
    ) -> tuple[Tensor, Tensor]:
        vocab = weight_Vd.shape[0]
        planned: list[tuple[int, int, Tiles]] = []
        for group in plan_groups(bounds, vocab, setting.dtype.itemsize, setting.budget):
            rows = bounds[group.start_unit], bounds[group.stop_unit]
            tiles = [rows] if group.route == "kept" else setting.tiles(*rows, vocab)
            planned.append((group.start_unit, group.stop_unit, tiles))
        with torch.autocast(hidden_Nd.device.type, enabled=False):
            tile_rows = max(_largest(tiles) for _, _, tiles in planned)
            head = _Head(hidden_Nd, weight_Vd, bias_V, targets_N, setting, tile_rows)
            gradients = HeadGradients(head.x_Nd, head.weight_Vd, ctx.needs_input_grad[:3])
            loss = torch.zeros((), dtype=setting.wide, device=hidden_Nd.device)
            for start_unit, stop_unit, tiles in planned:
                logits_nV = head.score(tiles)
                first, last = tiles[0][0], tiles[-1][1]
                part, coefficient_n = _differentiate_loss(loss_of, head.logps_N[first:last], start_unit, stop_unit)
                loss = loss + part
                # Backwards: the last tile's logits are still in the buffer, and a kept group has no other tile.
                for start, stop in reversed(tiles):
                    if stop != last:
                        logits_nV = head.form_logits(start, stop)
                    head.differentiate_(start, stop, logits_nV, coefficient_n[start - first : stop - first])
                    gradients.add(start, stop, logits_nV)
        # Attributes, not saved tensors: one backward pass scales them in place, and nothing may copy or offload them.
        ctx.sums, ctx.dtypes = gradients.sums, _dtypes(hidden_Nd, weight_Vd, bias_V)
        ctx.mark_non_differentiable(head.logps_N)
        ctx.set_materialize_grads(False)
        return loss, head.logps_N

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _logps: None) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        if ctx.sums is None:
            raise RuntimeError("fused_loss has its gradients for one backward pass only; call it again for another one")
        sums, ctx.sums = ctx.sums, None
        scaled = (None,) * 3 if upstream is None else scale_sums(sums, upstream, ctx.dtypes)
        return (*scaled, None, None, None, None)


def _differentiate_loss(loss_of: LossOf, logps_n: Tensor, start_unit: int, stop_unit: int) -> tuple[Tensor, Tensor]:
    """The loss of these units, detached, and its gradient with respect to their log-probabilities."""
    leaf_n = logps_n.clone().requires_grad_()
    with torch.enable_grad():
        loss = check_loss(loss_of(leaf_n, start_unit, stop_unit))
        if not loss.requires_grad:  # it looked at none of them
            return loss, torch.zeros_like(leaf_n)
        (coefficient_n,) = torch.autograd.grad(loss, leaf_n, materialize_grads=True)
    return loss.detach(), coefficient_n


def check_loss(loss: Tensor) -> Tensor:
    """The loss itself.

    Raises:
        ValueError: no scalar, or a dtype in which summing losses would lose digits.
    """
    if loss.ndim != 0 or loss.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"loss_of must return a scalar in float32 or float64, not {tuple(loss.shape)} {loss.dtype}")
    return loss
