"""Documents to knowledge units: what is worth asking about, placed in the taxonomy.

Two ways: a model states the facts (JSON, and each must be grounded in its document), or the document's own most central
sentences are taken as they stand. Placement is by similarity alone, or a model chooses among the nearest topics and none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np

from align.core.artifact import SHARD_SIZE
from align.core.hashing import content_id
from align.core.language import content_units, detect, sentences
from align.core.rows import Document, Knowledge, Made, Reject
from align.engines.complete import Ask, Asking, Job, Unusable, Writer, ask_parsed
from align.engines.protocol import Sampling
from data_gen.placement import TopicIndex
from data_gen.prompts import Prompts, read_object

MIN_CHARS = {"en": 30, "ko": 12}
MAX_CHARS = 200
STATES = ".!。"  # what a statement ends with
ENDS = STATES + "?\"'”’)]"  # what a sentence does, and a heading does not
PURPOSE = "knowledge"
BATCH = SHARD_SIZE  # documents placed together: each is compared with the others of its batch
NONE = "none"


@dataclass(frozen=True, kw_only=True)
class UnitRules:
    """How units are taken from documents and placed; the recipe's section `taxonomy` says what each is for."""

    count: int
    extraction: Mapping[str, str]
    min_grounding: float
    min_similarity: float
    neighbours: int
    placement: str
    shortlist: int
    tries: int
    sampling: Sampling


def facts_schema(count: int, lang: str) -> str:
    """JSON schema of a model's answer: exactly `count` facts; without the bounds small models run on or leave them empty."""
    fact = {"type": "string", "minLength": MIN_CHARS[lang], "maxLength": MAX_CHARS}
    facts = {"type": "array", "items": fact, "minItems": count, "maxItems": count}
    return json.dumps({"type": "object", "properties": {"facts": facts}, "required": ["facts"]})


def units(
    writer: Writer, documents: Iterable[Document], index: Mapping[str, TopicIndex], prompts: Prompts, rules: UnitRules
) -> Iterator[Made]:
    """The units of documents, a `Made` each, as they are done."""
    stream = iter(documents)
    jobs = (
        Job(key=document.id, asking=job)
        for batch in iter(lambda: list(islice(stream, BATCH)), [])
        for document, job in zip(batch, unit_jobs(batch, index, prompts, rules), strict=True)
    )
    return (made for _, made in writer.run(jobs, label="taxonomy", total=None, unit="documents"))


def unit_jobs(
    documents: Sequence[Document], index: Mapping[str, TopicIndex], prompts: Prompts, rules: UnitRules
) -> list[Asking[Made]]:
    """One job per document of a batch; where its neighbours in the batch stand tells its own place better."""
    rows: dict[str, np.ndarray] = {}
    for lang in {document.lang for document in documents}:
        of_lang = [document for document in documents if document.lang == lang]
        table = index[lang].of_documents([document.text for document in of_lang], rules.neighbours)
        rows |= {document.id: row for document, row in zip(of_lang, table, strict=True)}
    return [_unit_job(document, index[document.lang], rows[document.id], prompts, rules) for document in documents]


def _unit_job(document: Document, index: TopicIndex, row: np.ndarray, prompts: Prompts, rules: UnitRules) -> Asking[Made]:
    """The `count` units asked of a document, each either kept and placed or rejected with a reason."""

    def reject(number: int, reason: str, raw: str) -> Reject:
        return Reject(id=content_id("knowledge-reject", document.id, number), reason=reason, raw=raw)

    if rules.extraction[document.lang] == "model":
        ask = Ask(
            id=document.id,
            purpose=PURPOSE,
            messages=prompts.render("knowledge", document.lang, text=document.text, count=str(rules.count)),
            sampling=rules.sampling,
            json_schema=facts_schema(rules.count, document.lang),
        )
        told = yield from ask_parsed(ask, parse_facts, rules.tries)
        if isinstance(told, Unusable):
            rejects = [reject(i, told.reason, told.raw) for i in range(rules.count)]
            return Made(rejects=rejects, asked=rules.count)
        facts = [first_sentence(fact) for fact in told[: rules.count]]
    else:
        facts = central_sentences(document.text, rules.count, document.lang)
    rows: list[Knowledge] = []
    rejects = [reject(i, "too_few_sentences", document.text) for i in range(len(facts), rules.count)]
    table = index.of_units(facts, document.text, row)
    for number, (fact, near) in enumerate(zip(facts, table, strict=True)):
        quote, share = quoted_span(fact, document.text, document.lang)
        reason = fact_fault(fact, document.lang)
        if not reason and share < rules.min_grounding:
            reason = "not_grounded"
        elif not reason and any(fact == kept.statement for kept in rows):
            reason = "duplicate"
        elif not reason and near.max() < rules.min_similarity:
            reason = "no_topic_near"
        topic = index.ids[int(near.argmax())]
        raw = fact
        if not reason and rules.placement == "choice":
            chosen = yield from _choose(document, number, fact, near, index, prompts, rules)
            if isinstance(chosen, Unusable):
                reason, raw = f"placement_{chosen.reason}", f"{fact} -> {chosen.raw}"
            elif chosen == NONE:
                reason = "no_topic_fits"
            topic = str(chosen)
        if reason:
            rejects.append(reject(number, reason, raw))
            continue
        rows.append(
            Knowledge(
                id=content_id("knowledge", document.id, fact),
                topic_id=topic,
                document_id=document.id,
                statement=fact,
                lang=document.lang,
                quote=quote,
                similarity=round(float(near[index.ids.index(topic)]), 4),
                license=document.license,
                pii=document.pii,
            )
        )
    return Made(rows=rows, rejects=rejects, asked=rules.count)


def _choose(
    document: Document, number: int, fact: str, near: np.ndarray, index: TopicIndex, prompts: Prompts, rules: UnitRules
) -> Asking[str | Unusable]:
    """The topic that a model picks for a fact among the nearest ones, or `NONE`."""
    ids = index.shortlist(near, rules.shortlist)
    topics = "\n".join(f"{i}: {index.about[i]}" for i in ids)
    ask = Ask(
        id=f"{document.id}/{number}",
        purpose="placement",
        messages=prompts.render("choose-topic", document.lang, text=fact, topics=topics),
        sampling=rules.sampling,
        json_schema=json.dumps({"type": "object", "properties": {"topic": {"enum": [*ids, NONE]}}, "required": ["topic"]}),
    )
    return (yield from ask_parsed(ask, partial(parse_choice, among=[*ids, NONE]), rules.tries))


def parse_choice(text: str, among: Sequence[str]) -> str:
    """The topic in a model's JSON.

    Raises:
        ValueError: not JSON of the agreed shape, or a topic that was not offered.
    """
    topic = read_object(text).get("topic")
    if topic not in among:
        raise ValueError("no topic of the list")
    return str(topic)


def parse_facts(text: str) -> list[str]:
    """The facts in a model's JSON.

    Raises:
        ValueError: not JSON of the agreed shape.
    """
    facts = read_object(text).get("facts")
    if not isinstance(facts, list):
        raise ValueError("no list of facts")
    return [" ".join(str(fact).split()) for fact in facts]


def first_sentence(fact: str) -> str:
    """A unit is one sentence; small models run on into the next ones."""
    return next(iter(sentences(fact)), "")


def central_sentences(text: str, count: int, lang: str) -> list[str]:
    """The `count` statements that share most content with the rest of the document, in document order.

    Centrality is the mean overlap of content units with the other sentences, as in LexRank's degree form
    (Erkan and Radev 2004), on sets instead of TF-IDF vectors.
    """
    found = [s for s in sentences(text) if len(s) >= MIN_CHARS[lang] and s[-1] in STATES]
    units = [content_units(s, lang) for s in found]

    def centrality(i: int) -> float:
        others = [len(units[i] & u) / (1 + len(units[i] | u)) for j, u in enumerate(units) if j != i]
        return sum(others) / len(others) if others else 0.0

    best = sorted(range(len(found)), key=lambda i: (-centrality(i), i))[:count]
    return [found[i] for i in sorted(best)]


def quoted_span(statement: str, document: str, lang: str) -> tuple[str, float]:
    """The words of a document that a statement rests on, and the share of its content units that they contain, in [0, 1].

    The sentence that has most of them, or it and the next one where both together have more.
    """
    units = content_units(statement, lang)
    # A title is no evidence, unless there is nothing else.
    found = [s for s in sentences(document) if s[-1] in ENDS] or sentences(document)
    if not units or not found:
        return "", 0.0
    had = [units & content_units(sentence, lang) for sentence in found]
    one = max(range(len(found)), key=lambda i: len(had[i]))
    two = max(range(len(found) - 1), key=lambda i: len(had[i] | had[i + 1]), default=one)
    if two + 1 < len(found) and len(had[two] | had[two + 1]) > len(had[one]):
        start = stop = 0
        for sentence in found[: two + 2]:  # one after another, since a sentence may be there twice
            start, before = document.index(sentence, stop), start
            stop = start + len(sentence)
        return document[before:stop], len(had[two] | had[two + 1]) / len(units)
    return found[one], len(had[one]) / len(units)


def fact_fault(fact: str, lang: str) -> str:
    """Why a statement is no unit whatever its document says, or an empty text."""
    if len(fact) < MIN_CHARS[lang]:
        return "too_short"
    if len(fact) > MAX_CHARS:
        return "too_long"
    if fact[-1] not in ".!?":
        return "not_a_sentence"
    return "off_language" if detect(fact) != lang else ""
