"""The losses against TRL's own code, value and gradients, on a tiny model: its conventions are named where they differ.

`DPOTrainer` is the real one, built and asked for its loss. The experimental CPO (SimPO) and ORPO trainers are made without
their `__init__`, which only prepares data; the loss, from the model's logits on, is all theirs.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from align.train.losses import PairLogprobs, find_loss

VOCAB, STOP = 64, 2
# (prompt, chosen, rejected): the longer completion is once the chosen and once the rejected one.
PAIRS = [
    ((3, 4, 5), (6, 7, 8, 9, 10, STOP), (11, 12, STOP)),
    ((13,), (14, 15, STOP), (16, 17, 18, 19, 20, 21, 22, STOP)),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def build(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3, bos_token_id=1, eos_token_id=STOP, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def policy() -> LlamaForCausalLM:
    """A copy of its own for each use: gradients gather in it, and TRL patches what it is given."""
    return copy.deepcopy(build(5))


def sums(model: LlamaForCausalLM, pairs: list[Any], side: int) -> torch.Tensor:
    """(B,) summed log-probabilities of the completions, one unpadded sequence at a time."""
    values = []
    for pair in pairs:
        ids = torch.tensor([pair[0] + pair[side]])
        logps = torch.log_softmax(model(input_ids=ids).logits[0, :-1], dim=-1)
        values.append(logps.gather(1, ids[0, 1:, None])[-len(pair[side]) :].sum())
    return torch.stack(values)


def our_pairs(model: LlamaForCausalLM, pairs: list[Any]) -> PairLogprobs:
    with torch.no_grad():
        reference = [sums(build(6), pairs, side) for side in (1, 2)]
    tokens = [torch.tensor([len(pair[side]) for pair in pairs]) for side in (1, 2)]
    return PairLogprobs(
        chosen=sums(model, pairs, 1), rejected=sums(model, pairs, 2), chosen_tokens=tokens[0], rejected_tokens=tokens[1],
        reference_chosen=reference[0], reference_rejected=reference[1],
    )  # fmt: skip


def ours(name: str, options: dict[str, Any], pairs: list[Any]) -> tuple[torch.Tensor, LlamaForCausalLM]:
    """Mean loss of the pairs, and the model that holds its gradients."""
    model = policy()
    loss = find_loss(name).bind(options)(our_pairs(model, pairs))[0].mean()
    loss.backward()
    return loss.detach(), model


def agree(theirs: tuple[torch.Tensor, Any], mine: tuple[torch.Tensor, Any]) -> None:
    assert theirs[0].item() == pytest.approx(mine[0].item(), rel=1e-5, abs=1e-6)
    gradients = dict(theirs[1].named_parameters())
    for name, parameter in mine[1].named_parameters():
        assert parameter.grad.abs().max() > 0, name
        # float32, two orders of summation; IPO's gradients are near 10
        torch.testing.assert_close(
            parameter.grad, gradients[name].grad, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def dpo_of_trl(folder: Path, pairs: list[Any] = PAIRS, **config: Any) -> tuple[torch.Tensor, Any]:
    """Loss and gradients of TRL's DPOTrainer with this configuration, on its own tokenization of the same tokens."""
    words = {"<unk>": 0, "<s>": 1, "</s>": STOP} | {f"w{i}": i for i in range(3, VOCAB)}
    names = {index: word for word, index in words.items()}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>", eos_token="</s>")
    text = [[" ".join(names[i] for i in ids) for ids in pair] for pair in pairs]
    rows = [{"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"} for prompt, chosen, rejected in text]
    trainer = DPOTrainer(
        policy(),
        ref_model=copy.deepcopy(build(6)),
        args=DPOConfig(
            output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, max_length=None,
            gradient_checkpointing=False, **config,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=fast,
    )  # fmt: skip
    inputs = trainer.data_collator(list(trainer.train_dataset))
    n_w = [len(chosen) for _, chosen, _ in pairs]
    assert inputs["completion_mask"].sum(dim=1)[: len(pairs)].tolist() == n_w, "TRL trains on the same completion tokens"
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.detach(), trainer.model


@pytest.mark.parametrize(
    ("config", "name", "options"),
    [
        ({"loss_type": "sigmoid", "beta": 0.3}, "dpo", {"beta": 0.3}),
        ({"loss_type": "robust", "beta": 0.3, "label_smoothing": 0.2}, "dpo",
         {"beta": 0.3, "label_smoothing": 0.2, "robust": True}),
        ({"loss_type": "sigmoid_norm", "beta": 5.0}, "dpo_norm", {}),
        # TRL's beta is the paper's tau; both average over tokens, OpenRLHF sums.
        ({"loss_type": "ipo", "beta": 0.4}, "ipo", {"tau": 0.4}),
        ({"loss_type": "ipo"}, "ipo", {}),
    ],
    ids=["sigmoid", "robust", "sigmoid_norm", "ipo", "ipo by default"],
)  # fmt: skip
def test_dpo_trainer(config: dict[str, Any], name: str, options: dict[str, Any], tmp_path: Path) -> None:
    agree(dpo_of_trl(tmp_path, **config), ours(name, options, PAIRS))


def test_trl_ignores_label_smoothing_of_its_sigmoid_loss(tmp_path: Path) -> None:
    """Its documentation says cDPO; its code is plain DPO whatever the value. Here the option does what it says."""
    smoothed = dpo_of_trl(tmp_path, loss_type="sigmoid", beta=0.3, label_smoothing=0.2)
    agree(smoothed, ours("dpo", {"beta": 0.3}, PAIRS))
    assert abs(smoothed[0] - ours("dpo", {"beta": 0.3, "label_smoothing": 0.2}, PAIRS)[0]) > 0.01


def test_sft_term_of_trl_is_our_nll_weight_on_one_pair(tmp_path: Path) -> None:
    """TRL averages its term over all chosen tokens of a batch, we over pairs: the same where the chosen are equally long."""
    config = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "beta": 0.3}
    for pair in PAIRS:
        agree(dpo_of_trl(tmp_path, [pair], **config), ours("dpo", {"beta": 0.3, "nll_weight": 0.5}, [pair]))
    both = dpo_of_trl(tmp_path, PAIRS, **config)[0]
    assert abs(both - ours("dpo", {"beta": 0.3, "nll_weight": 0.5}, PAIRS)[0]) > 1e-3


def sides(pairs: list[Any]) -> dict[str, torch.Tensor]:
    """The batch that TRL's CPO and ORPO collators make: labels are -100 on the prompt."""
    columns: dict[str, torch.Tensor] = {}
    for side, index in (("chosen", 1), ("rejected", 2)):
        width = max(len(pair[0]) + len(pair[index]) for pair in pairs)
        for key, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
            rows = []
            for pair in pairs:
                prompt, completion = list(pair[0]), list(pair[index])
                row = prompt + completion
                row = (
                    [1] * len(row)
                    if key == "attention_mask"
                    else [-100] * len(prompt) + completion
                    if key == "labels"
                    else row
                )
                rows.append(row + [fill] * (width - len(row)))
            columns[f"{side}_{key}"] = torch.tensor(rows)
    return columns


def experimental(trainer: Any, pairs: list[Any], **settings: Any) -> tuple[torch.Tensor, LlamaForCausalLM]:
    """Loss and gradients of an experimental trainer, made without its `__init__`."""
    made = trainer.__new__(trainer)
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda values: values)
    vars(made).update(
        accelerator=accelerator,
        is_encoder_decoder=False,
        aux_loss_enabled=False,
        pad_token_id=0,
        padding_value=0,
        **settings,
    )
    model = policy()
    loss, _ = made.get_batch_loss_metrics(model, sides(pairs))
    loss.backward()
    return loss.detach(), model


def simpo_of_trl(pairs: list[Any], **settings: Any) -> tuple[torch.Tensor, LlamaForCausalLM]:
    trainer = pytest.importorskip("trl.experimental.cpo").CPOTrainer
    settings = {"label_smoothing": 0.0, "alpha": 0.0, "cpo_alpha": 0.0, **settings}
    return experimental(trainer, pairs, loss_type="simpo", **settings)


def test_simpo_of_trl_takes_the_absolute_margin() -> None:
    theirs = simpo_of_trl(PAIRS, beta=2.0, simpo_gamma=1.2)
    agree(theirs, ours("simpo", {"beta": 2.0, "gamma_absolute": 1.2}, PAIRS))
    agree(theirs, ours("simpo", {"beta": 2.0, "gamma_over_beta": 0.6}, PAIRS))
    assert abs(theirs[0] - ours("simpo", {"beta": 2.0, "gamma_over_beta": 1.2}, PAIRS)[0]) > 0.1, "it is not the ratio"


@pytest.mark.parametrize("pair", PAIRS)
def test_nll_of_trls_simpo_is_our_nll_weight_on_one_pair(pair: Any) -> None:
    theirs = simpo_of_trl([pair], beta=2.0, simpo_gamma=1.2, cpo_alpha=0.7)
    agree(theirs, ours("simpo", {"beta": 2.0, "gamma_absolute": 1.2, "nll_weight": 0.7}, [pair]))


def test_orpo_of_trl() -> None:
    """TRL's NLL is over the prompt as well, so only a prompt of one token, which nothing predicts, gives the same loss."""
    trainer = pytest.importorskip("trl.experimental.orpo").ORPOTrainer
    long, short = PAIRS
    assert len(short[0]) == 1 < len(long[0])
    agree(experimental(trainer, [short], beta=0.25), ours("orpo", {"odds_ratio_weight": 0.25}, [short]))
    theirs, mine = experimental(trainer, [long], beta=0.25), ours("orpo", {"odds_ratio_weight": 0.25}, [long])
    assert abs(theirs[0] - mine[0]) > 0.01


def test_odds_ratio_of_trl() -> None:
    """The term that is ORPO's own, on both pairs, through TRL's function of the mean log-probabilities."""
    trainer = pytest.importorskip("trl.experimental.orpo").ORPOTrainer
    made = our_pairs(policy(), PAIRS)
    means = made.chosen / made.chosen_tokens, made.rejected / made.rejected_tokens
    stub = SimpleNamespace(beta=1.0, accelerator=SimpleNamespace(device=torch.device("cpu")))
    ratios, *_, log_odds = trainer.odds_ratio_loss(stub, *means)
    with_term, found = find_loss("orpo").bind({"odds_ratio_weight": 1.0})(made)
    without, _ = find_loss("orpo").bind({"odds_ratio_weight": 0.0})(replace(made, reference_chosen=None))
    torch.testing.assert_close(with_term - without, -ratios, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["margin"].mean(), log_odds, rtol=1e-5, atol=1e-6)
