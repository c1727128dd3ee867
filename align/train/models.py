"""Opening and saving model folders: safetensors only, nothing from the network, no code from the folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from align.core.errors import StepError, UserError
from align.core.hashing import file_sha256, fingerprint

# Everything beside the weights that a served model reads, taken over byte for byte: re-saving a tokenizer can change it.
COMPANIONS = (
    "generation_config.json",
    "tokenizer*",
    "chat_template*",
    "additional_chat_templates",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "LICENSE*",
    "NOTICE*",
)
RELOAD_TOLERANCE = 1e-3  # largest logit difference between the saved folder and the model in memory
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


def training_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A causal LM on the CPU.

    Raises:
        UserError: the folder holds no model that transformers can load from safetensors.
    """
    shows_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: not a model folder that can be trained ({str(error).splitlines()[0]})") from error
    finally:
        if shows_bars:
            transformers_logging.enable_progress_bar()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, by name."""
    return sorted(folder.glob("*.safetensors"))


def weights_digest(folder: Path) -> str:
    """Identity of a folder's weights alone: equal for copies, whatever lies beside them."""
    return fingerprint({path.name: file_sha256(path) for path in weight_files(folder)})


def weights_dtype(folder: Path) -> torch.dtype:
    """The dtype in which most of a folder's numbers are stored, read from the files' headers.

    Raises:
        UserError: no safetensors file, or none with floating-point weights.
    """
    sizes: dict[torch.dtype, int] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
                part = file.get_slice(name)
                if (dtype := _DTYPES.get(part.get_dtype())) is not None:
                    size = 1
                    for length in part.get_shape():
                        size *= length
                    sizes[dtype] = sizes.get(dtype, 0) + size
    if not sizes:
        raise UserError(f"{folder}: no safetensors file with floating-point weights")
    return max(sizes, key=lambda dtype: sizes[dtype])


@torch.no_grad()
def _probe_logits(model: Any, token_ids: list[int]) -> torch.Tensor:
    model.eval()
    ids = torch.tensor([token_ids], device=next(model.parameters()).device)
    return model(input_ids=ids, use_cache=False).logits.float().cpu()


def save_model(
    model: Any, source: Path, output: Path, probe_ids: list[int], *, save_dtype: str = "auto"
) -> dict[str, float]:
    """Write a trained model whole: its weights, and tokenizer, template and generation config of `source`.

    The folder is written under a temporary name, opened again, compared with the model in memory and only then renamed; an
    older `output` is replaced. The model's weights are rounded to the saved dtype in place.

    Args:
        model: float32 weights.
        source: the folder training started from.
        output: the folder to write.
        probe_ids: token ids on which logits are compared.
        save_dtype: float32, bfloat16, or auto for the dtype of `source`.

    Returns:
        {"rounding": largest logit difference from rounding float32 to the saved dtype, "reload": the same between the
        rounded model in memory and the saved folder}.

    Raises:
        StepError: the reloaded folder gives other logits (more than RELOAD_TOLERANCE apart).
    """
    trained = _probe_logits(model, probe_ids)
    dtype = weights_dtype(source) if save_dtype == "auto" else getattr(torch, save_dtype)
    # Parameters only: rounding the model would round buffers that are not saved, such as the rotary frequencies.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    temporary = output.with_name(f".{output.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    # The trainer turned it off, and whoever generates with the folder wants it.
    model.config.use_cache = getattr(AutoConfig.from_pretrained(source, local_files_only=True), "use_cache", True)
    model.save_pretrained(temporary)
    for pattern in COMPANIONS:
        for path in source.glob(pattern):
            if path.is_dir():
                shutil.copytree(path, temporary / path.name, dirs_exist_ok=True)
            else:
                shutil.copyfile(path, temporary / path.name)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32)
    rounded = _probe_logits(model, probe_ids)
    reloaded = _probe_logits(load_model(temporary).to(next(model.parameters()).device), probe_ids)
    difference = float((reloaded - rounded).abs().max())
    if not difference <= RELOAD_TOLERANCE:
        raise StepError(f"{temporary}: reloaded logits differ by {difference:.3g} from the model in memory")
    if output.exists():
        shutil.rmtree(output)
    temporary.rename(output)
    return {"rounding": float((rounded - trained).abs().max()), "reload": difference}
