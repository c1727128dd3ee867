"""From documents to the SFT set: what each data step does with its inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from align.core.artifact import read_rows
from align.core.errors import UserError
from align.core.hashing import short_hash
from align.core.rows import Document, Instruction, Knowledge, Made, Reject, Response, Score, SftExample, Topic, to_table
from align.engines.complete import Asking, Job, Writer
from align.recipe.base import BASE_MODEL
from align.steps.asked import splits, task_types, written_languages
from align.steps.context import Context, InStep, by_language, sampling
from align.steps.outside import model_path
from data_gen import answers, auto_evolve, dialogue, evolve, instruct, knowledge, tasks
from data_gen.corpus import Reading, Rules
from data_gen.coverage import entropy, histogram
from data_gen.embedding import Embedder
from data_gen.novelty import Novelty
from data_gen.placement import TopicIndex
from data_gen.sources import count_records, read_dataset, read_files, renamed
from data_gen.taxonomy import Taxonomy, load_taxonomy

DOCUMENT_SHARD = 4096  # records: some ten megabytes


def run_corpus(ctx: Context) -> None:
    """Documents in."""
    spec, quality = ctx.recipe.corpus, ctx.recipe.quality
    rules = Rules(
        languages=spec.languages, allow_licenses=spec.allow_licenses, min_chars=spec.min_chars, max_chars=spec.max_chars,
        filters=quality.filters, mask_pii=spec.pii == "mask", run_seed=ctx.seed,
    )  # fmt: skip
    reading = Reading(ctx.out.work / "read", rules, shard_size=DOCUMENT_SHARD, near_duplicates=quality.near_duplicates)
    streams = [read_files(ctx.step.files), *(read_dataset(d.path, d.name, d.split) for d in spec.datasets)]
    total = None if spec.datasets else count_records(ctx.step.files)
    reading.read(renamed(chain.from_iterable(streams), spec.columns), total)
    todo = {shard.index for shard in ctx.out.pending(reading.records, DOCUMENT_SHARD)}
    by_language: Counter[str] = Counter()
    by_license: Counter[str] = Counter()
    for index, (rows, rejects) in enumerate(reading.shards(spec.limit)):
        by_language.update(row.lang for row in rows)
        by_license.update(row.license for row in rows)
        if index in todo:
            ctx.out.write_shard(index, rows, rejects, asked=len(rows) + len(rejects))
    ctx.finish(
        cut=sum(shard["cut"] for shard in reading.counts), pii=dict(sorted(reading.total("pii").items())),
        by_language=dict(by_language), by_license=dict(by_license),
    )  # fmt: skip


def _tree(ctx: Context) -> Taxonomy:
    path = ctx.recipe.taxonomy.path
    return load_taxonomy(Path(path) if path else None)


def _flat(made: Sequence[Made]) -> tuple[list[Any], list[Reject]]:
    """All rows, and all rejects."""
    return [row for m in made for row in m.rows], [reject for m in made for reject in m.rejects]


def run_taxonomy(ctx: Context) -> None:
    """Documents to knowledge units in their topics; `topics.parquet` beside the rows holds the tree with its counts."""
    spec = ctx.recipe.taxonomy
    tree = _tree(ctx)
    index = {}
    for lang in sorted(ctx.artifact("corpus").manifest.metrics["by_language"]):
        encoder = by_language(spec.embedders).get(lang)
        index[lang] = TopicIndex(tree, lang, Embedder(model_path(encoder)) if encoder else None)
    rules = knowledge.UnitRules(
        count=spec.units_per_document, extraction=by_language(spec.extraction), min_grounding=spec.min_grounding,
        min_similarity=spec.min_similarity, neighbours=spec.neighbours, placement=spec.placement, shortlist=spec.shortlist,
        tries=spec.tries, sampling=sampling(spec.sampling),
    )  # fmt: skip

    def jobs_of(part: list[Document]) -> list[Asking[Made]]:
        return knowledge.unit_jobs(part, index, ctx.templates, rules)

    count = ctx.artifact("corpus").manifest.rows
    for shard, part, made in ctx.generate(ctx.stream("corpus", Document), count, BASE_MODEL, jobs_of, unit="documents"):
        ctx.write_made(shard, part, made, *_flat(made))
    counts = Counter(unit.topic_id for unit in read_rows(ctx.out.folder, Knowledge))
    pq.write_table(to_table(Topic, tree.topic_rows(counts)), ctx.out.folder / "topics.parquet")
    filled = sum(1 for leaf in tree.leaves if counts[leaf.id])
    ctx.finish(
        topics=len(tree.leaves), topics_filled=filled, entropy=entropy(counts.values()), **ctx.engine_flags(BASE_MODEL)
    )


def run_instruct(ctx: Context) -> None:
    """Knowledge units to generation-0 instructions, and dialogues that follow them up."""
    spec, answering = ctx.recipe.instructions, ctx.recipe.answers
    tree = _tree(ctx)
    topics = {leaf.id: leaf for leaf in tree.leaves}
    shares = splits(ctx.recipe)
    asked = tasks.WishRules(
        per_unit=by_language(spec.per_unit), task_types=task_types(ctx.recipe), per_topic=spec.per_topic,
        max_per_unit=spec.max_per_unit,
        topic_weights=spec.topic_weights, personas=spec.personas, levels=spec.levels, system_prompts=spec.system_prompts,
    )  # fmt: skip
    rules = instruct.WritingRules(writer=by_language(spec.writer), sampling=sampling(spec.sampling))
    talking = dialogue.DialogueRules(
        share=spec.multi_turn, grounded=answering.grounded, max_repetition=answering.max_repetition,
        answer_sampling=sampling(answering.sampling), sampling=sampling(spec.sampling),
    )  # fmt: skip
    in_topic = Counter((unit.topic_id, unit.lang) for unit in ctx.stream("taxonomy", Knowledge))
    documents = InStep(ctx.stream("corpus", Document))
    people = {str(lang): ctx.templates.lines("personas", lang) for lang in ctx.recipe.corpus.languages}
    systems = {str(lang): ctx.templates.lines("system-prompts", lang) for lang in ctx.recipe.corpus.languages}

    def job(unit: Knowledge) -> Asking[Made]:
        topic, lang = topics[unit.topic_id], unit.lang
        passage = instruct.passage_around(documents.get(unit.document_id).text, unit, spec.passage_chars)
        split = instruct.split_of(unit.document_id, ctx.seed, shares)
        subject = instruct.Subject(unit=unit, topic=topic, passage=passage, split=split)
        number = tasks.number_of_wishes(unit, topic.path, in_topic[unit.topic_id, lang], asked, ctx.seed)
        wanted = list(tasks.wishes(unit, number, asked, people[lang], systems[lang], ctx.seed))
        return _unit_instructions(ctx, subject, wanted, rules, talking)

    def jobs_of(part: list[Knowledge]) -> list[Asking[Made]]:
        return [job(unit) for unit in part]

    seen = _Seen(ctx, spec.novelty)
    count = ctx.artifact("taxonomy").manifest.rows
    for shard, part, made in ctx.generate(ctx.stream("taxonomy", Knowledge), count, BASE_MODEL, jobs_of, unit="units"):
        rows, rejects = _flat(made)
        rows, repeated = seen.new(rows)
        ctx.write_made(shard, part, made, rows, rejects + repeated)
    ctx.finish(asked_by_topic=ctx.asked_by_topic(), **_counts(ctx), **ctx.engine_flags(BASE_MODEL))


def _unit_instructions(
    ctx: Context, subject: instruct.Subject, wanted: list[tasks.Wish], rules: instruct.WritingRules,
    talking: dialogue.DialogueRules,
) -> Asking[Made]:  # fmt: skip
    first = yield from instruct.instruction_job(subject, wanted, ctx.templates, rules, ctx.seed)
    if subject.unit.lang not in written_languages(ctx.recipe):
        return first
    then = yield from dialogue.follow_ups(first.rows, subject.unit.statement, ctx.templates, talking, ctx.seed)
    return Made(rows=[*first.rows, *then.rows], rejects=[*first.rejects, *then.rejects], asked=first.asked + then.asked)


class _Seen:
    """What was asked before: an instruction is new if its text is, and if its wording is not nearly that of another.

    What was kept by shards of an earlier run is read back from them.
    """

    def __init__(self, ctx: Context, novelty: float | None) -> None:
        self._texts: set[int] = set()
        self._wordings = Novelty(novelty) if novelty else None
        for row in read_rows(ctx.out.folder, Instruction):
            self._keep(row)

    def _compared(self, row: Instruction) -> bool:
        """Templates are alike on purpose; a follow-up is short, and its meaning is in the turns before it."""
        return self._wordings is not None and row.operator not in ("template", "follow_up")

    def _keep(self, row: Instruction) -> None:
        self._texts.add(short_hash(instruct.asked_text(row)))
        if self._wordings is not None and self._compared(row):
            self._wordings.add(instruct.asked_text(row), row.lang)

    def new(self, rows: Sequence[Instruction]) -> tuple[list[Instruction], list[Reject]]:
        kept: list[Instruction] = []
        rejects: list[Reject] = []
        gone: set[str] = set()
        for row in rows:
            text = instruct.asked_text(row)
            reason, raw = "", text
            if row.parent_id in gone:
                reason = "parent_rejected"
            elif short_hash(text) in self._texts:
                reason = "duplicate"
            elif self._wordings is not None and self._compared(row):
                like, value = self._wordings.nearest(text, row.lang)
                if like:
                    reason, raw = "not_novel", f"{text} ~ {like} ({value:.2f})"
            if reason:
                gone.add(row.id)
                rejects.append(Reject(id=row.id, reason=reason, raw=raw, topic_id=row.topic_id))
            else:
                self._keep(row)
                kept.append(row)
        return kept, rejects


def run_evolve(ctx: Context) -> None:
    """The pool after evolution: every parent, and every child that the eliminators let pass."""
    spec = ctx.recipe.evolution
    languages = written_languages(ctx.recipe)
    rules = evolve.EvolutionRules(
        rounds=spec.rounds, operators=spec.operators, share=spec.share, judge=spec.judge, tries=spec.tries,
        sampling=sampling(spec.sampling), methods=_methods(ctx),
    )  # fmt: skip
    units = InStep(ctx.stream("taxonomy", Knowledge))

    def jobs_of(part: list[Instruction]) -> list[Asking[Made]]:
        return [
            evolve.evolution_job(row, units.get(row.knowledge_id).statement, ctx.templates, rules, ctx.seed)
            if row.lang in languages
            else _as_it_is(row)
            for row in part
        ]

    seen = _Seen(ctx, None)
    count = ctx.artifact("instruct").manifest.rows
    rows = ctx.stream("instruct", Instruction)
    for shard, part, made in ctx.generate(rows, count, BASE_MODEL, jobs_of, unit="instructions"):
        pool, rejects = _flat(made)
        # First, since a row that goes for it is not there when its text comes again.
        pool, contaminated = ctx.clean_shard(shard.index, pool, texts_of)
        pool, repeated = seen.new(pool)
        ctx.write_made(shard, part, made, pool, rejects + repeated + contaminated)
    ctx.certify()
    ctx.finish(asked_by_topic=ctx.asked_by_topic(), **_counts(ctx), **ctx.engine_flags(BASE_MODEL))


def _as_it_is(row: Instruction) -> Asking[Made]:
    yield from ()
    return Made(rows=[row], asked=1)


def _methods(ctx: Context) -> dict[str, str]:
    """The evolving method of the operator auto by language: the shipped one, or the best of those tried."""
    spec = ctx.recipe.evolution
    languages = written_languages(ctx.recipe)
    if evolve.AUTO not in spec.operators:
        return {}
    if spec.auto is None:
        return {lang: ctx.templates.render("auto-method", lang)[-1]["content"] for lang in languages}
    jobs = []
    journal = ctx.out.journal("auto")
    for lang in languages:
        dev = _dev_set(ctx, lang, spec.auto.dev)
        if not dev:
            raise UserError(f"evolution.auto: no instruction in {lang} to try methods on")
        asking = auto_evolve.optimised(
            dev, ctx.templates, rounds=spec.auto.rounds, candidates=spec.auto.candidates, sampling=sampling(spec.sampling),
            optimiser_sampling=sampling(spec.sampling.model_copy(update={"max_tokens": spec.auto.max_tokens})),
        )  # fmt: skip
        jobs.append(Job(key=lang, asking=asking, journal=journal))
    engine = Writer(lambda: ctx.process.engine(BASE_MODEL), run_seed=ctx.seed)
    found = dict(engine.run(jobs, label="evolving methods", total=len(jobs), unit="languages"))
    for lang, methods in found.items():
        ctx.write_json(f"method-{lang}.json", auto_evolve.report(methods))
    return {lang: methods[0].text for lang, methods in found.items()}


def _dev_set(ctx: Context, lang: str, size: int) -> list[tuple[Instruction, str]]:
    """The instructions with the lowest ids (hashes, so an unbiased choice), each with the statement of its unit."""
    operators = (evolve.AUTO,)
    rows = [r for r in ctx.stream("instruct", Instruction) if r.lang == lang and evolve.operators_for(r, operators)]
    chosen = {row.id for row in sorted(rows, key=lambda r: r.id)[:size]}
    units = InStep(ctx.stream("taxonomy", Knowledge))
    return [(row, units.get(row.knowledge_id).statement) for row in rows if row.id in chosen]


def _counts(ctx: Context) -> dict[str, object]:
    """What the manifest says of instructions: how many of what, and how hard they are by generation."""
    by: dict[str, Counter[str]] = {"task_type": Counter(), "operator": Counter(), "lang": Counter(), "split": Counter()}
    marks: dict[int, dict[str, list[float]]] = {}
    turns: Counter[str] = Counter()
    system = personas = 0
    for row in read_rows(ctx.out.folder, Instruction):
        for name, counter in by.items():
            counter[getattr(row, name)] += 1
        turns[str(sum(message["role"] == "user" for message in row.messages))] += 1
        system += row.messages[0]["role"] == "system"
        personas += bool(row.persona)
        of = marks.setdefault(row.generation, {"difficulty": [], "judged_difficulty": [], "judged_quality": []})
        of["difficulty"].append(row.difficulty)
        if row.judged_difficulty:
            of["judged_difficulty"].append(row.judged_difficulty)
            of["judged_quality"].append(row.judged_quality)
    generations = {
        str(generation): {"count": len(of["difficulty"]), **{name: histogram(name, values) for name, values in of.items()}}
        for generation, of in sorted(marks.items())
    }
    return {
        **{f"by_{name}": dict(sorted(counter.items())) for name, counter in by.items()},
        "by_turns": dict(sorted(turns.items())), "with_system_prompt": system, "with_persona": personas,
        "generations": generations,
    }  # fmt: skip


def run_respond(ctx: Context) -> None:
    """Answers to the SFT split."""
    spec = ctx.recipe.answers
    instructions = ctx.prompts("sft", None)
    needed = {i.knowledge_id for i in instructions}
    units = {k.id: k for k in ctx.stream("taxonomy", Knowledge) if k.id in needed}
    of_document = {unit.document_id for unit in units.values()}
    documents = {d.id: d.text for d in ctx.stream("corpus", Document) if d.id in of_document}
    rules = answers.AnswerRules(
        writer=by_language(spec.writer), grounded=spec.grounded, candidates=spec.candidates, sampling=sampling(spec.sampling)
    )

    def job(instruction: Instruction) -> Asking[Made]:
        unit = units[instruction.knowledge_id]
        passage = instruct.passage_around(documents[unit.document_id], unit, spec.passage_chars)
        source = answers.Source(fact=unit.statement, passage=passage)
        return answers.answer_job(instruction, source, ctx.templates, rules)

    def jobs_of(part: list[Instruction]) -> list[Asking[Made]]:
        return [job(instruction) for instruction in part]

    rows: Iterator[Instruction] = iter(instructions)
    for shard, part, made in ctx.generate(rows, len(instructions), BASE_MODEL, jobs_of, unit="prompts"):
        ctx.write_made(shard, part, made, *_flat(made))
    ctx.finish(**ctx.engine_flags(BASE_MODEL))


def run_judge_answers(ctx: Context) -> None:
    """A judge's mark for each candidate answer."""
    spec = ctx.recipe.answers
    instructions = {i.id: i for i in ctx.prompts("sft", None)}

    def jobs_of(part: list[Response]) -> list[Asking[Made]]:
        return [answers.score_job(instructions[r.prompt_id], r, ctx.templates, evolve.JUDGE_SAMPLING, 1) for r in part]

    count = ctx.artifact("respond").manifest.rows
    for shard, part, made in ctx.generate(ctx.stream("respond", Response), count, BASE_MODEL, jobs_of, unit="answers"):
        ctx.write_made(shard, part, made, *_flat(made))
    ctx.finish(best_by=spec.best_by, **ctx.engine_flags(BASE_MODEL))


def run_sft_data(ctx: Context) -> None:
    """Answers that pass become the SFT set; each instruction of the split ends as a row or a reject."""
    spec = ctx.recipe.answers
    scores = None
    if spec.best_by != "first":
        scores = {score.response_id: score.score for score in ctx.rows("respond.score", Score)}
    prompts = ctx.prompts("sft", None)
    rows, rejects = answers.sft_set(
        prompts, ctx.rows("respond", Response), max_repetition=spec.max_repetition, scores=scores
    )
    rows, contaminated = ctx.clean(rows, texts_of)
    rejects += contaminated
    asked = Counter(prompt.topic_id for prompt in prompts)
    ctx.out.write_all(rows, rejects, asked=len(prompts))
    ctx.finish(
        asked_by_topic=dict(sorted(asked.items())),
        by_language=dict(Counter(row.lang for row in rows)),
        by_license=dict(Counter(row.license for row in rows)),
    )


def texts_of(row: Instruction | SftExample) -> list[str]:
    """What is searched for test items: every turn."""
    return [message["content"] for message in row.messages]
