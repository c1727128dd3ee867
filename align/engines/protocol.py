"""The one protocol for text generation: token ids in, token ids out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from align.core.hashing import content_id


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to draw completions. `temperature` 0 is greedy; `min_p` keeps tokens at least min_p times as likely as the best
    (it needs no sort over the vocabulary, so on CPU it costs a third less time per token than `top_p`)."""

    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 256
    repetition_penalty: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and how often to answer it.

    Attributes:
        id: names the request in results, journals and logs.
        prompt_ids: token ids, template applied.
        n: completions wanted.
        seed: of this prompt; sample i is drawn from (seed, i).
        json_schema: completions must be JSON of this schema, where given.
        top_logprobs: how many of the likeliest first tokens each completion tells of.
    """

    id: str
    prompt_ids: tuple[int, ...]
    n: int
    seed: int
    sampling: Sampling
    json_schema: str | None = None
    top_logprobs: int = 0

    def key(self) -> str:
        """Content hash of what decides the answer, given the model: prompt, count, seed, sampling, schema, logprobs."""
        s = self.sampling
        # Only where they are asked for: what was recorded without them stays valid.
        reported = [self.top_logprobs] if self.top_logprobs else []
        return content_id(
            list(self.prompt_ids),
            self.n,
            self.seed,
            [s.temperature, s.top_p, s.min_p, s.max_tokens, s.repetition_penalty],
            self.json_schema,
            *reported,
        )


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One answer.

    Attributes:
        token_ids: its ids, the stop token included when it ended by one.
        finish_reason: "stop" or "length".
        first_logprobs: (token id, natural log-probability) of the likeliest first tokens, most likely first, as many as the
            request's `top_logprobs` or fewer. They are the model's own: at temperature 1, before any penalty or filter, and
            under the grammar where there is a schema. Empty where the engine cannot tell.
    """

    token_ids: tuple[int, ...]
    finish_reason: str
    first_logprobs: tuple[tuple[int, float], ...] = ()


def most_likely(logprobs: Iterable[tuple[int, float]], count: int) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest of (token id, log-probability) as `Completion.first_logprobs` has them; none is impossible."""
    possible = [(int(token), float(value)) for token, value in logprobs if value > -math.inf]
    return tuple(sorted(possible, key=lambda pair: (-pair[1], pair[0]))[:count])


@dataclass(frozen=True, kw_only=True)
class Answered:
    """All completions of one request, in sample order; `error` says why there are none."""

    request_id: str
    completions: tuple[Completion, ...]
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What the manifest keeps of an engine. `max_model_len` is in tokens, prompt and completion together."""

    kind: str
    version: str
    max_model_len: int
    deterministic: bool
    flags: dict[str, Any]


class Engine(Protocol):
    """Anything that answers requests. Completions of a request come together, requests in any order."""

    info: EngineInfo

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answered]:
        """Yield each request's answers as soon as they are finished, so that the caller can journal them.

        `requests` is taken from as there is room, a few beyond what is computed at once. None in it means that there is no
        request now but may be one after the next answer; an engine with nothing at work never meets it.
        """
        ...

    def close(self) -> None:
        """Give back memory and processes."""
        ...


@runtime_checkable
class TakesWeights(Protocol):
    """An engine whose start costs more than the loading of weights."""

    def take_weights(self, model: Path) -> bool:
        """Serve the model in another folder from now on, where only its weights differ; whether they do."""
        ...
