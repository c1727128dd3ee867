"""How a reward model reads a dialogue: its own tokenizer and its own chat template.

Training and scoring encode a dialogue by the same `Encoder`. Two kinds of model are known by their tokenizer:

- decoders, with a chat template: `align.core.chat` renders them, and the sequence ends with the end-of-turn token, where
  transformers reads the score (the last token that is not padding; hence padding must be another token);
- encoders, with [CLS] and [SEP] and no template of their own: `role: content` lines between the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.core.chat import Chat
from align.core.errors import UserError
from align.core.rows import Message

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@dataclass(frozen=True)
class Encoded:
    """Token ids of a dialogue and how many tokens of its prompt and of its response did not fit."""

    ids: list[int]
    prompt_cut: int = 0
    response_cut: int = 0


def fit(head: list[int], prompt: list[int], response: list[int], tail: list[int], max_length: int) -> Encoded:
    """`head + prompt + response + tail` in at most `max_length` tokens.

    The prompt loses its beginning first, and nothing of the response is lost while any of the prompt is left. A response
    that does not fit even alone keeps its start, as a reader who stops early would; `response_cut` says so. `head` (BOS or
    [CLS]) and `tail` (end of turn or [SEP], where the score is read) always stay.
    """
    room = max_length - len(head) - len(tail)
    kept = response[:room]
    left = min(len(prompt), room - len(kept))
    ids = head + prompt[len(prompt) - left :] + kept + tail
    return Encoded(ids, len(prompt) - left, len(response) - len(kept))


@dataclass(frozen=True)
class Encoder:
    """Turns (prompt, response) into token ids for one reward model; `chat` is None for encoder models."""

    tokenizer: Any
    chat: Chat | None
    pad_id: int
    max_length: int

    @classmethod
    def load(cls, folder: Path, *, max_length: int) -> Encoder:
        """Read the tokenizer of a reward model or of the backbone it is made from.

        Raises:
            UserError: no usable tokenizer, a decoder without a chat template, no token that can serve as padding, or
                `max_length` beyond what the model reads.
        """
        from transformers import AutoConfig, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise UserError(f"{folder}: no model that transformers can load ({str(error).splitlines()[0]})") from None
        limit = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or math.inf)
        if not 8 <= max_length <= limit:
            raise UserError(f"{folder}: max_length {max_length} is not within 8 and the model's {limit:.0f} tokens")
        framed = tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None
        if framed and tokenizer.chat_template in (None, PLAIN_TEMPLATE):
            if tokenizer.pad_token_id is None:
                raise UserError(f"{folder}: the tokenizer has no padding token")
            tokenizer.chat_template = PLAIN_TEMPLATE
            return cls(tokenizer, None, tokenizer.pad_token_id, max_length)
        chat = Chat.load(folder)
        pad_id = _padding(chat, folder)
        chat.tokenizer.pad_token = chat.tokenizer.convert_ids_to_tokens(pad_id)
        return cls(chat.tokenizer, chat, pad_id, max_length)

    def encode(self, prompt: Sequence[Message], response: str) -> Encoded:
        """Ids of prompt and response as this model reads them, at most `max_length` (see `fit` for what is cut).

        Raises:
            ChatError: the dialogue breaks a rule of `align.core.chat` (the response holds an end-of-turn token, say).
        """
        answer = [{"role": "assistant", "content": response}]
        if self.chat is not None:
            start, completion = self.chat.split(prompt, answer)
            head = start[: int(start[:1] == [self.tokenizer.bos_token_id])]
            return fit(head, start[len(head) :], completion[:-1], completion[-1:], self.max_length)
        messages = [dict(m) for m in prompt]
        render = self.tokenizer.apply_chat_template
        opening = render(messages, tokenize=False, add_generation_prompt=True)
        whole = render(messages + answer, tokenize=False)
        parts = (opening, whole[len(opening) :])
        first, second = (self.tokenizer(t, add_special_tokens=False, verbose=False)["input_ids"] for t in parts)
        return fit([self.tokenizer.cls_token_id], first, second, [self.tokenizer.sep_token_id], self.max_length)


def _padding(chat: Chat, folder: Path) -> int:
    """A token to pad with that never ends a sequence, so that the last token which is not padding is the last token.

    Many decoders pad with their end-of-turn token; the score would then be read one token too early.
    """
    tokenizer = chat.tokenizer
    for token in (tokenizer.pad_token_id, tokenizer.unk_token_id, *tokenizer.all_special_ids):
        if token is not None and token not in chat.stop_ids and token != tokenizer.bos_token_id:
            return int(token)
    raise UserError(
        f"{folder}: no token to pad with: the padding token is the end-of-turn token and the tokenizer has no other "
        "special token; add one to the tokenizer and the model's embeddings"
    )
