"""Adapters: what is trained, what the reference is, and that the merged folder is the trained model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from align.train.export import with_adapters
from align.train.models import load_model
from align.train.options import LoraOptions, training_arguments
from align.train.trainer import AlignTrainer
from tests.unit.test_trainer import Killed, kill_at, make_dialogues, make_model, make_pairs, one_thread, options, prefer  # noqa: F401 - a fixture

LORA = LoraOptions(rank=4, alpha=8, dropout=0.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_step0_is_ln2_on_every_way_to_adapters(base: Path, tmp_path: Path) -> None:
    """Adapters on the base, then on the merged result, then full training on that; each with its start as reference."""
    start = base
    for k, lora in enumerate((LORA, LORA, None)):
        found = prefer(start, tmp_path / str(k), make_pairs(8), options(lora=lora, epochs=2), reference=start)
        assert found["same_weights"] and found["step0"]["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert found["history"][-1]["loss"] < math.log(2) - 1e-3
        start = tmp_path / str(k) / "model"


def test_reference_can_be_an_earlier_stage(base: Path, tmp_path: Path) -> None:
    prefer(base, tmp_path / "M1", make_pairs(8), options(lora=LORA, epochs=3))
    found = prefer(tmp_path / "M1" / "model", tmp_path / "M2", make_pairs(8), options(lora=LORA), reference=base)
    assert not found["same_weights"] and found["step0"]["loss"] < math.log(2) - 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_merged_folder_is_the_trained_model(dtype: torch.dtype, tmp_path: Path) -> None:
    """Tied embeddings stay tied and untouched; only linear layers inside the body change."""
    base = make_model(tmp_path / "base", dtype=dtype)
    precision = "fp32" if dtype == torch.float32 else "bf16"
    settings = options(lora=LORA, epochs=3, precision=precision, save_dtype="float32")
    found = prefer(base, tmp_path, make_pairs(8), settings)
    before, after = weights(base), weights(tmp_path / "model")
    changed = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}
    assert "lm_head.weight" not in after and found["logit_difference"]["reload"] < 1e-5
    assert found["history"][-1]["loss"] < found["history"][0]["loss"]


def test_only_adapters_get_gradients_and_the_head_none(base: Path, tmp_path: Path) -> None:
    model = with_adapters(load_model(base), LORA, seed=1)
    settings = options(lora=LORA, save_steps=99, max_grad_norm=0.0)
    trainer = AlignTrainer(
        model, training_arguments(settings, 4, tmp_path), examples=make_dialogues(4), loss="nll", loss_options={},
        precision="fp32", batch_size=4, micro_batch_tokens=1000,
    )  # fmt: skip
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable) and isinstance(model, PeftModel)
    frozen = {n: p.clone() for n, p in model.named_parameters() if n not in trainable}
    trainer.train()
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


def test_adapters_are_drawn_from_the_seed_alone(base: Path) -> None:
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    one, other = (with_adapters(load_model(base), LORA, seed=5).state_dict() for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_resume_with_adapters_is_a_continuation(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, settings = make_pairs(14), options(lora=LoraOptions(rank=4, alpha=8, dropout=0.3), epochs=2, save_steps=1)
    whole = prefer(base, tmp_path / "whole", pairs, settings)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 5)
        prefer(base, tmp_path / "cut", pairs, settings)
    resumed = prefer(base, tmp_path / "cut", pairs, settings)
    assert [e["loss"] for e in resumed["history"]] == [e["loss"] for e in whole["history"]]
    one, other = weights(tmp_path / "whole" / "model"), weights(tmp_path / "cut" / "model")
    assert all(torch.equal(one[name], other[name]) for name in one)
