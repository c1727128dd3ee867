"""Reward models without weights of their own: scores from a file, ensembles, lengths, the user's function."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.core.errors import StepError, UserError
from reward.column import Column
from reward.ensemble import Ensemble
from reward.function import load_function
from reward.interface import Group
from reward.length import LengthPenalty, remove_length, within_prompt_slope

NAN, INF = math.nan, math.inf


def group(name: str, size: int = 2) -> Group:
    return Group(
        id=name,
        prompt=[{"role": "user", "content": f"ask {name}"}],
        response_ids=tuple(f"{name}{i}" for i in range(size)),
        responses=tuple(f"text {name}{i}" for i in range(size)),
        num_tokens=tuple(range(10, 10 + size)),
    )


A, B, C = group("a"), group("b", 3), group("c", 1)
GROUPS = [A, B, C]


class Fixed:
    """A reward model that knows its scores, gives them in an order of its own and notes how many it has given."""

    def __init__(self, scores: dict[str, list[float]], order: Sequence[str] = ("a", "b", "c")) -> None:
        self.scores, self.order, self.given = scores, order, 0

    def score(self, groups: Sequence[Group]) -> Iterator[tuple[int, list[float]]]:
        places = {one.id: place for place, one in enumerate(groups)}
        for name in self.order:
            if name in places:
                self.given += 1
                yield places[name], self.scores[name]


# Scores from a file.
def column_file(folder: Path, *lines: str) -> Path:
    (path := folder / "scores.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def line(key: str, score: object, **more: object) -> str:
    return json.dumps({"response_id": key, "score": score} | more)


WHOLE = [line("b1", 4), line("a1", 2.5), line("c0", -1e3), line("b0", 3), line("a0", 1), line("b2", 5)]


def test_scores_are_found_by_id_in_any_order_of_lines_and_groups(tmp_path: Path) -> None:
    scores = {"a": [1.0, 2.5], "b": [3.0, 4.0, 5.0], "c": [-1000.0]}
    for lines in (WHOLE, WHOLE[::-1]):
        model = Column(column_file(tmp_path, *lines))
        for groups in (GROUPS, GROUPS[::-1]):
            assert {groups[place].id: found for place, found in model.score(groups)} == scores
    turned = replace(A, response_ids=A.response_ids[::-1])
    assert list(model.score([turned])) == [(0, [2.5, 1.0])]


def test_another_column(tmp_path: Path) -> None:
    path = column_file(tmp_path, line("c0", 1.0, helpful=7))
    assert list(Column(path, "helpful").score([C])) == [(0, [7.0])]


def test_nan_and_infinities_are_kept(tmp_path: Path) -> None:
    path = column_file(tmp_path, line("b0", None), line("b1", INF), line("b2", -INF), line("a0", NAN), line("a1", 1))
    found = dict(Column(path).score([A, B]))
    assert math.isnan(found[0][0]) and found[0][1] == 1.0
    assert math.isnan(found[1][0]) and found[1][1:] == [INF, -INF]


def test_the_prompt_id_is_checked_where_there_is_one(tmp_path: Path) -> None:
    path = column_file(tmp_path, line("a0", 1, prompt_id="a"), line("a1", 2), line("c0", 3, prompt_id="b"))
    assert list(Column(path).score([A])) == [(0, [1.0, 2.0])]
    with pytest.raises(UserError, match=r"scores.jsonl:3: response c0 is of prompt c, not of b"):
        next(Column(path).score([A, C]))


def test_missing_scores_are_an_error_before_anything_is_scored(tmp_path: Path) -> None:
    path = column_file(tmp_path, line("a0", 1), line("a1", 1), line("b1", 2))
    with pytest.raises(UserError, match=r"scores.jsonl: no score for 3 of 6 responses, the first is b0"):
        next(Column(path).score(GROUPS))


def test_scores_for_other_responses_are_counted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Column(column_file(tmp_path, *WHOLE))
    with caplog.at_level(logging.INFO):
        assert len(list(model.score(GROUPS))) == 3
        assert caplog.messages == []
        assert list(model.score([A])) == [(0, [1.0, 2.5])]
    assert len(caplog.messages) == 1 and ": 4 of 6 scores are for responses not asked for now" in caplog.messages[0]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line("a0", 2), r":2: response a0 has a score already, in .*scores.jsonl:1"),
        ("{", r":2: malformed_json; scores are JSON Lines"),
        ("[1]", r":2: not_an_object"),
        ('{"score": 1}', r":2: no response_id; the line has score"),
        ('{"response_id": "x", "value": 1}', r":2: no score; the line has response_id, value"),
        (line("x", "0.5"), r":2: score is '0.5'; give a number, or null"),
        (line("x", True), r":2: score is True; give a number"),
        (line("x", [1]), r":2: score is \[1\]"),
        (line("x", 10**400), r":2: score is too large"),
        ('{"response_id": 7, "score": 1}', r":2: response_id and prompt_id must be text"),
        (line("x", 1, prompt_id=7), r":2: response_id and prompt_id must be text"),
    ],
)
def test_lines_that_are_no_scores(tmp_path: Path, bad: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Column(column_file(tmp_path, line("a0", 1), bad))


def test_no_such_score_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.jsonl: No such file"):
        Column(tmp_path / "nowhere.jsonl")


# Ensembles.
FIRST = {"a": [1.0, 5.0], "b": [0.0, 2.0, NAN], "c": [4.0]}
SECOND = {"a": [3.0, 5.0], "b": [4.0, NAN, 1.0], "c": [-4.0]}


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("mean", [[2.0, 5.0], [2.0, NAN, NAN], [0.0]]),
        ("min", [[1.0, 5.0], [0.0, NAN, NAN], [-4.0]]),
        ("mean_minus_variance", [[1.5, 5.0], [0.0, NAN, NAN], [-8.0]]),  # population variances 1, 0, 4, 16; weight 0.5
    ],
)
def test_ways_to_combine(combine: str, expected: list[list[float]]) -> None:
    members = [Fixed(FIRST), Fixed(SECOND, order="cab")]
    found = dict(Ensemble(members, combine, variance_weight=0.5).score(GROUPS))
    for place, scores in enumerate(expected):
        np.testing.assert_array_equal(found[place], scores)


def test_scales_are_those_given_and_never_the_groups() -> None:
    ensemble = Ensemble([Fixed(FIRST), Fixed(SECOND)], "mean", scales=[(1.0, 2.0), (-1.0, 4.0)])
    together = dict(ensemble.score(GROUPS))
    assert together[0] == [0.5, 1.75] and together[2] == [(1.5 - 0.75) / 2]
    assert dict(ensemble.score([A])) == {0: together[0]} and dict(ensemble.score([C])) == {0: together[2]}


@given(st.permutations([FIRST, SECOND, {"a": [0.1, 0.2], "b": [0.3, 0.7, 1.0], "c": [1e9]}]), st.permutations("abc"))
def test_the_order_of_members_and_of_their_answers_changes_nothing(members: list[dict], order: list[str]) -> None:
    plain = dict(Ensemble([Fixed(m) for m in (FIRST, SECOND, members[0])], "min").score(GROUPS))
    turned = dict(Ensemble([Fixed(members[0], order), Fixed(SECOND), Fixed(FIRST, order)], "min").score(GROUPS))
    for place in plain:
        np.testing.assert_array_equal(plain[place], turned[place])


def test_a_group_comes_out_as_soon_as_all_members_have_scored_it() -> None:
    members = [Fixed(FIRST), Fixed(SECOND)]
    scored = Ensemble(members, "mean").score(GROUPS)
    assert next(scored) == (0, [2.0, 5.0]) and [member.given for member in members] == [1, 1]
    members = [Fixed(FIRST), Fixed(SECOND, order="cba")]
    assert [place for place, _ in Ensemble(members, "mean").score(GROUPS)] == [1, 2, 0]  # in which both have them
    assert list(Ensemble(members, "mean").score([])) == []


def test_infinite_scores_are_extremes_or_nan_but_never_an_error() -> None:
    huge = {"a": [INF, 1e200], "b": [-INF, 0.0, 0.0], "c": [INF]}
    small = {"a": [0.0, -1e200], "b": [INF, 0.0, 0.0], "c": [INF]}
    mean, low, cautious = (
        dict(Ensemble([Fixed(huge), Fixed(small)], combine).score(GROUPS))
        for combine in ("mean", "min", "mean_minus_variance")
    )
    assert mean[0] == [INF, 0.0] and math.isnan(mean[1][0]) and mean[2] == [INF]
    assert low[0] == [0.0, -1e200] and low[1][0] == -INF
    assert math.isnan(cautious[0][0]) and cautious[0][1] == -INF


@pytest.mark.parametrize(
    ("scores", "order", "message"),
    [
        (FIRST, "ab", "member 1 scored 2 of 3 prompts"),
        (FIRST, "aabc", "member 1 scored prompt a twice"),
        (FIRST | {"b": [1.0]}, "abc", "member 1 gave prompt b 1 scores for 3 responses"),
    ],
)
def test_members_that_do_not_score_what_they_are_asked(scores: dict[str, list[float]], order: str, message: str) -> None:
    with pytest.raises(StepError, match=message):
        list(Ensemble([Fixed(FIRST), Fixed(scores, order)], "mean").score(GROUPS))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda m: Ensemble([m], "mean"), "1 members; give at least two"),
        (lambda m: Ensemble([m, m], "median"), "combine 'median'; known are mean, min, mean_minus_variance"),
        (lambda m: Ensemble([m, m], "mean_minus_variance", -1.0), "variance_weight is -1.0"),
        (lambda m: Ensemble([m, m], "mean", NAN), "variance_weight is nan"),
        (lambda m: Ensemble([m, m], "mean", scales=[(0.0, 1.0)]), "1 scales for 2 members"),
        (lambda m: Ensemble([m, m], "mean", scales=[(0.0, 1.0), (0.0, 0.0)]), r"scale \(0.0, 0.0\)"),
        (lambda m: Ensemble([m, m], "mean", scales=[(NAN, 1.0), (0.0, 1.0)]), "scale"),
    ],
)
def test_no_ensemble(build: Callable[[Fixed], Ensemble], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(Fixed(FIRST))


# Length.
def test_length_penalty() -> None:
    penalised = LengthPenalty(Fixed(FIRST, order="cba"), 0.5)
    found = list(penalised.score(GROUPS))
    assert [place for place, _ in found] == [2, 1, 0]
    assert dict(found)[0] == [-4.0, -0.5] and dict(found)[2] == [-1.0]  # 10 and 11 tokens
    assert dict(found)[1][:2] == [-5.0, -3.5] and math.isnan(dict(found)[1][2])


def test_length_penalty_without_lengths() -> None:
    model = Fixed(FIRST)
    for lengths in ((), (1,), (1, 2, 3)):
        with pytest.raises(UserError, match=rf"prompt a has {len(lengths)} lengths for 2 responses"):
            next(LengthPenalty(model, 0.1).score([C, replace(A, num_tokens=lengths)]))
    assert model.given == 0
    for price in (NAN, INF):
        with pytest.raises(UserError, match="per_token"):
            LengthPenalty(model, price)


ROWS = st.lists(st.tuples(st.sampled_from("pqrs"), st.integers(1, 500), st.floats(-5, 5)), min_size=1, max_size=30)


@given(ROWS)
def test_slope_equals_a_regression_with_a_dummy_per_prompt(rows: list[tuple[str, int, float]]) -> None:
    prompts, lengths, scores = zip(*rows, strict=True)
    names = sorted(set(prompts))
    design = np.array([[length, *(float(name == prompt) for name in names)] for prompt, length, _ in rows])
    slope = within_prompt_slope(scores, lengths, prompts)
    if np.linalg.matrix_rank(design) == len(names) + 1:
        assert slope == pytest.approx(np.linalg.lstsq(design, np.array(scores), rcond=None)[0][0], abs=1e-6)
    else:
        assert slope == 0.0


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(rows: list[tuple[str, int, float]], shuffler: object) -> None:
    turned = list(range(len(rows)))
    shuffler.shuffle(turned)  # type: ignore[attr-defined]
    prompts, lengths, scores = zip(*rows, strict=True)
    slope = within_prompt_slope(scores, lengths, prompts)
    columns = [[column[i] for i in turned] for column in (scores, lengths, prompts)]
    assert within_prompt_slope(*columns) == pytest.approx(slope, abs=1e-9)
    np.testing.assert_allclose(
        remove_length(*columns, 0.3), remove_length(scores, lengths, prompts, 0.3)[turned], rtol=0, atol=1e-9
    )


def test_differences_between_prompts_are_no_length_bias() -> None:
    """Long answers of one prompt are good and short ones of another bad; within each, length is worth 0.01 a token."""
    random = np.random.default_rng(0)
    prompts = np.repeat(np.arange(200), 8)
    lengths = 20 + 5 * prompts + random.integers(0, 50, len(prompts))
    quality = random.normal(size=len(prompts))
    scores = quality + 0.01 * lengths + prompts
    slope = within_prompt_slope(scores, lengths, prompts.tolist())
    assert slope == pytest.approx(0.01, abs=0.004)
    assert np.polyfit(lengths, scores, 1)[0] > 0.15
    assert within_prompt_slope(remove_length(scores, lengths, prompts.tolist(), slope), lengths, prompts.tolist()) == (
        pytest.approx(0.0, abs=1e-12)
    )


@given(ROWS, st.floats(-1, 1))
def test_removal_keeps_prompt_means_and_takes_slope_times_length(rows: list[tuple[str, int, float]], slope: float) -> None:
    prompts, lengths, scores = zip(*rows, strict=True)
    found = remove_length(scores, lengths, prompts, slope)
    for name in set(prompts):
        mine = [i for i, prompt in enumerate(prompts) if prompt == name]
        assert found[mine].mean() == pytest.approx(np.mean([scores[i] for i in mine]), abs=1e-6)
        for i in mine:
            expected = scores[i] - scores[mine[0]] - slope * (lengths[i] - lengths[mine[0]])
            assert found[i] - found[mine[0]] == pytest.approx(expected, abs=1e-6)


def test_scores_that_are_no_numbers_are_left_out() -> None:
    scores, lengths, prompts = [1.0, 3.0, NAN, 5.0, INF], [10, 20, 900, 7, 8], ["p", "p", "p", "q", "q"]
    assert within_prompt_slope(scores, lengths, prompts) == pytest.approx(0.2)
    np.testing.assert_allclose(remove_length(scores, lengths, prompts, 0.2), [2.0, 2.0, NAN, 5.0, INF])


def test_lengths_that_do_not_vary_have_no_slope() -> None:
    assert within_prompt_slope([1.0, 2.0, 7.0], [5, 5, 9], ["p", "p", "q"]) == 0.0
    assert within_prompt_slope([], [], []) == 0.0
    assert within_prompt_slope([NAN, NAN], [1, 2], ["p", "p"]) == 0.0
    with pytest.raises(ValueError, match="2 scores, 1 lengths and 2 prompts"):
        within_prompt_slope([1.0, 2.0], [1], ["p", "p"])


# The user's function.
def code(folder: Path, text: str) -> Path:
    (path := folder / "mine.py").write_text(text, encoding="utf-8")
    return path


def test_a_function_of_ones_own(tmp_path: Path) -> None:
    path = code(
        tmp_path,
        "def score(prompt, responses):\n"
        "    assert prompt == [{'role': 'user', 'content': 'ask b'}] and isinstance(responses, list)\n"
        "    prompt[0]['content'] = ''\n"
        "    responses.append('')\n"
        "    return [True, 2, float('nan')]\n",
    )
    [(place, scores)] = load_function(path).score([B])
    assert place == 0 and scores[:2] == [1.0, 2.0] and math.isnan(scores[2])
    assert all(type(score) is float for score in scores)
    assert group("b", 3) == B  # the function had copies


def test_another_name_and_dataclasses_and_no_compiled_copy(tmp_path: Path) -> None:
    path = code(
        tmp_path,
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Weights:\n    length: float = 0.5\n"
        "def mine(prompt, responses):\n    return [Weights().length * len(r) for r in responses]\n",
    )
    assert list(load_function(path, "mine").score(GROUPS)) == [(0, [3.5] * 2), (1, [3.5] * 3), (2, [3.5])]
    code(tmp_path, path.read_text(encoding="utf-8").replace("0.5", "0.7"))
    assert next(load_function(path, "mine").score([C])) == (0, [pytest.approx(4.9)])  # as long, within the same second
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1.0", r"mine.py: score returned for prompt b a float; it must return a list of numbers"),
        ("return None", r"prompt b a NoneType"),
        ("return {0: 1}", r"prompt b a dict"),
        ("return 'abc'", r"prompt b a str"),
        ("return [1.0]", r"score returned for prompt b 1 scores for 3 responses"),
        ("return [1.0, '2', 3]", r"score returned for prompt b '2' \(str\) for response 1"),
        ("return [1.0, None, 3]", r"prompt b None \(NoneType\) for response 1"),
        ("return [1j, 2, 3]", r"1j \(complex\)"),
        ("return [10 ** 400, 2, 3]", r"prompt b an integer that is too large"),
        ("return 1 / 0", r"mine.py:4: ZeroDivisionError: division by zero \(in score, prompt b\)"),
        ("return [helper(r) for r in responses]", r"mine.py:2: ValueError: two lines of text \(in score, prompt b\)"),
        ("return __import__('json').loads('{')", r"mine.py:4: JSONDecodeError: .*prompt b"),
        ("raise SystemExit(3)", r"mine.py:4: SystemExit: 3 \(in score, prompt b\)"),
    ],
)
def test_functions_that_fail(tmp_path: Path, body: str, message: str) -> None:
    helper = "def helper(text):\n    raise ValueError('two\\nlines of ' + text[:4])\n"
    path = code(tmp_path, f"{helper}def score(prompt, responses):\n    {body}\n")
    with pytest.raises(StepError, match=message) as caught:
        list(load_function(path).score([B]))
    assert "\n" not in str(caught.value)


def test_a_function_with_other_parameters(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"mine.py: TypeError: score\(\) takes 1 positional argument .*prompt a"):
        list(load_function(code(tmp_path, "def score(text):\n    return [1.0]\n")).score([A]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", r"mine.py: score is not a function \(there is no such name in it\); define score\(prompt, responses\)"),
        ("score = 3\n", r"mine.py: score is not a function \(it is a int\)"),
        ("x = 1\ndef score(:\n", r"mine.py:2: SyntaxError: .*while it was imported"),
        ("x = 1\nimport no_such_module\n", r"mine.py:2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(0)\n", r"mine.py:1: SystemExit"),
        ("\0", r"mine.py.*SyntaxError"),
    ],
)
def test_files_without_a_function(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_function(code(tmp_path, text))


def test_no_such_function_file(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.py", tmp_path):
        with pytest.raises(UserError, match="there is no such file"):
            load_function(path)
    with pytest.raises(UserError):
        load_function(code(tmp_path, "1 / 0"))
    assert not [name for name in sys.modules if str(tmp_path) in name]
