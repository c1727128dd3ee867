"""Rows without test items, and a certificate that says what was looked for, where, and what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from align.core.hashing import fingerprint
from align.core.rows import Reject
from data_gen.benchmark_files import Benchmark, read_benchmarks
from data_gen.contamination import TEMPLATE_ITEMS, Match, Pool, SampledPool
from data_gen.normal_form import SEPARATOR, normal_batch

CERTIFICATE = "decontamination.json"
_BATCH_CHARS = 2**19
R = TypeVar("R", bound="Row")


class Row(Protocol):
    """Any row."""

    @property
    def id(self) -> str: ...


class Decontamination:
    """A pool of test items, and the count of what it was asked.

    Args:
        paths: benchmark files, see `read_benchmarks`.
        mode: full (every window of every text) or paper (the report's sampled windows).
        window: letters and digits in a row that both have.
        samples: windows drawn from a text, in mode paper.
        columns: of the benchmark files; None for the usual ones.
        seed: of the run, in mode paper.

    Raises:
        UserError: a benchmark file that cannot be read as one.
        ValueError: another mode, or a window that is too short.
    """

    def __init__(
        self, paths: Sequence[Path], *, mode: str, window: int, samples: int, columns: Sequence[str] | None, seed: int
    ) -> None:
        if mode not in ("full", "paper"):
            raise ValueError(f"mode {mode!r} is not full or paper")
        self._benchmarks: list[Benchmark] = read_benchmarks(paths, columns)
        self._pool: Pool | SampledPool
        if mode == "full":
            self._pool = Pool(self._benchmarks, window)
            self._how: dict[str, Any] = {"mode": mode, "window": window, "template_items": TEMPLATE_ITEMS}
        else:
            self._pool = SampledPool(self._benchmarks, window, samples, seed)
            self._how = {"mode": mode, "window": window, "samples": samples, "seed": seed}
        self._rows = self._texts = self._characters = 0
        self._hits: list[dict[str, Any]] = []

    def clean(self, rows: Iterable[R], texts_of: Callable[[R], Sequence[str]]) -> Iterator[R | Reject]:
        """Each row, or a reject in its place that names the test item and the words in common.

        Args:
            rows: any rows.
            texts_of: the texts of a row, prompts and responses, each by itself.
        """
        batch: list[R] = []
        size = 0
        for row in rows:
            batch.append(row)
            size += sum(map(len, texts_of(row)))
            if size >= _BATCH_CHARS:
                yield from self._batch(batch, texts_of)
                batch, size = [], 0
        yield from self._batch(batch, texts_of)

    def _batch(self, rows: Sequence[R], texts_of: Callable[[R], Sequence[str]]) -> Iterator[R | Reject]:
        texts = [text for row in rows for text in texts_of(row)]
        ids = [f"{row.id}/{k}" for row in rows for k, _ in enumerate(texts_of(row))]
        found = self._pool.find(texts, ids)
        self._rows, self._texts = self._rows + len(rows), self._texts + len(texts)
        self._characters += sum(map(len, texts))
        at = 0
        for row in rows:
            count = len(texts_of(row))
            matches = [(k, match) for k in range(at, at + count) for match in found.get(k, ())]
            at += count
            if not matches:
                yield row
                continue
            self._hits.append({"row": row.id, "matches": [_told(texts[k], match) for k, match in matches]})
            where, match = matches[0]
            raw = f"{match.benchmark}:{match.number}: {original_span(texts[where], match.span)}"
            yield Reject(id=row.id, reason="contaminated", raw=raw, topic_id=getattr(row, "topic_id", ""))

    def take_counts(self) -> dict[str, Any]:
        """What was searched and found since the last call, as JSON."""
        counts = self._counts()
        self._rows = self._texts = self._characters = 0
        self._hits = []
        return counts

    def _counts(self) -> dict[str, Any]:
        return {"rows": self._rows, "texts": self._texts, "characters": self._characters, "hits": self._hits}

    def certificate(self, counts: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """What was looked for, where, and what was found; the same for the same rows and benchmarks, without a date.

        Args:
            counts: what `take_counts` gave for each part of the rows, in their order; by default what it would give now.
        """
        parts = [self._counts()] if counts is None else counts
        hits = [hit for part in parts for hit in part["hits"]]
        rows = sum(part["rows"] for part in parts)
        by_benchmark = Counter(name for hit in hits for name in {m["benchmark"] for m in hit["matches"]})
        items = {(m["benchmark"], m["item"]) for hit in hits for m in hit["matches"]}
        return {
            "version": 1,
            **self._how,
            "pool": fingerprint([self._how, self._pool.fingerprint]),
            "windows": self._pool.windows,
            "template_windows": self._pool.template_windows,
            "short_items": self._pool.short_items,
            "benchmarks": [
                {
                    "name": b.name, "sha256": b.sha256, "items": len(b.items), "rows_hit": by_benchmark[b.name],
                    "items_hit": sum(name == b.name for name, _ in items),
                }
                for b in self._benchmarks
            ],
            "rows": rows, "texts": sum(part["texts"] for part in parts),
            "characters": sum(part["characters"] for part in parts),
            "contaminated": len(hits), "rate": len(hits) / rows if rows else 0.0, "hits": hits,
        }  # fmt: skip


def _told(text: str, match: Match) -> dict[str, Any]:
    return {
        "benchmark": match.benchmark, "item": match.number, "characters": len(match.span), "whole": match.whole,
        "text": original_span(text, match.span)[:1000],
    }  # fmt: skip


def original_span(text: str, span: str) -> str:
    """The part of a text whose letters and digits are `span`; the span itself where it cannot be told (combined letters)."""
    for fold in (True, False):
        kept = [(k, c) for k, char in enumerate(text) for c in normal_batch([char], fold=fold).decode().strip(_BREAK)]
        at = "".join(c for _, c in kept).find(span)
        if at >= 0:
            return text[kept[at][0] : kept[at + len(span) - 1][0] + 1]
    return span


_BREAK = SEPARATOR.decode()
