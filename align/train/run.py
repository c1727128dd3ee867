"""The two entry points of training: SFT on dialogues, preference optimization on pairs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from align.core.artifact import write_json
from align.core.chat import Chat
from align.core.errors import UserError
from align.core.journal import Journal
from align.core.pacing import SaveByClock
from align.core.progress import Progress
from align.train.checkpoints import Sealing, newest_whole
from align.train.data import DialogueExample, PairExample, Rejected, keep_within
from align.train.examining import EXAMINED, Examining, check_step0, expected_at_reference, step0_tolerance
from align.train.export import gathered_state, plain_model, with_adapters
from align.train.losses import find_loss
from align.train.models import load_model, save_model, training_device, weights_digest, weights_dtype
from align.train.options import TrainOptions, num_steps, training_arguments
from align.train.precision import resolve_precision
from align.train.reference import PairSums, reference_logprobs
from align.train.scoring import restore
from align.train.trainer import AlignTrainer

log = logging.getLogger(__name__)
STEP0_EXAMPLES = 16  # enough to see a wrong reference, few enough to cost less than one usual step


def _select(chat: Chat, examples: Sequence[Any], options: TrainOptions, label: str) -> tuple[list[Any], list[Rejected]]:
    kept, dropped = keep_within(examples, options.max_length, chat.stop_ids)
    if not kept:
        reason = f"; the first: {dropped[0].reason}" if dropped else ""
        raise UserError(f"{label}: none of {len(examples)} examples can be trained on{reason}")
    if dropped:
        log.info("%s: %d of %d examples left out, the first: %s", label, len(dropped), len(examples), dropped[0].reason)
    return kept, dropped


def _checkpoint(folder: Path, args: TrainingArguments, parallel: str) -> Path | None:
    """The checkpoint to go on from, chosen (and cut-off ones deleted) by the first process.

    Raises:
        UserError: it was written by another number of processes, or another way of sharding.
    """
    found: list[Path | None] = [newest_whole(folder) if args.process_index == 0 else None]
    if args.world_size > 1:
        torch.distributed.broadcast_object_list(found)
    layout = {"processes": args.world_size, "parallel": parallel if args.world_size > 1 else "none"}
    path = folder / "processes.json"
    if found[0] is not None and path.is_file() and (earlier := json.loads(path.read_text())) != layout:
        raise UserError(f"{found[0]} was written with {earlier}, this run has {layout}; set them alike, or delete {folder}")
    if args.process_index == 0:
        write_json(path, layout)
    return found[0]


def _policy(model: Path, options: TrainOptions) -> Any:
    """The model to train: float32 weights, or, where only adapters are trained, as they are stored."""
    frozen = options.lora is not None and resolve_precision(options.precision, training_device()) == "bf16"
    return load_model(model, weights_dtype(model) if frozen else torch.float32)


def _train(
    policy: Any,
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
    total = num_steps(options, len(kept))
    checkpoint = _checkpoint(checkpoint_dir, args, options.parallel)
    done = int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else 0
    if checkpoint:
        log.info("%s: going on from step %d", label, done)
    bar = Progress(label, total, "steps", done=done)
    shown = [done]

    def on_step(step: int, total: int, values: dict[str, float]) -> None:
        note = f"loss {values['loss']:.4f}"
        bar.advance(step - shown[0], note + (f", margin {values['margin']:.4f}" if "margin" in values else ""))
        shown[0] = step

    examined = kept[:STEP0_EXAMPLES]

    def check(step0: dict[str, float]) -> None:
        if same_weights and reference is not None:
            step0["tolerance"] = step0_tolerance(trainer.precision, trainer.loss, loss_options, examined, reference)
            expected = expected_at_reference(trainer.loss, loss_options, examined, reference)
            check_step0(step0, expected, step0["tolerance"])

    probe = [*kept[0].prompt_ids, *kept[0].completions[0]]

    def snapshot(step: int) -> None:
        state = gathered_state(trainer)
        if args.process_index == 0:
            folder = output.parent / "snapshots" / f"step-{step:06d}"
            save_model(
                plain_model(model, state, options.lora, options.seed), model, folder, probe, save_dtype=options.save_dtype
            )

    if options.snapshots >= total:
        raise UserError(f"{label}: snapshots: {options.snapshots} need more steps than the {total} of this training")
    looks = [round(total * k / (options.snapshots + 1)) for k in range(1, options.snapshots + 1)]
    examining = Examining(examined, [*looks, total], check, snapshot)
    trainer = AlignTrainer(
        with_adapters(policy, options.lora, options.seed) if options.lora else policy,
        args,
        examples=kept,
        loss=loss,
        loss_options=loss_options,
        batch_size=options.batch_size,
        micro_batch_tokens=options.micro_batch_tokens,
        layout=options.layout,
        head=options.head,
        reference=reference,
        precision=options.precision,
        on_step=on_step,
        callbacks=[examining, Sealing(), *([] if options.save_steps else [SaveByClock()])],
    )
    examining.trainer = trainer
    with bar:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    history = trainer.history
    looked = [{"step": entry["step"], **entry[EXAMINED]} for entry in trainer.state.log_history if EXAMINED in entry]
    trainer.optimizer = trainer.lr_scheduler = None
    whole = options.lora is None and not trainer.is_fsdp_enabled
    state = {} if whole else gathered_state(trainer)
    differences: dict[str, float] = {}
    if args.process_index == 0:
        if whole:
            finished = trainer.accelerator.unwrap_model(trainer.model)
            restore(finished)
        else:
            finished = plain_model(model, state, options.lora, options.seed)
        differences = save_model(finished, model, output, probe, save_dtype=options.save_dtype)
    trainer.accelerator.wait_for_everyone()
    return {
        "loss": history[-1]["loss"],
        "step0": {name: value for name, value in looked[0].items() if name != "step"},
        "examined": looked,
        "steps": trainer.state.global_step,
        "tokens": int(sum(entry["tokens"] for entry in history)),
        "computed_tokens": int(sum(entry["computed_tokens"] for entry in history)),
        "examples": len(kept),
        "dropped": [tuple(entry) for entry in dropped],
        "precision": trainer.precision,
        "layout": trainer.setup.layout,
        "head": trainer.setup.head,
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
        [(id, reason)], computed_tokens (through the decoder, all epochs), examined [one dict per look], layout, head,
        precision, logit_difference (see `save_model`), history [one dict per step].

    Raises:
        UserError: no example can be trained on, or options that do not fit together.
        StepError: a loss or gradient is not finite, or the saved folder differs from the trained model.
    """
    kept, dropped = _select(Chat.load(model), examples, options, label)
    return _train(
        _policy(model, options), model, output, kept, dropped, options, loss="nll", loss_options={}, reference=None,
        same_weights=False, checkpoint_dir=checkpoint_dir, label=label,
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

    Reference log-probabilities are computed once, before training. Where `reference` holds the same weights as `model`, the
    policy itself computes them, and before the first update the margin must be 0 and the loss what it is there (`dpo`:
    ln 2); otherwise both are only recorded in `step0`.

    Args:
        model: folder to start from, with tokenizer and chat template.
        reference: folder of the reference model; None for losses without one.
        output: folder to write, in the dtype of `model`.
        examples: pairs with unique ids.
        loss: a paired loss of `LOSSES`.
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
    sums, same_weights, policy = None, False, None
    args = training_arguments(options, len(kept), checkpoint_dir)  # joins the processes and takes each to its device
    if reference is not None:
        digest = weights_digest(reference)
        same_weights = digest == weights_digest(model)
        if same_weights and not args.fsdp:  # one model serves both; under FSDP2 the policy must not be whole on a device
            policy = _policy(model, options)
        sums = reference_logprobs(
            reference if policy is None else policy, kept, micro_batch_tokens=options.micro_batch_tokens, journal=journal,
            key=digest, label=f"{label} reference", precision=options.precision, layout=options.layout, head=options.head,
        )  # fmt: skip
    policy = _policy(model, options) if policy is None else policy
    metrics = _train(
        policy, model, output, kept, dropped, options, loss=loss, loss_options=loss_options, reference=sums,
        same_weights=same_weights, checkpoint_dir=checkpoint_dir, label=label,
    )  # fmt: skip
    return {**metrics, "same_weights": same_weights}
