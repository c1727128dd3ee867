"""What an arena suite says of its battles beside the share of votes."""

from __future__ import annotations

import math

import pytest

from align.core.rows import SuiteResult
from align.evaluate.suite import summarize
from align.evaluate.win_rates import arena_vote
from align.steps.suites import battles_of


def games(model: str, labels: dict[str, tuple[str, str]]) -> list[SuiteResult]:
    """Both games of a prompt, or neither, as the judge's step writes them."""
    found = []
    for prompt, pair in labels.items():
        broken = "" if all(pair) else "no_verdict"
        for order, label in zip(("ab", "ba"), pair, strict=True):
            value, weight = arena_vote(label)
            found.append(
                SuiteResult(
                    id=f"{model}{prompt}{order}",
                    item_id=prompt,
                    model=model,
                    category="",
                    lang="en",
                    metric="win_rate",
                    key=order,
                    value=math.nan if broken else value,
                    weight=weight,
                    failure=broken,
                    raw="",
                )
            )
    return found


ONE = {"p": ("A>>B", "B>A"), "q": ("A=B", "A>B"), "r": ("A>B", ""), "s": ("B>>A", "B>>A")}


def test_battles_are_counted_by_prompt_and_votes_by_weight() -> None:
    rows = games("M1", ONE)
    found = battles_of(rows, ["M1"], "M0", seed=1)
    one = found["battles"]["M1"]
    # p is won and lost, so a tie; q is half won; s is lost twice; r has one valid game, and counts nowhere.
    assert (one["wins"], one["ties"], one["losses"], one["left_out"], one["contradictory"]) == (1, 1, 1, 1, 1)
    assert one["inconsistency"] == pytest.approx(1 / 3) and one["p_value"] == 1.0
    assert found["notes"] == [
        "M1 won 1, tied 1, lost 1 (sign test p = 1), and in 33 % the judge named the other winner when they were swapped"
    ]
    votes = summarize(rows, ["M1"], seed=1)["win_rate"]["M1"]
    # Votes for the model: p 3 of 4, q 1.5 of 2, s 0 of 6.
    assert votes["mean"] == pytest.approx(4.5 / 12, abs=1e-4) and votes["failed"] == {"no_verdict": 2}


def test_models_are_compared_on_the_same_prompts() -> None:
    up = {str(i): ("A>B", "A>B") for i in range(12)}
    down = {str(i): ("B>A", "B>A") for i in range(12)}
    found = battles_of([*games("M1", down), *games("M2", up)], ["M1", "M2"], "M0", seed=1)
    paired = found["battles"]["M2"]["against_first"]
    assert paired["difference"] == 1.0 and paired["p_value"] == pytest.approx(2 / 2**12)
    assert "+1.00 against M1" in found["notes"][1] and "against_first" not in found["battles"]["M1"]


def test_votes_of_one_outcome_know_a_doubt() -> None:
    rows = games("M1", {"p": ("A>>B", "A>>B"), "q": ("A>B", "A>B"), "r": ("A>>B", "A>>B")})
    votes = summarize(rows, ["M1"], seed=1)["win_rate"]["M1"]
    assert votes["mean"] == votes["high"] == 1.0 and votes["low"] < 0.6
