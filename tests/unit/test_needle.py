"""Needle in a haystack: length, depth and place of the needle, exact retrieval, and the map of depth by length."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.errors import UserError
from align.core.language import detect
from align.evaluate.needle import NEEDLES, Needle, grade_needle, heat_map, needle_items
from align.evaluate.suite import Grade, Item

ROOT = Path(__file__).parents[2]
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
ROSE = Needle(name="rose", sentence="The rose is {value}.", question="Of which colour is the rose?", values=("red", "blue"))


def words(text: str) -> int:
    return len(text.split())


def shipped(lang: str) -> list[str]:
    lines = (ROOT / f"recipes/data/corpus/{lang}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def haystack(item: Item) -> str:
    return re.search(r"<(text|글)>\n(.*)\n</\1>", item.turns[0], re.S)[2]


def hidden(item: Item, lang: str = "en") -> str:
    needle = next(n for n in (*NEEDLES[lang], ROSE) if n.name == item.data["needle"])
    return needle.sentence.format(value=item.data["answer"])


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("count", [words, len, lambda text: len(text.encode()) // 3], ids=["words", "characters", "bytes"])
def test_prompts_are_as_long_as_asked_and_hold_the_needle_once(lang, count):
    texts, lengths = shipped(lang), (400, 900)
    items = needle_items(texts, lang, lengths, DEPTHS, count, seed=1)
    assert len(items) == len({item.id for item in items}) == 2 * 5 * 3
    longest = max(count(text) for text in re.split(r"(?<=[.!?])\s+", " ".join(texts)))
    for item in items:
        text = haystack(item)
        assert item.data["num_tokens"] == count(item.turns[0]) <= item.data["length"]
        assert item.data["length"] - item.data["num_tokens"] <= longest + 20
        assert text.count(hidden(item, lang)) == 1 and text.count(item.data["answer"]) == 1
        assert item.lang == lang == detect(item.turns[0]) and item.category == str(item.data["length"])
        question = next(n.question for n in NEEDLES[lang] if n.name == item.data["needle"])
        assert item.turns[0].index("</") < item.turns[0].index(question)
        json.dumps(dict(item.data))


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_the_needle_stands_between_sentences_at_its_depth(lang):
    for item in needle_items(shipped(lang), lang, (1500,), DEPTHS, words, seed=2):
        before, _, after = haystack(item).partition(hidden(item, lang))
        assert not before or re.search(r"[.!?]\s+$", before)
        assert not after or re.match(r" \S", after)
        share = len(before) / (len(before) + len(after))
        assert abs(share - item.data["actual_depth"]) < 0.01
        assert abs(item.data["actual_depth"] - item.data["depth"]) < 0.03
        if item.data["depth"] in (0, 1):
            assert not (before, after)[int(item.data["depth"])] and item.data["actual_depth"] == item.data["depth"]


def test_the_text_around_the_needle_is_that_of_the_documents():
    texts = ["One is here. Two is there.", "Three.\n\nFour is far."]
    (item,) = needle_items(texts, "en", (58,), (0.5,), words, seed=0, needles=[ROSE], repeat=True)
    flat = haystack(item).replace(f"{hidden(item)} ", "")
    assert flat.startswith("One is here. Two is there.\n\nThree. Four is far.\n\nOne is here.")
    assert item.data["repeated"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("ab .\n", max_size=60), min_size=1, max_size=4).filter(lambda t: any(s.strip() for s in t)),
    st.integers(120, 400),
    st.floats(0, 1),
)
def test_no_prompt_is_longer_than_asked(texts, length, depth):
    def count(text: str) -> int:  # neighbours share a token only where no space parts them
        return sum(-(-len(part) // 3) for part in re.findall(r"\s+|\S+", text))

    for item in needle_items(texts, "en", (length,), (depth,), count, seed=5, needles=[ROSE]):
        assert count(item.turns[0]) == item.data["num_tokens"] <= length
        assert haystack(item).count(hidden(item)) == 1


def test_a_place_that_costs_tokens_costs_sentences():
    def count(text: str) -> int:  # five tokens more where the needle follows a sentence
        return words(text) + 5 * (" The rose" in text)

    first, middle = needle_items(["Word. " * 300], "en", (100,), (0.0, 0.5), count, seed=0, needles=[ROSE])
    assert first.data["num_tokens"] == middle.data["num_tokens"] == 100
    assert haystack(first).count("Word.") == haystack(middle).count("Word.") + 5


def test_text_without_full_stops_is_cut():
    (item,) = needle_items(["word " * 5000], "en", (2000,), (0.5,), words, seed=0, needles=[ROSE])
    assert 1900 < item.data["num_tokens"] <= 2000 and not item.data["repeated"]


def test_facts_follow_from_the_seed_and_differ():
    texts = shipped("en")
    first = needle_items(texts, "en", (300,), DEPTHS, words, seed=1)
    assert first == needle_items(texts, "en", (300,), DEPTHS, words, seed=1)
    # Other lengths and depths leave an item as it is.
    more = {item.id: item for item in needle_items(texts, "en", (600, 300), (0.5,), words, seed=1)}
    assert all(more[item.id] == item for item in first if item.data["depth"] == 0.5)
    codes = {
        item.data["answer"]
        for seed in range(20)
        for item in needle_items(texts, "en", (300,), DEPTHS, words, seed=seed)
        if item.data["needle"] == "number"
    }
    assert len(codes) == 100 and all(re.fullmatch("[0-9]{7}", code) for code in codes)


def test_a_value_that_is_in_the_documents_is_not_drawn():
    text = "A RED apple fell. " * 40
    for seed in range(12):
        (item,) = needle_items([text], "en", (100,), (0.5,), words, seed=seed, needles=[ROSE])
        assert item.data["answer"] == "blue"
    with pytest.raises(UserError, match="the documents have every value of rose; give others"):
        needle_items([text + "It was blue. "], "en", (1000,), (0.5,), words, seed=0, needles=[ROSE])


def test_shipped_needles():
    for lang, needles in NEEDLES.items():
        assert len(needles) == len({needle.name for needle in needles}) == 3
        for needle in needles:
            assert needle.sentence.count("{value}") == 1 and "{" not in needle.question
            assert detect(needle.sentence.format(value="")) == lang == detect(needle.question)
            assert len(set(needle.values)) == len(needle.values) and len(needle.values) in (0, 16)
            # No value is part of another, or of the question: an answer that repeats it would count.
            assert all(sum(value in other for other in needle.values) == 1 for value in needle.values)
            assert not any(value in needle.question for value in needle.values)


def test_a_haystack_that_is_too_short_says_by_how_much():
    texts = ["One is here. Two is there."]
    needed = needle_items(texts, "en", (300,), (0.5,), words, seed=0, needles=[ROSE])[0]
    assert needed.data["repeated"]
    with pytest.raises(UserError, match=r"documents lack (\d+) tokens for a prompt of 300; add some") as error:
        needle_items(texts, "en", (300,), (0.5,), words, seed=0, needles=[ROSE], repeat=False)
    lacking = int(re.search(r"lack (\d+)", str(error.value))[1])
    enough = [*texts, " ".join(["Word."] * lacking)]
    (item,) = needle_items(enough, "en", (300,), (0.5,), words, seed=0, needles=[ROSE], repeat=False)
    assert item.data["num_tokens"] == 300 and not item.data["repeated"]
    with pytest.raises(UserError, match="documents lack 1 tokens"):
        needle_items([*texts, " ".join(["Word."] * (lacking - 1))], "en", (300,), (0.5,), words, 0, [ROSE], repeat=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": []}, "the documents have no text"),
        ({"texts": [" \n"]}, "the documents have no text"),
        ({"lengths": (10,)}, "a prompt without any text has 30 tokens (rose); give lengths above, not 10"),
        ({"lengths": ()}, "lengths are []; give at least one, and none twice"),
        ({"depths": (0.5, 0.5)}, "depths are [0.5, 0.5]; give at least one, and none twice"),
        ({"depths": (50,)}, "a depth of 50 is no share of the text; give numbers from 0 to 1"),
        ({"depths": (math.nan,)}, "a depth of nan"),
        ({"needles": []}, "needles are []"),
        ({"needles": [ROSE, ROSE]}, "needles are ['rose', 'rose']"),
    ],
)
def test_what_cannot_be_built_is_said(change, message):
    given_ = {"texts": ["One is here."], "lengths": (100,), "depths": (0.5,), "needles": [ROSE]} | change
    with pytest.raises(UserError) as error:
        needle_items(given_["texts"], "en", given_["lengths"], given_["depths"], words, 0, given_["needles"])
    assert message in str(error.value)


# Retrieval.
@pytest.mark.parametrize(
    ("fact", "answer", "value"),
    [
        ("Luang Prabang", "It meets in LUANG\n PRABANG.", 1),
        ("Luang Prabang", "It meets in Luang.", 0),
        ("4829137", "The code is 4829137.", 1),
        ("4829137", "４８２９１３７", 1),
        ("4829137", "14829137", 0),
        ("4829137", "48291370", 0),
        ("4829137", "번호는 4829137입니다.", 1),
        ("강릉", "강릉에서 열립니다.", 1),
        ("강릉", "강\u1105\u1173\u11bc", 1),  # the same syllable from its letters
        ("강릉", "속초입니다.", 0),
        ("okra", "Okras", 1),
        ("okra", "pokra", 0),
        ("quince", "", 0),
    ],
)
def test_retrieval_is_exact(fact, answer, value):
    item = Item(id="1", turns=("Which?",), data={"answer": fact})
    turns = [{"role": "user", "content": fact}, {"role": "assistant", "content": answer}]
    (grade,) = grade_needle(item, turns, "stop")
    assert (grade.metric, grade.value, grade.failure) == ("retrieval", value, "")


def test_the_prompt_itself_holds_the_answer():
    for item in needle_items(shipped("ko"), "ko", (300,), (0.5,), words, seed=1):
        assert grade_needle(item, [{"role": "assistant", "content": item.turns[0]}], "stop")[0].value == 1


# The map.
def result(depth: float, length: int, value: float) -> tuple[Item, Grade]:
    grade = Grade(metric="retrieval", value=value, failure="no_answer" if math.isnan(value) else "")
    return Item(id="1", turns=("Which?",), data={"depth": depth, "length": length}), grade


def test_the_map_has_counts_and_wilson_intervals():
    results = [result(0.0, 200, v) for v in (1, 1, 0, 1)] + [result(1.0, 100, v) for v in (0, math.nan)]
    found = heat_map([*results, result(0.0, 100, math.nan)])
    assert found["depths"] == [0.0, 1.0] and found["lengths"] == [100, 200]
    # Wilson (1927): (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), with z = 1.96.
    assert found["cells"] == [
        [
            {"mean": None, "low": None, "high": None, "graded": 0, "failed": 1},
            {"mean": 0.75, "low": 0.3006, "high": 0.9544, "graded": 4, "failed": 0},
        ],
        [
            {"mean": 0.0, "low": 0.0, "high": 0.7935, "graded": 1, "failed": 1},
            {"mean": None, "low": None, "high": None, "graded": 0, "failed": 0},
        ],
    ]
    json.dumps(found, allow_nan=False)
    assert heat_map([]) == {"depths": [], "lengths": [], "cells": []}
