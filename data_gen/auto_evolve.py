"""Auto Evol-Instruct (arXiv 2406.00770): the evolving prompt is itself improved by a model.

The method is tried on a development set; the eliminators count its failures; an optimiser model reads them and rewrites the
method; of all methods tried the one with the lowest failure rate is kept, the earlier one on a tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from align.core.formats import split_input
from align.core.hashing import content_id
from align.core.rows import Instruction
from align.engines.complete import Ask, Asking
from align.engines.protocol import Sampling
from data_gen.eliminators import elimination_reason
from data_gen.evolve import AUTO
from data_gen.instruct import difficulty, written_line
from data_gen.prompts import Prompts

SHOWN_FAILURES = 8  # what an optimiser with a short context can read
FAILURE_CHARS = 200
MAX_METHOD_CHARS = 2000


@dataclass(frozen=True, kw_only=True)
class Method:
    """An evolving method, the share of the development set that it failed on, and by what.

    One without text stands for a round in which the optimiser gave none; its reason says why.
    """

    text: str
    round: int
    failure_rate: float
    reasons: dict[str, int]


def optimised(
    dev: Sequence[tuple[Instruction, str]], prompts: Prompts, *, rounds: int, candidates: int, sampling: Sampling,
    optimiser_sampling: Sampling,
) -> Asking[list[Method]]:  # fmt: skip
    """Every method that was tried on instructions of one language, each with the statement of its unit; the best first.

    Args:
        rounds: rewritings of the best method.
        candidates: rewritings drawn in a round.
    """
    lang = dev[0][0].lang
    first = prompts.render("auto-method", lang)[-1]["content"]
    best, failures = yield from _tried(first, 0, dev, prompts, sampling)
    tried = [best]
    for number in range(1, rounds + 1):
        if not failures:
            break
        shown = "\n".join(failure[:FAILURE_CHARS] for failure in failures[:SHOWN_FAILURES])
        ask = Ask(
            id=f"{lang}/{number}",
            purpose="auto-optimize",
            messages=prompts.render("auto-optimize", lang, method=best.text, failures=shown),
            sampling=optimiser_sampling,
            n=candidates,
        )
        (reply,) = yield [ask]
        if reply.error:
            tried.append(Method(text="", round=number, failure_rate=1.0, reasons={reply.fault: len(dev)}))
        known = {method.text for method in tried}
        for text in dict.fromkeys(text.strip()[:MAX_METHOD_CHARS] for text in reply.texts):
            if text and text not in known:
                method, failed = yield from _tried(text, number, dev, prompts, sampling)
                tried.append(method)
                if method.failure_rate < best.failure_rate:
                    best, failures = method, failed
    return [best, *(method for method in tried if method is not best)]


def _tried(
    text: str, number: int, dev: Sequence[tuple[Instruction, str]], prompts: Prompts, sampling: Sampling
) -> Asking[tuple[Method, list[str]]]:
    """A method's result on the development set, and its failures as lines for the optimiser."""
    asks = [
        Ask(
            id=f"{content_id(text)}/{row.id}",
            purpose="auto-try",
            messages=prompts.render("evolve-auto", row.lang, method=text, instruction=_request(row)),
            sampling=sampling,
        )
        for row, _ in dev
    ]
    replies = yield asks
    reasons: dict[str, int] = {}
    failures = []
    for (row, fact), reply in zip(dev, replies, strict=True):
        child, fault = written_line(reply)
        fault = fault or elimination_reason(
            _request(row), child, AUTO, row.lang, fact=fact, examples=(), parent_score=row.difficulty,
            child_score=difficulty(child),
        )  # fmt: skip
        if fault:
            reasons[fault] = reasons.get(fault, 0) + 1
            failures.append(f"{_request(row)} -> {child or reply.raw} ({fault})")
    method = Method(text=text, round=number, failure_rate=len(failures) / len(dev), reasons=dict(sorted(reasons.items())))
    return method, failures


def _request(row: Instruction) -> str:
    return split_input(row.messages[-1]["content"])[0]


def report(methods: Sequence[Method]) -> dict[str, Any]:
    """The methods that were tried, the chosen one first, as JSON."""
    return {"chosen": methods[0].text, "tried": [asdict(replace(m, failure_rate=round(m.failure_rate, 4))) for m in methods]}
