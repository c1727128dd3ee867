"""What a step's function gets: the recipe, its inputs, its folder, and the engine its process keeps open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from align.core.artifact import Artifact, Manifest, Shard, StepFolder, read_rows, write_json
from align.core.chat import Chat
from align.core.errors import UserError
from align.core.hashing import FileHashes
from align.core.rows import Instruction, Reject
from align.engines.open import open_engine
from align.engines.protocol import Engine, Sampling
from align.recipe.base import BASE_MODEL, SamplingSpec
from align.recipe.schema import Recipe
from align.steps.table import Step, benchmark_files, engine_kind, model_path, training_step
from data_gen.decontaminate import CERTIFICATE, Decontamination

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


def of_language(by_language: Mapping[Any, V], lang: str) -> V:
    """What a recipe says for a row's language."""
    return by_language[lang]


@dataclass
class Process:
    """What lives as long as a process: the engine of one model, opened when the first step asks for it."""

    recipe: Recipe
    run_dir: Path
    steps: dict[str, Step]
    _open: dict[str, tuple[Engine, Chat]] = field(default_factory=dict)

    def model_folder(self, name: str) -> Path:
        """The folder of `base`, of another model of the recipe, or of M0, M1, ..."""
        step = training_step(self.recipe, name)
        if step is None:
            return model_path(self.recipe.models[name])
        return self.run_dir / self.steps[step].folder / "model"

    def chat(self, name: str) -> Chat:
        """The tokenizer and template of a model."""
        return self._open[name][1] if name in self._open else Chat.load(self.model_folder(name))

    def engine(self, name: str) -> tuple[Engine, Chat]:
        """The engine of a model; another one that is open is closed first, so that memory holds one model."""
        if name not in self._open:
            self.close()
            spec, folder = self.recipe.engine, self.model_folder(name)
            chat = Chat.load(folder)
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

    def close(self) -> None:
        """Close the open engine, if any."""
        for engine, _ in self._open.values():
            engine.close()
        self._open.clear()


@dataclass(frozen=True)
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

    def pending(self, step_name: str, row_type: type[R]) -> Iterator[tuple[Shard, list[R]]]:
        """The shards of work on an input step's rows that are not finished yet, each with its rows."""
        rows, at = self.stream(step_name, row_type), 0
        for shard in self.out.pending(self.artifact(step_name).manifest.rows):
            part = list(islice(rows, shard.start - at, shard.stop - at))
            at = shard.stop
            yield shard, part

    def clean(self, rows: Sequence[R], texts_of: Callable[[R], Sequence[str]]) -> tuple[list[R], list[Reject]]:
        """Rows without test items, and rejects for those with them; a certificate is written beside the rows.

        Without benchmarks in the recipe all rows are kept.
        """
        spec = self.recipe.quality.decontaminate
        if spec is None:
            return list(rows), []
        search = Decontamination(
            benchmark_files(self.recipe), mode=spec.mode, window=spec.window, samples=spec.samples, columns=spec.columns,
            seed=self.seed,
        )  # fmt: skip
        kept: list[R] = []
        rejects: list[Reject] = []
        for row in search.clean(rows, texts_of):
            if isinstance(row, Reject):
                rejects.append(row)
            else:
                kept.append(row)
        write_json(self.out.folder / CERTIFICATE, search.certificate())
        return kept, rejects

    def certified(self, step_name: str) -> None:
        """Raises:
        UserError: the recipe wants a certificate, and an input step has none.
        """
        if self.recipe.quality.require_certificate and not (self.artifact(step_name).folder / CERTIFICATE).is_file():
            raise UserError(
                f"{self.step.name}: {step_name} has no {CERTIFICATE}, and quality.require_certificate asks for one"
            )

    def base(self) -> tuple[Engine, Chat]:
        """The engine of the base model, which writes the data."""
        return self.process.engine(BASE_MODEL)

    def prompts(self, split: str, limit: int | None) -> list[Instruction]:
        """The instructions of a split, at most `limit`, in order of id (a hash, so a limit is an unbiased choice)."""
        rows = sorted((r for r in self.rows("evolve", Instruction) if r.split == split), key=lambda r: r.id)
        if not rows:
            raise UserError(
                f"{self.step.name}: no instruction fell into split {split!r}; raise splits, corpus or instructions.per_unit"
            )
        return rows[:limit]

    def finish(self, **metrics: object) -> Manifest:
        """Write the manifest."""
        return self.out.finish(metrics)


def engine_metrics(engine: Engine | None, rows: Sequence[object] = ()) -> dict[str, object]:
    """What a manifest keeps of the engine that worked for a step, and the tokens that came out."""
    if engine is None:
        return {}
    info = engine.info
    tokens = sum(getattr(row, "num_tokens", 0) for row in rows)
    return {"engine": {"kind": info.kind, "version": info.version, "flags": info.flags}, "completion_tokens": tokens}
