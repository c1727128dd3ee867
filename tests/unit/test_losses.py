"""The losses, against numbers worked out by hand and against their own definitions written with `math` alone."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from align.train.losses import (
    LOSSES,
    PairLogprobs,
    check_flip_rate,
    dpo,
    dpo_norm,
    find_loss,
    ipo,
    loss_at_reference,
    nll,
    orpo,
    simper,
    simpo,
)

PAIRED = [name for name, loss in LOSSES.items() if loss.paired]
WITH_REFERENCE = [name for name, loss in LOSSES.items() if loss.needs_reference]
# Every option of every loss, at values that are no default and not each other's.
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("dpo", {}),
    ("dpo", {"beta": 0.3}),
    ("dpo", {"beta": 0.5, "label_smoothing": 0.1}),
    ("dpo", {"beta": 0.5, "label_smoothing": 0.2, "robust": True}),
    ("dpo", {"nll_weight": 1.0}),
    ("ipo", {}),
    ("ipo", {"tau": 0.7, "nll_weight": 0.3}),
    ("dpo_norm", {}),
    ("dpo_norm", {"beta": 2.0, "label_smoothing": 0.15}),
    ("dpo_norm", {"beta": 3.0, "label_smoothing": 0.15, "robust": True, "nll_weight": 0.05}),
    ("simpo", {}),
    ("simpo", {"beta": 2.0, "gamma_absolute": 1.6}),
    ("simpo", {"beta": 10.0, "gamma_over_beta": 0.3, "nll_weight": 0.1}),
    ("simper", {}),
    ("simper", {"nll_weight": 0.2}),
    ("orpo", {}),
    ("orpo", {"odds_ratio_weight": 0.25, "nll_weight": 0.5}),
]
IDS = [f"{name} {options}" for name, options in SETTINGS]


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
# Lengths, signs and sizes that differ from pair to pair: (lp_w, lp_l, |w|, |l|, ref_w, ref_l, flip rate).
ROWS = [
    (-41.5, -38.25, 17, 23, -44.0, -37.0, 0.05),
    (-3.0, -60.0, 2, 31, -2.5, -58.0, 0.0),
    (-0.75, -0.5, 4, 1, -1.25, -0.25, 0.3),
    (-900.0, -750.0, 512, 300, -870.0, -760.0, 0.49),
    (-8.0, -8.0, 4, 4, -8.0, -8.0, 0.2),
    (-120.0, -11.0, 40, 9, -100.0, -16.0, 0.1),
]


def batch(dtype: torch.dtype = torch.float64, rows=ROWS, flips: bool = False) -> PairLogprobs:
    chosen, rejected, chosen_tokens, rejected_tokens, ref_w, ref_l, rates = map(list, zip(*rows, strict=True))
    made = pairs(chosen, rejected, chosen_tokens, rejected_tokens, (ref_w, ref_l), dtype)
    return replace(made, flip_rates=torch.tensor(rates, dtype=dtype)) if flips else made


def without_reference(name: str, made: PairLogprobs) -> PairLogprobs:
    """As the trainer gives it to a reference-free loss."""
    return made if LOSSES[name].needs_reference else replace(made, reference_chosen=None, reference_rejected=None)


def plain(name: str, options: dict[str, Any], row: tuple[float, ...], flip: float | None = None) -> dict[str, float]:
    """loss, margin and rewards of one pair, from the published formulas, in Python floats."""
    lp_w, lp_l, n_w, n_l, ref_w, ref_l, _ = row
    log_sigmoid = lambda x: -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))  # noqa: E731
    e = options.get("label_smoothing", 0.0) if flip is None else flip
    nll_term = options.get("nll_weight", 0.0) * -lp_w / n_w
    if name in ("dpo", "dpo_norm"):
        beta = options.get("beta", {"dpo": 0.1, "dpo_norm": 5.0}[name])
        reward_w, reward_l = beta * (lp_w - ref_w), beta * (lp_l - ref_l)
        if name == "dpo_norm":
            reward_w, reward_l = reward_w / n_w, reward_l / n_l
        right, wrong = -log_sigmoid(reward_w - reward_l), -log_sigmoid(reward_l - reward_w)
        loss = (1 - e) * right + e * wrong
        if options.get("robust"):
            loss = ((1 - e) * right - e * wrong) / (1 - 2 * e)
    elif name == "ipo":
        reward_w, reward_l = (lp_w - ref_w) / n_w, (lp_l - ref_l) / n_l
        loss = (reward_w - reward_l - 1 / (2 * options.get("tau", 0.1))) ** 2
    elif name == "simpo":
        beta = options.get("beta", 2.5)
        gamma = options.get("gamma_absolute", beta * options.get("gamma_over_beta", 0.5))
        reward_w, reward_l = beta * lp_w / n_w, beta * lp_l / n_l
        loss = -log_sigmoid(reward_w - reward_l - gamma)
    elif name == "simper":
        reward_w, reward_l = math.exp(lp_w / n_w), math.exp(lp_l / n_l)
        loss = -reward_w + reward_l
    else:
        p_w, p_l = math.exp(lp_w / n_w), math.exp(lp_l / n_l)
        reward_w, reward_l = math.log(p_w / (1 - p_w)), math.log(p_l / (1 - p_l))
        loss = -lp_w / n_w - options.get("odds_ratio_weight", 0.1) * log_sigmoid(reward_w - reward_l)
    return {
        "loss": loss + nll_term, "margin": reward_w - reward_l, "chosen_reward": reward_w, "rejected_reward": reward_l
    }  # fmt: skip


@pytest.mark.parametrize(("name", "options"), SETTINGS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_values(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    losses, found = find_loss(name).bind(options)(without_reference(name, batch(dtype)))
    expected = [plain(name, options, row) for row in ROWS]
    # float32: two sums near 900 are subtracted, so 2**-23 of them over 300 tokens, and beta 10, remain.
    tolerance = {"rel": 1e-12, "abs": 1e-12} if dtype == torch.float64 else {"rel": 2e-6, "abs": 2e-5}
    assert losses.dtype == dtype and losses.shape == (len(ROWS),)
    assert losses.tolist() == pytest.approx([e["loss"] for e in expected], **tolerance)
    assert set(found) == {"margin", "chosen_reward", "rejected_reward"}
    for key, values in found.items():
        assert values.dtype == dtype
        assert values.tolist() == pytest.approx([e[key] for e in expected], **tolerance), key


def test_every_option_is_tested_by_value() -> None:
    tested = {(name, key) for name, options in SETTINGS for key in options}
    assert tested == {(name, key) for name in PAIRED for key in LOSSES[name].options}


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("name", ["dpo", "dpo_norm"])
def test_flip_rates_are_each_pairs_own_label_smoothing(name: str, robust: bool) -> None:
    function = find_loss(name).bind({"beta": 0.7, "robust": robust, "nll_weight": 0.5})
    losses, found = function(batch(flips=True))
    assert losses.tolist() == pytest.approx(
        [plain(name, {"beta": 0.7, "robust": robust, "nll_weight": 0.5}, row, flip=row[-1])["loss"] for row in ROWS]
    )
    for i, row in enumerate(ROWS):
        one = find_loss(name).bind({"beta": 0.7, "robust": robust, "nll_weight": 0.5, "label_smoothing": row[-1]})
        alone, _ = one(batch(rows=[row]))
        assert losses[i].item() == pytest.approx(alone.item(), rel=1e-14)
    assert torch.equal(found["margin"], function(batch())[1]["margin"]), "labels may be wrong; the margin is what it is"
    single = replace(batch(torch.float32), flip_rates=torch.tensor([row[-1] for row in ROWS], dtype=torch.float64))
    assert function(single)[0].dtype == torch.float32, "rates out of NumPy must not turn the step into float64"


@pytest.mark.parametrize(("name", "options"), SETTINGS, ids=IDS)
def test_gradients_match_finite_differences(name: str, options: dict[str, Any]) -> None:
    function = find_loss(name).bind(options)
    # gradcheck's finite differences need losses of moderate size, so the pair of 900 nats is left out.
    rest = without_reference(name, batch(rows=[row for row in ROWS if row[0] > -800]))

    def losses(chosen, rejected):
        return function(replace(rest, chosen=chosen, rejected=rejected))[0]

    assert torch.autograd.gradcheck(losses, (rest.chosen.clone().requires_grad_(), rest.rejected.clone().requires_grad_()))


@pytest.mark.parametrize("name", ["dpo", "dpo_norm"])
def test_gradients_with_flip_rates(name: str) -> None:
    for robust in (False, True):
        function, rest = find_loss(name).bind({"robust": robust}), batch(flips=True)
        losses = lambda c, r, f=function, b=rest: f(replace(b, chosen=c, rejected=r))[0]  # noqa: E731
        inputs = rest.chosen.clone().requires_grad_(), rest.rejected.clone().requires_grad_()
        assert torch.autograd.gradcheck(losses, inputs)


@pytest.mark.parametrize(("name", "options"), SETTINGS, ids=IDS)
def test_pairs_do_not_see_each_other(name: str, options: dict[str, Any]) -> None:
    function = find_loss(name).bind(options)
    order = torch.tensor([3, 0, 5, 1, 4, 2])

    def permuted(made: PairLogprobs) -> PairLogprobs:
        columns = {f.name: getattr(made, f.name) for f in fields(made)}
        return PairLogprobs(**{key: None if value is None else value[order] for key, value in columns.items()})

    flips = LOSSES[name].takes_flip_rates and not options.get("label_smoothing")
    whole = batch(flips=flips)
    (losses, found), (moved, moved_found) = function(whole), function(permuted(whole))
    assert torch.equal(moved, losses[order])
    assert all(torch.equal(moved_found[key], found[key][order]) for key in found)
    alone = [function(batch(rows=[row], flips=flips))[0].item() for row in ROWS]
    assert losses.tolist() == pytest.approx(alone, rel=1e-14)


def test_dpo_by_hand() -> None:
    # log-ratios: (2, -2), (-5, 2), (0, 0); margins with beta 0.5: 2, -3.5, 0.
    losses, found = dpo(THREE, beta=0.5)
    torch.testing.assert_close(found["chosen_reward"], torch.tensor([1.0, -2.5, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found["rejected_reward"], torch.tensor([-1.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found["margin"], torch.tensor([2.0, -3.5, 0.0], dtype=torch.float64))
    # ln(1 + e^-2), ln(1 + e^3.5), ln 2
    assert losses.tolist() == pytest.approx([0.12692801104297263, 3.52975041827, 0.6931471805599453], abs=1e-8)


def test_label_smoothing_by_hand() -> None:
    # e = 0.1, m = 2: cDPO 0.9 * 0.126928011 + 0.1 * 2.126928011; robust (0.9 * 0.126928011 - 0.1 * 2.126928011) / 0.8
    losses, _ = dpo(THREE, beta=0.5, label_smoothing=0.1)
    assert losses[0].item() == pytest.approx(0.326928011, abs=1e-8)
    losses, _ = dpo(THREE, beta=0.5, label_smoothing=0.1, robust=True)
    assert losses[0].item() == pytest.approx(-0.123071989, abs=1e-8)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.45])
def test_robust_dpo_is_unbiased_under_flips(rate: float) -> None:
    """Its definition: over labels flipped at the rate e, its mean is the plain loss of the right labels."""
    right = THREE
    flipped = replace(
        right, chosen=right.rejected, rejected=right.chosen, reference_chosen=right.reference_rejected,
        reference_rejected=right.reference_chosen,
    )  # fmt: skip
    values = [dpo(labels, beta=0.5, label_smoothing=rate, robust=True)[0] for labels in (right, flipped)]
    torch.testing.assert_close((1 - rate) * values[0] + rate * values[1], dpo(right, beta=0.5)[0])


def test_ipo_by_hand() -> None:
    # log-ratios per token: (2/5, -2/4), (-5/10, 2/6), (0, 0); targets with tau 0.5: 1
    losses, found = ipo(THREE, tau=0.5)
    assert found["margin"].tolist() == pytest.approx([0.9, -5 / 6, 0.0])
    assert losses.tolist() == pytest.approx([0.01, (11 / 6) ** 2, 1.0])


def test_dpo_norm_by_hand() -> None:
    # the same log-ratios per token times 2
    losses, found = dpo_norm(THREE, beta=2.0)
    assert found["margin"].tolist() == pytest.approx([1.8, -5 / 3, 0.0])
    assert losses[0].item() == pytest.approx(math.log1p(math.exp(-1.8)))


def test_simpo_by_hand() -> None:
    # mean log-probs: (-2, -5), (-3, -2), (-2, -4); margins with beta 2: 6, -2, 4; less gamma 1: 5, -3, 3.
    losses, found = simpo(THREE, beta=2.0, gamma_absolute=1.0)
    torch.testing.assert_close(found["margin"], torch.tensor([6.0, -2.0, 4.0], dtype=torch.float64))
    torch.testing.assert_close(found["chosen_reward"], torch.tensor([-4.0, -6.0, -4.0], dtype=torch.float64))
    assert losses.tolist() == pytest.approx([0.006715348489, 3.048587351573742, 0.048587351573742], abs=1e-8)


def test_simper_by_hand() -> None:
    losses, found = simper(THREE)
    assert losses.tolist() == pytest.approx([-0.1285973362, 0.0855482149, -0.1170196443], abs=1e-9)
    assert found["chosen_reward"].tolist() == pytest.approx([0.1353352832, 0.0497870684, 0.1353352832], abs=1e-9)


def test_orpo_by_hand() -> None:
    # p = 1/2 and 1/4: odds 1 and 1/3, log odds ratio ln 3, s = 3/4; NLL ln 2.
    losses, found = orpo(pairs([-2 * math.log(2)], [-3 * math.log(4)], [2], [3]), odds_ratio_weight=0.5)
    assert found["margin"].item() == pytest.approx(math.log(3))
    assert losses.item() == pytest.approx(math.log(2) - 0.5 * math.log(0.75))


def test_the_two_names_of_gamma() -> None:
    """Doubling beta leaves an absolute margin where it is and doubles one that is given as a ratio."""
    equal = pairs([-6.0], [-6.0], [3], [3])
    softplus = lambda x: pytest.approx(math.log1p(math.exp(x)))  # noqa: E731
    for beta in (1.0, 2.0, 10.0):
        assert simpo(equal, beta=beta, gamma_absolute=0.75)[0].item() == softplus(0.75)
        assert simpo(equal, beta=beta, gamma_over_beta=0.75)[0].item() == softplus(0.75 * beta)
        assert simpo(equal, beta=beta)[0].item() == softplus(0.5 * beta)
        assert simpo(equal, beta=beta, gamma_absolute=0.0)[0].item() == softplus(0.0), "0 is given, not left out"
    both = simpo(THREE, beta=2.5, gamma_absolute=1.25)[0], simpo(THREE, beta=2.5, gamma_over_beta=0.5)[0]
    assert torch.equal(*both)


def test_nll_is_summed_and_hands_back_its_lengths() -> None:
    losses, found = nll(torch.tensor([-3.0, -5.5]), torch.tensor([2, 7]))
    assert losses.tolist() == [3.0, 5.5]
    assert found["tokens"].tolist() == [2, 7]


@pytest.mark.parametrize("name", PAIRED)
def test_nll_weight_adds_the_mean_nll_of_the_chosen(name: str) -> None:
    without, found = find_loss(name).bind({})(batch())
    losses, same = find_loss(name).bind({"nll_weight": 0.25})(batch())
    assert (losses - without).tolist() == pytest.approx([0.25 * -row[0] / row[2] for row in ROWS])
    assert all(torch.equal(found[key], same[key]) for key in found)


@pytest.mark.parametrize("name", PAIRED)
def test_gradient_raises_chosen_and_lowers_rejected(name: str) -> None:
    chosen = torch.tensor([-9.0], requires_grad=True)
    rejected = torch.tensor([-9.0], requires_grad=True)
    length, nine = torch.tensor([4]), torch.tensor([-9.0])
    same = PairLogprobs(
        chosen=chosen, rejected=rejected, chosen_tokens=length, rejected_tokens=length,
        reference_chosen=nine, reference_rejected=nine,
    )  # fmt: skip
    LOSSES[name].bind({})(same)[0].sum().backward()
    assert chosen.grad.item() < 0 < rejected.grad.item()


def test_identical_pair() -> None:
    same = pairs([-12.0], [-12.0], [6], [6], ([-11.0], [-11.0]))
    expected = {
        "dpo": math.log(2),
        "dpo_norm": math.log(2),
        "ipo": (1 / (2 * 0.1)) ** 2,
        "simpo": math.log1p(math.exp(1.25)),
        "simper": 0.0,
        "orpo": 2 + 0.1 * math.log(2),
    }
    assert set(expected) == set(PAIRED)
    for name, value in expected.items():
        losses, found = find_loss(name).bind({})(same)
        assert losses.item() == pytest.approx(value) and found["margin"].item() == 0, name
    for options in ({"label_smoothing": 0.2}, {"label_smoothing": 0.2, "robust": True}):
        assert dpo(same, **options)[0].item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("length", [1, 3, 8])
def test_zeroed_head_tells_sums_from_means(length: int) -> None:
    """All V tokens equally likely: a summed log-probability is -n ln V, a mean one -ln V for every n."""
    log_v = math.log(37)
    made = pairs([-length * log_v], [-2 * log_v], [length], [2], ([0.0], [0.0]), torch.float32)
    # (chosen reward, margin, loss); every length-normalised margin is 0
    m = 0.5 * (2 - length) * log_v
    log_odds = -math.log(36)
    expected: dict[str, tuple[dict[str, float], float, float, float]] = {
        "dpo": ({"beta": 0.5}, -0.5 * length * log_v, m, math.log1p(math.exp(-m))),
        "dpo_norm": ({"beta": 0.5}, -0.5 * log_v, 0.0, math.log(2)),
        "ipo": ({"tau": 0.5}, -log_v, 0.0, 1.0),
        "simpo": ({"beta": 0.5, "gamma_absolute": 0.0}, -0.5 * log_v, 0.0, math.log(2)),
        "simper": ({}, 1 / 37, 0.0, 0.0),
        "orpo": ({"odds_ratio_weight": 0.5}, log_odds, 0.0, log_v + 0.5 * math.log(2)),
    }
    assert set(expected) == set(PAIRED)
    for name, (options, reward, margin, value) in expected.items():
        losses, found = find_loss(name).bind(options)(made)
        got = (found["chosen_reward"].item(), found["margin"].item(), losses.item())
        assert got == pytest.approx((reward, margin, value), rel=1e-5, abs=1e-6), name
        with_nll = find_loss(name).bind({**options, "nll_weight": 2.0})(made)[0].item()
        assert with_nll - losses.item() == pytest.approx(2 * log_v, rel=1e-5), name


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_loss_at_reference(name: str) -> None:
    tau = {"tau": 0.25} if name == "ipo" else {}
    known = 4.0 if name == "ipo" else math.log(2)
    made = batch()
    found = loss_at_reference(find_loss(name).bind(tau), made)
    assert found.tolist() == pytest.approx([known] * len(ROWS))
    found = loss_at_reference(find_loss(name).bind({**tau, "nll_weight": 0.5}), made)
    assert found.tolist() == pytest.approx([known + 0.5 * -row[4] / row[2] for row in ROWS])
    if LOSSES[name].takes_flip_rates:
        for robust in (False, True):
            found = loss_at_reference(find_loss(name).bind({"robust": robust}), batch(flips=True))
            assert found.tolist() == pytest.approx([known] * len(ROWS)), "whatever the rates"
    with pytest.raises(ValueError, match="needs reference"):
        loss_at_reference(find_loss(name).bind({}), pairs([-1.0], [-1.0], [1], [1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_log_odds_at_both_ends(dtype: torch.dtype) -> None:
    """Mean log-probabilities from improbable to certain, against Python floats; at certainty held, and never NaN."""
    eps = torch.finfo(dtype).eps
    means = [-1e4, -104.0, -88.0, -20.0, -1.0, -0.7, -math.log(2), -0.69, -1e-2, -1e-5, -8 * eps]
    made = pairs(means, [-1.0] * len(means), [1] * len(means), [1] * len(means), dtype=dtype)
    chosen = made.chosen.requires_grad_()
    _, found = orpo(made)
    for mean, value in zip(chosen.tolist(), found["chosen_reward"].tolist(), strict=True):
        # 1 - exp(mean) through expm1; math.log(1 - math.exp(mean)) would itself cancel
        assert value == pytest.approx(mean - math.log(-math.expm1(mean)), rel=20 * eps, abs=2 * eps)
    found["chosen_reward"].sum().backward()
    for mean, slope in zip(chosen.tolist(), chosen.grad.tolist(), strict=True):
        assert slope == pytest.approx(-1 / math.expm1(mean), rel=1e-4 if dtype == torch.float32 else 1e-10)
    # 0 and, by rounding, above it: the odds are infinite; so that 0.0 beside 0.0 is a draw and not NaN
    certain = pairs([0.0, -0.0, eps / 4, 0.0], [0.0, -1.0, 0.0, -1e4], [3, 1, 1, 2], [1, 1, 1, 2], dtype=dtype)
    certain.chosen.requires_grad_()
    certain.rejected.requires_grad_()
    losses, found = orpo(certain)
    losses.sum().backward()
    assert found["margin"][0] == 0 and found["margin"][1] > 15 and found["margin"][2] == 0
    for values in (losses, *found.values(), certain.chosen.grad, certain.rejected.grad):
        assert torch.isfinite(values).all()


@pytest.mark.parametrize("name", PAIRED)
def test_extreme_margins_stay_finite_in_float32(name: str) -> None:
    made = pairs([-1e5, -1.0, -1e5], [-1.0, -1e5, -1e5], [10, 10, 10], [10, 10, 10], ([-5.0] * 3, [-5.0] * 3), torch.float32)
    chosen, rejected = made.chosen.requires_grad_(), made.rejected.requires_grad_()
    losses, found = find_loss(name).bind({"nll_weight": 0.1})(made)
    losses.sum().backward()
    for values in (losses, *found.values(), chosen.grad, rejected.grad):
        assert torch.isfinite(values).all()
    assert found["margin"][0] < 0 < found["margin"][1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpo", {"gamma": 1.0}, "dpo does not use gamma; its options: beta, label_smoothing, robust, nll_weight$"),
        ("simpo", {"label_smoothing": 0.1}, "simpo does not use label_smoothing; its options: beta, gamma_absolute"),
        ("simpo", {"gamma": 1.0}, r"use gamma; .* gamma_absolute \(the margin itself\) or gamma_over_beta \(the ratio\)"),
        ("simper", {"beta": 0.1}, "simper does not use beta; its options: nll_weight$"),
        ("ipo", {"beta": 0.1, "robust": True}, "ipo does not use beta, robust; its options: tau, nll_weight$"),
        ("nll", {"nll_weight": 0.1}, "nll does not use nll_weight; its options: none"),
        ("dpo", {"beta": 0.0}, "dpo: beta must be > 0, not 0"),
        ("dpo_norm", {"beta": -1.0}, "dpo_norm: beta must be > 0"),
        ("simpo", {"beta": math.nan}, "simpo: beta must be > 0, not nan"),
        ("ipo", {"tau": 0.0}, "ipo: tau must be > 0"),
        ("ipo", {"tau": math.inf}, "ipo: tau must be > 0, not inf"),
        ("dpo", {"label_smoothing": 0.5}, r"dpo: label_smoothing must be in \[0, 0.5\), not 0.5"),
        ("dpo_norm", {"label_smoothing": -0.1}, r"dpo_norm: label_smoothing must be in \[0, 0.5\)"),
        ("simpo", {"gamma_absolute": -0.1}, "simpo: gamma must be >= 0"),
        ("simpo", {"gamma_over_beta": -0.1}, "simpo: gamma must be >= 0"),
        ("simpo", {"gamma_over_beta": 0.5, "gamma_absolute": 1.25}, "give gamma_absolute or gamma_over_beta, not both"),
        ("orpo", {"odds_ratio_weight": -0.1}, "orpo: odds_ratio_weight must be >= 0"),
        ("simper", {"nll_weight": -1.0}, "simper: nll_weight must be >= 0"),
        ("dpo", {"nll_weight": math.nan}, "dpo: nll_weight must be >= 0, not nan"),
    ],
)
def test_unused_and_bad_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_loss(name).bind(options)(THREE)


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_a_missing_reference_is_refused(name: str) -> None:
    for left_out in ("reference_chosen", "reference_rejected"):
        with pytest.raises(ValueError, match=f"{name} needs reference"):
            find_loss(name).bind({})(replace(THREE, **{left_out: None}))


def test_flip_rates_out_of_place_are_refused() -> None:
    given = batch(flips=True)
    for name in PAIRED:
        if not LOSSES[name].takes_flip_rates:
            with pytest.raises(ValueError, match=f"loss {name} does not use flip rates"):
                find_loss(name).bind({})(given)
            continue
        with pytest.raises(ValueError, match="flip rates of their own, so label_smoothing must be 0"):
            find_loss(name).bind({"label_smoothing": 0.1})(given)
        with pytest.raises(ValueError, match=r"flip_rates are \(6, 1\), the pairs \(6,\)"):
            find_loss(name).bind({})(replace(given, flip_rates=given.flip_rates[:, None]))
    for rate in (-0.01, 0.5, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"flip rate of a must be in \[0, 0.5\)"):
            check_flip_rate(rate, "flip rate of a")
    check_flip_rate(0.0, "a")
    check_flip_rate(0.4999, "a")


def test_what_the_losses_say_of_themselves() -> None:
    with pytest.raises(ValueError, match="no loss 'kto'; there are nll, dpo, ipo, dpo_norm, simpo, simper, orpo"):
        find_loss("kto")
    assert {name: loss.options for name, loss in LOSSES.items()} == {
        "nll": {},
        "dpo": {"beta": 0.1, "label_smoothing": 0.0, "robust": False, "nll_weight": 0.0},
        "ipo": {"tau": 0.1, "nll_weight": 0.0},
        "dpo_norm": {"beta": 5.0, "label_smoothing": 0.0, "robust": False, "nll_weight": 0.0},
        "simpo": {"beta": 2.5, "gamma_absolute": None, "gamma_over_beta": None, "nll_weight": 0.0},
        "simper": {"nll_weight": 0.0},
        "orpo": {"odds_ratio_weight": 0.1, "nll_weight": 0.0},
    }
    assert WITH_REFERENCE == ["dpo", "ipo", "dpo_norm"]
    assert [name for name, loss in LOSSES.items() if loss.takes_flip_rates] == ["dpo", "dpo_norm"]
    assert [name for name, loss in LOSSES.items() if not loss.length_normalised] == ["nll", "dpo"]
    assert all(name == loss.name for name, loss in LOSSES.items())


@pytest.mark.parametrize("name", PAIRED)
def test_length_normalised_losses_do_not_see_repetition(name: str) -> None:
    """Every log-probability and length times 3 is the same text three times over: only sums change."""
    one, options = batch(), {"nll_weight": 0.1}
    thrice = replace(one, **{f.name: 3 * getattr(one, f.name) for f in fields(one) if f.name != "flip_rates"})
    losses, again = (find_loss(name).bind(options)(made)[0] for made in (one, thrice))
    assert torch.allclose(losses, again, rtol=1e-12) == LOSSES[name].length_normalised
