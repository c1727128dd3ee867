"""Gradients of the head summed over tiles of rows: dX = G W, dW = sum G^T X, db = sum of G's rows (G = dL/dlogits).

Shapes: N = all rows, n = rows of a tile, V = vocabulary, v = rows of the weight taken at once, d = hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

# Elements of dW that are added at once where a product cannot be added in float32: what a second-level cache holds on a CPU;
# elsewhere large enough that few launches are needed.
CPU_SLICE_ELEMENTS = 2**19
SLICE_ELEMENTS = 2**24


@cache
def adds_products_in_float32(device: torch.device) -> bool:
    """Whether this device adds a product of bfloat16 matrices to a float32 one without rounding it first; tried out once."""
    factor = torch.full((16, 16), 1 + 2**-7, dtype=torch.bfloat16, device=device)
    total = torch.ones((16, 16), dtype=torch.float32, device=device)
    try:
        torch.addmm(total, factor, factor, out_dtype=torch.float32, out=total)
    except (TypeError, RuntimeError):  # an older torch, or no such kernel (NotImplementedError is a RuntimeError)
        return False
    # 16 (1 + 2^-7)^2 has 15 significant bits: float32 holds it, bfloat16 does not.
    return bool((total == 1 + 16 * (1 + 2**-7) ** 2).all())


class HeadGradients:
    """Sums for those of hidden, weight and bias that need a gradient; dW and db in float32 (float64 for float64).

    A sum in bfloat16 would stop growing at 256 times what is added, and lose more the more tiles there are.

    Args:
        x_Nd: hidden states in the compute dtype.
        weight_Vd: in the compute dtype.
        needs: whether hidden, weight, bias need a gradient.
    """

    def __init__(self, x_Nd: Tensor, weight_Vd: Tensor, needs: tuple[bool, bool, bool]) -> None:
        self._x_Nd, self._weight_Vd = x_Nd, weight_Vd
        wide = torch.promote_types(x_Nd.dtype, torch.float32)
        vocab = weight_Vd.shape[0]
        self.dx_Nd = torch.empty_like(x_Nd, memory_format=torch.contiguous_format) if needs[0] else None
        self.dweight_Vd = torch.empty(weight_Vd.shape, dtype=wide, device=x_Nd.device) if needs[1] else None
        self.dbias_V = torch.zeros(vocab, dtype=wide, device=x_Nd.device) if needs[2] else None
        self._is_first = True

    def add(self, start: int, stop: int, gradient_nV: Tensor) -> None:
        """Take in the logits' gradient of rows [start, stop); each row is given once."""
        if self.dx_Nd is not None:
            torch.mm(gradient_nV, self._weight_Vd, out=self.dx_Nd[start:stop])
        if self.dweight_Vd is not None:
            self._add_product(self.dweight_Vd, gradient_nV, self._x_Nd[start:stop])
        if self.dbias_V is not None:
            for columns in self._slices(gradient_nV.shape[0]):
                # By slices: a sum into a wider dtype first widens what it sums on a CPU.
                self.dbias_V[columns] += gradient_nV[:, columns].sum(dim=0, dtype=self.dbias_V.dtype)
        self._is_first = False

    def _slices(self, row_elements: int) -> list[slice]:
        """The vocabulary in ranges of at least one, so that a range of `row_elements` each is small."""
        elements = CPU_SLICE_ELEMENTS if self._x_Nd.device.type == "cpu" else SLICE_ELEMENTS
        width = max(1, elements // row_elements)
        return [slice(at, at + width) for at in range(0, self._weight_Vd.shape[0], width)]

    def _add_product(self, dweight_Vd: Tensor, gradient_nV: Tensor, x_nd: Tensor) -> None:
        """dweight += gradient^T x, or = for the first tile, which saves filling it with zeros (a pass over fresh memory)."""
        if gradient_nV.dtype == dweight_Vd.dtype:
            if self._is_first:
                torch.mm(gradient_nV.T, x_nd, out=dweight_Vd)
            else:
                torch.addmm(dweight_Vd, gradient_nV.T, x_nd, out=dweight_Vd)
        elif adds_products_in_float32(dweight_Vd.device):
            if self._is_first:
                dweight_Vd.zero_()
            torch.addmm(dweight_Vd, gradient_nV.T, x_nd, out_dtype=torch.float32, out=dweight_Vd)
        else:
            # The product itself sums in float32 and is rounded to bfloat16 once for each tile, as autocast rounds it once
            # for each micro-batch; the sum over tiles is not rounded. A float32 product would need float32 copies of both
            # factors and take twice as long.
            for rows in self._slices(dweight_Vd.shape[1]):
                product_vd = torch.mm(gradient_nV[:, rows].T, x_nd)
                if self._is_first:
                    dweight_Vd[rows].copy_(product_vd)
                else:
                    dweight_Vd[rows].add_(product_vd)

    @property
    def sums(self) -> list[Tensor | None]:
        """dX, dW, db so far, without the operands they were made from."""
        return [self.dx_Nd, self.dweight_Vd, self.dbias_V]


def scale_sums(
    sums: Sequence[Tensor | None], factor: Tensor | None, dtypes: Sequence[torch.dtype | None]
) -> list[Tensor | None]:
    """Each sum times `factor` (a scalar on the device, never looked at; None for 1) in its dtype. May overwrite the sums."""
    return [
        None if total is None or dtype is None else _scale(total, factor, dtype)
        for total, dtype in zip(sums, dtypes, strict=True)
    ]


def _scale(total: Tensor, factor: Tensor | None, dtype: torch.dtype) -> Tensor:
    if factor is None:
        return total.to(dtype)
    if torch.promote_types(total.dtype, dtype) == dtype:  # widen first, so that only the final product is rounded
        return total.to(dtype).mul_(factor)
    # One pass that reads float32 and writes the narrower dtype: no scaled float32 copy between.
    return torch.mul(total, factor, out=torch.empty_like(total, dtype=dtype))
