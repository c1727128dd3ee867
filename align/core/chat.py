"""The one place that turns messages into token ids.

SFT, preference training, sampling, scoring and evaluation all call it, so what is trained is what is sampled. Rules, each
checked here: the prompt's ids are an exact prefix of the whole dialogue's ids; a completion ends with exactly one stop
token; no doubled BOS; sampled completions are used as they came from the engine and never rendered again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.core.errors import UserError
from align.core.rows import Message


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder, with or without a chat template.

    Raises:
        UserError: there is none that transformers can load.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder}: no tokenizer that transformers can load ({reason})") from None


class ChatError(ValueError):
    """This dialogue cannot be tokenised by the rules; the row is rejected with this text as its reason."""


@dataclass(frozen=True)
class Chat:
    """A tokenizer with a chat template and the ids that end an assistant turn."""

    tokenizer: Any
    stop_ids: tuple[int, ...]

    @classmethod
    def load(cls, folder: Path) -> Chat:
        """Read the tokenizer of a model folder.

        Raises:
            UserError: no tokenizer, no chat template or no end-of-turn token in the folder, or a broken
                generation_config.json.
        """
        import json

        tokenizer = load_tokenizer(folder)
        if not tokenizer.chat_template:
            raise UserError(
                f"{folder}: the tokenizer has no chat template; add chat_template.jinja to the folder (docs/models.md)"
            )
        stops: list[int] = []
        generation = folder / "generation_config.json"
        if generation.is_file():
            try:
                eos = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id")
            except (ValueError, AttributeError) as error:
                raise UserError(f"{generation}: not a JSON object ({error})") from None
            stops += eos if isinstance(eos, list) else [eos] if eos is not None else []
        if tokenizer.eos_token_id is not None:
            stops.append(tokenizer.eos_token_id)
        if not stops:
            raise UserError(f"{folder}: neither tokenizer nor generation_config.json names an end-of-text token")
        return cls(tokenizer, tuple(dict.fromkeys(stops)))

    def _render(self, messages: Sequence[Message], *, generation_prompt: bool) -> list[int]:
        from jinja2 import TemplateError

        try:
            ids = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=True, add_generation_prompt=generation_prompt, return_dict=False
            )
        except TemplateError as error:  # a template may refuse a dialogue, a system turn say
            raise ChatError(f"template_refuses: {error}") from None
        return list(ids)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the dialogue so far plus the opening of the assistant's turn.

        Raises:
            ChatError: two BOS tokens in a row at the start, or the template refuses the dialogue.
        """
        ids = self._render(messages, generation_prompt=True)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise ChatError("double_bos")
        return ids

    def split(self, prompt: Sequence[Message], completion: Sequence[Message]) -> tuple[list[int], list[int]]:
        """(prompt_ids, completion_ids) of a dialogue with a written answer; completion_ids ends with the stop token.

        Raises:
            ChatError: the template renders the prompt differently once the answer follows, or closes the turn
                without exactly one stop token.
        """
        start = self.prompt_ids(prompt)
        whole = self._render([*prompt, *completion], generation_prompt=False)
        if whole[: len(start)] != start:
            raise ChatError("prompt_is_not_a_prefix")
        rest = whole[len(start) :]
        ends = [i for i, token in enumerate(rest) if token in self.stop_ids]
        if len(ends) != 1:
            raise ChatError("no_stop_token" if not ends else "more_than_one_stop_token")
        if self.tokenizer.decode(rest[ends[0] + 1 :]).strip():
            raise ChatError("text_after_the_stop_token")
        return start, rest[: ends[0] + 1]

    def text(self, completion_ids: Sequence[int]) -> str:
        """The text of a sampled completion, without its stop token and other special tokens."""
        return str(self.tokenizer.decode(list(completion_ids), skip_special_tokens=True)).strip()
