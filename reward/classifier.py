"""Reward models that are sequence classifiers with one output.

A group is computed in one of two layouts, which give the same scores: `shared`, the prompt once and then its distinct
responses (as in training, see `align.packing.layout`), or `separate`, a padded row per response.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from align.core.errors import UserError
from align.core.rows import Message
from align.packing.attention import FLEX_ATTENTION, FLEX_BLOCK, attention_for, block_mask, why_not_shared
from align.packing.bins import plan_bins
from align.packing.layout import shared_rows
from reward.encoded_groups import GroupScores, encode_groups
from reward.encoder import Encoder
from reward.interface import Group

log = logging.getLogger(__name__)

PRECISIONS = ("fp32", "bf16")
LAYOUTS = ("auto", "shared", "separate")
# Tokens of a batch: unique ones in the shared layout, padding included in the separate one. On a CPU 1,280 and 10,240 take
# the same time per response (135M decoder, both precisions); a GPU needs more to be busy.
TOKENS_PER_BATCH: Mapping[str, int] = {"cpu": 2048, "cuda": 16384}
# Largest difference of the layouts' scores on the probe, as a share of the largest score there (or of 1).
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}


def score_head(model: Any) -> Any:
    """The linear layer with one output that makes the score."""
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1][-1]


def keep_head_exact(model: Any) -> None:
    """Run the score head in fp32 whatever the precision around it.

    A bf16 number near 1 has steps of 0.008: scores that differ would tie, and differences of scores lose their sign.
    """
    head = score_head(model).float()
    exact = type(head).forward

    def forward(hidden: Any) -> Any:
        with torch.autocast(hidden.device.type, enabled=False):
            return exact(head, hidden.float())

    head.forward = forward


def load_classifier(folder: Path, dtype: torch.dtype, failure: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """An `AutoModelForSequenceClassification` from safetensors alone, and what transformers reports of the loading.

    Args:
        folder: the model's.
        dtype: of its weights.
        failure: what the folder then is, for the message.
        options: of `from_pretrained`.

    Raises:
        UserError: transformers cannot load it.
    """
    import transformers
    from transformers import AutoModelForSequenceClassification

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its own report is a table of what callers check or mean
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            str(folder), dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False,
            output_loading_info=True, **options,
        )  # fmt: skip
    except Exception as error:
        raise UserError(f"{folder}: {failure} that transformers can load ({str(error).splitlines()[0]})") from None
    finally:
        transformers.logging.set_verbosity(verbosity)
    return model, info


def _load_weights(folder: Path, precision: str) -> Any:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model, info = load_classifier(folder, dtype, "no reward model")
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{folder}: no trained reward model, the weights lack {', '.join(missing)}")
    if model.config.num_labels != 1:
        raise UserError(f"{folder}: {model.config.num_labels} outputs; a reward model has one (num_labels 1)")
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")  # SDPA leaves the cap out
    return model


class Classifier:
    """A loaded reward model. Scores are the raw logit: no sigmoid, no normalisation.

    Attributes:
        model: the `AutoModelForSequenceClassification`, in eval mode and with plain attention.
        encoder: what turns prompt and response into its ids.
        layout: "shared" or "separate", how `score` computes a group.
    """

    def __init__(self, model: Any, encoder: Encoder, layout: str = "auto") -> None:
        """Wrap a model that is in eval mode and whose head is exact; `layout` as in `load`."""
        self.model, self.encoder = model, encoder
        self.layout = self._choose_layout(layout)

    @classmethod
    def load(cls, folder: Path, *, precision: str, max_length: int, layout: str = "auto") -> Classifier:
        """Load weights (safetensors only), tokenizer and template from a folder; nothing is fetched, no code is run.

        Args:
            folder: a transformers folder of an `AutoModelForSequenceClassification` with `num_labels` 1.
            precision: "fp32" or "bf16"; bf16 is faster and keeps the head and the scores in fp32.
            max_length: tokens of prompt and response together; see `reward.encoder.fit`.
            layout: "shared", "separate", or "auto" for shared where the model can; what it cannot is logged.

        Raises:
            UserError: not such a folder, weights missing (a backbone without a trained score head), more than one output,
                a layout that was asked for by name and the model cannot have, or what `Encoder.load` raises.
        """
        if precision not in PRECISIONS:
            raise UserError(f"{folder}: precision {precision!r}; known are {', '.join(PRECISIONS)}")
        if layout not in LAYOUTS:
            raise UserError(f"{folder}: layout {layout!r}; known are {', '.join(LAYOUTS)}")
        encoder = Encoder.load(folder, max_length=max_length)
        model = _load_weights(folder, precision)
        model.config.get_text_config().pad_token_id = encoder.pad_id
        keep_head_exact(model)
        return cls(model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), encoder, layout)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode(self, prompt_messages: Sequence[Message], response_text: str) -> list[int]:
        """`Encoder.encode` without the marks."""
        return self.encoder.encode(prompt_messages, response_text).ids

    def score(self, groups: Sequence[Group]) -> Iterator[tuple[int, list[float]]]:
        """Yield (place in `groups`, N scores) for every group, large batches first.

        A response that cannot be encoded (`ChatError`) scores NaN and is counted in a warning, as are responses that lose
        their end to `max_length`. Equal responses of a group are computed once.
        """
        items = encode_groups(self.encoder, groups)
        gathered = GroupScores(groups, items)
        yield from gathered.without_items()
        budget = TOKENS_PER_BATCH[self.device.type]
        shared = self.layout == "shared"
        items = [part for item in items for part in (item.split(budget) if shared else item.single())]
        sizes = [item.shared_length if shared else item.longest for item in items]
        for planned in plan_bins(sizes, budget, padded=not shared)[0] if items else []:
            batch = [items[i] for i in planned.members]
            if shared:
                scores = self._score_shared([item.sequences for item in batch])
            else:
                scores = [[score] for score in self.score_batch([item.sequences[0] for item in batch])]
            for item, found in zip(batch, scores, strict=True):
                yield from gathered.add(item, found)

    def score_ids(self, ids: Sequence[Sequence[int]], *, tokens_per_batch: int | None = None) -> list[float]:
        """Scores of any number of encoded dialogues, in their order, each by itself (the separate layout)."""
        budget = tokens_per_batch or TOKENS_PER_BATCH[self.device.type]
        scores: dict[int, float] = {}
        for planned in plan_bins([len(row) for row in ids], budget, padded=True)[0] if ids else []:
            found = self.score_batch([ids[i] for i in planned.members])
            scores |= zip(planned.members, found, strict=True)
        return [scores[i] for i in range(len(ids))]

    def score_batch(self, ids: Sequence[Sequence[int]]) -> list[float]:
        """Scores of encoded dialogues in one forward pass, padded on the right; neighbours do not change a score."""
        longest = max(map(len, ids))
        padded = torch.tensor([[*row, *[self.encoder.pad_id] * (longest - len(row))] for row in ids])
        # The mask comes from the lengths: the padding token may well occur inside a text.
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        with torch.no_grad():
            logits = self.model(input_ids=padded.to(self.device), attention_mask=mask.to(self.device)).logits
        return [float(score) for score in logits[:, 0].float().cpu()]

    def _score_shared(self, groups: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
        """Scores of every group's sequences, all in one row."""
        attention = attention_for(self.device)
        row = shared_rows(groups, multiple=FLEX_BLOCK if attention == FLEX_ATTENTION else 1, pad_id=self.encoder.pad_id).to(
            self.device
        )
        sight: dict[str, Any] = {"trees": row.trees}
        if attention == FLEX_ATTENTION:
            sight = {"attention_mask": block_mask(row)}
        with self._attending(attention), torch.no_grad():
            hidden = self.model.base_model(
                input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False, **sight
            ).last_hidden_state
            scores = iter(score_head(self.model)(hidden[0, row.last_S])[:, 0].float().tolist())
        return [[next(scores) for _ in group] for group in groups]

    @contextmanager
    def _attending(self, attention: str) -> Iterator[None]:
        plain = self.model.config._attn_implementation
        self.model.set_attn_implementation(attention)
        try:
            yield
        finally:
            self.model.set_attn_implementation(plain)

    def _choose_layout(self, layout: str) -> str:
        if layout == "separate":
            return layout
        name = type(self.model).__name__
        if self.encoder.chat is None:
            reason: str | None = "it is an encoder, whose tokens see those that follow"
        else:
            reason = why_not_shared(self.model, self.encoder.max_length, attention_for(self.device)) or self._differs()
        if reason is None:
            return "shared"
        if layout == "shared":
            raise UserError(f"layout: shared is not possible with {name}: {reason}")
        log.info("%s: each response is computed with its own prompt, because %s", name, reason)
        return "separate"

    def _differs(self) -> str | None:
        """Whether shared rows give other scores than plain ones on two small groups; None where they do not."""
        vocabulary, pad_id = int(self.model.config.get_text_config().vocab_size), self.encoder.pad_id
        draws = torch.randint(vocabulary, (40,), generator=torch.Generator().manual_seed(0)).tolist()
        ids = [(token + (token == pad_id)) % vocabulary for token in draws]  # a plain row's end is where padding starts
        groups = [[ids[:11], [*ids[:7], *ids[11:17]], [*ids[:8], *ids[17:20]]], [ids[20:33]], [ids[33:36], ids[36:40]]]
        expected = torch.tensor(self.score_batch([sequence for group in groups for sequence in group]))
        try:
            found = torch.tensor([score for scores in self._score_shared(groups) for score in scores])
        except Exception as error:  # compilers and models raise types of their own; the reason is logged or raised
            return f"it fails there ({' '.join(str(error).split())[:200]})"
        worst = float((found - expected).abs().max())
        tolerance = PROBE_TOLERANCE[next(self.model.base_model.parameters()).dtype]
        if worst <= tolerance * max(1.0, float(expected.abs().max())):
            return None
        return f"its scores there differ by {worst:.3g} from the plain ones"
