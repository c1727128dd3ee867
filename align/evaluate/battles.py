"""Battles: a judge compares two models' answers to one prompt, in both orders (Arena-Hard, arXiv 2406.11939)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from align.core.journal import Journal
from align.engines.complete import Writer
from align.engines.protocol import Sampling
from align.evaluate.conversations import Held
from align.evaluate.suite import Item
from align.evaluate.verdicts import Unreadable, collect_verdicts, question_id, render
from reward.judge import marked

LABELS = ("A>>B", "A>B", "A=B", "B>A", "B>>A")
ORDERS = ("ab", "ba")
GREEDY = Sampling(temperature=0.0, max_tokens=4096)  # the judge writes an answer of its own before it compares
_VERDICT = re.compile(r"\[\[\s*([AB])\s*(>>|>|=|<|<<)\s*([AB])\s*\]\]")
_MIRRORED = {">": "<", "<": ">", ">>": "<<", "<<": ">>", "=": "="}


@dataclass(frozen=True, kw_only=True)
class Game:
    """One comparison of two models' answers to one prompt.

    Attributes:
        prompt_id: of the prompt, whose `category` it carries.
        order: "ab" where the model's answer was shown first, "ba" where the baseline's was.
        label: one of `LABELS`, in which A is the model and B the baseline whatever the order; empty where there is none.
        failure: why there is no label, such as no_verdict; empty if there is one.
        attempts: how often the judge was asked; 0 where an answer was missing.
        text: the judge's words, in which A is the answer that it was shown first.
    """

    prompt_id: str
    category: str = ""
    order: str
    label: str
    failure: str = ""
    attempts: int = 0
    text: str = ""


def read_label(text: str) -> str:
    """The one of `LABELS` in a judge's text; [[A<B]] is read as [[B>A]]. The same verdict may stand several times.

    Raises:
        Unreadable: no_verdict, or several_verdicts that differ.
    """
    found = set()
    for left, sign, right in _VERDICT.findall(text):
        if left != right:
            found.add(_written(left, sign, right))
    if not found:
        raise Unreadable("no_verdict")
    if len(found) > 1:
        raise Unreadable("several_verdicts")
    return found.pop()


def _written(left: str, sign: str, right: str) -> str:
    """The label with the better one first, and A first at a tie."""
    if "<" in sign or (sign == "=" and left == "B"):
        return right + _MIRRORED[sign] + left
    return left + sign + right


def swapped(label: str) -> str:
    """What a label says once A and B have changed places: A>>B becomes B>>A."""
    return label.translate(str.maketrans("AB", "BA")) if label != "A=B" else label


def battle(
    writer: Writer,
    contests: Sequence[tuple[Item, Held, Held]],
    *,
    own_answer: bool = True,
    sampling: Sampling = GREEDY,
    journal: Journal | None = None,
) -> list[Game]:
    """Two games for each prompt, in both orders; a game without an answer or a verdict is one with the reason.

    Args:
        writer: the judging model at work.
        contests: a prompt, the model's conversation and the baseline's.
        own_answer: whether the judge answers the prompt itself first, as published.
        sampling: of the judge.
        journal: of this judge; the same two answers in the same order are never compared twice.

    Raises:
        ValueError: a prompt with several turns.
        StepError: as `align.engines.complete.Writer.run`.
    """
    template = "arena-hard" if own_answer else "arena-hard-plain"
    questions = {}
    for place, (item, model, baseline) in enumerate(contests):
        if len(item.turns) != 1:
            raise ValueError(f"prompt {item.id} has {len(item.turns)} turns; a battle is about one")
        if not (model.answers and baseline.answers):
            continue
        for order in ORDERS:
            first, second = (model, baseline) if order == "ab" else (baseline, model)
            shown = marked(question=item.turns[0], answer_a=first.answers[0], answer_b=second.answers[0])
            questions[place, order] = render(template, "en", **shown)
    verdicts = collect_verdicts(
        writer, questions.values(), read_label, purpose="judge-battle", sampling=sampling, journal=journal
    )
    games = []
    for place, (item, model, baseline) in enumerate(contests):
        missing = "" if model.answers and baseline.answers else model.failure or baseline.failure or "not_asked"
        for order in ORDERS:
            game = Game(prompt_id=item.id, category=item.category, order=order, label="", failure=missing)
            if not missing:
                verdict = verdicts[question_id(questions[place, order])]
                label = verdict.value or ""
                game = Game(
                    prompt_id=item.id, category=item.category, order=order,
                    label=swapped(label) if order == "ba" else label,
                    failure=verdict.failure, attempts=verdict.attempts, text=verdict.text,
                )  # fmt: skip
            games.append(game)
    return games
