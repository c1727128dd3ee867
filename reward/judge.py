"""A generative model as a reward model: it is asked to score each response, or to name the better of two.

Its opinion is the mean over its first token's probabilities, not the one token that it writes: a score of 3.7 instead of 4,
so that few responses tie (G-Eval, arXiv 2303.16634). An engine that tells no probabilities leaves the written token.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from align.core.journal import Journal
from align.core.rows import Message
from align.engines.complete import Ask, Asking, Job, Reply, Writer
from align.engines.protocol import Sampling
from reward.interface import Group

log = logging.getLogger(__name__)

TEMPLATES = {"score": "judge-response", "pairwise": "compare-responses"}
GREEDY = Sampling(temperature=0.0, max_tokens=4)
TOP_LOGPROBS = 20  # as many as vLLM tells unless it is started otherwise
# Of the first token's probability, what must be on the wanted tokens. A model that mostly begins otherwise does not answer
# the question, and the rest, scaled up to 1, is noise.
MIN_MASS = 0.1


def expected(logprobs: Sequence[tuple[str, float]], values: Mapping[str, float]) -> float:
    """Mean of `values` (by token) under the first token's probabilities: sum v p(v) / sum p(v) (G-Eval, arXiv 2303.16634).

    Spaces around a token do not count, so several tokens may stand for one value. NaN where `values` has less than
    `MIN_MASS` of the probability.
    """
    found = [(values[token.strip()], math.exp(value)) for token, value in logprobs if token.strip() in values]
    mass = sum(probability for _, probability in found)
    return sum(value * probability for value, probability in found) / mass if mass >= MIN_MASS else math.nan


def written_number(text: str, scale: int) -> float:
    """The one number in a judge's text ("4", "Score: 4", "4/5" where `scale` is 5), NaN unless it is within 1 to `scale`."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", re.sub(rf"(?<=\d)\s*/\s*{scale}(?!\d)", "", text))
    value = float(numbers[0]) if len(numbers) == 1 else math.nan
    return value if 1 <= value <= scale else math.nan


def written_letter(text: str) -> float:
    """1 for a text that is the letter A and signs, 0 for B, else NaN: in a sentence "A" may be an article."""
    found = re.fullmatch(r"\W*([AB])\W*", text)
    return math.nan if found is None else float(found[1] == "A")


def marked(**texts: str) -> dict[str, str]:
    """Each text between tags that none of them holds, so that no text can end its own and speak as the question."""
    tag, number = "text", 1
    while any(re.search(rf"<\s*/?\s*{tag}\b", text, re.IGNORECASE) for text in texts.values()):
        number += 1
        tag = f"text-{number}"
    return {name: f"<{tag}>\n{text}\n</{tag}>" for name, text in texts.items()}


def dialogue(prompt: Sequence[Message]) -> str:
    """A prompt as one text; who speaks is said where there is more than the user's one turn."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


class Judge:
    """A `reward.interface.RewardModel` that asks a generating model, N calls for a prompt or N (N - 1).

    Mode "score": each response alone, from 1 to `scale`; NaN where the answer cannot be read. Mode "pairwise": each two
    responses in both orders, since judges favour a place (MT-Bench, arXiv 2306.05685); a response's score is its mean
    probability of winning, from 0 to 1 (Borda count). An unreadable comparison counts as 0.5. NaN for a response without a
    readable one, as for a single response. Pairwise scores are relative: they compare the responses of one prompt only.

    Attributes:
        counts: what this object met: calls read `from_logprobs` and `from_text`, calls `unreadable` in all their tries, and
            pairs `compared` (both orders read) and `position_inconsistent` (the two orders name different winners).

    Args:
        writer: the judging model at work.
        render: `render(template, lang, **values)` gives the question's messages; the templates are `TEMPLATES`, with values
            instruction and response, scale, middle (the scale's) or response_a, response_b.
        mode: "score" or "pairwise".
        scale: the best score, 2 to 9, so that each score is one token; "pairwise" has none.
        sampling: greedy by default; its temperature does not change what the probabilities say.
        journal: of this model alone; keeps each call's answer, so that a rerun repeats none.
        tries: how often an unreadable answer is asked for, each with its own seed; greedy answers get one.

    Raises:
        ValueError: an unknown mode, a scale out of 2 to 9, or fewer than one try.
    """

    def __init__(
        self,
        writer: Writer,
        render: Callable[..., list[Message]],
        *,
        mode: str = "score",
        scale: int = 5,
        sampling: Sampling = GREEDY,
        journal: Journal | None = None,
        tries: int = 1,
    ) -> None:
        if mode not in TEMPLATES:
            raise ValueError(f"unknown mode {mode!r}; known are {', '.join(TEMPLATES)}")
        if not 2 <= scale <= 9:
            raise ValueError(f"scale {scale} must be within 2 to 9: a score is one token")
        if tries < 1:
            raise ValueError(f"tries {tries} must be at least 1")
        self._writer, self._render, self._mode, self._scale = writer, render, mode, scale
        self._sampling, self._journal = sampling, journal
        self._tries = tries if sampling.temperature > 0 else 1
        self._warned: set[str] = set()
        self.counts = dict.fromkeys(("from_logprobs", "from_text", "unreadable", "compared", "position_inconsistent"), 0)

    @property
    def position_inconsistency(self) -> float:
        """Share of the compared pairs whose two orders name different winners; NaN before any was compared."""
        compared = self.counts["compared"]
        return self.counts["position_inconsistent"] / compared if compared else math.nan

    def score(self, groups: Sequence[Group]) -> Iterator[tuple[int, list[float]]]:
        """Yield (place in `groups`, N scores) as groups are done.

        Raises:
            StepError: as `align.engines.complete.Writer.run`, after what could be scored has been yielded.
        """
        judged = self._pairwise if self._mode == "pairwise" else self._scores
        jobs = (Job(key=i, asking=judged(group), journal=self._journal) for i, group in enumerate(groups))
        yield from self._writer.run(jobs, label="judge", total=len(groups), unit="prompts")

    def _scores(self, group: Group) -> Asking[list[float]]:
        """The scores of a group, each response asked alone."""
        limits = {"scale": str(self._scale), "middle": str((1 + self._scale) // 2)}
        question = dialogue(group.prompt)
        asks = [
            self._ask(group, key, **marked(instruction=question, response=text), **limits)
            for key, text in zip(group.response_ids, group.responses, strict=True)
        ]
        return (yield from self._opinions(asks))

    def _pairwise(self, group: Group) -> Asking[list[float]]:
        """The mean win probability of each response.

        A response is asked against all that follow it at once, not all pairs: N (N - 1) prompts of each job under way would
        fill the memory.
        """
        count = len(group.responses)
        won: list[list[float]] = [[] for _ in range(count)]
        readable = [False] * count
        for first in range(count - 1):
            rivals = range(first + 1, count)
            asks = [self._comparison(group, *order) for rival in rivals for order in ((first, rival), (rival, first))]
            opinions = yield from self._opinions(asks)
            for rival, ahead, behind in zip(rivals, opinions[::2], opinions[1::2], strict=True):
                if not math.isnan(ahead + behind):
                    self.counts["compared"] += 1
                    self.counts["position_inconsistent"] += (ahead - 0.5) * (behind - 0.5) > 0
                if not (math.isnan(ahead) and math.isnan(behind)):
                    readable[first] = readable[rival] = True
                ahead, behind = (0.5 if math.isnan(p) else p for p in (ahead, behind))
                chance = (ahead + 1 - behind) / 2
                won[first].append(chance)
                won[rival].append(1 - chance)
        return [sum(chances) / len(chances) if read else math.nan for chances, read in zip(won, readable, strict=True)]

    def _comparison(self, group: Group, a: int, b: int) -> Ask:
        """The question whether response `a`, shown as A, is better than `b`, shown as B."""
        texts = {"response_a": group.responses[a], "response_b": group.responses[b]}
        key = f"{group.response_ids[a]}:{group.response_ids[b]}"
        return self._ask(group, key, **marked(instruction=dialogue(group.prompt), **texts))

    def _ask(self, group: Group, key: str, **values: str) -> Ask:
        template = TEMPLATES[self._mode]
        return Ask(
            id=f"{group.id}/{key}",
            purpose=template,
            messages=self._render(template, group.lang, **values),
            sampling=self._sampling,
            top_logprobs=TOP_LOGPROBS,
        )

    def _opinions(self, asks: Sequence[Ask]) -> Asking[list[float]]:
        """What each answer says (a score, or the probability that A is better), NaN where no try could be read."""
        found = [math.nan] * len(asks)
        todo: Sequence[int] = range(len(asks))
        for number in range(self._tries):
            replies = yield [replace(asks[i], id=f"{asks[i].id}#{number}") if number else asks[i] for i in todo]
            for i, reply in zip(todo, replies, strict=True):
                found[i] = self._read(asks[i], reply)
            todo = [i for i in todo if math.isnan(found[i])]
            if not todo:
                break
        self.counts["unreadable"] += len(todo)
        return found

    def _read(self, ask: Ask, reply: Reply) -> float:
        """What one answer says, by its probabilities or else by its text; NaN where neither does."""
        if reply.error:
            self._warn_once(reply.fault, f"question {ask.id} has no answer ({reply.error})")
            return math.nan
        if not reply.first_logprobs:
            self._warn_once(
                "no logprobs", "the engine tells no probabilities of the first token; answers are read as written"
            )
        pairwise = self._mode == "pairwise"
        values = {"A": 1.0, "B": 0.0} if pairwise else {str(k): float(k) for k in range(1, self._scale + 1)}
        value = expected(reply.first_logprobs, values)
        source = "from_logprobs"
        if math.isnan(value):
            value = written_letter(reply.texts[0]) if pairwise else written_number(reply.texts[0], self._scale)
            source = "from_text"
        self.counts[source] += not math.isnan(value)
        return value

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("judge: %s; further cases are counted, not named", text)
