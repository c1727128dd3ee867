"""Needle in a haystack: one sentence with a fact is hidden at a depth of a long text, and the model is asked for the fact.

Retrieval is exact: the answer has the fact or not. The facts are drawn by the seed, so that no model can know them.
"""

from __future__ import annotations

import math
import random
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from align.core.errors import UserError
from align.core.hashing import derive_seed
from align.core.language import sentences
from align.core.rows import SuiteResult
from align.evaluate.suite import Conversation, Grade, Item, wilson

PROMPTS = {
    "en": "Read the text and answer the question after it.\n\n<text>\n{text}\n</text>\n\n"
    "{question} Answer in one short sentence, from the text alone.",
    "ko": "글을 읽고 질문에 답하세요.\n\n<글>\n{text}\n</글>\n\n{question} 글에 나온 대로 짧게 답하세요.",
}
LONGEST_SENTENCE = 300  # characters; text without full stops, such as a table, is cut at this length


@dataclass(frozen=True, kw_only=True)
class Needle:
    """A fact to hide.

    Attributes:
        name: unique among the needles of a suite.
        sentence: with {value} in the place of the key fact.
        question: what the model is asked.
        values: to draw the key fact from; empty: a number of seven digits.
    """

    name: str
    sentence: str
    question: str
    values: tuple[str, ...] = ()


NEEDLES: Mapping[str, tuple[Needle, ...]] = {
    "en": (
        Needle(
            name="city",
            sentence="The Larkspur Kite Society holds its yearly meeting in {value}.",
            question="In which city does the Larkspur Kite Society hold its yearly meeting?",
            values=(
                "Valparaiso", "Tromso", "Samarkand", "Bergamo", "Kaunas", "Dunedin", "Cusco", "Ghent",
                "Windhoek", "Galway", "Luang Prabang", "Halifax", "Tartu", "Antofagasta", "Nagasaki", "Bruges",
            ),
        ),
        Needle(
            name="food",
            sentence="The secret ingredient of Aunt Maribel's harvest soup is {value}.",
            question="What is the secret ingredient of Aunt Maribel's harvest soup?",
            values=(
                "quince", "fennel", "tamarind", "buckwheat", "rhubarb", "cardamom", "parsnip", "pomegranate",
                "lemongrass", "chestnut", "horseradish", "star anise", "okra", "kohlrabi", "saffron", "plantain",
            ),
        ),
        Needle(
            name="number",
            sentence="The code that opens the storage room of the Elmhurst library is {value}.",
            question="Which code opens the storage room of the Elmhurst library?",
        ),
    ),
    "ko": (
        Needle(
            name="city",
            sentence="솔빛 연날리기 모임의 올해 정기 총회가 열리는 도시는 {value}입니다.",
            question="솔빛 연날리기 모임의 올해 정기 총회가 열리는 도시는 어디입니까?",
            values=(
                "강릉", "통영", "군산", "안동", "목포", "제천", "나주", "속초",
                "밀양", "공주", "남원", "태백", "삼척", "김해", "서산", "여수",
            ),
        ),
        Needle(
            name="food",
            sentence="달래네 식당이 잔치국수 육수에 몰래 넣는 재료는 {value}입니다.",
            question="달래네 식당이 잔치국수 육수에 몰래 넣는 재료는 무엇입니까?",
            values=(
                "황태", "우엉", "표고버섯", "들깨", "계피", "연근", "도라지", "매실",
                "더덕", "홍합", "두릅", "대추", "메밀", "구기자", "생강", "박고지",
            ),
        ),
        Needle(
            name="number",
            sentence="느티나무 도서관 보관실의 문을 여는 번호는 {value}입니다.",
            question="느티나무 도서관 보관실의 문을 여는 번호는 무엇입니까?",
        ),
    ),
}  # fmt: skip


def needle_items(
    haystack_texts: Sequence[str],
    lang: str,
    lengths: Sequence[int],
    depths: Sequence[float],
    count_tokens: Callable[[str], int],
    seed: int,
    needles: Sequence[Needle] | None = None,
    *,
    repeat: bool = True,
) -> list[Item]:
    """One item for each length, depth and needle.

    A prompt is filled with whole sentences of the documents, in their order, up to its length. The needle stands between two
    sentences, as near as can be to its depth; the key fact occurs nowhere else. An item's data has the `length` and `depth`
    that were asked for and, as they came out, `num_tokens` and `actual_depth` (both without a chat template); the `needle`'s
    name, the key fact as `answer`, and whether documents are `repeated` in the prompt.

    Args:
        haystack_texts: documents.
        lang: en or ko, of the prompt and the needles.
        lengths: of whole prompts, in tokens, at most.
        depths: shares of the text that come before the needle, 0 = at its start, 1 = at its end.
        count_tokens: number of tokens of a text.
        needles: those of `NEEDLES` by default.
        repeat: begin again with the first document where they are used up.

    Raises:
        UserError: documents too short for a length (without `repeat`), or that have all values of a needle; a length that
            does not even hold the needle; an impossible depth; the same length, depth or needle twice.
    """
    chosen = NEEDLES[lang] if needles is None else needles
    for what, given in (("lengths", lengths), ("depths", depths), ("needles", [needle.name for needle in chosen])):
        if not given or len(set(given)) != len(given):
            raise UserError(f"needle: {what} are {list(given)}; give at least one, and none twice")
    if wrong := [depth for depth in depths if not 0 <= depth <= 1]:
        raise UserError(f"needle: a depth of {wrong[0]} is no share of the text; give numbers from 0 to 1")
    if not (pieces := _pieces(haystack_texts)):
        raise UserError("needle: the documents have no text")
    items = []
    for length in lengths:
        for needle in chosen:
            most = _most_pieces(pieces, lang, needle, length, count_tokens, repeat)
            text = _joined(pieces, 0, most).casefold()
            values = [value for value in needle.values if value.casefold() not in text]
            if needle.values and not values:
                raise UserError(f"needle: the documents have every value of {needle.name}; give others")
            for depth in depths:
                rng = random.Random(derive_seed(seed, "needle", lang, needle.name, length, str(depth)))
                value = rng.choice(values) if values else _code(rng, text)
                items.append(_item(pieces, most, lang, needle, value, length, depth, count_tokens))
    return items


def _pieces(texts: Sequence[str]) -> list[str]:
    """The sentences of documents with the space that follows each."""
    pieces = []
    for text in texts:
        parts = [part for sentence in sentences(text) for part in _cut(sentence)]
        pieces += [f"{part} " for part in parts[:-1]] + [f"{part}\n\n" for part in parts[-1:]]
    return pieces


def _cut(sentence: str) -> list[str]:
    return [sentence[i : i + LONGEST_SENTENCE].strip() for i in range(0, len(sentence), LONGEST_SENTENCE)]


def _joined(pieces: Sequence[str], start: int, end: int) -> str:
    """Pieces of the documents, which begin again where they end."""
    return "".join(pieces[i % len(pieces)] for i in range(start, end))


def _prompt(pieces: Sequence[str], place: int, end: int, lang: str, needle: Needle, value: str) -> str:
    """The prompt with `end` pieces and the needle before number `place`."""
    hidden = needle.sentence.format(value=value)
    text = f"{_joined(pieces, 0, place)}{hidden} {_joined(pieces, place, end)}".strip()
    return PROMPTS[lang].format(text=text, question=needle.question)


def _most_pieces(
    pieces: Sequence[str], lang: str, needle: Needle, length: int, count_tokens: Callable[[str], int], repeat: bool
) -> int:
    """How many pieces fit into a prompt, whichever value the needle has."""

    longest = max(needle.values, key=count_tokens) if needle.values else "8" * 7

    def tokens(number: int) -> int:
        return count_tokens(_prompt(pieces, 0, number, lang, needle, longest))

    if (least := tokens(0)) > length:
        raise UserError(
            f"needle: a prompt without any text has {least} tokens ({needle.name}); give lengths above, not {length}"
        )
    top = 64
    while (repeat or top < len(pieces)) and tokens(top) <= length:
        top *= 2
    if not repeat:
        top = min(top, len(pieces))
        if (missing := length - tokens(top)) > 0:
            raise UserError(f"needle: the documents lack {missing} tokens for a prompt of {length}; add some or repeat them")
    return bisect_right(range(top + 1), length, key=tokens) - 1


def _code(rng: random.Random, text: str) -> str:
    while (code := str(rng.randrange(10**6, 10**7))) in text:
        pass
    return code


def _item(
    pieces: Sequence[str],
    end: int,
    lang: str,
    needle: Needle,
    value: str,
    length: int,
    depth: float,
    count_tokens: Callable[[str], int],
) -> Item:
    while True:
        ends = [0, *accumulate(len(pieces[i % len(pieces)]) for i in range(end))]
        place = min(range(end + 1), key=lambda i: abs(ends[i] - depth * ends[-1]))
        prompt = _prompt(pieces, place, end, lang, needle, value)
        # Where the needle stands changes how its neighbours are cut into tokens.
        if (num_tokens := count_tokens(prompt)) <= length or not end:
            break
        end -= 1
    return Item(
        id=f"{lang}-{needle.name}-{length}-{depth:g}",
        turns=(prompt,),
        category=str(length),
        lang=lang,
        data={
            "needle": needle.name,
            "answer": value,
            "length": length,
            "num_tokens": num_tokens,
            "depth": depth,
            "actual_depth": round(ends[place] / ends[-1], 4) if end else depth,
            "repeated": end > len(pieces),
        },
    )


def grade_needle(item: Item, conversation: Conversation, finish_reason: str) -> list[Grade]:
    """Whether the answer has the key fact, 1 or 0; case, width of characters and the amount of space do not count.

    The fact must not be part of a longer Latin word or number to its left, or of a longer number to its right. A truncated
    answer is graded like any other.
    """
    fact = re.escape(_normalised(item.data["answer"]))
    found = re.search(rf"(?<![a-z0-9]){fact}(?![0-9])", _normalised(conversation[-1]["content"]))
    return [Grade(metric="retrieval", value=float(found is not None))]


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def heat_map(results: Iterable[tuple[Item, Grade | SuiteResult]]) -> dict[str, Any]:
    """Retrieval by depth and length, with Wilson's 95 % intervals (doi 10.1080/01621459.1927.10502953).

    Args:
        results: of one model.

    Returns:
        {depths (D), lengths (L), cells: D rows of L cells {mean, low, high, graded, failed}}, ready for JSON; mean, low and
        high are None where nothing was graded.
    """
    cells: dict[tuple[float, int], list[float]] = {}
    for item, grade in results:
        cells.setdefault((item.data["depth"], item.data["length"]), []).append(grade.value)
    depths, lengths = sorted({depth for depth, _ in cells}), sorted({length for _, length in cells})
    return {
        "depths": depths,
        "lengths": lengths,
        "cells": [[_cell(cells.get((depth, length), [])) for length in lengths] for depth in depths],
    }


def _cell(values: Sequence[float]) -> dict[str, float | int | None]:
    graded = [value for value in values if not math.isnan(value)]
    counts = {"graded": len(graded), "failed": len(values) - len(graded)}
    if not graded:
        return {"mean": None, "low": None, "high": None, **counts}
    low, high = wilson(np.asarray(graded)[:, None])
    return {"mean": round(sum(graded) / len(graded), 4), "low": low, "high": high, **counts}
