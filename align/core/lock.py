"""One run at a time in a run folder."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from align.core.errors import UserError


@contextmanager
def run_lock(folder: Path, patience_s: float = 5.0) -> Iterator[int]:
    """Hold the folder's lock and yield its file descriptor; the kernel gives it back when all who hold it have ended.

    The runner hands the descriptor to its worker. Should the runner be killed, the worker notices within a second and
    ends; the patience is for a new run that starts in between.

    Raises:
        UserError: another process holds it (the message names its pid), or the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"{folder}: cannot be used as a run folder ({error.strerror}); use another --run-dir") from None
    with opened as handle:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                handle.seek(0)
                pid = handle.read().strip() or "unknown"
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{folder}: another run (process {pid}) is working in this folder; "
                        "wait for it or use another --run-dir"
                    ) from None
                time.sleep(0.2)
        handle.seek(0)
        handle.truncate()
        handle.write(str(os.getpid()))
        handle.flush()
        yield handle.fileno()
