"""Checkpoints by the clock: their cost stays a small share of any run, and a crash loses a bounded time."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

SAVE_EVERY_S = 120.0  # a checkpoint of a 135M model is 1.6 GB and takes seconds to write


class SaveByClock(TrainerCallback):
    """Asks the Trainer for a checkpoint whenever SAVE_EVERY_S have passed since the last one or the start.

    Use with `save_strategy="no"`. When a checkpoint falls does not change any result: training resumes exactly.
    """

    def __init__(self, every_s: float = SAVE_EVERY_S) -> None:
        self._every_s = every_s
        self._last = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step < state.max_steps and time.monotonic() - self._last >= self._every_s:
            control.should_save = True
            self._last = time.monotonic()
        return control
