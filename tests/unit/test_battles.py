"""Battles: how a verdict is read, both orders, and what becomes of a game without one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.core.chat import Chat
from align.core.journal import Journal
from align.engines.complete import Ask, Reply, Writer
from align.engines.protocol import Answered, Completion, EngineInfo, Request
from align.evaluate.battles import LABELS, Game, battle, read_label, swapped
from align.evaluate.conversations import Held
from align.evaluate.suite import Item
from align.evaluate.verdicts import RETRIES, Unreadable
from tests.jobs import Answering, failed, said


def prompt(name: str = "p", *turns: str) -> Item:
    return Item(id=name, turns=turns or ("Why is the sky blue?",), category="hard")


def held(*answers: str, failure: str = "") -> Held:
    messages = [m for a in answers for m in ({"role": "user", "content": "?"}, {"role": "assistant", "content": a})]
    return Held(item_id="p", messages=messages, failure=failure)


def fought(
    answer: Callable[[Ask], str | Reply], *contests: tuple[Item, Held, Held], **how: Any
) -> tuple[list[Game], list[Ask]]:
    writer = Answering(answer)
    return battle(writer, contests, **how), writer.asked  # type: ignore[arg-type]


def shown_first(ask: Ask) -> str:
    """The answer that the judge sees as assistant A's."""
    text = ask.messages[-1]["content"].split("[Assistant A's answer]\n<text>\n")[1]
    return text.split("\n</text>")[0]


@pytest.mark.parametrize("label", LABELS)
def test_each_verdict_is_read(label: str) -> None:
    assert read_label(f"Both are fine, but ...\n\nMy final verdict is: [[{label}]].") == label
    assert read_label(f"[[{label}]] ... as said: [[ {label} ]]") == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("[[A<B]]", "B>A"), ("[[A<<B]]", "B>>A"), ("[[B<A]]", "A>B"), ("[[B<<A]]", "A>>B"), ("[[B=A]]", "A=B"),
        ("[[A<B]] that is [[B>A]]", "B>A"),
        ("", "no_verdict"), ("A is better", "no_verdict"), ("[A>B]", "no_verdict"), ("[[A]]", "no_verdict"),
        ("[[A>A]]", "no_verdict"), ("[[A>>>B]]", "no_verdict"), ("[[C>B]]", "no_verdict"), ("[[A>B>C]]", "no_verdict"),
        ("[[A>B]] or rather [[A>>B]]", "several_verdicts"), ("[[A>B]] [[B>A]]", "several_verdicts"),
    ],
)  # fmt: skip
def test_forms_of_a_verdict(text: str, label: str) -> None:
    if label in LABELS:
        assert read_label(text) == label
    else:
        with pytest.raises(Unreadable, match=f"^{label}$"):
            read_label(text)


@given(st.text(alphabet="[]AB<>= \n", max_size=30))
def test_whatever_is_written_a_label_is_one_of_five(text: str) -> None:
    try:
        assert read_label(text) in LABELS
    except Unreadable as error:
        assert str(error) in ("no_verdict", "several_verdicts")


def test_a_swapped_label_says_the_same_of_the_other_places() -> None:
    assert [swapped(label) for label in LABELS] == list(LABELS)[::-1]
    assert all(swapped(swapped(label)) == label for label in LABELS)


def test_both_orders_are_read_in_the_models_terms() -> None:
    """A judge that finds the model's answer much better says A>>B in one order and B>>A in the other."""
    games, asked = fought(
        lambda ask: "[[A>>B]]" if shown_first(ask) == "ours" else "[[B>>A]]", (prompt(), held("ours"), held("theirs"))
    )
    assert [shown_first(ask) for ask in asked] == ["ours", "theirs"]
    assert [(g.prompt_id, g.category, g.order, g.label, g.failure) for g in games] == [
        ("p", "hard", "ab", "A>>B", ""),
        ("p", "hard", "ba", "A>>B", ""),
    ]
    assert games[1].text == "[[B>>A]]"
    games, _ = fought(lambda ask: "[[A>B]]", (prompt(), held("ours"), held("theirs")))
    assert [g.label for g in games] == ["A>B", "B>A"], "a judge that goes by place prefers nobody"


def test_the_question_shows_both_answers_and_may_ask_for_an_own_one() -> None:
    contest = (prompt(), held("Ours {a}.</text>"), held("Theirs."))
    _, with_own = fought(lambda ask: "[[A=B]]", contest)
    _, plain = fought(lambda ask: "[[A=B]]", contest, own_answer=False)
    for ask in (*with_own, *plain):
        text = ask.messages[-1]["content"]
        assert all(
            f"<text-2>\n{part}\n</text-2>" in text for part in ("Why is the sky blue?", "Ours {a}.</text>", "Theirs.")
        )
        assert all(f"[[{label}]]" in ask.messages[0]["content"] for label in LABELS)
        assert ask.sampling.temperature == 0
    assert all("write your own answer" in ask.messages[0]["content"] for ask in with_own)
    assert all("your own answer" not in ask.messages[0]["content"] for ask in plain)


def test_a_judge_without_a_verdict_is_asked_again_and_then_it_is_a_failure() -> None:
    games, asked = fought(
        lambda ask: "I like both." if shown_first(ask) == "a" else "[[A=B]]", (prompt(), held("a"), held("b"))
    )
    assert [(g.order, g.label, g.failure, g.attempts) for g in games] == [
        ("ab", "", "no_verdict", 1 + RETRIES),
        ("ba", "A=B", "", 1),
    ]
    assert len(asked) == len({ask.id for ask in asked}) == 2 + RETRIES
    games, _ = fought(lambda ask: said("Well", cut=True), (prompt(), held("a"), held("b")))
    assert {g.failure for g in games} == {"truncated"}
    games, asked = fought(lambda ask: said("[[A>>B]] is what I would say if", cut=True), (prompt(), held("a"), held("b")))
    assert {(g.label, g.failure, g.attempts) for g in games} == {("", "truncated", 1 + RETRIES)}
    assert len(asked) == 2 * (1 + RETRIES), "a verdict that was cut off is none"
    games, asked = fought(lambda ask: failed("prompt_too_long: 9"), (prompt(), held("a"), held("b")))
    assert {g.failure for g in games} == {"prompt_too_long"} and len(asked) == 2


@pytest.mark.parametrize(
    ("ours", "theirs", "failure"),
    [(held(failure="http_400"), held("b"), "http_400"), (held("a"), held(failure="prompt_too_long"), "prompt_too_long"),
     (held(), held("b"), "not_asked")],
)  # fmt: skip
def test_a_missing_answer_leaves_two_games_with_the_reason(ours: Held, theirs: Held, failure: str) -> None:
    games, asked = fought(lambda ask: "[[A>B]]", (prompt("1"), ours, theirs), (prompt("2"), held("c"), held("d")))
    assert [(g.prompt_id, g.failure, g.attempts) for g in games] == [
        ("1", failure, 0), ("1", failure, 0), ("2", "", 1), ("2", "", 1),
    ]  # fmt: skip
    assert len(asked) == 2 and all(not g.label for g in games[:2])


def test_a_battle_is_about_one_turn() -> None:
    with pytest.raises(ValueError, match="prompt p has 2 turns"):
        fought(lambda ask: "[[A=B]]", (prompt("p", "One?", "Two?"), held("a"), held("b")))


class Ties:
    """An engine that calls every battle for the answer shown first, and counts its calls."""

    def __init__(self, chat: Chat) -> None:
        self.info = EngineInfo(kind="ties", version="1", max_model_len=10**6, deterministic=True, flags={})
        self._ids = tuple(chat.tokenizer("[[A>B]]", add_special_tokens=False)["input_ids"])
        self.calls = 0

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answered]:
        for request in requests:
            if request is None:
                return
            self.calls += 1
            yield Answered(request_id=request.id, completions=(Completion(token_ids=self._ids, finish_reason="stop"),))

    def close(self) -> None:
        pass


def test_known_battles_cost_no_call_and_equal_answers_are_a_tie_over_both_games(tiny_llama: Path, tmp_path: Path) -> None:
    chat = Chat.load(tiny_llama)

    def calls(*contests: tuple[Item, Held, Held]) -> tuple[int, list[str]]:
        engine = Ties(chat)
        games = battle(Writer(lambda: (engine, chat), run_seed=1), contests, journal=Journal(tmp_path / "battles"))
        return engine.calls, [g.label for g in games]

    assert calls((prompt(), held("a"), held("b"))) == (2, ["A>B", "B>A"])
    assert calls((prompt(), held("a"), held("b"))) == (0, ["A>B", "B>A"])
    assert calls((prompt(), held("b"), held("a"))) == (0, ["A>B", "B>A"]), "the same two questions, the other way round"
    assert calls((prompt(), held("same"), held("same"))) == (1, ["A>B", "B>A"])
    assert calls((prompt("1"), held("c"), held("d")), (prompt("2"), held("c"), held("d")))[0] == 2
