"""Reading suites' files: JSON Lines in, items out, and every bad line named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.core.errors import UserError
from align.core.records import read_jsonl
from align.evaluate.suite import Item


def read_items(path: Path, keys: Sequence[str], make: Callable[[Mapping[str, Any], str], Item]) -> list[Item]:
    """The items of a JSON Lines file, in its order.

    Args:
        keys: what every line must have.
        make: an item from a line's record; it is given the line's place too, for its errors.

    Raises:
        UserError: a line that is no JSON object or lacks a key, an id that occurs twice, a file without items.
    """
    items: list[Item] = []
    places: dict[str, str] = {}
    wanted = ", ".join(keys)
    for line in read_jsonl(path):
        if line.record is None:
            raise UserError(f"{line.where}: {line.reason}; write one JSON object a line, with {wanted}")
        if missing := [key for key in keys if key not in line.record]:
            raise UserError(f"{line.where}: lacks {', '.join(missing)}; a line needs {wanted}")
        item = make(line.record, line.where)
        if item.id in places:
            raise UserError(f"{line.where}: the id {item.id} is that of {places[item.id]} too; give each item its own")
        places[item.id] = line.where
        items.append(item)
    if not items:
        raise UserError(f"{path}: no items; write one JSON object a line, with {wanted}")
    return items


def text_of(record: Mapping[str, Any], key: str, where: str) -> str:
    """A text of a record.

    Raises:
        UserError: it is no text, or an empty one.
    """
    value = record[key]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {key} is {value!r:.80}; write a text")
    return value


def id_of(record: Mapping[str, Any], key: str, where: str) -> str:
    """A record's id, which may be a text or a whole number.

    Raises:
        UserError: it is neither.
    """
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{where}: {key} is {value!r:.80}; write a text or a whole number")
    return str(value)
