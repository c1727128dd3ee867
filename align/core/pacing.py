"""Checkpoints by the clock: their cost stays a small share of any run, and a crash loses a bounded time."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

AGREE_EVERY = 10  # steps between questions to the other processes; each makes the host wait for the device
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
        if state.global_step >= state.max_steps:
            return control
        due = time.monotonic() - self._last >= self._every_s
        if args.world_size > 1:  # saving is a joint act, and clocks differ: all save when one says so
            due = state.global_step % AGREE_EVERY == 0 and self._agreed(due, args.device)
        if due:
            control.should_save = True
            self._last = time.monotonic()
        return control

    @staticmethod
    def _agreed(due: bool, device: Any) -> bool:
        import torch

        flag = torch.tensor(float(due), device=device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())
