"""The Triton kernels against the float64 head: compiled where there is a GPU, else interpreted on the CPU.

Triton decides at import whether it interprets, and torch or another test may have imported it by then. On a machine without
a GPU one test therefore runs this file again in a process of its own with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from align.train.kernels.head import HeadFeatures, fused_loss, linear_logprobs
from align.train.kernels.reference import reference_logprobs

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda")
RUNS_HERE = INTERPRETED or DEVICE.type == "cuda"

# Nats, and shares of the largest gradient. float32: as in torch. The oracle has the same bfloat16 operands, so what is left
# is one rounding of logits and one of gradients; the interpreter cuts digits off where a GPU rounds: 2^-7 instead of 2^-8.
VALUE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
GRADIENT = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
FEATURES = {
    "plain": (False, HeadFeatures()),
    "bias": (True, HeadFeatures()),
    "softcap": (False, HeadFeatures(softcap=2.0)),
    "scale": (False, HeadFeatures(scale=-0.4)),
    "all": (True, HeadFeatures(softcap=2.0, scale=0.4)),
}
# 1 row; one more than a power of two; a vocabulary below, at and above the widest block of 4,096.
SIZES = [(1, 7, 5), (3, 257, 64), (17, 1000, 5), (2, 4096, 5), (3, 9000, 5)]


@pytest.mark.skipif(RUNS_HERE, reason="the kernels' tests run in this process")
def test_under_the_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    # A run that collected nothing, or skipped, proves nothing.
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) >= len(SIZES) * len(FEATURES) * len(VALUE), done.stdout


def near(found: Tensor, exact: Tensor, tolerance: float) -> None:
    worst = (found.double() - exact.double()).abs().max().item()
    assert worst <= tolerance, f"off by {worst:.3g}, allowed {tolerance:.3g}"


def gradients_near(loss: Tensor, exact: Tensor, operands: list[Tensor], tolerance: float) -> None:
    expected = torch.autograd.grad(exact, operands)
    for one, other in zip(torch.autograd.grad(loss, operands), expected, strict=True):
        near(one, other, tolerance * other.abs().max().item())


class TestKernels:
    """Collected only where the kernels can run."""

    __test__ = RUNS_HERE

    @pytest.mark.parametrize("dtype", VALUE, ids=str)
    @pytest.mark.parametrize("name", FEATURES)
    @pytest.mark.parametrize(("n", "v", "d"), SIZES)
    def test_head_is_the_reference(self, n: int, v: int, d: int, name: str, dtype: torch.dtype) -> None:
        has_bias, features = FEATURES[name]
        rng = torch.Generator().manual_seed(0)
        hidden = torch.randn(n, d, generator=rng).to(DEVICE, dtype).requires_grad_()
        weight = (torch.randn(v, d, generator=rng) * 1.5 / d**0.5).to(DEVICE, dtype).requires_grad_()
        bias = torch.randn(v, generator=rng).to(DEVICE).requires_grad_() if has_bias else None
        targets = torch.randint(v, (n,), generator=rng).to(DEVICE)
        operands = [tensor for tensor in (hidden, weight, bias) if tensor is not None]
        bounds = sorted({0, 1, n // 2 + 1, n})

        def loss_of(logps: Tensor, start: int, stop: int) -> Tensor:
            first = bounds[start]
            sums = [logps[bounds[u] - first : bounds[u + 1] - first].sum() for u in range(start, stop)]
            return torch.stack(sums).mul(0.1).square().sum()

        exact = reference_logprobs(hidden, weight, targets, bias, features.softcap, features.scale)
        options = {"bias_V": bias, "features": features, "impl": "triton", "budget_bytes": 2 * v * dtype.itemsize}
        loss, logps = fused_loss(hidden, weight, targets, bounds, loss_of, **options)
        tokens = linear_logprobs(hidden, weight, targets, **options)
        assert logps.dtype == tokens.dtype == torch.float32
        near(logps, exact, VALUE[dtype])
        near(tokens, exact, VALUE[dtype])
        gradients_near(loss, loss_of(exact, 0, len(bounds) - 1), operands, GRADIENT[dtype])
        exact = reference_logprobs(hidden, weight, targets, bias, features.softcap, features.scale)
        gradients_near(-tokens.sum(), -exact.sum(), operands, GRADIENT[dtype])

    def test_both_implementations_agree_on_rows(self) -> None:
        from align.train.kernels import torch_rows, triton_rows

        rng = torch.Generator().manual_seed(0)
        logits = (30 * torch.randn(5, 5000, generator=rng)).to(DEVICE)
        bias = torch.randn(5000, generator=rng).to(DEVICE)
        bias[:4500] = -math.inf  # more than the first block: the running maximum is -inf for a while
        targets = torch.randint(4500, 5000, (5,), generator=rng).to(DEVICE)
        coefficient = torch.linspace(-1, 2, 5).to(DEVICE)
        results = []
        for rows in (torch_rows, triton_rows):
            written = logits.clone()
            lse, target_logit = rows.read_rows(written, targets, bias)
            assert torch.equal(written, logits)
            rows.write_gradient_(written, targets, lse, coefficient, bias)
            results.append((lse, target_logit, written))
        for one, other in zip(*results, strict=True):
            near(one, other, 2e-5)
        assert results[1][2][:, :4500].abs().max() == 0

    def test_rows_of_a_wider_buffer(self) -> None:
        """Rows need not lie side by side, and nothing beyond their columns is touched."""
        from align.train.kernels import triton_rows

        wide = torch.randn(3, 300, device=DEVICE)
        before, targets = wide.clone(), torch.tensor([0, 100, 256], device=DEVICE)
        lse, target_logit = triton_rows.read_rows(wide[:, :257], targets)
        near(lse, before[:, :257].double().logsumexp(1), 2e-5)
        near(target_logit, before.gather(1, targets[:, None])[:, 0], 0)
        triton_rows.write_gradient_(wide[:, :257], targets, lse, torch.ones(3, device=DEVICE))
        assert torch.equal(wide[:, 257:], before[:, 257:])
        near(wide[:, :257].sum(1), torch.zeros(3, device=DEVICE), 1e-5)

    def test_float64_is_refused(self) -> None:
        operands = torch.zeros(1, 2, device=DEVICE).double(), torch.zeros(3, 2, device=DEVICE).double()
        targets = torch.tensor([0], device=DEVICE)
        with pytest.raises(ValueError, match="float64"):
            linear_logprobs(*operands, targets, impl="triton")
        near(linear_logprobs(*operands, targets), torch.tensor([-math.log(3)], device=DEVICE), 1e-6)

    @pytest.mark.skipif(INTERPRETED or DEVICE.type != "cuda", reason="needs 4.3 GB of logits on a GPU")
    def test_more_than_2_to_31_logits(self) -> None:
        """The last rows lie beyond what 32 bits count."""
        from align.train.kernels import triton_rows

        vocab = 102_400
        num_rows = 2**31 // vocab + 3
        logits = torch.zeros(num_rows, vocab, dtype=torch.bfloat16, device=DEVICE)
        targets = torch.arange(num_rows, device=DEVICE) % vocab
        logits[torch.arange(num_rows, device=DEVICE), targets] = 5.0
        lse, target_logit = triton_rows.read_rows(logits, targets)
        near(lse, torch.full_like(lse, math.log(vocab - 1 + math.exp(5))), 1e-4)
        near(target_logit, torch.full_like(lse, 5.0), 0)
        triton_rows.write_gradient_(logits, targets, lse, torch.ones_like(lse))
        share = math.exp(5) / (vocab - 1 + math.exp(5))
        near(logits[torch.arange(num_rows, device=DEVICE), targets], torch.full_like(lse, 1 - share), 1e-2)
