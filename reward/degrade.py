"""Training pairs for reward models: a good answer against the same answer made worse in a known way.

Synthetic pairs cost no labels and are right by construction, but they teach only what the operators damage: a model
trained on them tells whole from broken answers, not good from excellent ones. The operators pull length both ways (`cut`
shortens, `repeat` lengthens, `shuffle` keeps it), so that length alone does not give the pair away.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Sequence

from align.core.hashing import content_id, derive_seed, unit_interval
from align.core.language import detect
from align.core.rows import Message, Reject, RewardPair, SftExample
from reward.preference_file import reward_pair

MIN_WORDS = 6  # shorter answers have no inside to damage
_SENTENCE_END = re.compile(r"[.!?。！？…:][\"'”’)\]]*$")
_SENTENCE_GAP = re.compile(r"(?<=[.!?。！？…])\s+|\n+")


def _cut(text: str, rng: random.Random, other: str | None, lang: str) -> str | None:
    """The answer broken off inside a sentence after 30 to 70 % of its words."""
    words = list(re.finditer(r"\S+", text))
    places = range(math.ceil(0.3 * len(words)), math.floor(0.7 * len(words)) + 1)
    inside = [k for k in places if k and not _SENTENCE_END.search(words[k - 1].group())]
    return text[: words[rng.choice(inside) - 1].end()] if inside else None


def _repeat(text: str, rng: random.Random, other: str | None, lang: str) -> str | None:
    """The answer with one of its sentences said three to five times."""
    sentences = [s for s in _SENTENCE_GAP.split(text) if s.strip()]
    if not sentences:
        return None
    sentence = rng.choice(sentences)
    return text.replace(sentence, " ".join([sentence] * rng.randint(3, 5)), 1)


def _shuffle(text: str, rng: random.Random, other: str | None, lang: str) -> str | None:
    """The answer's words in random order."""
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


def _other(text: str, rng: random.Random, other: str | None, lang: str) -> str | None:
    """A fluent answer to another question."""
    return other


def _language(text: str, rng: random.Random, other: str | None, lang: str) -> str | None:
    """An answer in a language that was not asked for; None where `other` is in the asked one after all."""
    return other if other is not None and detect(other) != lang else None


OPERATORS: dict[str, Callable[[str, random.Random, str | None, str], str | None]] = {
    "cut": _cut,
    "repeat": _repeat,
    "shuffle": _shuffle,
    "other": _other,
    "language": _language,
}


def degrade(name: str, answer_text: str, *, seed: int, other_answer: str | None, lang: str) -> str | None:
    """A worse version of an answer; None where the answer is under `MIN_WORDS` words or the result would equal it.

    Args:
        name: a key of `OPERATORS`.
        answer_text: the good answer.
        seed: decides the place, sentence or order; equal arguments give equal results on every machine.
        other_answer: what `other` and `language` put in its place: another prompt's answer, in `lang` and not in `lang`.
        lang: the answer's language, "en" or "ko".

    Raises:
        ValueError: unknown operator.
    """
    if name not in OPERATORS:
        raise ValueError(f"unknown degradation {name!r}; known are {', '.join(OPERATORS)}")
    if len(answer_text.split()) < MIN_WORDS:
        return None
    result = OPERATORS[name](answer_text, random.Random(seed), other_answer, lang)
    if result is None or not result.strip() or result.split() == answer_text.split():
        return None
    return result


def _last_turn(messages: Sequence[Message]) -> tuple[list[Message], str] | None:
    """The messages before the last assistant turn and that turn's text; None where there is no such turn or no prompt."""
    places = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    return (list(messages[: places[-1]]), messages[places[-1]]["content"]) if places and places[-1] else None


class _Answers:
    """Answers that may stand in for another's, by side of the split and language.

    Only from the same side: otherwise the held-out answers would be seen in training, as rejected ones.
    """

    def __init__(self, usable: Sequence[tuple[SftExample, str, str]]) -> None:
        self._groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for example, split, answer in sorted(usable, key=lambda item: item[0].id):
            self._groups.setdefault((split, example.lang), []).append((example.parent_id, answer))

    def pick(self, name: str, example: SftExample, split: str, seed: int) -> str | None:
        """Another prompt's answer for the operator `name`, or None where that side of the split has none."""
        if name not in ("other", "language"):
            return None
        langs = [
            lang for side, lang in sorted(self._groups) if side == split and (lang == example.lang) == (name == "other")
        ]
        pool = [answer for lang in langs for parent, answer in self._groups[split, lang] if parent != example.parent_id]
        return pool[seed % len(pool)] if pool else None


def reward_pairs(
    examples: list[SftExample], *, run_seed: int, operators: Sequence[str], held_out: float, per_example: int
) -> tuple[list[RewardPair], list[Reject]]:
    """`per_example` pairs for each example: its last assistant turn against a degraded one.

    The operators are tried in an order drawn per example, starting one further for each further pair; the first that
    works is taken, so one that cannot apply (no answer in another language, say) costs no pair. The prompt's id is the
    example's `parent_id`, and all pairs of a prompt are on one side of the split. asked = len(examples) * per_example =
    pairs + rejects; reasons: `no_assistant_turn` (or nothing before it), `cannot_degrade`, `duplicate_pair`.

    Args:
        examples: SFT dialogues; their order does not matter.
        run_seed: the run's seed.
        operators: keys of `OPERATORS`, at least one.
        held_out: share of prompts on the "test" side, in [0, 1).
        per_example: pairs per example.

    Raises:
        ValueError: no operator or an unknown one.
    """
    if not operators or (unknown := [name for name in operators if name not in OPERATORS]):
        raise ValueError(f"operators {', '.join(unknown) if operators else '(none)'}; known are {', '.join(OPERATORS)}")
    split_of = {
        e.parent_id: "test" if unit_interval(run_seed, "reward-split", e.parent_id) < held_out else "train" for e in examples
    }
    turns = {e.id: _last_turn(e.messages) for e in examples}
    answers = _Answers([(e, split_of[e.parent_id], turn[1]) for e in examples if (turn := turns[e.id])])
    pairs: dict[str, RewardPair] = {}
    rejects: list[Reject] = []
    for example in examples:
        turn, split = turns[example.id], split_of[example.parent_id]
        order = list(operators)
        random.Random(derive_seed(run_seed, "reward-operators", example.id)).shuffle(order)
        for slot in range(per_example):
            tried = [order[(slot + i) % len(order)] for i in range(len(order))]
            made = turn and _first_that_works(example, turn, tried, answers, run_seed, slot, split)
            if made and made.id not in pairs:
                pairs[made.id] = made
                continue
            reason = "no_assistant_turn" if not turn else "duplicate_pair" if made else "cannot_degrade"
            raw = json.dumps({"example": example.id, "messages": example.messages}, ensure_ascii=False)
            rejects.append(Reject(id=content_id("reward_pair", example.id, slot), reason=reason, raw=raw))
    return list(pairs.values()), rejects


def _first_that_works(
    example: SftExample,
    turn: tuple[list[Message], str],
    tried: list[str],
    answers: _Answers,
    run_seed: int,
    slot: int,
    split: str,
) -> RewardPair | None:
    """The pair made by the first operator of `tried` that applies."""
    prompt, answer = turn
    for name in tried:
        seed = derive_seed(run_seed, "reward-degrade", example.id, name, slot)
        other = answers.pick(name, example, split, seed)
        worse = degrade(name, answer, seed=seed, other_answer=other, lang=example.lang)
        if worse is not None:
            return reward_pair(example.parent_id, prompt, answer, worse, subset=name, lang=example.lang, split=split)
    return None
