"""The peers of the GPU benchmarks: where they come from, and how they are called.

They need not be installed. `unpack` takes a folder of wheels (a wheel is a zip file of what lies in site-packages) into a
temporary folder, which `benchmarks.gpu` puts first on the path of its scripts: no network, no pip, nothing installed. They
need it from their first import on, because transformers looks once for packages that it can do without. A peer that cannot
be loaded is `missing` with the reason, which goes into the result rows.

TRL's head is one file, `trl/kernels/chunked_logprob.py`, that needs torch, transformers and Triton alone; but its package,
and a helper that its backward pass imports, want `datasets` and more. Where they cannot be imported, the file is executed
under a package of our own with a stand-in for that helper, `maybe_gather_lm_head_ctx`, which does nothing outside of
DeepSpeed ZeRO-3. The function that runs is the same either way; `how` says which way it was.

Shapes: N = rows, V = vocabulary, d = hidden size.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import shutil
import sys
import types
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TRL_TILE = 32_768  # vocabulary columns of a tile where TRL's trainers call it
TRL_DPO_OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")  # what its DPO trainer asks for, for its metrics
_ALONE = "benchmarks_trl_alone"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A peer's entry point, or why there is none.

    Attributes:
        name: of the distribution.
        load: the object that was asked for, None where it is missing.
        how: how it was loaded, or why it could not be.
        version: of the distribution, None where unknown.
    """

    name: str
    load: Any
    how: str
    version: str | None

    @property
    def status(self) -> str:
        """`found (...)` or `missing (...)`."""
        return f"{'missing' if self.load is None else 'found'} ({self.how})"


def unpack(wheels: Path, folder: Path) -> list[Path]:
    """Unpack every wheel of a folder into another one.

    Returns:
        what to put on the path: the other folder, and what the wheels' .pth files name.

    Raises:
        SystemExit: there is no wheel.
    """
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise SystemExit(f"error: no wheels (*.whl) in {wheels}")
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    for part in (path for kind in ("purelib", "platlib") for path in folder.glob(f"*.data/{kind}")):
        shutil.copytree(part, folder, dirs_exist_ok=True)
    named = (line.strip() for file in sorted(folder.glob("*.pth")) for line in file.read_text().splitlines())
    return [folder, *(folder / line for line in named if line and (folder / line).is_dir())]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _load(name: str, loaders: Sequence[Callable[[], tuple[Any, str]]]) -> Peer:
    """The first loader that works, or all their reasons."""
    reasons: list[str] = []
    for loader in loaders:
        try:
            loaded, how = loader()
        except Exception as error:  # packages fail to import in many ways
            reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
        else:
            return Peer(name=name, load=loaded, how="; ".join([how, *reasons]), version=_version(name))
    return Peer(name=name, load=None, how="; ".join(reasons), version=_version(name))


# TRL


def _trl_package() -> tuple[Any, str]:
    importlib.import_module("trl.trainer.utils")  # the backward pass needs it
    return importlib.import_module("trl.kernels.chunked_logprob").ChunkedLogProbFunction, "package"


def _trl_file() -> tuple[Any, str]:
    spec = importlib.util.find_spec("trl")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    paths = [path for folder in folders if (path := Path(folder) / "kernels" / "chunked_logprob.py").is_file()]
    if not paths:
        raise ImportError("there is no trl/kernels/chunked_logprob.py on the path")
    for name in (_ALONE, f"{_ALONE}.kernels", f"{_ALONE}.trainer"):
        package = types.ModuleType(name)
        package.__path__ = []
        sys.modules[name] = package
    helper: Any = types.ModuleType(f"{_ALONE}.trainer.utils")
    helper.maybe_gather_lm_head_ctx = lambda *_: contextlib.nullcontext()
    sys.modules[helper.__name__] = helper
    made = importlib.util.spec_from_file_location(f"{_ALONE}.kernels.chunked_logprob", paths[0])
    assert made is not None and made.loader is not None
    module = importlib.util.module_from_spec(made)
    sys.modules[made.name] = module
    made.loader.exec_module(module)
    return module.ChunkedLogProbFunction, "its file alone"


def trl_head(*, alone: bool = False) -> Peer:
    """TRL's `ChunkedLogProbFunction`; `alone` does not try the package."""
    return _load("trl", [_trl_file] if alone else [_trl_package, _trl_file])


def trl_logprobs(
    function: Any, hidden_Nd: Tensor, weight_Vd: Tensor, targets_N: Tensor, *, tile: int, outputs: Sequence[str]
) -> Tensor:
    """Log-probabilities (N,) by TRL's function, as its fused LM head calls it."""
    return function.apply(hidden_Nd, weight_Vd, None, targets_N, 1.0, tile, None, 1.0, tuple(outputs))[0]


def trl_trainer() -> Peer:
    """(DPOTrainer, DPOConfig, datasets.Dataset), all imported."""

    def load() -> tuple[Any, str]:
        trainers = importlib.import_module("trl.trainer.dpo_trainer")
        config = importlib.import_module("trl.trainer.dpo_config")
        return (trainers.DPOTrainer, config.DPOConfig, importlib.import_module("datasets").Dataset), "package"

    return _load("trl", [load])


# Liger


def liger_dpo() -> Peer:
    """Liger's `LigerFusedLinearDPOLoss`."""
    return _load(
        "liger-kernel",
        [lambda: (importlib.import_module("liger_kernel.chunked_loss.dpo_loss").LigerFusedLinearDPOLoss, "package")],
    )


def liger_scaled_ce(device: torch.device) -> Peer:
    """Liger's Hopper kernel of a negative log-likelihood per token; it needs nvidia-cutlass-dsl and apache-tvm-ffi.

    Its slow fallback for other devices is not taken: nobody would choose it for speed.
    """

    def load() -> tuple[Any, str]:
        if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
            raise ImportError("needs a GPU of compute capability 9.0")
        module = importlib.import_module("liger_kernel.ops.cutedsl.ops.fused_scaled_cross_entropy_sm90")
        return module.LigerFusedScaledCrossEntropySM90Function, "CuTe DSL kernel for sm_90"

    return _load("liger-kernel", [load])
