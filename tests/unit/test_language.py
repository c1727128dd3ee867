"""Language by script, sentences, words, content units and repetition, in English and Korean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.core.language import content_units, detect, repetition, script_shares, sentences, words

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        ("Honey keeps for years.", "en"),
        ("꿀은 여러 해 동안 상하지 않는다.", "ko"),
        ("React의 useEffect Hook을 사용하여 서버와 동기화하세요.", "ko"),
        ("Café déjà vu naïve", "en"),
        ("The word 꿀 means honey in Korean.", "en"),
        ("蜂蜜可以保存多年", "other"),
        ("Мёд хранится годами", "other"),
        ("12345 !?", "other"),
        ("", "other"),
        ("ㅋㅋㅋ 좋아요", "ko"),
    ],
)
def test_detect(text: str, lang: str) -> None:
    assert detect(text) == lang


def test_shipped_documents_are_in_their_language() -> None:
    for lang in ("en", "ko"):
        for line in (ROOT / f"recipes/data/corpus/{lang}.jsonl").read_text(encoding="utf-8").splitlines():
            document = json.loads(line)
            assert detect(document["text"]) == document["lang"] == lang
            assert len(sentences(document["text"])) >= 3


def test_script_shares_count_letters_only() -> None:
    assert script_shares("ab 꿀1!") == {"latin": 2 / 3, "hangul": 1 / 3, "other": 0.0}
    assert script_shares("123") == {"latin": 0.0, "hangul": 0.0, "other": 0.0}


def test_sentences() -> None:
    assert sentences("One is 1.5 m. Two?  Three!\n\nFour") == ["One is 1.5 m.", "Two?", "Three!", "Four"]
    assert sentences("꿀은 상하지 않는다. 왜일까요? 수분이 적다.") == ["꿀은 상하지 않는다.", "왜일까요?", "수분이 적다."]
    assert sentences(" \n ") == []


def test_words_and_content_units() -> None:
    assert words("Bees' honey isn't_bad, 꿀은!") == ["bees", "honey", "isn't", "bad", "꿀은"]
    assert content_units("The bees make the honey", "en") == {"bee", "make", "honey"}
    assert content_units("A bee makes honeys", "en") == {"bee", "make", "honey"}
    assert content_units("which of the", "en") == set()
    # Particles are glued to nouns, so words differ where their first bigrams agree.
    assert "세균" in content_units("세균은", "ko") & content_units("세균이", "ko")
    assert content_units("꿀", "ko") == {"꿀"}


def test_repetition() -> None:
    assert repetition("a b c d e f g h") == 0.0
    assert repetition("a b c d " * 10) == pytest.approx(1 - 4 / 37)
    assert repetition("") == repetition("one two three") == repetition("one two three four") == 0.0
    assert repetition("꿀은 좋다 정말 좋다 " * 5) > 0.7
