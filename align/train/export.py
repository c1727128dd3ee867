"""From what a trainer holds (whole, sharded, or adapters) to one plain model, ready to be saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from align.core.errors import StepError
from align.train.models import load_model
from align.train.options import LoraOptions


def with_adapters(model: Any, lora: LoraOptions, seed: int) -> Any:
    """A PEFT model around `model`: its weights frozen, float32 adapters on every linear layer but the LM head."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    wrapped = get_peft_model(model, config)
    torch.random.set_rng_state(state)
    return wrapped


def gathered_state(trainer: Any) -> dict[str, torch.Tensor]:
    """The trained weights (with PEFT, of the adapters) on the CPU; every process must call it."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    sharded = trainer.is_fsdp_enabled
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else model.state_dict()
    # FSDP's activation checkpointing puts a name of its own between a block's and its parameters'.
    state = {name.replace("_checkpoint_wrapped_module.", ""): value for name, value in state.items()}
    if isinstance(model, PeftModel):  # by PEFT's names for files, which leave the adapter's own name out
        state = {name.replace(".default.", "."): value for name, value in state.items() if ".lora_" in name}
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def plain_model(source: Path, state: dict[str, torch.Tensor], lora: LoraOptions | None, seed: int) -> Any:
    """The model of `source` with trained weights put in; adapters are merged in float32."""
    model = load_model(source)
    if lora is None:
        model.load_state_dict(state)
        return model
    wrapped = with_adapters(model, lora, seed)
    expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    if different := sorted(set(expected) ^ set(state)):
        raise StepError(f"{len(different)} adapters of {source} are missing or too many, {different[0]} for one")
    set_peft_model_state_dict(wrapped, state)
    return wrapped.merge_and_unload()
