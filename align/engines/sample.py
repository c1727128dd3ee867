"""N responses per prompt from one model, as rows."""

from __future__ import annotations

from align.core.hashing import content_id
from align.core.rows import Instruction, Made, Reject, Response
from align.engines.complete import Ask, Asking, Reply
from align.engines.protocol import Sampling


def response_rows(prompt_id: str, model: str, reply: Reply, n: int) -> Made:
    """The `n` rows asked of one prompt, or `n` rejects where the engine gave none."""
    if reply.error:
        rejects = [
            Reject(id=content_id("sample-reject", prompt_id, model, i), reason=reply.fault, raw=reply.raw) for i in range(n)
        ]
        return Made(rejects=rejects, asked=n)
    rows = [
        Response(
            id=content_id("response", prompt_id, model, i, list(completion.token_ids)),
            prompt_id=prompt_id,
            model=model,
            sample_index=i,
            token_ids=list(completion.token_ids),
            text=text,
            finish_reason=completion.finish_reason,
            num_tokens=len(completion.token_ids),
        )
        for i, (completion, text) in enumerate(zip(reply.completions, reply.texts, strict=True))
    ]
    return Made(rows=rows, asked=n)


def sample_responses(prompt: Instruction, *, model: str, n: int, sampling: Sampling, purpose: str) -> Asking[Made]:
    """Sample `n` responses to a prompt: n rows or n rejects."""
    (reply,) = yield [Ask(id=prompt.id, purpose=purpose, messages=prompt.messages, sampling=sampling, n=n)]
    return response_rows(prompt.id, model, reply, n)
