"""Rule-based quality filters of documents, each with the reason it gives.

Rules and thresholds are those of Gopher (arXiv 2112.11446, table A1) and C4 (arXiv 1910.10683, section 2.2) where
they need the text alone; for Korean, whose words are longer phrases with particles, words are counted as eojeol and function
words are endings. Each rule is one pass over the text; none looks further than a document.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from align.core.language import letter_counts

MAX_RUN = 300  # of one character: a line of dashes passes, a page of them does not
MIN_LETTERS = 0.5  # of the characters that are no white space; Gopher: 80 % of words hold a letter
MAX_SYMBOLS = 0.1  # hashtags and ellipses per word
MAX_BULLETS, MAX_ELLIPSES = 0.9, 0.3  # of lines
MAX_REPEATED = 0.3  # of the characters, in lines that occurred before
MEAN_WORD = {"en": (3.0, 10.0), "ko": (1.5, 12.0)}
MIN_FUNCTION_WORDS = 2

_RUN = re.compile(rf"(\S)\1{{{MAX_RUN - 1}}}")
_HASHTAG = re.compile(r"(?<!\S)#\w")  # not the headings of Markdown
_BULLET = re.compile(r"^\s*[-*•‣·▪●]", re.MULTILINE)
_FUNCTION_WORDS = {
    "en": re.compile(r"\b(the|be|to|of|and|that|have|with|is|in)\b", re.IGNORECASE),
    "ko": re.compile(r"[가-힣](은|는|이|가|을|를|에|의|로|와|과|도|다\.|요\.|고)(?![가-힣])"),
}
# Text written to the model that reads it, not to people.
_ORDERS = re.compile(
    r"\b(ignore|disregard|forget)\s+(all\s+|any\s+)?(of\s+)?(your|the|these|previous|prior|above)\s+(\w+\s+)?instructions?\b"
    r"|\b(output|reveal|print|repeat)\s+(your|the)\s+system\s+prompt\b"
    r"|(지시|명령|프롬프트)(를|을|사항을)?\s*(모두\s*)?(무시|잊)|시스템\s*프롬프트(를|을)?\s*(출력|공개|보여)",
    re.IGNORECASE,
)
_ORDER_WORDS = ("instruction", "system prompt", "지시", "명령", "프롬프트")  # one of them is in whatever _ORDERS finds


def quality_fault(text: str, lang: str) -> str:
    """The first rule that a document breaks, or an empty text.

    Args:
        text: of the document.
        lang: en or ko; rules on words are left out for others.
    """
    for reason, breaks in _RULES:
        if breaks(text, lang):
            return reason
    return ""


def _few_letters(text: str, lang: str) -> bool:
    visible = len("".join(text.split()))
    return sum(letter_counts(text)) < MIN_LETTERS * visible


def _strange_words(text: str, lang: str) -> bool:
    if lang not in MEAN_WORD:
        return False
    words = text.split()
    low, high = MEAN_WORD[lang]
    return not low <= sum(map(len, words)) / max(len(words), 1) <= high


def _symbols(text: str, lang: str) -> bool:
    return len(_HASHTAG.findall(text)) + text.count("...") + text.count("…") > MAX_SYMBOLS * len(text.split())


def _list_or_teasers(text: str, lang: str) -> bool:
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) < 3:
        return False
    ellipses = sum(line.rstrip().endswith(("...", "…")) for line in lines)
    return len(_BULLET.findall(text)) > MAX_BULLETS * len(lines) or ellipses > MAX_ELLIPSES * len(lines)


def _repeats_lines(text: str, lang: str) -> bool:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) < 4:
        return False
    unique = sum(map(len, set(lines)))
    total = sum(map(len, lines))
    return total - unique > MAX_REPEATED * total


def _no_prose(text: str, lang: str) -> bool:
    if lang not in _FUNCTION_WORDS:
        return False
    found = set()
    for match in _FUNCTION_WORDS[lang].finditer(text):
        found.add(match.group(1).lower())
        if len(found) >= MIN_FUNCTION_WORDS:
            return False
    return True


def _gives_orders(text: str, lang: str) -> bool:
    small = text.lower()
    return any(word in small for word in _ORDER_WORDS) and bool(_ORDERS.search(text))


_RULES: tuple[tuple[str, Callable[[str, str], bool]], ...] = (
    ("nul_bytes", lambda text, _: "\0" in text),
    ("one_character_repeated", lambda text, _: bool(_RUN.search(text))),
    ("few_letters", _few_letters),
    ("strange_word_length", _strange_words),
    ("symbols", _symbols),
    ("list_or_teasers", _list_or_teasers),
    ("repeated_lines", _repeats_lines),
    ("no_prose", _no_prose),
    ("orders_to_the_model", _gives_orders),
)
