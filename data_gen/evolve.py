"""Instruction evolution: in-depth and in-breadth rewriting with an eliminator (Evol-Instruct, arXiv 2304.12244, section 3).

Each round evolves a share of the pool. A child that the eliminator rejects leaves its parent in the pool.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from align.core.chat import Chat
from align.core.hashing import content_id, derive_seed, unit_interval
from align.core.journal import Journal
from align.core.language import content_units, detect, words
from align.core.rows import Instruction, Reject
from align.engines.complete import Ask, complete
from align.engines.protocol import Answered, Engine, Sampling
from data_gen.instruct import clean_instruction, difficulty, is_statement
from data_gen.prompts import render

_PROMPT_WORDING = re.compile(
    r"(given|rewritten|new|original) (prompt|question)|#the |질문을 고쳐|주어진 (질문|프롬프트)|새 질문", re.IGNORECASE
)
_REFUSAL = re.compile(
    r"\b(sorry|as an ai|i cannot|i can't|i'm unable)\b|죄송(합|하지만)|(답변|대답|도움|도와)[^.]{0,8} 수 없", re.IGNORECASE
)

# Bigrams of Korean question words and endings: two questions share them whatever they ask about.
_ASKING = frozenset([
    "왜", "나요", "가요", "까요", "인가", "런가", "은가", "는가", "일까", "무엇", "엇인", "엇을", "어떤", "어떻", "떻게",
    "어느", "그런", "해주", "주세", "세요", "하세", "하나", "되나", "있나",
])  # fmt: skip


def _content(text: str, lang: str) -> set[str]:
    return content_units(text, lang) - _ASKING if lang == "ko" else content_units(text, lang)


def no_information_gain(parent: str, child: str, lang: str) -> bool:
    """The child says nothing that the parent did not: no new content unit."""
    return not _content(child, lang) - _content(parent, lang)


def copies_prompt_wording(child: str) -> bool:
    """The child talks about the rewriting task itself."""
    return bool(_PROMPT_WORDING.search(child))


def is_refusal(child: str) -> bool:
    """An apology or a refusal instead of an instruction."""
    return bool(_REFUSAL.search(child))


def only_punctuation_or_stop_words(child: str, lang: str) -> bool:
    """Nothing but function words."""
    return not _content(child, lang)


def switches_language(child: str, lang: str) -> bool:
    """The child is not in its parent's language."""
    return detect(child) != lang


def loses_subject(parent: str, child: str, lang: str) -> bool:
    """An in-depth child shares no content with its parent."""
    return not _content(child, lang) & _content(parent, lang)


def blows_up(parent: str, child: str) -> bool:
    """Longer than three times the parent plus 20 words: Evol-Instruct's prompts allow 10 to 20 added words."""
    return len(words(child)) > 3 * len(words(parent)) + 20


def copies_example(child: str, operator: str, lang: str, size: int = 5) -> bool:
    """The child repeats `size` words in a row of a worked example in its prompt."""

    def grams(text: str) -> set[tuple[str, ...]]:
        w = words(text)
        return {tuple(w[i : i + size]) for i in range(len(w) - size + 1)}

    examples = [m["content"] for m in render(f"evolve-{operator}", lang, instruction="") if m["role"] == "assistant"]
    return any(grams(child) & grams(example) for example in examples)


def elimination_reason(parent: str, child: str, operator: str, lang: str) -> str:
    """Why the eliminator drops a child, or an empty text. In-breadth children may leave their parent's words behind."""
    if only_punctuation_or_stop_words(child, lang):
        return "no_content"
    if switches_language(child, lang):
        return "language_switch"
    if is_refusal(child):
        return "refusal"
    if copies_prompt_wording(child):
        return "copied_prompt_wording"
    if copies_example(child, operator, lang):
        return "copied_example"
    if no_information_gain(parent, child, lang):
        return "no_information_gain"
    if operator != "breadth" and loses_subject(parent, child, lang):
        return "lost_subject"
    if blows_up(parent, child):
        return "length_blow_up"
    if is_statement(child, lang):
        return "not_a_request"
    return ""


def choose(
    pool: Sequence[Instruction], *, operators: Sequence[str], share: float, round_number: int, run_seed: int
) -> list[tuple[Instruction, str]]:
    """The instructions of this round's evolution and the operator of each, by hash of their ids."""
    return [
        (row, operators[derive_seed(run_seed, "operator", round_number, row.id) % len(operators)])
        for row in pool
        if unit_interval(run_seed, "evolve", round_number, row.id) < share
    ]


def ask_for_children(
    engine: Engine,
    chat: Chat,
    chosen: Sequence[tuple[Instruction, str]],
    *,
    round_number: int,
    sampling: Sampling,
    run_seed: int,
    journal: Journal,
) -> dict[str, Answered]:
    """One rewriting request per chosen instruction, keyed by its id."""
    asks = [
        Ask(id=row.id, messages=render(f"evolve-{operator}", row.lang, instruction=row.messages[-1]["content"]))
        for row, operator in chosen
    ]
    label = f"evolve round {round_number}"
    return complete(engine, chat, asks, sampling, run_seed=run_seed, purpose=label, journal=journal, label=label)


def child_or_reject(parent: Instruction, operator: str, answered: Answered, chat: Chat) -> Instruction | Reject:
    """What became of one rewriting request."""
    key = content_id("evolve-reject", parent.id, parent.generation, operator)
    if answered.error:
        return Reject(id=key, reason=answered.error.split(":")[0], raw=answered.error)
    completion = answered.completions[0]
    raw = chat.text(completion.token_ids)
    if completion.finish_reason != "stop" and "\n" not in raw:
        return Reject(id=key, reason="truncated", raw=raw)
    text = clean_instruction(raw)
    before = parent.messages[-1]["content"]
    if reason := elimination_reason(before, text, operator, parent.lang):
        return Reject(id=key, reason=reason, raw=f"{before} -> {raw}")
    return Instruction(
        id=content_id("instruction", parent.id, text),
        parent_id=parent.id,
        topic_id=parent.topic_id,
        knowledge_id=parent.knowledge_id,
        messages=[*parent.messages[:-1], {"role": "user", "content": text}],
        generation=parent.generation + 1,
        operator=operator,
        task_type=parent.task_type,
        difficulty=difficulty(text),
        lang=parent.lang,
        split=parent.split,
        license=parent.license,
        pii=parent.pii,
    )
