"""Held-out numbers of reward models by hand, and `align reward-bench` with models whose answers are known."""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.core.errors import StepError, UserError
from align.reward_bench import chance_correlation, reward_bench
from reward.held_out import (
    REWARD_BENCH_SECTIONS,
    ScoredPair,
    accuracy,
    bootstrap_interval,
    held_out_metrics,
    rank_correlation,
    sections,
)
from reward.interface import Group


def pair(number: int, margin: float, *, lengths: tuple[int, int] = (10, 10), **more: str) -> ScoredPair:
    known = {"prompt_id": f"p{number}", "subset": "file", "lang": "en", **more}
    return ScoredPair(
        id=f"x{number}", chosen_score=margin, rejected_score=0.0, chosen_length=lengths[0], rejected_length=lengths[1],
        **known,
    )  # fmt: skip


PAIRS = [
    pair(0, 2.0, lengths=(20, 18)),  # a tenth of the longer one: matched
    pair(1, -1.0, lengths=(18, 20), lang="ko"),
    pair(2, 0.0, lengths=(20, 17), subset="cut"),  # tied
    pair(3, math.nan, lengths=(30, 60)),
    pair(4, 0.5, lengths=(60, 30), lang="ko", subset="cut"),
    pair(5, 0.5, lengths=(7, 7)),
]


def test_ties_and_nan_are_wrong_and_length_is_beside_it() -> None:
    found = held_out_metrics(PAIRS, seed=1)
    assert (found["pairs_test"], found["accuracy"], found["tie_share"]) == (6, 0.5, round(1 / 6, 4))
    assert (found["pairs_not_scored"], found["mean_margin"]) == (1, round(2 / 5, 4))
    assert (found["pairs_length_matched"], found["accuracy_length_matched"]) == (3, round(2 / 3, 4))
    assert found["longer_is_chosen"] == 0.5  # equal lengths are wrong too
    assert found["accuracy_by_subset"] == {"cut": 0.5, "file": 0.5} and found["accuracy_by_lang"] == {"en": 0.5, "ko": 0.5}
    assert found["log_loss"] == round(sum(math.log(1 + math.exp(-m)) for m in (2, -1, 0, 0.5, 0.5)) / 5, 4)
    margins, gaps = [2.0, -1.0, 0.0, 0.5, 0.5], [2, -2, 3, 30, 0]
    assert found["margin_length_correlation"] == round(rank_correlation(margins, gaps), 4)
    assert "sections" not in found
    json.dumps(found, allow_nan=False)


def test_nothing_held_out_is_none_and_no_error() -> None:
    found = held_out_metrics([], seed=1)
    assert found["pairs_test"] == 0 and found["accuracy_by_subset"] == {} and "sections" not in found
    for key in ("accuracy", "accuracy_interval", "longer_is_chosen", "mean_margin", "log_loss", "margin_length_correlation"):
        assert found[key] is None


def test_interval_is_the_binomials_where_pairs_are_independent() -> None:
    hits = [1.0] * 280 + [0.0] * 120
    low, high = bootstrap_interval(hits, [f"p{i}" for i in range(400)], seed=3)
    half = 1.96 * math.sqrt(0.7 * 0.3 / 400)
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.006)
    assert bootstrap_interval(hits, [f"p{i}" for i in range(400)], seed=3) == (low, high)


def test_pairs_of_one_prompt_count_as_one() -> None:
    """40 prompts with ten equal pairs each tell as much as 40 pairs; and prompts with more pairs weigh more."""
    hits = [float(i % 2) for i in range(40)]
    alone = bootstrap_interval(hits, [str(i) for i in range(40)], seed=3)
    tenfold = bootstrap_interval(
        [h for h in hits for _ in range(10)], [str(i) for i in range(40) for _ in range(10)], seed=3
    )
    assert tenfold[1] - tenfold[0] == pytest.approx(alone[1] - alone[0], abs=0.03)
    spread = bootstrap_interval([h for h in hits for _ in range(10)], [str(i) for i in range(400)], seed=3)
    assert spread[1] - spread[0] < 0.4 * (tenfold[1] - tenfold[0])
    uneven = bootstrap_interval([1.0] * 30 + [0.0, 1.0] * 10, ["a"] * 30 + [str(i) for i in range(20)], seed=3)
    assert uneven[0] < 0.8 < uneven[1]


def test_all_right_is_not_certain() -> None:
    names = [str(i) for i in range(30)]
    low, high = bootstrap_interval([1.0] * 60, names * 2, seed=1)
    assert high == 1.0 and low**30 == pytest.approx(0.025)
    assert bootstrap_interval([0.0] * 30, names, seed=1) == pytest.approx((0.0, 1 - low))
    assert all(math.isnan(x) for x in bootstrap_interval([1.0, 0.0], ["a", "a"], seed=1))
    assert accuracy([pair(0, 1.0)], seed=1)["accuracy_interval"] is None


def test_rank_correlation_is_scipys() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(2)
    first = rng.integers(0, 9, 200).astype(float)
    second = first + rng.integers(-6, 7, 200)
    assert rank_correlation(first, second) == pytest.approx(float(spearmanr(first, second).statistic), abs=1e-12)
    assert math.isnan(rank_correlation([1.0, 1.0], [1.0, 2.0])) and math.isnan(rank_correlation([], []))


def test_sections_are_rewardbenchs() -> None:
    weights = {subset: weight for section in REWARD_BENCH_SECTIONS.values() for subset, weight in section.items()}
    assert len(weights) == 23 and sum(weights.values()) - 984 + 447 == 2985  # its number of pairs
    code = {f"hep-{language}": 0.5 for language in ("cpp", "go", "java", "js", "python", "rust")}
    assert sections({**code, "math-prm": 1.0}) == {"Reasoning": 0.75}
    found = sections({"mt-bench-easy": 1.0, "mt-bench-med": 0.0, "donotanswer": 0.2})
    assert found == {"Chat": round(28 / 68, 4), "Safety": 0.2}
    assert sections({"math-prm": 1.0, "mine": 1.0}) == {} and sections({}) == {}
    pairs = [pair(0, 1.0, subset="math-prm"), pair(1, -1.0, subset="hep-go")]
    assert held_out_metrics(pairs, seed=1)["sections"] == {"Reasoning": round(984 / (984 + 164), 4)}


class Rule:
    """A reward model that is a function of the answer; it answers last groups first."""

    def __init__(self, score_of: Any) -> None:
        self.score_of, self.seen = score_of, []

    def score(self, groups: Sequence[Group]) -> Iterator[tuple[int, list[float]]]:
        for place in reversed(range(len(groups))):
            self.seen.append(groups[place])
            yield place, [self.score_of(text) for text in groups[place].responses]


def write(path: Path, count: int = 40, subsets: tuple[str, ...] = ("math-prm", "hep-go")) -> Path:
    """Chosen answers say "good"; three of four are longer than the rejected one, the last as long."""
    rows = [
        {"prompt": f"Question {i}", "chosen": "good" + " word" * (i % 4), "rejected": "evil",
         "subset": subsets[i % len(subsets)]}
        for i in range(count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no pair\n")
    return path


def test_few_pairs_do_not_speak_of_length(tmp_path: Path) -> None:
    few = reward_bench(Rule(len), write(tmp_path / "pairs.jsonl", count=3), say=lambda line: None)
    assert few["margin_length_correlation"] == 1.0 and not any("prefers longer" in line for line in few["warnings"])
    # 0.63 for ten: the table of critical values of Pearson's r, two-sided 5 %.
    assert chance_correlation(10) == pytest.approx(0.63, abs=0.01) and chance_correlation(3) == 1.0


def test_a_model_of_length_alone_is_seen_through(tmp_path: Path, capsys: Any) -> None:
    lines: list[str] = []
    out = tmp_path / "out.json"
    found = reward_bench(Rule(len), write(tmp_path / "pairs.jsonl"), json_path=out, say=lines.append)
    assert found["accuracy"] == found["longer_is_chosen"] == 0.75 and found["tie_share"] == 0.25
    assert found["accuracy_length_matched"] == 0.0 and found["pairs_length_matched"] == 10
    assert found["margin_length_correlation"] == 1.0 and found["length_unit"] == "characters"
    assert "always prefers the longer answer would have 0.750" in "\n".join(lines)
    warnings = [line for line in lines if line.startswith("warning")]
    assert len(warnings) == 3 and "25.0% of pairs tie" in warnings[0] and "prefers longer answers" in warnings[2]
    assert lines[0].endswith("hold no usable pair: 1 not_json; the first begins 'no pair'") and found["rejects"] == {
        "not_json": 1
    }
    # i % 4 is even for math-prm: half of its pairs tie, and none of hep-go's.
    assert found["subsets"]["math-prm"]["accuracy"] == 0.5 and found["subsets"]["hep-go"]["accuracy"] == 1.0
    table = {line.split()[0]: line.split() for line in lines}
    assert table["math-prm"] == ["math-prm", "20", "0.500", *table["math-prm"][3:6], "0.000", "of", "10", "0.500"]
    assert table["all"][1:3] == ["40", "0.750"]
    reasoning = (984 * 0.5 + 164) / (984 + 164)
    assert any("Reasoning" in line and f"{reasoning:.3f}  (2 of 7 subsets)" in line for line in lines)
    assert not any("mean of the sections" in line for line in lines)
    body = json.loads(out.read_text())
    assert body == found and [p["id"] for p in body["pairs"]] == [p["id"] for p in found["pairs"]]
    assert body["pairs"][1] | {"id": ""} == {
        "id": "", "subset": "hep-go", "chosen_score": 9, "rejected_score": 4, "chosen_length": 9, "rejected_length": 4,
    }  # fmt: skip
    assert "score pairs: 40/40 pairs" in capsys.readouterr().out


def test_a_good_model_has_no_warnings_and_every_section_is_averaged(tmp_path: Path) -> None:
    lines: list[str] = []
    subsets = ("math-prm", "mt-bench-easy", "donotanswer", "llmbar-natural")
    rule = Rule(lambda text: float("good" in text) - ("word word word" in text))
    found = reward_bench(rule, write(tmp_path / "pairs.jsonl", 60, subsets), say=lines.append)
    # i % 4 names both the subset and the number of words, so one subset of four is all wrong (tied).
    assert found["sections"] == {"Chat": 1.0, "Chat Hard": 0.0, "Safety": 1.0, "Reasoning": 1.0}
    assert any(line.startswith("mean of the sections") and line.endswith(" 0.750") for line in lines)
    perfect = reward_bench(Rule(lambda text: float("good" in text)), tmp_path / "pairs.jsonl", limit=5, say=lines.append)
    assert perfect["accuracy"] == 1.0 and perfect["warnings"] == [] and perfect["pairs_test"] == 5
    assert perfect["accuracy_interval"] == [round(0.025 ** (1 / 5), 4), 1.0]


def test_groups_are_pairs_and_unscored_answers_are_wrong(tmp_path: Path) -> None:
    rule = Rule(lambda text: math.nan if text.endswith("word word word") else -math.inf if text == "evil" else 1.0)
    found = reward_bench(rule, write(tmp_path / "pairs.jsonl", 4), json_path=tmp_path / "out.json", say=lambda _: None)
    assert found["accuracy"] == 0.75 and found["pairs_not_scored"] == 1
    assert any("1 pairs could not be scored" in line for line in found["warnings"])
    last = json.loads((tmp_path / "out.json").read_text())["pairs"][3]
    assert last["chosen_score"] is None and last["rejected_score"] is None
    (group,) = [g for g in rule.seen if g.responses[0] == "good word"]
    assert group.prompt == [{"role": "user", "content": "Question 1"}] and group.responses == ("good word", "evil")
    assert len(set(group.response_ids)) == 2 and group.num_tokens == (9, 4)


def test_what_the_user_can_mend_is_said_before_scoring(tmp_path: Path) -> None:
    path, rule = write(tmp_path / "pairs.jsonl"), Rule(len)
    with pytest.raises(UserError, match="nowhere is not there"):
        reward_bench(rule, path, json_path=tmp_path / "nowhere" / "out.json", say=print)
    with pytest.raises(UserError, match="at least 1"):
        reward_bench(rule, path, limit=0, say=print)
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    with pytest.raises(UserError, match=r"no usable pair \(1 chosen_equals_rejected"):
        reward_bench(rule, path, say=print)
    with pytest.raises(UserError, match="no such folder"):
        reward_bench(tmp_path / "nothing", write(path), say=print)
    assert rule.seen == []


def test_a_model_that_loses_scores_is_a_failure(tmp_path: Path) -> None:
    class Lazy(Rule):
        def score(self, groups: Sequence[Group]) -> Iterator[tuple[int, list[float]]]:
            yield from super().score(groups[1:])

    path = write(tmp_path / "pairs.jsonl")
    broken = Rule(len)
    broken.score = lambda groups: iter([(0, [1.0])])  # type: ignore[method-assign]
    with pytest.raises(StepError, match="1 scores for 2 answers"):
        reward_bench(broken, path, say=print)
    with pytest.raises(StepError, match="scored 39 of 40 pairs"):
        reward_bench(Lazy(len), path, say=print)


def test_a_folder_is_loaded_and_its_tokens_are_counted(tmp_path: Path, tiny_llama: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1)
    model.save_pretrained(folder)
    path = write(tmp_path / "pairs.jsonl", 5)
    with path.open("a") as handle:
        handle.write(json.dumps({"prompt": "Question 6", "chosen": "물 good", "rejected": "evil"}))
    found = reward_bench(folder, path, max_length=128, say=lambda _: None)
    assert found["length_unit"] == "tokens" and found["pairs_test"] == 6 and found["pairs_not_scored"] == 0
    assert (found["model"], found["precision"], found["max_length"]) == (str(folder), "fp32", 128)
    assert [found["pairs"][i]["chosen_length"] for i in (0, 1, 5)] == [4, 9, 8]  # its tokens are bytes

    from reward.classifier import Classifier

    loaded = Classifier.load(folder, precision="fp32", max_length=128)
    ids = loaded.encoder.encode([{"role": "user", "content": "Question 1"}], "good word").ids
    assert found["pairs"][1]["chosen_score"] == pytest.approx(loaded.score_ids([ids])[0], abs=1e-4)
