"""Rules: each check by hand, final answers in English and Korean, marks that depend on prompt and response alone."""

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.core.errors import UserError
from reward.interface import Group
from reward.rules import CHECKS, Rules, answers_equal

ALL = dict.fromkeys(CHECKS, 1.0)
TEXTS = st.text(st.characters(categories=None) | st.sampled_from(list("0123456789.,-/$%\\{}^#|`* \n답은만")), max_size=80)


def group(*responses: str, ask: str = "What is a hive?", lang: str = "en", reference: str = "") -> Group:
    return Group(
        id="p",
        prompt=[{"role": "user", "content": ask}],
        response_ids=tuple(f"r{i}" for i in range(len(responses))),
        responses=responses,
        lang=lang,
        reference=reference,
    )


def marks(name: str, *responses: str, **about: str) -> list[float]:
    return Rules({name: 1.0}).marks(group(*responses, **about))[name]


# The mean.
def test_score_is_the_weighted_mean_of_the_checks_that_apply() -> None:
    rules = Rules({"language": 1.0, "constraints": 3.0, "exact_answer": 100.0})
    asked = group(
        "A home. For bees.", "A home for bees.", "꿀벌의 집. 벌통.", ask="What is a hive? Answer in two sentences."
    )
    assert list(rules.marks(asked)) == ["language", "constraints"]  # no reference, so no exact_answer
    assert list(rules.score([asked])) == [(0, [1.0, 0.25, 0.75])]


def test_an_empty_response_scores_nothing() -> None:
    """It repeats nothing and uses no word that it should avoid, so the checks alone would praise it."""
    ask = "Describe a hive. Do not use the word 'bee'."
    assert dict(Rules(ALL).score([group("", " \n", "A home.", ask=ask)])) == {0: [0.0, 0.0, 1.0]}


def test_where_no_check_applies_there_is_no_score() -> None:
    scores = dict(Rules({"exact_answer": 1.0, "json": 2.0}).score([group("a", ""), group("5", reference="5")]))
    assert all(math.isnan(score) for score in scores[0])
    assert scores[1] == [1.0]


def test_every_response_of_a_prompt_is_measured_by_the_same_checks() -> None:
    plain, table = group("No table."), group("No table.", "| a | b |\n|---|---|\n| 1 |")
    for one in (plain, table):
        assert dict(Rules({"format": 1.0, "language": 1.0}).score([one]))[0][0] == 1.0
    assert dict(Rules({"format": 1.0, "language": 1.0}).score([table]))[0][1] == 0.5


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "give at least one check"),
        ({"langauge": 1.0}, "no check langauge; there are constraints"),
        ({"json": 0.0}, "weight of json is 0.0"),
        ({"json": -1.0}, "above 0"),
        ({"json": math.nan}, "nan"),
        ({"json": math.inf}, "inf"),
    ],
)
def test_weights_that_make_no_mean(weights: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Rules(weights)


@given(st.lists(TEXTS, min_size=1, max_size=4), TEXTS, TEXTS, st.sampled_from(["en", "ko"]))
def test_any_text_has_a_score_in_the_unit_interval_of_its_own(texts: list[str], ask: str, reference: str, lang: str) -> None:
    rules = Rules({name: 0.1 + i / 3 for i, name in enumerate(CHECKS)})
    [(_, scores)] = rules.score([group(*texts, ask=ask, lang=lang, reference=reference)])
    assert all(0 <= score <= 1 for score in scores)
    for text, score in zip(texts, scores, strict=True):
        assert list(rules.score([group(text, ask=ask, lang=lang, reference=reference)])) == [(0, [score])]


# The checks.
def test_constraints_is_the_share_of_demands_that_are_kept() -> None:
    ask = "What is a hive? Answer in exactly two sentences. Use the word 'honey'.\n\nAnswer in three words."
    found = marks("constraints", "A home. It holds honey.", "A home for honey.", "A home. For bees.", "A home", ask=ask)
    assert found == [1.0, 0.5, 0.5, 0.0]
    assert "constraints" not in Rules(ALL).marks(group("A home.", ask="What is a hive?"))


def test_constraints_are_those_of_the_last_user_turn_in_its_own_language() -> None:
    turns = [
        {"role": "user", "content": "Answer in exactly three sentences."},
        {"role": "assistant", "content": "One. Two. Three."},
        {"role": "user", "content": "벌집을 영어로 설명해 주세요. 두 문장으로 답해 주세요."},
    ]
    asked = Group(id="p", prompt=turns, response_ids=("a", "b"), responses=("A home. For bees.", "A home."), lang="en")
    assert Rules({"constraints": 1.0}).marks(asked) == {"constraints": [1.0, 0.0]}


def test_json_parses() -> None:
    ask = "Name two bees. Answer as a JSON object with the keys a and b."
    texts = ['{"a": 1}', '```json\n["x"]\n```', "{'a': 1}", '{"a": NaN}', 'Sure: {"a": 1}', "3"]
    assert marks("json", *texts, ask=ask) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert "json" not in Rules(ALL).marks(group('{"a": 1}'))


def test_language_is_graded_below_the_limit() -> None:
    assert marks("language", "A hive is a home.", "벌집은 집이다.", "Ab가나", "42", "`x = 1`", lang="en") == [
        1.0,
        0.0,
        0.5,
        1.0,
        1.0,
    ]
    code = "벌집입니다.\n```python\ndef hive_of_many_bees(): return 'a very long text in Latin letters'\n```"
    assert marks("language", "벌집은 hive입니다.", "A hive.", code, "\\boxed{42}", lang="ko") == [1.0, 0.0, 1.0, 1.0]
    assert "language" not in Rules(ALL).marks(group("Une ruche.", lang="fr"))


def test_format_is_well_formed_markdown() -> None:
    whole, open_fence = "```python\nx = 1\n```", "```python\nx = 1"
    table, ragged = "| a | b |\n|---|:-:|\n| 1 | x \\| y |", "| a | b |\n|---|---|\n| 1 | 2 | 3 |"
    short_rule = "| a | b |\n|---|\n| 1 | 2 |"
    texts = ["Plain, with a | bar\nand --- a line.", whole, open_fence, table, ragged, short_rule, f"{table}\n\n{ragged}"]
    assert marks("format", *texts) == [1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.5]
    assert marks("format", "| a | b |\n|---|---|---|\n| 1 | 2 | 3 |") == [0.0]
    assert marks("format", f"```\n{ragged}\n```") == [1.0]  # code holds no table


def test_repetition() -> None:
    assert marks("repetition", "one two three four five", "one two three four " * 2) == [1.0, 0.8]


# Final answers: (response, reference).
RIGHT = [
    ("The total is 1,234.", "1234"), ("It is 42.0", "42"), ("She makes $5", "5 dollars"), ("5 dollars.", "5"),
    ("5 dollars", "$5"), ("It costs US$18", "18"), ("x=5", "5"), ("1,2,3", "3"), ("so...5", "5"),
    ("the answer is .5", "0.5"),
    ("5 km/h", "5 km/h"), ("18점", "18"), ("１８", "18"), ("(a) 3 (b) 4", "4"), ("2. It is 10\n3. Done.", "10"),
    # signs
    ("-5", "-5"), ("−5", "-5"), ("-$5", "-5"), ("$-5", "-5"), ("영하 5도입니다.", "-5"), ("negative 5", "-5"), ("10-7", "7"),
    ("16 - 5", "5"), ("16 -5", "5"), ("정답은 -5입니다", "-5"),
    # fractions, percent, scales
    ("1/2", "0.5"), ("1 1/2 cups", "3/2"), ("½", "0.5"), ("1½ cups", "1.5"), ("\\frac12", "1/2"), ("50%", "0.5"),
    ("50%", "50"), ("50 percent", "1/2"), ("0.5", "50%"), ("5 million", "5,000,000"), ("The answer is 3/4 of it", "0.75"),
    ("정답은 7만 원입니다.", "70000"), ("답은 1만 2천 원입니다", "12000"), ("1억 5천만 원", "150000000"),
    ("5만 10만", "10만"),
    ("1만 2,500원", "12500"),
    # boxed
    ("\\boxed{\\frac{1}{2}} of 7", "1/2"), ("\\boxed{-\\frac{1}{2}}", "-0.5"), ("\\boxed{1\\frac{1}{2}}", "1.5"),
    ("\\boxed{\\dfrac{3}{4}}", "0.75"), ("\\boxed{\\$18}", "18"), ("\\boxed{18\\text{ dollars}}", "18"),
    ("\\boxed{18\\%}", "18%"), ("\\boxed{x = 18}", "18"), ("\\boxed{9 * 2 = 18}", "18"), ("\\boxed{90^\\circ}", "90"),
    ("\\boxed{1{,}234}", "1234"), ("\\boxed{1\\,234}", "1234"), ("\\boxed{5 \\text{ m}^2}", "5"),
    ("\\boxed{3}, no, \\boxed{4}", "4"), ("18", "so \\boxed{18}"), ("\\boxed{18} takes 7 days", "18"),
    # after "the answer is"
    ("The answer is 18. It takes 7 days.", "18"), ("The answer is 9 * 2 = 18 dollars", "18"), ("**Answer:** 18", "18"),
    ("The answer is **18** dollars for 7 days.", "18"), ("Final Answer:\n\n**18 dollars**", "18"), ("Answer: A = 5", "5"),
    ("### Answer\n18 eggs in 7 nests", "18"), ("The answer is not 5 but 6.", "6"), ("Answer: 7 (not 8)", "7"),
    ("The answer is that she sells 9 eggs for $18.", "18"), ("The answer to question 3 is 18 in 7 days.", "18"),
    ("The answer is 17. Wait: the answer is 18 in 7 days.", "18"), ("answer is \\(18\\) in 7 days", "18"),
    ("The answer is: $18$ (7 days)", "18"), ("The answer is approximately 3.14, 7 digits.", "3.14"),
    ("정답은 18입니다. 7일입니다.", "18"), ("따라서 답은 총 18개입니다. 7일 동안입니다.", "18"), ("답: 18개 (7일)", "18"),
    ("최종 답: **1,234원** 7일", "1234"), ("답은 5가 아니라 6입니다.", "6"), ("보답은 5, 결과는 6", "6"),
    ("18이 답이다.", "18"),
    # after ####
    ("9*2=18\n#### 18", "4 * 4 + 2\n#### 18"), ("#### 18 dollars per day", "18"), ("#### Step 4\nIt is 10", "10"),
    # words
    ("Paris", "Paris"), ("The answer is Paris. It lies on the Seine.", "paris"), ("So:\n**Paris**", "Paris"),
    ("정답은 파리입니다.", "파리"), ("파리입니다", "파리"), ("답은 다섯 벌입니다.", "다섯 벌"),
    ("\\boxed{\\text{Paris}}", "Paris"), ("The answer is (B).", "B"),
    ("\\boxed{x^2+1}", "x^2+1"), ("12:30", "12:30"), ("The answer is 2, 4, 6.", "2, 4, 6"),
    ("#### Paris", "Paris"), ("The answer is St. Ives", "St. Ives"), ("?", "?"), ("5. That is all.", "5"),
    ("1984 by George Eric Orwell", "1984 by George Eric Orwell"),
]  # fmt: skip
WRONG = [
    ("", "5"), ("no numbers", "5"), ("5", "-5"), ("16 - 5", "-5"), ("16 -5", "-5"), ("10-7", "-7"), ("-5", "5"),
    ("5/0", "5"),
    ("9" * 5000, "5"), ("9" * 5000, "9" * 5000 + "1"), ("H2O and CO2", "2"), ("The area is 5 m²", "2"), ("5 m^2", "2"),
    ("v1.5", "5"), ("1,234", "234"), ("42.5", "42"), ("0.5", "50"), ("5 thousand", "5 million"), ("7만", "7천"),
    ("5만 10만", "150000"),
    ("1½", "½"), ("1 1/2", "1/2"), ("\\boxed{\\sqrt{2}}", "2"), ("\\boxed{2\\pi}", "2"), ("\\boxed{3, 4}", "3"),
    ("\\boxed{3, 4}", "4"), ("\\boxed{2^{10}}", "10"), ("\\boxed{2x}", "2"), ("\\boxed{17} and so 18", "18"),
    ("The answer is 17 for 18 days.", "18"), ("정답은 17입니다. 18일.", "18"), ("18\n#### 17", "18"), ("5 or 6", "5"),
    ("The answer is 2x", "2 m and 3 cm long"), ("London", "Paris"), ("Not Paris", "Paris"), ("2, 4", "2, 4, 6"),
    ("The answer is Paris or London.", "Paris"), ("Paris\n\\boxed{London}", "Paris"), ("at 12:31", "12:30"),
    ("!", "?"), ("2^{10}", "2"),
    ("1984", "1984 by George Eric Orwell"),
]  # fmt: skip


@pytest.mark.parametrize(("response", "reference"), RIGHT)
def test_right_answers(response: str, reference: str) -> None:
    assert answers_equal(response, reference)
    assert marks("exact_answer", response, reference=reference) == [1.0]


@pytest.mark.parametrize(("response", "reference"), WRONG, ids=lambda text: text[:40])
def test_wrong_answers(response: str, reference: str) -> None:
    assert not answers_equal(response, reference)


NUMBERS = st.decimals(min_value=-(10**9), max_value=10**9, allow_nan=False, places=2)


@given(NUMBERS, NUMBERS)
def test_numbers_are_equal_however_they_are_written(number: object, other: object) -> None:
    """With and without separators, currency and trailing zeros; and no two different numbers are."""
    written = [f"{number}", f"{number:,}", f"${number:,}", f"{number}0", f"\\boxed{{{number}}}"]
    for text in (*written, f"정답은 {number:,}원입니다."):
        assert answers_equal(text, str(number))
        assert answers_equal(text, str(other)) == (number == other)
    assert all(answers_equal(str(number), reference) for reference in written)


@pytest.mark.shared_data
def test_solutions_of_gsm8k(shared_data: Path) -> None:
    """Each reference solution is right in every way to state its answer, and wrong once its final number is another."""
    rows = [json.loads(line) for line in (shared_data / "benchmarks/gsm8k_test.jsonl").open(encoding="utf-8")]
    assert len(rows) == 1319
    ways = (
        "\n#### {}",
        "\n\\boxed{{{}}}",
        "\nThe answer is ${}, for all 7 days.",
        "\n따라서 정답은 {}달러입니다. 7일입니다.",
    )
    for row in rows:
        solution, number = re.fullmatch(r"(.*)\n#### (-?[0-9,.]+)", row["answer"], re.S).groups()  # type: ignore[union-attr]
        changed = str(int(number.replace(",", "")) + 1)
        for reference in (row["answer"], number):
            assert answers_equal(row["answer"], reference)
            for way in ways:
                assert answers_equal(solution + way.format(number), reference)
                assert not answers_equal(solution + way.format(changed), reference)
