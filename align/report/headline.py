"""The sentences at the top of the report, written from the numbers and no surer than they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.report.artifacts import ROLES, at
from align.report.gather import RunData
from align.report.stages import Evaluation


@dataclass(frozen=True)
class Claim:
    """What came out of one model; `verdict` is up, down, open (not told apart), base or none."""

    model: str
    verdict: str
    sentence: str


def percent(value: float | None, digits: int = 0) -> str:
    """0.613 as `61 %` with a space that does not break; a dash where there is no number."""
    return "–" if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def by_length(longer: float) -> tuple[float, str]:
    """What going by length alone could reach, and the answer it would prefer: "longer" or "shorter".

    Args:
        longer: share of pairs whose chosen answer is the longer one.
    """
    # Of the other pairs some may be equally long, so for the shorter answer this is the most that it can reach.
    return (longer, "longer") if longer >= 0.5 else (1 - longer, "shorter")


def verdict(rate: Mapping[str, float | None] | None) -> str:
    """up or down where the whole interval lies above or below 50 %; open where it does not; none without an interval."""
    low, high = at(rate, "low"), at(rate, "high")
    if low is None or high is None:
        return "none"
    return "up" if low > 0.5 else "down" if high < 0.5 else "open"


def _rate(rate: Mapping[str, float | None] | None) -> str:
    if at(rate, "mean") is None:
        return "not measured"
    assert rate is not None
    if rate["low"] is None or rate["high"] is None:
        return f"{percent(rate['mean'])} (too few prompts for an interval)"
    return f"{percent(rate['mean'])} (95 % interval {100 * rate['low']:.0f} to {100 * rate['high']:.0f} %)"


_WORDS = {
    ("up", "up"): "Both reward models prefer it: each interval lies above 50 %.",
    ("down", "down"): "Both reward models prefer the baseline: each interval lies below 50 %.",
    ("open", "open"): "Both intervals include 50 %, so these prompts do not tell it apart from the baseline.",
}


def _conclusion(first: str, second: str) -> str:
    if found := _WORDS.get((first, second)):
        return found
    if "none" in (first, second):
        return "There are too few prompts to say more."
    if {first, second} == {"up", "down"}:
        return "The reward models contradict each other, so no claim is made."
    names = dict(zip(ROLES, (first, second), strict=True))
    sure = next(role for role in ROLES if names[role] != "open")
    other = next(role for role in ROLES if names[role] == "open")
    side = "above" if names[sure] == "up" else "below"
    return f"The {sure}'s interval lies {side} 50 %, the {other}'s includes 50 %: the evidence is one-sided."


def claims(evaluation: Evaluation) -> list[Claim]:
    """One sentence or two for each evaluated model, in the order of the table."""
    found = []
    for entry in evaluation.table:
        model = str(entry["model"])
        if model == evaluation.baseline:
            found.append(
                Claim(model, "base", f"is the baseline of the win rates, over {evaluation.prompts} held-out prompts.")
            )
            continue
        rates = [entry.get(f"{role}_win_rate") for role in ROLES]
        sides = [verdict(rate) for rate in rates]
        text = (
            f"wins {_rate(rates[0])} against {evaluation.baseline} by the selector and {_rate(rates[1])} by the "
            f"validator. {_conclusion(*sides)}"
        )
        both = sides[0] if sides[0] == sides[1] else "open"
        found.append(Claim(model, both, text))
    return found


def _drift(evaluation: Evaluation) -> list[str]:
    """Side effects against the baseline that a win rate hides."""
    by_model = {str(e["model"]): e for e in evaluation.table}
    base = by_model.get(evaluation.baseline)
    found = []
    for model, entry in by_model.items():
        if base is None or entry is base or model == "base":
            continue

        def pair(column: str, entry: Mapping[str, Any] = entry) -> tuple[float, float] | None:
            ours, theirs = entry.get(column), at(base, column)
            return None if ours is None or theirs is None else (ours, theirs)

        if (v := pair("num_tokens")) and v[1] and abs(v[0] / v[1] - 1) > 0.25:
            found.append(
                f"{model} writes {v[0]:.0f} tokens per answer, {evaluation.baseline} {v[1]:.0f}: compare at equal length."
            )
        if (v := pair("finished")) and v[1] - v[0] > 0.1:
            found.append(f"{model} finishes {percent(v[0])} of its answers, {evaluation.baseline} {percent(v[1])}.")
        if (v := pair("repetition")) and v[0] - v[1] > 0.05:
            found.append(f"{model} repeats more: {v[0]:.2f} of its word 4-grams against {v[1]:.2f}.")
        if (v := pair("language_match")) and v[1] - v[0] > 0.05:
            found.append(f"{model} answers {percent(v[0])} in the prompt's language, {evaluation.baseline} {percent(v[1])}.")
    return found


def watch(run: RunData) -> list[str]:
    """What a careful reader should look at before believing the headline."""
    found: list[str] = []
    if run.evaluation:
        found += _drift(run.evaluation)
        if any(m.metrics for m in run.reward_models):
            found.append(
                "The two judges of these win rates also chose the training pairs, so part of a gain is fit to the judge."
            )
    for model in run.reward_models:
        accuracy, longer = model.metrics.get("accuracy"), model.metrics.get("longer_is_chosen")
        if accuracy is not None and longer is not None and accuracy <= by_length(longer)[0] + 0.02:
            reach, preferred = by_length(longer)
            found.append(
                f"The {model.role} is right on {percent(accuracy)} of held-out pairs; preferring the {preferred} answer "
                f"alone would reach {'up to ' if preferred == 'shorter' else ''}{percent(reach)}."
            )
    for stage in run.stages:
        if stage.pair is None:
            continue
        share, of = stage.longer
        if share is not None and not 0.25 <= share <= 0.75:
            found.append(
                f"Stage {stage.number}: the chosen answer is the longer one in {percent(share)} of {of}, "
                "a length bias that training will pick up."
            )
        if stage.pairs_trained < 100:
            found.append(
                f"Stage {stage.number} trains on {stage.pairs_trained} pairs: enough to exercise it, few to learn from."
            )
    return found


def unfinished(run: RunData) -> Sequence[str]:
    """Names of steps that have no finished result."""
    return [s.name for s in run.facts.steps if s.manifest is None]
