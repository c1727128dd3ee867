"""What sharing the prompt of a pair saves: forward and backward of one batch, with it and without.

    python -m benchmarks.prefix_sharing [--profile]        on a GPU, about 2 minutes
    python -m benchmarks.prefix_sharing --smoke            tiny, on the CPU

Question: of the speed-up that the operations allow, how much is there? A Llama of the sizes of EXAONE 3.5 2.4B with random
weights in bfloat16 does forward and backward of the DPO loss on pairs of prompt P and completions C: once in the shared
layout (every prompt once, FlexAttention), once in the separate one (a row per sequence, SDPA). All rows of a shape have
the same length, so the separate layout has no padding to be blamed for. Both sides use the same fused head on the completion
tokens alone, and recompute activations (gradient checkpointing), without which 80 GB are not enough.

Operations of a pair, after arXiv 2204.02311 (6 per parameter and token) with causal attention as flash attention does it (2
forward, 5 backward of hL per pair of tokens that see each other, twice); T = parameters of the body, h = heads x head_dim,
L = layers, k = 6 for our head:

    separate  6T(2P + 2C) + 7hL 2(P + C)^2                  + k 2C V d
    shared    6T(P + 2C)  + 7hL (P^2 + 4PC + 2C^2)          + k 2C V d

Recomputing makes the 6 an 8 and the 7 a 9 and leaves k alone; what is measured is compared with that ratio.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from align.packing.layout import Item, PackedBatch
from align.train.losses import PairLogprobs, find_loss
from align.train.scoring import Scoring, Setup, prepare
from benchmarks.gpu import (
    Bar,
    Call,
    Clock,
    Turns,
    Watch,
    clean,
    device_for,
    machine_rates,
    parser,
    peak_bytes,
    reason_of,
    save,
    say_bars,
    show_profile,
    take_turns,
)

SHAPES = ((2048, 512), (512, 512), (8192, 1024))  # P, C
SHARED_TOKENS = 24_576  # of a batch, about: enough that products run at full rate
ARMS = ("shared", "separate")
GATE = 0.1  # difference of a gradient between the layouts, by norm; bfloat16 gives about 1 %


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a Llama.

    Attributes:
        layers, hidden, ffn, heads, kv_heads, head_dim, vocab: as in its config.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def attention_width(self) -> int:
        """h = heads x head_dim."""
        return self.heads * self.head_dim

    @property
    def body(self) -> int:
        """T: parameters of the layers' matrices."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.ffn)

    @property
    def head(self) -> int:
        """V x d."""
        return self.vocab * self.hidden


EXAONE_2B = Sizes(layers=30, hidden=2560, ffn=7168, heads=32, kv_heads=8, head_dim=80, vocab=102_400)
EXAONE_8B = Sizes(layers=32, hidden=4096, ffn=14_336, heads=32, kv_heads=8, head_dim=128, vocab=102_400)
TINY = Sizes(layers=2, hidden=32, ffn=48, heads=4, kv_heads=2, head_dim=8, vocab=128)


def speedup(sizes: Sizes, prompt: int, completion: int, *, head_factor: int = 6, recompute: bool = False) -> float:
    """S(P, C): operations of a pair without sharing over those with it; formula at the top of the file."""
    body, attention = (8, 9) if recompute else (6, 7)
    body *= sizes.body
    attention *= sizes.attention_width * sizes.layers
    head = head_factor * 2 * completion * sizes.head
    separate = body * 2 * (prompt + completion) + attention * 2 * (prompt + completion) ** 2
    shared = body * (prompt + 2 * completion) + attention * (prompt**2 + 4 * prompt * completion + 2 * completion**2)
    return (separate + head) / (shared + head)


def token_limit(rho: float) -> float:
    """S where only the body's tokens count, rho = P / C; never 2."""
    return (2 * rho + 2) / (rho + 2)


def random_llama(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Any:
    """A Llama with random weights and tied embeddings, made on the device."""
    config = LlamaConfig(
        vocab_size=sizes.vocab, hidden_size=sizes.hidden, intermediate_size=sizes.ffn, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, num_key_value_heads=sizes.kv_heads, head_dim=sizes.head_dim,
        max_position_embeddings=32_768, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.to(device)


def random_items(count: int, prompt: int, completion: int, vocab: int) -> list[Item]:
    """Pairs of random tokens whose completions differ from their first token on."""
    generator = torch.Generator().manual_seed(prompt + completion)
    items: list[Item] = []
    for _ in range(count):
        ids = torch.randint(2, vocab, (prompt + 2 * completion,), generator=generator).tolist()
        ids[prompt], ids[prompt + completion] = 0, 1
        items.append((ids[:prompt], [ids[prompt : prompt + completion], ids[prompt + completion :]]))
    return items


class Layouts:
    """One model that is asked in either layout.

    `prepare` installs one way in at a time; both are kept, and `switch` puts one in place.
    """

    def __init__(self, model: Any, longest: int) -> None:
        self.model = model
        self.setups: dict[str, Setup] = {}
        self._forwards: dict[str, Callable[..., Any]] = {}
        for layout in ARMS:
            self.setups[layout] = prepare(model, layout=layout, head="auto", longest=longest)
            self._forwards[layout] = model.forward

    def switch(self, layout: str) -> None:
        self.model.set_attn_implementation(self.setups[layout].attention)
        self.model.forward = self._forwards[layout]

    def call(self, layout: str, items: list[Item], device: torch.device) -> Callable[[], Tensor]:
        """Forward and backward of the DPO loss of these pairs; the gradients are left in the model."""
        batch = self.setups[layout].build(items).to(device)
        loss_of = pair_loss(batch, len(items))

        def call() -> Tensor:
            self.model.zero_grad(set_to_none=True)
            loss, _ = self.model(scoring=Scoring(batch=batch, loss_of=loss_of))
            loss.backward()
            return loss.detach()

        return call


def pair_loss(batch: PackedBatch, count: int) -> Callable[[Tensor, int, int], Tensor]:
    """Mean DPO loss over the pairs of a batch, with a cached reference of 0."""
    function = find_loss("dpo").bind({"beta": 0.1})

    def loss_of(logps: Tensor, first: int, last: int) -> Tensor:
        sums, tokens = batch.sums(logps, first, last), batch.tokens_EK[first:last]
        zero = torch.zeros_like(sums[:, 0])
        losses, _ = function(
            PairLogprobs(
                chosen=sums[:, 0], rejected=sums[:, 1], chosen_tokens=tokens[:, 0], rejected_tokens=tokens[:, 1],
                reference_chosen=zero, reference_rejected=zero,
            )
        )  # fmt: skip
        return losses.sum() / count

    return loss_of


def gradient_difference(layouts: Layouts, calls: dict[str, Call]) -> dict[str, float]:
    """How far loss and two gradients of the two layouts are apart: the first layer's values, the tied embedding."""
    seen: dict[str, list[Tensor]] = {}
    core = layouts.model.model
    watched = (core.layers[0].self_attn.v_proj.weight, core.embed_tokens.weight)
    for layout, call in calls.items():
        layouts.switch(layout)
        loss = call()
        seen[layout] = [loss.float(), *(weight.grad.detach().clone() for weight in watched)]
    layouts.model.zero_grad(set_to_none=True)
    pairs = zip(seen["shared"], seen["separate"], strict=True)
    loss, *others = (float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs)
    return {"loss": loss, **dict(zip(("values", "embedding"), others, strict=True))}


def measure(
    layouts: Layouts, sizes: Sizes, prompt: int, completion: int, device: torch.device, clock: Clock, smoke: bool
) -> dict[str, Any]:
    """The row of a shape."""
    count = 2 if smoke else max(1, SHARED_TOKENS // (prompt + 2 * completion))
    items = random_items(count, prompt, completion, sizes.vocab)
    calls = {layout: layouts.call(layout, items, device) for layout in ARMS}
    expected = speedup(sizes, prompt, completion, recompute=not smoke)
    row: dict[str, Any] = {
        "P": prompt, "C": completion, "pairs": count, "formula": expected,
        "formula_without_recompute": speedup(sizes, prompt, completion), "token_limit": token_limit(prompt / completion),
    }  # fmt: skip
    try:
        row["difference"] = gradient_difference(layouts, calls)
    except Exception as error:  # out of memory, or a kernel that does not compile: the row says so
        return row | {"status": f"failed: {reason_of(error)}"}
    if not all(value <= GATE for value in row["difference"].values()):
        return row | {"status": "wrong: the layouts differ"}
    turns: Turns = take_turns(
        calls, device, clock, seconds=0.05 if smoke else 3.0, repeats=2 if smoke else 5, reserve=6, before=layouts.switch
    )
    row["arms"] = {layout: turns.row(layout) for layout in ARMS}
    for layout in ARMS:
        if turns.is_timed(layout):
            layouts.switch(layout)
            peak = peak_bytes(calls[layout], device)
            row["arms"][layout]["peak_gb"] = None if peak is None else peak / 1e9
            row["arms"][layout]["tokens"] = layouts.setups[layout].build(items).num_tokens
    layouts.model.zero_grad(set_to_none=True)
    if not all(turns.is_timed(layout) for layout in ARMS):
        return row | {"status": "failed: an arm has no time"}
    measured = turns.median_ms("separate") / turns.median_ms("shared")
    return row | {"measured": measured, "measured_over_formula": measured / expected, "status": "ok"}


def bars_of(rows: Sequence[dict[str, Any]]) -> list[Bar]:
    """The worst shape; NaN, and so short, where a shape failed or none was measured."""
    shares = [row.get("measured_over_formula", float("nan")) for row in rows]
    worst = min(shares, default=float("nan")) if all(share == share for share in shares) else float("nan")
    return [("prefix_sharing", worst, ">=", 0.92)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write `results/prefix_sharing.json` after each shape, print the bar; 1 if it is short, 2 without a GPU."""
    options = parser(__doc__, budget=140.0).parse_args(argv)
    device = device_for(options.smoke)
    clock = Clock(3600.0 if options.smoke else options.budget)
    sizes, dtype = (TINY, torch.float32) if options.smoke else (EXAONE_2B, torch.bfloat16)
    shapes = ((12, 4), (6, 6)) if options.smoke else SHAPES
    rows: list[dict[str, Any]] = []
    with Watch(device) as watch:
        rates = machine_rates(device, clock, smoke=options.smoke)
        clean(device)
        model = random_llama(sizes, dtype, device)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        layouts = Layouts(model.train(), longest=max(map(sum, shapes)))
        setups = {layout: vars(setup) for layout, setup in layouts.setups.items()}
        print(f"{sizes.body / 1e9:.2f}e9 parameters in the body; {setups}", flush=True)
        for index, (prompt, completion) in enumerate(shapes):
            if index and clock.left() < 20:
                rows.append({"P": prompt, "C": completion, "status": "not measured: out of time"})
            else:
                rows.append(measure(layouts, sizes, prompt, completion, device, clock, options.smoke))
                clean(device)
            row = rows[-1]
            print(
                f"  P={prompt} C={completion}: {row.get('measured', float('nan')):.3f} of {row.get('formula', 0):.3f},"
                f" {row['status']}", flush=True,
            )  # fmt: skip
            save(
                "prefix_sharing", rows, options.smoke, model=vars(sizes), setups=setups, rates=rates, watch=watch.found(),
                gradient_checkpointing=True, dtype=str(dtype),
            )  # fmt: skip
        code = say_bars(bars_of(rows), options.smoke)
        if options.profile:
            items = random_items(2, *shapes[0], sizes.vocab)
            layouts.switch("shared")
            show_profile(layouts.call("shared", items, device), device, f"two pairs of P, C = {shapes[0]}, shared")
    return code


if __name__ == "__main__":
    sys.exit(main())
