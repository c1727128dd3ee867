"""Sentence embeddings of a small encoder, for comparing texts by meaning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from align.core.errors import UserError

BATCH = 32


class Embedder:
    """The mean of an encoder's last hidden states, at length 1, as the sentence-transformers models are trained to be used.

    Args:
        folder: an encoder of transformers with its tokenizer, in safetensors.
        max_tokens: of a text; the rest is left out.

    Raises:
        UserError: no such model there.
    """

    def __init__(self, folder: Path, max_tokens: int = 256) -> None:
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self._model = AutoModel.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            ).eval()
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: no encoder there ({' '.join(str(error).split())[:200]})") from None
        self._max_tokens = max_tokens

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, width) float32, each of length 1; a dot product is the cosine."""
        import torch

        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # alike lengths together: little padding
        found = np.empty((len(texts), self._model.config.hidden_size), np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                some = order[start : start + BATCH]
                inputs = self._tokenizer(
                    [texts[i] for i in some], padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
                )
                hidden = self._model(**inputs).last_hidden_state
                mask = inputs["attention_mask"][:, :, None]
                mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
                found[some] = torch.nn.functional.normalize(mean, dim=1).float().numpy()
        return found
