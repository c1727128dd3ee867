"""Documents in: records are checked one by one, then duplicates are found among all of them, in memory that hardly grows.

Reading writes a shard of documents at a time into a working folder, with a few numbers of each (hashes, a draw, MinHash
signatures). Duplicates and the limit are decided from those numbers, about 40 bytes a document; then the shards are given
out again, each document kept or rejected.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align.core.artifact import read_rows, write_json
from align.core.errors import UserError
from align.core.hashing import content_id, short_hash, unit_interval
from align.core.language import detect, sentences
from align.core.progress import Progress
from align.core.records import Line
from align.core.rows import Document, Reject, to_table
from data_gen.filters import quality_fault
from data_gen.near_duplicates import clusters, write_signatures
from data_gen.pii import mask_pii

EXPECTED = "text (required), title, id, lang, source, license"
_CONTROL = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]")  # form feeds between pages, for one; NUL is for the filters
_SHOWN = 500  # characters of a rejected record


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a record must be to become a document.

    Attributes:
        languages: those wanted.
        allow_licenses: exact names; None keeps all.
        min_chars, max_chars: shorter texts are rejected, longer ones cut at a sentence end.
        filters: apply the quality filters.
        mask_pii: put placeholders for personal data.
        run_seed: of the draw that a limit goes by.
    """

    languages: Sequence[str]
    allow_licenses: Sequence[str] | None
    min_chars: int
    max_chars: int
    filters: bool
    mask_pii: bool
    run_seed: int


class Reading:
    """A corpus while it is read into `folder`.

    Args:
        folder: for working files; what an interrupted run left there is used.
        rules: what a record must be.
        shard_size: records of a shard.
        near_duplicates: Jaccard similarity from which two documents are the same; None keeps near duplicates.

    Attributes:
        counts: what each finished shard held: records, documents, cut, pii, columns, rejects.
    """

    def __init__(self, folder: Path, rules: Rules, *, shard_size: int, near_duplicates: float | None) -> None:
        self._folder, self._rules, self._size, self._threshold = folder, rules, shard_size, near_duplicates
        folder.mkdir(parents=True, exist_ok=True)
        self.counts: list[dict[str, Any]] = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]

    def read(self, lines: Iterator[Line], total: int | None) -> None:
        """Read all records, going on after the last finished shard.

        Args:
            lines: the same in every run.
            total: how many there are, as far as that is known, for the progress bar.

        Raises:
            UserError: no record is a usable document; the message says what the records lack.
        """
        with Progress("corpus", total, "records") as bar:
            for _ in self.counts:
                bar.advance(sum(1 for _ in islice(lines, self._size)))
            while part := list(islice(lines, self._size)):
                self.counts.append(self._write(len(self.counts), part))
                bar.advance(len(part))
        self._check()

    @property
    def records(self) -> int:
        """All that were read."""
        return sum(shard["records"] for shard in self.counts)

    def _write(self, index: int, lines: Sequence[Line]) -> dict[str, Any]:
        documents: list[Document] = []
        places: list[str] = []
        rejects: list[Reject] = []
        numbers: list[tuple[int, int, int, int]] = []
        pii: Counter[str] = Counter()
        columns: Counter[str] = Counter()
        cut = 0
        for line in lines:
            columns.update((line.record or {}).keys())
            found = read_record(line, self._rules)
            if isinstance(found, Reject):
                rejects.append(found)
                continue
            documents.append(found.document)
            places.append(line.where)
            numbers.append((found.given_id, found.whole_text, int(found.document.id, 16), found.draw))
            pii.update(found.pii)
            cut += found.was_cut
        name = f"{index:05d}"
        table = to_table(Document, documents).append_column("where", [pa.array(places, pa.string())])
        pq.write_table(table, self._folder / f"{name}.parquet", compression="zstd")
        pq.write_table(to_table(Reject, rejects), self._folder / f"{name}.rejects.parquet", compression="zstd")
        with (self._folder / f"{name}.numbers.npy").open("wb") as handle:
            np.save(handle, np.asarray(numbers, np.uint64).reshape(-1, 4), allow_pickle=False)
        if self._threshold is not None:
            write_signatures(self._folder / f"{name}.minhash.npy", [d.text for d in documents])
        about = {
            "records": len(lines), "documents": len(documents), "cut": cut, "pii": pii, "columns": columns,
            "rejects": Counter(r.reason for r in rejects),
        }  # fmt: skip
        write_json(self._folder / f"{name}.json", about)
        return about

    def _check(self) -> None:
        if any(shard["documents"] for shard in self.counts):
            return
        rejects, columns = self.total("rejects"), self.total("columns")
        reasons = ", ".join(f"{n} {r}" for r, n in rejects.most_common()) or "there is no record"
        raise UserError(
            f"corpus: no usable document ({reasons}; columns found: {', '.join(columns) or 'none'}; expected: {EXPECTED})"
        )

    def total(self, name: str) -> Counter[str]:
        """The sum of a count over all shards."""
        return sum((Counter(shard[name]) for shard in self.counts), Counter[str]())

    def _column(self, number: int) -> np.ndarray:
        files = sorted(self._folder.glob("*.numbers.npy"))
        return np.concatenate([np.load(path, mmap_mode="r")[:, number] for path in files])

    def faults(self, limit: int | None) -> np.ndarray:
        """(documents,) uint8: index in `GLOBAL_FAULTS` of why each goes, by order of reading; the first of equals stays."""
        given = self._column(0)
        fault = np.zeros(len(given), np.uint8)
        _later(given, fault, 1, skip=given == 0)
        del given
        _later(self._column(1), fault, 2)
        _later(self._column(2), fault, 2)  # became equal when they were cut
        if self._threshold is not None:
            first = clusters(sorted(self._folder.glob("*.minhash.npy")), threshold=self._threshold, work=self._folder)
            _later(first, fault, 3)
        alive = np.flatnonzero(fault == 0)
        if limit is not None and len(alive) > limit:
            draw = self._column(3)[alive]
            fault[alive[np.argsort(draw, kind="stable")[limit:]]] = 4
        return fault

    def shards(self, limit: int | None) -> Iterator[tuple[list[Document], list[Reject]]]:
        """Rows and rejects of each shard; together they are its records."""
        fault, at = self.faults(limit), 0
        for path in sorted(self._folder.glob("*.parquet")):
            if path.name.endswith(".rejects.parquet"):
                continue
            table = pq.read_table(path)
            where = table["where"].to_pylist()
            documents = [Document(**row) for row in table.drop_columns(["where"]).to_pylist()]
            rejects = list(read_rows(self._folder, Reject, f"{path.stem}.rejects.parquet"))
            kept = []
            for document, place, why in zip(documents, where, fault[at : at + len(documents)], strict=True):
                if why:
                    raw = f"{place}: {_shown(document.text)}"
                    rejects.append(Reject(id=content_id("line", place), reason=GLOBAL_FAULTS[why], raw=raw))
                else:
                    kept.append(document)
            at += len(documents)
            yield kept, rejects


GLOBAL_FAULTS = ("", "duplicate_id", "duplicate_text", "near_duplicate", "over_limit")


def _later(values: np.ndarray, fault: np.ndarray, number: int, skip: np.ndarray | None = None) -> None:
    """Mark what has the value of an earlier one, among those that have no fault yet."""
    here = np.flatnonzero((fault == 0) if skip is None else (fault == 0) & ~skip)
    order = here[np.argsort(values[here], kind="stable")]
    fault[order[1:][values[order[1:]] == values[order[:-1]]]] = number


@dataclass(frozen=True)
class Read:
    """A document, and what is known of its record.

    Attributes:
        document: as it will be written.
        given_id, whole_text: hashes of the record's id (0 without one) and of its text before it was cut.
        draw: a limit keeps those with the smallest.
        pii: masked values by type.
        was_cut: whether its text was too long.
    """

    document: Document
    given_id: int
    whole_text: int
    draw: int
    pii: Mapping[str, int]
    was_cut: bool


def read_record(line: Line, rules: Rules) -> Read | Reject:
    """A record as a document, or the reason why it is none, without personal data in either case."""
    record, key = line.record, content_id("line", line.where)
    if record is None:
        return Reject(id=key, reason=line.reason, raw=_shown(line.raw))
    text = record.get("text")
    title_chars = 0
    if isinstance(text, str):
        text = _CONTROL.sub(" ", text)
        text = " ".join(text.split()) if "\n" not in text else text.strip()
        if len(text) >= rules.min_chars:  # a title alone holds no fact, so it does not make a text long enough
            text, title_chars = _titled(record.get("title"), text)
    reason = _fault(record, text, rules)
    if reason:
        return Reject(id=key, reason=reason, raw=f"{line.where}: {_shown(str(text))}")
    assert isinstance(text, str)
    short = _shorten(text, rules.max_chars, title_chars)
    masked, pii = mask_pii(short) if rules.mask_pii else (short, {})
    given = record.get("id")
    source = str(record.get("source") or Path(line.where.rsplit(":", 1)[0]).name)
    source = f"{source} / {given}" if given is not None else source
    document = Document(
        id=content_id("document", masked),
        text=masked,
        lang=str(record.get("lang") or detect(text)),
        source=mask_pii(source)[0] if rules.mask_pii else source,
        license=str(record.get("license") or "unknown"),
        pii=",".join(sorted(pii)),
    )
    return Read(
        document,
        short_hash(str(given)) if given is not None else 0,
        short_hash(" ".join(text.split())),
        int(unit_interval(rules.run_seed, "corpus-limit", document.id) * 2**53),
        pii,
        len(text) > rules.max_chars,
    )


def _shown(raw: str) -> str:
    """A rejected text as it may be kept: its beginning, masked whether or not documents are."""
    return mask_pii(raw[: 2 * _SHOWN])[0][:_SHOWN]


def _fault(record: Mapping[str, Any], text: Any, rules: Rules) -> str:
    """The reason why a record is no document, or an empty text."""
    if not isinstance(text, str):
        return "missing_text" if text is None else "text_is_not_a_string"
    if len(text) < rules.min_chars:
        return "too_short"
    lang = record.get("lang") or detect(text)
    if lang not in rules.languages:
        return f"language_{lang}"
    if rules.allow_licenses is not None and record.get("license") not in rules.allow_licenses:
        return "license_not_allowed"
    return quality_fault(text, lang) if rules.filters else ""


def _titled(title: Any, text: str) -> tuple[str, int]:
    """A text below its title and a blank line, unless it begins with the title anyway.

    Returns:
        the text, and how many of its characters are the title put before it.
    """
    title = " ".join(_CONTROL.sub(" ", title).split()) if isinstance(title, str) else ""
    beginning = " ".join(text[: 2 * len(title) + 10].split()).lstrip("# ")
    if not title or beginning.casefold().startswith(title.casefold()):
        return text, 0
    return f"{title}\n\n{text}", len(title)


def _shorten(text: str, max_chars: int, title_chars: int) -> str:
    """The whole sentences that fit in, or as many characters where only the title would be left."""
    if len(text) <= max_chars:
        return text
    beginning = text[: max_chars + 1].rstrip()
    last = sentences(beginning)[-1]  # goes on behind the cut
    whole = beginning[: len(beginning) - len(last)].rstrip()
    return whole if len(whole) > title_chars else text[:max_chars]
