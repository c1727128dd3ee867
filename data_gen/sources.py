"""Streams of raw records: JSON Lines, Parquet, plain text, and whatever `datasets` streams; no more than a batch is held."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from align.core.errors import UserError
from align.core.records import Line, parse_line, read_jsonl

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", ".txt")


def read_files(paths: Sequence[Path]) -> Iterator[Line]:
    """The records of files in order; a text file is one record, named after the file.

    Raises:
        UserError: a file cannot be opened, or has another ending than `ENDINGS`.
    """
    for path in paths:
        if path.name.endswith(".jsonl"):
            yield from read_jsonl(path)
        elif path.name.endswith(".jsonl.gz"):
            yield from _read_gzip(path)
        elif path.suffix == ".parquet":
            yield from _read_parquet(path)
        elif path.suffix == ".txt":
            yield _read_text(path)
        else:
            raise UserError(f"corpus.paths: {path}: the ending must be one of {', '.join(ENDINGS)}")


def count_records(paths: Sequence[Path]) -> int | None:
    """How many records files hold, at most, or None where telling would mean to read a compressed file."""
    total = 0
    for path in paths:
        if path.name.endswith(".jsonl"):
            total += _lines(path)
        elif path.suffix == ".parquet":
            total += pq.ParquetFile(path).metadata.num_rows
        elif path.suffix == ".txt":
            total += 1
        else:
            return None
    return total


def _lines(path: Path) -> int:
    last, count = b"\n", 0
    with path.open("rb") as handle:
        while block := handle.read(2**20):
            last, count = block[-1:], count + block.count(b"\n")
    return count + (last != b"\n")


def read_dataset(path: str, name: str | None, split: str) -> Iterator[Line]:
    """The records of a dataset, streamed: a local folder, a loader such as `parquet`, or a name on the hub.

    Raises:
        UserError: `datasets` cannot open it; a hub name needs the network, which only such a recipe uses.
    """
    from datasets import load_dataset

    try:
        rows = iter(load_dataset(path, name, split=split, streaming=True))
    except Exception as error:  # datasets raises types of every library below it
        raise UserError(f"corpus.datasets: {path}: {' '.join(str(error).split())[:300]}") from None
    for number, row in enumerate(rows, 1):
        yield _plain(f"{path}:{number}", row)


def renamed(lines: Iterator[Line], columns: Mapping[Any, str]) -> Iterator[Line]:
    """Records whose columns are called as we call them.

    Args:
        lines: records.
        columns: our name (text, title, id, lang, source, license) -> theirs.
    """
    for line in lines:
        if line.record is not None and columns:
            record = dict(line.record)
            for ours, theirs in columns.items():
                if theirs in record:
                    record[ours] = record[theirs]
            line = Line(line.where, record)
        yield line


def _read_gzip(path: Path) -> Iterator[Line]:
    try:
        with gzip.open(path, "rb") as handle:
            for number, data in enumerate(handle, 1):
                if data.strip():
                    yield parse_line(f"{path}:{number}", data)
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _read_parquet(path: Path) -> Iterator[Line]:
    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=512):
            for row in batch.to_pylist():
                number += 1
                yield _plain(f"{path}:{number}", row)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None


def _read_text(path: Path) -> Line:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    try:
        return Line(str(path), {"text": data.decode("utf-8-sig"), "id": path.stem})
    except UnicodeDecodeError:
        return Line(str(path), None, "not_utf8", data[:2000].decode("utf-8", "replace"))


def _plain(where: str, row: Mapping[str, Any]) -> Line:
    """A record as JSON would give it, so that half characters are found here too."""
    return parse_line(where, json.dumps(dict(row), default=str).encode())
