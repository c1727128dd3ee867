"""What tests of data generation share: a driver for jobs, without an engine, and makers of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from align.core.chat import Chat
from align.core.journal import Journal
from align.core.rows import Document, Instruction, Knowledge, Response
from align.engines.complete import Ask, Asking, Job, Reply, Writer
from align.engines.protocol import Completion, Engine, Sampling

R = TypeVar("R")

SAMPLING = Sampling(temperature=0.7, max_tokens=64)
TEXTS = {
    "en": "Bacteria are small cells. Honey keeps for years because its low water content stops bacteria from growing. "
    "Bees make honey from the nectar of flowers. Enzymes of the bees turn sugar into acid.",
    "ko": "세균은 작은 세포이다. 꿀은 수분이 적어 세균이 자라지 못하므로 여러 해 동안 상하지 않는다. "
    "꿀벌은 꽃의 꿀을 모아 벌집에서 꿀을 만든다. 꿀벌의 효소는 당을 산으로 바꾼다.",
}
FACTS = {
    "en": "Honey keeps for years because its low water content stops bacteria from growing.",
    "ko": "꿀은 수분이 적어 세균이 자라지 못하므로 여러 해 동안 상하지 않는다.",
}


def said(*texts: str, cut: bool = False) -> Reply:
    """The reply of a model that wrote these texts, whole or cut at its token limit."""
    reason = "length" if cut else "stop"
    completions = tuple(Completion(token_ids=tuple(map(ord, text)), finish_reason=reason) for text in texts)
    return Reply(completions=completions, texts=texts)


def failed(error: str) -> Reply:
    """The reply to a call that got no answer."""
    return Reply(completions=(), texts=(), error=error)


def run_job(asking: Asking[R], answer: Callable[[Ask], str | Reply]) -> tuple[R, list[Ask]]:
    """A job's result and the asks it made, each answered by `answer`; a plain text is said `n` times."""
    asked: list[Ask] = []
    replies: list[Reply] | None = None
    while True:
        try:
            asks = next(asking) if replies is None else asking.send(replies)
        except StopIteration as stop:
            return stop.value, asked
        asked += asks
        given = [answer(ask) for ask in asks]
        replies = [said(*[g] * ask.n) if isinstance(g, str) else g for g, ask in zip(given, asks, strict=True)]


def document(lang: str = "en", **changes: Any) -> Document:
    """A document about honey."""
    made = Document(id=f"doc-{lang}", text=TEXTS[lang], lang=lang, source="test", license="CC0-1.0", pii="email")
    return replace(made, **changes)


def unit(lang: str = "en", **changes: Any) -> Knowledge:
    """A unit of `document`."""
    made = Knowledge(
        id="k1", topic_id="honey", document_id=f"doc-{lang}", statement=FACTS[lang], quote=FACTS[lang], lang=lang,
        similarity=0.5, license="CC0-1.0", pii="email",
    )  # fmt: skip
    return replace(made, **changes)


def instruction(text: str, lang: str = "en", **changes: Any) -> Instruction:
    """A request of one turn about `unit`."""
    made = Instruction(
        id="i1", parent_id="k1", topic_id="honey", knowledge_id="k1", generation=0, operator="generate", persona="",
        messages=[{"role": "user", "content": text}], task_type="question", level="", difficulty=0.3, judged_difficulty=0.0,
        judged_quality=0.0, lang=lang, answer_lang=lang, split="sft", license="CC0-1.0", pii="email",
    )  # fmt: skip
    return replace(made, **changes)


def response(prompt_id: str, text: str, **changes: Any) -> Response:
    """A whole answer to an instruction."""
    made = Response(
        id=f"{prompt_id}-0", prompt_id=prompt_id, model="base", sample_index=0, token_ids=[1], text=text,
        finish_reason="stop", num_tokens=1,
    )  # fmt: skip
    return replace(made, **changes)


def complete(
    engine: Engine, chat: Chat, asks: Sequence[Ask], *, run_seed: int, journal: Journal, label: str
) -> dict[str, Reply]:
    """The reply to each ask, in the order of `asks`.

    Raises:
        ValueError: two asks have the same id.
        StepError: as `Writer.run`.
    """
    if twice := [ask_id for ask_id, count in Counter(ask.id for ask in asks).items() if count > 1]:
        raise ValueError(f"{label}: ask id {twice[0]} occurs more than once")

    def one(ask: Ask) -> Asking[Reply]:
        (reply,) = yield [ask]
        return reply

    writer = Writer(lambda: (engine, chat), run_seed=run_seed)
    jobs = [Job(key=ask.id, asking=one(ask), journal=journal) for ask in asks]
    replies = dict(writer.run(jobs, label=label, total=len(asks), unit="prompts"))
    return {ask.id: replies[ask.id] for ask in asks}


class Answering:
    """Stands in for a `Writer`: each ask is answered by a function."""

    def __init__(self, answer: Callable[[Ask], str | Reply]) -> None:
        self._answer = answer
        self.asked: list[Ask] = []

    def run(self, jobs: Iterable[Any], **shown: Any) -> Iterator[tuple[Any, Any]]:
        for job in jobs:
            result, asked = run_job(job.asking, self._answer)
            self.asked += asked
            yield job.key, result
