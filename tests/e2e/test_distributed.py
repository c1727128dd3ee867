"""Two processes (gloo, DDP and FSDP2) train what one process trains, and save the same model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from align.core.errors import StepError, UserError
from align.train.launch import launched
from tests.unit.test_trainer import make_dialogues, make_model, make_pairs, options

COMPARED = ("loss", "grad_norm", "margin", "accuracy", "chosen_logps", "chosen_tokens", "tokens", "kl", "learning_rate")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"))


def dpo(base: Path, folder: Path, processes: int, **changes) -> dict:
    """9 pairs in eights: the second step has one pair, so that one of two processes has nothing to do in it."""
    return launched(
        processes, make_pairs(9), options(batch_size=8, epochs=2, save_steps=3, snapshots=1, **changes), model=base,
        reference=base, output=folder / "model", loss="dpo", loss_options={}, checkpoint_dir=folder / "checkpoints",
        journal=folder / "journal.jsonl", label="dpo",
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("alone")
    return dpo(base, folder, 1), folder


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_train_what_one_does(parallel: str, alone: tuple[dict, Path], base: Path, tmp_path: Path) -> None:
    single, folder = alone
    double = dpo(base, tmp_path, 2, parallel=parallel)
    assert [e["examples"] for e in double["history"]] == [e["examples"] for e in single["history"]] == [8, 1, 8, 1]
    for name in COMPARED:
        # Gradients are summed in another order: float32 rounding, carried through Adam for four steps.
        assert [e[name] for e in double["history"]] == pytest.approx(
            [e[name] for e in single["history"]], rel=2e-5, abs=1e-6
        ), name
    for mine, theirs in zip(double["examined"], single["examined"], strict=True):
        assert mine == pytest.approx(theirs, rel=2e-5, abs=1e-6)
    for place in ("model", "snapshots/step-000002"):
        ours, other = (load_file(path / place / "model.safetensors") for path in (tmp_path, folder))
        assert set(ours) == set(other)
        for name, weight in other.items():
            assert (ours[name] - weight).abs().max() < 2e-5, name
    assert json.loads((tmp_path / "checkpoints" / "job" / "result.json").read_text())["steps"] == 4


def test_resume_of_a_sharded_run(alone: tuple[dict, Path], base: Path, tmp_path: Path) -> None:
    """The whole run again over its checkpoint of step 3: one step is left, and its numbers are those of before."""
    first = dpo(base, tmp_path, 2, parallel="fsdp2", gradient_checkpointing=True)
    again = dpo(base, tmp_path, 2, parallel="fsdp2", gradient_checkpointing=True)
    assert [e["step"] for e in again["history"]] == [1, 2, 3, 4]
    for name in COMPARED:
        assert [e[name] for e in again["history"]] == pytest.approx([e[name] for e in first["history"]], abs=1e-6), name
    ours, other = (load_file(path / "model" / "model.safetensors") for path in (tmp_path, alone[1]))
    assert max((ours[name] - other[name]).abs().max() for name in other) < 2e-5


def test_errors_travel_from_the_processes(base: Path, tmp_path: Path) -> None:
    call = {"model": base, "output": tmp_path / "model", "checkpoint_dir": tmp_path / "checkpoints", "label": "sft"}
    with pytest.raises(UserError, match="choose from auto, shared, separate"):
        launched(2, make_dialogues(3), options(layout="padded"), **call)
    with pytest.raises(StepError, match="appears 2 times"):
        launched(2, [*make_dialogues(3), *make_dialogues(1)], options(), **call)
