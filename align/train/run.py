"""The two entry points of training: SFT on dialogues, preference optimization on pairs."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from align.core.chat import Chat
from align.core.errors import StepError, UserError
from align.core.journal import Journal
from align.core.pacing import SaveByClock
from align.core.progress import Progress
from align.train.checkpoints import Sealing, newest_whole
from align.train.data import DialogueExample, PairExample, Rejected, keep_within
from align.train.logprobs import resolve_precision
from align.train.losses import find_loss
from align.train.models import load_model, save_model, training_device, weights_digest
from align.train.reference import PairSums, reference_logprobs
from align.train.trainer import AlignTrainer

log = logging.getLogger(__name__)
STEP0_EXAMPLES = 16  # enough to see a wrong reference, few enough to cost less than one usual step


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train; the same for SFT and preferences.

    Attributes:
        epochs: passes over the examples.
        learning_rate: of AdamW, at its peak.
        batch_size: dialogues or pairs per optimizer step, over all processes.
        micro_batch: of these, how many go through the model at once; a divisor of batch_size / processes.
        warmup_ratio: share of the steps, rounded down, in which the learning rate rises from 0.
        schedule: cosine, linear or constant.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm; 0 does not clip.
        max_length: tokens; longer examples are left out.
        precision: bf16 (autocast over float32 weights), fp32, or auto.
        save_steps: steps between checkpoints; 0 is one every two minutes.
        save_dtype: of the saved weights: float32, bfloat16, or auto for the dtype of the model training started from.
        seed: of the order of examples and of dropout.
        gradient_checkpointing: less memory for about a third more time.
    """

    epochs: int = 1
    learning_rate: float
    batch_size: int
    micro_batch: int
    warmup_ratio: float = 0.1
    schedule: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 1024
    precision: str = "auto"
    save_steps: int = 0
    save_dtype: str = "auto"
    seed: int
    gradient_checkpointing: bool = False


def training_arguments(options: TrainOptions, num_examples: int, checkpoint_dir: Path) -> TrainingArguments:
    """The Trainer's own arguments.

    Raises:
        UserError: batch_size is not a multiple of micro_batch times the number of processes, or an unknown schedule.
    """
    at_once = options.micro_batch * int(os.environ.get("WORLD_SIZE", "1"))
    if options.batch_size % at_once:
        raise UserError(f"batch_size {options.batch_size} is not a multiple of {at_once} (micro_batch x processes)")
    schedules = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
    if options.schedule not in schedules:
        raise UserError(f"schedule {options.schedule!r} is not {', '.join(schedules)}")
    total = options.epochs * math.ceil(num_examples / options.batch_size)
    return TrainingArguments(
        output_dir=str(checkpoint_dir),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=options.batch_size // at_once,
        learning_rate=options.learning_rate,
        lr_scheduler_type=schedules[options.schedule],
        warmup_steps=int(options.warmup_ratio * total),
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        optim="adamw_torch_fused",
        seed=options.seed,
        gradient_checkpointing=options.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if options.gradient_checkpointing else None,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would replace the losses we want to stop at
        save_strategy="steps" if options.save_steps else "no",
        save_steps=options.save_steps or 1,
        report_to="none",
        use_cpu=training_device().type == "cpu",  # the Trainer would take a Mac's GPU, where the reference is not
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=training_device().type == "cuda",
    )


def _select(chat: Chat, examples: Sequence[Any], options: TrainOptions, label: str) -> tuple[list[Any], list[Rejected]]:
    kept, dropped = keep_within(examples, options.max_length, chat.stop_ids)
    if not kept:
        reason = f"; the first: {dropped[0].reason}" if dropped else ""
        raise UserError(f"{label}: none of {len(examples)} examples can be trained on{reason}")
    if dropped:
        log.info("%s: %d of %d examples left out, the first: %s", label, len(dropped), len(examples), dropped[0].reason)
    return kept, dropped


def step0_tolerance(precision: str, beta: float, pairs: Sequence[PairExample], reference: PairSums) -> float:
    """How far rounding alone may move a margin that should be 0: at least 1e-5, in nats times beta.

    A pair's sequences are scored in batches of other shapes than those of the reference. In fp32 that leaves the rounding of
    four sums. Under bf16 autocast each token's logits are rounded anew, so errors grow with the root of the token count:
    0.013 nats sqrt(tokens) was the largest of 12 pairs measured on SmolLM2-135M; 0.1 leaves room.
    """
    if precision == "bf16":
        noise = 0.1 * math.sqrt(max(sum(map(len, pair.completions)) for pair in pairs))
    else:
        noise = 4 * 2**-23 * max(abs(value) for pair in pairs for value in reference[pair.id])
    return max(1e-5, beta * noise)


def check_step0(step0: Mapping[str, float], tolerance: float) -> None:
    """Whether a policy that equals its reference has margin 0 and loss ln 2.

    Raises:
        StepError: it has not, so the reference log-probabilities are not of this model and data.
    """
    if step0["largest_margin"] > tolerance or abs(step0["loss"] - math.log(2)) > tolerance:
        raise StepError(
            f"training refuses to start: policy and reference have the same weights, yet before the first update the "
            f"largest margin is {step0['largest_margin']:.3g} (must be 0) and the loss {step0['loss']:.6f} (must be "
            f"ln 2 = {math.log(2):.6f}), tolerance {tolerance:g}"
        )


def _train(
    model: Path,
    output: Path,
    kept: Sequence[Any],
    dropped: Sequence[Rejected],
    options: TrainOptions,
    *,
    loss: str,
    loss_options: Mapping[str, Any],
    reference: PairSums | None,
    same_weights: bool,
    checkpoint_dir: Path,
    label: str,
) -> dict[str, Any]:
    """Train, save, and say how it went; what both entry points share."""
    args = training_arguments(options, len(kept), checkpoint_dir)
    total = options.epochs * math.ceil(len(kept) / options.batch_size)
    checkpoint = newest_whole(checkpoint_dir)
    done = int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else 0
    if checkpoint:
        log.info("%s: going on from step %d", label, done)
    bar = Progress(label, total, "steps", done=done)

    def on_step(step: int, total: int, values: dict[str, float]) -> None:
        note = f"loss {values['loss']:.4f}"
        bar.advance(1, note + (f", margin {values['margin']:.4f}" if "margin" in values else ""))

    trainer = AlignTrainer(
        load_model(model),
        args,
        examples=kept,
        loss=loss,
        loss_options=loss_options,
        reference=reference,
        precision=options.precision,
        on_step=on_step,
        callbacks=[Sealing(), *([] if options.save_steps else [SaveByClock()])],
    )
    step0 = trainer.examine(kept[:STEP0_EXAMPLES])
    if same_weights and reference is not None:
        beta = {**trainer.loss.options, **loss_options}["beta"]
        step0["tolerance"] = step0_tolerance(trainer.precision, beta, kept[:STEP0_EXAMPLES], reference)
        check_step0(step0, step0["tolerance"])
    with bar:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    history = trainer.history
    trainer.optimizer = None
    differences = save_model(
        trainer.model, model, output, [*kept[0].prompt_ids, *kept[0].completions[0]], save_dtype=options.save_dtype
    )
    return {
        "loss": history[-1]["loss"],
        "step0": step0,
        "steps": len(history),
        "tokens": int(sum(entry["tokens"] for entry in history)),
        "examples": len(kept),
        "dropped": [tuple(entry) for entry in dropped],
        "precision": trainer.precision,
        "logit_difference": differences,
        "history": history,
    }


def train_sft(
    model: Path,
    output: Path,
    examples: Sequence[DialogueExample],
    options: TrainOptions,
    *,
    checkpoint_dir: Path,
    label: str,
) -> dict[str, Any]:
    """Supervised fine-tuning: negative log-likelihood of completion tokens, every token of a step weighing the same.

    Resumes from the newest whole checkpoint in `checkpoint_dir`.

    Args:
        model: folder to start from, with tokenizer and chat template.
        output: folder to write, in the dtype of `model`.
        examples: dialogues with unique ids.
        options: how to train.
        checkpoint_dir: holds checkpoints, and the examples of a step whose loss was not finite.
        label: of the progress bar and messages.

    Returns:
        loss (of the last step, nats per token), step0 {loss}, steps, tokens (trained on, all epochs), examples, dropped
        [(id, reason)], precision, logit_difference (see `save_model`), history [one dict per step].

    Raises:
        UserError: no example can be trained on, or options that do not fit together.
        StepError: a loss or gradient is not finite, or the saved folder differs from the trained model.
    """
    kept, dropped = _select(Chat.load(model), examples, options, label)
    return _train(
        model, output, kept, dropped, options, loss="nll", loss_options={}, reference=None, same_weights=False,
        checkpoint_dir=checkpoint_dir, label=label,
    )  # fmt: skip


def train_preference(
    model: Path,
    reference: Path | None,
    output: Path,
    examples: Sequence[PairExample],
    loss: str,
    loss_options: Mapping[str, Any],
    options: TrainOptions,
    *,
    checkpoint_dir: Path,
    journal: Journal | None,
    label: str,
) -> dict[str, Any]:
    """Preference optimization on pairs with one of the paired `LOSSES`.

    Reference log-probabilities are computed once, before the policy is loaded. Where `reference` holds the same weights as
    `model`, the margin must be 0 and the loss ln 2 before the first update; otherwise both are only recorded in `step0`.

    Args:
        model: folder to start from, with tokenizer and chat template.
        reference: folder of the reference model; None for losses without one.
        output: folder to write, in the dtype of `model`.
        examples: pairs with unique ids.
        loss: dpo or simpo.
        loss_options: its options.
        options: how to train.
        checkpoint_dir: holds checkpoints, and the examples of a step whose loss was not finite.
        journal: keeps finished reference log-probabilities for a resumed run.
        label: of the progress bars and messages.

    Returns:
        As `train_sft`, and margins: step0 {loss, margin, largest_margin, and tolerance where enforced},
        same_weights (whether step 0 was enforced).

    Raises:
        ValueError: unknown loss, unused option, a reference too many or too few.
        UserError: no example can be trained on, or options that do not fit together.
        StepError: training refuses to start, a loss or gradient is not finite, or the saved folder differs.
    """
    chosen_loss = find_loss(loss)
    chosen_loss.bind(loss_options)
    if not chosen_loss.paired or chosen_loss.needs_reference != (reference is not None):
        wants = "not a pair loss" if not chosen_loss.paired else "with" if chosen_loss.needs_reference else "without"
        raise ValueError(f"loss {loss} is {wants}" + (" a reference" if chosen_loss.paired else ""))
    kept, dropped = _select(Chat.load(model), examples, options, label)
    sums, same_weights = None, False
    if reference is not None:
        digest = weights_digest(reference)
        same_weights = digest == weights_digest(model)
        sums = reference_logprobs(
            reference, kept, micro_batch=options.micro_batch, journal=journal, key=digest, label=f"{label} reference",
            precision=resolve_precision(options.precision, training_device()),
        )  # fmt: skip
    metrics = _train(
        model, output, kept, dropped, options, loss=loss, loss_options=loss_options, reference=sums,
        same_weights=same_weights, checkpoint_dir=checkpoint_dir, label=label,
    )  # fmt: skip
    return {**metrics, "same_weights": same_weights}
