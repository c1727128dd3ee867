"""The one trainer: a `transformers.Trainer` for SFT and every preference loss.

What it changes: a batch of the data loader is a whole optimizer step, parted into micro-batches by tokens; the step's loss
is divided once, by the tokens (nll) or pair weights of the whole step over all processes; examples come in an order made
from the seed and the epoch; metrics stay on the device until they are logged; a loss that is not finite stops the run and
leaves its batch behind.

Shapes: E = examples of a micro-batch, K = completions of each (2 for pairs, chosen first; 1 for dialogues).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from align.core.artifact import write_json
from align.core.errors import StepError, UserError
from align.core.hashing import derive_seed
from align.packing.bins import Bin, plan_bins
from align.train.batches import MicroBatch, micro_batch
from align.train.data import DialogueExample, PairExample
from align.train.losses import PairLogprobs, find_loss
from align.train.precision import autocast, resolve_precision
from align.train.reference import check_joined, check_unique, longest_of
from align.train.scoring import Scoring, prepare

OnStep = Callable[[int, int, dict[str, float]], None]
Examples = Sequence[PairExample | DialogueExample]
_SUMMED = ("tokens", "chosen_tokens", "rejected_tokens", "computed_tokens")


class Steps(Dataset[list[int]]):
    """The examples of each optimizer step of the current epoch, as indices.

    An epoch is a permutation drawn from (seed, epoch) alone, so that a resumed epoch has the order it had.

    Args:
        count: examples.
        step_size: examples of an optimizer step, over all processes; the last one of an epoch may have fewer.
        seed: of the run.
        epoch: says which epoch the next step belongs to.
    """

    def __init__(self, count: int, step_size: int, seed: int, epoch: Callable[[], int]) -> None:
        self._count, self._step_size, self._seed, self._epoch = count, step_size, seed, epoch

    def __len__(self) -> int:
        return math.ceil(self._count / self._step_size)

    def __getitem__(self, step: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", self._epoch()))
        order: list[int] = torch.randperm(self._count, generator=generator).tolist()
        return order[step * self._step_size : (step + 1) * self._step_size]


class AlignTrainer(Trainer):
    """Trains a causal LM with one of `LOSSES`.

    Args:
        model: a causal LM, or a PEFT model around one.
        args: `accelerator`-side mixed precision must be off; `precision` decides.
        examples: dialogues for nll, pairs for the others.
        loss: a name in `LOSSES`.
        loss_options: its options.
        batch_size: examples of an optimizer step, over all processes.
        micro_batch_tokens: most tokens that go through the model at once; an example above it goes alone.
        layout: auto, shared or separate (see `align.packing.layout`).
        head: auto, triton, chunked, reference or plain (see `align.train.scoring`).
        reference: pair id -> (chosen, rejected) reference log-probabilities, for losses that need them.
        precision: auto, bf16 (autocast over float32 weights) or fp32.
        on_step: called after each logged step with (step, total steps, logged values).

    Raises:
        ValueError: unknown loss, unused option, a reference too many or too few, flip rates that are not used or not given
            for every pair.
        StepError: an id appears twice, or reference and examples are not the same ids.
        UserError: a layout or head that the model cannot have, or sharding that the device cannot do.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        examples: Examples,
        loss: str,
        loss_options: Mapping[str, Any],
        batch_size: int,
        micro_batch_tokens: int,
        layout: str = "auto",
        head: str = "auto",
        reference: Mapping[str, tuple[float, float]] | None = None,
        precision: str = "auto",
        on_step: OnStep | None = None,
        callbacks: list[Any] | None = None,
    ) -> None:
        self.loss = find_loss(loss)
        self._loss_function = self.loss.bind(loss_options)
        if self.loss.needs_reference != (reference is not None):
            raise ValueError(f"loss {loss} {'needs' if self.loss.needs_reference else 'does not use'} a reference")
        rated = sum(getattr(example, "flip_rate", None) is not None for example in examples)
        if rated and not self.loss.takes_flip_rates:
            raise ValueError(f"loss {loss} does not use flip rates")
        if rated not in (0, len(examples)):
            raise ValueError(f"{rated} of {len(examples)} pairs have a flip rate; give all of them one, or none")
        ids = [example.id for example in examples]
        check_unique(ids)
        if reference is not None:
            check_joined(reference, ids)
        if args.n_gpu > 1:
            args._n_gpu = 1  # DataParallel would cut the batch, whose tensors have no batch dimension
        self._reference, self._on_step = reference, on_step
        self._batch_size, self._budget = batch_size, micro_batch_tokens
        self._window: list[dict[str, Any]] = []  # micro-batches since the last log
        self.precision = resolve_precision(precision, args.device)
        super().__init__(model=model, args=args, train_dataset=examples, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        if self.is_deepspeed_enabled:
            raise ValueError("DeepSpeed is not supported; use FSDP2 to shard the model")
        if args.fsdp and not self.is_fsdp_enabled:
            raise UserError("parallel: fsdp2 needs GPUs; on a CPU every process would silently hold the whole model")
        self.setup = prepare(
            self.model,
            layout=layout,
            head=head,
            longest=longest_of(examples),
            precision=self.precision,
            device=args.device,
        )
        # compute_loss divides by the whole step's count, so the Trainer must not divide again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    # Data

    def get_train_dataloader(self) -> DataLoader:
        """One batch per optimizer step. Every process has the same one and takes its part in `training_step`."""
        steps = Steps(
            len(self.train_dataset), self._batch_size, self.args.seed, lambda: self.state.global_step // len(steps)
        )
        return DataLoader(
            steps, batch_size=1, sampler=SequentialSampler(steps), collate_fn=lambda rows: {"members": rows[0]}
        )

    def _count(self, examples: Examples) -> float:
        """What the summed losses of examples are divided by: completion tokens (nll) or pair weights."""
        if self.loss.paired:
            return math.fsum(getattr(example, "weight", 1.0) for example in examples)
        return sum(len(ids) for example in examples for ids in example.completions)

    def _plan(self, examples: Examples) -> list[Bin]:
        """This process's micro-batches of a step."""
        sizes = [self.setup.size((e.prompt_ids, e.completions)) for e in examples]
        padded = self.setup.layout == "separate"
        return plan_bins(sizes, self._budget, processes=self.args.world_size, padded=padded)[self.args.process_index]

    def _build(self, examples: Examples, members: Bin) -> MicroBatch:
        chosen = [examples[i] for i in members.members]
        return micro_batch(chosen, self.setup, self._reference, real=members.real).to(self.args.device)

    # Loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of all micro-batches of an optimizer step; gradients are exchanged with the last one."""
        model.train()
        examples = [self.train_dataset[i] for i in inputs["members"]]
        plan, count = self._plan(examples), self._count(examples)
        total = torch.zeros((), device=self.args.device)
        for k, members in enumerate(plan):
            waiting = self.accelerator.no_sync(model) if k + 1 < len(plan) else contextlib.nullcontext()
            with waiting:
                loss = self._loss(model, self._build(examples, members), count)
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _loss(self, model: Any, batch: MicroBatch, count: float) -> Tensor:
        """This micro-batch's part of the step's loss: the weighted sum of its losses over the count of the whole step."""
        parts: list[dict[str, Tensor]] = []

        def loss_of(logps: Tensor, first: int, last: int) -> Tensor:
            losses, metrics = self._measure(batch, logps, first, last)
            if batch.real:
                parts.append(metrics)
            weights = batch.weights[first:last].to(losses.dtype)
            # Data-parallel wrappers average gradients over processes; the count is already of all of them.
            return (losses * weights).sum() / count * self.args.world_size

        with autocast(self.args.device, self.precision):
            loss, _ = model(scoring=Scoring(batch=batch.packed, loss_of=loss_of))
        metrics = {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}
        step = self.state.global_step + 1
        self._window.append({"loss": loss.detach(), "metrics": metrics, "batch": batch, "step": step})
        return loss

    def _measure(self, batch: MicroBatch, logps: Tensor, first: int, last: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses (E,) of examples [first, last) with gradient, and metrics (E,) each without."""
        logps_EK, tokens_EK = batch.packed.sums(logps, first, last), batch.packed.tokens_EK[first:last]
        if not self.loss.paired:
            losses, _ = self._loss_function(logps_EK[:, 0], tokens_EK[:, 0])
            return losses, {"tokens": tokens_EK[:, 0]}
        references = None if batch.reference_EK is None else batch.reference_EK[first:last]
        pairs = PairLogprobs(
            chosen=logps_EK[:, 0],
            rejected=logps_EK[:, 1],
            chosen_tokens=tokens_EK[:, 0],
            rejected_tokens=tokens_EK[:, 1],
            reference_chosen=None if references is None else references[:, 0],
            reference_rejected=None if references is None else references[:, 1],
            flip_rates=None if batch.flip_rates is None else batch.flip_rates[first:last],
        )
        losses, quantities = self._loss_function(pairs)
        metrics = {name: value.detach() for name, value in quantities.items()}
        metrics |= {
            "accuracy": (metrics["margin"] > 0).float(),
            "chosen_logps": pairs.chosen.detach(),
            "rejected_logps": pairs.rejected.detach(),
            "chosen_tokens": pairs.chosen_tokens,
            "rejected_tokens": pairs.rejected_tokens,
            "tokens": tokens_EK.sum(dim=1),
        }
        if references is not None:
            drift_EK = logps_EK.detach() - references
            metrics |= {"chosen_drift": drift_EK[:, 0], "rejected_drift": drift_EK[:, 1]}
            # Unbiased for KL(reference || policy) only on completions drawn from the reference.
            metrics["kl"] = -drift_EK.mean(dim=1)
        return losses, metrics

    # Metrics

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log before every checkpoint and after the last step: what is not finite must be seen before it is saved."""
        if self.control.should_save or self.state.global_step >= self.state.max_steps:
            self.control.should_log = bool(self._window)
        super()._maybe_log_save_evaluate(*args, **kwargs)

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
        self._check_finite(window, grad_norm)
        real = [entry for entry in window if entry["metrics"]]
        names = self._metric_names()
        zero = torch.zeros((), device=self.args.device, dtype=torch.float64)
        sums = [sum((e["metrics"][name].double().sum() for e in real), zero) for name in names]
        counts = [sum(len(e["batch"].ids) for e in real), sum(e["batch"].packed.num_tokens for e in window)]
        totals = torch.stack([*sums, *zero.new_tensor(counts)])
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals, "sum")
        *values, num_examples, computed = totals.tolist()
        means = {n: v if n in _SUMMED else v / num_examples for n, v in zip(names, values, strict=True)}
        return means | {"examples": num_examples, "computed_tokens": computed}

    def _metric_names(self) -> list[str]:
        if not self.loss.paired:
            return ["tokens"]
        names = ["margin", "chosen_reward", "rejected_reward", "accuracy", "chosen_logps", "rejected_logps"]
        names += ["chosen_tokens", "rejected_tokens", "tokens"]
        return names + (["chosen_drift", "rejected_drift", "kl"] if self.loss.needs_reference else [])

    def check_finite(self) -> None:
        """Look at the losses since the last log now, before anything is made of the model.

        Raises:
            StepError: one is not finite.
        """
        if self._window:
            self._check_finite(self._window, 0.0)

    def _check_finite(self, window: list[dict[str, Any]], grad_norm: float) -> None:
        losses = torch.stack([entry["loss"] for entry in window])
        bad = [index for index, loss in enumerate(losses.tolist()) if not math.isfinite(loss)]
        anywhere = float(self.accelerator.reduce(torch.tensor(float(len(bad)), device=self.args.device), "sum"))
        if anywhere and not bad:
            raise RuntimeError("the loss of another process is not finite")  # that process says which examples
        if bad or not math.isfinite(grad_norm):
            self._refuse([window[index] for index in bad or range(len(window))], grad_norm, bool(bad))

    def _refuse(self, entries: list[dict[str, Any]], grad_norm: float, bad_loss: bool) -> None:
        """Write ids and token ids of the examples of micro-batches beside the checkpoints and stop."""
        rank = f"_process_{self.args.process_index}" if self.args.world_size > 1 else ""
        step = entries[0]["step"] if bad_loss else self.state.global_step
        path = Path(self.args.output_dir) / f"not_finite_step_{step:06d}{rank}.json"
        batches = [{"loss": str(float(entry["loss"])), **entry["batch"].record()} for entry in entries]
        write_json(path, {"step": step, "grad_norm": str(grad_norm), "batches": batches})
        what = "loss" if bad_loss else "gradient"
        raise StepError(f"step {step}: the {what} is not finite; its examples are in {path}")

    @torch.no_grad()
    def examine(self, examples: Examples) -> dict[str, float]:
        """Loss and margins on examples as training would compute them, but with dropout off and no update.

        Returns:
            loss (mean as in a step of these examples); for pairs also margin, accuracy, chosen_logps, rejected_logps
            (means) and largest_margin (absolute).
        """
        model = self.model_wrapped
        was_training, window, self._window = model.training, self._window, []
        model.eval()
        for members in self._plan(examples):
            self._loss(model, self._build(examples, members), self._count(examples))
        model.train(was_training)
        entries, self._window = self._window, window
        loss = torch.stack([entry["loss"].double() for entry in entries]).sum() / self.args.world_size
        found = {"loss": float(self.accelerator.reduce(loss, "sum"))}
        if not self.loss.paired:
            return found
        names = ("margin", "accuracy", "chosen_logps", "rejected_logps")
        zero = torch.zeros(0, device=self.args.device, dtype=torch.float64)
        found_of = [entry["metrics"] for entry in entries if entry["metrics"]]
        values = {name: torch.cat([zero, *(metrics[name].double() for metrics in found_of)]) for name in names}
        means = self.accelerator.reduce(torch.stack([values[name].sum() for name in names]), "sum") / len(examples)
        worst = self.accelerator.gather(torch.cat([values["margin"].abs(), zero.new_zeros(1)]).max().reshape(1)).max()
        return found | dict(zip(names, means.tolist(), strict=True)) | {"largest_margin": float(worst)}

    @property
    def history(self) -> list[dict[str, float]]:
        """One entry per logged step, earlier runs of a resumed training included."""
        return [dict(entry) for entry in self.state.log_history if "loss" in entry]
