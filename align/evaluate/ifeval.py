"""IFEval (arXiv 2311.07911): instructions that a program can check, strict and loose, by lm-eval's checkers.

lm-eval fetches NLTK's sentence model over the network when its checkers are imported. Here NLTK's tokenizer gets the same
parameters from the `punkt` package, so nothing is fetched and nothing is unpickled.
"""

from __future__ import annotations

import importlib
import math
import random
import string
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from align.core.errors import UserError
from align.core.language import detect
from align.evaluate.suite import Conversation, Grade, Item
from align.evaluate.suite_file import id_of, read_items, text_of

KEYS = ("key", "prompt", "instruction_id_list", "kwargs")
METRICS = ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose")


def read_ifeval(path: Path) -> list[Item]:
    """The items of a file in IFEval's format: key, prompt, instruction_id_list, kwargs (one object per instruction).

    Arguments may be null and numbers floats, as in the copy on the hub. An item's category is the group of its
    instructions (keywords, punctuation), or "several".

    Raises:
        UserError: a line that cannot be used, an unknown instruction, arguments that its checker does not take or lacks;
            lm-eval or a package that its checkers need is not installed.
    """
    return read_items(path, KEYS, _item)


def _item(record: Mapping[str, Any], where: str) -> Item:
    ids, given = record["instruction_id_list"], record["kwargs"]
    if not (isinstance(ids, list) and isinstance(given, list) and ids and len(ids) == len(given)):
        raise UserError(f"{where}: write in instruction_id_list at least one id, and in kwargs one object for each")
    arguments = []
    for instruction_id, values in zip(ids, given, strict=True):
        if not isinstance(instruction_id, str) or instruction_id not in _checkers():
            raise UserError(f"{where}: no instruction {instruction_id!r:.80}; there are {', '.join(_checkers())}")
        if not isinstance(values, dict):
            raise UserError(f"{where}: the kwargs of {instruction_id} are {values!r:.80}; write an object, such as {{}}")
        arguments.append({name: _whole(value) for name, value in values.items() if value is not None})
        if problem := _problem(instruction_id, arguments[-1]):
            raise UserError(f"{where}: {instruction_id} cannot be checked with {arguments[-1]}: {problem}")
    prompt = text_of(record, "prompt", where)
    groups = {instruction_id.partition(":")[0] for instruction_id in ids}
    asked = next((a["language"] for a in arguments if a.get("language") in ("en", "ko")), None)
    return Item(
        id=id_of(record, "key", where),
        turns=(prompt,),
        category=groups.pop() if len(groups) == 1 else "several",
        lang=asked or ("ko" if detect(prompt) == "ko" else "en"),
        data={"instruction_id_list": list(ids), "kwargs": arguments},
    )


def _whole(value: Any) -> Any:
    """3 for 3.0: checkers index with some of their numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _problem(instruction_id: str, arguments: Mapping[str, Any]) -> str:
    """Why an instruction cannot be checked, or an empty text."""
    for name in ("keywords", "forbidden_words"):
        given = arguments.get(name, [])
        # A checker would take a text letter by letter.
        if not (isinstance(given, list) and all(isinstance(word, str) and word.strip() for word in given)):
            return f"{name} must be a list of texts"
    before = random.getstate()
    try:
        _checker(instruction_id, arguments).check_following("a")
    except Exception as error:  # whatever a checker raises on arguments of the wrong kind
        return str(error)
    # A checker that lacks an argument, or cannot use it, draws one: the answers would be graded by chance.
    if random.getstate() != before:
        random.setstate(before)
        return "an argument is missing or out of its range"
    return ""


def grade_ifeval(item: Item, conversation: Conversation, finish_reason: str) -> list[Grade]:
    """Four grades of an answer, as lm-eval gives them: by prompt (all instructions) and by instruction, strict and loose.

    By instruction, the value is the share of instructions that were followed and the weight their number. An empty answer
    follows none. Strict checks the answer as it is; loose takes the best of eight variants: with and without its first
    line, its last line, its asterisks. A truncated answer is graded like any other.

    Returns:
        the grades of `METRICS`; all have the failure checker_error where a checker raised.
    """
    variants = _variants(conversation[-1]["content"])
    ids, arguments = item.data["instruction_id_list"], item.data["kwargs"]
    try:
        found = [_follows(_checker(name, given), variants) for name, given in zip(ids, arguments, strict=True)]
    except Exception:  # a checker's own bug on this answer, such as JSON nested too deeply
        return [
            Grade(metric=m, value=math.nan, weight=len(ids) if "instruction" in m else 1, failure="checker_error")
            for m in METRICS
        ]
    grades = []
    for place, kind in enumerate(("strict", "loose")):
        followed = [pair[place] for pair in found]
        share = sum(followed) / len(ids)
        grades += [
            Grade(metric=f"prompt_{kind}", value=float(all(followed))),
            Grade(metric=f"instruction_{kind}", value=share, weight=len(ids)),
        ]
    return grades


def _variants(answer: str) -> list[str]:
    """The answer itself, then the other variants of the loose criterion."""
    lines = answer.split("\n")
    cut = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(variant.replace("*", "") for variant in cut)]


def _follows(checker: Any, variants: Sequence[str]) -> tuple[bool, bool]:
    """Whether the first variant follows an instruction, and whether any does."""

    def follows(variant: str) -> bool:
        return bool(variant.strip() and checker.check_following(variant))

    strict = follows(variants[0])
    return strict, strict or any(follows(variant) for variant in variants[1:])


def _checker(instruction_id: str, arguments: Mapping[str, Any]) -> Any:
    """lm-eval's checker of an instruction with these arguments."""
    checker = _checkers()[instruction_id](instruction_id)
    letter = arguments.get("letter", "a")
    if letter in string.ascii_letters or len(letter) > 1:
        checker.build_description(**arguments)
    else:
        # Two prompts of the official file count "#" and "!", for which the checker would draw a letter at random.
        checker.build_description(**{**arguments, "letter": "a"})
        checker._letter = letter.lower()
    return checker


@cache
def _checkers() -> Mapping[str, Any]:
    """lm-eval's checkers by instruction id, without network and random results.

    Raises:
        UserError: a package is missing.
    """
    try:
        nltk, langdetect = importlib.import_module("nltk"), importlib.import_module("langdetect")
        tokenizer = english_sentences()
        find = nltk.data.find
        nltk.data.find = lambda *_, **__: ""  # where NLTK's own model is not found, the import would fetch it
        try:
            registry = importlib.import_module("lm_eval.tasks.ifeval.instructions_registry")
        finally:
            nltk.data.find = find
    except ImportError as error:
        raise UserError(f"IFEval's checkers: {error}; pip install '.[eval]' in the checkout adds them") from None
    langdetect.DetectorFactory.seed = 0  # its answers about short texts are random otherwise
    _replace_tokenizers(registry.instructions.instructions_util, nltk, tokenizer)
    checkers: Mapping[str, Any] = registry.INSTRUCTION_DICT
    return checkers


def _replace_tokenizers(util: Any, nltk: ModuleType, sentences: Any) -> None:
    """Let lm-eval's checkers use these sentences; `nltk` itself stays as it is."""
    words = nltk.tokenize.NLTKWordTokenizer()

    def word_tokenize(text: str) -> list[str]:
        return [word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)]

    util._get_sentence_tokenizer = lambda: sentences
    util.nltk = SimpleNamespace(tokenize=nltk.tokenize, word_tokenize=word_tokenize)


def english_sentences() -> Any:
    """NLTK's Punkt sentence tokenizer with its English model, read from the `punkt` package.

    Raises:
        ImportError: a package is missing.
    """
    model: Any = importlib.import_module("punkt").load_model("english")
    punkt = importlib.import_module("nltk.tokenize.punkt")
    parameters = punkt.PunktParameters()
    parameters.abbrev_types = set(model.abbrev_types)
    parameters.collocations = set(model.collocations)
    parameters.sent_starters = set(model.sent_starters)
    parameters.ortho_context.update(model.ortho_context)
    return punkt.PunktSentenceTokenizer(parameters)
