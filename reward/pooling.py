"""A reward model served by vLLM, in this process, as a pooling model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from align.core.errors import StepError, UserError
from align.engines.vllm_engine import ENVIRONMENT, WHOLE_PREFILL_TOKENS, stop
from reward.classifier import PRECISIONS
from reward.encoded_groups import GroupScores, Item, encode_groups
from reward.encoder import Encoder
from reward.interface import Group

DTYPES = dict(zip(PRECISIONS, ("float32", "bfloat16"), strict=True))
# Sequences handed to vLLM in one call: enough to keep it busy, few enough that scores come back every minute or so.
WINDOW = 256


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


class PoolingClassifier:
    """The same model as `reward.classifier.Classifier` and the same ids, computed by vLLM; scores are the raw logit.

    A group's responses are asked one after another, so that vLLM's prefix cache computes their prompt once where the model
    has one (decoders).
    """

    def __init__(self, llm: Any, encoder: Encoder, folder: Path) -> None:
        self._llm, self.encoder, self._folder = llm, encoder, folder

    @classmethod
    def load(
        cls, folder: Path, *, precision: str, max_length: int, gpu_memory_utilization: float = 0.9
    ) -> PoolingClassifier:
        """Start vLLM on a folder that `Classifier.load` takes too.

        Args:
            folder: of an `AutoModelForSequenceClassification` with `num_labels` 1.
            precision: "fp32" or "bf16"; the head is fp32 in both.
            max_length: tokens of prompt and response together; see `reward.encoder.fit`.
            gpu_memory_utilization: share of a GPU's memory that vLLM takes.

        Raises:
            UserError: an unknown precision, more than one output, vLLM cannot run the model, or what `Encoder.load` raises.
        """
        if precision not in DTYPES:
            raise UserError(f"{folder}: precision {precision!r}; known are {', '.join(DTYPES)}")
        encoder = Encoder.load(folder, max_length=max_length)
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import vllm
        except ImportError:
            raise UserError("backend vllm: vLLM is not installed (docs/install.md); use backend transformers") from None
        from vllm.config import PoolerConfig
        from vllm.platforms import current_platform

        options: dict[str, Any] = {
            "runner": "pooling",
            "convert": "classify",
            "pooler_config": PoolerConfig(use_activation=False),
            "dtype": DTYPES[precision],
            "max_model_len": max_length,
            "gpu_memory_utilization": gpu_memory_utilization,
            "load_format": "safetensors",  # "auto" falls back to pickled weights
        }
        if current_platform.is_cpu():
            options |= {"enforce_eager": True, "max_num_batched_tokens": max(WHOLE_PREFILL_TOKENS, max_length)}
        try:
            llm = vllm.LLM(str(folder), trust_remote_code=False, **options)
        except Exception as error:  # vLLM raises types of its own
            raise UserError(f"{folder}: vLLM cannot serve it as a classifier ({_first_line(error)})") from None
        return cls(llm, encoder, folder)

    def score(self, groups: Sequence[Group]) -> Iterator[tuple[int, list[float]]]:
        """Yield (place in `groups`, N scores) for every group, those with the longest responses first.

        As `Classifier.score`; equal responses of a group are computed once.

        Raises:
            UserError: vLLM answers with something else than one number per sequence.
            StepError: vLLM fails.
        """
        items = encode_groups(self.encoder, groups)
        gathered = GroupScores(groups, items)
        yield from gathered.without_items()
        window: list[Item] = []
        count = 0
        for item in sorted(items, key=lambda item: -item.longest):
            window.append(item)
            count += len(item.sequences)
            if count >= WINDOW:
                yield from self._score(window, gathered)
                window, count = [], 0
        yield from self._score(window, gathered)

    def _score(self, items: Sequence[Item], gathered: GroupScores) -> Iterator[tuple[int, list[float]]]:
        if not items:
            return
        prompts = [{"prompt_token_ids": list(sequence)} for item in items for sequence in item.sequences]
        try:
            outputs = iter(self._llm.encode(prompts, pooling_task="classify", use_tqdm=False))
        except Exception as error:  # vLLM's kernels raise types of their own, and some only when they first run
            raise StepError(
                f"{self._folder}: vLLM fails to score ({_first_line(error)}); use backend transformers"
            ) from error
        for item in items:
            yield from gathered.add(item, [self._scalar(next(outputs)) for _ in item.sequences])

    def _scalar(self, output: Any) -> float:
        numbers = output.outputs.data.flatten()
        if len(numbers) != 1:
            raise UserError(
                f"{self._folder}: vLLM answers with {len(numbers)} numbers where a reward model has one score; "
                "use backend transformers for it"
            )
        return float(numbers[0])

    def close(self) -> None:
        """Stop vLLM and give back its memory. The model scores nothing afterwards."""
        if self._llm is None:
            return
        stop(self._llm)
        self._llm = None
