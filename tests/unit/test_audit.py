"""The audit: its numbers against plain loops, planted faults by name, honest judges without a failure."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from align.core.errors import StepError, UserError
from align.core.rows import Agreement, Instruction, Response, Score, to_table
from align.recipe.reward import AUDIT_FINDINGS
from data_gen.eliminators import is_refusal
from reward.agreement import all_measures
from reward.audit import FAILING, LIMITS, Pair, audit, findings, histogram, pair_of, wilson
from reward.audit_tables import Points, Rule, grouped, kept_by_chance, points_of, response_numbers, text_hashes
from reward.pairs import build_pairs
from reward.selection import PairRules

GAP = Rule("gap", 0.5)
Judge = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (quality, tokens) of a prompt's responses -> scores


def table(responses: Sequence[tuple[str, str, str, int, str]], scores: Sequence[float]) -> tuple[pa.Table, pa.Table]:
    """Responses (id, prompt, model, tokens, text) and one model's scores as Arrow tables."""
    ids, prompts, models, tokens, texts = zip(*responses, strict=True)
    columns = {"id": ids, "prompt_id": prompts, "model": models, "num_tokens": tokens}
    given_texts = pa.table({"text": pa.array(texts)})
    return (
        pa.table(columns).append_column("text_hash", text_hashes(given_texts["text"])),
        pa.table({"response_id": ids, "score": pa.array(scores, pa.float64())}),
    )


def points(groups: Sequence[tuple[Sequence[float], Sequence[float], Sequence[int], Sequence[str]]]) -> Points:
    """Points of prompts given as (selector, validator, tokens, texts)."""
    rows = [
        (f"r{i}-{j}", f"p{i}", f"m{j % 2}", tokens[j], texts[j])
        for i, (selector, _, tokens, texts) in enumerate(groups)
        for j in range(len(selector))
    ]
    responses, selector = table(rows, [s for group in groups for s in group[0]])
    _, validator = table(rows, [s for group in groups for s in group[1]])
    return points_of(responses, selector, validator)


def world(
    selector: Judge,
    validator: Judge,
    *,
    prompts: int = 80,
    n: int = 6,
    rules: PairRules | None = None,
    seed: int = 0,
    topic: Callable[[int], str] = lambda i: f"topic-{i % 3}",
    text: Callable[[int, int], str] = lambda i, j: "",
) -> dict[str, Any]:
    """An audit of pairs that `reward.pairs` built from responses of known quality and length."""  # fmt: skip
    rng = np.random.default_rng(seed)
    rules = rules or PairRules(agreement="gap", threshold=0.5)
    asked, rows, scores = [], [], {"selector": [], "validator": []}  # type: ignore[var-annotated]
    for i in range(prompts):
        asked.append(
            Instruction(
                id=f"p{i}", parent_id="", topic_id=topic(i), knowledge_id="", messages=[{"role": "user", "content": "?"}],
                generation=0, operator="", task_type="", persona="", level="", difficulty=0.0, judged_difficulty=0.0,
                judged_quality=0.0, lang="en", answer_lang="en", split="M1", license="", pii="",
            )
        )  # fmt: skip
        quality, tokens = rng.normal(size=n), rng.permutation(np.arange(5, 60))[:n]
        for j in range(n):
            ids = [i * n + j + 2, *range(tokens[j] - 1)]
            words = text(i, j) or " ".join(f"w{rng.integers(10**9)}" for _ in range(7))
            rows.append(
                Response(
                    id=f"r{i}-{j}", prompt_id=f"p{i}", model=f"M{j % 2}", sample_index=j, token_ids=ids, text=words,
                    finish_reason="stop", num_tokens=len(ids),
                )
            )  # fmt: skip
        for name, judge in (("selector", selector), ("validator", validator)):
            scores[name] += [
                Score(id=f"{name}{i}-{j}", response_id=f"r{i}-{j}", prompt_id=f"p{i}", reward_model=name, score=float(s))
                for j, s in enumerate(judge(quality, tokens))
            ]
    responses, first, second = to_table(Response, rows), *(to_table(Score, scores[r]) for r in ("selector", "validator"))
    built = build_pairs(asked, responses, first, second, rules, 0)
    hashed = responses.append_column("text_hash", text_hashes(responses["text"]))
    rule = Rule(rules.agreement, rules.threshold, rules.null_quantile, rules.top_k)
    found = audit(
        map(pair_of, built.pairs), built.agreements, points_of(hashed, first, second), refuses=is_refusal, rule=rule,
        on_policy={"M1"},
    )  # fmt: skip
    json.dumps(found, allow_nan=False)
    return found


def noisy(seed: int, noise: float = 0.7) -> Judge:
    rng = np.random.default_rng(seed)
    return lambda quality, tokens: quality + rng.normal(0, noise, len(quality))


def length(quality: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return tokens.astype(float)


def names(audited: dict[str, Any], severity: str = "fail", **limits: float | None) -> set[str]:
    return {one.name for one in findings(audited, limits) if one.severity == severity}


# -- planted faults -------------------------------------------------------------------------------------------------------


def test_honest_judges_have_no_finding() -> None:
    assert findings(world(noisy(1), noisy(2))) == []


@pytest.mark.parametrize("judge", [length, lambda q, t: -np.log(t), lambda q, t: t * 3.0 + 0.3 * q])
def test_a_judge_of_length_is_named(judge: Judge) -> None:
    assert names(world(judge, noisy(2), rules=PairRules(agreement="sign", threshold=0.0))) >= {"length_only_selector"}
    assert names(world(noisy(1), judge)) >= {"length_only_validator"}


def test_a_judge_that_leans_on_length_is_a_warning() -> None:
    found = world(lambda q, t: t / 16 + 0.6 * q, noisy(2))
    assert 0.7 < found["responses"]["spearman_length"]["selector"]["mean"] < 0.95
    assert "length_only_selector" in names(found, "warn")


def test_a_constant_judge_is_named() -> None:
    found = world(noisy(1), lambda q, t: np.ones(len(q)))
    assert [f.name for f in findings(found)] == ["nothing_kept", "constant_validator"], "no list of lost subjects as well"
    half = world(lambda q, t: np.full(len(q), 1.0 if q[0] > -0.1 else q), noisy(1))
    assert "constant_selector" in names(half, "warn"), "a verifiable reward may be unanimous on easy prompts"
    found = world(lambda q, t: np.full(len(q), 1.0 if q[0] > -2 else q), noisy(1))
    assert "constant_selector" in names(found)


def test_ties_of_one_text_are_no_fault() -> None:
    same = points(
        [([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [4, 4, 4], ["a", "a", "a"])] * 1 + [([1.0, 2.0], [1.0, 1.0], [3, 4], "ab")]
    )
    tied = response_numbers(same, grouped(same), ["en", "en"])["tied"]
    assert tied["selector"] == {"pairs": 0.0, "whole_prompts": 0.0, "prompts": 1}
    assert tied["validator"] == {"pairs": 1.0, "whole_prompts": 1.0, "prompts": 1}


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_an_echo_is_named(noise: float) -> None:
    kept: list[np.ndarray] = []
    first = noisy(1)

    def selector(quality: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        kept.append(first(quality, tokens))
        return kept[-1]

    rng = np.random.default_rng(5)
    found = world(selector, lambda q, t: kept[-1] + rng.normal(0, noise * kept[-1].std(), len(q)))
    assert names(found) == {"validator_echoes_selector"}
    identical = "The validator's scores are the selector's" in findings(found)[0].sentence
    assert identical == (noise == 0.0)


def test_a_rescaled_echo_is_named_by_ranks() -> None:
    kept: list[np.ndarray] = []

    def selector(quality: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        kept.append(quality)
        return quality

    found = world(selector, lambda q, t: np.exp(6 * kept[-1]))
    assert found["responses"]["between"]["all"]["pearson_without_length"] < 0.8
    assert names(found) == {"validator_echoes_selector"}


def test_two_judges_of_one_length_are_no_echo_of_each_other_but_of_length() -> None:
    """With length removed nothing is left to correlate, and rounding must not be read as agreement."""
    found = world(lambda q, t: t + 0.0, lambda q, t: t**3 / 7)
    assert found["responses"]["between"]["all"]["spearman_without_length"] is None
    assert {"length_only_selector", "length_only_validator"} <= names(found)
    found = world(lambda q, t: 1.7 * np.log1p(t) + 1e-5 * q, lambda q, t: 0.9 * np.log1p(t) + 1e-5 * q)
    assert found["responses"]["between"]["all"]["pearson"] == pytest.approx(1.0)
    assert found["responses"]["between"]["all"]["pearson_without_length"] is None


def test_an_unrelated_validator_is_named_and_few_prompts_only_warn() -> None:
    random = np.random.default_rng(4)
    found = world(noisy(1), lambda q, t: random.normal(size=len(q)), prompts=600)
    agreement = found["agreement"]
    assert agreement["passed_share"] == pytest.approx(agreement["chance_share"], abs=0.05)  # three standard errors
    assert "agreement_is_chance" in names(found) | names(found, "warn")
    against = world(noisy(1), lambda q, t: -q + random.normal(0, 2, len(q)), prompts=100)
    assert "agreement_is_chance" in names(against)
    few = world(noisy(1), lambda q, t: -q + random.normal(0, 2, len(q)), prompts=28)
    assert "agreement_is_chance" not in names(few) and "agreement_is_chance" in names(few, "warn")


def test_a_score_that_is_no_function_of_the_text_is_named() -> None:
    rng = np.random.default_rng(6)
    texts = ["a", "b", "c", "a"]
    quality = [rng.normal(size=3) for _ in range(40)]
    same = points([(q[[0, 1, 2, 0]], q[[0, 1, 2, 0]] * 2, [3, 4, 5, 3], texts) for q in quality])
    assert response_numbers(same, grouped(same), [""] * 40)["repeated_texts"] == {"texts": 40, "selector": 0, "validator": 0}
    other = points([(q[[0, 1, 2, 0]], q[[0, 1, 2, 0]] + [0, 0, 0, 0.1], [3, 4, 5, 3], texts) for q in quality])
    found = audit([a_pair()], None, other, refuses=is_refusal)
    assert found["responses"]["repeated_texts"] == {"texts": 40, "selector": 0, "validator": 40}
    assert "not_a_function_of_text" in names(found, "warn")
    jitter = points([(q[[0, 1, 2, 0]], q[[0, 1, 2, 0]] + [0, 0, 0, 1e-5], [3, 4, 5, 3], texts) for q in quality])
    assert response_numbers(jitter, grouped(jitter), [""] * 40)["repeated_texts"]["validator"] == 0
    # The same text under another prompt may have another score.
    apart = points([([1.0, 2.0], [i, 0.0], [3, 4], ["a", f"b{i}"]) for i in range(5)])
    assert response_numbers(apart, grouped(apart), [""] * 5)["repeated_texts"]["texts"] == 0
    alike = points([([i, i], [-i, -i], [3, 3], ["a", "a"]) for i in range(5)])
    counted = response_numbers(alike, grouped(alike), [""] * 5)["repeated_texts"]
    assert counted == {"texts": 5, "selector": 0, "validator": 0}


def test_lost_subjects_and_few_kept() -> None:
    rng = np.random.default_rng(7)
    count = iter(range(10**6))

    def validator(quality: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return -quality if next(count) % 3 == 0 else quality + rng.normal(0, 0.7, len(quality))

    found = world(noisy(1), validator)
    assert found["kept"]["by_topic"]["topic-0"]["kept"] == 0
    assert "topic-0 (validator_disagrees 27)" in next(f.sentence for f in findings(found) if f.name == "subject_lost")
    assert sum(entry["asked"] for entry in found["kept"]["by_topic"].values()) == 80
    rare = world(noisy(1), noisy(2), rules=PairRules(agreement="gap", threshold=0.5, min_margin=4.8))
    assert 0 < rare["kept"]["share"] < 0.05 and "few_kept" in names(rare)
    assert rare["kept"]["reasons"]["margin_below_minimum"] > 0


# -- pairs ----------------------------------------------------------------------------------------------------------------


def a_pair(**changes: Any) -> Pair:
    given_pair = Pair(
        prompt_id="p", chosen="yes it is so", rejected="no", chosen_length=4, rejected_length=3, lang="en", source="sampled",
        split="train",
    )  # fmt: skip
    return replace(given_pair, **changes)


def of_pairs(pairs: Sequence[Pair], **more: Any) -> dict[str, Any]:
    return audit(pairs, None, None, refuses=is_refusal, **more)


def test_lengths_and_their_finding() -> None:
    pairs = [a_pair(prompt_id=str(i), chosen_length=10 + (i % 5), rejected_length=12) for i in range(100)]
    found = of_pairs(pairs)["pairs"]["length"]
    assert (found["unequal"], found["chosen_longer"], found["mean_gap"], found["median_gap"]) == (80, 0.5, 0.0, 0.0)
    longer = [a_pair(prompt_id=str(i), chosen_length=20 if i < 90 else 1, rejected_length=12) for i in range(100)]
    assert names(of_pairs(longer), "warn") == {"chosen_longer"}
    assert names(of_pairs([a_pair(prompt_id=str(i)) for i in range(100)])) == {"chosen_longer"}
    # Three of three are no proof.
    assert findings(of_pairs([a_pair(prompt_id=str(i)) for i in range(3)])) == []


def test_wilson_interval() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # as statsmodels' proportion_confint
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1
    assert wilson(0, 0) == (None, None)


def test_openings_count_prompts_and_not_pairs() -> None:
    texts = ["Sure! Here is a list of X", "sure, here is a LIST: y", "Something else that is quite long", "short one"]
    pairs = [a_pair(prompt_id=str(i), chosen=text) for i, text in enumerate(texts)]
    pairs.append(a_pair(prompt_id="2", chosen=texts[2]))  # a second pair of prompt 2
    opening = of_pairs(pairs)["pairs"]["openings"]["chosen"]
    assert opening == {
        "count": 3, "shared": pytest.approx(2 / 3, abs=1e-5),
        "top": [{"text": "sure here is a list", "share": pytest.approx(2 / 3, abs=1e-5)}],
    }  # fmt: skip
    many = [a_pair(prompt_id=str(i), chosen=texts[0] if i < 3 else f"w{i} a b c d", chosen_length=3) for i in range(20)]
    assert names(of_pairs(many), "warn") == {"duplicate_openings"}
    assert names(of_pairs(many), "warn", duplicate_openings=0.2) == set()


def test_refusals_of_any_language_tag() -> None:
    declined = "I'm sorry, but I cannot help with that."
    pairs = [a_pair(prompt_id=str(i), chosen=declined, chosen_length=3, lang="other") for i in range(5)]
    pairs += [a_pair(prompt_id=str(5 + i), chosen_length=3) for i in range(5)]
    found = of_pairs(pairs)
    assert found["pairs"]["refusals"] == {"read": 10, "chosen": 0.5, "rejected": 0.0}
    assert "refusals_chosen" in names(found, "warn")
    turned = of_pairs([a_pair(prompt_id=str(i), rejected=declined, chosen_length=3) for i in range(10)])
    assert turned["pairs"]["refusals"]["rejected"] == 1.0 and "refusals_chosen" not in names(turned, "warn")
    most = [
        a_pair(prompt_id=str(i), chosen=declined if i < 2 else "so", rejected=declined, chosen_length=3) for i in range(9)
    ]
    assert "refusals_chosen" not in names(of_pairs(most), "warn")


def test_refusals_are_read_in_an_unbiased_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward.audit.REFUSALS_READ", 200)
    pairs = (a_pair(prompt_id=str(i), chosen="no" if i < 1000 else "yes") for i in range(4000))
    found = audit(pairs, None, None, refuses=lambda text, lang: text == "no")["pairs"]["refusals"]
    assert found["read"] == 200 and 0.17 < found["chosen"] < 0.33  # 0.25 with three standard errors of 0.03


def test_on_policy_sources_and_models() -> None:
    pairs = [
        a_pair(chosen_model="M1", rejected_model="M1"),
        a_pair(chosen_model="M1", rejected_model="M0", split="test"),
        a_pair(chosen_model="M0", rejected_model="M1", source="file.jsonl", lang="ko"),
        a_pair(chosen_model="M0", rejected_model="M0"),
    ]
    found = of_pairs(pairs, on_policy={"M1"})
    assert found["pairs"]["on_policy"] == {"chosen": 0.5, "rejected": 0.5, "both": 0.25}
    assert found["pairs"]["held_out"] == 1
    assert found["pairs"]["by_source"] == {"sampled": 3, "file.jsonl": 1} and found["pairs"]["by_lang"] == {"en": 3, "ko": 1}
    assert found["models"] == {"M0": {"chosen": 2, "rejected": 2}, "M1": {"chosen": 2, "rejected": 2}}
    assert of_pairs(pairs)["pairs"]["on_policy"] is None
    of_run = world(noisy(1), noisy(2))
    assert {name: counts["responses"] for name, counts in of_run["models"].items()} == {"M0": 240, "M1": 240}
    assert sum(counts["chosen"] for counts in of_run["models"].values()) == of_run["pairs"]["count"]


def test_a_collected_file_that_is_cut_to_its_share_is_no_failure() -> None:
    blank = Agreement(
        id="a", prompt_id="p", slot=0, outcome="kept", source="sampled", topic_id="t", lang="en", num_responses=4,
        num_compared=4, chosen_id="c", rejected_id="r", selector_margin=1.0, validator_margin=1.0, gap=1.0, kendall=1.0,
        spearman=1.0, sign=1.0, top1=1.0, bottom1=1.0, overlap=1.0, p_value=0.1,
    )  # fmt: skip
    rows = [replace(blank, prompt_id=f"p{i}") for i in range(20)]
    rows += [replace(blank, prompt_id=f"f{i}", outcome="beyond_share", source="file", topic_id="") for i in range(980)]
    pairs = [a_pair(prompt_id=f"p{i}", chosen_length=3 - i % 2) for i in range(19)]
    found = audit(pairs, to_table(Agreement, rows), None, refuses=is_refusal, rule=GAP)
    assert findings(found) == []
    assert found["kept"]["share"] == 1.0 and found["kept"]["dropped_later"] == 1
    assert found["kept"]["by_file"] == {"file": {"asked": 980, "kept": 0, "reasons": {"beyond_share": 980}}}
    assert found["agreement"]["compared"] == 20


# -- limits ---------------------------------------------------------------------------------------------------------------


def test_limits_may_be_moved_and_switched_off() -> None:
    found = world(length, noisy(2), rules=PairRules(agreement="sign", threshold=0.0))
    assert "length_only_selector" not in names(found, length_only_selector=None) | names(
        found, "warn", length_only_selector=None
    )
    honest = world(noisy(1), noisy(2))
    assert names(honest, agreement_is_chance=0.1) == {"agreement_is_chance"}
    assert names(honest, few_kept=1.0) == {"few_kept"}
    with pytest.raises(UserError, match="no finding length_only; there are length_only_selector"):
        findings(honest, {"length_only": 1.0})


def test_recipes_know_the_findings_that_can_fail() -> None:
    assert set(AUDIT_FINDINGS) == set(FAILING) < set(LIMITS)


# -- numbers against plain loops --------------------------------------------------------------------------------------------


def test_within_prompt_numbers_against_scipy() -> None:
    rng = np.random.default_rng(8)
    groups = []
    for i in range(60):
        n = 2 + i % 7
        selector, tokens = rng.integers(0, 4, n).astype(float), rng.integers(1, 9, n)
        groups.append((selector, selector + rng.normal(size=n) + tokens, tokens, [f"t{j}" for j in range(n)]))
    found = points(groups)
    numbers = response_numbers(found, grouped(found), ["ko" if i % 2 else "en" for i in range(60)])
    for role, place in (("selector", 0), ("validator", 1)):
        each = [spearmanr(g[place], g[2])[0] for g in groups if len(set(g[place])) > 1 and len(set(g[2])) > 1]
        assert numbers["spearman_length"][role] == {"mean": pytest.approx(np.mean(each), abs=1e-6), "prompts": len(each)}
        pairs = [(a, b) for g in groups for k, a in enumerate(g[place]) for b in g[place][k + 1 :]]
        assert numbers["tied"][role]["pairs"] == pytest.approx(np.mean([a == b for a, b in pairs]), abs=1e-6)
    for lang, some in (("all", groups), ("en", groups[::2]), ("ko", groups[1::2])):
        s, v, t = (np.concatenate([np.asarray(f(g)) - np.mean(f(g)) for g in some]) for f in (
            lambda g: g[0], lambda g: g[1], lambda g: np.log1p(g[2]),
        ))  # fmt: skip
        assert numbers["between"][lang]["pearson"] == pytest.approx(np.corrcoef(s, v)[0, 1], abs=1e-6)
        left = [x - t * (x @ t) / (t @ t) for x in (s, v)]
        expected = np.corrcoef(*left)[0, 1]
        assert numbers["between"][lang]["pearson_without_length"] == pytest.approx(expected, abs=1e-6)
    assert sum(numbers["by_length"]["counts"]) == sum(map(sum, numbers["both"]["counts"])) == len(found.prompt)


def test_score_by_length_is_where_the_length_is() -> None:
    found = points([([0.0, 1.0], [1.0, 0.0], [100, 400], "ab")] * 20)
    by_length = response_numbers(found, grouped(found), [""] * 20)["by_length"]
    assert by_length["log2_edges"][4:9] == [-1.0, -0.5, 0.0, 0.5, 1.0]
    filled = {
        edge: by_length["selector"][i] for i, edge in enumerate(by_length["log2_edges"][:-1]) if by_length["counts"][i]
    }
    sd = math.sqrt(0.5)  # of two scores one apart
    assert filled == {-1.0: pytest.approx(-0.5 / sd, abs=1e-5), 0.5: pytest.approx(0.5 / sd, abs=1e-5)}


def test_the_picture_of_both_models_has_the_selector_first() -> None:
    found = points([([0.0, 0.0, 0.0, 3.0], [0.0, 1.0, 0.0, 1.0], [1, 2, 3, 4], "abcd")] * 10)
    counts = np.array(response_numbers(found, grouped(found), [""] * 10)["both"]["counts"])
    high, low = np.flatnonzero(counts.sum(axis=1))[[-1, 0]]
    assert (counts[high].sum(), counts[low].sum()) == (10, 30)  # one of four is far above the others under the selector
    assert sorted(counts.sum(axis=0)[counts.sum(axis=0) > 0]) == [20, 20]


def test_rows_in_any_order_and_by_id() -> None:
    rng = np.random.default_rng(9)
    rows = [(f"r{i}-{j}", f"p{i}", f"m{j}", int(rng.integers(1, 99)), f"t{j % 3}") for i in range(30) for j in range(4)]
    responses, selector = table(rows, rng.normal(size=120))
    _, validator = table(rows, rng.normal(size=120))
    plain = points_of(responses, selector, validator)
    mixed = points_of(*(t.take(rng.permutation(120)) for t in (responses, selector, validator)))
    langs = [{p: "a" if int(p[1:]) < 9 else "b" for p in x.prompt_ids.to_pylist()}[p] for x in (plain, mixed) for p in (
        x.prompt_ids.to_pylist())]  # fmt: skip
    first, second = (response_numbers(x, grouped(x), part) for x, part in ((plain, langs[:30]), (mixed, langs[30:])))
    assert json.loads(json.dumps(first), parse_float=lambda v: round(float(v), 5)) == json.loads(
        json.dumps(second), parse_float=lambda v: round(float(v), 5)
    )
    with pytest.raises(StepError, match="1 of 120 responses have no validator score"):
        points_of(responses, selector, validator.slice(1))


def test_scores_that_are_not_finite_are_left_out_and_counted() -> None:
    found = points([([1.0, math.nan, 3.0], [1.0, 2.0, math.inf], [1, 2, 3], "abc"), ([1.0, 2.0], [2.0, 1.0], [1, 2], "ab")])
    numbers = response_numbers(found, grouped(found), ["", ""])
    assert (numbers["responses"], numbers["not_finite"], numbers["prompts_compared"]) == (5, 2, 1)
    assert numbers["spearman_length"]["selector"] == {"mean": 1.0, "prompts": 1}


def test_histogram_keeps_every_finite_value() -> None:
    values = np.array([*np.linspace(0, 1, 98), 1e9, -1e9, math.nan])
    found = histogram(values)
    assert found is not None and sum(found["counts"]) == 100 and found["edges"][-1] < 1e8
    assert (found["low"], found["high"]) == (-1e9, 1e9)
    whole = histogram(np.array([*np.linspace(0.2, 1.0, 19), 2.148]))
    assert whole is not None and (whole["edges"][0], whole["edges"][-1]) == (0.2, 2.148) and whole["counts"][-1] == 1
    assert histogram(np.array([math.nan])) is None
    assert sum((histogram(np.array([2.0, 2.0])) or {})["counts"]) == 2


# -- chance -----------------------------------------------------------------------------------------------------------------


def simple(n: int, validator: Callable[[np.random.Generator], np.ndarray], prompts: int = 3000) -> Points:
    rng = np.random.default_rng(10)
    return points([(rng.normal(size=n), validator(rng), [1] * n, [str(j) for j in range(n)]) for _ in range(prompts)])


def test_chance_is_the_closed_form_without_ties() -> None:
    found = grouped(simple(8, lambda rng: rng.normal(size=8)))
    # P(rank difference >= 4) = sum over m = 4..7 of (8 - m) / 56
    assert kept_by_chance(found, GAP) == pytest.approx(10 / 56, abs=0.012)
    assert kept_by_chance(found, Rule("gap", None, 0.95)) == pytest.approx(1 / 56, abs=0.006)
    assert kept_by_chance(found, Rule("sign")) == pytest.approx(0.5, abs=0.015)
    assert kept_by_chance(found, Rule("top1")) == pytest.approx(0.5, abs=0.015)  # no threshold: the sign decides
    compared = np.full(3000, 3)
    assert kept_by_chance(found, GAP, compared) == pytest.approx(0.5, abs=0.015)  # 1 or 2 ranks of 2 apart
    assert kept_by_chance(found, Rule("gap", 1.0), compared) == pytest.approx(1 / 6, abs=0.012)


def test_chance_knows_the_validators_ties() -> None:
    binary = grouped(simple(5, lambda rng: rng.permutation([0.0, 0.0, 0.0, 0.0, 1.0])))
    assert kept_by_chance(binary, Rule("sign")) == pytest.approx(0.2, abs=0.015)  # the one at the winner's place
    constant = grouped(simple(5, lambda rng: np.ones(5)))
    assert kept_by_chance(constant, Rule("sign")) == 0.0
    assert kept_by_chance(constant, Rule("kendall", 0.0)) is None


def test_agreement_histogram_and_its_null_count_the_same_pairs() -> None:
    found = world(noisy(1), noisy(2), n=5)
    agreement = found["agreement"]
    assert sum(agreement["kept"]) == found["pairs"]["count"]
    assert sum(agreement["kept"]) + sum(agreement["dropped"]) == agreement["compared"]
    assert sum(agreement["null"]) == pytest.approx(agreement["compared"], abs=1e-3)
    # At n = 5 an unrelated validator has gap 1 in 1 of 20, which the last bin holds.
    assert agreement["null"][-1] == pytest.approx(agreement["compared"] / 20, abs=1e-4)
    assert agreement["chance_among_kept"] == pytest.approx(agreement["chance_share"] / agreement["passed_share"], abs=1e-5)


# -- anything ---------------------------------------------------------------------------------------------------------------

SCORE = st.sampled_from([0.0, 1.0, -1.0, 2.5, math.nan, math.inf, -math.inf, 1e300, 1e-300, 1e99])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(SCORE, SCORE, st.integers(0, 5), st.sampled_from("abc")), min_size=1, max_size=5), max_size=6
    )
)
def test_any_scores_give_strict_json(groups: list[list[tuple[float, float, int, str]]]) -> None:
    some = [group for group in groups if group]
    found = points([tuple(zip(*group, strict=True)) for group in some]) if some else None  # type: ignore[misc]
    pairs = [a_pair(selector_margin=group[0][0], validator_margin=group[0][1]) for group in some]
    result = audit(pairs, None, found, refuses=is_refusal)
    json.dumps(result, allow_nan=False)
    for one in findings(result):
        assert math.isfinite(one.value) and one.sentence.endswith(".")


def test_agreements_need_their_rule() -> None:
    with pytest.raises(ValueError, match="rule"):
        audit([], to_table(Agreement, []), None, refuses=is_refusal)
    nothing = audit([], to_table(Agreement, []), None, refuses=is_refusal, rule=GAP)
    json.dumps(nothing, allow_nan=False)
    assert names(nothing) == {"nothing_kept"}


# -- two real judges --------------------------------------------------------------------------------------------------------


def real(
    path: Path, selector: Callable[[list[Any]], Any], validator: Callable[[list[Any]], Any], rule: Rule = GAP
) -> dict[str, Any]:
    """The audit of 400 prompts with 8 or 9 models' answers, lengths in words."""
    groups, rows, pairs = [], [], []
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        answers = json.loads(line)["responses"]
        first, second = np.asarray(selector(answers), float), np.asarray(validator(answers), float)
        texts = [answer["text"] for answer in answers]
        sizes = [len(text.split()) for text in texts]
        groups.append((first, second, sizes, texts))
        best, worst = int(first.argmax()), int(first.argmin())
        measures = all_measures(first, second, best, worst)
        kept = first[best] > first[worst] and second[best] > second[worst] and measures[rule.measure] >= rule.threshold
        rows.append({
            "prompt_id": f"p{i}", "outcome": "kept" if kept else "validator_disagrees", "source": "sampled", "topic_id": "",
            "lang": "en", "slot": 0, "num_compared": len(answers), "selector_margin": first[best] - first[worst], **measures,
        })  # fmt: skip
        if kept:
            pairs.append(
                a_pair(prompt_id=f"p{i}", chosen=texts[best], rejected=texts[worst], chosen_length=sizes[best],
                       rejected_length=sizes[worst])
            )  # fmt: skip
    return audit(pairs, pa.Table.from_pylist(rows), points(groups), refuses=lambda text, lang: False, rule=rule)


def judge(name: str) -> Callable[[list[Any]], Any]:
    return lambda answers: [answer[name] for answer in answers]


@pytest.mark.shared_data
def test_real_judges_pass_and_planted_ones_do_not(shared_data: Path) -> None:
    path = shared_data / "candidates" / "alpaca_eval_two_judges.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    first, second = judge("judge_a"), judge("judge_b")
    assert names(real(path, first, second)) == names(real(path, second, first)) == set()
    assert names(real(path, second, first, Rule("kendall", 0.2))) == set()
    words = lambda answers: [len(answer["text"].split()) for answer in answers]  # noqa: E731
    chars = lambda answers: [len(answer["text"]) for answer in answers]  # noqa: E731
    assert "length_only_selector" in names(real(path, words, second))
    assert "length_only_validator" in names(real(path, second, chars))
    assert "constant_validator" in names(real(path, second, lambda answers: [1.0] * len(answers)))
    rng = np.random.default_rng(0)

    def copy(noise: float) -> Callable[[list[Any]], Any]:
        def scores(answers: list[Any]) -> Any:
            given_scores = np.asarray(second(answers))
            return given_scores + rng.normal(0, noise * given_scores.std(), len(answers))

        return scores

    for noise in (0.0, 0.1, 0.3, 0.4):
        assert "validator_echoes_selector" in names(real(path, second, copy(noise))), noise
    # From here on it looks like an honest weak judge.
    weak = real(path, second, copy(1.0))
    assert "validator_echoes_selector" not in names(weak) | names(weak, "warn")
    unrelated = real(path, second, lambda answers: rng.normal(size=len(answers)))
    assert "agreement_is_chance" in names(unrelated) | names(unrelated, "warn")
