"""Which of English and Korean a text is written in, by its script.

Counting letters decides between these two without a model, on any length. It cannot tell English from other languages in
Latin script; such text counts as English.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

import numpy as np

OTHER_LANGUAGE = {"en": "ko", "ko": "en"}
_SCRIPTS = ("latin", "hangul", "other")
_NO_LETTER = bytes(i for i in range(128) if not chr(i).isalpha())


@cache
def _script_table() -> np.ndarray:
    """UTF-16 code unit -> 0 for no letter, 1 + index in _SCRIPTS; letters beyond the Basic Multilingual Plane are none."""
    table = np.zeros(2**16, np.uint8)
    for code in range(2**16):
        if (char := chr(code)).isalpha():
            name = unicodedata.name(char, "")
            table[code] = 1 if name.startswith("LATIN") else 2 if name.startswith("HANGUL") else 3
    return table


def letter_counts(text: str) -> tuple[int, int, int]:
    """How many letters are Latin, Hangul and of another script."""
    if text.isascii():
        return len(text.encode("ascii").translate(None, _NO_LETTER)), 0, 0
    units = np.frombuffer(text.encode("utf-16-le", "surrogatepass"), "<u2")
    counts = np.bincount(_script_table()[units], minlength=4)
    return int(counts[1]), int(counts[2]), int(counts[3])


def script_shares(text: str) -> dict[str, float]:
    """The share of letters that are Latin, Hangul or something else; all 0 where there is no letter."""
    counts = letter_counts(text)
    total = sum(counts)
    return {script: n / total if total else 0.0 for script, n in zip(_SCRIPTS, counts, strict=True)}


def detect(text: str) -> str:
    """ "en", "ko", or "other".

    Korean text about technology carries many Latin words, so 30 % Hangul is Korean; English needs 80 % Latin letters.
    """
    share = script_shares(text)
    if share["hangul"] >= 0.3 and share["other"] < 0.2:
        return "ko"
    return "en" if share["latin"] >= 0.8 else "other"


_SENTENCE_END = re.compile(r"(?<=[.!?。])\s+|\n{2,}")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_STOP_WORDS = frozenset([
    "a", "an", "the", "and", "or", "but", "if", "of", "in", "on", "at", "by", "for", "from", "to", "with", "as", "is",
    "are", "was", "were", "be", "been", "being", "it", "its", "this", "that", "these", "those", "they", "them",
    "their", "he", "she", "his", "her", "we", "our", "you", "your", "i", "my", "not", "no", "nor", "so", "than",
    "then", "there", "here", "which", "who", "whom", "what", "when", "where", "how", "why", "can", "could", "may",
    "might", "must", "shall", "should", "will", "would", "do", "does", "did", "have", "has", "had", "into", "over",
    "under", "about", "between", "through", "such", "also", "very", "more", "most", "some", "any", "each", "other",
    "one", "two",
])  # fmt: skip


def sentences(text: str) -> list[str]:
    """The sentences of English or Korean prose, in order, without surrounding space."""
    return [s.strip() for s in _SENTENCE_END.split(text) if s.strip()]


def words(text: str) -> list[str]:
    """Lower-case words (for Korean: space-separated units with their particles)."""
    return [w.lower() for w in _WORD.findall(text)]


def content_units(text: str, lang: str) -> set[str]:
    """What two texts are compared by: content words in English, character bigrams of words in Korean.

    Korean particles are glued to nouns, so whole words rarely match between two sentences on the same thing.
    """
    if lang == "ko":
        return {w[i : i + 2] for w in words(text) for i in range(max(1, len(w) - 1))}
    return {w[:-1] if len(w) > 3 and w.endswith("s") else w for w in words(text) if w not in _STOP_WORDS and len(w) > 1}


def repetition(text: str, size: int = 4) -> float:
    """Share of word n-grams that occurred before in the text; 0 for text shorter than two n-grams."""
    w = words(text)
    grams = [tuple(w[i : i + size]) for i in range(len(w) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0
