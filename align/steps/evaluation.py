"""The evaluation table and the report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align.core.chat import Chat
from align.core.hashing import content_id
from align.core.rows import BestOfN, Instruction, Response, Score
from align.evaluate.meter import Place, meter
from align.evaluate.table import eval_results, model_table, win_rates
from align.recipe.base import SFT_MODEL
from align.steps.context import Context
from align.steps.judges import REWARD_ROLES
from align.steps.reward import sampled
from align.steps.step import evaluated


def run_eval(ctx: Context) -> None:
    """Win rates and the like from scores, and KL from the answers' log-probabilities under both models."""
    spec = ctx.recipe.evaluation
    prompts = {p.id: p for p in ctx.rows("evolve", Instruction)}
    responses = sampled(ctx)
    scores = {role: ctx.rows(f"eval.score.{role}", Score) for role in ctx.recipe.reward_models.roles}
    log_ratios, kl = _divergences(ctx, prompts, responses)
    rows = eval_results(prompts, responses, scores, log_ratios)
    ctx.out.write_all(rows, [], asked=len(responses))
    ctx.finish(
        meter=meter(rows, _places(ctx), seed=ctx.seed),
        table=model_table(rows, spec.models, spec.baseline, seed=ctx.seed),
        wins=win_rates(rows, spec.models, spec.baseline, seed=ctx.seed),
        kl=kl,
        prompts=len({r.prompt_id for r in responses}),
        baseline=spec.baseline,
    )


def _places(ctx: Context) -> list[Place]:
    """M0 and every checkpoint of the stages, with what training measured at the evaluated ones."""
    places = [Place(name=SFT_MODEL, stage=0)]
    for k, stage in enumerate(ctx.recipe.stages, 1):
        names = (*stage.snapshots, stage.name)
        parents = dict(zip(names, (stage.init, *names), strict=False))
        if stage.name not in ctx.recipe.evaluation.models:  # later stages may have begun from it all the same
            places += [Place(name=name, stage=k, parent=parents[name]) for name in names]
            continue
        metrics = ctx.artifact(f"stage{k}.train").manifest.metrics
        looks = metrics["examined"][1:]  # the first is before training
        places += [
            Place(name=name, stage=k, step=look["step"], steps=metrics["steps"], drift=look, parent=parents[name])
            for name, look in zip(names, looks, strict=True)
        ]
    return places


def _divergences(
    ctx: Context, prompts: Mapping[str, Instruction], responses: Sequence[Response]
) -> tuple[dict[str, dict[str, float]], list[dict[str, object]]]:
    """Log-ratios of each trained model's own answers to M0 ("start") and to the model it was trained from ("previous"), by
    response id, and what they say of the KL."""
    from align.train.data import DialogueExample
    from align.train.kl import kl_estimate, sequence_logprobs

    previous = {name: stage.init for stage in ctx.recipe.stages for name in (*stage.snapshots, stage.name)}
    previous |= {SFT_MODEL: ctx.recipe.sft.init}
    found: dict[str, dict[str, float]] = {"start": {}, "previous": {}}
    entries: list[dict[str, object]] = []
    for model in (name for name in evaluated(ctx.recipe) if name in previous):
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
        logprobs = {
            name: sequence_logprobs(
                ctx.process.model_folder(name), examples, precision=ctx.recipe.evaluation.precision,
                label=f"{name} on answers of {model}",
            )
            for name in dict.fromkeys((model, SFT_MODEL, previous[model]))
        }  # fmt: skip
        for where, other in (("start", SFT_MODEL), ("previous", previous[model])):
            ratios = {i: logprobs[model][i] - logprobs[other][i] for i in logprobs[model]}
            found[where] |= ratios
            if other != model and other not in {entry["to"] for entry in entries if entry["model"] == model}:
                tokens = sum(len(example.completion_ids) for example in examples)
                entries.append({"model": model, "to": other, **kl_estimate(ratios, tokens)})
    return found, entries


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def run_best_of_n(ctx: Context) -> None:
    """What choosing the best of n by a proxy is worth under gold, from responses that exist before any training."""
    from align.evaluate.best_of_n import best_of_n_curve

    prompt_of = {r.id: r.prompt_id for r in sampled(ctx)}
    place: dict[str, int] = {}
    column: dict[str, int] = {}
    widths: Counter[str] = Counter()
    for response, prompt in sorted(prompt_of.items()):
        place.setdefault(prompt, len(place))
        column[response] = widths[prompt]
        widths[prompt] += 1
    scores: dict[str, Any] = {}
    for role in ctx.recipe.reward_models.roles:
        scores[role] = np.full((len(place), max(widths.values(), default=1)), np.nan)
        for row in ctx.rows(f"stage{ctx.step.stage}.score.{role}", Score):
            if row.response_id in prompt_of:
                scores[role][place[row.prompt_id], column[row.response_id]] = row.score
    rows = [
        BestOfN(
            id=content_id("best-of-n", role, point["n"]), proxy=role, n=point["n"], prompts=point["prompts"], kl=point["kl"],
            proxy_reward=_number(point["proxy"]["mean"]), gold=_number(point["gold"]["mean"]),
            gain=_number(point["gain"]["mean"]), gain_low=_number(point["gain"]["low"]),
            gain_high=_number(point["gain"]["high"]),
        )
        for role in REWARD_ROLES
        for point in best_of_n_curve(scores[role], scores["gold"], seed=ctx.seed)
    ]  # fmt: skip
    ctx.out.write_all(rows, [], asked=len(rows))
    ctx.finish()


def run_report(ctx: Context) -> None:
    """`report/index.html`."""
    from align.report.page import write_report

    write_report(ctx.process.run_dir, ctx.out.folder / "index.html", name=ctx.recipe.name)
    ctx.finish()
