"""Sentence embeddings by a small encoder, on the CPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from align.core.errors import UserError

MAX_TOKENS = 128
BATCH = 32


class Embedder:
    """The mean of an encoder's last hidden states, at length 1 (Sentence-BERT, arXiv 1908.10084).

    Args:
        folder: an encoder of transformers with its tokenizer, in safetensors.
        max_tokens: of a text; the rest is left out. all-MiniLM-L6-v2 was trained on 128.

    Raises:
        UserError: the folder holds no such model, or one that writes or is pooled in another way.
    """

    def __init__(self, folder: Path, max_tokens: int = MAX_TOKENS) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        pooling = folder / "1_Pooling" / "config.json"  # as sentence-transformers writes it
        if pooling.is_file() and not json.loads(pooling.read_text("utf-8")).get("pooling_mode_mean_tokens", True):
            raise UserError(f"{folder}: an encoder whose pooling is not the mean of its tokens; such are not supported")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            ).eval()
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: no encoder in safetensors ({' '.join(str(error).split())[:200]})") from None
        if any(name.endswith("ForCausalLM") for name in self._model.config.architectures or ()):
            raise UserError(f"{folder}: a model that writes, not a sentence encoder")
        self._max_tokens = max_tokens

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, width) float32, each of length 1; a dot product is the cosine."""
        import torch

        found = np.empty((len(texts), self._model.config.hidden_size), np.float32)
        if not texts:
            return found
        tokens = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)["input_ids"]
        order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))  # alike lengths together: little padding
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                some = order[start : start + BATCH]
                inputs = self._tokenizer.pad({"input_ids": [tokens[i] for i in some]}, return_tensors="pt")
                hidden = self._model(**inputs).last_hidden_state
                mask = inputs["attention_mask"][:, :, None]
                mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
                found[some] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return found
