"""Conversations that a model holds about a suite's items, turn by turn, with its own answers in the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from align.core.hashing import content_id
from align.core.rows import Message
from align.engines.complete import Ask, Asking
from align.engines.protocol import Completion, Sampling
from align.evaluate.suite import Item


@dataclass(frozen=True, kw_only=True)
class Held:
    """What became of one item's conversation.

    Attributes:
        item_id: of the item.
        messages: user and assistant by turns, up to the last answer; none where the first call failed.
        completions: the answers as the engine gave them, one for each assistant message.
        failure: why the next turn has no answer, in a word, such as prompt_too_long; empty where every turn has one.
    """

    item_id: str
    messages: Sequence[Message]
    completions: Sequence[Completion] = ()
    failure: str = ""

    @property
    def answers(self) -> tuple[str, ...]:
        """The model's answers, in the order of the turns."""
        return tuple(message["content"] for message in self.messages if message["role"] == "assistant")


def hold_conversation(item: Item, sampling: Sampling) -> Asking[Held]:
    """A job for `align.engines.complete.Writer`: each turn of the item is asked after the answers before it.

    The item's temperature goes before the sampling's. A call that fails ends the conversation: later turns build on what is
    not there. An answer that is cut at its token limit stays, as the published protocols have it; its completion tells.
    """
    messages: list[Message] = []
    completions: list[Completion] = []
    temperature = sampling.temperature if item.temperature is None else item.temperature
    # Ids are unique in their suite only, and suites may be asked side by side.
    name = f"{item.id}-{content_id(*item.turns)[:8]}"
    for number, turn in enumerate(item.turns, 1):
        asked = [*messages, {"role": "user", "content": turn}]
        ask = Ask(
            id=f"{name}/{number}", purpose="hold-conversation", messages=asked,
            sampling=replace(sampling, temperature=temperature),
        )  # fmt: skip
        (reply,) = yield [ask]
        if reply.error:
            return Held(item_id=item.id, messages=messages, completions=completions, failure=reply.fault)
        messages = [*asked, {"role": "assistant", "content": reply.texts[0]}]
        completions.append(reply.completions[0])
    return Held(item_id=item.id, messages=messages, completions=completions)
