"""Ask an engine many conversations, once each: what every generating step uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError

from align.core.chat import Chat, ChatError
from align.core.errors import StepError
from align.core.hashing import content_id, derive_seed
from align.core.journal import Journal
from align.core.progress import Progress
from align.core.rows import Message
from align.engines.protocol import Answered, Engine, Request, Sampling
from align.engines.replay import from_record, to_record

# Faults of a server that another try may not meet; the openai engine names them so.
PASSING_FAULTS = ("timeout", "http_408", "http_409", "http_429", "http_5")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One conversation to be answered `n` times, in `json_schema` where given."""

    id: str
    messages: Sequence[Message]
    n: int = 1
    json_schema: str | None = None


def complete(
    engine: Engine,
    chat: Chat,
    asks: Sequence[Ask],
    sampling: Sampling,
    *,
    run_seed: int,
    purpose: str,
    journal: Journal,
    label: str,
) -> dict[str, Answered]:
    """Answer every ask, in the order of `asks`; the completions' ids are the engine's own.

    An ask that cannot be tokenised or is too long for the engine is rejected before anything is generated; it and calls
    that failed come back with `error`. Each answer is in `journal` before the next one is waited for, so a rerun
    repeats no finished call; failed calls are not kept and are made again.

    Args:
        run_seed, purpose: with the ask's id they decide its seed, whatever the order or number of asks.
        label: the name that progress is shown under.

    Raises:
        ValueError: two asks have the same id.
        StepError: every call failed, or the engine left asks unanswered.
    """
    if twice := [ask_id for ask_id, count in Counter(ask.id for ask in asks).items() if count > 1]:
        raise ValueError(f"{label}: ask id {twice[0]} occurs more than once")
    results: dict[str, Answered] = {}
    calls: dict[str, Request] = {}
    for ask in asks:
        made = _request(ask, chat, sampling, derive_seed(run_seed, purpose, ask.id), engine.info.max_model_len)
        if isinstance(made, Answered):
            results[ask.id] = made
        elif (key := _journal_key(made)) in journal:
            results[ask.id] = from_record(ask.id, journal.get(key))
        else:
            calls[ask.id] = made
    num_answered = sum(not answered.error for answered in results.values())
    with Progress(label, len(asks), "prompts", done=len(results)) as progress:
        if calls:
            for answered in engine.generate(list(calls.values())):
                if not answered.error:
                    journal.put(_journal_key(calls[answered.request_id]), to_record(answered))
                    num_answered += 1
                results[answered.request_id] = answered
                progress.advance()
    if unanswered := [ask_id for ask_id in calls if ask_id not in results]:
        raise StepError(f"{label}: the {engine.info.kind} engine left {len(unanswered)} unanswered, first {unanswered[0]}")
    failed = [results[ask_id] for ask_id in calls if results[ask_id].error]
    if calls and not num_answered:
        raise StepError(f"{label}: all {len(calls)} calls of the {engine.info.kind} engine failed: {failed[0].error}")
    # A server's bad hour must not become rejected rows for good; what it did answer is in the journal.
    if passing := [a for a in failed if a.error.startswith(PASSING_FAULTS)]:
        raise StepError(
            f"{label}: {len(passing)} of {len(calls)} calls of the {engine.info.kind} engine failed for a passing reason "
            f"({passing[0].error}); run the same command again, the answered ones are kept"
        )
    return {ask.id: results[ask.id] for ask in asks}


def _journal_key(request: Request) -> str:
    return content_id(request.id, request.key())


def _request(ask: Ask, chat: Chat, sampling: Sampling, seed: int, max_model_len: int) -> Request | Answered:
    """The engine's request, or why there is none."""
    try:
        prompt_ids = chat.prompt_ids(ask.messages)
    except (ChatError, TemplateError) as error:  # a template may refuse a dialogue, two user turns in a row say
        return Answered(request_id=ask.id, completions=(), error=str(error))
    if len(prompt_ids) + sampling.max_tokens > max_model_len:
        reason = f"prompt_too_long: {len(prompt_ids)} tokens + {sampling.max_tokens} > {max_model_len}"
        return Answered(request_id=ask.id, completions=(), error=reason)
    return Request(
        id=ask.id, prompt_ids=tuple(prompt_ids), n=ask.n, seed=seed, sampling=sampling, json_schema=ask.json_schema
    )
