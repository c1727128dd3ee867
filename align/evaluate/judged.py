"""Judged suites: MT-Bench, KoMT-Bench and LogicKor, where a model grades each turn of a conversation.

Single-answer grading (arXiv 2306.05685): the judge sees the conversation up to the turn and gives a score from 1 to 10. A
turn without an answer or without a readable score is a failure with its reason, never a 0 that nobody asked for.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from align.core.format_wording import FENCE
from align.core.journal import Journal
from align.core.language import detect, script_shares
from align.core.rows import Message
from align.engines.complete import Writer
from align.engines.protocol import Sampling
from align.evaluate.conversations import Held
from align.evaluate.judged_files import REFERENCE_CATEGORIES
from align.evaluate.metrics import mean_with_interval
from align.evaluate.suite import Grade, Item
from align.evaluate.verdicts import GREEDY, collect_verdicts, question_id, read_korean_score, read_rating, render
from reward.judge import marked

NO_REFERENCE = {"en": "(none)", "ko": "(없음)"}


@dataclass(frozen=True, kw_only=True)
class Judgment:
    """One turn of one conversation, judged.

    Attributes:
        item_id: of the item, whose `category` it carries.
        turn: 1 for the first.
        raw: the judge's score; NaN where there is none, and then `failure` says why.
        score: `raw` after the penalty, if one was given.
        failure: reason, such as no_score or prompt_too_long; empty if there is a score.
        attempts: how often the judge was asked; 0 where there was no answer to judge.
        template: the wording that was used; empty where the judge was not asked.
        without_reference: its category is judged with a reference answer, but there is none for this turn.
        answer: the model's answer.
        text: the judge's words.
        language: of the answer, as the penalty saw it; empty where it was not looked at or has no letters.
        penalised: whether `score` is the square root of `raw`.
    """

    item_id: str
    category: str
    turn: int
    raw: float
    score: float
    failure: str = ""
    attempts: int = 0
    template: str = ""
    without_reference: bool = False
    answer: str = ""
    text: str = ""
    language: str = ""
    penalised: bool = False

    @property
    def grade(self) -> Grade:
        """The score as metric turn_1, turn_2."""
        return Grade(metric=f"turn_{self.turn}", value=self.score, failure=self.failure)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the judge is asked about one turn."""

    template: str
    messages: list[Message]
    without_reference: bool = False


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a suite is judged: the question about turn `turn` of an item with these answers, and how its answer is read."""

    question: Callable[[Item, Sequence[str], int], Question]
    read: Callable[[str], float]


def _mt_bench_question(item: Item, answers: Sequence[str], turn: int) -> Question:
    """FastChat's single-v1, its -math form with references and its -multi-turn form for the second turn.

    FastChat's own file has questions with a reference for the first turn only; they keep the -math form in the second turn.
    """
    wanted = item.category in REFERENCE_CATEGORIES
    known = [*item.data.get("references", ()), *[""] * turn][:turn] if wanted else []
    compared = any(known)
    name = f"single{'-math' if compared else ''}-v1{'-multi-turn' if turn > 1 else ''}"
    texts = _numbered("question", item.turns[:turn]) | _numbered("answer", answers[:turn])
    references = _numbered("reference", (text or NO_REFERENCE[item.lang] for text in known))
    shown = marked(**texts, **(references if compared else {}))
    return Question(
        template=name, messages=render(name, item.lang, **shown),
        without_reference=wanted and not known[-1],
    )  # fmt: skip


def _logickor_question(item: Item, answers: Sequence[str], turn: int) -> Question:
    """LogicKor's question, with a reference after each turn that has one."""
    known = [*item.data.get("references", ()), *[""] * turn][:turn]
    name = f"logickor{'-multi-turn' if turn > 1 else ''}"
    texts = _numbered("question", item.turns[:turn]) | _numbered("answer", answers[:turn]) | _numbered("reference", known)
    shown = marked(**{key: text for key, text in texts.items() if text or not key.startswith("reference")})
    noted = {key: f"\n\n[참고 답안]\n{shown[key]}" if key in shown else "" for key in texts if key.startswith("reference")}
    return Question(template=name, messages=render(name, "ko", **(shown | noted)))


def _numbered(name: str, texts: Iterable[str]) -> dict[str, str]:
    return {f"{name}_{number}": text for number, text in enumerate(texts, 1)}


MT_BENCH = Protocol(question=_mt_bench_question, read=read_rating)
LOGICKOR = Protocol(question=_logickor_question, read=read_korean_score)


def judge_conversations(
    writer: Writer,
    protocol: Protocol,
    conversations: Sequence[tuple[Item, Held]],
    *,
    sampling: Sampling = GREEDY,
    journal: Journal | None = None,
) -> list[Judgment]:
    """A judgment of every turn of every item, in their order; a turn without an answer is one with the reason.

    Args:
        writer: the judging model at work.
        protocol: `MT_BENCH` (KoMT-Bench too: the item's language decides the wording) or `LOGICKOR`.
        conversations: items with what became of them.
        sampling: of the judge.
        journal: of this judge; the same conversation is never judged twice.

    Raises:
        StepError: as `align.engines.complete.Writer.run`.
    """
    pending = [
        _unjudged(protocol, item, held, turn) for item, held in conversations for turn in range(1, len(item.turns) + 1)
    ]
    verdicts = collect_verdicts(
        writer,
        [question.messages for _, question in pending if question is not None],
        protocol.read,
        purpose="judge-turn",
        sampling=sampling,
        journal=journal,
    )
    judgments = []
    for judgment, question in pending:
        if question is not None:
            verdict = verdicts[question_id(question.messages)]
            score = math.nan if verdict.value is None else verdict.value
            judgment = replace(
                judgment, raw=score, score=score, failure=verdict.failure, attempts=verdict.attempts, text=verdict.text
            )
        judgments.append(judgment)
    return judgments


def _unjudged(protocol: Protocol, item: Item, held: Held, turn: int) -> tuple[Judgment, Question | None]:
    """A turn before it is judged, and what the judge is to be asked about it, if there is an answer."""
    judgment = Judgment(item_id=item.id, category=item.category, turn=turn, raw=math.nan, score=math.nan)
    if turn > len(held.answers):
        reason = held.failure if turn == len(held.answers) + 1 else ""
        return replace(judgment, failure=reason or "not_asked"), None
    question = protocol.question(item, held.answers, turn)
    judgment = replace(
        judgment,
        template=question.template,
        without_reference=question.without_reference,
        answer=held.answers[turn - 1],
    )
    return judgment, question


# The penalty of KoMT-Bench.
NO_PENALTY_IDS = ("138", "140")  # they ask for JSON and CSV, which may hold no Korean
# A loan word or a formula is no second language: the published scores of Korean answers with some English are whole numbers.
MIN_SHARE = 0.1
_CODE = re.compile(r"`[^`\n]+`")


def languages(text: str) -> list[tuple[str, float]]:
    """The one or two languages of a text (ko, en, other) with their shares of its letters, the main one first.

    The main one is what `align.core.language.detect` names, since a Hangul syllable writes what takes two or three Latin
    letters; where it names none, it is the one with most letters. A second one has at least `MIN_SHARE` of the letters.
    Code is left out; what then has no letters has no language.
    """
    prose = _CODE.sub(" ", FENCE.sub("\n", text))
    shares = {{"hangul": "ko", "latin": "en"}.get(script, script): share for script, share in script_shares(prose).items()}
    if not any(shares.values()):
        return []
    main = detect(prose)
    if main == "other":  # it says no more than that neither has enough letters
        main = max(shares, key=lambda lang: shares[lang])
    others = [(lang, share) for lang, share in shares.items() if lang != main and share >= MIN_SHARE]
    return [(main, shares[main]), *sorted(others, key=lambda pair: -pair[1])][:2]


def penalise(judgments: Iterable[Judgment], mode: Literal["intended", "released"] = "intended") -> list[Judgment]:
    """KoMT-Bench's penalty: the square root of the score of an answer that is not in Korean (EXAONE 3.5, arXiv 2412.04862).

    Questions 138 and 140 are exempt. Failures stay failures.

    Args:
        judgments: without a penalty.
        mode: "intended" goes by the main language, and an answer without letters is right in every language. "released"
            does as the published script: the last language that the detector gives decides, so a Korean answer with a second
            language is penalised, an English one with some Korean is not, and one without any is penalised. The script's
            detector is another one (MediaPipe), so single answers may come out differently.
    """
    done = []
    for judgment in judgments:
        found = [lang for lang, _ in languages(judgment.answer)]
        language = "" if not found else found[-1] if mode == "released" else found[0]
        foreign = language != "ko" if language or mode == "released" else False
        penalised = foreign and not judgment.failure and judgment.item_id not in NO_PENALTY_IDS
        score = math.sqrt(judgment.raw) if penalised else judgment.raw
        done.append(replace(judgment, score=score, language=language, penalised=penalised))
    return done


# Averages.
def averages(
    judgments: Sequence[Judgment], *, seed: int, judge_failures: Literal["exclude", "zero"] = "exclude"
) -> dict[str, Any]:
    """Mean scores with 95 % bootstrap intervals over questions, ready for JSON.

    Args:
        judgments: of one model on one suite.
        seed: of the bootstrap.
        judge_failures: "exclude" leaves turns without a readable score out (FastChat's -1); "zero" counts them as 0.0, which
            is LogicKor's published behaviour. Turns without an answer are left out either way. All are counted.

    Returns:
        `turn_1`, `turn_2`, `both` (the mean over all scores, as FastChat has it) and `points` (10 times `both`, for the mean
        over suites) as {mean, low, high}; `categories` with the same by category; and the counts `questions`, `turns`,
        `graded`, `failures` by reason, `judge_failures`, `zeros` (of them counted as 0.0), `without_reference`, `penalised`.
    """
    no_verdict = [judgment for judgment in judgments if judgment.failure and judgment.attempts]
    zeros = no_verdict if judge_failures == "zero" else []
    scored = [judgment for judgment in judgments if not judgment.failure]
    scored += [replace(judgment, raw=0.0, score=0.0, failure="") for judgment in zeros]
    by_category: dict[str, list[Judgment]] = {judgment.category: [] for judgment in judgments}
    for judgment in scored:
        by_category[judgment.category].append(judgment)
    return {
        **_means(scored, seed),
        "categories": {category: _means(rows, seed) for category, rows in sorted(by_category.items())},
        "questions": len({judgment.item_id for judgment in judgments}),
        "turns": len(judgments),
        "graded": sum(not judgment.failure for judgment in judgments),
        "failures": dict(sorted(Counter(judgment.failure for judgment in judgments if judgment.failure).items())),
        "judge_failures": len(no_verdict),
        "zeros": len(zeros),
        "without_reference": sum(judgment.without_reference for judgment in judgments),
        "penalised": sum(judgment.penalised for judgment in judgments),
    }


def _means(judgments: Sequence[Judgment], seed: int) -> dict[str, Mapping[str, float | None]]:
    turns = {f"turn_{turn}": [row for row in judgments if row.turn == turn] for turn in (1, 2)}
    both = _per_question(judgments)
    return {
        **{name: mean_with_interval(_per_question(rows), seed=seed) for name, rows in turns.items()},
        "both": mean_with_interval(both, seed=seed),
        "points": mean_with_interval([10 * value for value in both], seed=seed),
    }


def _per_question(judgments: Sequence[Judgment]) -> list[float]:
    """A value for each question, whose mean is the mean over all scores even where questions have different numbers of them.

    With sum s_i of n_i scores and the mean m over all: m + (s_i - m n_i) / mean(n), the linearised ratio estimator (delta
    method, arXiv 1803.06336), which with equal n_i is the question's own mean.
    """
    scores: dict[str, list[float]] = {}
    for judgment in judgments:
        scores.setdefault(judgment.item_id, []).append(judgment.score)
    count = sum(map(len, scores.values()))
    mean = sum(sum(values) for values in scores.values()) / count if count else math.nan
    return [mean + (sum(values) - mean * len(values)) * len(scores) / count for values in scores.values()]
