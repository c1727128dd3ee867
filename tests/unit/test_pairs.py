"""From scores to pairs: every reason, strict joins, each strategy against a plain one, and what holds for any scores."""

import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align.core.errors import StepError
from align.core.hashing import content_id, short_hash, unit_interval
from align.core.language import detect
from align.core.rows import Agreement, Instruction, Preference, Reject, Response, Score, arrow_schema, to_table
from reward import pairs as pairs_module
from reward.agreement import MEASURES, all_measures
from reward.agreement_null import null_p_value, null_quantile
from reward.join import join_by_id
from reward.pairs import Built, PairRules, build_pairs, check_collected, take_share
from reward.selection import MATRIX_CELLS, OUTCOMES, SELECTS, USES
from tests.jobs import instruction

RULES = PairRules(agreement="gap", threshold=0.5)
NAN, INF = float("nan"), float("inf")
SEED = 17


def rules_of(**changes: object) -> PairRules:
    return PairRules(**{"agreement": "gap", "threshold": 0.5, **changes})  # type: ignore[arg-type]


def prompt(name: str = "p", lang: str = "en") -> Instruction:
    return instruction("Why?", lang=lang, id=name, topic_id=f"topic of {name}", split="train")


def response(index: int, name: str = "p", ids: list[int] | None = None, reason: str = "stop", text: str = "") -> Response:
    ids = [index + 10, 2] if ids is None else ids
    return Response(
        id=f"{name}-{index}", prompt_id=name, model="M0", sample_index=index, token_ids=ids,
        text=text or f"answer {index}", finish_reason=reason, num_tokens=len(ids),
    )  # fmt: skip


def scored(responses: Sequence[Response], model: str, values: Sequence[float]) -> list[Score]:
    return [
        Score(id=f"{model}-{r.id}", response_id=r.id, prompt_id=r.prompt_id, reward_model=model, score=value)
        for r, value in zip(responses, values, strict=True)
    ]


def build(prompts, responses, first: Sequence[Score], second: Sequence[Score], rules: PairRules = RULES) -> Built:
    return build_pairs(prompts, *tables(responses, first, second), rules, SEED)


def tables(responses, first, second):
    return to_table(Response, responses), to_table(Score, first), to_table(Score, second)


def one(first: list[float], second: list[float], rules: PairRules = RULES, **of: Mapping[str, object]) -> Built:
    """The slots of one prompt whose responses 0.. have these scores; `of` maps r0, r1, ... to replaced fields."""
    responses = [replace(response(i), **of.get(f"r{i}", {})) for i in range(len(first))]  # type: ignore[arg-type]
    return build([prompt()], responses, scored(responses, "a", first), scored(responses, "b", second), rules)


def pair_of(built: Built) -> tuple[str, str]:
    (made,) = built.pairs
    assert not built.rejects
    return made.chosen_id, made.rejected_id


def reason_of(built: Built) -> str:
    (made,) = built.rejects
    assert not built.pairs
    return made.reason


def strict_json(text: str) -> dict:
    return json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


def test_best_and_worst_become_the_pair() -> None:
    built = one([0.1, 3.0, -2.0, 1.0], [5.0, 9.0, 1.0, 6.0])
    assert pair_of(built) == ("p-1", "p-2")
    (made,) = built.pairs
    assert made.chosen == [{"role": "assistant", "content": "answer 1"}]
    assert made.rejected == [{"role": "assistant", "content": "answer 2"}]
    assert (made.chosen_token_ids, made.rejected_token_ids) == ([11, 2], [12, 2])
    assert (made.selector_chosen, made.selector_rejected, made.validator_chosen, made.validator_rejected) == (3, -2, 9, 1)
    assert made.agreement == 1.0 and made.kendall_tau == pytest.approx(1.0) and made.p_value == pytest.approx(1 / 12)
    assert (made.weight, made.flip_rate, made.source, made.split) == (1.0, 0.0, "sampled", "train")
    assert made.id == content_id("preference", "p", "p-1", "p-2") and made.chosen_model == "M0"
    assert made.prompt == [{"role": "user", "content": "Why?"}] and made.topic_id == "topic of p" and made.lang == "en"
    to_table(Preference, built.pairs)
    (row,) = built.agreements.to_pylist()
    assert row == asdict(
        Agreement(
            id=made.id, prompt_id="p", slot=0, outcome="kept", source="sampled", topic_id="topic of p", lang="en",
            num_responses=4, num_compared=4, chosen_id="p-1", rejected_id="p-2", selector_margin=5.0, validator_margin=8.0,
            gap=1.0, kendall=made.kendall_tau, spearman=1.0, sign=1.0, top1=1.0, bottom1=1.0, overlap=1.0,
            p_value=made.p_value,
        )
    )  # fmt: skip


KO = "꿀은 수분이 적어 상하지 않는다"
CUT = {"finish_reason": "length"}
FOUR = [1.0, 2.0, 3.0, 4.0]
REASONS = [
    ([1.0], [1.0], {}, {}, "fewer_than_two_responses"),
    ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], {}, {"r0": CUT, "r2": {"text": " \n"}}, "fewer_than_two_finished"),
    ([1.0, 2.0], [1.0, 2.0], {}, {"r0": {"token_ids": []}}, "fewer_than_two_finished"),
    ([1.0, 2.0], [1.0, 2.0], {}, {"r0": CUT, "r1": {"text": KO}}, "fewer_than_two_finished"),
    ([1.0, 2.0], [1.0, 2.0], {}, {"r1": {"text": KO}}, "wrong_language"),
    ([1.0, 2.0], [1.0, 2.0], {}, {"r0": {"token_ids": [7]}, "r1": {"token_ids": [7]}}, "all_responses_identical"),
    ([1.0, 2.0], [1.0, 2.0], {"max_length": 2}, {"r0": {"token_ids": [5, 6, 7]}, "r1": {"token_ids": [5, 6, 8]}},
     "all_responses_identical"),
    ([1.0, NAN, 3.0], [1.0, 2.0, 3.0], {}, {}, "nan_score"),
    ([1.0, 2.0, INF], [1.0, NAN, 3.0], {}, {}, "nan_score"),
    ([1.0, 2.0, INF], [1.0, 2.0, 3.0], {}, {}, "infinite_score"),
    ([1.0, 2.0], [-INF, 3.0], {}, {}, "infinite_score"),
    ([2.0, 2.0], [1.0, 3.0], {}, {}, "selector_tie"),
    ([2.0, 2.0], [1.0, 3.0], {"select": "length_matched"}, {}, "selector_tie"),
    ([1.0, 2.0], [1.0, 2.0], {"select": "length_matched"}, {"r0": {"num_tokens": 9}}, "no_length_match"),
    ([1.0, 2.0], [1.0, 2.0], {"select": "shortest_correct", "correct_score": 3.0}, {}, "none_correct"),
    ([1.0, 1.0], [1.0, 2.0], {"select": "shortest_correct", "correct_score": 1.0}, {}, "all_correct"),
    ([1.0, 2.0], [3.0, 3.0], {}, {}, "validator_tie"),
    ([1.0, 2.0], [3.0, 1.0], {}, {}, "validator_disagrees"),
    (FOUR, [4.0, 1.0, 9.0, 5.0], {}, {}, "agreement_below_threshold"),
    (FOUR, FOUR, {"threshold": None, "null_quantile": 0.95}, {}, "too_few_for_null_quantile"),
    (FOUR, [1.0, 4.0, 2.0, 3.0], {"threshold": None, "null_quantile": 0.9}, {}, "agreement_below_threshold"),
    ([1.0, 1.5], [1.0, 2.0], {"min_margin": 0.6}, {}, "margin_below_minimum"),
    ([1.0, 1.5], [1.0, 2.0], {"max_margin": 0.4}, {}, "margin_above_maximum"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second", "rules", "of", "reason"), REASONS)
def test_each_reason(first: list[float], second: list[float], rules: dict, of: dict, reason: str) -> None:
    built = one(first, second, rules_of(**rules), **of)
    assert reason_of(built) == reason
    (made,) = built.rejects
    assert made.id == "p" and made.topic_id == "topic of p"
    numbers = strict_json(made.raw)
    plain = {NAN: None, INF: "inf", -INF: "-inf"}
    for name, values in (("selector", first), ("validator", second)):
        expected = {f"p-{i}": None if math.isnan(v) else plain.get(v, v) for i, v in enumerate(values)}
        assert numbers[name] == expected
    (row,) = built.agreements.to_pylist()
    assert (row["id"], row["outcome"], row["num_responses"]) == ("p", reason, len(first))
    assert row["num_compared"] == len(numbers["compared"])
    late = OUTCOMES.index(reason) >= OUTCOMES.index("validator_tie")
    assert ({"chosen", "rejected", "p_value", *MEASURES} <= numbers.keys()) == late
    if late:
        assert [row[name] for name in MEASURES] == pytest.approx(
            [NAN if numbers[name] is None else numbers[name] for name in MEASURES], nan_ok=True
        )
        assert row["chosen_id"] and row["selector_margin"] > 0
    else:
        assert row["chosen_id"] == row["rejected_id"] == "" and math.isnan(row["gap"]) and math.isnan(row["p_value"])


def test_the_reasons_above_and_those_of_further_and_collected_pairs_are_all_there_are() -> None:
    elsewhere = {"kept", "no_further_pair", "label_disagrees_selector"}
    assert {reason for *_, reason in REASONS} == set(OUTCOMES) - elsewhere


def test_a_threshold_met_exactly_is_met_and_the_named_measure_decides() -> None:
    first, second = [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]
    values = {"gap": 0.5, "kendall": 1 / 3, "spearman": 0.5, "sign": 1.0, "top1": 0.0, "bottom1": 1.0, "overlap": 1.0}
    assert set(values) == set(MEASURES)
    for name, value in values.items():
        (made,) = one(first, second, PairRules(agreement=name, threshold=value)).pairs
        assert made.agreement == pytest.approx(value) and made.kendall_tau == pytest.approx(1 / 3), name
        if value < 1:
            stricter = PairRules(agreement=name, threshold=value + 1e-6)
            assert reason_of(one(first, second, stricter)) == "agreement_below_threshold", name
    below = PairRules(agreement="overlap", threshold=0.6)
    assert reason_of(one(first, second, replace(below, top_k=1))) == "agreement_below_threshold"


def test_a_null_quantile_asks_for_what_is_rare_at_this_number_of_responses() -> None:
    five = [1.0, 2.0, 3.0, 4.0, 5.0]
    rules = PairRules(agreement="gap", null_quantile=0.95)
    (made,) = one(five, five, rules).pairs  # 1 of 20 ordered pairs: 0.05, met exactly
    assert made.p_value == pytest.approx(0.05)
    assert reason_of(one(five, [2.0, 1.0, 3.0, 4.0, 5.0], rules)) == "agreement_below_threshold"
    assert reason_of(one(five, five, replace(rules, null_quantile=0.96))) == "too_few_for_null_quantile"
    kendall = one(five, [1.0, 2.0, 3.0, 5.0, 4.0], PairRules(agreement="kendall", null_quantile=0.95))
    assert kendall.pairs[0].p_value == pytest.approx(5 / 120)


def test_unfinished_responses_leave_the_ranks_too() -> None:
    first, second = [1.0, 2.0, 9.0], [1.0, 2.0, 0.0]
    built = one(first, second, RULES, r2=CUT)
    assert pair_of(built) == ("p-1", "p-0") and built.pairs[0].agreement == 1.0
    row = built.agreements.to_pylist()[0]
    assert (row["num_responses"], row["num_compared"]) == (3, 2)


@pytest.mark.parametrize(
    ("lang", "text", "fine"),
    [
        ("en", "Honey keeps.", True), ("en", KO, False), ("en", "{1: [2, 3]}", True), ("en", "“Café” — naïve…", True),
        ("en", "꿀 means honey in the Korean language", True), ("en", "蜂蜜は腐らない", True), ("en", "ㅋㅋㅋ", False),
        ("ko", KO, True), ("ko", "Honey keeps.", False), ("ko", "{1: [2, 3]}", True), ("ko", "“Honey” — keeps…", False),
        ("en", "abcdefghij 가나다라마", False), ("en", "abcdefghij 바사아자", True), ("ko", "abcdefghij 바사", False),
        ("ko", "abcdefghij 바사아", True),
        ("ko", "API 서버는 JSON 응답을 준다", True), ("ko", "x = 1", False), ("ko", "蜂蜜は腐らない", True),
    ],
)  # fmt: skip
def test_answers_in_the_other_language_are_left_out_unless_kept(lang: str, text: str, fine: bool) -> None:
    assert fine == (detect(text) in (lang, "other"))
    other = {"en": "Of course.", "ko": "그렇습니다."}[lang]
    responses = [response(0, text=other), response(1, text=text)]
    scores = scored(responses, "a", [1.0, 2.0]), scored(responses, "b", [1.0, 2.0])
    built = build([prompt(lang=lang)], responses, *scores)
    assert [r.reason for r in built.rejects] == ([] if fine else ["wrong_language"])
    assert build([prompt(lang=lang)], responses, *scores, rules_of(keep_wrong_language=True)).pairs


TEXTS = st.text(st.sampled_from("aZ é—가뀀힝ㄱ꿀中яＡ1\n𝐀"), max_size=12)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(TEXTS, st.sampled_from(["en", "ko", "fr"])), min_size=1, max_size=6), st.integers(0, 2))
def test_language_of_all_texts_at_once_is_that_of_each(texts: list[tuple[str, str]], skipped: int) -> None:
    prompts = [instruction("?", id=f"q{i:02}", answer_lang=lang) for i, (_, lang) in enumerate(texts)]
    responses = [response(0, p.id, text=f"x{text}") for p, (text, _) in zip(prompts, texts, strict=True)]
    responses = [replace(r, text=r.text[1:]) for r in responses]
    table = to_table(Response, [response(9, "before", text="가나다")] * skipped + responses).slice(skipped)
    scores = to_table(Score, scored(responses, "a", [0.0] * len(responses)))
    joined = join_by_id(prompts, table, scores, scores)
    finished = [bool(text.strip()) for text, _ in texts]
    wrong = pairs_module._in_other_language(joined, np.array(finished))
    expected = [
        f and lang != "fr" and detect(text) not in (lang, "other") for f, (text, lang) in zip(finished, texts, strict=True)
    ]  # of other languages nothing can be said
    assert wrong.tolist() == expected


def test_every_hangul_letter_is_seen() -> None:
    letters = [c for c in map(chr, range(0x80, 0x10000)) if not 0xD800 <= ord(c) < 0xE000 and detect(c) == "ko"]
    assert len(letters) > 11_000
    responses = [response(i, text=letter) for i, letter in enumerate(letters)]
    scores = to_table(Score, scored(responses, "a", [0.0] * len(responses)))
    joined = join_by_id([prompt()], to_table(Response, responses), scores, scores)
    assert pairs_module._in_other_language(joined, np.ones(len(letters), bool)).all()


def test_ties_and_duplicates_are_settled_by_the_lowest_id() -> None:
    assert pair_of(one([3.0, 3.0, 1.0, 1.0], [4.0, 3.0, 2.0, 1.0])) == ("p-0", "p-2")
    twins = one([1.0, 3.0, 3.0], [1.0, 2.0, 2.0], RULES, r2={"token_ids": [11, 2]})
    assert pair_of(twins) == ("p-1", "p-0") and twins.pairs[0].agreement == 1.0
    # Not at the same place in another prompt's responses, and not where only a part is equal.
    assert pair_of(one([1.0, 2.0], [1.0, 2.0], RULES, r0={"token_ids": [11]})) == ("p-1", "p-0")


# Strategies


def chosen_by(select: str, scores: list[float], **of: object) -> tuple[str, str]:
    rules = {name: of.pop(name) for name in ("sigmas", "length_tolerance", "correct_score") if name in of}
    return pair_of(one(scores, scores, rules_of(select=select, threshold=-1.0, **rules), **of))


def test_best_second_and_mean_minus_sigmas() -> None:
    assert chosen_by("best_second", [1.0, 5.0, 4.0, 5.0]) == ("p-1", "p-2")
    scores = [0.0, 4.0, *[10.0, 11.0] * 6, 12.0]  # mean 9.5, sd 3.2: the target 3.1 is nearer to 4 than to 0
    assert chosen_by("best_mu_minus_sigma", scores) == ("p-14", "p-1")
    scores = [4.0, 18.0, 7.0, 13.0, 3.0, 16.0, 19.0, 12.0]  # the target is 5.3 with ddof 1, and 5.7 with ddof 0
    assert chosen_by("best_mu_minus_sigma", scores, sigmas=1.0) == ("p-6", "p-0")
    # Equally near: the lower. Mean 3, target 3.
    assert chosen_by("best_mu_minus_sigma", [2.0, 4.0, 0.0, 6.0], sigmas=0.0) == ("p-3", "p-0")


@settings(deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=5))
def test_two_sigmas_below_the_mean_is_below_all_of_five(scores: list[int]) -> None:
    if len(set(scores)) > 1:
        assert statistics.mean(scores) - 2 * statistics.stdev(scores) < min(scores)
        values = [float(score) for score in scores]
        assert chosen_by("best_mu_minus_sigma", values) == chosen_by("best_worst", values)


def test_length_matched_takes_the_largest_difference_among_similar_lengths() -> None:
    lengths = {f"r{i}": {"num_tokens": n} for i, n in enumerate([10, 20, 9, 22, 30])}
    assert chosen_by("length_matched", [0.0, 9.0, 3.0, 5.0, 1.0], **lengths) == ("p-1", "p-3")
    assert chosen_by("length_matched", [0.0, 4.0, 5.0, 5.0, 1.0], **lengths) == ("p-2", "p-0")
    assert chosen_by("length_matched", [0.0, 9.0, 3.0, 5.0, 1.0], length_tolerance=1.0, **lengths) == ("p-1", "p-0")


def test_shortest_correct_against_the_worst_incorrect() -> None:
    lengths = {f"r{i}": {"num_tokens": n} for i, n in enumerate([30, 10, 10, 5, 7, 8])}
    assert chosen_by("shortest_correct", [9.0, 3.0, 4.0, 0.0, 0.0, 1.0], correct_score=3.0, **lengths) == ("p-2", "p-4")


def test_the_random_choice_is_uniform_and_the_same_again() -> None:
    prompts = [prompt(f"q{i}") for i in range(3000)]
    responses = [response(i, p.id) for p in prompts for i in range(4)]
    values = [[0.0, 3.0, 1.0, 2.0][r.sample_index] for r in responses]
    given = (prompts, responses, scored(responses, "a", values), scored(responses, "b", values))
    rules = rules_of(select="best_random", threshold=-1.0)
    built = build(*given, rules)
    assert {p.chosen_id[-1] for p in built.pairs} == {"1"}
    counts = [sum(p.rejected_id.endswith(f"-{i}") for p in built.pairs) for i in (0, 2, 3)]
    assert sum(counts) == 3000 and all(abs(n - 1000) < 130 for n in counts)  # 5 standard deviations
    other = build_pairs(prompts, *tables(*given[1:]), rules, SEED + 1)
    assert 0.2 < sum(a.rejected_id == b.rejected_id for a, b in zip(built.pairs, other.pairs, strict=True)) / 3000 < 0.5


# K pairs, soft use, held-out prompts


def test_pairs_of_a_prompt_share_no_response_and_every_slot_ends() -> None:
    scores = [1.0, 6.0, 2.0, 5.0, 3.0]
    built = one(scores, scores, rules_of(pairs_per_prompt=3, threshold=-1.0))
    assert [(p.chosen_id, p.rejected_id) for p in built.pairs] == [("p-1", "p-0"), ("p-3", "p-2")]
    assert [p.agreement for p in built.pairs] == [1.0, 0.5]  # ranks stay those among all five
    assert [(r.id, r.reason) for r in built.rejects] == [(content_id("pair", "p", 2), "no_further_pair")]
    assert [row["slot"] for row in built.agreements.to_pylist()] == [0, 1, 2]
    # A pair that the validator refuses takes its responses with it.
    refused = one(scores, [9.0, 0.0, 2.0, 5.0, 3.0], rules_of(pairs_per_prompt=2, threshold=-1.0))
    assert [r.reason for r in refused.rejects] == ["validator_disagrees"] and refused.rejects[0].id == "p"
    assert [(p.chosen_id, p.rejected_id) for p in refused.pairs] == [("p-3", "p-2")]
    both = one([1.0, NAN, 3.0], [1.0, 2.0, 3.0], rules_of(pairs_per_prompt=2))
    assert [r.reason for r in both.rejects] == ["nan_score", "nan_score"] and len({r.id for r in both.rejects}) == 2


def test_soft_use_keeps_what_the_threshold_would_drop() -> None:
    second = [4.0, 1.0, 9.0, 5.0]  # gap 1/3
    for use, weight, flip_rate in (("weight", 1 / 3, 0.0), ("flip_rate", 1.0, 1 / 3)):
        (made,) = one(FOUR, second, rules_of(use=use)).pairs
        assert (made.weight, made.flip_rate) == pytest.approx((weight, flip_rate))
        assert reason_of(one(FOUR, [9.0, 1.0, 4.0, 5.0], rules_of(use=use))) == "validator_disagrees"
        assert one(FOUR, second, PairRules(agreement="gap", use=use)).pairs  # and needs none


def test_held_out_prompts_are_a_stable_share() -> None:
    prompts = [replace(prompt(f"q{i}"), messages=[{"role": "user", "content": f"Question {i}?"}]) for i in range(2000)]
    responses = [response(i, p.id) for p in prompts for i in range(4)]
    values = [float(r.sample_index) for r in responses]
    first, second = scored(responses, "a", values), scored(responses, "b", values)
    rules = rules_of(held_out=0.1, pairs_per_prompt=2, threshold=-1.0)
    built = build(prompts, responses, first, second, rules)
    split = {p.prompt_id: p.split for p in built.pairs}
    assert all(p.split == split[p.prompt_id] for p in built.pairs) and len(built.pairs) == 4000
    share = {p.id: unit_interval(SEED, "pair-held-out", content_id("prompt", p.messages)) for p in prompts}
    assert split == {key: "test" if value < 0.1 else "train" for key, value in share.items()}
    assert 150 < list(split.values()).count("test") < 250
    alone = build(prompts[:5], responses[:20], first[:20], second[:20], rules)
    assert all(p.split == split[p.prompt_id] for p in alone.pairs)


def test_rules_refuse_nonsense() -> None:
    for bad in (
        {"select": "random"}, {"agreement": "rho"}, {"use": "drop "}, {"threshold": NAN}, {"threshold": 1.1},
        {"threshold": None}, {"null_quantile": 0.95}, {"threshold": None, "null_quantile": 1.0},
        {"threshold": None, "null_quantile": NAN}, {"use": "weight", "null_quantile": 0.9}, {"min_margin": -1.0},
        {"min_margin": NAN}, {"min_margin": 2.0, "max_margin": 1.0}, {"max_margin": NAN}, {"max_length": 0},
        {"pairs_per_prompt": 0}, {"top_k": 0}, {"sigmas": -1.0}, {"sigmas": INF}, {"length_tolerance": 1.5},
        {"select": "shortest_correct"}, {"select": "shortest_correct", "correct_score": NAN}, {"held_out": 1.0},
        {"held_out": NAN},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            rules_of(**bad)
            pytest.fail(str(bad))


# Any scores at all


@dataclass(frozen=True)
class Row:
    """A response with its scores."""

    response: Response
    first: float
    second: float

    @property
    def id(self) -> str:
        return self.response.id

    @property
    def length(self) -> int:
        return self.response.num_tokens


def naive_usable(asked: Instruction, rows: list[Row], rules: PairRules) -> tuple[list[Row], str | None]:
    if len(rows) < 2:
        return [], "fewer_than_two_responses"
    finished = [
        row for row in rows if row.response.token_ids and row.response.text.strip() and row.response.finish_reason == "stop"
    ]
    if len(finished) < 2:
        return [], "fewer_than_two_finished"
    if not rules.keep_wrong_language:
        finished = [row for row in finished if detect(row.response.text) in (asked.answer_lang, "other")]
        if len(finished) < 2:
            return [], "wrong_language"
    distinct: dict[tuple[int, ...], Row] = {}
    for row in sorted(finished, key=lambda row: row.id):
        distinct.setdefault(tuple(row.response.token_ids[: rules.max_length]), row)
    usable = list(distinct.values())
    if len(usable) < 2:
        return [], "all_responses_identical"
    if any(math.isnan(s) for row in usable for s in (row.first, row.second)):
        return usable, "nan_score"
    if any(math.isinf(s) for row in usable for s in (row.first, row.second)):
        return usable, "infinite_score"
    return usable, None


def naive_pick(rest: list[Row], rules: PairRules) -> tuple[Row, Row] | str:
    """`rest` is sorted by id, and `min` and `max` take the first of several."""
    if rules.select == "shortest_correct":
        correct = [row for row in rest if row.first >= rules.correct_score]  # type: ignore[operator]
        wrong = [row for row in rest if row not in correct]
        if not correct:
            return "none_correct"
        if not wrong:
            return "all_correct"
        return min(correct, key=lambda r: (r.length, -r.first)), min(wrong, key=lambda r: (r.first, -r.length))
    if not rest:
        return "selector_tie"
    best = max(rest, key=lambda r: r.first)
    below = [r for r in rest if r.first < best.first]
    if not below:
        return "selector_tie"
    if rules.select == "length_matched":
        matched = [
            (a, b)
            for a in rest
            for b in rest
            if a.first > b.first and abs(a.length - b.length) <= rules.length_tolerance * max(a.length, b.length) + 1e-9
        ]
        return max(matched, key=lambda ab: ab[0].first - ab[1].first) if matched else "no_length_match"
    if rules.select == "best_worst":
        return best, min(below, key=lambda r: r.first)
    if rules.select == "best_second":
        return best, max(below, key=lambda r: r.first)
    if rules.select == "best_random":
        return best, min(below, key=lambda r: short_hash(f"pair-random {SEED} {r.id}"))
    sd = statistics.stdev(r.first for r in rest)
    target = statistics.mean(r.first for r in rest) - rules.sigmas * sd
    nearest = min(abs(r.first - target) for r in below)
    return best, min((r for r in below if abs(r.first - target) <= nearest + 1e-9 * sd), key=lambda r: r.first)


def naive_judge(usable: list[Row], winner: Row, loser: Row, rules: PairRules) -> str:
    if winner.second <= loser.second:
        return "validator_tie" if winner.second == loser.second else "validator_disagrees"
    given = [r.first for r in usable], [r.second for r in usable], usable.index(winner), usable.index(loser)
    if rules.use == "drop":
        value = all_measures(*given, top_k=rules.top_k)[rules.agreement]
        if rules.threshold is not None and not value >= rules.threshold - 1e-12:
            return "agreement_below_threshold"
        if rules.null_quantile is not None:
            p_value = null_p_value(rules.agreement, *given, top_k=rules.top_k)
            if not p_value <= 1 - rules.null_quantile + 1e-12:
                reachable = null_quantile(rules.agreement, len(usable), rules.null_quantile, rules.top_k)
                return "too_few_for_null_quantile" if math.isnan(reachable) else "agreement_below_threshold"
    margin = winner.first - loser.first
    if margin < rules.min_margin:
        return "margin_below_minimum"
    return "margin_above_maximum" if rules.max_margin is not None and margin > rules.max_margin else "kept"


def naive(asked: Instruction, rows: list[Row], rules: PairRules) -> list[tuple[str, str, str]]:
    """(outcome, chosen id, rejected id) of each slot."""
    usable, why = naive_usable(asked, rows, rules)
    if why:
        return [(why, "", "")] * rules.pairs_per_prompt
    made, rest = [], usable
    for slot in range(rules.pairs_per_prompt):
        picked = naive_pick(rest, rules)
        if isinstance(picked, str):
            made.append(("no_further_pair" if slot else picked, "", ""))
            continue
        made.append((naive_judge(usable, *picked, rules), picked[0].id, picked[1].id))
        rest = [row for row in rest if row not in picked]
    return made


ORDINARY = st.sampled_from([0.0, -0.0, 1.0, 2.0, 2.0 + 1e-9, -3.5, 0.25, 7.0])
ODD = st.sampled_from([NAN, INF, -INF, 1e308, -1e308, 5e-324])
RESPONSES = st.tuples(
    st.one_of(ORDINARY, ORDINARY, ORDINARY, ORDINARY, ORDINARY, ODD),
    st.one_of(ORDINARY, ORDINARY, ORDINARY, ORDINARY, ORDINARY, ODD),
    st.integers(0, 9),  # token
    st.integers(0, 3),  # tokens
    st.integers(1, 12),  # length as recorded
    st.sampled_from(["stop", "stop", "stop", "stop", "length"]),
    st.sampled_from(["fine words", "fine words", "fine words", KO, "1 + 1", " "]),
)
CLEAN = st.tuples(
    ORDINARY, ORDINARY, st.integers(0, 40), st.just(2), st.integers(1, 12), st.just("stop"), st.just("fine words")
)
PROMPTS = st.lists(
    st.tuples(st.sampled_from(["en", "en", "ko"]), st.lists(st.one_of(RESPONSES, CLEAN), max_size=9))
    | st.tuples(st.just("en"), st.lists(CLEAN, min_size=4, max_size=9)),
    max_size=4,
)
ANY_RULES = st.builds(
    lambda by, **fields: PairRules(**by, **fields),
    by=st.sampled_from([{"threshold": t} for t in (-1.0, 0.0, 0.5, 1.0)] + [{"null_quantile": q} for q in (0.5, 0.9, 0.95)]),
    select=st.sampled_from(SELECTS),
    sigmas=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    length_tolerance=st.sampled_from([0.0, 0.1, 0.5]),
    correct_score=st.sampled_from([0.0, 1.0]),
    pairs_per_prompt=st.integers(1, 3),
    agreement=st.sampled_from(MEASURES),
    top_k=st.integers(1, 3),
    use=st.sampled_from(["drop", *USES]),
    min_margin=st.sampled_from([0.0, 0.0, 0.5]),
    max_margin=st.sampled_from([None, None, 4.0]),
    keep_wrong_language=st.booleans(),
    max_length=st.sampled_from([None, 1, 2]),
    held_out=st.sampled_from([0.0, 0.5]),
)


def made_up(drawn: list) -> tuple[list[Instruction], dict[str, list[Row]]]:
    prompts = [prompt(f"q{i}", lang) for i, (lang, _) in enumerate(drawn)]
    rows = {}
    for asked, (_, some) in zip(prompts, drawn, strict=True):
        rows[asked.id] = [
            Row(
                replace(
                    response(i, asked.id, ids=[token // 2, token, token][:size], reason=reason),
                    text=text, num_tokens=length,
                ),
                first, second,
            )
            for i, (first, second, token, size, length, reason, text) in enumerate(some)
        ]  # fmt: skip
    return prompts, rows


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=PROMPTS, rules=ANY_RULES, order=st.randoms(use_true_random=False))
def test_whatever_the_scores(drawn: list, rules: PairRules, order: random.Random) -> None:
    prompts, by_prompt = made_up(drawn)
    rows = [row for some in by_prompt.values() for row in some]
    responses = [row.response for row in rows]
    given = responses, scored(responses, "a", [r.first for r in rows]), scored(responses, "b", [r.second for r in rows])
    built = build(prompts, *given, rules)

    table = built.agreements.to_pylist()
    assert built.agreements.schema == arrow_schema(Agreement)
    slots = [(p.id, slot) for p in prompts for slot in range(rules.pairs_per_prompt)]
    assert [(row["prompt_id"], row["slot"]) for row in table] == slots
    assert len(built.pairs) + len(built.rejects) == len(slots)
    assert [row["id"] for row in table if row["outcome"] == "kept"] == [p.id for p in built.pairs]
    assert [(row["id"], row["outcome"]) for row in table if row["outcome"] != "kept"] == [
        (r.id, r.reason) for r in built.rejects
    ]
    assert len({row["id"] for row in table}) == len(slots)
    expected = [slot for p in prompts for slot in naive(p, by_prompt[p.id], rules)]
    assert [(row["outcome"], row["chosen_id"], row["rejected_id"]) for row in table] == expected

    of = {row.id: row for row in rows}
    used = [i for p in built.pairs for i in (p.chosen_id, p.rejected_id)]
    assert len(used) == len(set(used))
    for pair in built.pairs:
        chosen, rejected = of[pair.chosen_id], of[pair.rejected_id]
        assert chosen.response.prompt_id == rejected.response.prompt_id == pair.prompt_id
        assert pair.chosen_token_ids == chosen.response.token_ids and pair.rejected_token_ids == rejected.response.token_ids
        assert pair.chosen_token_ids[: rules.max_length] != pair.rejected_token_ids[: rules.max_length]
        assert pair.selector_chosen == chosen.first > rejected.first == pair.selector_rejected
        assert pair.validator_chosen == chosen.second > rejected.second == pair.validator_rejected
        assert 0 < pair.weight <= 1 and 0 <= pair.flip_rate < 0.5
    for reject in built.rejects:
        numbers = strict_json(reject.raw)
        assert numbers["selector"].keys() == numbers["validator"].keys()
    again = build(prompts, *(order.sample(part, len(part)) for part in given), rules)
    assert (again.pairs, again.rejects) == (built.pairs, built.rejects)
    assert str(again.agreements.to_pylist()) == str(table)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    drawn=st.lists(st.tuples(st.just("en"), st.lists(CLEAN, min_size=3, max_size=9)), min_size=1, max_size=3),
    select=st.sampled_from(SELECTS),
    sigmas=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_each_strategy_is_the_plain_one(drawn: list, select: str, sigmas: float) -> None:
    prompts, by_prompt = made_up(drawn)
    rules = rules_of(select=select, sigmas=sigmas, correct_score=1.0, threshold=-1.0, use="weight", length_tolerance=0.5)
    rows = [row for some in by_prompt.values() for row in some]
    responses = [row.response for row in rows]
    firsts, seconds = [r.first for r in rows], [r.second for r in rows]
    built = build(prompts, responses, scored(responses, "a", firsts), scored(responses, "b", seconds), rules)
    found = [(row["outcome"], row["chosen_id"], row["rejected_id"]) for row in built.agreements.to_pylist()]
    assert found == [slot for p in prompts for slot in naive(p, by_prompt[p.id], rules)]


def test_large_blocks_are_worked_on_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [prompt(f"q{i:02}") for i in range(40)]
    draw = random.Random(3)
    responses = [response(i, p.id) for p in prompts for i in range(1 + draw.randrange(8))]
    scores = [scored(responses, name, [draw.gauss(0, 1) for _ in responses]) for name in "ab"]
    whole = build(prompts, responses, *scores, rules_of(pairs_per_prompt=2))
    assert MATRIX_CELLS >= 40 * 8 * 8
    monkeypatch.setattr("reward.selection.MATRIX_CELLS", 3 * 8 * 8)
    parts = build(prompts, responses, *scores, rules_of(pairs_per_prompt=2))
    assert (parts.pairs, parts.rejects) == (whole.pairs, whole.rejects) and len(whole.pairs) > 5
    assert str(parts.agreements.to_pylist()) == str(whole.agreements.to_pylist())


# Joins


def samples_of_four() -> tuple[list[Instruction], list[Response], list[Score], list[Score]]:
    prompts = [prompt(f"q{i}") for i in range(5)]
    responses = [response(i, p.id) for p in prompts[:4] for i in range(3)]  # q4 has none
    values = [float(r.sample_index) for r in responses]
    return prompts, responses, scored(responses, "a", values), scored(responses, "b", values)


def test_many_prompts_join_by_id_and_add_up() -> None:
    prompts, responses, first, second = samples_of_four()
    random.Random(1).shuffle(second)
    second = [replace(s, score=-s.score) if s.prompt_id == "q2" else s for s in second]
    built = build(prompts, responses[::-1], first[::-1], second)
    assert [p.prompt_id for p in built.pairs] == ["q0", "q1", "q3"]
    assert [(r.id, r.reason) for r in built.rejects] == [("q2", "validator_disagrees"), ("q4", "fewer_than_two_responses")]
    assert all((p.chosen_id, p.rejected_id) == (f"{p.prompt_id}-2", f"{p.prompt_id}-0") for p in built.pairs)
    assert [row["prompt_id"] for row in built.agreements.to_pylist()] == ["q0", "q1", "q2", "q3", "q4"]


def test_nothing_comes_of_nothing() -> None:
    built = build([], [], [], [])
    assert (built.pairs, built.rejects, len(built.agreements)) == ([], [], 0)
    assert reason_of(build([prompt()], [], [], [])) == "fewer_than_two_responses"


def test_anything_that_does_not_join_is_an_error() -> None:
    prompts, responses = [prompt("q0")], [response(i, "q0") for i in range(3)]
    first, second = scored(responses, "a", [0.0, 1.0, 2.0]), scored(responses, "b", [0.0, 1.0, 2.0])
    stranger = Score(id="s", response_id="nobody", prompt_id="q0", reward_model="b", score=1.0)
    for args, words in [
        ((prompts, responses, first, second[:-1]), "validator: 1 responses without a score, the first is q0-2"),
        ((prompts, responses, [], second), "selector: 3 responses without a score, the first is q0-0"),
        ((prompts, responses, first, [*second, stranger]), "validator: a score for response nobody"),
        ((prompts, responses, first, [*second, second[1]]), "validator: two scores for response q0-1"),
        ((prompts, responses, [*first[:-1], replace(first[-1], reward_model="c")], second), "one reward model: a, c"),
        ((prompts, responses, [*first[:-1], replace(first[-1], prompt_id="q9")], second),
         "response q0-2 is scored for prompt q9, it answers q0"),
        ((prompts, [*responses, response(0, "q9")], first, second), "response q9-0 answers prompt q9"),
        ((prompts, [*responses, responses[1]], first, second), "response id q0-1 appears twice"),
        (([*prompts, *prompts], responses, first, second), "prompt id q0 appears twice"),
    ]:  # fmt: skip
        with pytest.raises(StepError, match=words):
            build(*args)


# Collected pairs


def collected(first: list[float], second: list[float], rules: PairRules = RULES, chosen: int = 1, **of: dict) -> Built:
    responses = [replace(response(i), **of.get(f"r{i}", {})) for i in range(len(first))]
    scores = scored(responses, "a", first), scored(responses, "b", second)
    return check_collected([prompt()], *tables(responses, *scores), {"p": f"p-{chosen}"}, rules, SEED, "prefs.jsonl")


@pytest.mark.parametrize(
    ("first", "second", "rules", "of", "reason"),
    [
        ([1.0, 2.0], [3.0, 4.0], {}, {}, "kept"),
        ([1.0, 2.0], [3.0, 4.0], {"threshold": None, "null_quantile": 0.95}, {}, "kept"),
        ([2.0, 1.0], [3.0, 4.0], {}, {}, "label_disagrees_selector"),
        ([2.0, 2.0], [3.0, 4.0], {}, {}, "selector_tie"),
        ([1.0, 2.0], [4.0, 3.0], {}, {}, "validator_disagrees"),
        ([1.0, 2.0], [4.0, 4.0], {}, {}, "validator_tie"),
        ([1.0, 2.0], [3.0, 4.0], {"min_margin": 1.5}, {}, "margin_below_minimum"),
        ([1.0, 2.0], [3.0, 4.0], {"max_margin": 0.5}, {}, "margin_above_maximum"),
        ([1.0, 2.0], [3.0, 4.0], {}, {"r0": CUT}, "fewer_than_two_finished"),
        ([1.0, 2.0], [3.0, 4.0], {}, {"r0": {"text": KO}}, "wrong_language"),
        ([1.0, 2.0], [3.0, 4.0], {}, {"r0": {"token_ids": [11, 2]}}, "all_responses_identical"),
        ([1.0, NAN], [3.0, 4.0], {}, {}, "nan_score"),
        ([1.0, INF], [3.0, 4.0], {}, {}, "infinite_score"),
        ([1.0], [3.0], {}, {}, "fewer_than_two_responses"),
    ],
)
def test_collected_pairs_are_kept_where_both_models_order_them_as_the_label(first, second, rules, of, reason) -> None:
    built = collected(first, second, rules_of(pairs_per_prompt=3, **rules), **of)
    (row,) = built.agreements.to_pylist()
    assert (row["outcome"], row["source"]) == (reason, "prefs.jsonl")
    if reason == "kept":
        (made,) = built.pairs
        assert (made.chosen_id, made.rejected_id, made.source, made.agreement) == ("p-1", "p-0", "prefs.jsonl", 1.0)
    else:
        assert reason_of(built) == reason
        numbers = strict_json(built.rejects[0].raw)
        named = reason in ("label_disagrees_selector", "selector_tie") or OUTCOMES.index(reason) > OUTCOMES.index(
            "all_correct"
        )
        assert ("chosen" in numbers) == named


def test_the_label_and_not_the_order_of_ids_says_who_won() -> None:
    assert pair_of(collected([2.0, 1.0], [4.0, 3.0], chosen=0)) == ("p-0", "p-1")
    assert reason_of(collected([1.0, 2.0], [3.0, 4.0], chosen=0)) == "label_disagrees_selector"
    with pytest.raises(StepError, match=r"prefs.jsonl: prompt p has a label that names none"):
        collected([1.0, 2.0], [3.0, 4.0], chosen=7)
    with pytest.raises(StepError, match="prompt p has more than two responses"):
        collected([1.0, 2.0, 3.0], [3.0, 4.0, 5.0])


@pytest.mark.parametrize(
    ("share", "num_sampled", "kept"),
    [(0.0, 9, 0), (0.1, 9, 1), (0.1, 18, 2), (0.25, 10, 3), (0.5, 7, 7), (0.5, 50, 20), (1.0, 0, 20), (0.9, 0, 0)],
)
def test_collected_pairs_are_at_most_a_share_of_all(share: float, num_sampled: int, kept: int) -> None:
    prompts = [prompt(f"c{i:02}") for i in range(21)]
    responses = [response(i, p.id) for p in prompts for i in range(2)]
    values = [float(r.sample_index) for r in responses]
    values[:2] = [1.0, 0.0]  # one that the label and the models see differently
    scores = scored(responses, "a", values), scored(responses, "b", values)
    labels = {p.id: f"{p.id}-1" for p in prompts}
    whole = check_collected(prompts, *tables(responses, *scores), labels, RULES, SEED, "prefs.jsonl")
    assert len(whole.pairs) == 20
    cut = take_share(num_sampled, whole, share, SEED)
    assert len(cut.pairs) == kept and kept <= share * (kept + num_sampled) + 1e-9
    assert len(cut.pairs) + len(cut.rejects) == 21
    assert [p for p in whole.pairs if p in cut.pairs] == cut.pairs
    beyond = [r for r in cut.rejects if r.reason == "beyond_share"]
    assert {r.id for r in beyond} | {p.prompt_id for p in cut.pairs} == {p.id for p in prompts[1:]}
    outcomes = {row["id"]: row["outcome"] for row in cut.agreements.to_pylist()}
    assert outcomes == {p.id: "kept" for p in cut.pairs} | {r.id: r.reason for r in cut.rejects}
    for reject in beyond:
        numbers = strict_json(reject.raw)
        assert numbers["selector"] == {f"{reject.id}-0": 0.0, f"{reject.id}-1": 1.0} and numbers["gap"] == 1.0
    assert isinstance(beyond[0] if beyond else cut.rejects[0], Reject)
    if 0 < kept < 20:
        more = take_share(num_sampled + 1 + num_sampled, whole, share, SEED)
        assert {p.id for p in cut.pairs} <= {p.id for p in more.pairs}  # the same ones, and some
        assert [p.id for p in take_share(num_sampled, whole, share, SEED + 1).pairs] != [p.id for p in cut.pairs]


def test_a_share_is_from_0_to_1() -> None:
    empty = build([], [], [], [])
    for share in (-0.1, 1.1, NAN):
        with pytest.raises(ValueError, match="share"):
            take_share(3, empty, share, SEED)
