"""Synthetic reward pairs: what each operator does, the split, and the counts."""

import json

import pytest

from align.core.hashing import unit_interval
from align.core.rows import RewardPair, SftExample, to_table
from reward.degrade import OPERATORS, degrade, reward_pairs

EN = "Water boils at one hundred degrees. It does so at sea level. On a mountain the air is thin, and it boils earlier."
KO = "물은 백 도에서 끓습니다. 해수면에서 그렇습니다. 높은 산에서는 공기가 옅어서 더 낮은 온도에서 끓습니다."


@pytest.mark.parametrize("text", [EN, KO])
def test_cut_ends_inside_a_sentence_at_30_to_70_percent(text: str) -> None:
    for seed in range(40):
        cut = degrade("cut", text, seed=seed, other_answer=None, lang="en")
        assert cut is not None and text.startswith(cut) and cut[-1] != "."
        assert 0.3 <= len(cut.split()) / len(text.split()) <= 0.7
    assert len({degrade("cut", text, seed=seed, other_answer=None, lang="en") for seed in range(40)}) > 2


def test_repeat_says_one_sentence_three_to_five_times() -> None:
    sentences = EN.replace(". ", ".|").split("|")
    for seed in range(20):
        text = degrade("repeat", EN, seed=seed, other_answer=None, lang="en")
        assert text is not None
        counts = sorted(text.count(s) for s in sentences)
        assert counts[:2] == [1, 1] and 3 <= counts[2] <= 5


def test_shuffle_keeps_the_words_and_loses_the_order() -> None:
    text = degrade("shuffle", EN, seed=3, other_answer=None, lang="en")
    assert text is not None and text != EN and sorted(text.split()) == sorted(EN.split())


def test_other_and_language_take_the_given_answer() -> None:
    assert degrade("other", EN, seed=0, other_answer="Paris is in France.", lang="en") == "Paris is in France."
    assert degrade("language", EN, seed=0, other_answer=KO, lang="en") == KO
    assert degrade("language", EN, seed=0, other_answer="Paris is in France.", lang="en") is None
    for name in ("other", "language"):
        assert degrade(name, EN, seed=0, other_answer=None, lang="en") is None
    assert degrade("other", EN, seed=0, other_answer=EN + "\n", lang="en") is None


def test_nothing_to_degrade_is_none_and_equal_seeds_are_equal() -> None:
    for name in OPERATORS:
        assert degrade(name, "Yes, of course.", seed=1, other_answer=EN, lang="en") is None
        assert degrade(name, EN, seed=5, other_answer=KO, lang="en") == degrade(name, EN, seed=5, other_answer=KO, lang="en")
    assert degrade("shuffle", "no no no no no no no", seed=1, other_answer=None, lang="en") is None
    with pytest.raises(ValueError, match="known are cut"):
        degrade("invert", EN, seed=1, other_answer=None, lang="en")


def example(index: int, lang: str = "en", parent: str | None = None, answer: str | None = None) -> SftExample:
    text = answer if answer is not None else f"Answer number {index} says this. " + (EN if lang == "en" else KO)
    return SftExample(
        id=f"e{index}", parent_id=parent or f"p{index}", topic_id="t", lang=lang, generation=0, task_type="open",
        license="CC0-1.0", pii="", messages=[
            {"role": "user", "content": f"Question {index}"}, {"role": "assistant", "content": "First turn."},
            {"role": "user", "content": "More?"}, {"role": "assistant", "content": text},
        ],
    )  # fmt: skip


EXAMPLES = [example(i, "ko" if i % 3 == 0 else "en") for i in range(60)]
SETTINGS = {"run_seed": 17, "operators": list(OPERATORS), "held_out": 0.3, "per_example": 3}


def test_pairs_add_up_and_split_by_prompt() -> None:
    both = [*EXAMPLES, *[example(100 + i, parent=f"p{i}") for i in range(0, 60, 2)], example(900, answer="Too short.")]
    pairs, rejects = reward_pairs(both, **SETTINGS)
    assert len(pairs) + len(rejects) == 3 * len(both)
    assert len({p.id for p in pairs}) == len(pairs) and len({r.id for r in rejects}) == len(rejects)
    sides: dict[str, set[str]] = {}
    for pair in pairs:
        sides.setdefault(pair.prompt_id, set()).add(pair.split)
    for prompt_id, side in sides.items():
        assert side == {"test" if unit_interval(17, "reward-split", prompt_id) < 0.3 else "train"}
    assert 0.15 < sum(side == {"test"} for side in sides.values()) / len(sides) < 0.45
    assert {p.subset for p in pairs} == set(OPERATORS)
    for pair in pairs:
        assert [m["role"] for m in pair.prompt] == ["user", "assistant", "user"]
        assert pair.chosen != pair.rejected
    to_table(RewardPair, pairs)


def test_no_answer_crosses_the_split() -> None:
    pairs, _ = reward_pairs(EXAMPLES, **{**SETTINGS, "operators": ["other", "language"], "per_example": 2})
    side = {p.chosen[0]["content"]: p.split for p in pairs}
    swapped = [p for p in pairs if p.rejected[0]["content"] in side]
    assert len(swapped) > 50 and all(side[p.rejected[0]["content"]] == p.split for p in swapped)


def test_pairs_depend_on_the_example_and_not_on_its_place() -> None:
    pairs, _ = reward_pairs(EXAMPLES, **SETTINGS)
    again, _ = reward_pairs(EXAMPLES[::-1], **SETTINGS)
    assert {p.id: p for p in pairs} == {p.id: p for p in again}
    assert {p.id for p in reward_pairs(EXAMPLES, **{**SETTINGS, "run_seed": 18})[0]} != {p.id for p in pairs}


def test_examples_that_give_no_pair_are_named() -> None:
    silent = SftExample(
        id="s", parent_id="ps", topic_id="t", lang="en", generation=0, task_type="open", license="CC0-1.0", pii="",
        messages=[{"role": "user", "content": "Hello?"}],
    )  # fmt: skip
    alone = [silent, example(1, answer="Too short.")]
    pairs, rejects = reward_pairs(alone, run_seed=1, operators=["cut"], held_out=0.0, per_example=2)
    assert not pairs and [r.reason for r in rejects] == ["no_assistant_turn"] * 2 + ["cannot_degrade"] * 2
    assert json.loads(rejects[2].raw)["example"] == "e1"
    with pytest.raises(ValueError, match="invert"):
        reward_pairs(alone, run_seed=1, operators=["invert"], held_out=0.0, per_example=1)
    with pytest.raises(ValueError, match="none"):
        reward_pairs(alone, run_seed=1, operators=[], held_out=0.0, per_example=1)
