"""Reward models of a recipe at work: opened, checked, and asked for the score of every response of a step."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from align.core.artifact import write_json
from align.core.errors import UserError
from align.core.hashing import content_id
from align.core.journal import Journal
from align.core.progress import Progress
from align.core.records import read_jsonl
from align.core.rows import Instruction, Response, Score
from align.recipe.reward import (
    ClassifierSpec,
    ColumnSpec,
    EnsembleSpec,
    JudgeSpec,
    LeafSpec,
    RulesSpec,
)
from align.steps.by_prompt import ByPrompt, shard_count, shards_by_prompt
from align.steps.collected import collected_rows
from align.steps.context import Context, Process
from align.steps.data import run_judge_answers
from align.steps.judges import answers_judge, leaves
from data_gen.prompts import Prompts
from reward.interface import Group, RewardModel, score_groups

log = logging.getLogger(__name__)
JournalOf = Callable[[str], Journal]


def judge_folder(run_dir: Path, name: str, spec: ClassifierSpec) -> Path:
    """The folder of a classifier: trained by this run, or the recipe's own.

    Raises:
        UserError: it is to be trained, and is not yet.
    """
    folder = Path(spec.path) if spec.path else run_dir / f"reward/{name}/model"
    if spec.train and not folder.is_dir():
        raise UserError(f"reward model {name}: it is not trained yet; run `align reward` first")
    return folder


def _open_classifier(folder: Path, spec: ClassifierSpec) -> RewardModel:
    """A classifier that has passed its golden pairs."""
    from reward.golden import check_golden, load_checked, read_golden

    if spec.backend == "transformers":
        return load_checked(folder, precision=spec.precision, max_length=spec.max_length, layout=spec.layout)
    from reward.pooling import PoolingClassifier

    model = PoolingClassifier.load(folder, precision=spec.precision, max_length=spec.max_length)
    check_golden(model, read_golden(folder, spec.precision), precision=spec.precision, folder=folder)
    return model


def _open_leaf(
    process: Process, prompts: Prompts, name: str, spec: LeafSpec, journal_of: JournalOf | None, step: str
) -> RewardModel:
    from reward.length import LengthPenalty

    model: RewardModel
    if isinstance(spec, ClassifierSpec):
        model = _open_classifier(judge_folder(process.run_dir, name, spec), spec)
    elif isinstance(spec, JudgeSpec):
        from align.engines.complete import Writer
        from reward.judge import Judge

        writer = Writer(lambda: process.engine(spec.model), run_seed=process.recipe.seed)
        journal = journal_of(f"calls-{name}") if journal_of else None
        model = Judge(writer, prompts.render, mode=spec.mode, scale=spec.scale, journal=journal)
    elif isinstance(spec, RulesSpec):
        from reward.rules import Rules

        model = Rules({str(name): weight for name, weight in spec.weights.items()})
    elif isinstance(spec, ColumnSpec):
        from reward.column import Column

        model = Column(spec.file(step), spec.column)
    else:
        from reward.function import load_function

        model = load_function(Path(spec.path), spec.function)
    return LengthPenalty(model, spec.length_penalty) if spec.length_penalty else model


def open_judge(
    process: Process, prompts: Prompts, role: str, journal_of: JournalOf | None = None, step: str = ""
) -> RewardModel:
    """The reward model of a role, ready to score.

    Args:
        process: its run and engines.
        prompts: of generative judges.
        role: selector or validator.
        journal_of: opens a journal by name, where calls to generative judges are kept.
        step: stage1, stage2, ... or eval, where a recipe may have a file of scores for each.
    """
    spec = getattr(process.recipe.reward_models, role)
    opened = [_open_leaf(process, prompts, name, leaf, journal_of, step) for name, leaf in leaves(process.recipe, role)]
    if not isinstance(spec, EnsembleSpec):
        return opened[0]
    from reward.ensemble import Ensemble
    from reward.length import LengthPenalty

    whole = Ensemble(opened, spec.combine, variance_weight=spec.variance_weight, scales=spec.scales)
    return LengthPenalty(whole, spec.length_penalty) if spec.length_penalty else whole


def references_of(ctx: Context, role: str) -> Mapping[str, str]:
    """Right answers by the text of a prompt's last turn, of the check exact_answer.

    Raises:
        UserError: a line without prompt (or question) and answer, or two answers to one prompt.
    """
    found: dict[str, str] = {}
    for _, spec in leaves(ctx.recipe, role):
        if not isinstance(spec, RulesSpec) or spec.references is None:
            continue
        for line in read_jsonl(Path(spec.references)):
            record = line.record or {}
            prompt, answer = record.get("prompt", record.get("question")), record.get("answer")
            if not isinstance(prompt, str) or not isinstance(answer, str | int | float):
                raise UserError(f"{line.where}: no text under prompt (or question) and answer {line.reason}".rstrip())
            if found.setdefault(prompt.strip(), str(answer)) != str(answer):
                raise UserError(f"{line.where}: a second answer to one prompt")
    return found


def group_of(prompt: Instruction, responses: Sequence[Response], references: Mapping[str, str]) -> Group:
    """A prompt with its responses, as reward models read them."""
    return Group(
        id=prompt.id,
        prompt=prompt.messages,
        response_ids=tuple(r.id for r in responses),
        responses=tuple(r.text for r in responses),
        num_tokens=tuple(r.num_tokens for r in responses),
        lang=prompt.answer_lang,
        reference=references.get(prompt.messages[-1]["content"].strip(), ""),
    )


def run_score(ctx: Context) -> None:
    """One reward model's score for every response of a stage or of the evaluation."""
    role = ctx.step.name.rsplit(".", 1)[1]
    stage = ctx.recipe.stages[ctx.step.stage - 1] if ctx.step.stage else None
    prompts = ctx.prompts(stage.name if stage else "heldout", ctx.step.config["prompts"])
    collected = collected_rows(ctx) if f"stage{ctx.step.stage}.collected" in ctx.step.inputs else []
    spec = getattr(ctx.recipe.reward_models, role)
    samples = [name for name in ctx.step.inputs if ".sample." in name]
    model = open_judge(ctx.process, ctx.templates, role, ctx.out.journal, step=ctx.step.name.split(".")[0])
    _score(
        ctx, role, model, prompts, samples, [(item.prompt, item.responses) for item in collected],
        references_of(ctx, role), spec.length_calibration,
    )  # fmt: skip


def run_score_answers(ctx: Context) -> None:
    """A score for every candidate answer of the SFT split: a judge's marks, or a reward model's."""
    if ctx.recipe.answers.best_by == "judge":
        run_judge_answers(ctx)
        return
    spec = answers_judge(ctx.recipe)
    model = _open_classifier(Path(str(spec.path)), spec)
    _score(ctx, "answers", model, ctx.prompts("sft", None), ["respond"], [], {}, False)


Candidates = tuple[Instruction, Sequence[Response]]


def _score(
    ctx: Context,
    role: str,
    model: RewardModel,
    prompts: Sequence[Instruction],
    samples: Sequence[str],
    collected: Sequence[Candidates],
    references: Mapping[str, str],
    calibrate: bool,
) -> None:
    """Score shard by shard of prompts; the collected pairs are shards of their own at the end."""
    from reward.length import remove_length, within_prompt_slope

    first, shards = shard_count(prompts), shard_count(prompts, collected)
    total = sum(ctx.artifact(name).manifest.rows for name in samples) + sum(len(rows) for _, rows in collected)

    def groups_by_shard(bar: Progress | None) -> Iterator[tuple[int, list[Group], dict[str, float]]]:
        """Index, groups and scores of every unwritten shard; journals make a second round cheap."""
        streams = [ByPrompt(ctx.artifact(name), Response) for name in samples]
        for index, part, tables in shards_by_prompt(ctx, [prompt.id for prompt in prompts], streams, shards=shards):
            by_prompt: dict[str, list[Response]] = {}
            for record in pa.concat_tables(tables).to_pylist():
                by_prompt.setdefault(record["prompt_id"], []).append(Response(**record))
            groups = [group_of(p, by_prompt[p.id], references) for p in prompts[part] if p.id in by_prompt]
            yield index, groups, scored(index, groups, bar)
        for stream in streams:
            stream.end()
        for index, part, _ in shards_by_prompt(ctx, [prompt.id for prompt, _ in collected], [], first=first, shards=shards):
            groups = [group_of(prompt, rows, references) for prompt, rows in collected[part]]
            yield index, groups, scored(index, groups, bar)

    def scored(index: int, groups: Sequence[Group], bar: Progress | None) -> dict[str, float]:
        return score_groups(model, groups, journal=ctx.out.journal(f"scores-{index:05d}"), bar=bar)

    slope = 0.0
    written = sum(pq.ParquetFile(path).metadata.num_rows for path in ctx.out.folder.glob("data/*.parquet"))
    with Progress(f"score {role}", total, "responses", done=written) as bar:
        if calibrate:
            # Kept, since a resumed run sees only the shards that are left.
            known = ctx.out.work / "length_slope.json"
            if not known.is_file():
                values: list[float] = []
                tokens: list[int] = []
                of_prompt: list[str] = []
                for _, groups, scores in groups_by_shard(bar):
                    found = _columns(groups, scores)
                    values.extend(found[0])
                    tokens.extend(found[1])
                    of_prompt.extend(found[2])
                write_json(known, within_prompt_slope(values, tokens, of_prompt))
            slope = json.loads(known.read_text("utf-8"))
        for index, groups, scores in groups_by_shard(None if calibrate else bar):
            if slope:
                flat = remove_length(*_columns(groups, scores), slope)
                scores = dict(zip([i for g in groups for i in g.response_ids], map(float, flat), strict=True))
            rows = [
                Score(id=content_id("score", role, i), response_id=i, prompt_id=g.id, reward_model=role, score=scores[i])
                for g in groups
                for i in g.response_ids
            ]
            ctx.out.write_shard(index, rows, [], asked=len(rows))
    _refuse_constant(ctx, role)
    ctx.finish(**({"length_slope": slope} if calibrate else {}), **getattr(model, "counts", {}))


def _columns(groups: Sequence[Group], scores: Mapping[str, float]) -> tuple[list[float], list[int], list[str]]:
    """Score, tokens and prompt of every response."""
    rows = [(scores[i], n, g.id) for g in groups for i, n in zip(g.response_ids, g.num_tokens, strict=True)]
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def _refuse_constant(ctx: Context, role: str) -> None:
    """Raises:
    UserError: all responses have one score, or none has any.
    """
    found: set[float] = set()
    count = 0
    for path in sorted(ctx.out.folder.glob("data/*.parquet")):
        column = pq.read_table(path, columns=["score"])["score"].to_pylist()
        count += len(column)
        found |= {score for score in column if not math.isnan(score)}
        if len(found) > 1:
            return
    if count > 1:
        # A check may apply to no held-out prompt; by then everything is trained, and the table shows what there is.
        what = f"the score {found.pop():g}" if found else "no score that is a number"
        message = (
            f"{ctx.step.name}: the {role} gives all {count} responses {what}; it cannot rank them. Check its head and its "
            "chat template, or train it longer"
        )
        if ctx.step.name.startswith("eval."):
            log.warning("%s", message)
        else:
            raise UserError(message)
