"""Training on several processes: the call is written to a file and `align.train.job` runs it, one process per GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from align.core.artifact import write_json
from align.core.errors import StepError, UserError
from align.train.data import DialogueExample, PairExample
from align.train.options import LoraOptions, TrainOptions
from align.train.run import train_preference, train_sft

KINDS = ("UserError", "StepError", "other")  # of errors, the most telling first
_PATHS = ("model", "output", "reference", "checkpoint_dir", "journal")


def launched(
    processes: int, examples: Sequence[DialogueExample | PairExample], options: TrainOptions, **call: Any
) -> dict[str, Any]:
    """`train_sft` (no `loss` in `call`) or `train_preference` in as many processes.

    Args:
        processes: 1 runs it here.
        examples: as for the two functions.
        options: as for the two functions.
        call: their other arguments by name; `journal` is the path of a journal file, or None.

    Returns:
        what the function returned in the first process.

    Raises:
        UserError, StepError: as raised there, a process ended without a word, or more processes than GPUs.
    """
    if processes == 1:
        return run_job(examples, options, call)
    if 0 < (gpus := torch.cuda.device_count()) < processes:
        raise UserError(f"{call['label']}: processes: {processes}, but this machine has {gpus} GPU{'s' * (gpus > 1)}")
    folder = Path(call["checkpoint_dir"]) / "job"
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / "result.json", *folder.glob("error-*.json")):
        old.unlink(missing_ok=True)
    write_job(folder / "job.json", examples, options, call)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "ALIGN_PARENT": str(os.getpid())}
    ended = subprocess.run([*command, "-m", "align.train.job", str(folder / "job.json")], check=False, env=environment)
    return read_result(folder, f"{call['label']}: a training process ended with code {ended.returncode}")


def read_result(folder: Path, otherwise: str) -> dict[str, Any]:
    """What the processes of a job left.

    Raises:
        UserError, StepError: the most telling of their errors: when one fails, the others only lose their connection.
    """
    errors = [(path.stat().st_mtime, json.loads(path.read_text())) for path in folder.glob("error-*.json")]
    if errors:
        _, error = min(errors, key=lambda found: (KINDS.index(found[1]["kind"]), found[0]))
        raise (UserError if error["code"] == UserError.exit_code else StepError)(error["message"])
    if not (folder / "result.json").is_file():
        raise StepError(f"{otherwise}; its output says why")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def write_job(path: Path, examples: Sequence[Any], options: TrainOptions, call: Mapping[str, Any]) -> None:
    """Write a call for `read_job`."""
    plain = {name: str(value) if name in _PATHS and value is not None else value for name, value in call.items()}
    rows = [{**vars(example), "kind": type(example).__name__} for example in examples]
    write_json(path, {"options": asdict(options), "call": plain, "examples": rows})


def read_job(path: Path) -> tuple[list[DialogueExample | PairExample], TrainOptions, dict[str, Any]]:
    """What `write_job` wrote."""
    job = json.loads(path.read_text())
    kinds = {"DialogueExample": DialogueExample, "PairExample": PairExample}
    examples: list[DialogueExample | PairExample] = []
    for row in job["examples"]:
        kind = kinds[row.pop("kind")]
        examples.append(kind(**{name: tuple(value) if name.endswith("_ids") else value for name, value in row.items()}))
    lora = job["options"].pop("lora")
    options = TrainOptions(**job["options"], lora=LoraOptions(**lora) if lora else None)
    call = {n: Path(v) if n in _PATHS and v is not None else v for n, v in job["call"].items()}
    return examples, options, call


def run_job(examples: Sequence[Any], options: TrainOptions, call: Mapping[str, Any]) -> dict[str, Any]:
    """The call itself, in this process."""
    from align.core.journal import Journal

    if "loss" not in call:
        return train_sft(examples=examples, options=options, **call)
    # Only the first process keeps a journal; the others are told what it holds.
    kept = call["journal"] is not None and int(os.environ.get("RANK", "0")) == 0
    journal = Journal(call["journal"]) if kept else None
    return train_preference(examples=examples, options=options, **{**call, "journal": journal})
