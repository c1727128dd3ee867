"""How to train: what the recipe may say, and what of it the Trainer takes."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainingArguments

from align.core.errors import UserError
from align.train.models import training_device

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
LOG_EVERY_ON_CPU = 1  # steps
LOG_EVERY_ON_GPU = 10  # reading a metric makes the host wait for the device
PARALLEL = ("ddp", "fsdp2")


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Low-rank adapters on every linear layer but the LM head (arXiv 2106.09685, through PEFT).

    Attributes:
        rank: r, inner dimension of the update.
        alpha: the update is scaled by alpha / r.
        dropout: on the input of the adapters.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train; the same for SFT and preferences.

    Attributes:
        epochs: passes over the examples.
        learning_rate: of AdamW, at its peak.
        batch_size: dialogues or pairs per optimizer step, over all processes.
        micro_batch_tokens: most tokens that go through the model at once; a longer example goes alone.
        warmup_ratio: share of the steps, rounded down, in which the learning rate rises from 0.
        schedule: cosine, linear or constant.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm; 0 does not clip.
        max_length: tokens; longer examples are left out.
        layout: shared (prompts once, packed), separate (plain padded rows), or auto for shared where the model can.
        head: triton, chunked, reference, plain, or auto for the fastest there is (see `align.train.scoring`).
        lora: train adapters instead of all weights; None trains all.
        precision: bf16 (autocast over float32 weights), fp32, or auto.
        save_steps: steps between checkpoints; 0 is one every two minutes.
        save_dtype: of the saved weights: float32, bfloat16, or auto for the dtype of the model training started from.
        snapshots: models saved inside the run, evenly spaced, for evaluation; 0 saves only the last.
        seed: of the order of examples and of dropout.
        gradient_checkpointing: less memory for about a third more time.
        parallel: ddp (a copy on every process) or fsdp2 (sharded), where there are several.
    """

    epochs: int = 1
    learning_rate: float
    batch_size: int
    micro_batch_tokens: int = 2048
    warmup_ratio: float = 0.1
    schedule: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 1024
    layout: str = "auto"
    head: str = "auto"
    lora: LoraOptions | None = None
    precision: str = "auto"
    save_steps: int = 0
    save_dtype: str = "auto"
    snapshots: int = 0
    seed: int
    gradient_checkpointing: bool = False
    parallel: str = "ddp"


def num_steps(options: TrainOptions, num_examples: int) -> int:
    """Optimizer steps of a whole run."""
    return options.epochs * math.ceil(num_examples / options.batch_size)


def training_arguments(options: TrainOptions, num_examples: int, checkpoint_dir: Path) -> TrainingArguments:
    """The Trainer's own arguments.

    Raises:
        UserError: an unknown schedule or way of running in parallel.
    """
    if options.schedule not in SCHEDULES:
        raise UserError(f"schedule {options.schedule!r} is not {', '.join(SCHEDULES)}")
    if options.parallel not in PARALLEL:
        raise UserError(f"parallel {options.parallel!r} is not {', '.join(PARALLEL)}")
    on_gpu = training_device().type == "cuda"
    sharded = options.parallel == "fsdp2" and int(os.environ.get("WORLD_SIZE", "1")) > 1
    # FSDP's own activation checkpointing replaces the Trainer's, which gathers parameters a second time.
    checkpointing = options.gradient_checkpointing and not sharded
    fsdp = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "state_dict_type": "FULL_STATE_DICT"}
    return TrainingArguments(
        output_dir=str(checkpoint_dir),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=1,  # a batch of the data loader is a whole optimizer step
        learning_rate=options.learning_rate,
        lr_scheduler_type=SCHEDULES[options.schedule],
        warmup_steps=int(options.warmup_ratio * num_steps(options, num_examples)),
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        optim="adamw_torch_fused",
        seed=options.seed,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        fsdp=sharded,
        fsdp_config={**fsdp, "activation_checkpointing": options.gradient_checkpointing} if sharded else None,
        logging_steps=LOG_EVERY_ON_GPU if on_gpu else LOG_EVERY_ON_CPU,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would replace the losses we want to stop at
        save_strategy="steps" if options.save_steps else "no",
        save_steps=options.save_steps or 1,
        report_to="none",
        use_cpu=not on_gpu,  # the Trainer would take a Mac's GPU, where the reference is not
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
    )
