"""Which tokens are scored, from which logits, and what must not matter."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from align.packing.layout import Item, PackedBatch, separate_layout, shared_layout
from align.packing.separate import separate_batch
from align.train.losses import LOSSES, PairLogprobs
from align.train.precision import autocast, resolve_precision
from align.train.scoring import Scoring, plain_logprobs, prepare

VOCAB = 50
LAYOUTS = [separate_layout, shared_layout]


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=256, n_embd=32, n_layer=2, n_head=4)).eval()


@torch.no_grad()
def scored(model, items: list[Item], layout=separate_layout, head: str = "auto") -> torch.Tensor:
    """(E, K) log-probabilities by the path that trains."""
    prepare(model, layout="separate" if layout is separate_layout else "shared", head=head, longest=200)
    batch = layout(items)
    return batch.sums(model(scoring=Scoring(batch=batch)), 0, len(items))


def plain_sums(forward, batch: PackedBatch) -> torch.Tensor:
    return batch.sums(plain_logprobs(forward, batch), 0, len(batch.bounds) - 1)


class Bigram(nn.Module):
    """After token v comes v + 1 (mod V), almost surely. It has no `logits_to_keep`, as some models have none."""

    def forward(self, input_ids, attention_mask, use_cache):
        return SimpleNamespace(logits=20.0 * nn.functional.one_hot((input_ids + 1) % VOCAB, VOCAB).float())


class Noisy(nn.Module):
    """A model whose logits at columns before `first` are replaced by noise."""

    def __init__(self, model: nn.Module, first: int) -> None:
        super().__init__()
        self.model, self.first = model, first

    def forward(self, input_ids, attention_mask, use_cache):
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits.clone()
        logits[:, : self.first] = 100 * torch.randn_like(logits[:, : self.first])
        return SimpleNamespace(logits=logits)


def test_plain_rows() -> None:
    batch = separate_batch([[5, 6], [7]], [[8], [9, 10, 2]], pad_id=2)
    assert batch["input_ids"].tolist() == [[5, 6, 8, 2], [7, 9, 10, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["completion_mask"].tolist() == [[False, False, True, False], [False, True, True, True]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize(("prompts", "completions"), [([[1]], [[]]), ([[]], [[1]]), ([], []), ([[1]], [[1], [2]])])
def test_plain_rows_refuse_what_cannot_be_scored(prompts, completions) -> None:
    with pytest.raises(ValueError):
        separate_batch(prompts, completions, 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scored_tokens_are_the_completions(layout) -> None:
    """As many as there are completion tokens, and the tokens themselves: nothing else is trained on."""
    items: list[Item] = [([1, 2], [[3], [4, 5, 6, 2]]), ([1, 9, 9, 9], [[2, 2], [7]])]
    batch = layout(items)
    assert batch.tokens_EK.tolist() == [[1, 4], [2, 1]] and batch.bounds == (0, 5, 8)
    assert batch.target_N.tolist() == [3, 4, 5, 6, 2, 2, 2, 7] and batch.slot_N.tolist() == [1, 2, 2, 2, 2, 4, 4, 5]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("build", [llama, gpt2], ids=["rope", "absolute"])
def test_company_changes_nothing(build, layout) -> None:
    """A pair alone scores as beside one ten times as long, before it and after it."""
    model = build()
    pair: Item = ([3, 4, 5, 6], [[7, 8, 9, 2], [9, 2]])
    long: Item = ([9] * 40, [[5] * 40, [6] * 30])
    alone = scored(model, [pair], layout)
    torch.testing.assert_close(scored(model, [long, pair], layout)[1:], alone, atol=3e-5, rtol=0)  # float32 rounding
    torch.testing.assert_close(scored(model, [pair, long, pair], layout)[::2], alone.repeat(2, 1), atol=3e-5, rtol=0)


def test_pad_token_is_of_no_consequence() -> None:
    """pad equal to the stop token: same scores, and the stop token itself is scored."""
    model, items = llama(), [([3, 4], [[8, 2]]), ([3, 4, 5, 6, 7], [[9, 10, 2]])]
    zero, stop = (separate_layout(items, pad_id=pad) for pad in (0, 2))
    with torch.no_grad():
        torch.testing.assert_close(plain_logprobs(model.forward, zero), plain_logprobs(model.forward, stop))
    assert stop.target_N.tolist() == [8, 2, 9, 10, 2]


def test_each_token_is_predicted_from_the_one_before_it() -> None:
    follows = separate_layout([([4, 5], [[6, 7, 8]]), ([40], [[41, 42]])])
    assert plain_sums(Bigram().forward, follows).abs().max() < 1e-5
    for shifted in (separate_layout([([4, 5], [[7, 8, 9]])]), separate_layout([([4, 6], [[6, 7, 8]])])):
        assert plain_sums(Bigram().forward, shifted).item() < -15


def test_prompt_logits_do_not_enter() -> None:
    model, batch = llama(), separate_layout([([3, 4, 5], [[6, 7]]), ([3, 4, 5], [[8, 9, 2]])])
    with torch.no_grad():
        clean = plain_sums(model.forward, batch)
        torch.testing.assert_close(plain_sums(Noisy(model, 2).forward, batch), clean)
        assert not torch.allclose(plain_sums(Noisy(model, 3).forward, batch), clean, atol=1)


@pytest.mark.parametrize("head", ["plain", "chunked", "reference"])
def test_tokens_against_a_full_softmax(head: str) -> None:
    model = llama().double()
    batch = separate_layout([([3, 4, 5], [[6, 7]]), ([9], [[8, 9, 2, 4]])])
    prepare(model, layout="separate", head=head, longest=10)
    with torch.no_grad():
        found = model(scoring=Scoring(batch=batch))
    assert found.dtype == torch.float64
    expected = []
    for prompt, completion in [([3, 4, 5], [6, 7]), ([9], [8, 9, 2, 4])]:
        full = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        expected += [full[len(prompt) + i - 1, token].item() for i, token in enumerate(completion)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_only_completions_go_through_the_head() -> None:
    model, widths = llama(), []
    model.lm_head.register_forward_hook(lambda _m, inputs, _o: widths.append(inputs[0].shape[1]))
    plain_logprobs(model.forward, separate_layout([([3] * 30, [[4, 2]]), ([3] * 30, [[5, 6, 2]])]))
    assert widths == [3]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_zeroed_head_gives_uniform_tokens(layout) -> None:
    """lp = -n ln V for every n, so DPO's margin is a difference of lengths and SimPO's is 0."""
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    logps = scored(model, [([3, 4], [[5, 6, 7, 2], [2]]), ([8], [[9, 2], [9, 2]])], layout)
    assert logps.tolist() == [
        pytest.approx([-4 * math.log(VOCAB), -math.log(VOCAB)]),
        pytest.approx([-2 * math.log(VOCAB)] * 2),
    ]
    tokens = torch.tensor([[4, 1], [2, 2]])
    pairs = PairLogprobs(chosen=logps[:, 0], rejected=logps[:, 1], chosen_tokens=tokens[:, 0], rejected_tokens=tokens[:, 1])
    losses, quantities = LOSSES["simpo"].bind({"beta": 2.0, "gamma_absolute": 1.0})(pairs)
    assert quantities["margin"].abs().max() < 1e-5
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(1.0))] * 2, rel=1e-5)  # softplus(gamma)


@pytest.mark.parametrize("head", ["plain", "chunked"])
def test_autocast_keeps_the_softmax_in_float32(head: str) -> None:
    model, batch, cpu = llama(), separate_layout([([3, 4, 5], [[6, 7, 8, 2]])]), torch.device("cpu")
    prepare(model, layout="separate", head=head, longest=10)
    with torch.no_grad():
        exact = model(scoring=Scoring(batch=batch)).sum()
        with autocast(cpu, "bf16"):
            rounded = model(scoring=Scoring(batch=batch)).sum()
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().item() < 0.05 * exact.abs().item()


def test_precision_words() -> None:
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) in ("bf16", "fp32")
    assert resolve_precision("fp32", cpu) == "fp32"
    with pytest.raises(ValueError, match="fp16"):
        resolve_precision("fp16", cpu)
