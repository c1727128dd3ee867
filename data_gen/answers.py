"""Answers for the SFT set, the checks that an answer must pass, and the choice among several."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from align.core.formats import broken, demands, split_input
from align.core.hashing import content_id
from align.core.language import content_units, detect, letter_counts, repetition
from align.core.rows import Instruction, Made, Message, Reject, Response, Score, SftExample
from align.engines.complete import Ask, Asking, Job, Unusable, Writer, ask_parsed
from align.engines.protocol import Sampling
from align.engines.sample import response_rows
from data_gen.eliminators import is_refusal
from data_gen.judge import parse_marks
from data_gen.prompts import Prompts, fields
from data_gen.tasks import INPUT_TASKS

PURPOSE = "answer"
# Their answers have a form of their own, which the usual "in two or three sentences" would contradict.
_OWN_FORM = ("code", "format", "list", "plan", "role_play")
REFUSAL_CHARS = 4000  # a refusal comes first; a long answer need not be read to its end for it
# Of the content of an answer that was rewritten from a passage, the share that must be the passage's.
MIN_REWRITTEN = 0.4
_FENCED = re.compile(r"^[ \t]*```.*?(?:^[ \t]*```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class AnswerRules:
    """How answers are written; the recipe's section `answers` says what each is for."""

    writer: Mapping[str, str]
    grounded: bool
    candidates: int
    sampling: Sampling


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an answer may rest on: the unit's statement, and the passage of its document around it."""

    fact: str
    passage: str


def answer_messages(instruction: Instruction, fact: str | None, prompts: Prompts) -> list[Message]:
    """What the answering model sees: the dialogue, with the knowledge unit in its last turn where `fact` is given.

    A request about an input of its own is answered from that input.
    """
    if fact is None or instruction.task_type in INPUT_TASKS:
        return instruction.messages
    question = instruction.messages[-1]["content"]
    own_form = instruction.task_type in _OWN_FORM or "\n" in question or demands(question, instruction.lang)
    name = "answer-plain" if own_form else "answer"
    return [*instruction.messages[:-1], *prompts.render(name, instruction.lang, fact=fact, instruction=question)]


def answers(
    writer: Writer, asked: Iterable[tuple[Instruction, Source]], prompts: Prompts, rules: AnswerRules
) -> Iterator[Made]:
    """Answers to instructions, a `Made` each, as they are done."""
    jobs = (Job(key=i.id, asking=answer_job(i, source, prompts, rules)) for i, source in asked)
    return (made for _, made in writer.run(jobs, label="respond", total=None, unit="prompts"))


def answer_job(instruction: Instruction, source: Source, prompts: Prompts, rules: AnswerRules) -> Asking[Made]:
    """The answers asked of one instruction: a model's, a model's rewriting of the passage, or the passage itself.

    Text first and the prompt made from it is instruction back-translation (Humpback, arXiv 2308.06259); the answer
    rewritten on that text makes it back-and-forth translation (arXiv 2408.04614).
    """
    how = rules.writer[instruction.answer_lang]
    if how == "document":
        return Made(rows=[document_response(instruction, source.passage)], asked=1)
    if how == "rewrite" and instruction.task_type not in INPUT_TASKS:
        question = instruction.messages[-1]["content"]
        last = prompts.render("rewrite-answer", instruction.lang, passage=source.passage, instruction=question)
        messages = [*instruction.messages[:-1], *last]
    else:
        messages = answer_messages(instruction, source.fact if rules.grounded else None, prompts)
    (reply,) = yield [
        Ask(id=instruction.id, purpose=PURPOSE, messages=messages, sampling=rules.sampling, n=rules.candidates)
    ]
    made = response_rows(instruction.id, "base", reply, rules.candidates)
    if how != "rewrite" or instruction.task_type in INPUT_TASKS:
        return made
    kept = [row for row in made.rows if _rests_on(row.text, source.passage, instruction.lang)]
    rejects = [
        Reject(id=row.id, reason="not_grounded", raw=row.text, topic_id=instruction.topic_id)
        for row in made.rows
        if row not in kept
    ]
    return Made(rows=kept, rejects=[*made.rejects, *rejects], asked=made.asked)


def _rests_on(text: str, passage: str, lang: str) -> bool:
    units = content_units(text, lang)
    return not units or len(units & content_units(passage, lang)) / len(units) >= MIN_REWRITTEN


def score_job(
    instruction: Instruction, response: Response, prompts: Prompts, sampling: Sampling, tries: int
) -> Asking[Made]:
    """A judge's mark from 1 to 10 for one answer, as a score."""
    question = "\n".join(m["content"] for m in instruction.messages if m["role"] != "system")
    ask = Ask(
        id=response.id,
        purpose="judge-answer",
        messages=prompts.render("judge-answer", instruction.lang, instruction=question, answer=response.text),
        sampling=sampling,
        json_schema=fields("score", numbers=True),
    )
    marks = yield from ask_parsed(ask, partial(parse_marks, names=("score",)), tries)
    key = content_id("score", "judge", response.id)
    if isinstance(marks, Unusable):
        return Made(rejects=[Reject(id=key, reason=marks.reason, raw=marks.raw, topic_id=instruction.topic_id)], asked=1)
    row = Score(id=key, response_id=response.id, prompt_id=instruction.id, reward_model="judge", score=marks["score"])
    return Made(rows=[row], asked=1)


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


def text_fault(text: str, lang: str, max_repetition: float) -> str:
    """Why a text is no usable answer in `lang`, or an empty text."""
    if not text:
        return "empty"
    # Signs and keywords say little about a language: a fenced block, or JSON.
    prose = "" if text.startswith(("{", "[")) else _FENCED.sub("", text)
    if detect(text) != lang and detect(prose) != lang and (prose == text or any(letter_counts(prose))):
        return "off_language"
    if is_refusal(text[:REFUSAL_CHARS], lang):
        return "refusal"
    if repetition(text) > max_repetition:
        return "repetitive"
    return ""


def answer_fault(response: Response, instruction: Instruction, max_repetition: float) -> str:
    """Why an answer is not fit for the SFT set, or an empty text."""
    if response.text and response.finish_reason != "stop":
        return "truncated"
    fault = text_fault(response.text, instruction.answer_lang, max_repetition)
    return fault or demand_fault(response.text, instruction)


def demand_fault(text: str, instruction: Instruction) -> str:
    """The first format demand of an instruction's last turn that an answer breaks, or an empty text."""
    request, _ = split_input(instruction.messages[-1]["content"])
    faults = (broken(demand, text, instruction.answer_lang) for demand in demands(request, instruction.lang))
    return next((fault for fault in faults if fault), "")


def sft_set(
    instructions: Sequence[Instruction],
    responses: Sequence[Response],
    *,
    max_repetition: float,
    scores: Mapping[str, float] | None = None,
) -> tuple[list[SftExample], list[Reject]]:
    """One example per instruction; exact duplicates (prompt and answer) are rejected.

    Of the answers that pass the checks the one with the highest score is taken, or the first where there are no `scores`
    (by response id; an answer without one comes last). Every instruction ends as an example or as a reject that names the
    last answer's fault.
    """
    by_prompt: dict[str, list[Response]] = {}
    for response in responses:
        by_prompt.setdefault(response.prompt_id, []).append(response)
    rows: list[SftExample] = []
    rejects: list[Reject] = []
    seen: set[tuple[str, str]] = set()
    for instruction in instructions:
        fault, chosen, best = "no_answer", None, float("-inf")
        for response in sorted(by_prompt.get(instruction.id, []), key=lambda r: r.sample_index):
            found = answer_fault(response, instruction, max_repetition)
            score = (scores or {}).get(response.id, float("-inf"))
            if not found and (chosen is None or score > best):
                chosen, best = response, score
            fault = found or fault
        question = "\n".join(m["content"] for m in instruction.messages)
        fault = "" if chosen else fault
        if chosen and (question, chosen.text) in seen:
            fault = "duplicate"
        if fault:
            last = chosen or next(iter(reversed(by_prompt.get(instruction.id, []))), None)
            raw = f"{question} -> {last.text if last else ''}"
            rejects.append(Reject(id=instruction.id, reason=fault, raw=raw, topic_id=instruction.topic_id))
            continue
        assert chosen is not None
        seen.add((question, chosen.text))
        rows.append(
            SftExample(
                id=content_id("sft", instruction.id, chosen.id),
                parent_id=instruction.id,
                topic_id=instruction.topic_id,
                messages=[*instruction.messages, {"role": "assistant", "content": chosen.text}],
                lang=instruction.answer_lang,
                generation=instruction.generation,
                task_type=instruction.task_type,
                license=instruction.license,
                pii=instruction.pii,
            )
        )
    return rows, rejects
