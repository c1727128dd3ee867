"""Reward models, scores and preference pairs: what each of these steps does with its inputs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from align.core.artifact import read_rows
from align.core.errors import UserError
from align.core.progress import Progress
from align.core.rows import (
    Instruction,
    Made,
    Reject,
    Response,
    RewardPair,
    SftExample,
    TrainedExample,
)
from align.engines.complete import Asking
from align.engines.sample import sample_responses
from align.steps.context import Context, sampling
from align.steps.judges import judge_seed, trained_judges
from align.steps.outside import model_path


def run_sample(ctx: Context) -> None:
    """N responses per prompt from one model, for a stage or for the evaluation."""
    spec = ctx.recipe.stages[ctx.step.stage - 1].sample if ctx.step.stage else ctx.recipe.evaluation
    model = ctx.step.config["model"]
    prompts = ctx.prompts(ctx.step.config["split"], spec.max_prompts)
    purpose = ctx.step.name.rsplit(".", 1)[0]

    def jobs_of(part: list[Instruction]) -> list[Asking[Made]]:
        drawn = sampling(spec)
        return [sample_responses(prompt, model=model, n=spec.n, sampling=drawn, purpose=purpose) for prompt in part]

    for shard, part, made in ctx.generate(iter(prompts), len(prompts), model, jobs_of, unit="prompts"):
        rows, rejects = [row for m in made for row in m.rows], [reject for m in made for reject in m.rejects]
        ctx.write_made(shard, part, made, rows, rejects)
    # Read back, so that the numbers are of the whole step also after a resume.
    produced = list(read_rows(ctx.out.folder, Response))
    finished = sum(r.finish_reason == "stop" for r in produced)
    distinct = len({(r.prompt_id, tuple(r.token_ids)) for r in produced})
    ctx.finish(
        prompts=len(prompts),
        finished_share=round(finished / max(1, len(produced)), 4),
        distinct_share=round(distinct / max(1, len(produced)), 4),
        completion_tokens=sum(r.num_tokens for r in produced),
        **ctx.engine_flags(model),
    )


def run_reward_data(ctx: Context) -> None:
    """Training pairs of the reward models."""
    from reward.degrade import reward_pairs
    from reward.preference_file import pairs_from_file

    spec = ctx.recipe.reward_data
    if spec.path:
        rows, rejects = pairs_from_file(Path(spec.path), run_seed=ctx.seed, held_out=spec.held_out)
    else:
        rows, rejects = reward_pairs(
            ctx.rows("sft.data", SftExample), run_seed=ctx.seed, operators=spec.operators, held_out=spec.held_out,
            per_example=spec.per_example,
        )  # fmt: skip
    ctx.out.write_all(rows, rejects, asked=len(rows) + len(rejects))
    if not any(r.split == "train" for r in rows):
        raise UserError(
            f"reward_data: no training pair came out of {len(rows) + len(rejects)}; see {ctx.out.folder}/rejects"
        )
    ctx.finish(by_split=dict(Counter(r.split for r in rows)), by_subset=dict(Counter(r.subset for r in rows)))


def run_reward_train(ctx: Context) -> None:
    """Train one reward model and measure it on held-out pairs."""
    from reward.train import train_reward_model

    name = ctx.step.name.removeprefix("reward.")
    spec = trained_judges(ctx.recipe)[name]
    assert spec.train is not None
    pairs = ctx.rows("reward.data", RewardPair)
    train = [p for p in pairs if p.split == "train"]
    total = -(-len(train) * spec.train.epochs // spec.train.batch_size)
    with Progress(f"reward {name}", total, "steps") as bar:
        metrics = train_reward_model(
            model_path(spec.train.backbone), ctx.out.folder / "model", pairs, epochs=spec.train.epochs,
            learning_rate=spec.train.learning_rate, batch_size=spec.train.batch_size, max_length=spec.train.max_length,
            micro_batch_tokens=spec.train.micro_batch_tokens,
            centering=spec.train.centering, margin=spec.train.margin, seed=judge_seed(ctx.recipe, name),
            precision=spec.precision, checkpoint_dir=ctx.out.work / "checkpoints",
            on_step=lambda step, total, loss: bar.advance(1, f"loss {loss:.3f}"),
        )  # fmt: skip
    left_out = dict(metrics.pop("left_out"))
    rows = [TrainedExample(id=p.id, num_tokens=0) for p in train if p.id not in left_out]
    rejects = [Reject(id=p.id, reason=left_out[p.id], raw=p.chosen[-1]["content"]) for p in pairs if p.id in left_out]
    ctx.out.write_all(rows, rejects, asked=len(rows) + len(rejects))
    ctx.finish(**metrics)


def sampled(ctx: Context) -> list[Response]:
    """The responses of all models that a step reads."""
    return [r for name in ctx.step.inputs if ".sample." in name for r in ctx.rows(name, Response)]
