"""The fused LM head against the float64 one: values, gradients, routes, memory, refusals."""

from __future__ import annotations

import ast
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from align.train.kernels import gradients, head
from align.train.kernels.head import HeadFeatures, choose_impl, fused_loss, linear_logprobs
from align.train.kernels.plan import Group, cut_tiles, plan_groups
from align.train.kernels.reference import reference_logprobs

KERNELS = Path(head.__file__).parent
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Format:
    """How operands are stored and multiplied, and how far from float64 the results may be.

    `value` is in nats; `gradient` is relative to the largest entry of the exact gradient.
    """

    name: str
    dtype: torch.dtype
    autocast: bool
    value: float
    gradient: float

    def context(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.autocast)


FP64 = Format("fp64", torch.float64, False, 1e-12, 1e-11)  # the same arithmetic in another order
# Logits of size 5 have errors of a few 2^-24 each; lse of 1,000 of them and a unit's sum of 70 add some more.
FP32 = Format("fp32", torch.float32, False, 2e-5, 1e-4)
# The oracle gets the operands as autocast rounds them. What is left is the rounding of logits (2^-9 of up to 5 nats, once
# for the target and once for what dominates lse) and, in gradients, that of dL/dlogits and of the products (2^-9 each).
BF16 = Format("bf16", torch.float32, True, 2e-2, 3e-2)
FORMATS = [FP64, FP32, BF16]


@dataclass
class Problem:
    """Operands with gradients, targets, and units of unequal size with a loss that is not linear in the logps."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    bounds: list[int]

    @property
    def operands(self) -> list[Tensor]:
        return [tensor for tensor in (self.hidden, self.weight, self.bias) if tensor is not None]

    def loss_of(self, logps: Tensor, start: int, stop: int) -> Tensor:
        """softplus of a margin between even and odd rows, scaled by unit: both signs, and other factors for other units."""
        first = self.bounds[start]
        total = logps.new_zeros(())
        for unit in range(start, stop):
            part = logps[self.bounds[unit] - first : self.bounds[unit + 1] - first]
            total = total + (unit + 1) * F.softplus(0.1 * (part[::2].sum() - part[1::2].sum()) + 0.2)
        return total

    def rounded(self) -> Problem:
        """The operands as autocast passes them to a product (the bias is added in float32)."""
        hidden, weight = (t.detach().bfloat16().float().requires_grad_() for t in (self.hidden, self.weight))
        return replace(self, hidden=hidden, weight=weight)


def units(num_rows: int) -> list[int]:
    """Bounds with a unit of one row first and, where there is room, large and small ones in turn."""
    return sorted({0, 1, min(4, num_rows), num_rows // 2, min(num_rows // 2 + 1, num_rows), num_rows})


def problem(n: int, v: int, d: int, dtype: torch.dtype = torch.float64, bias: bool = True, seed: int = 0) -> Problem:
    """Logits of about 1.5 nats, as far from uniform as a trained head's are in the middle of the vocabulary."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()

    weight = (draw(v, d).detach() * 1.5 / d**0.5).requires_grad_()
    return Problem(draw(n, d), weight, draw(v) if bias else None, torch.randint(v, (n,), generator=rng), units(n))


def differentiate(loss: Tensor, operands: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, operands))


def exact_logps(p: Problem, features: HeadFeatures = head.NO_FEATURES) -> Tensor:
    return reference_logprobs(p.hidden, p.weight, p.targets, p.bias, features.softcap, features.scale)


def exact_loss(p: Problem, features: HeadFeatures = head.NO_FEATURES) -> tuple[Tensor, list[Tensor]]:
    loss = p.loss_of(exact_logps(p, features), 0, len(p.bounds) - 1)
    return loss, differentiate(loss, p.operands)


def fused(p: Problem, **options) -> tuple[Tensor, Tensor]:
    return fused_loss(p.hidden, p.weight, p.targets, p.bounds, p.loss_of, bias_V=p.bias, **options)


def rows(count: int, p: Problem, itemsize: int) -> int:
    """The budget that logits of `count` rows take."""
    return count * p.weight.shape[0] * itemsize


def assert_near(found: Tensor, exact: Tensor, tolerance: float) -> None:
    worst = (found.double() - exact.double()).abs().max().item()
    assert worst <= tolerance, f"off by {worst:.3g}, allowed {tolerance:.3g}"


def assert_gradients(found: Sequence[Tensor], exact: Sequence[Tensor], tolerance: float) -> None:
    assert len(found) == len(exact)
    for one, other in zip(found, exact, strict=True):
        assert one.shape == other.shape
        assert_near(one, other, tolerance * other.abs().max().item())


# 1 row; fewer and more than a vector register holds; an odd number; more than one block or tile under small budgets.
SIZES = [(n, v, d) for n in (1, 3, 17, 130) for v in (7, 257, 1000) for d in (5, 64)]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize(("n", "v", "d"), SIZES)
def test_fused_loss_is_the_reference(n: int, v: int, d: int, form: Format) -> None:
    p = problem(n, v, d, form.dtype)
    oracle = p.rounded() if form.autocast else p
    loss, expected = exact_loss(oracle)
    for budget in (None, rows(3, p, 2 if form.autocast else form.dtype.itemsize)):
        with form.context():
            found, logps = fused(p, budget_bytes=budget)
        assert logps.dtype == found.dtype == (torch.float64 if form is FP64 else torch.float32)
        assert_near(logps, exact_logps(oracle), form.value)
        # The loss sums at most 130 log-probabilities, each times at most 0.6.
        assert_near(found, loss, form.value * n)
        assert_gradients(differentiate(found, p.operands), expected, form.gradient)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize(("n", "v", "d"), SIZES)
def test_logprobs_take_any_gradient_per_token(n: int, v: int, d: int, form: Format) -> None:
    p = problem(n, v, d, form.dtype, seed=1)
    oracle = p.rounded() if form.autocast else p
    upstream = torch.linspace(-1, 2, n, dtype=form.dtype)
    expected = differentiate((exact_logps(oracle) * upstream).sum(), oracle.operands)
    for budget in (None, rows(3, p, 2)):
        with form.context():
            logps = linear_logprobs(p.hidden, p.weight, p.targets, bias_V=p.bias, budget_bytes=budget)
        assert_near(logps, exact_logps(oracle), form.value)
        assert_gradients(differentiate((logps * upstream).sum(), p.operands), expected, form.gradient)


FEATURES = {
    "bias": (True, HeadFeatures()),
    "softcap": (False, HeadFeatures(softcap=2.0)),
    "scale": (False, HeadFeatures(scale=0.4)),
    "negative scale": (False, HeadFeatures(scale=-1.5)),
    "all": (True, HeadFeatures(softcap=2.0, scale=0.4)),
}


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("impl", ["chunked", "reference"])
def test_features(name: str, form: Format, impl: str) -> None:
    has_bias, features = FEATURES[name]
    p = problem(17, 257, 64, form.dtype, bias=has_bias)
    oracle = p.rounded() if form.autocast and impl == "chunked" else p
    _, expected = exact_loss(oracle, features)
    effect = exact_logps(oracle, features) - exact_logps(replace(oracle, bias=None))
    assert effect.abs().max() > 0.1  # the feature does something here
    with form.context():
        found, logps = fused(p, features=features, impl=impl)
        tokens = linear_logprobs(p.hidden, p.weight, p.targets, bias_V=p.bias, features=features, impl=impl)
    assert logps.dtype == tokens.dtype == (torch.float64 if form is FP64 else torch.float32)
    assert_near(logps, exact_logps(oracle, features), form.value)
    assert_gradients(differentiate(found, p.operands), expected, form.gradient)
    assert_near(tokens, logps, form.value)
    loss_of_tokens = p.loss_of(tokens, 0, len(p.bounds) - 1)
    assert_gradients(differentiate(loss_of_tokens, p.operands), expected, form.gradient)


@pytest.mark.parametrize("budget_rows", [0.01, 1, 2, 5, 16, 17, 64, 1000])
def test_budgets_and_routes_agree(budget_rows: float) -> None:
    """From tiles of one row over mixed routes to one group: the same numbers, up to the order of float64 sums."""
    p = problem(130, 257, 5)
    loss, expected = exact_loss(p)
    budget = int(rows(1, p, 8) * budget_rows)
    found, logps = fused(p, budget_bytes=budget)
    assert_near(found, loss, 1e-12)
    assert_near(logps, exact_logps(p), 1e-12)
    assert_gradients(differentiate(found, p.operands), expected, 1e-11)
    tokens = linear_logprobs(p.hidden, p.weight, p.targets, bias_V=p.bias, budget_bytes=budget)
    assert_near(tokens, exact_logps(p), 1e-12)
    assert_gradients(differentiate(p.loss_of(tokens, 0, len(p.bounds) - 1), p.operands), expected, 1e-11)


@pytest.mark.parametrize("hidden_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
def test_gradients_come_in_their_operands_dtypes(hidden_dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    p = problem(17, 257, 64, torch.float32)
    hidden, weight = (
        t.detach().to(dtype).requires_grad_() for t, dtype in ((p.hidden, hidden_dtype), (p.weight, weight_dtype))
    )
    p = replace(p, hidden=hidden, weight=weight)
    _, expected = exact_loss(p)
    for scale in (1.0, 3.0):
        found, logps = fused(p)
        found = differentiate(found * scale, p.operands)
        assert logps.dtype == torch.float32
        assert [g.dtype for g in found] == [hidden_dtype, weight_dtype, torch.float32]
        narrow = torch.bfloat16 in (hidden_dtype, weight_dtype)
        assert_gradients(found, [scale * g for g in expected], BF16.gradient if narrow else FP32.gradient)


def test_derivatives_against_finite_differences() -> None:
    """Central differences of float64 values, entry by entry: independent of every backward pass, the reference's too."""
    p, features, step = problem(5, 7, 3), HeadFeatures(softcap=2.0, scale=0.7), 1e-6
    found, _ = fused(p, features=features, budget_bytes=rows(2, p, 8))
    for operand, gradient in zip(p.operands, differentiate(found, p.operands), strict=True):
        for index in range(operand.numel()):
            sides = []
            for sign in (1, -1):
                moved = operand.detach().clone()
                moved.view(-1)[index] += sign * step
                others = [moved if t is operand else t.detach() for t in (p.hidden, p.weight, p.bias)]
                sides.append(fused(replace(p, hidden=others[0], weight=others[1], bias=others[2]), features=features)[0])
            # The difference has an error of about step^2 + 1e-16 / step.
            assert ((sides[0] - sides[1]) / (2 * step) - gradient.view(-1)[index]).abs() < 1e-8


def test_gradcheck_of_logprobs() -> None:
    p = problem(5, 7, 3)

    def logps(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        features = HeadFeatures(softcap=2.0, scale=0.7)
        return linear_logprobs(hidden, weight, p.targets, bias_V=bias, features=features, budget_bytes=rows(2, p, 8))

    assert torch.autograd.gradcheck(logps, p.operands)


def test_zero_head_is_uniform() -> None:
    for vocab in (7, 1000, 49152):
        hidden, weight = torch.randn(3, 5), torch.zeros(vocab, 5)
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                logps = linear_logprobs(hidden, weight, torch.tensor([0, 3, vocab - 1]))
            assert_near(logps, torch.full((3,), -math.log(vocab), dtype=torch.float64), 1e-6)


def test_large_vocabulary_in_bfloat16() -> None:
    """Logits stay below 4, where bfloat16 rounds by at most 2^-7 = 0.0078; whatever else is rounded must fit in the rest."""
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, 64, generator=rng).bfloat16().requires_grad_()
    weight = (torch.randn(102400, 64, generator=rng) / 8).bfloat16()
    targets = torch.randint(102400, (8,), generator=rng)
    exact = reference_logprobs(hidden, weight, targets)
    logps = linear_logprobs(hidden, weight, targets)
    assert_near(logps, exact, 1e-2)
    found, expected = differentiate(logps.sum(), [hidden]), differentiate(exact.sum(), [hidden])
    assert_gradients(found, expected, BF16.gradient)


def test_bias_is_added_in_float32() -> None:
    """Where the product is 0, nothing is left to round under autocast."""
    p = problem(17, 257, 5, torch.float32)
    with BF16.context():
        logps = linear_logprobs(torch.zeros_like(p.hidden), p.weight, p.targets, bias_V=p.bias)
    assert_near(logps, exact_logps(replace(p, hidden=torch.zeros_like(p.hidden))), FP32.value)


def test_float32_bias_does_not_widen_products() -> None:
    p = problem(2048, 1000, 8, torch.bfloat16, bias=False)
    with LargestTensor() as largest:
        linear_logprobs(p.hidden, p.weight, p.targets, bias_V=torch.zeros(1000))
    assert largest.bytes == 2048 * 1000 * 2


def test_autocast_leaves_float64_alone() -> None:
    p = problem(17, 257, 5)
    with BF16.context():
        loss, logps = fused(p)
        grads = differentiate(loss, p.operands)
    assert_near(logps, exact_logps(p), FP64.value)
    assert_gradients(grads, exact_loss(p)[1], FP64.gradient)


def test_extreme_logits() -> None:
    """Logits of +-1,000 neither overflow nor lose the small differences; -inf by the bias (a padded vocabulary) is 0."""
    hidden = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    weight = torch.tensor([[1000.0], [-1000.0], [999.0], [0.0]], requires_grad=True)
    bias = torch.tensor([0.0, 0.0, 0.0, -math.inf])
    targets = torch.tensor([2, 1])
    logps = linear_logprobs(hidden, weight, targets, bias_V=bias)
    assert_near(logps, torch.tensor([-1 - math.log1p(math.exp(-1)), 0.0]), 1e-4)  # 1e-4: float32 at 1,000
    (gradient,) = differentiate(logps.sum(), [weight])
    share = 1 / (1 + math.exp(-1))  # of token 0 where the target is token 2
    assert_near(gradient, torch.tensor([[-share], [0.0], [share], [0.0]]), 1e-4)


def test_upstream_factor_multiplies_gradients() -> None:
    p = problem(17, 257, 5)
    _, expected = exact_loss(p)
    assert_gradients(differentiate(3.0 * fused(p)[0], p.operands), [3 * g for g in expected], 1e-11)


def test_tied_weight_gets_both_gradients() -> None:
    p = problem(17, 257, 5, bias=False)
    ids = torch.randint(257, (17,), generator=torch.Generator().manual_seed(2))

    def total(p: Problem, logps_or_loss: Callable[[Problem], Tensor]) -> list[Tensor]:
        tied = replace(p, hidden=F.embedding(ids, p.weight).tanh())
        return differentiate(logps_or_loss(tied), [p.weight])

    expected = total(p, lambda tied: tied.loss_of(exact_logps(tied), 0, len(tied.bounds) - 1))
    apart = F.embedding(ids, p.weight).tanh().detach().requires_grad_()
    head_only = exact_loss(replace(p, hidden=apart))[1][1]
    assert (expected[0] - head_only).abs().max() > 1e-3  # the embedding's part is there
    assert_gradients(total(p, lambda tied: fused(tied)[0]), expected, 1e-11)
    by_tokens = total(p, lambda t: t.loss_of(linear_logprobs(t.hidden, t.weight, t.targets), 0, len(t.bounds) - 1))
    assert_gradients(by_tokens, expected, 1e-11)


@pytest.mark.parametrize("frozen", ["weight", "hidden", "bias"])
def test_frozen_operands_get_no_gradient(frozen: str) -> None:
    p = problem(17, 257, 5)
    getattr(p, frozen).requires_grad_(False)
    trained = [operand for operand in p.operands if operand.requires_grad]
    assert len(trained) == 2
    expected = differentiate(p.loss_of(exact_logps(p), 0, len(p.bounds) - 1), trained)
    for budget in (None, rows(3, p, 8)):
        assert_gradients(differentiate(fused(p, budget_bytes=budget)[0], trained), expected, 1e-11)
    loss, _ = fused(p)
    loss.backward()
    assert getattr(p, frozen).grad is None


def test_gradients_are_returned_not_written() -> None:
    """Hooks on the weight run in the backward pass, which is what data-parallel wrappers wait for."""
    p, seen = problem(17, 257, 5), []
    p.weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad.clone()))
    loss, _ = fused(p)
    assert p.weight.grad is None
    assert not seen
    loss.backward()
    assert_gradients(seen, [exact_loss(p)[1][1]], 1e-11)


def test_gradients_accumulate_over_micro_batches() -> None:
    p = problem(17, 257, 5)
    _, expected = exact_loss(p)
    for _ in range(2):
        fused(p)[0].backward()
    assert_gradients([operand.grad for operand in p.operands], [2 * g for g in expected], 1e-11)


def test_weight_gradient_is_summed_in_float32() -> None:
    """512 equal rows, one a group: a bfloat16 sum of equal terms stops growing at 256 of them."""
    p = problem(1, 257, 64, torch.float32)
    many = replace(
        p, hidden=p.hidden.detach().expand(512, -1).clone().requires_grad_(), targets=p.targets.expand(512),
        bounds=list(range(513)),
    )  # fmt: skip
    for operands, bounds in ((p, [0, 1]), (many, many.bounds)):
        with BF16.context():
            loss, _ = fused_loss(
                operands.hidden, operands.weight, operands.targets, bounds, lambda logps, i, j: -logps.sum(),
                bias_V=operands.bias, budget_bytes=rows(1, p, 2),
            )  # fmt: skip
        grads = differentiate(loss, [operands.weight, operands.bias])
        if operands is p:
            expected = [512 * g for g in grads]
    assert_gradients(grads, expected, 1e-5)  # 512 float32 additions


def test_loss_is_called_once_a_group_outside_of_autocast() -> None:
    p, calls = problem(130, 257, 5, torch.float32), []

    def loss_of(logps: Tensor, start: int, stop: int) -> Tensor:
        assert torch.is_grad_enabled()
        assert logps.requires_grad
        assert logps.is_leaf
        assert not torch.is_autocast_enabled("cpu")
        assert len(logps) == p.bounds[stop] - p.bounds[start]
        calls.append((start, stop))
        return p.loss_of(logps.double(), start, stop)

    budget = rows(10, p, 2)
    with BF16.context():
        loss, logps = fused_loss(p.hidden, p.weight, p.targets, p.bounds, loss_of, budget_bytes=budget)
    groups = plan_groups(p.bounds, 257, 2, budget)
    assert {group.route for group in groups} == {"kept", "recomputed"}
    assert calls == [(group.start_unit, group.stop_unit) for group in groups]
    assert loss.dtype == torch.float64  # as loss_of returned it
    assert logps.dtype == torch.float32


def test_loss_that_looks_at_nothing_has_no_gradient() -> None:
    p, parameter = problem(17, 257, 5), torch.tensor(2.0, requires_grad=True)
    for constant in (torch.tensor(2.0), parameter * 1.0):
        loss, _ = fused_loss(p.hidden, p.weight, p.targets, p.bounds, lambda logps, i, j, c=constant: c)
        assert loss.item() == 2.0
        assert all(g.abs().max() == 0 for g in differentiate(loss, [p.hidden, p.weight]))


@pytest.mark.parametrize("loss_of", [lambda logps, i, j: logps, lambda logps, i, j: logps.sum().bfloat16()])
@pytest.mark.parametrize("impl", ["chunked", "reference"])
@pytest.mark.parametrize("with_grad", [True, False])
def test_loss_must_be_a_wide_scalar(loss_of, impl: str, with_grad: bool) -> None:
    p = problem(17, 257, 5)
    with torch.set_grad_enabled(with_grad), pytest.raises(ValueError, match="must return a scalar"):
        fused_loss(p.hidden, p.weight, p.targets, p.bounds, loss_of, impl=impl)


def test_no_gradient_wanted() -> None:
    p = problem(130, 257, 5)
    loss, logps = fused(p)
    with torch.no_grad():
        bare = [fused(p), fused(p, budget_bytes=rows(3, p, 8))]
        tokens = linear_logprobs(p.hidden, p.weight, p.targets, bias_V=p.bias)
    frozen = replace(p, hidden=p.hidden.detach(), weight=p.weight.detach(), bias=p.bias.detach())
    bare.append(fused(frozen))
    for found, found_logps in bare:
        assert_near(found, loss, 1e-12)
        assert_near(found_logps, logps, 1e-12)
        assert not found.requires_grad
        assert not found_logps.requires_grad
    assert_near(tokens, logps, 1e-12)
    assert tokens.grad_fn is None
    assert not logps.requires_grad


def test_one_backward_pass_and_no_second_derivative() -> None:
    p = problem(17, 257, 5)
    loss, _ = fused(p)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass only"):
        loss.backward()
    for value in (fused(p)[0], linear_logprobs(p.hidden, p.weight, p.targets).sum()):
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(value, [p.hidden], create_graph=True)


def count_products(step: Callable[[], object], p: Problem) -> float:
    """Floating-point operations in units of NVd."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / (p.hidden.shape[0] * p.weight.shape[0] * p.hidden.shape[1])


def test_work_of_each_route() -> None:
    p = problem(130, 257, 5, torch.float32)
    p.bounds = [0, 130]

    def train() -> None:
        fused(p, budget_bytes=budget)[0].backward()

    budget = rows(130, p, 4)
    assert count_products(train, p) == 6
    budget = rows(1, p, 4)  # all but the last of 130 tiles is formed again
    assert count_products(train, p) == pytest.approx(8 - 2 / 130)
    assert count_products(lambda: linear_logprobs(p.hidden, p.weight, p.targets).sum().backward(), p) == 8
    with torch.no_grad():
        assert count_products(lambda: fused(p), p) == 2
    p.weight.requires_grad_(False)
    assert count_products(lambda: linear_logprobs(p.hidden, p.weight, p.targets).sum().backward(), p) == 6
    budget = rows(130, p, 4)
    assert count_products(train, p) == 4


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return result


@pytest.mark.parametrize("budget_rows", [2048, 64])
def test_no_wide_logits(budget_rows: int) -> None:
    """In bfloat16 the largest tensor is the logits buffer: half of float32 logits where all are kept, the budget else."""
    p = problem(2048, 1000, 8, torch.float32)
    budget = rows(budget_rows, p, 2)
    with LargestTensor() as largest, BF16.context():
        fused(p, budget_bytes=budget, features=HeadFeatures(softcap=5.0))[0].backward()
        linear_logprobs(p.hidden, p.weight, p.targets, bias_V=p.bias, budget_bytes=budget).sum().backward()
        with torch.no_grad():
            fused(p, budget_bytes=budget)
    blocks = 4 * 2**19  # float32 blocks of rows
    assert budget <= largest.bytes <= max(budget, blocks) < 2048 * 1000 * 4


def test_plan_by_hand() -> None:
    """Five rows fit: sizes 2, 2, 1 | 6 (too long) | 1 | 5."""
    assert plan_groups([0, 2, 4, 5, 11, 12, 17], 10, 2, 5 * 20) == [
        Group(0, 3, "kept"), Group(3, 4, "recomputed"), Group(4, 5, "kept"), Group(5, 6, "kept"),
    ]  # fmt: skip
    assert plan_groups([0, 2, 4], 10, 2, 10**6) == [Group(0, 2, "kept")]
    assert plan_groups([0, 2, 4], 10, 2, 79) == [Group(0, 1, "kept"), Group(1, 2, "kept")]
    assert plan_groups([0, 2, 4], 10, 2, 39) == [Group(0, 1, "recomputed"), Group(1, 2, "recomputed")]
    assert plan_groups([0, 1], 10, 2, 1) == [Group(0, 1, "recomputed")]


def test_plans_cover_all_units_within_the_budget() -> None:
    rng = torch.Generator().manual_seed(0)
    for _ in range(200):
        sizes = torch.randint(1, 30, (int(torch.randint(1, 12, (), generator=rng)),), generator=rng)
        bounds = [0, *sizes.cumsum(0).tolist()]
        allowed = int(torch.randint(1, 60, (), generator=rng))
        groups = plan_groups(bounds, 7, 4, allowed * 28)
        assert [group.start_unit for group in groups] == [0, *(group.stop_unit for group in groups[:-1])]
        assert groups[-1].stop_unit == len(sizes)
        for group in groups:
            num_rows = bounds[group.stop_unit] - bounds[group.start_unit]
            assert (group.route == "kept") == (num_rows <= allowed)
            assert group.route == "kept" or group.stop_unit == group.start_unit + 1
        for one, other in pairwise(groups):  # greedy: no two neighbours would fit together
            assert bounds[other.start_unit + 1] - bounds[one.start_unit] > allowed


def test_tiles_are_even() -> None:
    assert cut_tiles(3, 13, 10, 2, 4 * 20) == [(3, 6), (6, 9), (9, 13)]
    assert cut_tiles(0, 4, 10, 2, 4 * 20) == [(0, 4)]
    assert cut_tiles(0, 3, 10, 2, 1) == [(0, 1), (1, 2), (2, 3)]


HIDDEN, WEIGHT, TARGETS = torch.zeros(3, 5), torch.zeros(7, 5), torch.tensor([0, 6, 3])
REFUSED = {
    "no rows": (dict(hidden_Nd=HIDDEN[:0], targets_N=TARGETS[:0]), "no rows"),
    "other width": (dict(weight_Vd=torch.zeros(7, 4)), r"\(N, d\) and \(V, d\)"),
    "three axes": (dict(hidden_Nd=HIDDEN[None]), r"\(N, d\) and \(V, d\)"),
    "too few targets": (dict(targets_N=TARGETS[:2]), "targets must be"),
    "int32 targets": (dict(targets_N=TARGETS.int()), "int64"),
    "target beyond the vocabulary": (dict(targets_N=TARGETS + 1), r"\[1, 7\]"),
    "ignored target": (dict(targets_N=TARGETS - 100), r"\[-100, -94\]"),
    "short bias": (dict(bias_V=torch.zeros(6)), "bias must be"),
    "float16": (dict(hidden_Nd=HIDDEN.half()), "float16"),
    "integers": (dict(hidden_Nd=HIDDEN.long()), "int64"),
    "float64 beside float32": (dict(hidden_Nd=HIDDEN.double()), "float64 does not mix"),
    "float64 bias": (dict(bias_V=torch.zeros(7).double()), "float64 does not mix"),
    "no budget": (dict(budget_bytes=0), "budget_bytes"),
    "unknown impl": (dict(impl="fast"), "fast"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_operands_that_are_refused(name: str) -> None:
    change, message = REFUSED[name]
    arguments = dict(hidden_Nd=HIDDEN, weight_Vd=WEIGHT, targets_N=TARGETS) | change
    with pytest.raises(ValueError, match=message):
        linear_logprobs(**arguments)
    with pytest.raises(ValueError, match=message):
        fused_loss(bounds=[0, 1, 3], loss_of=lambda logps, i, j: logps.sum(), **arguments)


@pytest.mark.parametrize("bounds", [[], [0], [3], [0, 2], [1, 3], [0, 4], [0, 2, 2, 3], [0, 3, 2, 3]])
def test_bounds_that_are_refused(bounds: list[int]) -> None:
    with pytest.raises(ValueError, match="bounds must"):
        fused_loss(HIDDEN, WEIGHT, TARGETS, bounds, lambda logps, i, j: logps.sum())


@pytest.mark.parametrize("options", [dict(softcap=0.0), dict(softcap=-1.0), dict(softcap=math.inf), dict(softcap=math.nan),
                                     dict(scale=0.0), dict(scale=math.inf)])  # fmt: skip
def test_features_that_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        HeadFeatures(**options)


def test_float16_autocast_is_refused() -> None:
    with torch.autocast("cpu", torch.float16), pytest.raises(ValueError, match="float16"):
        linear_logprobs(HIDDEN, WEIGHT, TARGETS)


def test_words_for_implementations(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, missing = torch.device("cuda"), lambda name: None
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(head.importlib.util, "find_spec", lambda name: name)
    assert choose_impl("auto", CPU) == "chunked"
    assert choose_impl("auto", cuda) == choose_impl("triton", cuda) == "triton"
    for word in ("chunked", "reference"):
        assert choose_impl(word, CPU) == choose_impl(word, cuda) == word
    with pytest.raises(ValueError, match="TRITON_INTERPRET"):
        choose_impl("triton", CPU)
    with pytest.raises(ValueError, match="'liger' is not one of auto, triton, chunked, reference"):
        choose_impl("liger", CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_impl("triton", CPU) == "triton"
    assert choose_impl("auto", CPU) == "chunked"
    monkeypatch.setattr(head.importlib.util, "find_spec", missing)
    assert choose_impl("auto", cuda) == "chunked"
    with pytest.raises(ValueError, match="not installed"):
        choose_impl("triton", cuda)


def test_bfloat16_products_are_not_added_in_float32_on_a_cpu() -> None:
    """The check tells apart; should a later torch add them, the faster way is taken and this test says so."""
    assert gradients.adds_products_in_float32(CPU) is False


def test_head_runs_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from align.train.kernels.head import linear_logprobs\n"
        "print(linear_logprobs(torch.zeros(1, 2), torch.zeros(3, 2), torch.tensor([0])).item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(-math.log(3))


def test_row_numbers_are_widened_before_they_are_multiplied() -> None:
    """rows x V passes 2^31; a run that would show it needs 4 GiB of logits, so the source is looked at."""
    tree = ast.parse((KERNELS / "triton_rows.py").read_text(encoding="utf-8"))
    kernels = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")]
    assert len(kernels) == 2
    for kernel in kernels:
        source = ast.unparse(kernel)
        assert source.count("tl.program_id(0)") == source.count("row = tl.program_id(0).to(tl.int64)") == 1
        assert source.count("logits_ptr +") == source.count("row_ptr = logits_ptr + row * row_stride") == 1
        assert "row_stride: " not in source  # no annotation that narrows the stride
