"""Checkpoints that are whole or ignored.

The Trainer writes a checkpoint file by file. When all are on disk a seal naming them and their sizes is written last; a
folder without a seal, or whose files are not what the seal says, was cut off and is never resumed from.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from align.core.artifact import write_json

log = logging.getLogger(__name__)
SEAL = "complete.json"
# One of each: under FSDP2 accelerate writes the optimizer and a copy of the weights under names of its own.
_NEEDED = (("trainer_state.json",), ("optimizer.pt", "optimizer.bin"), ("scheduler.pt",))


def seal(folder: Path) -> None:
    """Flush a finished checkpoint's files to disk and write its seal."""
    sizes = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SEAL):
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
        sizes[str(path.relative_to(folder))] = path.stat().st_size
    write_json(folder / SEAL, sizes)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is sealed and each of its files is there at its sealed size."""
    try:
        sizes: dict[str, int] = json.loads((folder / SEAL).read_text())
    except (OSError, ValueError):
        return False
    paths = {folder / name: size for name, size in sizes.items()}
    if any(not path.is_file() or path.stat().st_size != size for path, size in paths.items()):
        return False
    needed = all(any(name in sizes for name in names) for names in _NEEDED)
    return needed and any(name.endswith(".safetensors") for name in sizes)


def _checkpoints(folder: Path) -> dict[int, Path]:
    numbered = {path.name.removeprefix("checkpoint-"): path for path in folder.glob("checkpoint-*") if path.is_dir()}
    return {int(number): path for number, path in numbered.items() if number.isdigit()}


def newest_whole(folder: Path) -> Path | None:
    """The whole checkpoint with the most steps, or None. Cut-off ones are deleted."""
    for _, path in sorted(_checkpoints(folder).items(), reverse=True):
        if is_whole(path):
            return path
        log.warning("%s was cut off while it was written and is not used", path)
        shutil.rmtree(path)
    return None


class Sealing(TrainerCallback):
    """Seals each checkpoint the Trainer has written, then deletes the older ones: at all times one whole one is kept."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        found = _checkpoints(Path(args.output_dir))
        seal(found[state.global_step])
        for step, path in found.items():
            if step != state.global_step:
                shutil.rmtree(path)
