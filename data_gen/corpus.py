"""Documents in: JSON Lines files to `Document` rows, with every dropped line and its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.core.errors import UserError
from align.core.hashing import content_id, unit_interval
from align.core.language import detect, sentences
from align.core.records import read_jsonl
from align.core.rows import Document, Reject

EXPECTED = "text (required), id, lang, source, license"


def read_documents(
    paths: Sequence[Path],
    *,
    languages: Sequence[str],
    allow_licenses: Sequence[str] | None,
    min_chars: int,
    max_chars: int,
    limit: int | None,
    run_seed: int,
) -> tuple[list[Document], list[Reject], dict[str, int]]:
    """Read, check and de-duplicate documents (exact text after whitespace is normalised).

    Returns:
        Documents in file order, rejects, and counts: `cut` (longer than max_chars, kept up to a sentence end).

    Raises:
        UserError: no line holds a usable document; the message says what the lines lack.
    """
    documents: list[Document] = []
    rejects: list[Reject] = []
    seen_texts: set[str] = set()
    seen_ids: set[str] = set()
    columns: Counter[str] = Counter()
    cut = 0
    for path in paths:
        for line in read_jsonl(path):
            if line.record is None:
                rejects.append(Reject(id=content_id("line", line.where), reason=line.reason, raw=line.raw))
                continue
            columns.update(line.record.keys())
            text = line.record.get("text")
            key = content_id("line", line.where)
            reason = _fault(line.record, seen_texts, seen_ids, languages, allow_licenses, min_chars)
            if reason:
                rejects.append(Reject(id=key, reason=reason, raw=f"{line.where}: {str(text)[:500]}"))
                continue
            text = " ".join(str(text).split()) if "\n" not in str(text) else str(text).strip()
            if len(text) > max_chars:
                cut += 1
            documents.append(_document(line.record, _shorten(text, max_chars), path))
    if not documents:
        reasons = ", ".join(f"{n} {r}" for r, n in Counter(r.reason for r in rejects).most_common())
        found = ", ".join(columns) or "no columns"
        raise UserError(
            f"corpus.paths: no usable document in {', '.join(map(str, paths))} "
            f"({reasons or 'the files are empty'}; columns found: {found}; expected: {EXPECTED})"
        )
    if limit is not None and len(documents) > limit:
        # By hash, so that the choice is spread over the files and does not depend on their order.
        chosen = set(sorted((d.id for d in documents), key=lambda i: unit_interval(run_seed, "corpus-limit", i))[:limit])
        rejects += [Reject(id=d.id, reason="over_limit", raw=d.source) for d in documents if d.id not in chosen]
        documents = [d for d in documents if d.id in chosen]
    return documents, rejects, {"cut": cut}


def _fault(
    record: dict[str, Any],
    seen_texts: set[str],
    seen_ids: set[str],
    languages: Sequence[str],
    allow_licenses: Sequence[str] | None,
    min_chars: int,
) -> str:
    """The reason why a record is no document, or an empty text; remembers ids and texts that pass."""
    text = record.get("text")
    if not isinstance(text, str):
        return "missing_text" if text is None else "text_is_not_a_string"
    if len(text.strip()) < min_chars:
        return "too_short"
    lang = record.get("lang") or detect(text)
    if lang not in languages:
        return f"language_{lang}"
    if allow_licenses is not None and record.get("license") not in allow_licenses:
        return "license_not_allowed"
    given = record.get("id")
    if given is not None and str(given) in seen_ids:
        return "duplicate_id"
    normal = " ".join(text.split())
    if normal in seen_texts:
        return "duplicate_text"
    seen_texts.add(normal)
    if given is not None:
        seen_ids.add(str(given))
    return ""


def _document(record: dict[str, Any], text: str, path: Path) -> Document:
    source = str(record.get("source") or path.name)
    return Document(
        id=content_id("document", text),
        text=text,
        lang=str(record.get("lang") or detect(text)),
        source=f"{source} / {record['id']}" if record.get("id") is not None else source,
        license=str(record.get("license") or "unknown"),
    )


def _shorten(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    kept, length = [], 0
    for sentence in sentences(text):
        length += len(sentence) + 1
        if length > max_chars:
            break
        kept.append(sentence)
    return " ".join(kept) or text[:max_chars]
