"""Ask a model many conversations: what every generating step uses.

A piece of work is a job: a Python generator that yields the conversations it wants answered and is sent their replies, as
often as it needs, and returns its result. A `Writer` has many jobs under way at once, so that the engine stays full while
each job reads as if it were alone. The queue is bounded: a job begins when another has ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from jinja2 import TemplateError

from align.core.chat import Chat, ChatError
from align.core.errors import StepError
from align.core.hashing import content_id, derive_seed
from align.core.journal import Journal
from align.core.progress import Progress
from align.core.rows import Message
from align.engines.protocol import Answered, Completion, Engine, Request, Sampling
from align.engines.replay import from_record, to_record

# The openai engine names a server's refusals http_<status>. These are the request's own fault; all others (a key, a quota, a
# model that is gone, a bad hour) another try may not meet.
OWN_FAULTS = ("http_400", "http_413", "http_422")
AFTER_FAULT = 4096  # jobs begun after a call was lost that the next run will make again; then the work ends
QUEUE = 512  # jobs under way: several times what an engine runs at once

K = TypeVar("K")
R = TypeVar("R")
V = TypeVar("V")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One conversation to be answered `n` times, in `json_schema` where given.

    Its seed is decided by the run's seed, `purpose` and `id`, whatever the order or number of asks.
    """

    id: str
    purpose: str
    messages: Sequence[Message]
    sampling: Sampling
    n: int = 1
    json_schema: str | None = None
    top_logprobs: int = 0


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The answers to one ask, in sample order, and their texts; `error` says why there are none.

    `first_logprobs` are the first answer's (`Completion.first_logprobs`), each token decoded alone.
    """

    completions: tuple[Completion, ...]
    texts: tuple[str, ...]
    error: str = ""
    first_logprobs: tuple[tuple[str, float], ...] = ()

    @property
    def fault(self) -> str:
        """Why the first answer is no whole answer, in one word (its reject's reason), or an empty text."""
        if self.error:
            return self.error.split(":")[0]
        return "" if self.completions[0].finish_reason == "stop" else "truncated"

    @property
    def raw(self) -> str:
        """What a reject keeps of it."""
        return self.error or self.texts[0]


Asking = Generator[Sequence[Ask], Sequence[Reply], R]


@dataclass(frozen=True, kw_only=True)
class Unusable:
    """An answer that could not be read in the tries that it had: the reason, and the last one's text."""

    reason: str
    raw: str


class Unfit(ValueError):
    """JSON of the agreed shape with a content that cannot be used; its text is the reject's reason."""


def ask_parsed(ask: Ask, parse: Callable[[str], V], tries: int) -> Asking[V | Unusable]:
    """The parsed answer to `ask`, asked up to `tries` times, each with its own seed.

    `parse` raises ValueError for what it cannot read, `Unfit` with a reason for what it can but must not use. Greedy
    answers are all the same, so they get one try.
    """
    found = Unusable(reason="not_asked", raw="")
    for number in range(tries if ask.sampling.temperature > 0 else 1):
        (reply,) = yield [replace(ask, id=f"{ask.id}#{number}") if number else ask]
        if reply.error:
            return Unusable(reason=reply.fault, raw=reply.raw)
        if reply.fault:
            found = Unusable(reason=reply.fault, raw=reply.raw)
            continue
        try:
            return parse(reply.texts[0])
        except ValueError as error:
            reason = str(error) if isinstance(error, Unfit) else "not_json"
            found = Unusable(reason=reason, raw=reply.raw)
    return found


@dataclass(frozen=True, kw_only=True)
class Job(Generic[K, R]):
    """A piece of work under a name of the caller's; its answers are kept in `journal`, where a rerun finds them."""

    key: K
    asking: Asking[R]
    journal: Journal | None = None


@dataclass
class _Running:
    """A job that waits for replies."""

    job: Job[Any, Any]
    replies: list[Reply | None] = field(default_factory=list)
    calls: int = 0
    failed: bool = False


class Writer:
    """A model at work for jobs. It is opened at the first question: jobs that ask nothing need none.

    Args:
        open_engine: gives the engine and its model's chat template; the caller closes the engine.
        run_seed: with an ask's purpose and id it decides the ask's seed.
        queue: jobs under way at most.
    """

    def __init__(self, open_engine: Callable[[], tuple[Engine, Chat]], *, run_seed: int, queue: int = QUEUE) -> None:
        self._open = open_engine
        self._opened: tuple[Engine, Chat] | None = None
        self._run_seed = run_seed
        self._queue = queue

    @property
    def engine(self) -> Engine | None:
        """The engine, once something was asked."""
        return self._opened[0] if self._opened else None

    def run(
        self, jobs: Iterable[Job[K, R]], *, label: str, total: int | None, unit: str, done: int = 0
    ) -> Iterator[tuple[K, R]]:
        """Yield (key, result) of each job as it ends.

        An ask that cannot be tokenised or is too long for the engine is answered with an error before anything is
        generated. Each answer is in its job's journal before the next one is waited for, so a rerun repeats no finished
        call; failed calls are not kept and are made again.

        Args:
            label, total, unit: what progress is shown under, out of how many, and what they are.
            done: how many of `total` were finished before.

        Raises:
            ValueError: two asks at work have the same purpose and id.
            StepError: every call failed, some failed for a passing reason, or the engine left asks unanswered.
        """
        work = _Work(self, iter(jobs), self._queue)
        with Progress(label, total, unit, done=done) as progress:
            for running, result in work.results(label):
                progress.advance(earlier=not running.calls)
                yield running.job.key, result

    def request(self, ask: Ask) -> Request | Reply:
        """The engine's request, or why there is none."""
        self._opened = self._opened or self._open()
        engine, chat = self._opened
        try:
            prompt_ids = chat.prompt_ids(ask.messages)
        except (ChatError, TemplateError) as error:  # a template may refuse a dialogue, two user turns in a row say
            return Reply(completions=(), texts=(), error=str(error))
        if len(prompt_ids) + ask.sampling.max_tokens > engine.info.max_model_len:
            reason = f"prompt_too_long: {len(prompt_ids)} tokens + {ask.sampling.max_tokens} > {engine.info.max_model_len}"
            return Reply(completions=(), texts=(), error=reason)
        return Request(
            id=f"{ask.purpose}/{ask.id}", prompt_ids=tuple(prompt_ids), n=ask.n,
            seed=derive_seed(self._run_seed, ask.purpose, ask.id), sampling=ask.sampling, json_schema=ask.json_schema,
            top_logprobs=ask.top_logprobs,
        )  # fmt: skip

    def reply(self, answered: Answered) -> Reply:
        """The engine's answer with its texts."""
        assert self._opened is not None
        chat = self._opened[1]
        texts = tuple(chat.text(completion.token_ids) for completion in answered.completions)
        likely = answered.completions[0].first_logprobs if answered.completions else ()
        first = tuple((str(chat.tokenizer.decode([token])), value) for token, value in likely)
        return Reply(completions=answered.completions, texts=texts, error=answered.error, first_logprobs=first)


class _Work:
    """The state of one `Writer.run`."""

    def __init__(self, writer: Writer, jobs: Iterator[Job[Any, Any]], queue: int) -> None:
        self._writer, self._jobs, self._queue = writer, jobs, queue
        self._exhausted = False
        self._running = 0
        self._waiting: deque[Request] = deque()  # the engine may take from it in a thread of its own
        self._owners: dict[str, tuple[_Running, int]] = {}
        self._requests: dict[str, Request] = {}
        self._ended: deque[tuple[_Running, Any]] = deque()
        self._num_calls = self._num_answered = 0
        self._failed: list[Answered] = []
        self._passing: list[Answered] = []
        self._begun_since_fault = 0

    def results(self, label: str) -> Iterator[tuple[_Running, Any]]:
        self._begin_jobs()
        while self._running or self._ended:
            yield from self._let_out()
            if not self._waiting:
                break
            engine = self._writer.engine
            assert engine is not None
            with closing(engine.generate(self._feed())) as answers:  # type: ignore[type-var]
                for answered in answers:
                    self._take(answered)
                    if len(self._failed) >= self._queue and not self._num_answered:
                        break
                    self._begin_jobs()
                    yield from self._let_out()
            if len(self._failed) == self._num_calls - len(self._owners) and not self._num_answered:
                break
        self._judge(label)

    def _let_out(self) -> Iterator[tuple[_Running, Any]]:
        """Results; while every call so far has failed they are held back, since then none will count."""
        while self._ended and (self._num_answered or not self._failed):
            yield self._ended.popleft()
            self._begin_jobs()

    def _begin_jobs(self) -> None:
        while not self._exhausted and self._running < self._queue and len(self._ended) < self._queue:
            # After a passing fault the run will be repeated: what is behind it may wait, and need not be kept in memory.
            job = next(self._jobs, None) if self._begun_since_fault < AFTER_FAULT else None
            if job is None:
                self._exhausted = True
                return
            self._running += 1
            self._begun_since_fault += bool(self._passing)
            self._advance(_Running(job), None)

    def _feed(self) -> Iterator[Request | None]:
        """What the engine draws from; it ends when no job is under way and none will begin."""
        while True:
            if self._waiting:
                yield self._waiting.popleft()
            elif self._exhausted and not self._running:
                return
            else:
                yield None

    def _advance(self, running: _Running, replies: Sequence[Reply] | None) -> None:
        """Send a job its replies, and queue what it asks next, until it has to wait or ends."""
        while True:
            try:
                asks = next(running.job.asking) if replies is None else running.job.asking.send(replies)
            except StopIteration as stop:
                self._ended.append((running, stop.value))
                self._running -= 1
                return
            running.replies = [None] * len(asks)
            for place, ask in enumerate(asks):
                running.replies[place] = self._at_once(running, place, ask)
            replies = [reply for reply in running.replies if reply is not None]
            if len(replies) < len(asks):
                return

    def _at_once(self, running: _Running, place: int, ask: Ask) -> Reply | None:
        """The reply to an ask that needs no call; else it is queued."""
        request = self._writer.request(ask)
        if isinstance(request, Reply):
            return request
        if request.id in self._owners:
            raise ValueError(f"ask id {request.id} occurs more than once")
        journal = running.job.journal
        if journal is not None and (key := _journal_key(request)) in journal:
            self._num_answered += 1
            return self._writer.reply(from_record(request.id, journal.get(key)))
        self._owners[request.id] = running, place
        self._requests[request.id] = request
        self._num_calls += 1
        running.calls += 1
        self._waiting.append(request)
        return None

    def _take(self, answered: Answered) -> None:
        """Bring an answer to the job that waits for it."""
        running, place = self._owners.pop(answered.request_id)
        request = self._requests.pop(answered.request_id)
        if answered.error:
            self._failed.append(answered)
            # A server's bad hour must not become rejected rows for good: this job is left without a result.
            if answered.error.startswith(("timeout", "http_")) and not answered.error.startswith(OWN_FAULTS):
                self._passing.append(answered)
                running.failed = True
        else:
            self._num_answered += 1
            if running.job.journal is not None:
                running.job.journal.put(_journal_key(request), to_record(answered))
        running.replies[place] = self._writer.reply(answered)
        if all(reply is not None for reply in running.replies):
            if running.failed:
                running.job.asking.close()
                self._running -= 1
            else:
                self._advance(running, [reply for reply in running.replies if reply is not None])

    def _judge(self, label: str) -> None:
        """Raises:
        StepError: the engine left asks unanswered, or calls failed that may not fail next time.
        """
        engine = self._writer.engine
        kind = engine.info.kind if engine else "no"
        if self._failed and not self._num_answered:
            raise StepError(f"{label}: all {len(self._failed)} calls of the {kind} engine failed: {self._failed[0].error}")
        if self._owners:
            first = next(iter(self._owners)).partition("/")[2]
            raise StepError(f"{label}: the {kind} engine left {len(self._owners)} unanswered, first {first}")
        if self._passing:
            raise StepError(
                f"{label}: {len(self._passing)} of {self._num_calls} calls of the {kind} engine failed for a passing reason "
                f"({self._passing[0].error}); run the same command again, the answered ones are kept"
            )


def _journal_key(request: Request) -> str:
    return content_id(request.id, request.key())
