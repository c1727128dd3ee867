"""From N scored responses of a prompt to {x, yw, yl}, or to a reject that says why not.

The selector picks the best and the worst response; the validator must prefer the same one, by enough. Which responses are
compared, and in which order the rules are asked, is fixed (see `build_pair`), so that each prompt ends in one place with
its numbers. Everything is joined by id; nothing depends on the order of the inputs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from align.core.errors import StepError
from align.core.hashing import content_id
from align.core.rows import Instruction, Preference, Reject, Response, Score
from reward.agreement import MEASURES, agreement


@dataclass(frozen=True, kw_only=True)
class PairRules:
    """What a pair must satisfy.

    Attributes:
        select: "best_worst", the highest and the lowest selector score.
        agreement: a key of `reward.agreement.MEASURES`.
        threshold: least agreement, in the measure's own range.
        min_margin: least selector score difference of yw and yl, in that model's own units.
        drop_unfinished: leave out responses that did not end by themselves (finish_reason other than "stop").
        max_length: completion tokens that training will keep; None = all.

    Raises:
        ValueError: an unknown `select` or `agreement`, a NaN threshold, a negative margin or a max_length below 1.
    """

    select: str = "best_worst"
    agreement: str
    threshold: float
    min_margin: float = 0.0
    drop_unfinished: bool = True
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.select != "best_worst":
            raise ValueError(f"unknown select {self.select!r}; known is best_worst")
        if self.agreement not in MEASURES:
            raise ValueError(f"unknown agreement {self.agreement!r}; known are {', '.join(MEASURES)}")
        if math.isnan(self.threshold) or not self.min_margin >= 0:
            raise ValueError(f"threshold {self.threshold} and min_margin {self.min_margin} must be numbers, margin >= 0")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length {self.max_length} must be at least 1")


def _plain(value: float) -> float | str | None:
    """A float as strict JSON knows it: NaN is null, the infinities are text."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


@dataclass
class _Case:
    """One prompt on its way through the rules; `numbers` goes into the reject so that no prompt loses its scores."""

    prompt: Instruction
    selector: Mapping[str, float]
    validator: Mapping[str, float]
    candidates: list[Response]
    numbers: dict[str, object] = field(default_factory=dict)

    def reject(self, reason: str) -> Reject:
        raw = json.dumps(self.numbers, ensure_ascii=False, allow_nan=False, sort_keys=True)
        return Reject(id=self.prompt.id, reason=reason, raw=raw, topic_id=self.prompt.topic_id)

    def winner_and_loser(self) -> tuple[int, int]:
        """Indices of the best and the worst under the selector; several at an extreme: the lowest response id."""
        scores = [self.selector[r.id] for r in self.candidates]  # candidates are sorted by id, so `index` finds the lowest
        return scores.index(max(scores)), scores.index(min(scores))


def _candidates(responses: Sequence[Response], rules: PairRules) -> tuple[list[Response], str | None]:
    """The responses that are compared, sorted by id, and why there are too few of them (None = enough)."""
    if len(responses) < 2:
        return list(responses), "fewer_than_two_responses"
    finished = [
        r for r in responses if (r.finish_reason == "stop" or not rules.drop_unfinished) and r.token_ids and r.text.strip()
    ]
    if len(finished) < 2:
        return finished, "fewer_than_two_finished"
    distinct: dict[tuple[int, ...], Response] = {}
    for response in sorted(finished, key=lambda r: r.id):
        distinct.setdefault(tuple(response.token_ids), response)
    kept = list(distinct.values())
    return kept, "all_responses_identical" if len(kept) < 2 else None


def _objection(case: _Case, winner: int, loser: int, value: float, rules: PairRules) -> str | None:
    """The first rule after the selection that the pair breaks, or None."""
    chosen, rejected = case.candidates[winner], case.candidates[loser]
    validator_gap = case.validator[chosen.id], case.validator[rejected.id]
    if validator_gap[0] == validator_gap[1]:
        return "validator_tie"
    if not validator_gap[0] > validator_gap[1]:
        return "validator_disagrees"
    if not value >= rules.threshold:
        return "agreement_below_threshold"
    if not case.selector[chosen.id] - case.selector[rejected.id] >= rules.min_margin:
        return "margin_below_minimum"
    # Training sees the first `max_length` tokens only; two equal beginnings would be a pair without a difference.
    if chosen.token_ids[: rules.max_length] == rejected.token_ids[: rules.max_length]:
        return "identical_after_truncation"
    return None


def build_pair(
    prompt: Instruction,
    responses: list[Response],
    selector: Mapping[str, float],
    validator: Mapping[str, float],
    rules: PairRules,
) -> Preference | Reject:
    """The preference pair of one prompt, or the first reason against it.

    Reasons in the order they are asked: `fewer_than_two_responses`; unfinished and empty responses are left out, then
    `fewer_than_two_finished`; responses with equal token ids become one (the lowest id stays), then
    `all_responses_identical`; `nan_score` (either model, any compared response); `selector_tie` (best score == worst
    score); `validator_tie` and `validator_disagrees` (on yw and yl); `agreement_below_threshold`; `margin_below_minimum`;
    `identical_after_truncation`. Responses in the wrong language stay: judging them is the reward models' task. Where
    several responses share the best (or worst) score, the lowest response id is taken. Ranks are among compared responses.

    Args:
        prompt: the prompt; its id becomes the reject's id.
        responses: its N responses, in any order.
        selector: score by response id of the model that picks.
        validator: score by response id of the model that must agree.
        rules: see `PairRules`.

    Raises:
        StepError: a response has no score, or belongs to another prompt.
    """
    for response in responses:
        if response.prompt_id != prompt.id:
            raise StepError(f"response {response.id} belongs to prompt {response.prompt_id}, not {prompt.id}")
        for name, scores in (("selector", selector), ("validator", validator)):
            if response.id not in scores:
                raise StepError(f"response {response.id} of prompt {prompt.id} has no {name} score")
    candidates, too_few = _candidates(responses, rules)
    case = _Case(prompt, selector, validator, candidates)
    ids = sorted(r.id for r in responses)
    case.numbers = {
        "selector": {i: _plain(selector[i]) for i in ids},
        "validator": {i: _plain(validator[i]) for i in ids},
        "compared": [r.id for r in candidates],
    }
    if too_few:
        return case.reject(too_few)
    first, second = ([float(scores[r.id]) for r in candidates] for scores in (selector, validator))
    if any(math.isnan(score) for score in first + second):
        return case.reject("nan_score")
    winner, loser = case.winner_and_loser()
    if first[winner] == first[loser]:
        return case.reject("selector_tie")
    chosen, rejected = candidates[winner], candidates[loser]
    measured = {name: agreement(name, first, second, winner, loser) for name in MEASURES}
    case.numbers |= {"chosen": chosen.id, "rejected": rejected.id, **{k: _plain(v) for k, v in measured.items()}}
    if reason := _objection(case, winner, loser, measured[rules.agreement], rules):
        return case.reject(reason)
    return Preference(
        id=content_id("preference", prompt.id, chosen.id, rejected.id),
        prompt_id=prompt.id,
        prompt=prompt.messages,
        chosen=[{"role": "assistant", "content": chosen.text}],
        rejected=[{"role": "assistant", "content": rejected.text}],
        chosen_id=chosen.id,
        rejected_id=rejected.id,
        chosen_token_ids=list(chosen.token_ids),
        rejected_token_ids=list(rejected.token_ids),
        chosen_model=chosen.model,
        rejected_model=rejected.model,
        selector_chosen=first[winner],
        selector_rejected=first[loser],
        validator_chosen=second[winner],
        validator_rejected=second[loser],
        agreement=measured[rules.agreement],
        kendall_tau=measured["kendall"],
        p_value=math.nan,
        weight=1.0,
        flip_rate=0.0,
        source="sampled",
        split="train",
        topic_id=prompt.topic_id,
        lang=prompt.lang,
    )


def _by_response(name: str, scores: Iterable[Score], responses: Mapping[str, Response]) -> dict[str, float]:
    """Scores of one model by response id; every response must have exactly one."""
    found: dict[str, float] = {}
    models = set()
    for score in scores:
        response = responses.get(score.response_id)
        if response is None:
            raise StepError(f"{name}: a score for response {score.response_id}, which is not among the samples")
        if response.prompt_id != score.prompt_id:
            raise StepError(
                f"{name}: response {response.id} is scored for prompt {score.prompt_id}, it answers {response.prompt_id}"
            )
        if score.response_id in found:
            raise StepError(f"{name}: two scores for response {score.response_id}")
        models.add(score.reward_model)
        found[score.response_id] = score.score
    if len(models) > 1:
        raise StepError(f"{name}: scores of more than one reward model: {', '.join(sorted(models))}")
    if missing := sorted(responses.keys() - found.keys()):
        raise StepError(f"{name}: {len(missing)} responses without a score, the first is {missing[0]}")
    return found


def build_pairs(
    prompts: Sequence[Instruction],
    responses: Iterable[Response],
    selector: Iterable[Score],
    validator: Iterable[Score],
    rules: PairRules,
) -> tuple[list[Preference], list[Reject]]:
    """`build_pair` for every prompt, in the prompts' order; pairs and rejects together are as many as the prompts.

    Raises:
        StepError: an id appears twice, a response answers no prompt of these, a score is missing, given twice, of another
            model than the others, for an unknown response or for another prompt.
    """
    by_id: dict[str, Response] = {}
    by_prompt: dict[str, list[Response]] = {prompt.id: [] for prompt in prompts}
    if len(by_prompt) != len(prompts):
        raise StepError("a prompt id appears twice among the prompts")
    for response in responses:
        if response.id in by_id:
            raise StepError(f"response id {response.id} appears twice among the samples")
        if response.prompt_id not in by_prompt:
            raise StepError(f"response {response.id} answers prompt {response.prompt_id}, which is not among the prompts")
        by_id[response.id] = response
        by_prompt[response.prompt_id].append(response)
    first = _by_response("selector", selector, by_id)
    second = _by_response("validator", validator, by_id)
    pairs: list[Preference] = []
    rejects: list[Reject] = []
    for prompt in prompts:
        result = build_pair(prompt, by_prompt[prompt.id], first, second, rules)
        if isinstance(result, Reject):
            rejects.append(result)
        else:
            pairs.append(result)
    return pairs, rejects
