"""Knowledge units: parsing what models write, each reason to drop a unit, grounding, and prompt templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.core.errors import StepError
from align.core.rows import Document, Knowledge, Reject
from align.engines.protocol import Answered, Completion
from data_gen import prompts
from data_gen.knowledge import (
    MAX_CHARS,
    central_sentences,
    facts_schema,
    first_sentence,
    knowledge_rows,
    parse_facts,
    quoted_span,
)
from data_gen.taxonomy import TopicIndex, load_taxonomy

PROMPTS = Path(prompts.__file__).parent / "prompts"
TEXTS = {
    "en": "Bacteria are small cells. Honey keeps for years because its low water content stops bacteria from growing. "
    "Bees make honey from the nectar of flowers. Enzymes of the bees turn sugar into acid.",
    "ko": "세균은 작은 세포이다. 꿀은 수분이 적어 세균이 자라지 못하므로 여러 해 동안 상하지 않는다. "
    "꿀벌은 꽃의 꿀을 모아 벌집에서 꿀을 만든다. 꿀벌의 효소는 당을 산으로 바꾼다.",
}
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


class Written:
    """A tokenizer whose tokens are the characters' code points."""

    def text(self, ids: tuple[int, ...]) -> str:
        return "".join(map(chr, ids)).strip()


def document(lang: str) -> Document:
    return Document(id=f"doc-{lang}", text=TEXTS[lang], lang=lang, source="test", license="CC0-1.0", pii="email")


def units(
    index: dict[str, TopicIndex], lang: str, text: str | None, *, reason: str = "stop", error: str = "", **changes: Any
) -> tuple[list[Knowledge], list[Reject]]:
    answered = None
    if text is not None:
        ids = tuple(map(ord, text))
        answered = Answered(request_id="x", completions=(Completion(token_ids=ids, finish_reason=reason),), error=error)
    options: dict[str, Any] = {"count": 2, "min_grounding": 0.7, "min_similarity": 0.01} | changes
    rows, rejects = knowledge_rows(document(lang), answered, Written(), index, **options)  # type: ignore[arg-type]
    assert len(rows) + len(rejects) == options["count"], "every unit asked for is kept or rejected"
    assert len({r.id for r in rows}) == len(rows) and len({r.id for r in rejects}) == len(rejects)
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
    assert [r.reason for r in units(index, "en", text, reason="length")[1]] == ["truncated"] * 2
    assert [r.reason for r in units(index, "en", "", error="prompt_too_long: 900 tokens")[1]] == ["prompt_too_long"] * 2
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
    assert quoted_span("Honey keeps penguins warm.", TEXTS["en"], "en") == (honey, pytest.approx(0.5))
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


NAMES = sorted(p.stem for p in (PROMPTS / "en").glob("*.md"))


@pytest.mark.parametrize("name", NAMES)
def test_templates_are_twins_and_render(name: str) -> None:
    wanted = prompts.variables(name, "en")
    assert prompts.variables(name, "ko") == wanted
    for lang in ("en", "ko"):
        # Braces and headings in what users bring must come out as they went in.
        values = {key: f"{{{key}}} ## user {{}}" for key in wanted}
        messages = prompts.render(name, lang, **values)
        assert messages[-1]["role"] == "user"
        turns = [m["role"] for m in messages if m["role"] != "system"]
        assert turns == ["user", "assistant"] * (len(turns) // 2) + ["user"]
        text = "\n".join(m["content"] for m in messages)
        assert all(value in text for value in values.values())
        assert all(m["content"] for m in messages)
        assert "##" not in text.replace("## user {}", "")


def test_no_korean_template_lacks_its_english_twin() -> None:
    assert sorted(p.stem for p in (PROMPTS / "ko").glob("*.md")) == NAMES
    assert len(NAMES) >= 17


def test_a_missing_or_unused_variable_is_refused() -> None:
    with pytest.raises(StepError, match=r"ko/answer\.md uses \['fact', 'instruction'\], given \['fact'\]"):
        prompts.render("answer", "ko", fact="x")
    with pytest.raises(StepError, match="given"):
        prompts.render("answer", "en", fact="x", instruction="y", topic="z")


def test_the_worked_example_of_knowledge_obeys_the_rules(index: dict[str, TopicIndex]) -> None:
    for lang in ("en", "ko"):
        messages = prompts.render("knowledge", lang, text="x", count="2")
        found = parse_facts(messages[2]["content"])
        assert len(found) == 2
        source = messages[1]["content"]
        assert all(quoted_span(fact, source, lang)[1] >= 0.7 for fact in found)


def test_the_templates_fingerprint_covers_every_template(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "prompts"
    shutil.copytree(PROMPTS, copy)
    monkeypatch.setattr(prompts, "_root", lambda: copy)
    first = prompts.templates_fingerprint()
    seen = {first}
    for lang in ("en", "ko"):
        path = copy / lang / "evolve-deepen.md"
        path.write_text(path.read_text() + " ")
        seen.add(prompts.templates_fingerprint())
    (copy / "ko" / "new.md").write_text("## user\nx")
    seen.add(prompts.templates_fingerprint())
    assert len(seen) == 4
