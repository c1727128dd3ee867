"""Processes that end with the one they work for."""

from __future__ import annotations

import os
import threading
import time


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def end_with(process: int) -> None:
    """End this process at once when `process` is gone: what it worked for was killed, and must not be written on.

    Polled twice a second from a thread, because the one to wait for need not be the parent.
    """

    def watch() -> None:
        while _lives(process):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
