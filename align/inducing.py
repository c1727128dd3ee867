"""`align induce`: a taxonomy proposed from a run's documents."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from pathlib import Path

from align.core.artifact import Artifact, read_rows
from align.core.errors import UserError
from align.core.hashing import short_hash
from align.core.rows import Document
from align.engines.complete import Ask, Asking, Job, Unusable, Writer, ask_parsed
from align.engines.protocol import Sampling
from align.recipe.base import BASE_MODEL
from align.runner import Run, execute
from align.steps.context import Process
from align.steps.outside import load_prompts
from data_gen.induce import Namer, induce, side_by_side, write_tree
from data_gen.prompts import Prompts, fields, read_object

SAMPLE = 20_000  # documents that grouping holds in memory
NAMING = Sampling(temperature=0.0, max_tokens=96)


def induce_taxonomy(run: Run, out: Path, *, by_model: bool, say: Callable[[str], None]) -> None:
    """Read the recipe's documents (the step `corpus`, run first where it does not stand) and write a tree to edit.

    Args:
        by_model: the base model names the topics; else their terms do.

    Raises:
        UserError: `out` is there already, or no document came through.
    """
    if out.exists():
        raise UserError(f"induce: {out} is already there; name another file with --out")
    execute(run, ["corpus"], say)
    folder = Artifact(run.run_dir / "corpus").folder
    # By hash of the id, which may be the user's own: an unbiased sample, and the same one every time.
    documents = heapq.nsmallest(SAMPLE, read_rows(folder, Document), key=lambda document: short_hash(document.id))
    prompts = load_prompts(run.recipe)
    process = Process(run.recipe, run.run_dir, {step.name: step for step in run.steps()})
    try:
        trees = [
            induce(documents, lang, seed=run.recipe.seed, namer=_namer(process, prompts, lang) if by_model else None)
            for lang in run.recipe.corpus.languages
            if any(document.lang == lang for document in documents)
        ]
    finally:
        process.close()
    if not trees:
        raise UserError("induce: no document came through; see the rejects of the step corpus")
    write_tree(out, side_by_side(trees))
    leaves = sum(len(field["children"]) for tree in trees for domain in tree["nodes"] for field in domain["children"])
    say(f"wrote {out}: {leaves} topics from {len(documents)} documents. Edit it, then name it under taxonomy.path")


def _namer(process: Process, prompts: Prompts, lang: str) -> Namer:
    writer = Writer(lambda: process.engine(BASE_MODEL), run_seed=process.recipe.seed)

    def name(terms: Sequence[str], examples: Sequence[str]) -> tuple[str, str]:
        ask = Ask(
            id=", ".join(terms),
            purpose="name-topic",
            messages=prompts.render(
                "name-topic", lang, terms=", ".join(terms), examples="\n".join(f"- {text}" for text in examples)
            ),
            sampling=NAMING,
            json_schema=fields("name", "definition"),
        )

        def job() -> Asking[tuple[str, str] | Unusable]:
            return (yield from ask_parsed(ask, parse_name, 1))

        ((_, found),) = writer.run([Job(key=lang, asking=job())], label="name a topic", total=1, unit="topics")
        # What the model leaves unnamed is named by its terms.
        return ("", "") if isinstance(found, Unusable) else found

    return name


def parse_name(text: str) -> tuple[str, str]:
    """Name and definition in a model's JSON.

    Raises:
        ValueError: not JSON of the agreed shape.
    """
    data = read_object(text)
    if not all(isinstance(data.get(key), str) for key in ("name", "definition")):
        raise ValueError("no name and definition")
    return data["name"], data["definition"]
