"""Knowledge units to instructions: a model turns each fact into requests, or a template names its key term."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from align.core.chat import Chat
from align.core.hashing import content_id, derive_seed, unit_interval
from align.core.journal import Journal
from align.core.language import content_units, detect, words
from align.core.rows import Instruction, Knowledge, Reject
from align.engines.complete import Ask, complete
from align.engines.protocol import Answered, Engine, Sampling
from data_gen.prompts import render
from data_gen.taxonomy import Node

MAX_WORDS = 60
# An instruction that points at a text nobody sees cannot be answered.
_POINTS_AT_SOURCE = re.compile(
    r"\b(this|the|that|these|those) (fact|facts|text|passage|statement|sentence)\b"
    r"|주어진 (사실|글|문장)|이 (글|사실)[은이을에]",
    re.IGNORECASE,
)
_LABEL = re.compile(r"^\s*(question|request|instruction|fact|질문|요청|사실)\s*:\s*", re.IGNORECASE)

_DEMANDS = re.compile(
    r"[,?;]|\d+|\b(why|how|while|if|compare|exactly|at least|because)\b|왜|어떻게|비교|정확히", re.IGNORECASE
)


def split_of(document_id: str, run_seed: int, shares: Mapping[str, float]) -> str:
    """Which prompt set a document's instructions belong to; by hash, so another document never moves it."""
    point, total = unit_interval(run_seed, "split", document_id), 0.0
    for name, share in shares.items():
        total += share
        if point < total:
            return name
    return list(shares)[-1]


def task_types_of(unit: Knowledge, task_types: Sequence[str], count: int, run_seed: int) -> list[str]:
    """`count` task types for a unit, spread evenly: a rotation that starts at a seeded place."""
    start = derive_seed(run_seed, "task-type", unit.id) % len(task_types)
    return [task_types[(start + i) % len(task_types)] for i in range(count)]


def keyword(statement: str, topic: Node, lang: str) -> str:
    """The term of the topic that the statement names (the longest), else the topic's own name."""
    named = [t for t in topic.include.get(lang, []) if t.lower() in statement.lower()]
    return max(named, key=len) if named else topic.name[lang]


def ask_for_instructions(
    engine: Engine,
    chat: Chat,
    numbered: Sequence[tuple[int, tuple[Knowledge, str]]],
    *,
    sampling: Sampling,
    run_seed: int,
    journal: Journal,
) -> dict[str, Answered]:
    """One request per numbered wish (see `enumerate_asks`), keyed by `ask_id`."""
    asks = [
        Ask(id=ask_id(unit, task_type, i), messages=render(f"instruct-{task_type}", unit.lang, fact=unit.statement))
        for i, (unit, task_type) in numbered
    ]
    return complete(engine, chat, asks, sampling, run_seed=run_seed, purpose="instruct", journal=journal, label="instruct")


def enumerate_asks(wanted: Sequence[tuple[Knowledge, str]]) -> list[tuple[int, tuple[Knowledge, str]]]:
    """Number repeated (unit, task type) wishes 0, 1, ... so that each is its own draw."""
    count: dict[tuple[str, str], int] = {}
    numbered = []
    for unit, task_type in wanted:
        number = count.get((unit.id, task_type), 0)
        count[unit.id, task_type] = number + 1
        numbered.append((number, (unit, task_type)))
    return numbered


def ask_id(unit: Knowledge, task_type: str, number: int) -> str:
    """The id of one wish."""
    return f"{unit.id}/{task_type}/{number}"


def clean_instruction(text: str) -> str:
    """A model's line without a copied label, quotes around it, or what it went on to say in further paragraphs."""
    line = text.strip().split("\n")[0]
    return _LABEL.sub("", line).strip().strip('"“”').strip()


def is_statement(child: str, lang: str) -> bool:
    """The model answered or explained instead of asking."""
    if lang == "ko":
        return child.rstrip().endswith("다.")
    asks = "?" in child or re.match(
        r"(explain|list|describe|compare|name|give|write|tell|show|how|what|why|which|if|summarize|discuss|i |suppose)\b",
        child.strip(), re.IGNORECASE,
    )  # fmt: skip
    return not asks


def instruction_fault(text: str, fact: str, lang: str) -> str:
    """Why a generated instruction cannot be used, or an empty text."""
    if len(words(text)) < (3 if lang == "en" else 2):
        return "too_short"
    if len(words(text)) > MAX_WORDS:
        return "too_long"
    if detect(text) != lang:
        return "off_language"
    if is_statement(text, lang):
        return "not_a_request"
    if _POINTS_AT_SOURCE.search(text):
        return "refers_to_source"
    if text.rstrip(".") in fact:
        return "copies_the_fact"
    if not content_units(text, lang) & content_units(fact, lang):
        return "not_about_the_fact"
    return ""


def difficulty(text: str) -> float:
    """A measurable proxy in [0, 1): length and the number of conditions asked for.

    1 - exp(-(words/25 + marks/3)) with marks = commas, question marks, digits and words that set conditions or ask for
    reasons. It orders an evolved prompt against its parent; it is no judge of difficulty between topics.
    """
    marks = len(_DEMANDS.findall(text))
    return round(1 - 2.718281828 ** -(len(words(text)) / 25 + marks / 3), 4)


def instruction_row(unit: Knowledge, task_type: str, number: int, text: str, *, operator: str, split: str) -> Instruction:
    """A generation-0 row; `number` tells repeated wishes of one unit and task type apart."""
    return Instruction(
        id=content_id("instruction", unit.id, task_type, number, text),
        parent_id=unit.id,
        topic_id=unit.topic_id,
        knowledge_id=unit.id,
        messages=[{"role": "user", "content": text}],
        generation=0,
        operator=operator,
        task_type=task_type,
        difficulty=difficulty(text),
        lang=unit.lang,
        split=split,
        license=unit.license,
        pii=unit.pii,
    )


def instruction_or_reject(
    unit: Knowledge, task_type: str, number: int, answered: Answered | None, chat: Chat | None, topic: Node, split: str
) -> Instruction | Reject:
    """What became of one wish; `answered` is None where templates write instructions."""
    if answered is None:
        values = {"keyword": keyword(unit.statement, topic, unit.lang), "topic": topic.name[unit.lang]}
        text = render(f"template-{task_type}", unit.lang, **values)[-1]["content"]
        return instruction_row(unit, task_type, number, text, operator="template", split=split)
    key = content_id("instruct-reject", ask_id(unit, task_type, number))
    if answered.error:
        return Reject(id=key, reason=answered.error.split(":")[0], raw=answered.error)
    assert chat is not None
    completion = answered.completions[0]
    raw = chat.text(completion.token_ids)
    if completion.finish_reason != "stop" and "\n" not in raw:
        return Reject(id=key, reason="truncated", raw=raw)
    text = clean_instruction(raw)
    if fault := instruction_fault(text, unit.statement, unit.lang):
        return Reject(id=key, reason=fault, raw=raw)
    return instruction_row(unit, task_type, number, text, operator="generate", split=split)
