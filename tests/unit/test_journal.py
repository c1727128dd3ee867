"""The journal: what was put is there after any death of the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from align.core.journal import Journal


def test_values_come_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "made" / "calls.jsonl")
    journal.put("한국어\n\u2028", {"text": "꿀\r\n", "ids": [1, 2]})
    journal.close()
    again = Journal(journal.path)
    assert again.get("한국어\n\u2028") == {"text": "꿀\r\n", "ids": [1, 2]}
    assert "other" not in again and len(again) == 1
    with pytest.raises(KeyError):
        again.get("other")


def test_the_last_value_of_a_repeated_key_holds(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "calls.jsonl")
    journal.put("a", 1)
    journal.put("a", 2)
    assert journal.get("a") == 2
    again = Journal(journal.path)
    assert again.get("a") == 2 and len(again) == 1


@pytest.mark.parametrize("keep", range(1, len('["c", "꿀"]\n'.encode())))
def test_a_torn_last_line_is_dropped_and_cut_off(tmp_path: Path, keep: int) -> None:
    journal = Journal(tmp_path / "calls.jsonl")
    journal.put("a", 1)
    journal.put("b", 2)
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + '["c", "꿀"]\n'.encode()[:keep])
    again = Journal(journal.path)
    assert len(again) == 2 and "c" not in again
    assert again.path.read_bytes() == whole
    again.put("c", 3)
    third = Journal(journal.path)
    assert [third.get(key) for key in "abc"] == [1, 2, 3]


def test_a_damaged_line_in_the_middle_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_bytes(b'["a", 1]\n["b", ["c", 3]\n\x00\x00\x00\n{}\n["d", 4]\n')
    journal = Journal(path)
    assert "b" not in journal and "c" not in journal
    assert (journal.get("a"), journal.get("d")) == (1, 4)


def test_a_partial_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "calls.jsonl")

    class Stingy:
        """Takes three bytes at a time, as a nearly full disk may."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            return int(self.file.write(data[:3]))

    monkeypatch.setattr(journal, "_file", Stingy(journal._file))
    journal.put("a", "x" * 50)
    journal.put("b", 2)
    again = Journal(journal.path)
    assert again.get("a") == "x" * 50 and again.get("b") == 2


CHILD = """
import sys
from pathlib import Path
from align.core.journal import Journal

journal = Journal(Path(sys.argv[1]))
for i in range(10**9):
    journal.put(str(i), "x" * (i % 500))
    print(i, flush=True)
"""


def test_kill_in_the_middle_of_puts_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 700:
            break
    os.kill(child.pid, signal.SIGKILL)
    reported = [int(x) for x in child.stdout.read().splitlines() if x.strip().isdigit()]
    child.wait()
    last = max([700, *reported[:-1]])  # the last line of the pipe itself may be torn
    journal = Journal(path)
    assert all(journal.get(str(i)) == "x" * (i % 500) for i in range(last + 1))
    assert all(json.loads(line) for line in path.read_bytes().splitlines())
