"""From documents to the SFT set: what each data step does with its inputs."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path

import pyarrow.parquet as pq

from align.core.artifact import reject_duplicates
from align.core.rows import Document, Instruction, Knowledge, Reject, Response, SftExample, Topic, to_table
from align.sample import response_rows
from align.steps.context import Context, engine_metrics, of_language, sampling
from align.steps.table import splits
from data_gen import answers, evolve, instruct, knowledge
from data_gen.corpus import Reading, Rules
from data_gen.sources import count_records, read_dataset, read_files, renamed
from data_gen.taxonomy import Taxonomy, TopicIndex, load_taxonomy

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


def run_taxonomy(ctx: Context) -> None:
    """Documents to knowledge units in their topics; `topics.parquet` beside the rows holds the tree with its counts."""
    spec = ctx.recipe.taxonomy
    tree = _tree(ctx)
    index = {lang: TopicIndex(tree, lang) for lang in sorted(ctx.artifact("corpus").manifest.metrics["by_language"])}
    engine = chat = None
    for shard, part in ctx.pending("corpus", Document):
        asked = [d for d in part if of_language(spec.extraction, d.lang) == "model"]
        answered = {}
        if asked:
            engine, chat = ctx.base()
            answered = knowledge.ask_for_facts(
                engine, chat, asked, count=spec.units_per_document, sampling=sampling(spec.sampling), run_seed=ctx.seed,
                journal=ctx.out.journal(f"calls-{shard.index:05d}"),
            )  # fmt: skip
        rows: list[Knowledge] = []
        rejects: list[Reject] = []
        for document in part:
            kept, dropped = knowledge.knowledge_rows(
                document, answered.get(document.id), chat, index, count=spec.units_per_document,
                min_grounding=spec.min_grounding, min_similarity=spec.min_similarity,
            )  # fmt: skip
            rows += kept
            rejects += dropped
        ctx.out.write_shard(shard.index, rows, rejects, asked=len(part) * spec.units_per_document)
    units = [k for path in sorted(ctx.out.folder.glob("data/*.parquet")) for k in pq.read_table(path).to_pylist()]
    counts = Counter(k["topic_id"] for k in units)
    pq.write_table(to_table(Topic, tree.topic_rows(counts)), ctx.out.folder / "topics.parquet")
    filled = sum(1 for leaf in tree.leaves if counts[leaf.id])
    ctx.finish(topics=len(tree.leaves), topics_filled=filled, **engine_metrics(engine))


def run_instruct(ctx: Context) -> None:
    """Knowledge units to generation-0 instructions."""
    spec = ctx.recipe.instructions
    topics = {leaf.id: leaf for leaf in _tree(ctx).leaves}
    shares = splits(ctx.recipe)
    wanted = [
        (unit, task_type)
        for unit in ctx.rows("taxonomy", Knowledge)
        for task_type in instruct.task_types_of(unit, spec.task_types, of_language(spec.per_unit, unit.lang), ctx.seed)
    ]
    engine = chat = None
    for shard in ctx.out.pending(len(wanted)):
        numbered = instruct.enumerate_asks(wanted)[shard.start : shard.stop]
        asked = [wish for _, wish in numbered if of_language(spec.writer, wish[0].lang) == "model"]
        answered = {}
        if asked:
            engine, chat = ctx.base()
            answered = instruct.ask_for_instructions(
                engine, chat, [(n, w) for n, w in numbered if of_language(spec.writer, w[0].lang) == "model"],
                sampling=sampling(spec.sampling), run_seed=ctx.seed, journal=ctx.out.journal(f"calls-{shard.index:05d}"),
            )  # fmt: skip
        made = [
            instruct.instruction_or_reject(
                unit, task_type, number, answered.get(instruct.ask_id(unit, task_type, number)), chat,
                topics[unit.topic_id], instruct.split_of(unit.document_id, ctx.seed, shares),
            )
            for number, (unit, task_type) in numbered
        ]  # fmt: skip
        rows, repeated = reject_duplicates(
            [row for row in made if isinstance(row, Instruction)], key=_text, raw=_text, reason="duplicate"
        )
        rejects = [row for row in made if isinstance(row, Reject)] + repeated
        ctx.out.write_shard(shard.index, rows, rejects, asked=len(numbered))
    ctx.finish(**engine_metrics(engine))


def _text(row: Instruction) -> str:
    return row.messages[-1]["content"]


def run_evolve(ctx: Context) -> None:
    """The pool after evolution: every parent, and every child that the eliminator let pass."""
    spec = ctx.recipe.evolution
    asked = ctx.artifact("instruct").manifest.rows
    # A prompt that two documents led to must not stand in two splits.
    pool, rejects = reject_duplicates(ctx.rows("instruct", Instruction), key=_text, raw=_text, reason="duplicate")
    texts = {_text(row) for row in pool}
    engine = None
    generation = pool
    for number in range(1, spec.rounds + 1):
        chosen = evolve.choose(
            generation, operators=spec.operators, share=spec.share, round_number=number, run_seed=ctx.seed
        )
        if chosen := _by_model(ctx, chosen):
            engine, chat = ctx.base()
            answered = evolve.ask_for_children(
                engine, chat, chosen, round_number=number, sampling=sampling(spec.sampling), run_seed=ctx.seed,
                journal=ctx.out.journal(f"calls-{number}"),
            )  # fmt: skip
            children = []
            for parent, operator in chosen:
                child = evolve.child_or_reject(parent, operator, answered[parent.id], chat)
                if isinstance(child, Instruction) and _text(child) in texts:
                    child = Reject(id=child.id, reason="duplicate", raw=_text(child))
                if isinstance(child, Reject):
                    rejects.append(child)
                else:
                    texts.add(_text(child))
                    children.append(child)
            asked += len(chosen)
            pool = [*pool, *children]
            generation = [*generation, *children]
    pool, contaminated = ctx.clean(pool, texts_of)
    ctx.out.write_all(pool, rejects + contaminated, asked=asked)
    by_generation = Counter(row.generation for row in pool)
    mean = {g: round(sum(r.difficulty for r in pool if r.generation == g) / n, 4) for g, n in sorted(by_generation.items())}
    ctx.finish(
        by_generation={str(g): n for g, n in sorted(by_generation.items())},
        mean_difficulty={str(g): value for g, value in mean.items()},
        by_split=dict(Counter(row.split for row in pool)),
        **engine_metrics(engine),
    )


def _by_model(ctx: Context, chosen: list[tuple[Instruction, str]]) -> list[tuple[Instruction, str]]:
    """Only languages that the base model writes are evolved by it."""
    writer = ctx.recipe.instructions.writer
    return [(row, operator) for row, operator in chosen if of_language(writer, row.lang) == "model"]


def run_respond(ctx: Context) -> None:
    """Answers to the SFT split."""
    spec = ctx.recipe.answers
    instructions = ctx.prompts("sft", None)
    units = {k.id: k for k in ctx.rows("taxonomy", Knowledge)}
    needed = {units[i.knowledge_id].document_id for i in instructions}
    documents = {d.id: d.text for d in ctx.stream("corpus", Document) if d.id in needed}
    facts = {k.id: k.statement for k in units.values()} if spec.grounded else None
    engine = None
    for shard in ctx.out.pending(len(instructions)):
        part = instructions[shard.start : shard.stop]
        asked = [i for i in part if of_language(spec.writer, i.lang) == "model"]
        rows: list[Response] = []
        rejects: list[Reject] = []
        if asked:
            engine, chat = ctx.base()
            answered = answers.ask_for_answers(
                engine, chat, asked, facts, candidates=spec.candidates, sampling=sampling(spec.sampling),
                run_seed=ctx.seed, journal=ctx.out.journal(f"calls-{shard.index:05d}"),
            )  # fmt: skip
            for instruction in asked:
                kept, dropped = response_rows(instruction.id, "base", answered[instruction.id], chat, spec.candidates)
                rows += kept
                rejects += dropped
        taken = [i for i in part if of_language(spec.writer, i.lang) == "document"]
        for instruction in taken:
            unit = units[instruction.knowledge_id]
            passage = answers.passage_from(documents[unit.document_id], unit.statement, spec.passage_chars)
            rows.append(answers.document_response(instruction, passage))
        ctx.out.write_shard(shard.index, rows, rejects, asked=len(asked) * spec.candidates + len(taken))
    ctx.finish(**engine_metrics(engine))


def run_sft_data(ctx: Context) -> None:
    """Answers that pass become the SFT set; each instruction of the split ends as a row or a reject."""
    rows, rejects = answers.sft_set(
        ctx.prompts("sft", None), ctx.rows("respond", Response), max_repetition=ctx.recipe.answers.max_repetition
    )
    rows, contaminated = ctx.clean(rows, texts_of)
    rejects += contaminated
    ctx.out.write_all(rows, rejects, asked=len(rows) + len(rejects))
    ctx.finish(by_language=dict(Counter(row.lang for row in rows)), by_license=dict(Counter(row.license for row in rows)))


def texts_of(row: Instruction | SftExample) -> list[str]:
    """What is searched for test items: every turn."""
    return [message["content"] for message in row.messages]
