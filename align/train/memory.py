"""How much memory training will take, from a model's config alone: nothing is loaded, torch is not imported.

    peak = runtime + source file + weights + gradients + optimizer + bf16 copies of the weights + activations + LM head

Activations are counted tensor by tensor, as autograd keeps them for a Llama-like block (docs/training.md has the sums).
Symbols: L = layers, d = hidden size, k = key/value width, f = inner width of the MLP, V = vocabulary, P = parameters,
T = tokens of a micro-batch, N = scored tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from align.train.kernels.plan import CPU_BUDGET_BYTES, CUDA_BUDGET_BYTES

# Python, torch and transformers before any tensor: resident on the CPU, CUDA context and workspaces on a GPU.
RUNTIME_BYTES = {"cpu": 0.7e9, "cuda": 1.0e9}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder-only transformer; widths in elements."""

    layers: int
    hidden: int
    key_value: int
    inner: int
    vocabulary: int
    parameters: float

    @staticmethod
    def of(folder: Path, parameters: float) -> ModelShape | None:
        """The shape of a model folder, or None where its config does not name these sizes."""
        try:
            config = json.loads((folder / "config.json").read_text())
            heads = config["num_attention_heads"]
            width = config.get("head_dim") or config["hidden_size"] // heads
            return ModelShape(
                layers=config["num_hidden_layers"],
                hidden=config["hidden_size"],
                key_value=width * (config.get("num_key_value_heads") or heads),
                inner=config["intermediate_size"],
                vocabulary=config["vocab_size"],
                parameters=parameters,
            )
        except (OSError, KeyError, ValueError):
            return None


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes at the peak of a training step, by what they hold."""

    runtime: float
    source: float
    weights: float
    gradients: float
    optimizer: float
    copies: float
    activations: float
    head: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def _block_bytes_per_token(shape: ModelShape, bf16: bool) -> float:
    """Kept for the backward pass by one block, per token."""
    d, k, f = shape.hidden, shape.key_value, shape.inner
    if bf16:
        # Norms work in float32 and their outputs are rounded once for each projection; attention is kept in float32.
        norms = 2 * (4 * d + 4 * d)
        projections = 3 * 2 * d + 2 * 2 * d + 2 * d  # inputs of q, k, v; gate, up; o
        rotary = 2 * (2 * d + 2 * k)
        attention = 4 * d + 2 * 4 * k * 1.5 + 4 * d  # the prefix's keys and values are copied for each branch
        return norms + projections + rotary + attention + 4 * 2 * f
    norms = 2 * (4 * d + 4 * d + 4 * d)
    rotary = 2 * (4 * d + 4 * k)
    attention = 4 * d + 2 * 4 * k * 1.5 + 4 * d
    return norms + rotary + attention + 4 * 4 * f


def _lora_parameters(shape: ModelShape, rank: int) -> float:
    """Of adapters on the seven linear layers of every block."""
    d, k, f = shape.hidden, shape.key_value, shape.inner
    return shape.layers * rank * (2 * (d + d) + 2 * (d + k) + 3 * (d + f))


def training_memory(
    shape: ModelShape,
    *,
    tokens: int,
    scored: int,
    bf16: bool,
    lora_rank: int | None = None,
    gradient_checkpointing: bool = False,
    stored_bytes: int = 4,
    device: str = "cpu",
    shards: int = 1,
) -> TrainingMemory:
    """Estimate the peak of a training step.

    Args:
        shape: of the model.
        tokens: of the largest micro-batch, padding included.
        scored: completion tokens in it.
        bf16: bfloat16 autocast, or float32 throughout.
        lora_rank: of adapters; None trains all weights.
        gradient_checkpointing: block inputs are kept, and one block at a time is computed again.
        stored_bytes: per weight in the model's file. Adapters under bf16 leave the model as it is stored; otherwise it is
            widened to float32, and on a CPU the mapped file stays in memory beside it.
        device: cpu or cuda.
        shards: processes that share weights, gradients and optimizer (FSDP2).
    """
    trained = shape.parameters if lora_rank is None else _lora_parameters(shape, lora_rank)
    widened = lora_rank is None or not bf16
    frozen = 0.0 if lora_rank is None else shape.parameters * (stored_bytes if bf16 else 4)
    body = shape.parameters - shape.vocabulary * shape.hidden
    block = _block_bytes_per_token(shape, bf16)
    if lora_rank is not None:  # every adapter keeps its input once more
        block += (2 if bf16 else 0) * (6 * shape.hidden + shape.inner)
    kept = shape.layers * 4 * shape.hidden + block if gradient_checkpointing else shape.layers * block
    width = 2 if bf16 else 4
    logits = min(scored * shape.vocabulary * width, CUDA_BUDGET_BYTES if device == "cuda" else CPU_BUDGET_BYTES)
    head_weight = shape.vocabulary * shape.hidden * (width if bf16 else 0)
    # Of the head's weight and, where it is tied, of the embedding: both are whole before they are added up.
    head_gradient = 2 * shape.vocabulary * shape.hidden * 4 if lora_rank is None else 0
    copies = 2 * body if bf16 and (lora_rank is None or stored_bytes > 2) else 0
    # Under checkpointing a block's copies go with it.
    copies = copies / shape.layers if gradient_checkpointing else copies
    return TrainingMemory(
        runtime=RUNTIME_BYTES[device],
        source=shape.parameters * stored_bytes if device == "cpu" and widened and stored_bytes != 4 else 0.0,
        weights=(4 * trained + frozen) / shards,
        gradients=4 * trained / shards,
        optimizer=8 * trained / shards,
        copies=copies,
        activations=tokens * kept,
        head=logits + head_weight + head_gradient,
    )
