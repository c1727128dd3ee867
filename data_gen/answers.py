"""Answers for the SFT set, and the checks that an answer must pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from align.core.chat import Chat
from align.core.hashing import content_id
from align.core.journal import Journal
from align.core.language import detect, repetition, sentences
from align.core.rows import Instruction, Reject, Response, SftExample
from align.engines.complete import Ask, complete
from align.engines.protocol import Answered, Engine, Sampling
from data_gen.evolve import is_refusal
from data_gen.prompts import render


def answer_messages(instruction: Instruction, fact: str | None) -> list[dict[str, str]]:
    """What the answering model sees: the dialogue, with the knowledge unit in its last turn where `fact` is given."""
    if fact is None:
        return instruction.messages
    question = instruction.messages[-1]["content"]
    return [*instruction.messages[:-1], *render("answer", instruction.lang, fact=fact, instruction=question)]


def ask_for_answers(
    engine: Engine,
    chat: Chat,
    instructions: Sequence[Instruction],
    facts: Mapping[str, str] | None,
    *,
    candidates: int,
    sampling: Sampling,
    run_seed: int,
    journal: Journal,
) -> dict[str, Answered]:
    """`candidates` answers per instruction; `facts` maps knowledge ids to statements, or is None for free answers."""
    asks = [
        Ask(id=i.id, messages=answer_messages(i, facts[i.knowledge_id] if facts else None), n=candidates)
        for i in instructions
    ]
    return complete(engine, chat, asks, sampling, run_seed=run_seed, purpose="answer", journal=journal, label="respond")


def passage_from(document: str, statement: str, max_chars: int) -> str:
    """The document's own words as an answer: the sentence of the statement and the next ones, up to
    `max_chars`; the first is kept whole even where it is longer.

    This is the answer side of instruction back-translation (Humpback, arXiv 2308.06259): text first, prompt second.
    """
    all_sentences = sentences(document)
    start = next((i for i, s in enumerate(all_sentences) if s == statement), 0)
    kept: list[str] = []
    for sentence in all_sentences[start:]:
        if kept and sum(map(len, kept)) + len(sentence) > max_chars:
            break
        kept.append(sentence)
    return " ".join(kept)


def document_response(instruction: Instruction, text: str) -> Response:
    """A response row whose text is a passage; it has no sampled token ids."""
    return Response(
        id=content_id("response", instruction.id, "document", 0, text),
        prompt_id=instruction.id,
        model="document",
        sample_index=0,
        token_ids=[],
        text=text,
        finish_reason="stop",
        num_tokens=0,
    )


def answer_fault(response: Response, lang: str, max_repetition: float) -> str:
    """Why an answer is not fit for the SFT set, or an empty text."""
    if not response.text:
        return "empty"
    if response.finish_reason != "stop":
        return "truncated"
    if detect(response.text) != lang:
        return "off_language"
    if is_refusal(response.text):
        return "refusal"
    if repetition(response.text) > max_repetition:
        return "repetitive"
    return ""


def sft_set(
    instructions: Sequence[Instruction], responses: Sequence[Response], *, max_repetition: float
) -> tuple[list[SftExample], list[Reject]]:
    """One example per instruction: its first answer that passes; exact duplicates (prompt and answer) are rejected.

    Every instruction ends as an example or as a reject that names the last answer's fault.
    """
    by_prompt: dict[str, list[Response]] = {}
    for response in responses:
        by_prompt.setdefault(response.prompt_id, []).append(response)
    rows: list[SftExample] = []
    rejects: list[Reject] = []
    seen: set[tuple[str, str]] = set()
    for instruction in instructions:
        fault, chosen = "no_answer", None
        for response in sorted(by_prompt.get(instruction.id, []), key=lambda r: r.sample_index):
            fault = answer_fault(response, instruction.lang, max_repetition)
            if not fault:
                chosen = response
                break
        question = instruction.messages[-1]["content"]
        if chosen and (question, chosen.text) in seen:
            fault = "duplicate"
        if fault:
            rejects.append(Reject(id=instruction.id, reason=fault, raw=f"{question} -> {chosen.text if chosen else ''}"))
            continue
        assert chosen is not None
        seen.add((question, chosen.text))
        rows.append(
            SftExample(
                id=content_id("sft", instruction.id, chosen.id),
                parent_id=instruction.id,
                topic_id=instruction.topic_id,
                messages=[*instruction.messages, {"role": "assistant", "content": chosen.text}],
                lang=instruction.lang,
                generation=instruction.generation,
                task_type=instruction.task_type,
                license=instruction.license,
                pii=instruction.pii,
            )
        )
    return rows, rejects
