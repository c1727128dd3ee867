"""An append-only file of finished calls, so that a killed step repeats none of them.

One JSON line a call. A torn last line (the process died while writing) is dropped and its call made again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Journal:
    """key -> JSON value, on disk as soon as `put` returns to the kernel: a killed process loses nothing that was put."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        if path.exists():
            self._load()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)

    def _load(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        for line in data[:whole].split(b"\n")[:-1]:
            try:
                key, value = json.loads(line)
                self._values[key] = value
            except (ValueError, TypeError):
                continue  # a damaged line (a full disk, a crash of the system): its call is made again
        if whole != len(data):
            with self.path.open("r+b") as handle:
                handle.truncate(whole)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Any:
        return self._values[key]

    def put(self, key: str, value: Any) -> None:
        self._values[key] = value
        rest = json.dumps([key, value], ensure_ascii=False).encode() + b"\n"
        while rest:  # a nearly full disk takes a part and says so only by the count
            rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        self._file.close()

    def delete(self) -> None:
        """Close and remove the file: what it kept is elsewhere now."""
        self.close()
        self._values.clear()
        self.path.unlink(missing_ok=True)
