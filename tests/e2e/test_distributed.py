"""Two processes (gloo, DDP and FSDP2) train what one process trains, save the same model, go on after a stop, and end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align.core.errors import StepError, UserError
from align.train.launch import launched, read_result, write_job
from align.train.options import LoraOptions
from tests.unit.test_trainer import make_dialogues, make_model, make_pairs, options

COMPARED = ("loss", "grad_norm", "margin", "accuracy", "chosen_logps", "chosen_tokens", "tokens", "kl", "learning_rate")
LORA = LoraOptions(rank=4, alpha=8)


@pytest.fixture(scope="module", params=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"), tied=request.param == "tied")


def call_of(base: Path, folder: Path) -> dict[str, Any]:
    return {
        "model": base, "reference": base, "output": folder / "model", "loss": "dpo", "loss_options": {"beta": 0.1},
        "checkpoint_dir": folder / "checkpoints", "journal": folder / "journal.jsonl", "label": "dpo",
    }  # fmt: skip


def how(**changes) -> Any:
    """9 pairs in eights: the second step has one pair, so that one of two processes has nothing to do in it."""
    return options(**{"batch_size": 8, "epochs": 2, "save_steps": 1, "snapshots": 1, **changes})


def sharded(base: Path, folder: Path, stop_after: int = -1, **changes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two FSDP2 processes: (result, what the first of them recorded)."""
    job = folder / "checkpoints" / "job"
    shutil.rmtree(job, ignore_errors=True)
    job.mkdir(parents=True)
    write_job(job / "job.json", make_pairs(9), how(parallel="fsdp2", **changes), call_of(base, folder))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*command, "-m", "tests.e2e.sharded_job", str(job / "job.json")], env={**os.environ, "STOP_AFTER": str(stop_after)},
        check=False,
    )  # fmt: skip
    return read_result(job, "ended"), json.loads((job / "sharded-0.json").read_text())


def same(run: dict[str, Any], other: dict[str, Any], folder: Path, other_folder: Path, places: tuple[str, ...]) -> None:
    for name in COMPARED:
        mine, theirs = ([entry[name] for entry in each["history"]] for each in (run, other))
        # Gradients are summed in another order: float32 rounding, carried through Adam for four steps. Margins, drifts
        # and the KL are differences of log-probs of some 100 nats, which float32 knows to 8e-6.
        assert mine == pytest.approx(theirs, rel=2e-5, abs=2e-5), name
    for mine, theirs in zip(run["examined"], other["examined"], strict=True):
        assert mine == pytest.approx(theirs, rel=2e-5, abs=2e-5)
    for place in places:
        ours, others = (load_file(path / place / "model.safetensors") for path in (folder, other_folder))
        assert set(ours) == set(others)
        assert max((ours[name] - others[name]).abs().max() for name in others) < 2e-5, place


@pytest.fixture(scope="module")
def alone(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("alone")
    return launched(1, make_pairs(9), how(), **call_of(base, folder)), folder


def test_two_processes_train_what_one_does(alone: tuple[dict[str, Any], Path], base: Path, tmp_path: Path) -> None:
    single, folder = alone
    double = launched(2, make_pairs(9), how(), **call_of(base, tmp_path))
    assert [e["examples"] for e in double["history"]] == [e["examples"] for e in single["history"]] == [8, 1, 8, 1]
    same(double, single, tmp_path, folder, ("model", "snapshots/step-000002"))
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 9


def test_sharded_training_stopped_and_resumed(alone: tuple[dict[str, Any], Path], base: Path, tmp_path: Path) -> None:
    """FSDP2 for real, with activation checkpointing: stopped in step 3 of 4, it goes on after step 2 to the same end."""
    with pytest.raises(StepError, match="stopped by the test"):
        sharded(base, tmp_path, stop_after=3, gradient_checkpointing=True)
    found, record = sharded(base, tmp_path, gradient_checkpointing=True)
    assert record["first_step"] == 2 and record["sharded"] == record["parameters"]
    same(found, alone[0], tmp_path, alone[1], ("model", "snapshots/step-000002"))


def test_sharded_adapters(base: Path, tmp_path: Path) -> None:
    single = launched(1, make_pairs(9), how(lora=LORA), **call_of(base, tmp_path / "one"))
    found, record = sharded(base, tmp_path / "two", lora=LORA, gradient_checkpointing=True)
    # accelerate leaves two parameters outside the blocks of a PEFT model whole.
    assert record["sharded"] == record["parameters"] - 2
    same(found, single, tmp_path / "two", tmp_path / "one", ("model", "snapshots/step-000002"))
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "two" / "model" / "model.safetensors")
    assert max((after[name] - before[name]).abs().max() for name in before) > 1e-4


def test_fewer_examples_than_processes(base: Path, tmp_path: Path) -> None:
    found = launched(2, make_pairs(1), how(), **call_of(base, tmp_path))
    assert found["examples"] == 1 and found["step0"]["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_errors_travel_from_the_processes(base: Path, tmp_path: Path) -> None:
    call = {"model": base, "output": tmp_path / "model", "checkpoint_dir": tmp_path / "checkpoints", "label": "sft"}
    with pytest.raises(UserError, match="parallel: fsdp2 needs GPUs"):
        launched(2, make_dialogues(3), options(parallel="fsdp2"), **call)
    with pytest.raises(StepError, match="appears 2 times"):
        launched(2, [*make_dialogues(3), *make_dialogues(1)], options(), **call)


def test_more_processes_than_gpus_are_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"dpo: processes: 2, but this machine has 1 GPU$"):
        launched(2, make_pairs(3), options(), **call_of(base, tmp_path))


def test_processes_end_with_the_one_that_launched_them(base: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.unit.test_trainer import *\n"
        "from align.train.launch import launched\n"
        "base, folder = map(Path, sys.argv[1:])\n"
        "launched(2, make_dialogues(8), options(epochs=5000, save_steps=5), model=base, output=folder / 'model', "
        "checkpoint_dir=folder / 'checkpoints', label='sft')"
    )
    caller = subprocess.Popen([sys.executable, "-c", program, str(base), str(tmp_path)])
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("checkpoints/checkpoint-*/complete.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert caller.poll() is None
    os.kill(caller.pid, signal.SIGKILL)
    caller.wait()
    time.sleep(5)
    before = sorted(path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*"))
    time.sleep(3)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")) == before
    assert not (tmp_path / "model").exists()
