"""Novelty: ROUGE-L by hand and by definition, the nearest accepted text against brute force, few pairs compared."""

from __future__ import annotations

import random
import unicodedata
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rapidfuzz import process

import data_gen.novelty
from align.core.errors import UserError
from data_gen.novelty import Novelty, rouge_l

VOCABULARY = {
    "en": ["the", "a", "of", "write", "honey", "bees", "nectar", "photosynthesis", "19", "x"],
    "ko": ["다", "이", "하", "요", "꿀", "벌", "뷁", "react", "19", "x"],
}


def rouge_by_definition(a: list[str], b: list[str]) -> float:
    """Of token lists: the table of longest common subsequences, then F1 from precision and recall."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    common = table[-1][-1]
    if not common:
        return 0.0
    precision, recall = common / len(a), common / len(b)
    return 2 * precision * recall / (precision + recall)


@st.composite
def streams(draw: st.DrawFn) -> tuple[str, list[list[str]]]:
    """A language, and token lists most of which are edits of one another: deletions, insertions, moves and repeats."""
    lang = draw(st.sampled_from(sorted(VOCABULARY)))
    size = draw(st.integers(1, len(VOCABULARY[lang])))
    chance = draw(st.randoms(use_true_random=False))
    token = VOCABULARY[lang][-size:]
    texts = [[chance.choice(token) for _ in range(chance.randrange(40))] for _ in range(draw(st.integers(1, 4)))]
    for _ in range(draw(st.integers(0, 16))):
        text = list(chance.choice(texts))
        for _ in range(chance.randrange(len(text) + 2)):
            place = chance.randrange(len(text) + 1)
            edit = chance.randrange(4)
            if edit == 0:
                del text[place : place + 1]
            elif edit == 1:
                text.insert(place, chance.choice(token))
            elif edit == 2 and text:
                text.insert(place, text.pop(chance.randrange(len(text))))
            else:
                text[place:place] = text[place : place + 3]
        texts.append(text)
    return lang, texts


@given(
    stream=streams(),
    threshold=st.sampled_from([0.05, 0.3, 0.5, 0.6, 2 / 3, 0.7, 0.75, 0.8, 0.9, 1.0]),
    shared=st.sampled_from([1, 2, 4, 8]),
    codes=st.sampled_from([2, 5, 0x110000]),
)
@settings(max_examples=400, deadline=None)
def test_nearest_is_that_of_brute_force(stream: Any, threshold: float, shared: int, codes: int) -> None:
    lang, texts = stream
    novelty = Novelty(threshold)
    accepted: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_gen.novelty, "SHARED", shared)
        patch.setattr(data_gen.novelty, "_CODES", codes)  # few, so that tokens share them
        for tokens in texts:
            text = " ".join(tokens)
            # Exact: 2 LCS / (n + m) is one rounding of a fraction, as the definition's is not.
            values = [rouge_l(text, " ".join(other), lang) for other in accepted]
            assert values == pytest.approx([rouge_by_definition(tokens, other) for other in accepted], abs=1e-12)
            best = max(values, default=0.0)
            expected = (" ".join(accepted[values.index(best)]), best) if best > threshold else ("", 0.0)
            assert novelty.nearest(text, lang) == expected
            novelty.add(text, lang)
            accepted.append(tokens)


@given(a=st.text(), b=st.text(), lang=st.sampled_from(["en", "ko"]))
@example(a="\ud83d" + "\ud83d\ude00", b="가\ud83d", lang="ko")
@example(a="İstanbul ǅ", b="i̇stanbul ǆ", lang="en")
@settings(deadline=None)
def test_any_text_can_be_compared(a: str, b: str, lang: str) -> None:
    novelty = Novelty(0.5)
    novelty.add(a, lang)
    value = rouge_l(a, b, lang)
    assert novelty.nearest(b, lang) == ((a, value) if value > 0.5 else ("", 0.0))


@pytest.mark.parametrize(
    ("a", "b", "lang", "value"),
    [
        ("the cat sat", "The cat, SAT!", "en", 1.0),
        ("police killed the gunman", "police kill the gunman", "en", 0.75),  # Lin 2004, section 3.1
        ("police killed the gunman", "the gunman kill police", "en", 0.5),
        ("don't stop", "don't", "en", 2 / 3),
        ("one", "two", "en", 0.0),
        ("", "two", "en", 0.0),
        ("...", "...", "en", 0.0),
        ("", "", "ko", 0.0),
        ("꿀은 달다", "꿀이 달다", "ko", 0.75),  # by words it would be 0.5
        ("꿀은달다", "꿀은 달다", "ko", 1.0),
        ("React 19를 써요", "react 19 써요", "ko", 8 / 9),
        ("HTML5는", "html은", "ko", 0.0),  # a run of Latin letters and digits is one token
        ("ab", "cb", "ko", 0.0),
        ("caf\u00e9 tea", unicodedata.normalize("NFD", "caf\u00e9 tea"), "en", 1.0),
        ("꿀은 달다", unicodedata.normalize("NFD", "꿀은 달다"), "ko", 1.0),
    ],
)
def test_rouge_by_hand(a: str, b: str, lang: str, value: float) -> None:
    assert rouge_l(a, b, lang) == value
    assert rouge_l(b, a, lang) == value


ACCEPTED = {
    "en": "Describe three ways in which bees help farmers to grow more fruit.",
    "ko": "꿀벌이 농부가 과일을 더 많이 거두도록 돕는 방법을 세 가지 설명해 주세요.",
}


@pytest.mark.parametrize(
    ("lang", "text", "novel"),
    [
        ("en", "Describe three ways in which bees help farmers grow more fruit!", False),
        ("en", "Please describe two ways in which bees can help farmers to grow much more fruit.", False),
        ("en", "How do bees help farmers to grow more fruit? Describe three ways.", True),
        ("en", "Describe three ways in which hospitals help patients to sleep well.", True),
        ("en", "Why does honey keep for years?", True),
        ("ko", "꿀벌이 농부들이 과일을 더 많이 거두도록 돕는 방법 세 가지를 설명하세요.", False),
        ("ko", "꿀벌은 농부가 과일을 더 많이 거두게 돕습니다. 그 방법을 세 가지 설명해 주세요.", False),
        ("ko", "병원에서 환자가 편히 자도록 돕는 방법을 세 가지 설명해 주세요.", True),
        ("ko", "꿀이 여러 해 동안 상하지 않는 까닭은 무엇인가요?", True),
    ],
)
def test_paraphrases_are_not_novel(lang: str, text: str, novel: bool) -> None:
    novelty = Novelty(0.7)
    for other in ("Name the capital of France.", ACCEPTED[lang], "프랑스의 수도는 어디인가요?"):
        novelty.add(other, lang)
    value = rouge_l(text, ACCEPTED[lang], lang)
    assert novelty.nearest(text, lang) == (("", 0.0) if novel else (ACCEPTED[lang], value))
    assert (value <= 0.7) == novel


@pytest.mark.parametrize(
    ("threshold", "length", "common"),
    [(0.7, 10, 7), (0.6, 10, 6), (0.3, 10, 3), (0.9, 20, 18), (0.55, 20, 11), (0.7, 60, 42), (0.29, 100, 29), (1.0, 9, 9),
     (1 - 0.32, 25, 16)],  # the double just below 0.68, which times 25 is rounded up to 17
)  # fmt: skip
@pytest.mark.parametrize("lang", ["en", "ko"])
def test_exactly_the_threshold_is_novel_and_one_token_more_is_not(
    lang: str, threshold: float, length: int, common: int
) -> None:
    token = [f"word{i}" for i in range(length)]
    novelty = Novelty(threshold)
    novelty.add(" ".join(token), lang)

    def nearest(kept: int) -> tuple[str, float]:
        return novelty.nearest(" ".join(token[:kept] + ["other"] * (length - kept)), lang)

    assert nearest(common) == ("", 0.0)
    if common < length:
        assert nearest(common + 1) == (" ".join(token), (common + 1) / length)


def test_repeated_words_count_as_often_as_they_occur() -> None:
    novelty = Novelty(0.7)
    novelty.add("buffalo " * 20, "en")
    assert novelty.nearest("buffalo " * 10, "en") == ("", 0.0)  # 20 / 30
    assert novelty.nearest("buffalo " * 11, "en") == ("buffalo " * 20, 22 / 31)
    novelty.add("하하하하하하하하하하", "ko")
    assert novelty.nearest("하하하하하", "ko") == ("", 0.0)
    assert novelty.nearest("하하하하하하", "ko") == ("하하하하하하하하하하", 0.75)


def test_order_counts() -> None:
    token = [f"word{i}" for i in range(20)]
    novelty = Novelty(0.7)
    novelty.add(" ".join(token), "en")
    assert novelty.nearest(" ".join(token[10:] + token[:10]), "en") == ("", 0.0)
    assert novelty.nearest(" ".join(token[5:] + token[:5]), "en")[1] == 0.75


def test_ties_go_to_the_first_added_and_the_nearer_wins() -> None:
    novelty = Novelty(0.7)
    novelty.add("a b c d e f g h i x", "en")
    novelty.add("x b c d e f g h i j", "en")
    assert novelty.nearest("a b c d e f g h i j", "en") == ("a b c d e f g h i x", 0.9)
    novelty.add("a b c d e f g h i j k", "en")
    assert novelty.nearest("a b c d e f g h i j", "en") == ("a b c d e f g h i j k", 20 / 21)


def test_languages_are_apart_and_empty_texts_are_novel() -> None:
    novelty = Novelty(0.7)
    assert novelty.nearest("one two three", "en") == ("", 0.0)
    novelty.add("one two three", "en")
    novelty.add("...", "en")
    novelty.add("", "ko")
    assert novelty.nearest("one two three", "ko") == ("", 0.0)
    assert novelty.nearest("one two three", "en") == ("one two three", 1.0)
    assert novelty.nearest("...", "en") == novelty.nearest("", "ko") == ("", 0.0)


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_few_pairs_are_compared(lang: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    cdist = process.cdist

    def counted(queries: list[str], choices: list[str], **options: Any) -> Any:
        nonlocal compared
        compared += len(choices)
        return cdist(queries, choices, **options)

    monkeypatch.setattr(process, "cdist", counted)
    chance = random.Random(3)
    syllables = [chr(code) for code in range(0xAC00, 0xAC00 + 400)]
    novelty = Novelty(0.7)
    for _ in range(300):
        # The tenth token is taken with a tenth of the probability of the first (Zipf).
        rare = [syllables[int(400 ** chance.random()) - 1] for _ in range(15)]
        common = chance.choices(
            "다이는하에의을를가고로한지은해" if lang == "ko" else ["the", "a", "of", "to", "and", "in"], k=15
        )
        text = chance.sample(rare + common, 30)
        novelty.add(" ".join(text), lang)
        assert novelty.nearest(" ".join(text), lang)[1] == 1.0
    assert 300 <= compared < 400  # of 45,000 pairs


def test_a_threshold_that_is_no_rouge_value_is_the_users_mistake() -> None:
    for threshold in (0, -0.1, 1.01, 70, float("nan")):
        with pytest.raises(UserError, match="above 0 and at most 1"):
            Novelty(threshold)
