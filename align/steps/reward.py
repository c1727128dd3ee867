"""Reward models, scores and preference pairs: what each of these steps does with its inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from align.core.artifact import read_rows
from align.core.errors import UserError
from align.core.hashing import content_id
from align.core.progress import Progress
from align.core.rows import (
    Instruction,
    Made,
    Preference,
    Reject,
    Response,
    RewardPair,
    Score,
    SftExample,
    TrainedExample,
)
from align.engines.complete import Asking
from align.engines.sample import sample_responses
from align.steps.context import Context, sampling
from align.steps.data import run_judge_answers
from align.steps.table import REWARD_ROLES, model_path


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

    role = ctx.step.name.split(".")[1]
    spec = getattr(ctx.recipe.reward_models, role)
    pairs = ctx.rows("reward.data", RewardPair)
    train = [p for p in pairs if p.split == "train"]
    total = -(-len(train) * spec.train.epochs // spec.train.batch_size)
    with Progress(f"reward {role}", total, "steps") as bar:
        metrics = train_reward_model(
            model_path(spec.train.backbone), ctx.out.folder / "model", pairs, epochs=spec.train.epochs,
            learning_rate=spec.train.learning_rate, batch_size=spec.train.batch_size, max_length=spec.train.max_length,
            seed=ctx.seed, precision=spec.precision, checkpoint_dir=ctx.out.work / "checkpoints",
            on_step=lambda step, total, loss: bar.advance(1, f"loss {loss:.3f}"),
        )  # fmt: skip
    rows = [TrainedExample(id=p.id, num_tokens=0) for p in train]
    ctx.out.write_all(rows, [], asked=len(rows))
    ctx.finish(**metrics)


def reward_folder(ctx: Context, role: str) -> Path:
    """The folder of a reward model: trained by this run, or the recipe's own."""
    spec = getattr(ctx.recipe.reward_models, role)
    return Path(spec.path) if spec.path else ctx.process.run_dir / f"reward/{role}/model"


def run_score(ctx: Context) -> None:
    """One reward model's score for every response of a stage or of the evaluation."""
    role = ctx.step.name.rsplit(".", 1)[1]
    spec = getattr(ctx.recipe.reward_models, role)
    _score(ctx, sampled(ctx), role, reward_folder(ctx, role), spec.precision, spec.max_length)


def run_score_answers(ctx: Context) -> None:
    """A score for every candidate answer of the SFT split: a judge's marks, or a reward model's."""
    if ctx.recipe.answers.best_by == "judge":
        run_judge_answers(ctx)
        return
    selector = ctx.recipe.reward_models.selector
    folder = Path(str(ctx.recipe.answers.reward_model))
    _score(ctx, ctx.rows("respond", Response), "answers", folder, selector.precision, selector.max_length)


def _score(ctx: Context, responses: Sequence[Response], role: str, folder: Path, precision: str, max_length: int) -> None:
    from reward.classifier import Classifier

    prompts = {p.id: p for p in ctx.rows("evolve", Instruction)}
    model = Classifier.load(folder, precision=precision, max_length=max_length)
    scores = model.score_all(
        [(r.id, prompts[r.prompt_id].messages, r.text) for r in responses],
        journal=ctx.out.journal("scores"),
        label=f"score {role}",
    )
    rows = [
        Score(id=content_id("score", role, r.id), response_id=r.id, prompt_id=r.prompt_id, reward_model=role,
              score=scores[r.id])
        for r in responses
    ]  # fmt: skip
    if len(rows) > 1 and len({row.score for row in rows}) == 1:
        raise UserError(
            f"{ctx.step.name}: the {role} gives all {len(rows)} responses the score {rows[0].score:g}; "
            f"it cannot rank them. Check its head and its chat template, or train it longer"
        )
    ctx.out.write_all(rows, [], asked=len(rows))
    ctx.finish()


def sampled(ctx: Context) -> list[Response]:
    """The responses of all models that a step reads."""
    return [r for name in ctx.step.inputs if ".sample." in name for r in ctx.rows(name, Response)]


def run_pair(ctx: Context) -> None:
    """Scores to preference pairs; every prompt ends as a pair or as a reject with its numbers."""
    from reward.pairs import PairRules, build_pairs

    spec = ctx.recipe.stages[ctx.step.stage - 1].pair
    responses = sampled(ctx)
    known = {r.prompt_id for r in responses}
    prompts = [p for p in ctx.rows("evolve", Instruction) if p.id in known]
    rules = PairRules(
        select=spec.select, agreement=spec.agreement, threshold=spec.threshold, min_margin=spec.min_margin,
        drop_unfinished=True, max_length=None,
    )  # fmt: skip
    selector, validator = (ctx.rows(f"stage{ctx.step.stage}.score.{role}", Score) for role in REWARD_ROLES)
    rows, rejects = build_pairs(prompts, responses, selector, validator, rules)
    rows, contaminated = ctx.clean(rows, lambda row: [m["content"] for m in (*row.prompt, *row.chosen, *row.rejected)])
    rejects += contaminated
    ctx.out.write_all(rows, rejects, asked=len(prompts))
    if not rows:
        why = ", ".join(f"{n} {reason}" for reason, n in Counter(r.reason for r in rejects).most_common())
        raise UserError(
            f"{ctx.step.name}: every one of {len(prompts)} prompts was dropped ({why}). Sample more responses "
            f"(stages.{ctx.step.stage - 1}.sample.n), lower pair.threshold, or raise max_tokens if answers are unfinished; "
            f"the rejects are in {ctx.out.folder}/rejects"
        )
    asked = Counter(prompt.topic_id for prompt in prompts)
    ctx.finish(asked_by_topic=dict(sorted(asked.items())), **pair_metrics(rows, rejects))


def pair_metrics(rows: Sequence[Preference], rejects: Sequence[Reject]) -> dict[str, object]:
    """Kept share, margins, agreement, and how often the longer answer won (a length bias shows here first)."""
    n = len(rows)
    return {
        "kept_share": round(n / max(1, n + len(rejects)), 4),
        "mean_margin": round(sum(r.selector_chosen - r.selector_rejected for r in rows) / n, 4),
        "mean_agreement": round(sum(r.agreement for r in rows) / n, 4),
        "chosen_longer_share": round(sum(len(r.chosen_token_ids) > len(r.rejected_token_ids) for r in rows) / n, 4),
        "mean_chosen_tokens": round(sum(len(r.chosen_token_ids) for r in rows) / n, 1),
        "mean_rejected_tokens": round(sum(len(r.rejected_token_ids) for r in rows) / n, 1),
        "chosen_models": dict(Counter(r.chosen_model for r in rows)),
        "rejected_models": dict(Counter(r.rejected_model for r in rows)),
    }
