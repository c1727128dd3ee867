"""Word problems with one right number, as in GSM8K (arXiv 2110.14168), zero-shot with a chain of thought."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.core.errors import UserError
from align.core.hashing import content_id
from align.core.language import detect
from align.evaluate.suite import Conversation, Grade, Item
from align.evaluate.suite_file import id_of, read_items, text_of
from reward.rules import answers_equal

KEYS = ("question", "answer")
PROMPTS = {
    "en": '{question}\n\nThink step by step. Then end with a line of "#### " and the number alone, such as #### 7.',
    "ko": '{question}\n\n단계별로 풀어 보세요. 그리고 마지막 줄에는 "#### " 뒤에 답을 숫자로만 쓰세요. 예: #### 7',
}
# lm-eval's filters strict-match and flexible-extract (lm_eval/tasks/gsm8k/gsm8k.yaml).
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_REFERENCE = re.compile(r"####\s*(\S.*?)\s*$")
_NUMBER = re.compile(r"-?[0-9][0-9,]*(\.[0-9]+)?")


def read_exact_answers(path: Path) -> list[Item]:
    """The items of a file with `question` and `answer`, a solution whose last line is #### and a number, as in GSM8K.

    `id`, `lang` (en or ko; else that of the question) and `category` may be given; without an id it is the question's hash.

    Raises:
        UserError: a line that cannot be used, or the same question twice.
    """
    return read_items(path, KEYS, _item)


def _item(record: Mapping[str, Any], where: str) -> Item:
    question, answer = text_of(record, "question", where).strip(), text_of(record, "answer", where)
    stated = _REFERENCE.search(answer)
    if stated is None or not _NUMBER.fullmatch(stated[1]):
        raise UserError(f"{where}: the answer has no number after ####; end it with a line like #### 42")
    lang = record.get("lang", "ko" if detect(question) == "ko" else "en")
    if not isinstance(lang, str) or lang not in PROMPTS:
        raise UserError(f"{where}: lang is {lang!r:.80}; write en or ko")
    category = record.get("category")
    if category is not None and not isinstance(category, str):
        raise UserError(f"{where}: category is {category!r:.80}; write a text, or leave it out")
    return Item(
        id=id_of(record, "id", where) if "id" in record else content_id("exact_answer", question),
        turns=(PROMPTS[lang].format(question=question),),
        category=category or "",
        lang=lang,
        data={"answer": stated[1]},
    )


def grade_exact_answer(item: Item, conversation: Conversation, finish_reason: str) -> list[Grade]:
    """Three grades, 1 or 0, of an answer; one without a number is wrong, and a truncated one is graded like any other.

    - `exact_strict`: lm-eval's, the first number after "#### ", compared as text without commas, $ and a last point;
    - `exact_flexible`: lm-eval's, the last number;
    - `exact_answer`: by `reward.rules.answers_equal`, which reads boxed and named answers and knows 42.0, 7만 and 1/2.
    """
    answer, right = conversation[-1]["content"], item.data["answer"]
    strict, flexible = _STRICT.findall(answer), [first or second for first, second in _FLEXIBLE.findall(answer)]
    return [
        Grade(metric="exact_strict", value=float(bool(strict) and _bare(strict[0]) == _bare(right))),
        Grade(metric="exact_flexible", value=float(bool(flexible) and _bare(flexible[-1]) == _bare(right))),
        Grade(metric="exact_answer", value=float(answers_equal(answer, f"#### {right}"))),
    ]


def _bare(number: str) -> str:
    """What lm-eval's exact_match compares: it takes out commas, then $, then a last point."""
    return number.replace(",", "").replace("$", "").removesuffix(".")
