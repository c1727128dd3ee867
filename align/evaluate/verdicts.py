"""Questions to a judging model: their wording, how its verdict is read, and what happens where it gives none.

The wording lies in `judge_prompts/<language>/<name>.md`, sections `## system` and `## user` with variables in braces. Texts
of users and models come in as values, which are never read as a template, so braces in them are safe.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Generic, TypeVar

from align.core.hashing import content_id, fingerprint
from align.core.journal import Journal
from align.core.rows import Message
from align.engines.complete import Ask, Asking, Job, Writer
from align.engines.protocol import Sampling

V = TypeVar("V")

GREEDY = Sampling(temperature=0.0, max_tokens=2048)  # FastChat's and LogicKor's judge
RETRIES = 3
# A greedy judge repeats itself whatever the seed, so another try needs some heat; little, so that it stays the same judge.
RETRY_TEMPERATURE = 0.3


class Unreadable(ValueError):
    """A judge's text without a verdict that can be used; its text is the reason in a word or two."""


@dataclass(frozen=True, kw_only=True)
class Verdict(Generic[V]):
    """What a judge said to one question.

    Attributes:
        value: the verdict; None where there is none, and then `failure` says why.
        failure: reason, such as no_score; empty if there is a value.
        text: the judge's words, of the last try.
        attempts: how often it was asked.
    """

    value: V | None
    failure: str = ""
    text: str = ""
    attempts: int


# Wording.
@cache
def _templates() -> Mapping[str, str]:
    root = resources.files("align.evaluate").joinpath("judge_prompts")
    return {
        f"{lang}/{file.name}": file.read_text(encoding="utf-8")
        for lang in ("en", "ko")
        for file in root.joinpath(lang).iterdir()
    }


def templates_fingerprint() -> str:
    """Changes when any wording changes, so that what was judged with another one is judged again."""
    return fingerprint(dict(_templates()))


def render(name: str, lang: str, **values: str) -> list[Message]:
    """A question as messages, with its variables filled in."""
    parts = re.split(r"^## (system|user)\n", _templates()[f"{lang}/{name}.md"], flags=re.MULTILINE)[1:]
    return [
        {"role": role, "content": text.strip().format(**values)} for role, text in zip(parts[::2], parts[1::2], strict=True)
    ]


# Asking.
def question_id(question: Sequence[Message]) -> str:
    """The same for questions of the same content, whoever asks."""
    return content_id("verdict", [dict(message) for message in question])


def ask_verdict(
    question: Sequence[Message], read: Callable[[str], V], *, purpose: str, sampling: Sampling = GREEDY
) -> Asking[Verdict[V]]:
    """A job: the verdict that `read` finds in the judge's answer, which is asked for again up to `RETRIES` times.

    Each try has its own seed, so that no cache answers it with the text before. An answer that was cut is a try without a
    verdict, never read: what stands in it may be something that the judge weighs. A call that gets no answer (a conversation
    too long for the judge, say) is not made again: it would meet the same fault.
    """
    key = question_id(question)
    warmer = replace(sampling, temperature=max(sampling.temperature, RETRY_TEMPERATURE))
    failure, text = "", ""
    for attempt in range(1 + RETRIES):
        ask = Ask(
            id=f"{key}#{attempt}" if attempt else key, purpose=purpose, messages=question,
            sampling=warmer if attempt else sampling,
        )  # fmt: skip
        (reply,) = yield [ask]
        if reply.error:
            return Verdict(value=None, failure=reply.fault, text=reply.raw, attempts=attempt + 1)
        failure, text = reply.fault, reply.texts[0]
        if failure:
            continue
        try:
            return Verdict(value=read(text), text=text, attempts=attempt + 1)
        except Unreadable as error:
            failure = str(error)
    return Verdict(value=None, failure=failure, text=text, attempts=1 + RETRIES)


def collect_verdicts(
    writer: Writer,
    questions: Iterable[Sequence[Message]],
    read: Callable[[str], V],
    *,
    purpose: str,
    sampling: Sampling,
    journal: Journal | None,
) -> dict[str, Verdict[V]]:
    """The verdict on each question, by `question_id`; one that occurs several times is asked once.

    With a `journal` of this judge a question that it answered before, for another model or in another run, costs no call.

    Raises:
        StepError: as `align.engines.complete.Writer.run`.
    """
    unique = {question_id(question): question for question in questions}
    jobs = (
        Job(key=key, asking=ask_verdict(question, read, purpose=purpose, sampling=sampling), journal=journal)
        for key, question in unique.items()
    )
    return dict(writer.run(jobs, label="judge", total=len(unique), unit="questions"))


# Reading.
_NUMBER = r"\s*(-?\d+(?:\.\d*)?)\s*(?:/\s*10\s*)?"
_DOUBLE = re.compile(rf"(=[ \t]*+)?(?<![A-Za-z0-9_)\]\[])\[\[{_NUMBER}\]\]")  # df[[3]] is code, no rating
_SINGLE = re.compile(rf"(?<![A-Za-z0-9_)\]\[])\[{_NUMBER}\]")
_NAMED = re.compile(r"(?<![a-z])(?:rate|rating|score)(?![a-z])|점수|평점", re.I)
# 감점수 and 최고 점수 name another number.
_SCORE_LINE = re.compile(
    r"(?<![가-힣])(?:최종|총|종합|평가)?(?<!(?:감점|가점|가산|최고|최저|최대|최소|만점|기준) )점수"
    r"\s*+[:：]\s*+\[{0,2}+\s*+(?P<score>-?\d+(?:\.\d+)?)(?P<rest>[^\n]*)"
)
_SCALE = re.compile(
    r"/\s*+10(?!\d|[.,]\d)(?:\s*+점)?+(?:\s*+만점)?+|\(\s*+(?:10\s*+점?\s*+(?:만점|기준)|만점\s*+10\s*+점?)[^)\d]*+\)"
)
_NO_SCORE = re.compile(r"\s*+점?\s*+(?:만점|에서|부터|까지|기준|감점|이상|이하|미만|초과)(?!적)")


def read_rating(text: str) -> float:
    """The score in a judge's `[[rating]]`, else in `[rating]`, 1 to 10 (FastChat's single-v1, arXiv 2306.05685).

    Unlike FastChat, which takes the first that it finds, `[rating]` counts only on a line that says rating, rate, score,
    점수 or 평점, or alone on the last line: elsewhere [2] is a citation. `df[[3]]` and `x = [[3]]` are code, and ratings
    that differ are unclear.

    Raises:
        Unreadable: no_score, several_scores (that differ) or score_out_of_range.
    """
    lines = text.strip().splitlines() or [""]
    named = [bool(_NAMED.search(line)) for line in lines]
    double = [
        float(number)
        for line, says in zip(lines, named, strict=True)
        for assigned, number in _DOUBLE.findall(line)
        if says or not assigned
    ]
    if double:
        return _one_score(set(double), 1, 10)
    alone = not _SINGLE.sub("", lines[-1]).strip(" *_`.")
    single = [
        float(number)
        for place, (line, says) in enumerate(zip(lines, named, strict=True), 1)
        if says or (alone and place == len(lines))
        for number in _SINGLE.findall(line)
    ]
    if not single:
        raise Unreadable("no_score")
    return _one_score(set(single), 1, 10)


def read_korean_score(text: str) -> float:
    """The score in LogicKor's last line `점수: 8`, 0 to 10: its rules give an answer in the wrong language 0.

    Unlike LogicKor's, a line with other numbers than the scale (`점수: 5 → 6`, `점수: 10점 만점에 8점`) is unclear.

    Raises:
        Unreadable: as `read_rating`.
    """
    found = list(_SCORE_LINE.finditer(text.replace("*", "")))
    if not found or any(_NO_SCORE.match(m["rest"]) or re.search(r"\d", _SCALE.sub("", m["rest"])) for m in found):
        raise Unreadable("no_score")
    return _one_score({float(match["score"]) for match in found}, 0, 10)


def _one_score(scores: set[float], lowest: float, highest: float) -> float:
    if len(scores) > 1:
        raise Unreadable("several_scores")
    (score,) = scores
    if not lowest <= score <= highest:
        raise Unreadable("score_out_of_range")
    return score
