"""From scores to pairs: every reason, strict joins, and what holds for any scores at all."""

import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.errors import StepError
from align.core.hashing import content_id
from align.core.rows import Instruction, Preference, Reject, Response, Score, to_table
from reward.pairs import PairRules, build_pair, build_pairs
from tests.jobs import instruction

RULES = PairRules(agreement="gap", threshold=0.5)
NAN = float("nan")


def prompt(name: str = "p") -> Instruction:
    return instruction("Why?", id=name, topic_id="t", split="train")


def response(index: int, name: str = "p", ids: list[int] | None = None, reason: str = "stop", text: str = "") -> Response:
    ids = [index + 10, 2] if ids is None else ids
    return Response(
        id=f"{name}-{index}", prompt_id=name, model="M0", sample_index=index, token_ids=ids,
        text=text or f"answer {index}", finish_reason=reason, num_tokens=len(ids),
    )  # fmt: skip


def pair(first: list[float], second: list[float], rules: PairRules = RULES, **of: object) -> Preference | Reject:
    """The pair of responses 0.. with these scores; `of` maps r0, r1, ... to replaced fields."""
    responses = [replace(response(i), **of.get(f"r{i}", {})) for i in range(len(first))]  # type: ignore[arg-type]
    scores = [{r.id: s for r, s in zip(responses, values, strict=True)} for values in (first, second)]
    return build_pair(prompt(), responses, scores[0], scores[1], rules)


def test_best_and_worst_become_the_pair() -> None:
    made = pair([0.1, 3.0, -2.0, 1.0], [5.0, 9.0, 1.0, 6.0])
    assert isinstance(made, Preference)
    assert (made.chosen_id, made.rejected_id) == ("p-1", "p-2")
    assert made.chosen == [{"role": "assistant", "content": "answer 1"}]
    assert (made.chosen_token_ids, made.rejected_token_ids) == ([11, 2], [12, 2])
    assert (made.selector_chosen, made.selector_rejected, made.validator_chosen, made.validator_rejected) == (3, -2, 9, 1)
    assert made.agreement == 1.0 and made.kendall_tau == pytest.approx(1.0)
    assert made.id == content_id("preference", "p", "p-1", "p-2")
    assert made.prompt == [{"role": "user", "content": "Why?"}] and made.topic_id == "t" and made.lang == "en"
    to_table(Preference, [made])


@pytest.mark.parametrize(
    ("first", "second", "rules", "of", "reason"),
    [
        ([1.0], [1.0], {}, {}, "fewer_than_two_responses"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], {}, {"r0": {"finish_reason": "length"}, "r2": {"text": " \n"}},
         "fewer_than_two_finished"),
        ([1.0, 2.0], [1.0, 2.0], {}, {"r0": {"token_ids": []}}, "fewer_than_two_finished"),
        ([1.0, 2.0], [1.0, 2.0], {}, {"r0": {"token_ids": [7]}, "r1": {"token_ids": [7]}}, "all_responses_identical"),
        ([1.0, NAN, 3.0], [1.0, 2.0, 3.0], {}, {}, "nan_score"),
        ([1.0, 2.0, 3.0], [1.0, NAN, 3.0], {}, {}, "nan_score"),
        ([2.0, 2.0], [1.0, 3.0], {}, {}, "selector_tie"),
        ([math.inf, math.inf], [1.0, 3.0], {}, {}, "selector_tie"),
        ([1.0, 2.0], [3.0, 3.0], {}, {}, "validator_tie"),
        ([1.0, 2.0], [3.0, 1.0], {}, {}, "validator_disagrees"),
        ([1.0, 2.0, 3.0, 4.0], [4.0, 1.0, 9.0, 5.0], {}, {}, "agreement_below_threshold"),
        ([1.0, 1.5], [1.0, 2.0], {"min_margin": 0.6}, {}, "margin_below_minimum"),
        ([1.0, 2.0], [1.0, 2.0], {"max_length": 2}, {"r0": {"token_ids": [5, 6, 7]}, "r1": {"token_ids": [5, 6, 8]}},
         "identical_after_truncation"),
    ],
)  # fmt: skip
def test_each_reason(first: list[float], second: list[float], rules: dict, of: dict, reason: str) -> None:
    made = pair(first, second, PairRules(**{"agreement": "gap", "threshold": 0.5, **rules}), **of)
    assert isinstance(made, Reject) and made.reason == reason and made.id == "p"
    numbers = json.loads(made.raw, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert set(numbers["selector"]) == set(numbers["validator"]) == {f"p-{i}" for i in range(len(first))}
    if reason.startswith(("validator", "agreement", "margin", "identical_after")):
        assert {"gap", "kendall", "spearman", "sign", "top1"} <= numbers.keys()


def test_a_threshold_met_exactly_is_met_and_the_named_measure_decides() -> None:
    first, second = [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]  # gap 0.5, tau 1/3, rho 0.5, sign 1, top1 0
    for name, value in (("gap", 0.5), ("kendall", 1 / 3), ("spearman", 0.5), ("sign", 1.0), ("top1", 0.0)):
        made = pair(first, second, PairRules(agreement=name, threshold=value - 1e-9))
        assert isinstance(made, Preference) and made.agreement == pytest.approx(value), name
        assert made.kendall_tau == pytest.approx(1 / 3)
        assert isinstance(pair(first, second, PairRules(agreement=name, threshold=value + 1e-6)), Reject), name
    assert isinstance(pair(first, second, PairRules(agreement="gap", threshold=0.5)), Preference)


def test_unfinished_responses_leave_the_ranks_too_unless_kept() -> None:
    first, second, cut = [1.0, 2.0, 9.0], [1.0, 2.0, 0.0], {"r2": {"finish_reason": "length"}}
    made = pair(first, second, RULES, **cut)
    assert isinstance(made, Preference) and made.chosen_id == "p-1" and made.agreement == 1.0
    kept = pair(first, second, replace(RULES, drop_unfinished=False), **cut)
    assert isinstance(kept, Reject) and kept.reason == "validator_disagrees"


def test_ties_and_duplicates_are_settled_by_the_lowest_id() -> None:
    made = pair([3.0, 3.0, 1.0, 1.0], [4.0, 3.0, 2.0, 1.0])
    assert isinstance(made, Preference) and (made.chosen_id, made.rejected_id) == ("p-0", "p-2")
    twins = pair([1.0, 3.0, 3.0], [1.0, 2.0, 2.0], RULES, r2={"token_ids": [11, 2]})
    assert isinstance(twins, Preference) and twins.chosen_id == "p-1" and twins.agreement == 1.0


def test_rules_refuse_nonsense() -> None:
    for bad in ({"select": "random"}, {"agreement": "rho"}, {"threshold": NAN}, {"min_margin": -1.0}, {"max_length": 0}):
        with pytest.raises(ValueError):
            PairRules(**{"agreement": "gap", "threshold": 0.5, **bad})  # type: ignore[arg-type]


ANY = st.sampled_from([NAN, math.inf, -math.inf, 0.0, -0.0, 1.0, 2.0, 2.0 + 1e-9, -3.5])


@settings(max_examples=300, deadline=None)
@given(
    data=st.integers(1, 8).flatmap(lambda n: st.tuples(*[st.lists(v, min_size=n, max_size=n) for v in (
        ANY, ANY, st.integers(0, 4), st.sampled_from(["stop", "stop", "stop", "length"]))])),
    name=st.sampled_from(["gap", "kendall", "spearman", "sign", "top1"]),
    threshold=st.floats(-1, 1),
    max_length=st.sampled_from([None, 1, 2]),
    order=st.randoms(use_true_random=False),
)  # fmt: skip
def test_whatever_the_scores_a_pair_is_two_completions_that_both_models_order(
    data: tuple, name: str, threshold: float, max_length: int | None, order: random.Random
) -> None:
    first, second, tokens, reasons = data
    rules = PairRules(agreement=name, threshold=threshold, max_length=max_length)
    responses = [response(i, ids=[t // 2, t], reason=r) for i, (t, r) in enumerate(zip(tokens, reasons, strict=True))]
    scores = [dict(zip([r.id for r in responses], values, strict=True)) for values in (first, second)]
    made = build_pair(prompt(), responses, scores[0], scores[1], rules)
    if isinstance(made, Preference):
        assert made.chosen_token_ids[:max_length] != made.rejected_token_ids[:max_length]
        assert made.selector_chosen == scores[0][made.chosen_id] > scores[0][made.rejected_id] == made.selector_rejected
        assert made.validator_chosen == scores[1][made.chosen_id] > scores[1][made.rejected_id] == made.validator_rejected
        assert made.agreement >= threshold
    shuffled = order.sample(responses, len(responses))
    assert build_pair(prompt(), shuffled, scores[0], scores[1], rules) == made


def scored(responses: list[Response], model: str, sign: float = 1.0) -> list[Score]:
    return [
        Score(id=f"{model}-{r.id}", response_id=r.id, prompt_id=r.prompt_id, reward_model=model, score=sign * r.sample_index)
        for r in responses
    ]


def test_many_prompts_join_by_id_and_add_up() -> None:
    prompts = [prompt(f"q{i}") for i in range(5)]
    responses = [response(i, p.id) for p in prompts[:4] for i in range(3)]  # q4 has none
    first, second = scored(responses, "a"), scored(responses, "b")
    random.Random(1).shuffle(second)
    second = [replace(s, score=-s.score) if s.prompt_id == "q2" else s for s in second]
    pairs, rejects = build_pairs(prompts, responses[::-1], first[::-1], second, RULES)
    assert [p.prompt_id for p in pairs] == ["q0", "q1", "q3"]
    assert [(r.id, r.reason) for r in rejects] == [("q2", "validator_disagrees"), ("q4", "fewer_than_two_responses")]
    assert all((p.chosen_id, p.rejected_id) == (f"{p.prompt_id}-2", f"{p.prompt_id}-0") for p in pairs)


def test_anything_that_does_not_join_is_an_error() -> None:
    prompts, responses = [prompt("q0")], [response(i, "q0") for i in range(3)]
    first, second = scored(responses, "a"), scored(responses, "b")
    stranger = Score(id="s", response_id="nobody", prompt_id="q0", reward_model="b", score=1.0)
    for args, words in [
        ((prompts, responses, first, second[:-1]), "validator: 1 responses without a score, the first is q0-2"),
        ((prompts, responses, [], second), "selector: 3 responses without"),
        ((prompts, responses, first, [*second, stranger]), "nobody"),
        ((prompts, responses, first, [*second, second[0]]), "two scores"),
        ((prompts, responses, [*first[:-1], replace(first[-1], reward_model="c")], second), "more than one reward model"),
        ((prompts, responses, [*first[:-1], replace(first[-1], prompt_id="q9")], second), "scored for prompt q9"),
        ((prompts, [*responses, response(0, "q9")], first, second), "answers prompt q9"),
        ((prompts, [*responses, responses[0]], first, second), "appears twice"),
        (([*prompts, *prompts], responses, first, second), "appears twice"),
    ]:
        with pytest.raises(StepError, match=words):
            build_pairs(*args, RULES)
    with pytest.raises(StepError, match="has no validator score"):
        build_pair(prompts[0], responses, {r.id: 1.0 for r in responses}, {}, RULES)
