"""The one trainer: a `transformers.Trainer` for SFT and every preference loss.

What it changes: batches are `separate_batch` of completions; the loss of an optimizer step is divided once, by the tokens
(nll) or pairs of the whole step; examples come in an order made from the seed and the epoch; metrics stay on the device
until they are logged; a loss that is not finite stops the run and leaves its batch behind.

Shapes: B = sequences of a micro-batch, which are P pairs (B = 2 P, chosen first) or P dialogues (B = P).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from align.core.artifact import write_json
from align.core.errors import StepError
from align.core.hashing import derive_seed
from align.packing.separate import separate_batch
from align.train.data import DialogueExample, PairExample
from align.train.logprobs import autocast, completion_logprobs, resolve_precision
from align.train.losses import PairLogprobs, find_loss
from align.train.reference import PAD_ID, check_joined, check_unique

OnStep = Callable[[int, int, dict[str, float]], None]


class EpochOrder(Sampler[int]):
    """A permutation of the examples drawn from (seed, epoch) alone, so that a resumed epoch has the order it had.

    Within an optimizer step the examples are sorted by length: its micro-batches then pad little, and since the step's loss
    is a sum over all of them, the update is the same.

    Args:
        lengths: tokens of each example.
        step_size: examples of an optimizer step.
        seed: of the run.
        epoch: says which epoch begins.
    """

    def __init__(self, lengths: Sequence[int], step_size: int, seed: int, epoch: Callable[[], int]) -> None:
        self._lengths, self._step_size, self._seed, self._epoch = lengths, step_size, seed, epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", self._epoch()))
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        for start in range(0, len(order), self._step_size):
            yield from sorted(order[start : start + self._step_size], key=lambda i: (self._lengths[i], i))

    def __len__(self) -> int:
        return len(self._lengths)


def collate(
    examples: Sequence[PairExample] | Sequence[DialogueExample], reference: Mapping[str, tuple[float, float]] | None
) -> dict[str, Any]:
    """A micro-batch: first completions (chosen) in the first P rows, second ones (rejected) in the next P.

    Returns:
        `separate_batch`'s tensors, `ids` (P strings) and, with `reference`, `reference_chosen` and `reference_rejected`
        (P,) float32, looked up by id.
    """
    parts = list(zip(*(example.completions for example in examples), strict=True))
    prompts = [example.prompt_ids for example in examples] * len(parts)
    batch: dict[str, Any] = dict(separate_batch(prompts, [ids for part in parts for ids in part], PAD_ID))
    batch["ids"] = [example.id for example in examples]
    if reference is not None:
        values = torch.tensor([reference[i] for i in batch["ids"]], dtype=torch.float32)
        batch["reference_chosen"], batch["reference_rejected"] = values[:, 0], values[:, 1]
    return batch


class AlignTrainer(Trainer):
    """Trains a causal LM with one of `LOSSES`.

    Args:
        model: float32 weights.
        args: `accelerator`-side mixed precision must be off; `precision` decides.
        examples: dialogues for nll, pairs for the others.
        loss: a name in `LOSSES`.
        loss_options: its options.
        reference: pair id -> (chosen, rejected) reference log-probabilities, for losses that need them.
        precision: auto, bf16 (autocast over float32 weights) or fp32.
        on_step: called after each logged step with (step, total steps, logged values).

    Raises:
        ValueError: unknown loss, unused option, a reference too many or too few.
        StepError: an id appears twice, or reference and examples are not the same ids.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        examples: Sequence[PairExample] | Sequence[DialogueExample],
        loss: str,
        loss_options: Mapping[str, Any],
        reference: Mapping[str, tuple[float, float]] | None = None,
        precision: str = "auto",
        on_step: OnStep | None = None,
        callbacks: list[Any] | None = None,
    ) -> None:
        self.loss = find_loss(loss)
        self._loss_function = self.loss.bind(loss_options)
        if self.loss.needs_reference != (reference is not None):
            raise ValueError(f"loss {loss} {'needs' if self.loss.needs_reference else 'does not use'} a reference")
        ids = [example.id for example in examples]
        check_unique(ids)
        if reference is not None:
            check_joined(reference, ids)
        if args.n_gpu > 1:
            args._n_gpu = 1  # DataParallel would cut the column indices of logits_to_keep as if they were rows
        self._reference, self._on_step = reference, on_step
        self._window: list[dict[str, Any]] = []  # micro-batches since the last log
        self.precision = resolve_precision(precision, args.device)
        super().__init__(
            model=model,
            args=args,
            train_dataset=examples,
            data_collator=lambda rows: collate(rows, reference),
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        # compute_loss divides by the whole step's count, so the Trainer must not divide by accumulation steps again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        steps = math.ceil(len(self.train_dataset) / self.args.train_batch_size / self.args.world_size)
        updates = math.ceil(steps / self.args.gradient_accumulation_steps)
        lengths = [len(e.prompt_ids) + max(map(len, e.completions)) for e in self.train_dataset]
        at_once = self.args.train_batch_size * self.args.world_size
        return EpochOrder(
            lengths,
            at_once * self.args.gradient_accumulation_steps,
            self.args.seed,
            lambda: self.state.global_step // updates,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The micro-batches of one optimizer step, and the count its loss is divided by: tokens (nll) or pairs."""
        batches = []
        for _ in range(num_batches):
            with contextlib.suppress(StopIteration):
                batches.append(next(epoch_iterator))
        count = torch.tensor(sum(self._count(batch) for batch in batches), device=device)
        if self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return batches, count

    def _count(self, batch: Mapping[str, Any]) -> int:
        return len(batch["ids"]) if self.loss.paired else int(batch["completion_mask"].sum())

    def compute_loss_context_manager(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.args.device, self.precision)

    def _measure(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses (P,) with gradient, and metrics (P,) each without."""
        logps_B, tokens_B = completion_logprobs(model, inputs)
        if not self.loss.paired:
            losses, _ = self._loss_function(logps_B, tokens_B)
            return losses, {"tokens": tokens_B}
        (chosen, rejected), (chosen_tokens, rejected_tokens) = logps_B.chunk(2), tokens_B.chunk(2)
        pairs = PairLogprobs(
            chosen=chosen,
            rejected=rejected,
            chosen_tokens=chosen_tokens,
            rejected_tokens=rejected_tokens,
            reference_chosen=inputs.get("reference_chosen"),
            reference_rejected=inputs.get("reference_rejected"),
        )
        losses, quantities = self._loss_function(pairs)
        metrics = {name: value.detach() for name, value in quantities.items()}
        metrics |= {
            "accuracy": (metrics["margin"] > 0).float(),
            "chosen_logps": chosen.detach(),
            "rejected_logps": rejected.detach(),
            "chosen_tokens": chosen_tokens,
            "rejected_tokens": rejected_tokens,
            "tokens": chosen_tokens + rejected_tokens,
        }
        return losses, metrics

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's part of the step's loss: the sum of its losses over the count of the whole step."""
        losses, metrics = self._measure(model, inputs)
        count = self._count(inputs) if num_items_in_batch is None else num_items_in_batch
        # Data-parallel wrappers average gradients over processes; the count is already of all of them.
        loss = losses.sum() / count * self.args.world_size
        kept = ("ids", "input_ids", "attention_mask", "completion_mask")
        self._window.append({"loss": loss.detach(), "metrics": metrics, **{name: inputs[name] for name in kept}})
        return (loss, metrics) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics since the last log (the only place where the device is waited for) and report progress."""
        is_step = "loss" in logs
        if is_step:
            logs.update(self._drain(float(logs.get("grad_norm") or 0.0)))
        super().log(logs, start_time)
        if is_step and self._on_step is not None:
            self._on_step(self.state.global_step, self.state.max_steps, dict(logs))

    def _drain(self, grad_norm: float) -> dict[str, float]:
        """Means over the examples of the window, and token counts, summed.

        Raises:
            StepError: a loss or the gradient is not finite.
        """
        window, self._window = self._window, []
        losses = torch.stack([entry["loss"] for entry in window])
        if not math.isfinite(grad_norm) or not bool(torch.isfinite(losses).all()):
            self._refuse(window, losses.tolist(), grad_norm)
        names = list(window[0]["metrics"])
        sums = torch.stack([torch.cat([entry["metrics"][name] for entry in window]).float().sum() for name in names])
        totals = torch.cat([sums, sums.new_tensor([sum(len(entry["ids"]) for entry in window)])])
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals, "sum")
        *values, num_examples = totals.tolist()
        summed = ("tokens", "chosen_tokens", "rejected_tokens")
        return {
            name: value if name in summed else value / num_examples
            for name, value in zip(names, values, strict=True)
        } | {"examples": num_examples}  # fmt: skip

    def _refuse(self, window: list[dict[str, Any]], losses: list[float], grad_norm: float) -> None:
        """Write the window's ids and token ids beside the checkpoints and stop."""
        bad = [entry for entry, loss in zip(window, losses, strict=True) if not math.isfinite(loss)]
        path = Path(self.args.output_dir) / f"not_finite_step_{self.state.global_step:06d}.json"
        batches = [
            {
                "ids": entry["ids"],
                "loss": str(float(entry["loss"])),
                "input_ids": [
                    row[mask.bool()].tolist() for row, mask in zip(entry["input_ids"], entry["attention_mask"], strict=True)
                ],
                "completion_tokens": entry["completion_mask"].sum(dim=1).tolist(),
            }
            for entry in bad or window
        ]
        write_json(path, {"step": self.state.global_step, "grad_norm": str(grad_norm), "batches": batches})
        what = "loss" if bad else "gradient"
        raise StepError(f"step {self.state.global_step}: the {what} is not finite; its examples are in {path}")

    @torch.no_grad()
    def examine(self, examples: Sequence[Any]) -> dict[str, float]:
        """Loss and margins on examples as training would compute them, but with dropout off and no update.

        Returns:
            loss (mean as in a step of these examples); for pairs also margin (mean) and largest_margin (absolute).
        """
        model, size = self.model, self.args.per_device_train_batch_size
        was_training = model.training
        model.eval()
        losses, margins, count = 0.0, [], 0
        for start in range(0, len(examples), size):
            inputs = self._prepare_inputs(collate(examples[start : start + size], self._reference))
            with self.compute_loss_context_manager():
                values, metrics = self._measure(model, inputs)
            losses, count = losses + float(values.sum()), count + self._count(inputs)
            margins += metrics["margin"].tolist() if self.loss.paired else []
        model.train(was_training)
        found = {"loss": losses / count}
        if self.loss.paired:
            found |= {"margin": sum(margins) / len(margins), "largest_margin": max(map(abs, margins))}
        return found

    @property
    def history(self) -> list[dict[str, float]]:
        """One entry per logged step, earlier runs of a resumed training included."""
        return [dict(entry) for entry in self.state.log_history if "loss" in entry]
