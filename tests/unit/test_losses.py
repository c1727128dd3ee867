"""The losses, against numbers worked out by hand and against their own definitions."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from align.packing.separate import separate_batch
from align.train.logprobs import completion_logprobs
from align.train.losses import LOSSES, PairLogprobs, dpo, find_loss, nll, simpo


def pairs(chosen, rejected, chosen_tokens, rejected_tokens, reference=(None, None), dtype=torch.float64) -> PairLogprobs:
    def column(values):
        return None if values is None else torch.tensor(values, dtype=dtype)

    return PairLogprobs(
        chosen=column(chosen), rejected=column(rejected), chosen_tokens=torch.tensor(chosen_tokens),
        rejected_tokens=torch.tensor(rejected_tokens), reference_chosen=column(reference[0]),
        reference_rejected=column(reference[1]),
    )  # fmt: skip


# lp_w, lp_l, |w|, |l|, ref_w, ref_l of three pairs: won, lost, undecided.
THREE = pairs(
    [-10.0, -30.0, -8.0], [-20.0, -12.0, -8.0], [5, 10, 4], [4, 6, 2], ([-12.0, -25.0, -8.0], [-18.0, -14.0, -8.0])
)


def test_dpo_by_hand() -> None:
    # log-ratios: (2, -2), (-5, 2), (0, 0); margins with beta 0.5: 2, -3.5, 0.
    losses, found = dpo(THREE, beta=0.5)
    torch.testing.assert_close(found["chosen_reward"], torch.tensor([1.0, -2.5, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found["rejected_reward"], torch.tensor([-1.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found["margin"], torch.tensor([2.0, -3.5, 0.0], dtype=torch.float64))
    # ln(1 + e^-2), ln(1 + e^3.5), ln 2
    assert losses.tolist() == pytest.approx([0.12692801104297263, 3.52975041827, 0.6931471805599453], abs=1e-8)


def test_dpo_label_smoothing_is_cdpo() -> None:
    # e = 0.1, m = 2: 0.9 * 0.126928011 + 0.1 * 2.126928011 = 0.326928011
    losses, _ = dpo(THREE, beta=0.5, label_smoothing=0.1)
    assert losses[0].item() == pytest.approx(0.326928011, abs=1e-8)
    assert losses[2].item() == pytest.approx(math.log(2))


def test_simpo_by_hand() -> None:
    # mean log-probs: (-2, -5), (-3, -2), (-2, -4); margins with beta 2: 6, -2, 4; less gamma 1: 5, -3, 3.
    losses, found = simpo(THREE, beta=2.0, gamma=1.0)
    torch.testing.assert_close(found["margin"], torch.tensor([6.0, -2.0, 4.0], dtype=torch.float64))
    torch.testing.assert_close(found["chosen_reward"], torch.tensor([-4.0, -6.0, -4.0], dtype=torch.float64))
    assert losses.tolist() == pytest.approx([0.006715348489, 3.048587351573742, 0.048587351573742], abs=1e-8)


def test_simpo_gamma_is_absolute() -> None:
    """Doubling beta leaves the target margin where it is; under the ratio reading it would double."""
    equal = pairs([-6.0], [-6.0], [3], [3])
    for beta in (1.0, 2.0, 10.0):
        assert simpo(equal, beta=beta, gamma=0.75)[0].item() == pytest.approx(math.log1p(math.exp(0.75)))


def test_numbers_of_another_implementation() -> None:
    """TRL's sigmoid loss (beta 0.1) and its SimPO loss (beta 2, simpo_gamma 0.5) on these inputs, computed by its formulas:
    -logsigmoid(beta * (log-ratio_w - log-ratio_l)) and -logsigmoid(beta * (mean_w - mean_l - gamma / beta))."""
    one = pairs([-41.5], [-38.25], [17], [23], ([-44.0], [-37.0]))
    assert dpo(one, beta=0.1)[0].item() == pytest.approx(math.log1p(math.exp(-0.1 * (2.5 + 1.25))), rel=1e-12)
    expected = math.log1p(math.exp(-2.0 * (-41.5 / 17 + 38.25 / 23 - 0.5 / 2.0)))
    assert simpo(one, beta=2.0, gamma=0.5)[0].item() == pytest.approx(expected, rel=1e-12)


def test_nll_is_summed_and_hands_back_its_lengths() -> None:
    losses, found = nll(torch.tensor([-3.0, -5.5]), torch.tensor([2, 7]))
    assert losses.tolist() == [3.0, 5.5]
    assert found["tokens"].tolist() == [2, 7]


@pytest.mark.parametrize(("name", "options"), [("dpo", {"label_smoothing": 0.1}), ("dpo", {}), ("simpo", {})])
def test_gradients_match_finite_differences(name: str, options: dict[str, float]) -> None:
    function = find_loss(name).bind(options)
    rest = {
        "chosen_tokens": torch.tensor([5, 2, 9]), "rejected_tokens": torch.tensor([3, 8, 9]),
        "reference_chosen": torch.tensor([-9.0, -4.0, -7.0], dtype=torch.float64),
        "reference_rejected": torch.tensor([-8.0, -6.0, -7.5], dtype=torch.float64),
    }  # fmt: skip

    def total(chosen, rejected):
        losses, _ = function(PairLogprobs(chosen=chosen, rejected=rejected, **rest))
        assert losses.dtype == torch.float64
        return losses

    inputs = (torch.tensor([-8.0, -5.0, -7.0], dtype=torch.float64), torch.tensor([-9.0, -3.0, -6.0], dtype=torch.float64))
    assert torch.autograd.gradcheck(total, tuple(t.requires_grad_() for t in inputs))


def test_gradient_raises_chosen_and_lowers_rejected() -> None:
    for name, loss in LOSSES.items():
        if not loss.paired:
            continue
        chosen = torch.tensor([-9.0], requires_grad=True)
        rejected = torch.tensor([-9.0], requires_grad=True)
        zero = torch.tensor([-9.0])
        length = torch.tensor([4])
        batch = PairLogprobs(
            chosen=chosen, rejected=rejected, chosen_tokens=length, rejected_tokens=length,
            reference_chosen=zero, reference_rejected=zero,
        )  # fmt: skip
        loss.bind({})(batch)[0].sum().backward()
        assert chosen.grad.item() < 0 < rejected.grad.item(), name


def test_identical_pair() -> None:
    same = pairs([-11.0], [-11.0], [6], [6], ([-11.0], [-11.0]))
    assert dpo(same, beta=0.3)[0].item() == pytest.approx(math.log(2))
    assert simpo(same, beta=2.5, gamma=1.25)[0].item() == pytest.approx(math.log1p(math.exp(1.25)))


@pytest.mark.parametrize("length", [1, 3, 8])
def test_zeroed_head_tells_sums_from_means(length: int) -> None:
    """All tokens equally likely: the DPO log-probability is -n ln V, SimPO's -ln V for every n."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=37, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, tie_word_embeddings=False,
        )
    )  # fmt: skip
    torch.nn.init.zeros_(model.lm_head.weight)
    batch = separate_batch([[1, 2, 3], [1, 2, 3]], [list(range(4, 4 + length)), [7, 8]], 0)
    sums, tokens = completion_logprobs(model, batch)
    assert sums[0].item() == pytest.approx(-length * math.log(37), rel=1e-6)
    zeros = torch.zeros(1)
    batch_logps = PairLogprobs(
        chosen=sums[:1], rejected=sums[1:], chosen_tokens=tokens[:1], rejected_tokens=tokens[1:],
        reference_chosen=zeros, reference_rejected=zeros,
    )  # fmt: skip
    assert dpo(batch_logps, beta=1.0)[1]["chosen_reward"].item() == pytest.approx(-length * math.log(37), rel=1e-6)
    assert simpo(batch_logps, beta=1.0, gamma=0.0)[1]["chosen_reward"].item() == pytest.approx(-math.log(37), rel=1e-6)
    assert simpo(batch_logps, beta=1.0, gamma=0.0)[1]["margin"].item() == pytest.approx(0.0, abs=1e-6)


def test_unused_and_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="dpo does not use gamma; its options: beta, label_smoothing"):
        find_loss("dpo").bind({"gamma": 1.0})
    with pytest.raises(ValueError, match="simpo does not use label_smoothing"):
        find_loss("simpo").bind({"label_smoothing": 0.1})
    with pytest.raises(ValueError, match="nll does not use beta"):
        find_loss("nll").bind({"beta": 0.1})
    with pytest.raises(ValueError, match="there are nll, dpo, simpo"):
        find_loss("orpo")
    with pytest.raises(ValueError, match="beta must be > 0"):
        dpo(THREE, beta=0.0)
    with pytest.raises(ValueError, match=r"in \[0, 0.5\)"):
        dpo(THREE, label_smoothing=0.5)
    with pytest.raises(ValueError, match="needs reference"):
        dpo(pairs([-1.0], [-1.0], [1], [1]))


def test_declared_options_are_the_functions_own() -> None:
    import inspect

    assert len(LOSSES) >= 3
    for loss in LOSSES.values():
        keywords = {n: p.default for n, p in inspect.signature(loss.function).parameters.items() if p.kind == p.KEYWORD_ONLY}
        assert keywords == dict(loss.options)
