"""Batches of examples that have one prompt and K completions each, in two layouts with the same scoring tensors.

`shared`: all examples in one row without padding. An example is `prefix | branch 1 | ... | branch K`; the prefix is the
token-level common prefix of its K sequences, positions restart after it in every branch, and a branch sees the prefix and
itself. The last prefix token predicts the first token of every branch (arXiv 2410.20305, 2506.05433; there the token is
duplicated, here its hidden state is read K times).

`separate`: a right-padded row per sequence; the plain layout, the oracle of the other.

`SharedRow` is the shared layout of groups that are only read, of any number of sequences each.

What follows the decoder never looks at the layout: `predict_N` says at which position the hidden state of a scored token
lies, `target_N` which token that is, `slot_N` to which sequence its log-probability belongs.

Shapes: E = examples, K = completions of each, S = E K sequences, R x T = rows and columns, N = scored tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from align.packing.separate import separate_batch

Tokens = Sequence[int]
Item = tuple[Tokens, Sequence[Tokens]]  # a prompt and its K completions


@dataclass(frozen=True)
class Tree:
    """Where an example lies in a shared row: tokens [start, start + prefix) and then the branches, one after another."""

    start: int
    prefix: int
    branches: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + self.prefix + sum(self.branches)


@dataclass(frozen=True, kw_only=True)
class SharedRow:
    """Groups of sequences in one row, for models that read one hidden state per sequence.

    Attributes:
        input_ids: (1, T) int64.
        position_ids: (1, T) int64.
        trees: one per group in order.
        last_S: (S,) int64, position of each sequence's last token, the sequences of a group one after another.
    """

    input_ids: Tensor
    position_ids: Tensor
    trees: tuple[Tree, ...]
    last_S: Tensor

    def to(self, device: torch.device) -> SharedRow:
        """The same row with its tensors on a device."""
        ids, positions, last = (x.to(device, non_blocking=True) for x in (self.input_ids, self.position_ids, self.last_S))
        return replace(self, input_ids=ids, position_ids=positions, last_S=last)


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """A micro-batch of E examples with K completions each.

    Attributes:
        input_ids: (R, T) int64.
        position_ids: (R, T) int64.
        attention_mask: (R, T) int64 of the separate layout, None of the shared one (`trees` says who sees whom).
        trees: of the shared layout, one per example in order; None of the separate one.
        predict_N: (N,) int64, position in R x T, flattened, of the hidden state that predicts a scored token.
        target_N: (N,) int64, the scored token.
        slot_N: (N,) int64, e (K + 1) + k: k = 0 is scored for all sequences of example e, k >= 1 for its k-th only.
        bounds: (E + 1) offsets; example e has rows [bounds[e], bounds[e + 1]) of N.
        tokens_EK: (E, K) int64, completion tokens of each sequence, shared ones counted in each.
        num_tokens: tokens that go through the decoder, padding included.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    trees: tuple[Tree, ...] | None
    predict_N: Tensor
    target_N: Tensor
    slot_N: Tensor
    bounds: tuple[int, ...]
    tokens_EK: Tensor

    @property
    def num_tokens(self) -> int:
        return self.input_ids.numel()

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch with its tensors on a device."""
        tensors = {name: value for name, value in vars(self).items() if torch.is_tensor(value)}
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
        return replace(self, **moved)

    def sums(self, logps: Tensor, first: int, last: int) -> Tensor:
        """Log-probabilities of the sequences of examples [first, last).

        Args:
            logps: of the scored tokens of these examples, (bounds[last] - bounds[first],), nats.

        Returns:
            (last - first, K), nats.
        """
        width = self.tokens_EK.shape[1] + 1
        slots = self.slot_N[self.bounds[first] : self.bounds[last]] - first * width
        slotted = logps.new_zeros((last - first) * width).index_add(0, slots, logps).view(last - first, width)
        return slotted[:, 1:] + slotted[:, :1]


def common_prefix(sequences: Sequence[Tokens]) -> int:
    """Length of the longest common prefix."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False)))


def shared_length(item: Item) -> int:
    """Tokens of an example in the shared layout."""
    prompt, completions = item
    sequences = [[*prompt, *completion] for completion in completions]
    prefix = common_prefix(sequences)
    return prefix + sum(len(sequence) - prefix for sequence in sequences)


def _check(items: Sequence[Item]) -> int:
    if not items:
        raise ValueError("a batch needs at least one example")
    if len({len(completions) for _, completions in items}) != 1:
        raise ValueError("all examples of a batch must have the same number of completions")
    for row, (prompt, completions) in enumerate(items):
        if not prompt or not completions or not all(completions):
            raise ValueError(f"example {row} has an empty {'completion' if prompt else 'prompt'}")
    return len(items[0][1])


def shared_rows(groups: Sequence[Sequence[Tokens]], *, multiple: int = 1, pad_id: int = 0) -> SharedRow:
    """All groups of sequences in one row, each group's common prefix once.

    Args:
        groups: any number of sequences each; no empty list of ids.
        multiple: the row is filled up with `pad_id` to a multiple of this (block masks work in blocks); nothing that is
            read sees the filling.
        pad_id: any id of the vocabulary.

    Raises:
        ValueError: no group, or one that is or holds an empty list.
    """
    if not groups or not all(group and all(map(len, group)) for group in groups):
        raise ValueError("a row needs at least one group, and sequences that are not empty")
    ids: list[int] = []
    positions: list[int] = []
    trees: list[Tree] = []
    last: list[int] = []
    for group in groups:
        prefix, start = common_prefix(group), len(ids)
        ids += group[0][:prefix]
        positions += range(prefix)
        for sequence in group:
            ids += sequence[prefix:]
            positions += range(prefix, len(sequence))
            last.append(len(ids) - 1 if len(sequence) > prefix else start + prefix - 1)
        trees.append(Tree(start, prefix, tuple(len(sequence) - prefix for sequence in group)))
    filling = -len(ids) % multiple
    return SharedRow(
        input_ids=torch.tensor([ids + [pad_id] * filling]),
        position_ids=torch.tensor([[*positions, *range(filling)]]),
        trees=tuple(trees),
        last_S=torch.tensor(last),
    )


def shared_layout(items: Sequence[Item], *, multiple: int = 1, pad_id: int = 0) -> PackedBatch:
    """All examples in one row, prompts shared.

    Args:
        items: (prompt, completions) of each example, K completions each; no empty list of ids.
        multiple: as `shared_rows`.
        pad_id: as `shared_rows`.

    Raises:
        ValueError: no example, or one with an empty prompt or completion, or different numbers of completions.
    """
    width = _check(items) + 1
    groups = [[[*prompt, *completion] for completion in completions] for prompt, completions in items]
    row = shared_rows(groups, multiple=multiple, pad_id=pad_id)
    predict: list[int] = []
    slots: list[int] = []
    targets: list[int] = []
    bounds = [0]
    for e, ((prompt, _), sequences, tree) in enumerate(zip(items, groups, row.trees, strict=True)):
        prefix, start = tree.prefix, tree.start
        # Leading completion tokens that all sequences have in common are scored once, for all of them.
        predict += range(start + len(prompt) - 1, start + prefix - 1)
        targets += sequences[0][len(prompt) : prefix]
        slots += [e * width] * (prefix - len(prompt))
        first = start + prefix
        for k, sequence in enumerate(sequences, 1):
            branch = sequence[prefix:]
            if branch:
                predict += [start + prefix - 1, *range(first, first + len(branch) - 1)]
            targets += branch
            slots += [e * width + k] * len(branch)
            first += len(branch)
        bounds.append(len(targets))
    return PackedBatch(
        input_ids=row.input_ids,
        position_ids=row.position_ids,
        attention_mask=None,
        trees=row.trees,
        predict_N=torch.tensor(predict),
        target_N=torch.tensor(targets),
        slot_N=torch.tensor(slots),
        bounds=tuple(bounds),
        tokens_EK=torch.tensor([[len(completion) for completion in completions] for _, completions in items]),
    )


def separate_layout(items: Sequence[Item], *, pad_id: int = 0) -> PackedBatch:
    """A right-padded row per sequence, the K sequences of an example one after another.

    Raises:
        ValueError: as `shared_layout`.
    """
    count = _check(items)
    flat = [(prompt, completion) for prompt, completions in items for completion in completions]
    rows = separate_batch([prompt for prompt, _ in flat], [completion for _, completion in flat], pad_id)
    columns = rows["input_ids"].shape[1]
    predict: list[int] = []
    targets: list[int] = []
    slots: list[int] = []
    bounds = [0]
    for row, (prompt, completion) in enumerate(flat):
        predict += range(row * columns + len(prompt) - 1, row * columns + len(prompt) + len(completion) - 1)
        targets += completion
        slots += [row // count * (count + 1) + row % count + 1] * len(completion)
        if row % count == count - 1:
            bounds.append(len(targets))
    return PackedBatch(
        input_ids=rows["input_ids"],
        position_ids=rows["position_ids"],
        attention_mask=rows["attention_mask"],
        trees=None,
        predict_N=torch.tensor(predict),
        target_N=torch.tensor(targets),
        slot_N=torch.tensor(slots),
        bounds=tuple(bounds),
        tokens_EK=torch.tensor([[len(completion) for completion in completions] for _, completions in items]),
    )
