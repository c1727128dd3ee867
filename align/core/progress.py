"""Progress with rate and time left: a bar on a terminal, a plain line at least every 30 s elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from tqdm import tqdm

PLAIN_INTERVAL_S = 30.0
# An engine that answers all at once finishes little for long: rate and time left from the first of them would be far off.
TELLING, TELLING_SHARE = 8, 0.05


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """`with Progress("sample M0", 256, "responses") as bar: bar.advance(8)`.

    `done` counts what an earlier run finished. A `total` of None is one that nobody knows; no time left is shown then.
    """

    def __init__(
        self, label: str, total: int | None, unit: str, done: int = 0, interval_s: float = PLAIN_INTERVAL_S
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self._first = self._count = done
        self._note = ""
        self._interval = interval_s
        self._begun = time.monotonic()
        self._stop = threading.Event()
        self._bar: tqdm | None = None

    def __enter__(self) -> Progress:
        if sys.stdout.isatty():
            self._bar = tqdm(
                total=self.total, initial=self._first, desc=self.label, unit=f" {self.unit}", file=sys.stdout,
                dynamic_ncols=True, smoothing=0.05,
            )  # fmt: skip
        else:
            self._print()
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def advance(self, count: int = 1, note: str = "", *, earlier: bool = False) -> None:
        """`count` more are done; `note` (a loss, say) is shown beside the rate. What was done `earlier` has no rate."""
        self._count += count
        self._first += count if earlier else 0
        self._note = note or self._note
        if self._bar is not None:
            self._bar.update(count)
            if note:
                self._bar.set_postfix_str(note, refresh=False)

    def _tick(self) -> None:
        while not self._stop.wait(self._interval):
            self._print()

    def _print(self, ended: bool = False) -> None:
        elapsed = time.monotonic() - self._begun
        made = self._count - self._first
        line = f"  {self.label}: {self._count}{'' if self.total is None else f'/{self.total}'} {self.unit}"
        telling = self.total is None or made >= min(TELLING, TELLING_SHARE * (self.total - self._first))
        if made and (ended or telling):
            line += f", {made / max(elapsed, 1e-9):.2g}/s"
        if ended:
            line += f", {_clock(elapsed)}"
        elif made and telling and self.total is not None:
            line += f", {_clock(elapsed / made * (self.total - self._count))} left"
        print(line + (f", {self._note}" if self._note else ""), flush=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._bar is not None:
            self._bar.close()
        else:
            self._print(ended=True)
