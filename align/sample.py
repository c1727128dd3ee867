"""N responses per prompt from one model, as rows."""

from __future__ import annotations

from collections.abc import Sequence

from align.core.chat import Chat
from align.core.hashing import content_id
from align.core.journal import Journal
from align.core.rows import Instruction, Reject, Response
from align.engines.complete import Ask, complete
from align.engines.protocol import Answered, Engine, Sampling


def response_rows(prompt_id: str, model: str, answered: Answered, chat: Chat, n: int) -> tuple[list[Response], list[Reject]]:
    """The `n` rows asked of one prompt, or `n` rejects where the engine gave none."""
    if answered.error:
        reason = answered.error.split(":")[0]
        return [], [
            Reject(id=content_id("sample-reject", prompt_id, model, i), reason=reason, raw=answered.error) for i in range(n)
        ]
    rows = [
        Response(
            id=content_id("response", prompt_id, model, i, list(completion.token_ids)),
            prompt_id=prompt_id,
            model=model,
            sample_index=i,
            token_ids=list(completion.token_ids),
            text=chat.text(completion.token_ids),
            finish_reason=completion.finish_reason,
            num_tokens=len(completion.token_ids),
        )
        for i, completion in enumerate(answered.completions)
    ]
    return rows, []


def sample_responses(
    engine: Engine,
    chat: Chat,
    prompts: Sequence[Instruction],
    *,
    model: str,
    n: int,
    sampling: Sampling,
    run_seed: int,
    purpose: str,
    journal: Journal,
) -> tuple[list[Response], list[Reject]]:
    """Sample `n` responses to each prompt; every prompt gives n rows or n rejects."""
    asks = [Ask(id=p.id, messages=p.messages, n=n) for p in prompts]
    answers = complete(
        engine, chat, asks, sampling, run_seed=run_seed, purpose=purpose, journal=journal, label=f"{purpose} {model}"
    )
    rows: list[Response] = []
    rejects: list[Reject] = []
    for prompt in prompts:
        kept, dropped = response_rows(prompt.id, model, answers[prompt.id], chat, n)
        rows += kept
        rejects += dropped
    return rows, rejects
