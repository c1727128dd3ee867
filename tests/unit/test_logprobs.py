"""Which tokens are scored, from which logits, and what must not matter."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from align.packing.separate import separate_batch
from align.train.logprobs import autocast, completion_logprobs, resolve_precision, token_logprobs

VOCAB = 50


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


class Bigram(nn.Module):
    """After token v comes v + 1 (mod V), almost surely. It has no `logits_to_keep`, as some models have none."""

    def forward(self, input_ids, attention_mask, position_ids, use_cache):
        return SimpleNamespace(logits=20.0 * nn.functional.one_hot((input_ids + 1) % VOCAB, VOCAB).float())


class Noisy(nn.Module):
    """A model whose logits at columns before `first` are replaced by noise."""

    def __init__(self, model: nn.Module, first: int) -> None:
        super().__init__()
        self.model, self.first = model, first

    def forward(self, input_ids, attention_mask, position_ids, use_cache):
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids).logits.clone()
        logits[:, : self.first] = 100 * torch.randn_like(logits[:, : self.first])
        return SimpleNamespace(logits=logits)


def test_batch_layout() -> None:
    batch = separate_batch([[5, 6], [7]], [[8], [9, 10, 2]], pad_id=2)
    assert batch["input_ids"].tolist() == [[5, 6, 8, 2], [7, 9, 10, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["completion_mask"].tolist() == [[False, False, True, False], [False, True, True, True]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize(("prompts", "completions"), [([[1]], [[]]), ([[]], [[1]]), ([], []), ([[1]], [[1], [2]])])
def test_batch_refuses_what_cannot_be_scored(prompts, completions) -> None:
    with pytest.raises(ValueError):
        separate_batch(prompts, completions, 0)


def test_mask_sums_to_completion_lengths() -> None:
    completions = [[3], [4, 5, 6, 2], [2, 2]]
    batch = separate_batch([[1, 2], [1], [1, 9, 9, 9]], completions, pad_id=2)
    assert batch["completion_mask"].sum(dim=1).tolist() == [1, 4, 2]
    assert completion_logprobs(llama(), batch)[1].tolist() == [1, 4, 2]


@pytest.mark.parametrize("build", [llama, gpt2], ids=["rope", "absolute"])
def test_company_changes_nothing(build) -> None:
    """A sequence alone scores as beside one ten times as long."""
    model = build()
    prompt, completion = [3, 4, 5, 6], [7, 8, 9, 2]
    alone, _ = completion_logprobs(model, separate_batch([prompt], [completion], 0))
    beside, _ = completion_logprobs(model, separate_batch([[9] * 40, prompt], [[5] * 40, completion], 0))
    torch.testing.assert_close(beside[1:], alone, atol=2e-5, rtol=0)


def test_pad_token_is_of_no_consequence() -> None:
    """pad equal to the stop token: same masks, same scores, and the stop token itself is scored."""
    model, prompts, completions = llama(), [[3, 4], [3, 4, 5, 6, 7]], [[8, 2], [9, 10, 2]]
    with_zero = token_logprobs(model, separate_batch(prompts, completions, 0))
    with_stop = token_logprobs(model, separate_batch(prompts, completions, 2))
    torch.testing.assert_close(with_zero, with_stop)
    assert with_stop[0, 3] != 0
    assert with_stop[1, 7] != 0


def test_each_token_is_predicted_from_the_one_before_it() -> None:
    follows = separate_batch([[4, 5], [40]], [[6, 7, 8], [41, 42]], 0)
    assert completion_logprobs(Bigram(), follows)[0].abs().max() < 1e-5
    for shifted in (separate_batch([[4, 5]], [[7, 8, 9]], 0), separate_batch([[4, 6]], [[6, 7, 8]], 0)):
        assert completion_logprobs(Bigram(), shifted)[0].item() < -15


def test_prompt_logits_do_not_enter() -> None:
    model, batch = llama(), separate_batch([[3, 4, 5], [3, 4, 5]], [[6, 7], [8, 9, 2]], 0)
    clean, _ = completion_logprobs(model, batch)
    torch.testing.assert_close(completion_logprobs(Noisy(model, 2), batch)[0], clean)
    assert not torch.allclose(completion_logprobs(Noisy(model, 3), batch)[0], clean, atol=1)


def test_tokens_against_a_full_softmax() -> None:
    model = llama().double()
    batch = separate_batch([[3, 4, 5], [9]], [[6, 7], [8, 9, 2, 4]], 0)
    found = token_logprobs(model, batch)
    assert found.dtype == torch.float64
    for row, (prompt, completion) in enumerate([([3, 4, 5], [6, 7]), ([9], [8, 9, 2, 4])]):
        full = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        for offset, token in enumerate(completion):
            position = len(prompt) + offset
            assert found[row, position].item() == pytest.approx(full[position - 1, token].item(), abs=1e-12)
        assert found[row, len(prompt) + len(completion) :].abs().sum() == 0
        assert found[row, : len(prompt)].abs().sum() == 0


def test_only_needed_columns_go_through_the_head() -> None:
    model, widths = llama(), []
    model.lm_head.register_forward_hook(lambda _m, inputs, _o: widths.append(inputs[0].shape[1]))
    completion_logprobs(model, separate_batch([[3] * 30, [3] * 30], [[4, 2], [5, 6, 2]], 0))
    assert widths == [3]


def test_autocast_keeps_the_softmax_in_float32() -> None:
    model, batch, cpu = llama(), separate_batch([[3, 4, 5]], [[6, 7, 8, 2]], 0), torch.device("cpu")
    exact, _ = completion_logprobs(model, batch)
    with autocast(cpu, "bf16"):
        rounded, _ = completion_logprobs(model, batch)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().item() < 0.05 * exact.abs().item()


def test_precision_words() -> None:
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) in ("bf16", "fp32")
    assert resolve_precision("fp32", cpu) == "fp32"
    with pytest.raises(ValueError, match="fp16"):
        resolve_precision("fp16", cpu)
