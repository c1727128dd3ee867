"""Reward models that are sequence classifiers with one output."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from align.core.chat import ChatError
from align.core.errors import UserError
from align.core.journal import Journal
from align.core.progress import Progress
from align.core.rows import Message
from reward.encoder import Encoder

log = logging.getLogger(__name__)

TOKENS_PER_BATCH = 4096
PRECISIONS = ("fp32", "bf16")


def score_head(model: Any) -> Any:
    """The linear layer with one output that makes the score."""
    from torch import nn

    return [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1][-1]


def keep_head_exact(model: Any) -> None:
    """Run the score head in fp32 whatever the precision around it.

    A bf16 number near 1 has steps of 0.008: scores that differ would tie, and differences of scores lose their sign.
    """
    import torch

    head = score_head(model).float()
    exact = type(head).forward

    def forward(hidden: Any) -> Any:
        with torch.autocast(hidden.device.type, enabled=False):
            return exact(head, hidden.float())

    head.forward = forward


def batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, at most `tokens_per_batch` tokens with padding (or one row).

    Longest first: a batch that does not fit in memory fails at once rather than at the end.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class Classifier:
    """A loaded reward model. Scores are the raw logit: no sigmoid, no normalisation."""

    def __init__(self, model: Any, encoder: Encoder) -> None:
        self.model, self.encoder = model, encoder

    @classmethod
    def load(cls, folder: Path, *, precision: str, max_length: int) -> Classifier:
        """Load weights (safetensors only), tokenizer and template from a folder; nothing is fetched, no code is run.

        Args:
            folder: a transformers folder of an `AutoModelForSequenceClassification` with `num_labels` 1.
            precision: "fp32" or "bf16"; bf16 is faster and keeps the head and the scores in fp32.
            max_length: tokens of prompt and response together; see `fit`.

        Raises:
            UserError: not such a folder, weights missing (a backbone without a trained score head), more than one output,
                or what `Encoder.load` raises.
        """
        import torch
        from transformers import AutoModelForSequenceClassification

        if precision not in PRECISIONS:
            raise UserError(f"precision {precision!r}; known are {', '.join(PRECISIONS)}")
        encoder = Encoder.load(folder, max_length=max_length)
        try:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                str(folder),
                dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:
            raise UserError(f"{folder}: no reward model that transformers can load ({str(error).splitlines()[0]})") from None
        if missing := sorted(info["missing_keys"]):
            raise UserError(f"{folder}: no trained reward model, the weights lack {', '.join(missing)}")
        if model.config.num_labels != 1:
            raise UserError(f"{folder}: {model.config.num_labels} outputs; a reward model has one (num_labels 1)")
        model.config.get_text_config().pad_token_id = encoder.pad_id
        keep_head_exact(model)
        return cls(model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), encoder)

    def encode(self, prompt_messages: Sequence[Message], response_text: str) -> list[int]:
        """`Encoder.encode` without the marks."""
        return self.encoder.encode(prompt_messages, response_text).ids

    def score_batch(self, ids: Sequence[Sequence[int]]) -> list[float]:
        """Scores of encoded dialogues in one forward pass, padded on the right; neighbours do not change a score."""
        import torch

        longest = max(len(row) for row in ids)
        padded = torch.tensor([[*row, *[self.encoder.pad_id] * (longest - len(row))] for row in ids])
        # The mask comes from the lengths: the padding token may well occur inside a text.
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            logits = self.model(input_ids=padded.to(device), attention_mask=mask.to(device)).logits
        return [float(score) for score in logits[:, 0].float().cpu()]

    def score_ids(self, ids: Sequence[Sequence[int]], *, tokens_per_batch: int = TOKENS_PER_BATCH) -> list[float]:
        """Scores of any number of encoded dialogues, in their order."""
        scores = [math.nan] * len(ids)
        for batch in batches([len(row) for row in ids], tokens_per_batch):
            for index, score in zip(batch, self.score_batch([ids[i] for i in batch]), strict=True):
                scores[index] = score
        return scores

    def score_all(
        self,
        items: Sequence[tuple[str, Sequence[Message], str]],
        *,
        journal: Journal,
        label: str,
        tokens_per_batch: int = TOKENS_PER_BATCH,
    ) -> dict[str, float]:
        """Scores by response id; each is in the journal as soon as its batch is done, and none is computed twice.

        A response that cannot be encoded (`ChatError`) scores NaN, as does one the model answers with NaN; the journal
        holds null for it. Cut responses are counted in the log.

        Args:
            items: (response id, prompt messages, response text).
            journal: of this reward model alone, keyed by response id.
            label: what the progress line says.
            tokens_per_batch: tokens of a batch, padding included.
        """
        todo: list[tuple[str, list[int]]] = []
        cut = refused = 0
        for key, prompt, text in items:
            if key in journal:
                continue
            try:
                encoded = self.encoder.encode(prompt, text)
            except ChatError as error:
                log.warning("%s: response %s cannot be encoded (%s); its score is NaN", label, key, error)
                journal.put(key, None)
                refused += 1
                continue
            cut += encoded.response_cut > 0
            todo.append((key, encoded.ids))
        if cut:
            log.warning(
                "%s: %d responses are longer than %d tokens; their ends are not scored", label, cut, self.encoder.max_length
            )
        with Progress(label, len(items), "responses", done=len(items) - len(todo)) as bar:
            for batch in batches([len(ids) for _, ids in todo], tokens_per_batch):
                for index, score in zip(batch, self.score_batch([todo[i][1] for i in batch]), strict=True):
                    journal.put(todo[index][0], None if math.isnan(score) else score)
                bar.advance(len(batch))
        found = {key: journal.get(key) for key, _, _ in items}
        return {key: math.nan if score is None else float(score) for key, score in found.items()}
