"""Log-probabilities under a fixed model: computed once, in eval mode, by the code that trains, and joined by id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from align.core.errors import StepError
from align.core.hashing import fingerprint
from align.core.journal import Journal
from align.core.progress import Progress
from align.packing.bins import plan_bins
from align.packing.layout import Item
from align.train.data import DialogueExample, PairExample
from align.train.models import load_model, training_device
from align.train.precision import autocast, resolve_precision
from align.train.scoring import Scoring, prepare, restore

PairSums = dict[str, tuple[float, float]]
# Raised when the code that computes log-probabilities changes them: kept values are then not found and made anew.
SCORING_VERSION = 2


class Scorer:
    """Summed log-probabilities of completions under a model, dropout off.

    Args:
        model: a causal LM on its device, or the folder of one, which is opened.
        precision: auto, bf16 or fp32.
        micro_batch_tokens: most tokens that go through the model at once; an example above it goes alone.
        layout: auto, shared or separate.
        head: auto, triton, chunked, reference or plain.
        longest: tokens of the longest sequence to come.
    """

    def __init__(
        self, model: Any, *, precision: str, micro_batch_tokens: int, layout: str = "auto", head: str = "auto", longest: int
    ) -> None:
        self._device = training_device()
        self._model = (load_model(model) if isinstance(model, Path) else model).to(self._device).eval()
        self._precision = resolve_precision(precision, self._device)
        self._budget = micro_batch_tokens
        self._setup = prepare(self._model, layout=layout, head=head, longest=longest, precision=self._precision)

    @torch.no_grad()
    def score(self, items: Sequence[Item], process: int = 0, processes: int = 1) -> Iterator[dict[int, list[float]]]:
        """Micro-batch by micro-batch, the longest first so that a lack of memory shows at once.

        Args:
            items: (prompt, completions), K completions each.
            process: this process; it scores its share only.
            processes: number of them.

        Yields:
            index of an item -> the log-probabilities of its K completions, nats.
        """
        sizes = [self._setup.size(item) for item in items]
        bins = plan_bins(sizes, self._budget, processes=processes, padded=self._setup.layout == "separate")[process]
        for part in bins:
            batch = self._setup.build([items[i] for i in part.members]).to(self._device)
            with autocast(self._device, self._precision):
                logps_N = self._model(scoring=Scoring(batch=batch))
            sums_EK = batch.sums(logps_N, 0, len(part.members)).tolist()
            yield dict(zip(part.members, sums_EK, strict=True)) if part.real else {}

    def close(self) -> None:
        """Leave the model as it came; the way in that `prepare` made would keep it in memory."""
        restore(self._model)


def longest_of(examples: Sequence[PairExample | DialogueExample]) -> int:
    """Tokens of the longest sequence."""
    return max(len(e.prompt_ids) + max(map(len, e.completions)) for e in examples)


def check_unique(ids: Sequence[str]) -> None:
    """Raises:
    StepError: an id appears twice, so results could not be joined by id.
    """
    if twice := [i for i, n in Counter(ids).items() if n > 1]:
        raise StepError(f"id {twice[0]} appears {ids.count(twice[0])} times among the examples")


def reference_logprobs(
    model: Any,
    examples: Sequence[PairExample],
    *,
    micro_batch_tokens: int,
    precision: str,
    journal: Journal | None,
    key: str,
    label: str,
    layout: str = "auto",
    head: str = "auto",
) -> PairSums:
    """Summed log-probabilities of both completions of each pair under the reference model.

    Args:
        model: the reference: a causal LM on its device, or the folder of one.
        examples: the pairs.
        micro_batch_tokens: most tokens that go through the model at once.
        precision: auto, bf16 or fp32; the policy must be trained in the same one.
        journal: finished pairs are put here and not computed again; None keeps nothing. With several processes the first
            has it, the others have None.
        key: fingerprint of the reference's weights. A kept value is found by it, the token ids of the pair (and so by
            tokenizer, template and truncation), precision, layout and head.
        label: of the progress bar.
        layout: auto, shared or separate.
        head: auto, triton, chunked, reference or plain.

    Returns:
        pair id -> (chosen, rejected), nats. A folder is not opened when every pair is in the journal.

    Raises:
        StepError: an id appears twice.
    """
    check_unique([pair.id for pair in examples])
    words = resolve_precision(precision, training_device())
    names = {
        pair.id: fingerprint([SCORING_VERSION, key, words, layout, head, pair.id, pair.prompt_ids, pair.completions])
        for pair in examples
    }
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    process, processes = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if shared else (0, 1)
    found: PairSums = {}
    if journal is not None:
        found = {i: (v[0], v[1]) for i, name in names.items() if name in journal and (v := journal.get(name))}
    if processes > 1:  # the first process holds the journal; all must agree on what is left to do
        told = [found]
        torch.distributed.broadcast_object_list(told)
        found = dict(told[0])
    pending = [pair for pair in examples if pair.id not in found]
    if pending:
        scorer = Scorer(
            model,
            precision=words,
            micro_batch_tokens=micro_batch_tokens,
            layout=layout,
            head=head,
            longest=longest_of(pending),
        )
        items = [(pair.prompt_ids, pair.completions) for pair in pending]
        with Progress(label, len(examples), "pairs", done=len(found)) as bar:
            for part in scorer.score(items, process, processes):
                for i, (chosen, rejected) in part.items():
                    found[pending[i].id] = (chosen, rejected)
                    if journal is not None:
                        journal.put(names[pending[i].id], (chosen, rejected))
                bar.advance(len(part))
        scorer.close()
    if processes > 1:
        parts: list[PairSums] = [{}] * processes
        torch.distributed.all_gather_object(parts, found)
        found = {i: value for part in parts for i, value in part.items()}
        for pair_id, value in found.items():
            if journal is not None and names[pair_id] not in journal:
                journal.put(names[pair_id], value)
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
