"""SFT and preference training: rows in, a model folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.core.chat import Chat, ChatError
from align.core.errors import UserError
from align.core.hashing import file_sha256
from align.core.rows import Preference, Reject, SftExample, TrainedExample
from align.recipe.training import TrainSpec
from align.steps.context import Context


def _options(spec: TrainSpec, learning_rate: float, seed: int) -> Any:
    from align.train.options import LoraOptions, TrainOptions

    return TrainOptions(
        epochs=spec.epochs, learning_rate=learning_rate, batch_size=spec.batch_size,
        micro_batch_tokens=spec.micro_batch_tokens, warmup_ratio=spec.warmup_ratio, schedule=spec.schedule,
        weight_decay=spec.weight_decay, max_grad_norm=spec.max_grad_norm, max_length=spec.max_length, layout=spec.layout,
        head=spec.head, lora=LoraOptions(**spec.lora.model_dump()) if spec.lora else None, precision=spec.precision,
        save_steps=spec.save_steps, save_dtype=spec.save_dtype, snapshots=spec.snapshots, seed=seed,
        gradient_checkpointing=spec.gradient_checkpointing, parallel=spec.parallel,
    )  # fmt: skip


def _finish(ctx: Context, lengths: dict[str, int], rejects: list[Reject], metrics: dict[str, Any]) -> None:
    """Record what was trained on; what the trainer dropped joins the rejects."""
    dropped = metrics.pop("dropped")
    rejects = rejects + [Reject(id=i, reason=reason.split(":")[0], raw=reason) for i, reason in dropped]
    used = [TrainedExample(id=i, num_tokens=n) for i, n in lengths.items() if i not in {d[0] for d in dropped}]
    ctx.out.write_all(used, rejects, asked=len(used) + len(rejects))
    ctx.finish(**metrics)


def run_sft(ctx: Context) -> None:
    """M0: supervised fine-tuning on assistant tokens only."""
    from align.train.data import DialogueExample
    from align.train.launch import launched

    ctx.certified("sft.data")
    spec = ctx.recipe.sft
    model = ctx.process.model_folder(spec.init)
    chat = Chat.load(model)
    examples: list[DialogueExample] = []
    rejects: list[Reject] = []
    for row in ctx.rows("sft.data", SftExample):
        try:
            prompt, completion = chat.split(row.messages[:-1], row.messages[-1:])
        except ChatError as error:
            rejects.append(Reject(id=row.id, reason=str(error), raw=row.messages[-1]["content"]))
            continue
        examples.append(DialogueExample(id=row.id, prompt_ids=tuple(prompt), completion_ids=tuple(completion)))
    metrics = launched(
        spec.processes, examples, _options(spec, spec.learning_rate, ctx.seed), model=model,
        output=ctx.out.folder / "model", checkpoint_dir=ctx.out.work / "checkpoints", label="sft M0",
    )  # fmt: skip
    _finish(ctx, {e.id: len(e.prompt_ids) + len(e.completion_ids) for e in examples}, rejects, metrics)


def run_preference(ctx: Context) -> None:
    """M1, M2, ...: a preference loss on a stage's pairs, on the sampled token ids themselves."""
    from align.train.data import PairExample
    from align.train.launch import launched
    from align.train.losses import find_loss

    ctx.certified(f"stage{ctx.step.stage}.pair")
    stage = ctx.recipe.stages[ctx.step.stage - 1]
    model = ctx.process.model_folder(stage.init)
    for name in dict.fromkeys([*stage.sample.models, *([stage.reference] if stage.reference else [])]):
        _same_tokenizer(model, ctx.process.model_folder(name), name)
    chat = Chat.load(model)
    examples = [
        PairExample(
            id=row.id,
            prompt_ids=tuple(chat.prompt_ids(row.prompt)),
            chosen_ids=tuple(row.chosen_token_ids),
            rejected_ids=tuple(row.rejected_token_ids),
            weight=row.weight,
            flip_rate=row.flip_rate if stage.pair.use == "flip_rate" else None,
        )
        for row in ctx.rows(f"stage{ctx.step.stage}.pair", Preference)
        if row.split == "train"
    ]
    metrics = launched(
        stage.train.processes,
        examples,
        _options(stage.train, stage.train.learning_rate, ctx.seed),
        model=model,
        reference=ctx.process.model_folder(stage.reference) if stage.reference else None,
        output=ctx.out.folder / "model",
        loss=stage.train.loss,
        loss_options={key: getattr(stage.train, key) for key in find_loss(stage.train.loss).options},
        checkpoint_dir=ctx.out.work / "checkpoints",
        journal=ctx.out.work / "reference.jsonl" if stage.reference else None,
        label=f"{stage.train.loss} {stage.name}",
    )
    lengths = {e.id: len(e.prompt_ids) + len(e.chosen_ids) + len(e.rejected_ids) for e in examples}
    _finish(ctx, lengths, [], metrics)


def _same_tokenizer(trained: Path, sampled: Path, name: str) -> None:
    """Token ids mean the same only to models with the same tokenizer: those sampled from, trained, and the reference."""
    one, other = trained / "tokenizer.json", sampled / "tokenizer.json"
    if one.is_file() and other.is_file() and file_sha256(one) != file_sha256(other):
        raise UserError(
            f"{name} has another tokenizer than the model being trained ({other}); its token ids mean "
            "other text. Use models of one family"
        )
