"""Judged suites: their files, conversations, how a judge's words are read, the Korean penalty, and averages by hand."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.core.chat import Chat
from align.core.errors import UserError
from align.core.journal import Journal
from align.engines.complete import Ask, Reply, Writer
from align.engines.protocol import Answered, Completion, EngineInfo, Request, Sampling
from align.evaluate.conversations import Held, hold_conversation
from align.evaluate.judged import (
    LOGICKOR,
    MT_BENCH,
    Judgment,
    Protocol,
    averages,
    judge_conversations,
    languages,
    penalise,
)
from align.evaluate.judged_files import TEMPERATURES, read_arena, read_logickor, read_mt_bench
from align.evaluate.suite import Item
from align.evaluate.verdicts import RETRIES, Unreadable, read_korean_score, read_rating, render
from tests.jobs import Answering, failed, run_job, said

WARM = Sampling(temperature=0.9, top_p=0.95, max_tokens=64)


def item(*turns: str, name: str = "81", category: str = "writing", lang: str = "en", **data: Any) -> Item:
    return Item(id=name, turns=turns or ("First?", "Second?"), category=category, lang=lang, data=data)


def held(*answers: str, name: str = "81", failure: str = "") -> Held:
    messages = [m for a in answers for m in ({"role": "user", "content": "?"}, {"role": "assistant", "content": a})]
    return Held(item_id=name, messages=messages, failure=failure)


def judged(
    answer: Callable[[Ask], str | Reply], *pairs: tuple[Item, Held], protocol: Protocol = MT_BENCH
) -> tuple[list[Judgment], list[Ask]]:
    writer = Answering(answer)
    return judge_conversations(writer, protocol, pairs), writer.asked  # type: ignore[arg-type]


def score(item_id: str, turn: int, value: float, **more: Any) -> Judgment:
    failure = more.pop("failure", "no_score" if math.isnan(value) else "")
    made = {"category": "writing", "raw": value, "score": value, "failure": failure, "attempts": 1} | more
    return Judgment(item_id=item_id, turn=turn, **made)


def write(path: Path, *records: Mapping[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


# files


def question(**changes: Any) -> dict[str, Any]:
    return {"question_id": 81, "category": "writing", "turns": ["Write a haiku.", "Now in prose."]} | changes


def test_official_forms_of_a_file(tmp_path: Path) -> None:
    renamed = {"id": "b", "category": "math", "questions": ["1 + 1?", "And 2 + 2?"], "references": ["2", "4"]}
    path = write(tmp_path / "q.jsonl", question(), question(question_id=82, category="stem", reference=[None, "x"]), renamed)
    first, second, third = read_mt_bench(path, "ko")
    assert (first.id, first.turns, first.category, first.lang) == (
        "81",
        ("Write a haiku.", "Now in prose."),
        "writing",
        "ko",
    )
    assert [i.temperature for i in (first, second, third)] == [0.7, 0.1, 0.0]
    assert [i.data["references"] for i in (first, second, third)] == [("", ""), ("", "x"), ("2", "4")]


def test_null_does_not_hide_references_under_their_other_name(tmp_path: Path) -> None:
    (one,) = read_mt_bench(
        write(tmp_path / "q.jsonl", question(category="math", reference=None, references=["4", "5"])), "en"
    )
    assert one.data["references"] == ("4", "5")
    (both,) = read_mt_bench(write(tmp_path / "q.jsonl", question(reference=["1"], references=["4", "5"])), "en")
    assert both.data["references"] == ("1", "")


def test_temperatures_are_those_published() -> None:
    warm, cool = {"writing", "roleplay"}, {"stem", "humanities"}
    assert len(TEMPERATURES) == 8
    assert {c for c, t in TEMPERATURES.items() if t == 0.7} == warm
    assert {c for c, t in TEMPERATURES.items() if t == 0.1} == cool
    assert all(t == 0 for c, t in TEMPERATURES.items() if c not in warm | cool)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no items"),
        ([question(), question()], ":2: the id 81"),
        ([question(turns=[])], ":1: a question needs `turns`"),
        ([question(turns=["a", " "])], "a question needs `turns`"),
        ([question(turns="a")], "a question needs `turns`"),
        ([question(turns=["a", "b", "c"])], "question 81 has 3 turns"),
        ([question(category="knitting")], "question 81 has category 'knitting'; MT-Bench has writing"),
        ([question(category=None)], "category is None"),
        ([question(question_id=None)], "question_id is None"),
        ([{"category": "writing", "turns": ["a"]}], "lacks an id"),
        ([question(reference="4")], "no list of texts"),
        ([question(reference=["1", "2", "3"])], "3 references for 2 turns"),
        ([question(), question(question_id=120, category="math")], r":2: question 120 \(math\) lacks a reference answer"),
        ([question(question_id=120, category="coding", reference=[None, None])], r"question 120 \(coding\) lacks"),
        ([question(question_id=120, category="reasoning", reference=[" "])], r"question 120 \(reasoning\) lacks"),
    ],
)
def test_bad_files_of_mt_bench(tmp_path: Path, records: list[Mapping[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_mt_bench(write(tmp_path / "q.jsonl", *records), "en")


def test_references_may_be_optional(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", question(category="math"))
    with pytest.raises(UserError, match='set references to "optional"'):
        read_mt_bench(path, "en")
    assert read_mt_bench(path, "en", references="optional")[0].data["references"] == ("", "")
    (one,) = read_mt_bench(write(path, question(category="math", reference=["4"])), "en")
    assert one.data["references"] == ("4", ""), "the published references have some for the first turn only"


def test_logickor_asks_two_turns_and_says_what_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = {"id": 3, "category": "추론(Reasoning)", "questions": ["하나?", "둘?", "셋?"], "references": ["답", None]}
    (one,) = read_logickor(write(tmp_path / "q.jsonl", record))
    assert (one.id, one.turns, one.lang, one.temperature) == ("3", ("하나?", "둘?"), "ko", 0.0)
    assert one.data["references"] == ("답", "")
    assert "the others of question 3 are left out" in caplog.text


def test_forms_of_arena_hard(tmp_path: Path) -> None:
    old = {"question_id": "a1", "category": "arena-hard-v0.1", "cluster": "SQL", "turns": [{"content": "Write SQL."}]}
    new = {"uid": "b2", "category": "creative_writing", "prompt": "Write a poem about {braces}."}
    first, second = read_arena(write(tmp_path / "q.jsonl", old, new))
    assert (first.id, first.turns, first.category, first.temperature) == ("a1", ("Write SQL.",), "arena-hard-v0.1", 0.0)
    assert (second.id, second.turns, second.lang) == ("b2", ("Write a poem about {braces}.",), "en")
    with pytest.raises(UserError, match="question a1 has 2 turns"):
        read_arena(write(tmp_path / "r.jsonl", old | {"turns": [{"content": "a"}, {"content": "b"}]}))
    with pytest.raises(UserError, match="a question needs `turns`"):
        read_arena(write(tmp_path / "s.jsonl", old | {"turns": [{"content": ["text", ["image"]]}]}))


@pytest.mark.shared_data
def test_the_real_files(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = shared_data / "benchmarks"
    with pytest.raises(UserError, match=r"question 123 \(coding\) lacks a reference"):
        read_mt_bench(folder / "mt_bench.jsonl", "en")
    items = read_mt_bench(folder / "mt_bench.jsonl", "en", references="optional")
    assert len(items) == 80 and all(len(i.turns) == 2 for i in items)
    assert {c: sum(i.category == c for i in items) for c in TEMPERATURES} == dict.fromkeys(TEMPERATURES, 10)
    judgments, asked = judged(lambda ask: "[[7]]", *[(i, held("One {a}.", "Two {b}.", name=i.id)) for i in items])
    assert len(judgments) == len(asked) == 160 and all(j.score == 7 for j in judgments)
    assert {(j.item_id, j.turn) for j in judgments if j.without_reference} == {
        ("123", 1), ("123", 2), ("103", 2), ("108", 2), ("110", 2),
    }  # fmt: skip
    assert sum("-math" in j.template for j in judgments) == 58
    assert not caplog.records
    korean = read_logickor(folder / "logickor.jsonl")
    assert len(korean) == 42 and all(len(i.turns) == 2 for i in korean) and len({i.category for i in korean}) == 6
    assert "question 3 are" in caplog.text
    judgments, asked = judged(
        lambda ask: "평가: 좋습니다.\n점수: 9", *[(i, held("가", "나", name=i.id)) for i in korean], protocol=LOGICKOR
    )
    assert len(asked) == 84 and all(j.score == 9 for j in judgments)
    noted = sum("[참고 답안]" in ask.messages[-1]["content"] for ask in asked)
    first, both = (sum(bool(i.data["references"][k]) for i in korean) for k in (0, 1))
    assert noted == 2 * first and both > 0, "the second turn's context shows the first one's reference"


# conversations


def test_each_turn_is_asked_after_the_answers_before_it() -> None:
    made = Item(id="7", turns=("One?", "Two?"), temperature=0.1)
    result, asked = run_job(hold_conversation(made, WARM), lambda ask: f"answer {len(ask.messages)}")
    assert [ask.sampling for ask in asked] == [Sampling(temperature=0.1, top_p=0.95, max_tokens=64)] * 2
    assert asked[0].messages == [{"role": "user", "content": "One?"}]
    assert asked[1].messages == [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "answer 1"},
        {"role": "user", "content": "Two?"},
    ]
    assert result.answers == ("answer 1", "answer 3") and not result.failure and len(result.completions) == 2
    assert result.messages[-1] == {"role": "assistant", "content": "answer 3"}
    assert len({ask.id for ask in asked}) == 2


def test_without_a_temperature_of_its_own_an_item_has_the_suites() -> None:
    _, asked = run_job(hold_conversation(Item(id="7", turns=("One?",)), WARM), lambda ask: "x")
    assert asked[0].sampling == WARM


@pytest.mark.parametrize("at", [1, 2])
def test_after_a_failed_call_no_turn_is_asked(at: int) -> None:
    made = Item(id="7", turns=("One?", "Two?", "Three?"))
    error = failed("prompt_too_long: 9 tokens")
    result, asked = run_job(hold_conversation(made, WARM), lambda ask: error if len(ask.messages) == 2 * at - 1 else "fine")
    assert len(asked) == at and result.failure == "prompt_too_long" and result.answers == ("fine",) * (at - 1)
    assert [m["role"] for m in result.messages] == ["user", "assistant"] * (at - 1)


def test_a_cut_answer_is_an_answer() -> None:
    result, asked = run_job(hold_conversation(item(), WARM), lambda ask: said("half", cut=True))
    assert len(asked) == 2 and result.answers == ("half", "half") and not result.failure
    assert [c.finish_reason for c in result.completions] == ["length", "length"]


def test_items_of_two_suites_with_one_id_do_not_collide() -> None:
    asks = [run_job(hold_conversation(item(turn, name="81"), WARM), lambda ask: "x")[1][0].id for turn in ("Hi?", "안녕?")]
    assert len(set(asks)) == 2


# reading a verdict


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Good. Rating: [[8]]", 8), ("[[7.5]]", 7.5), ("Rating: [[10]]\n\nDone.", 10), ("[[1]]", 1), ("[[9.]]", 9),
        ("Rating: [6]", 6), ("Rating: [6.5]", 6.5), ("[[ 8 ]]", 8), ("[[8/10]]", 8), ("**[[4]]**", 4),
        ("Step [2] is wrong. Rating: [[3]]", 3), ("[[5]] as I said, [[5]]", 5), ("[[5]] or [[5.0]]", 5),
        ("The loop reads items[0]. Rating: [4]", 4), ("점수: [[9]]", 9),
        ("Rating: 8", "no_score"), ("", "no_score"), ("[[rating]]", "no_score"), ("eight", "no_score"),
        ("items[3] is out of range", "no_score"), ("[[8", "no_score"), ("[[8 of 10]]", "no_score"),
        ("[[8]] no, [[3]]", "several_scores"), ("[1] and [2]", "no_score"), ("Rating: [1] or [2]", "several_scores"),
        ("arr = [[5]] so I would give 8", "no_score"), ("df[[3]] is fine", "no_score"), ("[[[5]]]", "no_score"),
        ("x=[[5]] runs.\nRating: [[8]]", 8), ("df[[3]] runs.\nRating: [[8]]", 8), ("Rating = [[5]]", 5),
        ("As [2] shows", "no_score"), ("As [2] shows, it is right.\nScore: [7]", 7), ("Good.\n\n**[6]**", 6),
        ("[6]\nGood.", "no_score"), ("As said in [2].", "no_score"), ("An accurate answer, see [2].", "no_score"),
        ("평점: [7]", 7), ("평점은[[7]]", 7),
        ("[[11]]", "score_out_of_range"), ("[[0]]", "score_out_of_range"), ("[[-5]]", "score_out_of_range"),
        ("[[0.5]]", "score_out_of_range"), ("[[10.5]]", "score_out_of_range"), ("[" + "9" * 400 + "]", "score_out_of_range"),
        ("[[11]] [5]", "score_out_of_range"),
    ],
)  # fmt: skip
def test_a_rating(text: str, value: float | str) -> None:
    reads(read_rating, text, value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("평가: 좋다.\n점수: 8", 8), ("평가: 좋다.\n점수: 8.0점", 8), ("### 평가\n좋다.\n### 점수: 7", 7),
        ("**점수:** 9", 9),
        ("점수:10", 10), ("점수 : 6.5", 6.5), ("점수: 8/10", 8), ("점수: 8점 / 10점", 8), ("점수: [[8]]", 8), ("점수：5", 5),
        ("점수: 0", 0), ("점수: 8\n\n따라서 점수: 8점입니다.", 8), ("점수: 9.", 9), ("점수: 8점 (10점 만점)", 8),
        ("점수를 줄 수 없습니다.", "no_score"), ("점수: 숫자", "no_score"), ("8점", "no_score"), ("", "no_score"),
        ("점수: 10점 만점에 8점", "no_score"), ("점수: 10점 중 8점", "no_score"), ("점수: 7~8점", "no_score"),
        ("점수: 7-8", "no_score"), ("점수: 8/20", "no_score"), ("점수: 8/100", "no_score"), ("점수: 1,000", "no_score"),
        ("점수: 10점 기준 8점", "no_score"), ("점수: 5 → 6", "no_score"), ("점수: 1부터 10까지", "no_score"),
        ("점수: 8점 → 최종 7점", "no_score"), ("감점수: 2", "no_score"), ("감점 점수: 2", "no_score"),
        ("최고 점수: 10", "no_score"), ("점수: 2점 감점", "no_score"), ("점수: 10점 만점", "no_score"),
        ("점수: 8점 이상", "no_score"), ("점수: 8점 점수: 3점", "no_score"),
        ("감점수: 2\n최종 점수: 8", 8), ("총점수: 8", 8), ("점수: 8/10점 만점", 8), ("점수: 8점 (만점 10점)", 8),
        ("점수: 7점입니다. 이상적인 답은 아닙니다.", 7),
        ("점수: 8\n점수: 3", "several_scores"),
        ("점수: 11", "score_out_of_range"), ("점수: -1", "score_out_of_range"), ("점수: 85점", "score_out_of_range"),
    ],
)  # fmt: skip
def test_a_korean_score(text: str, value: float | str) -> None:
    reads(read_korean_score, text, value)


def reads(read: Callable[[str], float], text: str, value: float | str) -> None:
    if isinstance(value, str):
        with pytest.raises(Unreadable, match=f"^{value}$"):
            read(text)
    else:
        assert read(text) == value


@given(st.text(alphabet="[]0123456789./ -점수:~만중*", max_size=40))
def test_whatever_is_written_a_score_is_on_the_scale(text: str) -> None:
    for read, lowest in ((read_rating, 1), (read_korean_score, 0)):
        try:
            assert lowest <= read(text) <= 10
        except Unreadable as error:
            assert str(error) in ("no_score", "several_scores", "score_out_of_range")


LONG = 10**6


@pytest.mark.parametrize(
    "text",
    [
        "점수:" + " " * LONG,
        "점수: 1" + " " * LONG,
        "[[1" + " " * LONG,
        "점수" * LONG,
        "[[1" * LONG,
        "=" + " " * LONG,
        "점수: 1" + "(10점" * LONG,
        "[" + "1" * LONG,
    ],
)
def test_endless_text_is_read(text: str) -> None:
    """Quadratic backtracking over this much takes hours."""
    for read in (read_rating, read_korean_score):
        with suppress(Unreadable):
            assert read(text) == 1


# judging


def test_each_turn_is_graded_by_itself_with_what_came_before_it() -> None:
    judgments, asked = judged(
        lambda ask: "[[4]]" if "Second?" in ask.messages[-1]["content"] else "[[8]]", (item(), held("Roses {0}.", "Prose."))
    )
    assert [(j.turn, j.raw, j.score, j.attempts) for j in judgments] == [(1, 8, 8, 1), (2, 4, 4, 1)]
    assert [j.template for j in judgments] == ["single-v1", "single-v1-multi-turn"]
    assert [j.answer for j in judgments] == ["Roses {0}.", "Prose."]
    first, second = (ask.messages[-1]["content"] for ask in asked)
    assert "<text>\nRoses {0}.\n</text>" in first and "Second?" not in first and "Prose." not in first
    assert all(f"<text>\n{text}\n</text>" in second for text in ("First?", "Roses {0}.", "Second?", "Prose."))
    assert second.index("First?") < second.index("Roses") < second.index("Second?") < second.index("Prose.")
    assert all(ask.sampling == Sampling(temperature=0.0, max_tokens=2048) for ask in asked)
    assert [j.grade.metric for j in judgments] == ["turn_1", "turn_2"] and judgments[0].grade.value == 8


def test_references_are_shown_where_the_category_has_them() -> None:
    def templates(category: str, *references: str) -> list[tuple[str, bool]]:
        judgments, asked = judged(lambda ask: "[[5]]", (item(category=category, references=references), held("a", "b")))
        for ask, judgment in zip(asked, judgments, strict=True):
            shown = [text for text in references if text and f"\n{text}\n" in ask.messages[-1]["content"]]
            given = [text for text in references[: judgment.turn] if text]
            assert shown == (given if "math" in judgment.template else [])
            assert ("(none)" in ask.messages[-1]["content"]) == ("math" in judgment.template and len(given) < judgment.turn)
        return [(j.template, j.without_reference) for j in judgments]

    both = [("single-math-v1", False), ("single-math-v1-multi-turn", False)]
    plain = ["single-v1", "single-v1-multi-turn"]
    assert templates("math", "R-one", "R-two") == both == templates("coding", "R-one", "R-two")
    assert templates("math", "", "") == templates("reasoning") == [(name, True) for name in plain]
    assert templates("math", "R-one", "") == [both[0], (both[1][0], True)]
    assert templates("math", "", "R-two") == [(plain[0], True), both[1]]
    assert templates("stem", "R-one", "R-two") == [(name, False) for name in plain], (
        "FastChat shows them in three categories"
    )


def test_the_judge_is_asked_in_the_items_language() -> None:
    _, asked = judged(lambda ask: "[[5]]", (item(lang="ko"), held("가", "나")))
    assert "공정하고" in asked[0].messages[0]["content"] and "### 사용자:" in asked[1].messages[1]["content"]


def test_logickor_shows_the_references_that_there_are() -> None:
    def shown(*references: str) -> list[str]:
        pair = (item("물음 하나", "물음 둘", lang="ko", references=references), held("답 하나", "답 둘"))
        _, asked = judged(lambda ask: "점수: 5", pair, protocol=LOGICKOR)
        assert "점수: 숫자" in asked[0].messages[0]["content"]
        return [ask.messages[-1]["content"] for ask in asked]

    assert all("참고 답안" not in text for text in shown("", ""))
    first, second = shown("정답 하나", "")
    assert first.count("[참고 답안]\n<text>\n정답 하나\n</text>") == second.count("[참고 답안]") == 1
    first, second = shown("", "정답 둘")
    assert "참고 답안" not in first
    assert second.index("물음 둘") < second.index("정답 둘") < second.index("답 둘\n</text>\n\n[대화 끝")


def test_a_zero_by_logickors_rules_is_a_score() -> None:
    judgments, _ = judged(lambda ask: "평가: 영어입니다.\n점수: 0", (item(lang="ko"), held("a", "b")), protocol=LOGICKOR)
    assert [j.score for j in judgments] == [0, 0] and not any(j.failure for j in judgments)


def test_a_judge_without_a_score_is_asked_again_with_other_seeds_and_some_heat() -> None:
    answers = iter(["Nice.", "Very nice.", "Rating: [[6]]"])
    (judgment,), asked = judged(lambda ask: next(answers), (item("One?"), held("a")))
    assert (judgment.raw, judgment.attempts, judgment.text) == (6, 3, "Rating: [[6]]")
    assert len({ask.id for ask in asked}) == 3
    assert [ask.sampling.temperature for ask in asked] == [0.0, 0.3, 0.3]


@pytest.mark.parametrize(
    ("reply", "failure"),
    [("Nice.", "no_score"), ("[[12]]", "score_out_of_range"), ("[[2]] [[3]]", "several_scores"),
     (said("Well, the", cut=True), "truncated"), (said("Rating: [[2]], since it", cut=True), "truncated")],
)  # fmt: skip
def test_without_a_score_after_all_tries_there_is_a_failure_and_no_zero(reply: str | Reply, failure: str) -> None:
    judgments, asked = judged(lambda ask: reply, (item("One?"), held("a")))
    (judgment,) = judgments
    assert len(asked) == 1 + RETRIES == judgment.attempts
    assert judgment.failure == failure and math.isnan(judgment.raw) and math.isnan(judgment.score)
    assert judgment.grade.failure == failure and math.isnan(judgment.grade.value)


def test_an_answer_that_was_cut_is_not_read_but_asked_for_again() -> None:
    answers: Iterator[str | Reply] = iter(
        [said("Rating: [[2]] would be what an answer gets that", cut=True), "Rating: [[6]]"]
    )
    (judgment,), asked = judged(lambda ask: next(answers), (item("One?"), held("a")))
    assert (judgment.raw, judgment.attempts, len(asked)) == (6, 2, 2)


def test_a_call_without_an_answer_is_not_made_again() -> None:
    judgments, asked = judged(lambda ask: failed("prompt_too_long: 9"), (item("One?"), held("a")))
    assert len(asked) == 1 and judgments[0].failure == "prompt_too_long" and judgments[0].attempts == 1


def test_a_turn_without_an_answer_is_a_failure_with_the_reason() -> None:
    pairs = [(item(name="1"), held("a", name="1", failure="prompt_too_long")), (item(name="2"), held(failure="http_400"))]
    judgments, asked = judged(lambda ask: "[[9]]", *pairs)
    assert [(j.item_id, j.turn, j.failure, j.attempts) for j in judgments] == [
        ("1", 1, "", 1), ("1", 2, "prompt_too_long", 0), ("2", 1, "http_400", 0), ("2", 2, "not_asked", 0),
    ]  # fmt: skip
    assert len(asked) == 1


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_templates_use_their_variables_and_take_braces(lang: str) -> None:
    for file in resources.files("align.evaluate").joinpath("judge_prompts", lang).iterdir():
        text = file.read_text(encoding="utf-8")
        variables = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
        messages = render(file.name.removesuffix(".md"), lang, **{name: f"{{{name}}} %s {{}}" for name in variables})
        assert [m["role"] for m in messages] == ["system", "user"] and all(m["content"].strip() for m in messages)
        assert all(f"{{{name}}} %s {{}}" in messages[1]["content"] for name in variables)
        turns = 2 if "multi-turn" in file.name else 1
        if not file.name.startswith("arena"):
            wanted = {f"{kind}_{n}" for kind in ("question", "answer") for n in range(1, turns + 1)}
            referred = {f"reference_{n}" for n in range(1, turns + 1)}
            assert variables == wanted | (referred if "math" in file.name or "logickor" in file.name else set())


class Rating:
    """An engine that gives every request the same text and counts its calls."""

    def __init__(self, chat: Chat, text: str) -> None:
        self.info = EngineInfo(kind="rating", version="1", max_model_len=10**6, deterministic=True, flags={})
        self._ids = tuple(chat.tokenizer(text, add_special_tokens=False)["input_ids"])
        self.seeds: list[int] = []

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answered]:
        for request in requests:
            if request is None:
                return
            self.seeds.append(request.seed)
            completion = Completion(token_ids=self._ids, finish_reason="stop")
            yield Answered(request_id=request.id, completions=(completion,))

    def close(self) -> None:
        pass


def test_the_same_conversation_is_never_judged_twice(tiny_llama: Path, tmp_path: Path) -> None:
    chat = Chat.load(tiny_llama)

    def calls(*pairs: tuple[Item, Held]) -> int:
        engine = Rating(chat, "Rating: [[7]]")
        judgments = judge_conversations(
            Writer(lambda: (engine, chat), run_seed=1), MT_BENCH, pairs, journal=Journal(tmp_path / "judged")
        )
        assert [j.score for j in judgments] == [7] * sum(len(i.turns) for i, _ in pairs)
        return len(engine.seeds)

    assert calls((item(), held("a", "b"))) == 2
    assert calls((item(), held("a", "b"))) == 0, "another run, or another model with the same answers"
    assert calls((item(), held("a", "c"))) == 1, "the first turn is the same"
    twice = [(item(name=name), held("d", "e", name=name)) for name in ("1", "2")]
    assert calls(*twice) == 2, "two questions with the same text at once"


def test_retries_reach_the_engine_with_other_seeds(tiny_llama: Path, tmp_path: Path) -> None:
    chat = Chat.load(tiny_llama)
    engine = Rating(chat, "Nice.")
    writer = Writer(lambda: (engine, chat), run_seed=1)
    (judgment,) = judge_conversations(writer, MT_BENCH, [(item("One?"), held("a"))], journal=Journal(tmp_path / "j"))
    assert judgment.failure == "no_score" and len(set(engine.seeds)) == len(engine.seeds) == 1 + RETRIES


# the penalty

KOREAN = "꿀은 수분이 적어 세균이 자라지 못하므로 여러 해 동안 상하지 않는다."
ENGLISH = "Honey keeps for years because its low water content stops bacteria."
MIXED = "이 함수는 list comprehension 문법으로 리스트를 만들고 값을 돌려준다."  # Korean with a third of Latin letters


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (KOREAN, ["ko"]), (ENGLISH, ["en"]), (MIXED, ["ko", "en"]), (f"{ENGLISH} 꿀은 상하지 않는다.", ["en", "ko"]),
        ("", []), ("42.5 %", []), ("```python\nprint('hello world')\n```", []), (f"{KOREAN} `print`", ["ko"]),
        (f"{KOREAN}\n```\nfor i in range(10): print(i)\n```", ["ko"]), ("蜂蜜は腐らない。", ["other"]),
        ("abcabcabc 가나다", ["en", "ko"]),
        (f"{KOREAN} {KOREAN} Aloha!", ["ko"]),
    ],
)  # fmt: skip
def test_the_languages_of_a_text(text: str, found: list[str]) -> None:
    pairs = languages(text)
    assert [lang for lang, _ in pairs] == found


@given(st.text(alphabet="ab가나蜂日 1`\n", max_size=30))
def test_shares_are_of_what_is_there(text: str) -> None:
    pairs = languages(text)
    assert len(pairs) <= 2 and len({lang for lang, _ in pairs}) == len(pairs)
    assert all(0 < share <= 1 for _, share in pairs) and sum(share for _, share in pairs) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("answer", "intended", "released"),
    [
        (KOREAN, 9, 9), (ENGLISH, 3, 3),
        (MIXED, 9, 3),  # the second language decides in the released script
        (f"{ENGLISH} 꿀은 상하지 않는다.", 3, 9),
        ("42", 9, 3), ("蜂蜜は腐らない。", 3, 3),
    ],
)  # fmt: skip
def test_the_penalty_in_both_modes(answer: str, intended: float, released: float) -> None:
    one = score("81", 1, 9.0, answer=answer)
    (first,), (second,) = penalise([one]), penalise([one], "released")
    assert (first.score, second.score) == (intended, released)
    assert first.raw == second.raw == 9, "rows keep both scores"
    assert (first.penalised, second.penalised) == (intended == 3, released == 3)


def test_what_the_penalty_leaves_alone() -> None:
    rows = [score(name, 1, 4.0, answer=ENGLISH) for name in ("138", "139", "140")]
    assert [j.score for j in penalise(rows)] == [4, 2, 4] == [j.score for j in penalise(rows, "released")]
    (judgment,) = penalise([score("81", 1, math.nan, answer=ENGLISH)])
    assert math.isnan(judgment.score) and judgment.failure == "no_score" and not judgment.penalised


# averages


def test_averages_against_numbers_by_hand() -> None:
    rows = [
        score("1", 1, 8.0), score("1", 2, 4.0),
        score("2", 1, 6.0), score("2", 2, math.nan),
        score("3", 1, 9.0, category="math", without_reference=True),
        score("3", 2, 3.0, category="math", raw=9.0, penalised=True),
        score("4", 1, math.nan, category="math", failure="http_400", attempts=0),
        score("4", 2, math.nan, category="math", failure="not_asked", attempts=0),
    ]  # fmt: skip
    found = averages(rows, seed=1)
    assert found["turn_1"]["mean"] == pytest.approx((8 + 6 + 9) / 3, abs=1e-4)
    assert found["turn_2"]["mean"] == pytest.approx((4 + 3) / 2)
    assert found["both"]["mean"] == pytest.approx((8 + 4 + 6 + 9 + 3) / 5), "over all scores, not over the two means"
    assert found["points"]["mean"] == pytest.approx(60)
    assert found["both"]["low"] <= 6 <= found["both"]["high"] and found["points"]["high"] == pytest.approx(
        10 * found["both"]["high"], abs=1e-2
    )
    assert found["categories"]["math"]["both"]["mean"] == 6 and found["categories"]["writing"]["turn_1"]["mean"] == 7
    assert found["categories"]["math"]["turn_1"] == {"mean": 9, "low": None, "high": None}
    counts = {key: found[key] for key in ("questions", "turns", "graded", "judge_failures", "zeros", "penalised")}
    assert counts == {"questions": 4, "turns": 8, "graded": 5, "judge_failures": 1, "zeros": 0, "penalised": 1}
    assert found["failures"] == {"http_400": 1, "no_score": 1, "not_asked": 1} and found["without_reference"] == 1
    assert found["graded"] + sum(found["failures"].values()) == found["turns"]
    json.dumps(found, allow_nan=False)


def test_published_zeros_of_logickor_are_counted_and_only_for_the_judges_failures() -> None:
    rows = [
        score("1", 1, 8.0),
        score("1", 2, math.nan),
        score("2", 1, 7.0),
        score("2", 2, math.nan, failure="x", attempts=0),
    ]
    excluded, zero = averages(rows, seed=1), averages(rows, seed=1, judge_failures="zero")
    assert excluded["both"]["mean"] == 7.5 and excluded["judge_failures"] == 1 and excluded["zeros"] == 0
    assert zero["both"]["mean"] == 5 and zero["judge_failures"] == zero["zeros"] == 1 and zero["graded"] == 2


def test_nothing_graded() -> None:
    found = averages([score("1", 1, math.nan)], seed=1)
    assert found["both"] == {"mean": None, "low": None, "high": None} == found["categories"]["writing"]["both"]
    assert found["failures"] == {"no_score": 1}


@given(st.lists(st.lists(st.floats(1, 10), min_size=0, max_size=2), min_size=1, max_size=12))
def test_the_mean_is_over_all_scores_whatever_is_missing(scores: list[list[float]]) -> None:
    rows = [
        score(str(i), turn, of_item[turn - 1] if turn <= len(of_item) else math.nan)
        for i, of_item in enumerate(scores)
        for turn in (1, 2)
    ]
    values = [value for of_item in scores for value in of_item]
    mean = averages(rows, seed=3)["both"]["mean"]
    assert mean == (pytest.approx(sum(values) / len(values), abs=1e-4) if values else None)


def test_turns_of_a_question_are_resampled_together() -> None:
    rows = [score(str(i), turn, 10.0 if i % 2 else 2.0) for i in range(40) for turn in (1, 2)]
    both, one = (averages(rows, seed=1)[name] for name in ("both", "turn_1"))
    assert both == one, "a second turn that says the same adds no certainty"
