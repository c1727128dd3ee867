"""What a step's function gets: the recipe, its inputs, its folder, and the engine its process keeps open."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from align.core.artifact import Artifact, Manifest, Shard, StepFolder, read_rows, write_json
from align.core.chat import Chat
from align.core.errors import UserError
from align.core.hashing import FileHashes
from align.core.journal import Journal
from align.core.rows import Instruction, Made, Reject
from align.engines.complete import Asking, Job, Writer
from align.engines.open import open_engine
from align.engines.protocol import Engine, Sampling, TakesWeights
from align.recipe.base import SamplingSpec
from align.recipe.schema import Recipe
from align.steps.outside import engine_kind, load_prompts, model_path
from align.steps.step import Step, training_step
from align.steps.table import benchmark_files
from data_gen.decontaminate import CERTIFICATE, Decontamination
from data_gen.prompts import Prompts

log = logging.getLogger(__name__)
R = TypeVar("R", bound=Any)
V = TypeVar("V")


def sampling(spec: SamplingSpec) -> Sampling:
    """The engine's sampling options of a recipe section."""
    return Sampling(
        temperature=spec.temperature,
        top_p=spec.top_p,
        min_p=spec.min_p,
        max_tokens=spec.max_tokens,
        repetition_penalty=spec.repetition_penalty,
    )


def by_language(given: Mapping[Any, V]) -> dict[str, V]:
    """What a recipe says by language."""
    return dict(given)


class InStep:
    """Rows of a stream by id, for a caller that asks for them in the stream's own order; one row in memory."""

    def __init__(self, rows: Iterator[Any]) -> None:
        self._rows = rows
        self._row: Any = None

    def get(self, row_id: str) -> Any:
        """The row with this id, which is the last one that was asked for or comes after it."""
        while self._row is None or self._row.id != row_id:
            self._row = next(self._rows)
        return self._row


@dataclass
class Process:
    """What lives as long as a process: the engine of one model, opened when a step first asks for it."""

    recipe: Recipe
    run_dir: Path
    steps: dict[str, Step]
    _open: dict[str, tuple[Engine, Chat]] = field(default_factory=dict)

    def model_folder(self, name: str) -> Path:
        """The folder of `base`, of another model of the recipe, of M0, M1, ... or of a snapshot such as M1@1."""
        step = training_step(self.recipe, name)
        if step is None:
            return model_path(self.recipe.models[name])
        folder = self.run_dir / self.steps[step].folder
        _, _, number = name.partition("@")
        return sorted(folder.glob("snapshots/step-*"))[int(number) - 1] if number else folder / "model"

    def chat(self, name: str) -> Chat:
        """The tokenizer and template of a model."""
        return self._open[name][1] if name in self._open else Chat.load(self.model_folder(name))

    def engine(self, name: str) -> tuple[Engine, Chat]:
        """The engine of a model. One that is open goes on with its weights, or is closed first: memory holds one model."""
        if name not in self._open:
            spec, folder = self.recipe.engine, self.model_folder(name)
            chat = Chat.load(folder)
            for before, (opened, _) in self._open.items():
                if isinstance(opened, TakesWeights) and opened.take_weights(folder):
                    log.info("engine: it goes on with the weights of %s in place of %s", name, before)
                    self._open = {name: (opened, chat)}
                    return self._open[name]
            self.close()
            engine = open_engine(
                engine_kind(self.recipe),
                folder,
                chat=chat,
                dtype=spec.dtype,
                max_model_len=spec.max_model_len,
                max_num_seqs=spec.max_num_seqs,
                gpu_memory_utilization=spec.gpu_memory_utilization,
                base_url=spec.base_url,
                model_name=spec.model_names.get(name, name),
                api_key_env=spec.api_key_env,
                max_concurrency=spec.max_concurrency,
                timeout_s=spec.timeout_s,
                max_retries=spec.max_retries,
                replay_path=Path(spec.replay_path) if spec.replay_path else None,
                record_with=spec.record_with,
                model_fingerprint=FileHashes(self.run_dir / ".hashes.json").model(folder),
            )
            self._open[name] = (engine, chat)
        return self._open[name]

    def opened(self, name: str) -> Engine | None:
        """The engine of a model where it is open."""
        return self._open[name][0] if name in self._open else None

    def close(self) -> None:
        """Close the open engine, if any."""
        for engine, _ in self._open.values():
            engine.close()
        self._open.clear()


@dataclass
class Context:
    """One step at work."""

    step: Step
    out: StepFolder
    process: Process

    @property
    def recipe(self) -> Recipe:
        return self.process.recipe

    @property
    def seed(self) -> int:
        return self.process.recipe.seed

    def artifact(self, step_name: str) -> Artifact:
        """The finished artifact of an input step."""
        if step_name not in self.step.inputs:
            raise KeyError(f"{self.step.name} does not declare {step_name} as an input")
        return Artifact(self.process.run_dir / self.process.steps[step_name].folder)

    def rows(self, step_name: str, row_type: type[R]) -> list[R]:
        """All rows of an input step."""
        return self.artifact(step_name).rows(row_type)

    def stream(self, step_name: str, row_type: type[R]) -> Iterator[R]:
        """The rows of an input step, one file in memory at a time."""
        artifact = self.artifact(step_name)
        artifact.check(row_type)
        return read_rows(artifact.folder, row_type)

    def pending(self, rows: Iterator[R], count: int) -> Iterator[tuple[Shard, list[R]]]:
        """The shards of work on `count` rows that are not finished yet, each with its rows."""
        at = 0
        for shard in self.out.pending(count):
            part = list(islice(rows, shard.start - at, shard.stop - at))
            at = shard.stop
            yield shard, part

    def generate(
        self, rows: Iterator[R], count: int, model: str, jobs_of: Callable[[list[R]], Sequence[Asking[Made]]], *, unit: str
    ) -> Iterator[tuple[Shard, list[R], list[Made]]]:
        """What became of each row, by shard and in order; the caller writes the shard.

        The queue of the model's engine runs over the shards' ends, so that it stays full; each shard has a journal, which
        goes when the shard has been written.

        Args:
            rows, count: the work list, and its length.
            model: whose engine answers; it is opened at the first question.
            jobs_of: one job for each row of a shard.
        """
        shards: dict[int, tuple[Shard, list[R]]] = {}
        journals: dict[int, Journal] = {}

        def jobs() -> Iterator[Job[tuple[int, int], Made]]:
            for shard, part in self.pending(rows, count):
                shards[shard.index] = shard, part
                journals[shard.index] = journal = self.out.journal(f"calls-{shard.index:05d}")
                for place, asking in enumerate(jobs_of(part)):
                    yield Job(key=(shard.index, place), asking=asking, journal=journal)

        writer = Writer(lambda: self.process.engine(model), run_seed=self.seed)
        done: dict[int, dict[int, Made]] = {}
        label = self.step.name.replace(".sample.", ".sample ")
        finished = count - sum(shard.stop - shard.start for shard in self.out.pending(count))
        for (index, place), made in writer.run(jobs(), label=label, total=count, unit=unit, done=finished):
            done.setdefault(index, {})[place] = made
            # In order, since what a shard keeps may depend on what those before it kept.
            while shards and len(done.get(first := min(shards), ())) == len(shards[first][1]):
                shard, part = shards.pop(first)
                found = done.pop(first)
                yield shard, part, [found[k] for k in range(len(part))]
                journals.pop(first).delete()
        for index in sorted(shards):  # of no row, such as the one shard of an empty list
            yield *shards[index], []

    def write_made(
        self, shard: Shard, part: Sequence[Any], made: Sequence[Made], rows: Sequence[Any], rejects: Sequence[Reject]
    ) -> None:
        """Write a shard of `generate`; how much was asked for of each topic is kept for `asked_by_topic`."""
        asked: Counter[str] = Counter()
        for source, result in zip(part, made, strict=True):
            asked[getattr(source, "topic_id", "")] += result.asked
        write_json(self.out.work / f"asked-{shard.index:05d}.json", asked)
        self.out.write_shard(shard.index, rows, rejects, asked=asked.total())

    def asked_by_topic(self) -> dict[str, int]:
        """Rows asked for, by topic of what they were asked of; the report checks it against what came of them."""
        asked: Counter[str] = Counter()
        for path in sorted(self.out.work.glob("asked-*.json")):
            asked.update(json.loads(path.read_text("utf-8")))
        return dict(sorted(asked.items()))

    def engine_flags(self, model: str) -> dict[str, object]:
        """What a manifest keeps of an engine, if it was opened."""
        engine = self.process.opened(model)
        if engine is None:
            return {}
        return {"engine": {"kind": engine.info.kind, "version": engine.info.version, "flags": engine.info.flags}}

    def clean(self, rows: Sequence[R], texts_of: Callable[[R], Sequence[str]]) -> tuple[list[R], list[Reject]]:
        """Rows without test items, and rejects for those with them; a certificate is written beside the rows.

        Without benchmarks in the recipe all rows are kept.
        """
        kept, rejects = self.clean_shard(0, rows, texts_of)
        self.certify()
        return kept, rejects

    def clean_shard(
        self, index: int, rows: Sequence[R], texts_of: Callable[[R], Sequence[str]]
    ) -> tuple[list[R], list[Reject]]:
        """As `clean` for one shard; `certify` writes the certificate of all when the last is done."""
        if (search := self._search) is None:
            return list(rows), []
        kept: list[R] = []
        rejects: list[Reject] = []
        for row in search.clean(rows, texts_of):
            if isinstance(row, Reject):
                rejects.append(row)
            else:
                kept.append(row)
        write_json(self.out.work / f"searched-{index:05d}.json", search.take_counts())
        return kept, rejects

    def certify(self) -> None:
        """Write the certificate of all shards, beside the rows."""
        if self._search is not None:
            counts = [json.loads(path.read_text("utf-8")) for path in sorted(self.out.work.glob("searched-*.json"))]
            write_json(self.out.folder / CERTIFICATE, self._search.certificate(counts))

    @cached_property
    def _search(self) -> Decontamination | None:
        spec = self.recipe.quality.decontaminate
        if spec is None:
            return None
        return Decontamination(
            benchmark_files(self.recipe), mode=spec.mode, window=spec.window, samples=spec.samples, columns=spec.columns,
            seed=self.seed,
        )  # fmt: skip

    @cached_property
    def templates(self) -> Prompts:
        """The prompts of the recipe."""
        return load_prompts(self.recipe)

    def certified(self, step_name: str) -> None:
        """Raises:
        UserError: the recipe wants a certificate, and an input step has none.
        """
        if self.recipe.quality.require_certificate and not (self.artifact(step_name).folder / CERTIFICATE).is_file():
            raise UserError(
                f"{self.step.name}: {step_name} has no {CERTIFICATE}, and quality.require_certificate asks for one"
            )

    def prompts(self, split: str, limit: int | None) -> list[Instruction]:
        """The instructions of a split, at most `limit`, in order of id (a hash, so a limit is an unbiased choice)."""
        rows = sorted((r for r in self.rows("evolve", Instruction) if r.split == split), key=lambda r: r.id)
        if not rows:
            raise UserError(
                f"{self.step.name}: no instruction fell into split {split!r}; raise splits, corpus or instructions.per_unit"
            )
        return rows[:limit]

    def write_json(self, name: str, value: object) -> None:
        """A file beside the step's rows."""
        write_json(self.out.folder / name, value)

    def finish(self, **metrics: object) -> Manifest:
        """Write the manifest.

        Raises:
            UserError: rows were asked for and none was kept, so that nothing after this step could work.
        """
        shards = [json.loads(path.read_text("utf-8")) for path in sorted(self.out.work.glob("shard-*.json"))]
        rejects: Counter[str] = Counter()
        for shard in shards:
            rejects.update(shard["rejects"])
        if rejects and not any(shard["rows"] for shard in shards):
            why = ", ".join(f"{reason} {count}" for reason, count in rejects.most_common(5))
            raise UserError(
                f"{self.step.name}: none of {rejects.total()} was kept ({why}); see {self.out.folder}/rejects and change "
                "the recipe where it says why"
            )
        return self.out.finish(metrics)
