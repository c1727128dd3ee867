"""Whether a text is novel: no ROUGE-L with an accepted text is over a threshold (Self-Instruct, arXiv 2212.10560, 2.2).

The search is exact and compares few pairs, as in the set-similarity joins of Bayardo et al. (WWW 2007) and Xiao et al.
(PPJoin, WWW 2008). A text is the set of its tokens numbered by occurrence, (token, 0), (token, 1) and so on, in one fixed
order of all tokens, rare ones first. ROUGE-L over t means that two texts of n and m tokens have a common subsequence of more
than t (n + m) / 2, and so an overlap of their sets. As it is no longer than either text, m is at least t n / (2 - t), and
what a text of n tokens shares with any that is over t is at least some low(n).

All but the last tail(n) = low(n) - SHARED tokens of an accepted text are indexed, and only those of a new one are looked up.
Of what two texts share, at most max(tail(n), tail(m)) is not found: if the first of it is in the tail of one, all that
follows is too. So a pair over t is found at least SHARED times (low(n) times where that is less), and each pair has a number
of its own, the overlap that it needs less that maximum. A longest common subsequence is computed for pairs that reach it.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import defaultdict

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from align.core.errors import UserError
from align.core.hashing import short_hash
from align.core.language import words

SHARED = 8  # more: longer index, fewer pairs to compare; 5 to 12 take about the same time
MAX_RARITY, MAX_LETTERS = 2**16 - 1, 2**16 - 1
_CODES = 0x110000  # code points; a token beyond them shares that of another

_KOREAN_TOKEN = re.compile(r"[가-힣]|[^\W_가-힣]+")
# The commonest first. A better list makes the search faster and never changes what it finds.
_ENGLISH = (
    "the a of to and in is for that or are you with an on as be this it from by can if what how not have your at "
    "which their write following given sentence explain list describe give answer question example text between about "
    "they has do one was were will more its who would should when why all some we i there other than these may make "
    "use people words find each used into most also been many but so such only time two new number based need first "
    "using where her his out create generate provide summarize compare them person information different way could up "
    "my had no like story"
)
_KOREAN = (
    "다이는하에의을를가고로한지은해요서어기사주세있니도리시나대인습수자아정명그여과용할으합라면것입일제스설보적성전부만들"
    "되와게문함거장상경동방무법구떤러내유조중우모때생작드위계물관소공실각화비간까없않마알년신트국연결분원행학개단음말발데"
)
_PLACE = {
    lang: {token: place for place, token in enumerate(common, start=1)}
    for lang, common in [("en", _ENGLISH.split()), ("ko", list(_KOREAN))]
}


def rouge_l(a: str, b: str, lang: str) -> float:
    """ROUGE-L of two texts: F1 of the longest common subsequence of their tokens (Lin 2004, section 3), in [0, 1].

    Args:
        a: any text.
        b: another.
        lang: with ko, tokens are Hangul syllables and runs of other letters and digits, since particles are glued to nouns;
            with any other, lower-case words.

    Returns:
        2 LCS / (tokens of a + tokens of b); 0 if either has none.
    """
    first, second = _tokens(a, lang), _tokens(b, lang)
    if not first or not second:
        return 0.0
    codes: dict[str, int] = {}
    common = LCSseq.similarity(*([codes.setdefault(token, len(codes)) for token in tokens] for tokens in (first, second)))
    return 2 * common / (len(first) + len(second))


class Novelty:
    """Accepted texts, and which of them a new text is too like. Languages are kept apart.

    Args:
        threshold: of ROUGE-L, in (0, 1]; a text is novel if it has no higher value with any accepted one.

    Raises:
        UserError: threshold not in (0, 1].
    """

    def __init__(self, threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise UserError(f"the novelty threshold is a ROUGE-L value above 0 and at most 1, not {threshold}")
        self._threshold = threshold
        self._accepted: dict[str, _Accepted] = {}

    def nearest(self, text: str, lang: str) -> tuple[str, float]:
        """The accepted text of this language with the highest ROUGE-L over the threshold, and that value.

        Ties go to the one added first. Where none is over the threshold, the text is novel: an empty text and 0.
        """
        return self._accepted[lang].nearest(text) if lang in self._accepted else ("", 0.0)

    def add(self, text: str, lang: str) -> None:
        """Accept a text, whether or not it is novel."""
        if lang not in self._accepted:
            self._accepted[lang] = _Accepted(self._threshold, lang)
        self._accepted[lang].add(text)


class _Accepted:
    """Those of one language, numbered in the order in which they were added."""

    def __init__(self, threshold: float, lang: str) -> None:
        self._threshold = threshold
        self._lang = lang
        self._texts: list[str] = []
        self._coded: list[str] = []  # tokens as characters: rapidfuzz compares strings without a call per token
        self._lengths, self._tails = array("i"), array("i")
        self._postings: defaultdict[int, array[int]] = defaultdict(lambda: array("i"))  # rank of a numbered token -> texts
        self._codes: dict[str, int] = {}
        self._ranks: dict[str, int] = {}
        self._lows: dict[int, int] = {}
        self._last: tuple[str, str, list[int]] = ("", "", [])

    def add(self, text: str) -> None:
        coded, ranks = self._read(text)
        tail = max(0, self._low(len(ranks)) - SHARED)
        for rank in ranks[: len(ranks) - tail]:
            self._postings[rank].append(len(self._texts))
        self._texts.append(text)
        self._coded.append(coded)
        self._lengths.append(len(ranks))
        self._tails.append(tail)

    def nearest(self, text: str) -> tuple[str, float]:
        coded, ranks = self._read(text)
        length = len(ranks)
        low = self._low(length)
        tail = max(0, low - SHARED)
        postings = [self._postings[rank] for rank in ranks[: length - tail] if rank in self._postings]
        if not postings:
            return "", 0.0
        shared = np.bincount(np.concatenate([np.frombuffer(p, np.intc) for p in postings]))
        near = np.flatnonzero(shared >= min(SHARED, low))
        lengths = np.frombuffer(self._lengths, np.intc)[near]
        needed = self._needed(length + lengths)
        unseen = np.maximum(np.frombuffer(self._tails, np.intc)[near], tail)
        kept = np.flatnonzero((shared[near] >= needed - unseen) & (needed <= np.minimum(lengths, length)))
        if not kept.size:
            return "", 0.0
        near, cutoff = near[kept].tolist(), int(needed[kept].min())
        coded_near = [self._coded[i] for i in near]
        common = process.cdist([coded], coded_near, scorer=LCSseq.similarity, score_cutoff=cutoff, dtype=np.int32)[0]
        values = 2 * common / (length + lengths[kept])
        if len(self._codes) > _CODES:  # values may be too high
            values = np.array([rouge_l(text, self._texts[i], self._lang) for i in near])
        best = int(values.argmax())
        return (self._texts[near[best]], float(values[best])) if values[best] > self._threshold else ("", 0.0)

    def _needed(self, totals: np.ndarray) -> np.ndarray:
        """The least common subsequence that is over the threshold, of two texts with so many tokens together."""
        least: np.ndarray = (self._threshold * totals / 2).astype(np.int64)
        least[2 * least / totals <= self._threshold] += 1
        return least

    def _low(self, length: int) -> int:
        """The least that a text of this length needs with any other; length + 1 if nothing can be over the threshold."""
        if length not in self._lows:
            others = np.arange(1, length + 1)  # longer ones need more
            needed = self._needed(length + others)
            self._lows[length] = int(needed[needed <= others].min(initial=length + 1))
        return self._lows[length]

    def _read(self, text: str) -> tuple[str, list[int]]:
        """The tokens as characters, and the ranks of the numbered tokens, rare ones first."""
        if text != self._last[0]:  # a text is looked up, then added
            tokens = _tokens(text, self._lang)
            codes = self._codes
            coded = "".join([chr(codes.setdefault(token, len(codes)) % _CODES) for token in tokens])
            times: dict[str, int] = {}
            ranks = []
            for token in tokens:
                time = times[token] = times.get(token, -1) + 1
                key = f"{token} {time}" if time else token
                if (rank := self._ranks.get(key)) is None:
                    rank = self._ranks[key] = _rank(token, time, self._lang)
                ranks.append(rank)
            self._last = text, coded, sorted(ranks)
        return self._last[1:]


def _tokens(text: str, lang: str) -> list[str]:
    composed = unicodedata.normalize("NFC", text)
    return _KOREAN_TOKEN.findall(composed.lower()) if lang == "ko" else words(composed)


def _rank(token: str, time: int, lang: str) -> int:
    """The place of a token's occurrence in the order: rare first, then long first, then by hash.

    It is the identity of the numbered token too: two that share a hash are found in place of each other, which adds pairs to
    compare and hides none.
    """
    place = _PLACE.get(lang, {}).get(token, MAX_RARITY)
    # Among Korean and English sentences the cube of occurrences comes close to the order by measured frequency.
    rarity, letters = min(place * (time + 1) ** 3, MAX_RARITY), min(len(token), MAX_LETTERS)
    return (MAX_RARITY - rarity) << 80 | (MAX_LETTERS - letters) << 64 | short_hash(f"{token} {time}")
