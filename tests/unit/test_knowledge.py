"""Knowledge units: what models write read, each reason to drop a unit, grounding, and the choice of a topic."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from align.core.rows import Knowledge, Reject
from align.engines.complete import Ask, Reply
from data_gen.knowledge import (
    MAX_CHARS,
    UnitRules,
    central_sentences,
    facts_schema,
    first_sentence,
    parse_choice,
    parse_facts,
    quoted_span,
    unit_jobs,
)
from data_gen.placement import TopicIndex
from data_gen.prompts import Prompts
from data_gen.taxonomy import load_taxonomy
from tests.jobs import SAMPLING, TEXTS, document, failed, run_job, said

PROMPTS = Prompts()
GOOD = {
    "en": ["Honey keeps for years because its low water content stops bacteria from growing.",
           "Bees make honey from the nectar of flowers."],
    "ko": ["꿀은 수분이 적어 세균이 자라지 못하므로 여러 해 동안 상하지 않는다.",
           "꿀벌은 꽃의 꿀을 모아 벌집에서 꿀을 만든다."],
}  # fmt: skip


@pytest.fixture(scope="module")
def index() -> dict[str, TopicIndex]:
    tree = load_taxonomy(None)
    return {lang: TopicIndex(tree, lang) for lang in ("en", "ko")}


def rules(**changes: Any) -> UnitRules:
    options: dict[str, Any] = {
        "count": 2, "extraction": {"en": "model", "ko": "model"}, "min_grounding": 0.7, "min_similarity": 0.01,
        "neighbours": 5, "placement": "nearest", "shortlist": 4, "tries": 2, "sampling": SAMPLING,
    }  # fmt: skip
    return UnitRules(**options | changes)


def job(
    index: dict[str, TopicIndex], lang: str, answer: Callable[[Ask], str | Reply], **changes: Any
) -> tuple[list[Knowledge], list[Reject], list[Ask]]:
    """The rows, rejects and asks of a document's job."""
    asked_for = rules(**changes)
    (asking,) = unit_jobs([document(lang)], index, PROMPTS, asked_for)
    made, asked = run_job(asking, answer)
    assert made.asked == len(made.rows) + len(made.rejects) == asked_for.count, "every unit asked for is kept or rejected"
    assert len({r.id for r in made.rows}) == len(made.rows) and len({r.id for r in made.rejects}) == len(made.rejects)
    return list(made.rows), list(made.rejects), asked


def units(
    index: dict[str, TopicIndex], lang: str, answer: str | Reply | None, **changes: Any
) -> tuple[list[Knowledge], list[Reject]]:
    """The rows and rejects of a document of which a model says `answer`; None takes its own sentences."""
    if answer is None:
        changes["extraction"] = {lang: "sentences"}
    rows, rejects, asked = job(index, lang, lambda ask: answer or "", **changes)
    assert bool(asked) == (answer is not None)
    return rows, rejects


def facts(*texts: Any) -> str:
    return json.dumps({"facts": list(texts)}, ensure_ascii=False)


def test_parse_facts() -> None:
    assert parse_facts('{"facts": ["a  b\\n c", "꿀"]}') == ["a b c", "꿀"]
    assert parse_facts('{"facts": ["a\tb\nc"]}') == ["a b c"], "constrained decoding lets raw control characters through"
    assert parse_facts('{"facts": []}') == []


@pytest.mark.parametrize(
    "text",
    [
        '{"facts": ["Honey keeps', '{"facts": ["Honey keeps."]', "", "Sure! Here are two facts:",
        'Sure: {"facts": ["a"]}', '{"facts": ["a"]} I hope this helps.', '```json\n{"facts": ["a"]}\n```',
        "[]", '["a", "b"]', '"a"', "null", "5", "{}",
        '{"fact": ["a"]}', '{"facts": "a"}', '{"facts": {"a": 1}}', '{"facts": null}',
        "[" * 5000, '{"facts": ' + "[" * 5000, '{"facts": ["half of an emoji: \\ud83d"]}',
    ],
)  # fmt: skip
def test_what_is_not_the_agreed_json_is_refused(text: str, index: dict[str, TopicIndex]) -> None:
    with pytest.raises(ValueError):
        parse_facts(text)
    rows, rejects = units(index, "en", text)
    assert rows == [] and [r.reason for r in rejects] == ["not_json"] * 2
    assert rejects[0].raw == text


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_good_facts_are_kept_and_placed(lang: str, index: dict[str, TopicIndex]) -> None:
    rows, rejects = units(index, lang, facts(*GOOD[lang]))
    assert rejects == []
    assert [r.statement for r in rows] == GOOD[lang]
    leaves = {node.id for node in load_taxonomy(None).leaves}
    for row in rows:
        assert (row.lang, row.document_id) == (lang, f"doc-{lang}")
        assert row.topic_id in leaves and 0.01 <= row.similarity <= 1


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_the_documents_own_sentences_are_kept(lang: str, index: dict[str, TopicIndex]) -> None:
    rows, rejects = units(index, lang, None)
    assert rejects == []
    assert [r.statement for r in rows] == central_sentences(TEXTS[lang], 2, lang)
    assert all(r.statement in TEXTS[lang] for r in rows)


BAD = [
    ("en", "Honey keeps.", "too_short"),
    ("ko", "꿀은 달다.", "too_short"),
    ("en", "", "too_short"),
    ("en", "Honey keeps for years because " + "its low water content " * 12 + "is low.", "too_long"),
    ("ko", "꿀은 " + "수분이 적어 세균이 자라지 못하므로 " * 12 + "상하지 않는다.", "too_long"),
    ("en", "Honey keeps for years because its low water content stops", "not_a_sentence"),
    ("ko", "꿀은 수분이 적어 세균이 자라지 못하므로 여러 해 동안", "not_a_sentence"),
    ("en", GOOD["ko"][0], "off_language"),
    ("ko", GOOD["en"][0], "off_language"),
    ("en", "Penguins of Antarctica hunt for krill under thick sheets of ice.", "not_grounded"),
    ("ko", "펭귄은 두꺼운 얼음 아래에서 크릴을 사냥하며 살아간다.", "not_grounded"),
    ("en", GOOD["en"][0], "duplicate"),
    ("ko", GOOD["ko"][0], "duplicate"),
    ("en", None, "too_short"),
    ("en", 12345, "too_short"),
    ("en", ["Honey keeps for years because its low water content is low."], "not_a_sentence"),
    ("en", {"fact": "Honey keeps for years because its water content is low."}, "not_a_sentence"),
]


@pytest.mark.parametrize(
    ("lang", "text", "reason"), BAD, ids=[f"{lang}-{reason}-{i}" for i, (lang, _, reason) in enumerate(BAD)]
)
def test_each_fault_drops_one_unit_with_its_reason(lang: str, text: Any, reason: str, index: dict[str, TopicIndex]) -> None:
    rows, rejects = units(index, lang, facts(GOOD[lang][0], text))
    assert [r.statement for r in rows] == [GOOD[lang][0]]
    assert [r.reason for r in rejects] == [reason]


def test_faults_of_a_whole_answer(index: dict[str, TopicIndex]) -> None:
    text = facts(*GOOD["en"])
    cut = units(index, "en", said(text[:40], cut=True))[1]
    assert {(r.reason, r.raw) for r in cut} == {("truncated", text[:40])}
    assert [r.reason for r in units(index, "en", said(text, cut=True))[1]] == ["truncated"] * 2
    assert [r.reason for r in units(index, "en", failed("prompt_too_long: 900 tokens"))[1]] == ["prompt_too_long"] * 2
    assert [r.reason for r in units(index, "en", facts(GOOD["en"][0]))[1]] == ["too_few_sentences"]
    assert [r.reason for r in units(index, "en", text, min_similarity=0.99)[1]] == ["no_topic_near"] * 2
    rows, rejects = units(index, "en", facts(*GOOD["en"], *GOOD["en"]))
    assert len(rows) == 2 and rejects == [], "more facts than asked for are not read"


def test_a_unit_is_one_sentence(index: dict[str, TopicIndex]) -> None:
    assert first_sentence("One is 1.5. Two.") == "One is 1.5."
    assert first_sentence("") == ""
    rows, _ = units(index, "en", facts(f"{GOOD['en'][0]} Penguins hunt krill.", GOOD["en"][1]))
    assert [r.statement for r in rows] == GOOD["en"]


def test_a_statement_is_grounded_in_one_or_two_sentences_that_are_quoted() -> None:
    honey, bees = "Honey keeps for years because its low water content stops bacteria from growing.", GOOD["en"][1]
    assert quoted_span("Honey keeps for years.", TEXTS["en"], "en") == (honey, 1.0)
    assert quoted_span("Honey keeps for years, and bees make it from nectar.", TEXTS["en"], "en") == (f"{honey} {bees}", 1.0)
    quote, share = quoted_span("Honey keeps penguins warm.", TEXTS["en"], "en")
    assert quote == honey and share == pytest.approx(0.5)
    assert quoted_span("Penguins hunt krill.", TEXTS["en"], "en")[1] == 0.0
    assert quoted_span("of the", TEXTS["en"], "en") == ("", 0.0) == quoted_span("Honey keeps.", "", "en")
    # All its words are in the document, but nowhere together.
    assert quoted_span("Small cells are made of flowers by enzymes.", TEXTS["en"], "en")[1] < 0.7
    assert quoted_span("세균이 꿀에서 자라지 못한다", TEXTS["ko"], "ko")[1] > 0.6
    assert quoted_span("펭귄은 얼음에서 사냥한다", TEXTS["ko"], "ko")[1] < 0.3
    twice = f"Bees fly. {honey} Bees fly. {bees}"
    assert quoted_span("Bees fly and make honey from nectar.", twice, "en") == (f"Bees fly. {bees}", 1.0), (
        "words as they stand"
    )
    assert quoted_span(honey, TEXTS["en"].replace(" ", "  "), "en")[0] in TEXTS["en"].replace(" ", "  ")


def test_central_sentences_are_those_that_share_most() -> None:
    text = (
        "Bees make honey from nectar in the hive. Penguins hunt krill under thick ice. The hive holds honey that bees make."
    )
    assert central_sentences(text, 2, "en") == [text.split(". ")[0] + ".", text.split(". ")[2]]
    assert central_sentences(text, 9, "en") == [*(s + "." for s in text.split(". ")[:2]), text.split(". ")[2]]
    assert central_sentences("Too short. So is this.", 2, "en") == []


def test_the_schema_asks_for_that_many_facts_of_that_length() -> None:
    schema = json.loads(facts_schema(3, "ko"))["properties"]["facts"]
    assert (schema["minItems"], schema["maxItems"], schema["items"]["minLength"], schema["items"]["maxLength"]) == (
        3,
        3,
        12,
        MAX_CHARS,
    )


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_the_worked_example_of_knowledge_obeys_the_rules(lang: str) -> None:
    messages = PROMPTS.render("knowledge", lang, text="x", count="2")
    found = parse_facts(messages[2]["content"])
    assert len(found) == 2
    assert all(quoted_span(fact, messages[1]["content"], lang)[1] >= 0.7 for fact in found)


def test_an_unreadable_answer_is_asked_for_again(index: dict[str, TopicIndex]) -> None:
    good = facts(*GOOD["en"])
    rows, rejects, asked = job(index, "en", lambda ask: good if ask.id.endswith("#1") else "Sure!")
    assert [r.statement for r in rows] == GOOD["en"] and rejects == []
    assert [ask.id for ask in asked] == ["doc-en", "doc-en#1"]
    assert TEXTS["en"] in asked[0].messages[-1]["content"]
    assert asked[0].json_schema == facts_schema(2, "en")
    assert len(job(index, "en", lambda ask: "Sure!", tries=1)[2]) == 1


def test_languages_are_compared_with_their_own_topics(index: dict[str, TopicIndex]) -> None:
    of_both = unit_jobs([document("en"), document("ko")], index, PROMPTS, rules())
    for lang, asking in zip(("en", "ko"), of_both, strict=True):
        rows = run_job(asking, lambda ask: facts(*GOOD[ask.id[-2:]]))[0].rows
        assert [(r.statement, r.topic_id, r.similarity) for r in rows] == [
            (r.statement, r.topic_id, r.similarity) for r in units(index, lang, facts(*GOOD[lang]))[0]
        ]


# choice of a topic by a model


def choosing(lang: str, choose: Callable[[list[str]], str | Reply]) -> Callable[[Ask], str | Reply]:
    """A model that states the good facts, and is asked which of the offered topics each belongs to."""

    def answer(ask: Ask) -> str | Reply:
        if ask.purpose == "knowledge":
            return facts(*GOOD[lang])
        assert ask.purpose == "placement" and ask.json_schema is not None
        return choose(json.loads(ask.json_schema)["properties"]["topic"]["enum"])

    return answer


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_a_model_chooses_among_the_nearest_topics(lang: str, index: dict[str, TopicIndex]) -> None:
    nearest = units(index, lang, facts(*GOOD[lang]))[0]
    rows, rejects, asked = job(
        index, lang, choosing(lang, lambda ids: json.dumps({"topic": ids[2]})), placement="choice", shortlist=4
    )
    assert [r.statement for r in rows] == GOOD[lang] and rejects == []
    for row, first, ask in zip(rows, nearest, asked[1:], strict=True):
        assert ask.json_schema is not None
        offered = json.loads(ask.json_schema)["properties"]["topic"]["enum"]
        assert len(offered) == 5 and offered[0] == first.topic_id and offered[-1] == "none"
        shown = ask.messages[-1]["content"]
        assert row.statement in shown and all(f"{i}: {index[lang].about[i]}" in shown for i in offered[:-1])
        assert row.topic_id == offered[2] and row.similarity <= first.similarity


UNREADABLE = [
    (said('{"topic": "bio'), "placement_not_json", '{"topic": "bio'),
    (said('The topic is {"topic": "none"}'), "placement_not_json", 'The topic is {"topic": "none"}'),
    (said(""), "placement_not_json", ""),
    (said('{"topic": "a topic of its own"}'), "placement_not_json", '{"topic": "a topic of its own"}'),
    (said('{"topic": ["none"]}'), "placement_not_json", '{"topic": ["none"]}'),
    (said('{"topics": "none"}'), "placement_not_json", '{"topics": "none"}'),
    (said('["none"]'), "placement_not_json", '["none"]'),
    (said('{"topic": "none"}', cut=True), "placement_truncated", '{"topic": "none"}'),
    (failed("http_400: no such grammar"), "placement_http_400", "http_400: no such grammar"),
]


@pytest.mark.parametrize(
    ("reply", "reason", "raw"), UNREADABLE, ids=[f"{r.fault}{i}" for i, (r, _, _) in enumerate(UNREADABLE)]
)
def test_a_choice_that_cannot_be_read_is_a_reject(reply: Reply, reason: str, raw: str, index: dict[str, TopicIndex]) -> None:
    rows, rejects, asked = job(index, "en", choosing("en", lambda ids: reply), placement="choice", tries=3)
    assert rows == []
    assert [(r.reason, r.raw) for r in rejects] == [(reason, f"{fact} -> {raw}") for fact in GOOD["en"]]
    assert len(asked) == 1 + 2 * (1 if reply.error else 3)


def test_no_topic_may_fit(index: dict[str, TopicIndex]) -> None:
    rows, rejects, _ = job(index, "en", choosing("en", lambda ids: '{"topic": "none"}'), placement="choice")
    assert rows == []
    assert [(r.reason, r.raw) for r in rejects] == [("no_topic_fits", fact) for fact in GOOD["en"]]


def test_only_facts_that_pass_are_placed(index: dict[str, TopicIndex]) -> None:
    def answer(ask: Ask) -> str:
        bad = "Penguins of Antarctica hunt for krill under thick sheets of ice."
        return facts(GOOD["en"][0], bad) if ask.purpose == "knowledge" else '{"topic": "none"}'

    _, rejects, asked = job(index, "en", answer, placement="choice")
    assert [r.reason for r in rejects] == ["no_topic_fits", "not_grounded"]
    assert [ask.id for ask in asked] == ["doc-en", "doc-en/0"]


def test_parse_choice() -> None:
    assert parse_choice('{"topic": "a"}', ["a", "none"]) == "a"
    assert parse_choice('{"topic":\n"none", "why": "x"}', ["a", "none"]) == "none"
    for text in ('{"topic": "b"}', '{"topic": null}', '{"topic": {"id": "a"}}', '"a"', "a", ""):
        with pytest.raises(ValueError):
            parse_choice(text, ["a", "none"])
