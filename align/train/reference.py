"""Log-probabilities under a fixed model: computed once, in eval mode, by the code that trains, and joined by id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from align.core.errors import StepError
from align.core.journal import Journal
from align.core.progress import Progress
from align.packing.separate import separate_batch
from align.train.data import DialogueExample, PairExample
from align.train.logprobs import autocast, completion_logprobs, resolve_precision
from align.train.models import load_model, training_device

PAD_ID = 0  # masked everywhere, so any id in the vocabulary serves

PairSums = dict[str, tuple[float, float]]
Sums = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], list[float]]


def open_scorer(folder: Path, precision: str) -> Sums:
    """A function (prompts, completions) -> summed log-probabilities in nats under a folder's model, dropout off."""
    device = training_device()
    words = resolve_precision(precision, device)
    model: Any = load_model(folder).to(device).eval()

    @torch.no_grad()
    def sums(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[float]:
        batch = {name: tensor.to(device) for name, tensor in separate_batch(prompts, completions, PAD_ID).items()}
        with autocast(device, words):
            sum_logps_B, _ = completion_logprobs(model, batch)
        return [float(value) for value in sum_logps_B.tolist()]

    return sums


def by_length(examples: Sequence[DialogueExample] | Sequence[PairExample], micro_batch: int) -> Iterator[Sequence[Any]]:
    """Micro-batches of examples of like length, the longest first, so that a lack of memory shows at once."""
    ordered = sorted(examples, key=lambda e: (-len(e.prompt_ids) - max(map(len, e.completions)), e.id))
    for start in range(0, len(ordered), micro_batch):
        yield ordered[start : start + micro_batch]


def check_unique(ids: Sequence[str]) -> None:
    """Raises:
    StepError: an id appears twice, so results could not be joined by id.
    """
    if twice := [i for i, n in Counter(ids).items() if n > 1]:
        raise StepError(f"id {twice[0]} appears {ids.count(twice[0])} times among the examples")


def reference_logprobs(
    model_folder: Path,
    examples: Sequence[PairExample],
    *,
    micro_batch: int,
    precision: str,
    journal: Journal | None,
    key: str,
    label: str,
) -> PairSums:
    """Summed log-probabilities of both completions of each pair under the reference model.

    Args:
        model_folder: the reference.
        examples: the pairs.
        micro_batch: pairs per forward pass.
        precision: auto, bf16 or fp32; the policy must be trained in the same one.
        journal: finished pairs are put here and not computed again; None keeps nothing.
        key: fingerprint of the reference model, part of each journal key.
        label: of the progress bar.

    Returns:
        pair id -> (chosen, rejected), nats. The model is not loaded when every pair is in the journal.

    Raises:
        StepError: an id appears twice.
    """
    check_unique([pair.id for pair in examples])
    words = resolve_precision(precision, training_device())

    def name(pair: PairExample) -> str:
        return f"{key}:{words}:{pair.id}"

    found: PairSums = {}
    if journal is not None:
        found = {p.id: (v[0], v[1]) for p in examples if name(p) in journal and (v := journal.get(name(p)))}
    pending = [pair for pair in examples if pair.id not in found]
    if not pending:
        return found
    sums = open_scorer(model_folder, words)
    with Progress(label, len(examples), "pairs", done=len(found)) as bar:
        for group in by_length(pending, micro_batch):
            prompts = [pair.prompt_ids for pair in group]
            values = sums([*prompts, *prompts], [*(p.chosen_ids for p in group), *(p.rejected_ids for p in group)])
            for row, pair in enumerate(group):
                found[pair.id] = (values[row], values[row + len(group)])
                if journal is not None:
                    journal.put(name(pair), found[pair.id])
            bar.advance(len(group))
    return found


def check_joined(reference: Mapping[str, tuple[float, float]], ids: Collection[str]) -> None:
    """Whether reference values and pairs are the same set of ids.

    Raises:
        StepError: a pair without a value, or a value without a pair.
    """
    if missing := sorted(set(ids) - set(reference)):
        raise StepError(f"{len(missing)} pairs have no reference log-probabilities, {missing[0]} for one")
    if extra := sorted(set(reference) - set(ids)):
        raise StepError(f"{len(extra)} reference log-probabilities belong to no pair, {extra[0]} for one")
