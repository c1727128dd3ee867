"""One run at a time in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from align.core.errors import UserError
from align.core.lock import run_lock

HOLD = """
import sys
from pathlib import Path
from align.core.lock import run_lock

with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "held"
    expected = rf"another run \(process {child.pid}\).*--run-dir"
    with pytest.raises(UserError, match=expected), run_lock(tmp_path, patience_s=0):
        pass
    child.kill()
    child.wait()
    with run_lock(tmp_path, patience_s=2.0):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_the_lock_is_free_after_an_error_and_again_and_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="inside"), run_lock(tmp_path / "new" / "run", patience_s=0):
        raise RuntimeError("inside")
    for _ in range(2):
        with run_lock(tmp_path / "new" / "run", patience_s=0):
            pass


def test_a_worker_that_was_handed_the_lock_keeps_it(tmp_path: Path) -> None:
    with run_lock(tmp_path, patience_s=0) as descriptor:
        worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(descriptor,))
    with pytest.raises(UserError, match="another run"), run_lock(tmp_path, patience_s=0):
        pass
    worker.kill()
    worker.wait()
    with run_lock(tmp_path, patience_s=2.0):
        pass


def test_a_file_in_the_folders_place_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "run"):
        with pytest.raises(UserError, match="cannot be used as a run folder"), run_lock(folder, patience_s=0):
            pass
