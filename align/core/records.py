"""Reading users' files: JSON Lines with every bad line named, and nothing dropped in silence."""

from __future__ import annotations

import codecs
import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.core.errors import UserError


@dataclass(frozen=True)
class Line:
    """One line of a file: a record, or the reason why it is none, with its place and raw text."""

    where: str
    record: dict[str, Any] | None
    reason: str = ""
    raw: str = ""


def read_jsonl(path: Path) -> Iterator[Line]:
    """Each non-empty line of a JSON Lines file; a bad one comes with its reason instead of a record.

    Raises:
        UserError: the file cannot be opened.
    """
    try:
        handle = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    with handle:
        for number, data in enumerate(handle, 1):
            where = f"{path}:{number}"
            if not data.strip():
                continue
            yield parse_line(where, data.removeprefix(codecs.BOM_UTF8) if number == 1 else data)


def parse_line(where: str, data: bytes) -> Line:
    """One line of JSON Lines as a record, or the reason why it is none."""

    def bad(reason: str) -> Line:
        return Line(where, None, reason, data.decode("utf-8", "replace").strip()[:2000])

    try:
        record = json.loads(data.decode())
        if b"\\u" in data:
            json.dumps(record, ensure_ascii=False).encode()  # "\\ud83d" alone is JSON, but no text
    except UnicodeEncodeError:
        return bad("half_a_character")
    except UnicodeDecodeError:
        return bad("not_utf8")
    except (ValueError, RecursionError):
        return bad("malformed_json")
    return Line(where, record) if isinstance(record, dict) else bad("not_an_object")


def expand_paths(patterns: Sequence[str], key: str) -> list[Path]:
    """The files that absolute path patterns name, in sorted order without repeats; `key` is the recipe's key.

    Raises:
        UserError: a pattern names no file.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
        if not matches:
            raise UserError(f"{key}: {pattern} names no file")
        found.update(dict.fromkeys(matches))
    return list(found)
