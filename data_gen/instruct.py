"""Knowledge units to instructions: a model turns each fact into requests, or a template names its key term."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from align.core.formats import draw, split_input
from align.core.hashing import content_id, derive_seed, unit_interval
from align.core.language import content_units, detect, sentences, words
from align.core.rows import Instruction, Knowledge, Made, Message, Reject
from align.engines.complete import Ask, Asking, Job, Reply, Writer
from align.engines.protocol import Sampling
from data_gen.eliminators import has_chatter, is_refusal
from data_gen.prompts import Prompts
from data_gen.request_parts import is_statement, stems
from data_gen.tasks import INPUT_TASKS, Wish
from data_gen.taxonomy import Node

MAX_WORDS = 60
PURPOSE = "instruct"
# An instruction that points at a text nobody sees cannot be answered.
_POINTS_AT_SOURCE = re.compile(
    r"\b(this|the|that|these|those) (facts?(?! that)|text|passage(?! of)|statement|sentence)\b"
    r"|(?<![가-힣])(주어진|제시된|다음|위|아래) (사실|글|문장|지문)|이 (글|사실)[은이을에]",
    re.IGNORECASE,
)
# What models put before a request and around it: a number or label, bold type, quotation marks.
_LABEL = re.compile(
    r"^(?:\d{1,2}[.)]\s+)?"
    r"(?:[*_#\s]*(?:(?:next )?question|request|instruction|fact|text|(?:다음 )?질문|요청|사실|글)[*_\s]*[:：][*_\s]*)?",
    re.IGNORECASE,
)
_WRAPPED = re.compile(r"(?:\*\*)?[\"“”]?([^\"“”]*?)[\"“”]?(?:\*\*)?")

_DEMANDS = re.compile(
    r"[,?;]|\d+|\b(why|how|while|if|compare|exactly|at least|because)\b|왜|어떻게|비교|정확히", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class WritingRules:
    """How instructions are written; the recipe's section `instructions` says what each is for."""

    writer: Mapping[str, str]
    sampling: Sampling


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What instructions are written from: a unit, its topic, the passage of its document around it, its prompt set."""

    unit: Knowledge
    topic: Node
    passage: str
    split: str


def split_of(document_id: str, run_seed: int, shares: Mapping[str, float]) -> str:
    """Which prompt set a document's instructions belong to; by hash, so another document never moves it."""
    point, total = unit_interval(run_seed, "split", document_id), 0.0
    for name, share in shares.items():
        total += share
        if point < total:
            return name
    return list(shares)[-1]


def keyword(statement: str, topic: Node, lang: str) -> str:
    """The term of the topic that the statement names (the longest), else the topic's own name."""
    named = [t for t in topic.include.get(lang, []) if t.lower() in statement.lower()]
    return max(named, key=len) if named else topic.name[lang]


def passage_around(document: str, unit: Knowledge, max_chars: int) -> str:
    """A document's own words from a unit's sentence on, up to `max_chars`; the first sentence is kept whole.

    The unit's sentence is its statement where the document has it, else the first of its quote.
    """
    found = sentences(document)
    start = next((i for i, s in enumerate(found) if s == unit.statement), None)
    if start is None:
        start = next((i for i, s in enumerate(found) if unit.quote.startswith(s)), 0)
    kept: list[str] = []
    for sentence in found[start:]:
        if kept and sum(map(len, kept)) + len(sentence) > max_chars:
            break
        kept.append(sentence)
    return " ".join(kept)


def instructions(
    writer: Writer, wanted: Iterable[tuple[Subject, Sequence[Wish]]], prompts: Prompts, rules: WritingRules, run_seed: int
) -> Iterator[Made]:
    """The instructions of units, a `Made` each, as they are done."""
    jobs = (Job(key=s.unit.id, asking=instruction_job(s, wishes, prompts, rules, run_seed)) for s, wishes in wanted)
    return (made for _, made in writer.run(jobs, label="instruct", total=None, unit="units"))


def instruction_job(
    subject: Subject, wishes: Sequence[Wish], prompts: Prompts, rules: WritingRules, run_seed: int
) -> Asking[Made]:
    """What became of a unit's wishes, each a row or a reject."""
    lang = subject.unit.lang
    if rules.writer[lang] == "template":
        made: list[Instruction | Reject] = [_by_template(subject, wish, prompts, run_seed) for wish in wishes]
    else:
        asked = [
            Ask(id=wish.id, purpose=PURPOSE, messages=wish_messages(subject, wish, prompts), sampling=rules.sampling)
            for wish in wishes
        ]
        replies = (yield asked) if asked else []
        made = [
            _written(subject, wish, ask.messages, reply, run_seed)
            for wish, ask, reply in zip(wishes, asked, replies, strict=True)
        ]
    return Made(
        rows=[row for row in made if isinstance(row, Instruction)],
        rejects=[row for row in made if isinstance(row, Reject)],
        asked=len(wishes),
    )


def wish_messages(subject: Subject, wish: Wish, prompts: Prompts) -> list[Message]:
    """What a model sees that is to write an instruction."""
    lang = subject.unit.lang
    said = [prompts.render("brief-persona", lang, persona=wish.persona)] if wish.persona else []
    said += [prompts.render(f"brief-{wish.level}", lang)] if wish.level else []
    brief = " ".join(messages[-1]["content"] for messages in said)
    source = {"passage": subject.passage} if wish.task_type in INPUT_TASKS else {"fact": subject.unit.statement}
    return prompts.render(f"instruct-{wish.task_type}", lang, brief=brief, topic=subject.topic.name[lang], **source)


def _by_template(subject: Subject, wish: Wish, prompts: Prompts, run_seed: int) -> Instruction:
    unit = subject.unit
    values = {"keyword": keyword(unit.statement, subject.topic, unit.lang), "topic": subject.topic.name[unit.lang]}
    text = prompts.render(f"template-{wish.task_type}", unit.lang, **values)[-1]["content"]
    return _row(subject, wish, text, "template", run_seed)


def _written(subject: Subject, wish: Wish, prompt: Sequence[Message], reply: Reply, run_seed: int) -> Instruction | Reject:
    unit = subject.unit
    key = content_id("instruct-reject", wish.id)
    text, fault = written_line(reply)
    if not fault:
        fault = instruction_fault(text, unit.statement, unit.lang, wish.task_type)
    if not fault and copied_subject(text, f"{unit.statement} {subject.passage}", prompt, unit.lang):
        fault = "copied_example"
    if fault:
        return Reject(id=key, reason=fault, raw=reply.raw, topic_id=unit.topic_id)
    return _row(subject, wish, text, "generate", run_seed)


def written_line(reply: Reply) -> tuple[str, str]:
    """(the instruction in a model's answer, why there is none). An answer cut after its first line still has one."""
    if reply.error or (reply.fault and "\n" not in reply.texts[0]):
        return "", reply.fault
    return clean_instruction(reply.texts[0]), ""


def clean_instruction(text: str) -> str:
    """A model's line without a number or label before it, marks around it, or what it went on to say in further lines."""
    line = _LABEL.sub("", text.strip().split("\n")[0]).strip()
    wrapped = _WRAPPED.fullmatch(line)
    return wrapped[1].strip() if wrapped else line


def copied_subject(text: str, source: str, prompt: Sequence[Message], lang: str) -> bool:
    """A request about the subject of a worked example in its prompt instead of its own source.

    An example's subject is what its request has from its source; most of that in a text whose own source has none of it is
    a copy.
    """
    own = content_units(source, lang)
    said = content_units(text, lang) - own
    turns = [message["content"] for message in prompt if message["role"] != "system"]
    for shown, request in zip(turns[::2], turns[1::2], strict=False):
        subject = content_units(shown.partition(":")[2], lang) & content_units(request, lang)
        # A Korean noun with a particle is three bigrams; one or two may be a verb's ending.
        enough = max(len(subject) // 2 + 1, 3 if lang == "ko" else 1)
        if not subject & own and len(subject & said) >= enough:
            return True
    return False


def request_fault(text: str, lang: str, min_words: int) -> str:
    """Why a text is no request at all, or an empty text."""
    if len(words(text)) < min_words:
        return "too_short"
    if len(words(text)) > MAX_WORDS:
        return "too_long"
    if detect(text) != lang:
        return "off_language"
    if is_refusal(text, lang):
        return "refusal"
    if has_chatter(text):
        return "chatter"
    return "not_a_request" if is_statement(text, lang) else ""


def instruction_fault(text: str, fact: str, lang: str, task_type: str) -> str:
    """Why a generated instruction cannot be used, or an empty text. One with an input of its own may point at it."""
    if fault := request_fault(text, lang, 3 if lang == "en" else 2):
        return fault
    if text.rstrip(".") in fact:
        return "copies_the_fact"
    if task_type in INPUT_TASKS:
        return ""
    if _POINTS_AT_SOURCE.search(text):
        return "refers_to_source"
    # A Korean noun of one syllable has no bigram without its particle.
    if not (content_units(text, lang) & content_units(fact, lang) or stems(text, lang) & stems(fact, lang)):
        return "not_about_the_fact"
    return ""


def difficulty(text: str) -> float:
    """A measurable proxy in [0, 1): length and the number of conditions asked for.

    1 - exp(-(words/25 + marks/3)) with marks = commas, question marks, digits and words that set conditions or ask for
    reasons. It orders an evolved prompt against its parent; it is no judge of difficulty between topics.
    """
    marks = len(_DEMANDS.findall(text))
    return round(1 - 2.718281828 ** -(len(words(text)) / 25 + marks / 3), 4)


def _row(subject: Subject, wish: Wish, text: str, operator: str, run_seed: int) -> Instruction:
    """A generation-0 row: the request with what its task type adds, and a system prompt where one was drawn."""
    unit = subject.unit
    if wish.task_type in INPUT_TASKS:
        text = f"{text}\n\n{subject.passage}"
    elif wish.task_type == "format":
        mark = "" if text.rstrip("\"'”’").endswith((".", "?", "!")) else "."
        text = f"{text}{mark} {draw(derive_seed(run_seed, 'format', wish.id), unit.lang)[1]}"
    system: list[Message] = [{"role": "system", "content": wish.system}] if wish.system else []
    return Instruction(
        id=content_id("instruction", unit.id, wish.task_type, wish.number, text),
        parent_id=unit.id,
        topic_id=unit.topic_id,
        knowledge_id=unit.id,
        messages=[*system, {"role": "user", "content": text}],
        generation=0,
        operator=operator,
        task_type=wish.task_type,
        persona=wish.persona,
        level=wish.level,
        difficulty=difficulty(split_input(text)[0]),
        judged_difficulty=0.0,
        judged_quality=0.0,
        lang=unit.lang,
        answer_lang=wish.answer_lang,
        split=subject.split,
        license=unit.license,
        pii=unit.pii,
    )


def asked_text(row: Instruction) -> str:
    """What a user says in an instruction, all turns: two rows with the same are duplicates."""
    return "\n".join(message["content"] for message in row.messages if message["role"] == "user")
