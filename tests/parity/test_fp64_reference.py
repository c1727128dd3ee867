"""The training path against a second, plain float64 implementation that shares no code with it.

The reference below knows only the formulas: one unpadded sequence at a time, a full log-softmax, loops.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from align.train.data import DialogueExample, PairExample
from align.train.losses import LOSSES
from align.train.trainer import AlignTrainer

PAIRS = [
    ((3, 4, 5), (6, 7, 8, 9, 2), (10, 2)),
    ((11,), (12, 2), (13, 14, 15, 16, 17, 18, 2)),
    ((19, 20, 21, 22, 23, 24), (2,), (25, 26, 2)),
    ((5, 5), (6, 6, 6, 2), (6, 6, 7, 2)),
]
REFERENCE = [(-17.0, -6.5), (-7.25, -25.0), (-3.5, -11.0), (-14.0, -15.5)]
OPTIONS = {
    "nll": {},
    "dpo": {"beta": 0.3, "label_smoothing": 0.15, "nll_weight": 0.2},
    "ipo": {"tau": 0.4},
    "dpo_norm": {"beta": 2.0, "label_smoothing": 0.15, "robust": True},
    "simpo": {"beta": 1.7, "gamma_absolute": 0.6},
    "simper": {},
    "orpo": {"odds_ratio_weight": 0.25},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def exact_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's RMSNorm rounds to float32 in a float64 model too, so gradients would depend on where they are added."""

    def forward(self: LlamaRMSNorm, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


def build(dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


def plain_logp(model: LlamaForCausalLM, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor([list(prompt + completion)])
    probabilities = torch.softmax(model(input_ids=ids).logits[0], dim=-1)
    total = probabilities.new_zeros(())
    for offset, token in enumerate(completion):
        total = total + torch.log(probabilities[len(prompt) + offset - 1, token])
    return total


def plain_loss(model: LlamaForCausalLM, name: str) -> torch.Tensor:
    """Mean over pairs, or over completion tokens (nll on the chosen answers)."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for (prompt, chosen, rejected), (ref_w, ref_l) in zip(PAIRS, REFERENCE, strict=True):
        lp_w = plain_logp(model, prompt, chosen)
        if name == "nll":
            total, count = total - lp_w, count + len(chosen)
            continue
        lp_l = plain_logp(model, prompt, rejected)
        n_w, n_l = len(chosen), len(rejected)
        if name == "dpo":
            z = 0.3 * ((lp_w - ref_w) - (lp_l - ref_l))
            loss = 0.85 * torch.log(1 + torch.exp(-z)) + 0.15 * torch.log(1 + torch.exp(z)) - 0.2 * lp_w / n_w
        elif name == "ipo":
            loss = ((lp_w - ref_w) / n_w - (lp_l - ref_l) / n_l - 1.25) ** 2
        elif name == "dpo_norm":
            z = 2 * ((lp_w - ref_w) / n_w - (lp_l - ref_l) / n_l)
            loss = (0.85 * torch.log(1 + torch.exp(-z)) - 0.15 * torch.log(1 + torch.exp(z))) / 0.7
        elif name == "simpo":
            z = 1.7 * (lp_w / n_w - lp_l / n_l) - 0.6
            loss = torch.log(1 + torch.exp(-z))
        elif name == "simper":
            loss = torch.exp(lp_l / n_l) - torch.exp(lp_w / n_w)
        else:
            p_w, p_l = torch.exp(lp_w / n_w), torch.exp(lp_l / n_l)
            ratio = (p_w / (1 - p_w)) / (p_l / (1 - p_l))
            loss = -lp_w / n_w + 0.25 * torch.log(1 + 1 / ratio)
        total, count = total + loss, count + 1
    return total / count


def trained_path(model: LlamaForCausalLM, name: str, layout: str, folder: str) -> torch.Tensor:
    """The loss of one optimizer step over all examples, in micro-batches; its gradients are left in the model."""
    if name == "nll":
        examples = [DialogueExample(id=str(i), prompt_ids=p, completion_ids=c) for i, (p, c, _) in enumerate(PAIRS)]
    else:
        examples = [PairExample(id=str(i), prompt_ids=p, chosen_ids=c, rejected_ids=r) for i, (p, c, r) in enumerate(PAIRS)]
    reference = {str(i): values for i, values in enumerate(REFERENCE)} if LOSSES[name].needs_reference else None
    args = TrainingArguments(
        output_dir=folder, report_to="none", use_cpu=True, disable_tqdm=True, remove_unused_columns=False
    )
    trainer = AlignTrainer(
        model, args, examples=examples, loss=name, loss_options=OPTIONS[name], reference=reference, precision="fp32",
        batch_size=len(PAIRS), micro_batch_tokens=24, layout=layout,
    )  # fmt: skip
    return trainer.training_step(model, {"members": list(range(len(PAIRS)))})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients(name: str, layout: str, dtype: torch.dtype, tmp_path) -> None:
    exact = build(torch.float64)
    expected = plain_loss(exact, name)
    expected.backward()
    model = build(dtype)
    found = trained_path(model, name, layout, str(tmp_path))
    # float64: what 64-bit log-softmax and two orders of summation leave; float32: 2**-23 over ~100 operations.
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    assert math.isfinite(expected.item())
    # The trainer adds up the losses of micro-batches in float32 for its log, whatever the model; gradients are untouched.
    assert abs(found.item() - expected.item()) < max(tolerance, 5e-7) * max(1, abs(expected.item()))
    weights = dict(exact.named_parameters())
    assert len(weights) > 10
    for parameter_name, parameter in model.named_parameters():
        assert weights[parameter_name].grad.abs().max() > 0, parameter_name
        relative = 1e-8 if dtype == torch.float64 else 1e-3
        torch.testing.assert_close(
            parameter.grad.double(), weights[parameter_name].grad, atol=tolerance, rtol=relative,
            msg=lambda text, n=parameter_name: f"{n}: {text}",
        )  # fmt: skip
