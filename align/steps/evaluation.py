"""The evaluation table and the report."""

from __future__ import annotations

from align.core.chat import Chat
from align.core.rows import Instruction, Response, Score
from align.evaluate.table import eval_results, model_table
from align.recipe.base import SFT_MODEL
from align.steps.context import Context
from align.steps.judges import REWARD_ROLES
from align.steps.reward import sampled


def run_eval(ctx: Context) -> None:
    """Win rates and the like from scores, and KL from the answers' log-probabilities under both models."""
    spec = ctx.recipe.evaluation
    prompts = {p.id: p for p in ctx.rows("evolve", Instruction)}
    responses = sampled(ctx)
    scores = {role: ctx.rows(f"eval.score.{role}", Score) for role in REWARD_ROLES}
    rows = eval_results(prompts, responses, scores)
    ctx.out.write_all(rows, [], asked=len(responses))
    ctx.finish(
        table=model_table(rows, spec.models, spec.baseline, seed=ctx.seed),
        kl=_kl(ctx, prompts, responses),
        prompts=len({r.prompt_id for r in responses}),
        baseline=spec.baseline,
    )


def _kl(ctx: Context, prompts: dict[str, Instruction], responses: list[Response]) -> list[dict[str, object]]:
    """KL of each trained model to M0 and to the model it was trained from, on its own answers."""
    from align.train.data import DialogueExample
    from align.train.kl import sample_kl

    previous = {stage.name: stage.init for stage in ctx.recipe.stages} | {SFT_MODEL: ctx.recipe.sft.init}
    entries: list[dict[str, object]] = []
    for model in ctx.recipe.evaluation.models:
        if model not in previous:
            continue
        chat = Chat.load(ctx.process.model_folder(model))
        examples = [
            DialogueExample(
                id=r.id,
                prompt_ids=tuple(chat.prompt_ids(prompts[r.prompt_id].messages)),
                completion_ids=tuple(r.token_ids),
            )
            for r in responses
            if r.model == model and r.token_ids
        ]
        for other in dict.fromkeys((SFT_MODEL, previous[model])):
            if other == model:
                continue
            value = sample_kl(
                ctx.process.model_folder(model), ctx.process.model_folder(other), examples,
                precision=ctx.recipe.evaluation.precision, label=f"KL {model} to {other}",
            )  # fmt: skip
            entries.append({"model": model, "to": other, **value})
    return entries


def run_report(ctx: Context) -> None:
    """`report/index.html`."""
    from align.report.page import write_report

    write_report(ctx.process.run_dir, ctx.out.folder / "index.html", name=ctx.recipe.name)
    ctx.finish()
