"""Documents to knowledge units: what is worth asking about, placed in the taxonomy.

Two ways: a model states the facts (JSON, and each must be grounded in its document), or the document's own most central
sentences are taken as they stand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from align.core.chat import Chat
from align.core.hashing import content_id
from align.core.journal import Journal
from align.core.language import content_units, detect, sentences
from align.core.rows import Document, Knowledge, Reject
from align.engines.complete import Ask, complete
from align.engines.protocol import Answered, Engine, Sampling
from data_gen.prompts import render
from data_gen.taxonomy import TopicIndex

MIN_CHARS = {"en": 30, "ko": 12}
MAX_CHARS = 200


def facts_schema(count: int, lang: str) -> str:
    """JSON schema of a model's answer: exactly `count` facts; without the bounds small models run on or leave them empty."""
    fact = {"type": "string", "minLength": MIN_CHARS[lang], "maxLength": MAX_CHARS}
    facts = {"type": "array", "items": fact, "minItems": count, "maxItems": count}
    return json.dumps({"type": "object", "properties": {"facts": facts}, "required": ["facts"]})


def ask_for_facts(
    engine: Engine,
    chat: Chat,
    documents: Sequence[Document],
    *,
    count: int,
    sampling: Sampling,
    run_seed: int,
    journal: Journal,
) -> dict[str, Answered]:
    """Let a model state `count` facts of each document."""
    asks = [
        Ask(
            id=d.id,
            messages=render("knowledge", d.lang, text=d.text, count=str(count)),
            json_schema=facts_schema(count, d.lang),
        )
        for d in documents
    ]
    return complete(engine, chat, asks, sampling, run_seed=run_seed, purpose="knowledge", journal=journal, label="taxonomy")


def parse_facts(text: str) -> list[str]:
    """The facts in a model's JSON.

    Raises:
        ValueError: not JSON of the agreed shape.
    """
    data = json.loads(text, strict=False)  # grammar-constrained strings may hold raw control characters
    if not isinstance(data, dict) or not isinstance(data.get("facts"), list):
        raise ValueError("no list of facts")
    return [" ".join(str(fact).split()) for fact in data["facts"]]


def first_sentence(fact: str) -> str:
    """A unit is one sentence; small models run on into the next ones."""
    return next(iter(sentences(fact)), "")


def central_sentences(text: str, count: int, lang: str) -> list[str]:
    """The `count` sentences that share most content with the rest of the document, in document order.

    Centrality is the mean overlap of content units with the other sentences, as in LexRank's degree form
    (Erkan and Radev 2004), on sets instead of TF-IDF vectors.
    """
    found = [s for s in sentences(text) if len(s) >= MIN_CHARS[lang]]
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
    found = sentences(document)
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


def knowledge_rows(
    document: Document,
    answered: Answered | None,
    chat: Chat | None,
    index: Mapping[str, TopicIndex],
    *,
    count: int,
    min_grounding: float,
    min_similarity: float,
) -> tuple[list[Knowledge], list[Reject]]:
    """The `count` units asked of one document, each either kept and placed or rejected with a reason.

    A unit is grounded where `min_grounding` of its content is in one or two sentences in a row of the document: its quote.

    `answered` and `chat` are None where the document's own sentences are taken.
    """

    def reject(number: int, reason: str, raw: str) -> Reject:
        return Reject(id=content_id("knowledge-reject", document.id, number), reason=reason, raw=raw)

    if answered is None:
        facts = central_sentences(document.text, count, document.lang)
    else:
        assert chat is not None
        if answered.error:
            reason = answered.error.split(":")[0]
            return [], [reject(i, reason, answered.error) for i in range(count)]
        completion = answered.completions[0]
        text = chat.text(completion.token_ids)
        if completion.finish_reason != "stop":
            return [], [reject(i, "truncated", text) for i in range(count)]
        try:
            facts = [first_sentence(fact) for fact in parse_facts(text)[:count]]
        except ValueError:
            return [], [reject(i, "not_json", text) for i in range(count)]
    rows: list[Knowledge] = []
    rejects = [reject(i, "too_few_sentences", document.text) for i in range(len(facts), count)]
    placed = index[document.lang].nearest([f"{fact} {document.text}" for fact in facts])
    for number, (fact, (topic, similarity)) in enumerate(zip(facts, placed, strict=True)):
        quote, share = quoted_span(fact, document.text, document.lang)
        reason = ""
        if len(fact) < MIN_CHARS[document.lang]:
            reason = "too_short"
        elif len(fact) > MAX_CHARS:
            reason = "too_long"
        elif fact[-1] not in ".!?":
            reason = "not_a_sentence"
        elif detect(fact) != document.lang:
            reason = "off_language"
        elif share < min_grounding:
            reason = "not_grounded"
        elif any(fact == row.statement for row in rows):
            reason = "duplicate"
        elif similarity < min_similarity:
            reason = "no_topic_near"
        if reason:
            rejects.append(reject(number, reason, fact))
            continue
        rows.append(
            Knowledge(
                id=content_id("knowledge", document.id, fact),
                topic_id=topic,
                document_id=document.id,
                statement=fact,
                lang=document.lang,
                quote=quote,
                similarity=round(similarity, 4),
                license=document.license,
                pii=document.pii,
            )
        )
    return rows, rejects
