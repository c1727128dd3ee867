"""Attention for the shared layout: a branch sees its prefix and itself, examples do not see each other.

On CUDA a FlexAttention block mask is handed to the model (arXiv 2412.05496). Elsewhere `tree_attention` takes the place of
the model's attention: it calls scaled-dot-product attention piece by piece, so work is that of the tokens that see each
other; one dense [T, T] mask over a packed row costs 5 to 8 times as much (docs/performance.md).

Shapes: H = query heads, G = key/value heads, T = tokens of the row, D = head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from align.packing.layout import PackedBatch, SharedRow, Tree

TREE_ATTENTION = "align_trees"
FLEX_ATTENTION = "flex_attention"
FLEX_BLOCK = 128  # FlexAttention's own block size
MASK_ROWS = 1024  # queries under one dense mask: at 32,768 tokens of context it is 128 MiB, a whole branch's could be 2 GiB
# Layer kinds that attend to everything before them; any other kind (state space, convolution, linear) carries state
# from token to token and would mix branches.
_ATTENTION_KINDS = {"full_attention", "sliding_attention"}


def attention_for(device: torch.device) -> str:
    """Name of the attention implementation that the shared layout uses on a device."""
    return FLEX_ATTENTION if device.type == "cuda" else TREE_ATTENTION


def branch_mask(prefix: int, branch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive mask (branch, prefix + branch): the whole prefix, and the branch up to itself."""
    hidden = torch.ones(branch, prefix + branch, dtype=torch.bool, device=device).triu(prefix + 1)
    return torch.zeros(branch, prefix + branch, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    trees: Sequence[Tree] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over a shared row (1, H, T, D), in the interface of transformers.

    On the CPU it computes in float32 whatever the autocast dtype: PyTorch's bfloat16 kernel is both slower there (about
    half the speed on AVX-512) and less exact.

    Returns:
        (1, T, H, D) in the dtype of `query`.

    Raises:
        ValueError: called without `trees`: the model runs outside of the shared layout with this attention still set; or
            the model wants scores capped, biased or with sinks, which this attention does not do.
    """
    if extras := sorted(name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None):
        raise ValueError(f"{TREE_ATTENTION} does not know {', '.join(extras)}")
    if trees is None:
        raise ValueError(f"{TREE_ATTENTION} needs the trees of a shared batch; set another attention for plain rows")
    rounded = value.dtype  # of the projections; rotary embedding may have widened query and key
    if query.device.type != "cpu":
        return _tree_attention(query.to(rounded), key.to(rounded), value, dropout, scaling, trees), None
    exact = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):  # it would round the inputs again
        output = _tree_attention(query.to(exact), key.to(exact), value.to(exact), dropout, scaling, trees)
    return output.to(rounded), None


def _tree_attention(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, trees: Sequence[Tree]
) -> Tensor:
    options: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    # Cut once: the gradient of a cut is one concatenation, that of a slice a zero tensor as long as the whole row.
    end = trees[-1].stop
    filling = [query.shape[2] - end] if query.shape[2] > end else []
    cuts = [length for tree in trees for length in (tree.prefix, *tree.branches)] + filling
    queries, keys, values = (iter(x.split(cuts, dim=2)) for x in (query, key, value))
    pieces = []
    for tree in trees:
        q0, k0, v0 = next(queries), next(keys), next(values)
        if not tree.branches:
            pieces.append(scaled_dot_product_attention(q0, k0, v0, is_causal=True, **options))
        for number, length in enumerate(tree.branches):
            q = next(queries)
            k, v = torch.cat([k0, next(keys)], dim=2), torch.cat([v0, next(values)], dim=2)
            if number == 0:  # the first branch follows its prefix, so both are one causal sequence
                pieces.append(scaled_dot_product_attention(torch.cat([q0, q], dim=2), k, v, is_causal=True, **options))
                continue
            for first in range(0, length, MASK_ROWS):
                last = min(first + MASK_ROWS, length)
                mask = branch_mask(tree.prefix + first, last - first, query.dtype, query.device)
                seen = tree.prefix + last
                pieces.append(
                    scaled_dot_product_attention(
                        q[:, :, first:last], k[:, :, :seen], v[:, :, :seen], attn_mask=mask, **options
                    )
                )
    if filling:  # seen by nobody, its own output is never read
        pieces.append(torch.zeros_like(next(queries)))
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous()


AttentionInterface.register(TREE_ATTENTION, tree_attention)


def sees(batch: PackedBatch) -> Tensor:
    """Who sees whom in a shared row, as one dense (T, T) bool matrix; for tests, pictures and other attention code."""
    tree_T, branch_T = _labels(batch)
    index = torch.arange(len(tree_T), device=tree_T.device)
    same = tree_T[:, None] == tree_T[None, :]
    return same & (index[:, None] >= index[None, :]) & ((branch_T == 0)[None, :] | (branch_T[:, None] == branch_T[None, :]))


def _labels(batch: PackedBatch | SharedRow) -> tuple[Tensor, Tensor]:
    """Example and branch (0 is the prefix) of each token of a shared row; the filling is an example of its own."""
    assert batch.trees is not None
    lengths = [length for tree in batch.trees for length in (tree.prefix, *tree.branches)]
    examples = [e for e, tree in enumerate(batch.trees) for _ in range(1 + len(tree.branches))]
    branches = [k for tree in batch.trees for k in range(1 + len(tree.branches))]
    filling = batch.input_ids.shape[1] - batch.trees[-1].stop
    counts = torch.tensor([*lengths, filling])
    tree_T = torch.tensor([*examples, len(batch.trees)]).repeat_interleave(counts)
    branch_T = torch.tensor([*branches, 0]).repeat_interleave(counts)
    device = batch.input_ids.device
    return tree_T.to(device), branch_T.to(device)


def block_mask(batch: PackedBatch | SharedRow) -> Any:
    """The FlexAttention block mask of a shared row whose length is a multiple of FLEX_BLOCK.

    Built block row by block row: `create_block_mask` would first make the dense (T, T) matrix, gigabytes at 32k tokens.
    """
    from torch.nn.attention.flex_attention import BlockMask

    tree_T, branch_T = _labels(batch)

    def visible(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        same = (tree_T[q] == tree_T[kv]) & (q >= kv)
        return same & ((branch_T[kv] == 0) | (branch_T[q] == branch_T[kv]))

    index = torch.arange(len(tree_T), device=tree_T.device)
    some, every = [], []
    for rows in index.split(FLEX_BLOCK):
        blocks = visible(index, index, rows[:, None], index[None, :]).view(len(rows), -1, FLEX_BLOCK)
        some.append(blocks.any(dim=2).any(dim=0))
        every.append(blocks.all(dim=2).all(dim=0))
    full = torch.stack(every)
    partial = torch.stack(some) & ~full

    def ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 1, rows) numbers of blocks and (1, 1, rows, columns) their columns, those that count first."""
        columns = blocks.int().argsort(dim=-1, descending=True, stable=True)
        return blocks.sum(dim=-1).int()[None, None], columns.int()[None, None]

    return BlockMask.from_kv_blocks(*ordered(partial), *ordered(full), BLOCK_SIZE=FLEX_BLOCK, mask_mod=visible)


def why_not_shared(model: Any, longest: int, attention: str) -> str | None:
    """Why a model cannot read shared rows, as far as its class and config tell; None where nothing speaks against it.

    Args:
        model: a causal LM of transformers.
        longest: tokens of the longest sequence; sliding windows at least as long change nothing.
        attention: the implementation that it would use.
    """
    config = model.config
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be exchanged"
    if strange := sorted({*(getattr(config, "layer_types", None) or ())} - _ATTENTION_KINDS):
        return f"it has layers that carry state from token to token ({', '.join(strange)})"
    if any(name.endswith(("sinks", "sink")) for name, _ in model.named_parameters()):
        return "it has attention sinks"
    if attention == FLEX_ATTENTION and getattr(config, "attention_dropout", None):
        return "FlexAttention has no dropout, and its attention_dropout is not 0"
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and window < longest:
        return f"its sliding window of {window} tokens is shorter than the longest example ({longest} tokens)"
    return None
