"""Evaluation suites at work: models answer, judges grade, and the numbers are put side by side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.core.artifact import read_rows
from align.core.chat import Chat, load_tokenizer
from align.core.errors import StepError, UserError
from align.core.hashing import FileHashes, content_id
from align.core.journal import Journal
from align.core.rows import Document, Made, SuiteAnswer, SuiteResult
from align.engines.complete import Asking, Writer
from align.engines.protocol import Completion, Sampling
from align.evaluate.battles import battle
from align.evaluate.conversations import Held, hold_conversation
from align.evaluate.judged import LOGICKOR, MT_BENCH, Judgment, averages, judge_conversations, penalise
from align.evaluate.suite import Conversation, Grade, Item, summarize
from align.evaluate.verdicts import templates_fingerprint
from align.evaluate.win_rates import Comparison, arena_vote, compare_win_rates, merge_games, win_rate
from align.recipe.base import BASE_MODEL
from align.recipe.suites import (
    ArenaSpec,
    ExactAnswerSpec,
    IfevalSpec,
    LogickorSpec,
    MtBenchSpec,
    NeedleSpec,
    PerplexitySpec,
    SafetySpec,
    SuiteSpec,
)
from align.steps.asked import splits
from align.steps.context import Context
from align.steps.outside import engine_config
from align.steps.suite_items import items_of_file
from align.steps.suite_table import JUDGED, suite_models
from data_gen.instruct import split_of

Grading = Callable[[Item, Conversation, str], list[Grade]]


def suite_of(ctx: Context) -> tuple[str, SuiteSpec]:
    """The suite that a step is of: eval.suite.NAME, or eval.suite.NAME.answer.MODEL."""
    name = ctx.step.name.split(".")[2]
    return name, ctx.recipe.evaluation.suites[name]


def _items(ctx: Context, spec: SuiteSpec) -> list[Item]:
    """The suite's questions in their order.

    Raises:
        UserError: the file or the documents cannot be used.
    """
    items = _needles(ctx, spec) if isinstance(spec, NeedleSpec) else items_of_file(spec, ctx.seed)
    return items[: spec.limit]


def _needles(ctx: Context, spec: NeedleSpec) -> list[Item]:
    from align.evaluate.needle import needle_items

    documents = list(ctx.stream("corpus", Document))
    chat = Chat.load(ctx.process.model_folder(BASE_MODEL))
    found: list[Item] = []
    for lang in spec.languages:
        texts = [document.text for document in documents if document.lang == lang]
        found += needle_items(
            texts, lang, spec.lengths, spec.depths, lambda text: len(chat.tokenizer.encode(text)), ctx.seed
        )  # fmt: skip
    return found


def run_suite_answers(ctx: Context) -> None:
    """One model's conversations about all items; those that could not be held are rows with the reason."""
    _, spec = suite_of(ctx)
    model, items = ctx.step.config["model"], _items(ctx, spec)
    # Greedy, as verifiable suites are published; the items of judged suites carry the temperature of their category.
    drawn = Sampling(temperature=0.0, max_tokens=getattr(spec, "max_tokens", 0))

    def jobs_of(part: list[Item]) -> list[Asking[Made]]:
        return [_answer(item, model, drawn) for item in part]

    for shard, part, made in ctx.generate(iter(items), len(items), model, jobs_of, unit="questions"):
        ctx.write_made(shard, part, made, [row for one in made for row in one.rows], [])
    failed = Counter(row.failure for row in read_rows(ctx.out.folder, SuiteAnswer) if row.failure)
    if failed.total() == len(items):
        why = ", ".join(f"{count} {reason}" for reason, count in failed.most_common())
        hint = "raise engine.max_model_len, or give the model a chat template"
        raise UserError(f"{ctx.step.name}: no item could be answered ({why}); {hint}")
    ctx.finish(failed=dict(failed), **ctx.engine_flags(model))


def _answer(item: Item, model: str, sampling: Sampling) -> Asking[Made]:
    held = yield from hold_conversation(item, sampling)
    last = held.completions[-1] if held.completions else None
    row = SuiteAnswer(
        id=content_id("suite-answer", model, item.id), item_id=item.id, model=model, messages=list(held.messages),
        finish_reason=last.finish_reason if last else "", num_tokens=sum(len(c.token_ids) for c in held.completions),
        failure=held.failure,
    )  # fmt: skip
    return Made(rows=[row], asked=1)


def _answers(ctx: Context, name: str, model: str, items: Sequence[Item]) -> dict[str, SuiteAnswer]:
    """A model's answers by item; every item has one."""
    found = {row.item_id: row for row in ctx.rows(f"eval.suite.{name}.answer.{model}", SuiteAnswer)}
    if missing := [item.id for item in items if item.id not in found]:
        raise StepError(f"{ctx.step.name}: {model} has no row for item {missing[0]}")
    return found


def _held(row: SuiteAnswer) -> Held:
    """The conversation as the judges read it; tokens are not needed."""
    count = sum(message["role"] == "assistant" for message in row.messages)
    completions = [Completion(token_ids=(), finish_reason="stop")] * count
    return Held(item_id=row.item_id, messages=row.messages, completions=completions, failure=row.failure)


def run_suite_judge(ctx: Context) -> None:
    """A judge's marks for one model's answers, or its battles with the baseline."""
    name, spec = suite_of(ctx)
    if not isinstance(spec, JUDGED):
        raise StepError(f"{ctx.step.name}: nobody judges this suite")
    model, items = ctx.step.config["model"], _items(ctx, spec)
    answers = _answers(ctx, name, model, items)
    writer = Writer(lambda: ctx.process.engine(spec.judge), run_seed=ctx.seed)
    drawn = Sampling(temperature=0.0, max_tokens=spec.judge_tokens)
    journal = _judgements(ctx, name, spec.judge)
    notes: dict[str, Any] = {}
    if isinstance(spec, ArenaSpec):
        baseline = _answers(ctx, name, spec.baseline, items)
        contests = [(item, _held(answers[item.id]), _held(baseline[item.id])) for item in items]
        games = battle(writer, contests, sampling=drawn, journal=journal)
        rows, unread = _of_games(model, items, games), [game.failure for game in games]
    else:
        protocol = MT_BENCH if isinstance(spec, MtBenchSpec) else LOGICKOR
        held = [(item, _held(answers[item.id])) for item in items]
        found = judge_conversations(writer, protocol, held, sampling=drawn, journal=journal)
        unread = [one.failure for one in found]
        if isinstance(spec, MtBenchSpec) and spec.penalty != "none":
            found = penalise(found, spec.penalty)
        zero = isinstance(spec, LogickorSpec) and spec.failures == "zero"
        notes = {"averages": averages(found, seed=ctx.seed, judge_failures="zero" if zero else "exclude")}
        penalty = isinstance(spec, MtBenchSpec) and spec.penalty != "none"
        by_id = {item.id: item for item in items}
        rows = [row for one in found for row in _of_judgment(model, by_id[one.item_id], one, zero=zero, penalty=penalty)]
    # A mark of 0 for every verdict that cannot be read (LogicKor's way) would hide that there is none.
    if rows and (all(unread) or all(row.failure for row in rows)):
        why = ", ".join(f"{count} {reason}" for reason, count in Counter(filter(None, unread)).most_common())
        raise UserError(
            f"{ctx.step.name}: the judge {spec.judge} gave no verdict that can be read ({why}); use another judge"
        )
    ctx.out.write_all(rows, [], asked=len(rows))
    ctx.finish(**notes)


def _judgements(ctx: Context, suite: str, judge: str) -> Journal:
    """What this judge said in this suite, by content: kept, so that no conversation is judged twice."""
    known = FileHashes(ctx.process.run_dir / ".hashes.json").model(ctx.process.model_folder(judge))
    served = ctx.recipe.engine.model_names.get(judge, judge)  # a server's model is not the one in the folder
    engine = {key: value for key, value in engine_config(ctx.recipe).items() if key != "model_names"}
    key = content_id("judgements", known, engine, served, templates_fingerprint())
    return Journal(ctx.process.run_dir / "eval" / "suite" / f"{suite}.judgements" / f"{key}.jsonl")


def _row(model: str, item: Item, metric: str, key: str, value: float, weight: float, failure: str, raw: str) -> SuiteResult:
    return SuiteResult(
        id=content_id("suite-result", model, item.id, metric, key), item_id=item.id, model=model, category=item.category,
        lang=item.lang, metric=metric, key=key, value=value, weight=weight, failure=failure, raw=raw,
    )  # fmt: skip


def _of_judgment(model: str, item: Item, one: Judgment, *, zero: bool, penalty: bool) -> Iterator[SuiteResult]:
    """A turn's mark under its own metric and under the one of both, and before the penalty where the suite has one."""
    unread = zero and bool(one.failure) and one.attempts > 0
    value, failure = (0.0, "") if unread else (one.score, one.failure)
    for metric in ("score", f"turn_{one.turn}"):
        yield _row(model, item, metric, str(one.turn), value, 1.0, failure, one.text)
    if penalty:
        yield _row(model, item, "score_without_penalty", str(one.turn), one.raw, 1.0, one.failure, "")


def _of_games(model: str, items: Sequence[Item], games: Sequence[Any]) -> list[SuiteResult]:
    """Both games of a prompt, or neither: one order alone would carry the judge's liking for a position."""
    by_item = {item.id: item for item in items}
    broken = {game.prompt_id: game.failure for game in games if game.failure}
    rows = []
    for game in games:
        value, weight = arena_vote(game.label)
        failure = broken.get(game.prompt_id, "")
        value = math.nan if failure else value
        rows.append(_row(model, by_item[game.prompt_id], "win_rate", game.order, value, weight, failure, game.text))
    return rows


def battles_of(rows: Sequence[SuiteResult], models: Sequence[str], baseline: str, *, seed: int) -> dict[str, Any]:
    """What an arena's rows say beside the share of votes: prompts won, tied and lost with their sign test, how often a judge
    contradicted itself when the answers were swapped, and each model against the first on the same prompts."""
    sides, found, notes = {}, {}, []
    for model in models:
        games = [
            Comparison(prompt_id=row.item_id, model=model, baseline=baseline, outcome=row.value, order=row.key)
            for row in rows
            if row.model == model
        ]
        sides[model], counts = merge_games(games)
        one = found[model] = {**counts, **win_rate(sides[model], seed=seed)}
        said = f"{model} won {one['wins']}, tied {one['ties']}, lost {one['losses']}"
        said += "" if one["p_value"] is None else f" (sign test p = {one['p_value']:.3g})"
        if one["inconsistency"] is not None:
            said += f", and in {100 * one['inconsistency']:.0f} % the judge named the other winner when they were swapped"
        if model != models[0]:
            one["against_first"] = paired = compare_win_rates(sides[model], sides[models[0]], seed=seed)
            if paired["p_value"] is not None:
                said += f"; {paired['difference']:+.2f} against {models[0]} (permutation test p = {paired['p_value']:.3g})"
        notes.append(said)
    return {"battles": found, "notes": notes}


def _grading(spec: SuiteSpec) -> tuple[Grading, tuple[str, ...]]:
    """How an answer is graded, and the metrics that an item without an answer fails in."""
    if isinstance(spec, IfevalSpec):
        from align.evaluate.ifeval import METRICS, grade_ifeval

        return grade_ifeval, METRICS
    if isinstance(spec, ExactAnswerSpec):
        from align.evaluate.exact_answer import grade_exact_answer

        return grade_exact_answer, ("exact_strict", "exact_flexible", "exact_answer")
    if isinstance(spec, SafetySpec):
        from align.evaluate.safety import grade_safety

        return grade_safety, ("accuracy", "accuracy_all")
    from align.evaluate.needle import grade_needle

    return grade_needle, ("retrieval",)


def _asked_by(ctx: Context, spec: SuiteSpec) -> dict[str, str | None]:
    """Content of the suite's file and of the judge's wording: runs are only compared where these are the same."""
    path = getattr(spec, "path", None)
    return {
        "file_sha256": FileHashes(ctx.process.run_dir / ".hashes.json").sha256(Path(path)) if path else None,
        "wording": templates_fingerprint() if isinstance(spec, JUDGED) else None,
    }


def run_suite(ctx: Context) -> None:
    """A suite's rows of all models, and its numbers with intervals."""
    name, spec = suite_of(ctx)
    models = suite_models(ctx.recipe, name)
    extra: Mapping[str, Any] = {}
    if isinstance(spec, PerplexitySpec):
        rows = _perplexity_rows(ctx, spec, models)
        tokens = {model: [row.weight for row in rows if row.model == model] for model in models}
        if others := [model for model in models if tokens[model] != tokens[models[0]]]:
            extra = {"notes": [f"other tokens than {models[0]}, so not comparable with it: {', '.join(others)}"]}
    elif isinstance(spec, JUDGED):
        battling = [m for m in models if not (isinstance(spec, ArenaSpec) and m == spec.baseline)]
        steps = {model: f"eval.suite.{name}.judge.{model}" for model in battling}
        rows = [row for step in steps.values() for row in ctx.rows(step, SuiteResult)]
        notes = {model: ctx.artifact(step).manifest.metrics.get("averages") for model, step in steps.items()}
        extra, models = ({"averages": notes} if any(notes.values()) else {}), battling
        if isinstance(spec, ArenaSpec):
            extra = battles_of(rows, battling, spec.baseline, seed=ctx.seed)
    else:
        rows, extra = _graded(ctx, name, spec, models)
    ctx.out.write_all(rows, [], asked=len(rows))
    ctx.finish(
        kind=spec.kind, items=len({row.item_id for row in rows}), models=models,
        metrics=summarize(rows, models, seed=ctx.seed), **_asked_by(ctx, spec), **extra,
    )  # fmt: skip


def _graded(ctx: Context, name: str, spec: SuiteSpec, models: Sequence[str]) -> tuple[list[SuiteResult], Mapping[str, Any]]:
    items = _items(ctx, spec)
    grade, metrics = _grading(spec)
    by_id = {item.id: item for item in items}
    rows: list[SuiteResult] = []
    for model in models:
        answers = _answers(ctx, name, model, items)
        for item in items:
            answer = answers[item.id]
            grades = (
                [Grade(metric=metric, value=math.nan, failure=answer.failure) for metric in metrics]
                if answer.failure
                else grade(item, answer.messages, answer.finish_reason)
            )
            rows += [_row(model, item, g.metric, "", g.value, g.weight, g.failure, "") for g in grades]
    extra: dict[str, Any] = {}
    if isinstance(spec, NeedleSpec):
        from align.evaluate.needle import heat_map

        extra["heat_maps"] = {
            model: {
                str(lang): heat_map([(by_id[r.item_id], r) for r in rows if r.model == model and r.lang == lang])
                for lang in spec.languages
            }
            for model in models
        }
    if isinstance(spec, SafetySpec):
        chances = [float(item.data["chance"]) for item in items]
        extra["notes"] = [f"guessing gets {sum(chances) / len(chances):.2f}"]
    return rows, extra


def _perplexity_rows(ctx: Context, spec: PerplexitySpec, models: Sequence[str]) -> list[SuiteResult]:
    """Nats per token of held-out documents under each model; a document weighs as many tokens as it has.

    Raises:
        UserError: no document is held out.
    """
    from align.train.data import DialogueExample
    from align.train.kl import sequence_logprobs

    shares = splits(ctx.recipe)
    documents = [d for d in ctx.stream("corpus", Document) if split_of(d.id, ctx.seed, shares) == "heldout"]
    documents = sorted(documents, key=lambda document: document.id)[: spec.limit or spec.documents]
    if not documents:
        raise UserError(f"{ctx.step.name}: no document is held out; raise splits.heldout or read more documents")
    rows = []
    for model in models:
        tokenizer = load_tokenizer(ctx.process.model_folder(model))
        examples = []
        for document in documents:
            ids = tokenizer.encode(document.text)[: spec.max_length]
            if len(ids) > 1:  # the first token has no context
                examples.append(DialogueExample(id=document.id, prompt_ids=tuple(ids[:1]), completion_ids=tuple(ids[1:])))
        found = sequence_logprobs(
            ctx.process.model_folder(model), examples, precision=ctx.recipe.evaluation.precision, label=f"perplexity {model}"
        )  # fmt: skip
        lengths = {example.id: len(example.completion_ids) for example in examples}
        for document in documents:
            item = Item(id=document.id, turns=(), category=document.lang, lang=document.lang)
            count = lengths.get(document.id, 0)
            value, failure = (-found[document.id] / count, "") if count else (math.nan, "too_short")
            rows.append(_row(model, item, "nats_per_token", "", value, float(count), failure, ""))
    return rows
