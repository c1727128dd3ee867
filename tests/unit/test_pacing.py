"""Checkpoints by the clock, alone and agreed on by several processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from align.core.pacing import AGREE_EVERY, SaveByClock


def saves(callback: SaveByClock, steps: int, world_size: int) -> list[int]:
    args, found = SimpleNamespace(world_size=world_size, device="cpu"), []
    for step in range(1, steps + 1):
        control = SimpleNamespace(should_save=False)
        callback.on_step_end(args, SimpleNamespace(global_step=step, max_steps=steps), control)
        found += [step] if control.should_save else []
    return found


def test_alone_its_own_clock_decides() -> None:
    assert saves(SaveByClock(every_s=0.0), 4, 1) == [1, 2, 3]  # the last step is saved as the model
    assert saves(SaveByClock(every_s=3600.0), 4, 1) == []


@pytest.mark.parametrize("mine", [0.0, 3600.0])
@pytest.mark.parametrize("theirs", [False, True])
def test_processes_save_together(mine: float, theirs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All save when one's time is up, and only at steps where all ask: saving is a joint act."""
    monkeypatch.setattr(SaveByClock, "_agreed", staticmethod(lambda due, device: due or theirs))
    found = saves(SaveByClock(every_s=mine), 35, 2)
    assert found == ([AGREE_EVERY, 2 * AGREE_EVERY, 3 * AGREE_EVERY] if theirs or mine == 0.0 else [])
