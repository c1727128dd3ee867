"""Win rates of a model against a baseline: from scores or a judge, at equal length, and by Arena-Hard's votes.

A `Comparison` is one prompt, or one game where a judge saw the two answers in one order. Ties count half. Intervals are 95 %
percentile bootstraps over prompts, and Wilson's (1927) where all prompts have the same outcome and a bootstrap would know no
doubt. Functions put comparisons in order of prompt id first, so the order of rows is no matter. What comes out is ready for
JSON: None where a number is undefined.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from align.core.errors import StepError
from align.evaluate.metrics import Floats, bootstrap_interval, number, quantile_interval, resampled_means, wins
from align.evaluate.suite import effective_count, wilson

REFITS = 1000  # resamples of the length-controlled rate, each fitted anew
PERMUTATIONS = 9999
RIDGE = 25.0  # inverse penalty: a normal prior of standard deviation 5 on each coefficient
FAR = 5.0  # points between the length-controlled and the raw rate that are worth a warning
VOTES = {"A>>B": (1.0, 3.0), "A>B": (1.0, 1.0), "A=B": (0.5, 1.0), "B>A": (0.0, 1.0), "B>>A": (0.0, 3.0)}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model's answer to a prompt against the baseline's.

    Attributes:
        prompt_id, model, baseline: what was compared.
        outcome: 1 the model wins, 0.5 tie, 0 it loses, between these for a mean of games; NaN for an invalid one.
        weight: in means over prompts.
        length_model, length_baseline: of the two answers, in tokens; NaN where unknown.
        order: ab where the judge saw the model's answer first, ba where it saw the baseline's first, else empty.
    """

    prompt_id: str
    model: str
    baseline: str
    outcome: float
    weight: float = 1.0
    length_model: float = math.nan
    length_baseline: float = math.nan
    order: str = ""

    def __post_init__(self) -> None:
        right = math.isnan(self.outcome) or 0 <= self.outcome <= 1
        if not right or not 0 < self.weight < math.inf or self.order not in ("", "ab", "ba"):
            raise ValueError(f"{self.prompt_id}: outcome {self.outcome}, weight {self.weight}, order {self.order!r}")


def compare_scores(
    scores: Mapping[str, float],
    baseline_scores: Mapping[str, float],
    *,
    model: str,
    baseline: str,
    lengths: Mapping[str, float] | None = None,
    baseline_lengths: Mapping[str, float] | None = None,
) -> list[Comparison]:
    """One comparison per prompt id of either side: the higher score wins; invalid where a finite score is missing.

    Lengths are in tokens by prompt id, NaN where missing.
    """
    compared = []
    for prompt in sorted({*scores, *baseline_scores}):
        ours, theirs = scores.get(prompt, math.nan), baseline_scores.get(prompt, math.nan)
        compared.append(
            Comparison(
                prompt_id=prompt, model=model, baseline=baseline,
                outcome=wins([ours], [theirs])[0] if math.isfinite(ours) and math.isfinite(theirs) else math.nan,
                length_model=(lengths or {}).get(prompt, math.nan),
                length_baseline=(baseline_lengths or {}).get(prompt, math.nan),
            )
        )  # fmt: skip
    return compared


def _by_prompt(games: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    """The games of each prompt, ab before ba, prompts in order.

    Raises:
        ValueError: more than one model or baseline, or two comparisons of a prompt in the same order.
    """
    if len({(g.model, g.baseline) for g in games}) > 1:
        raise ValueError("comparisons of different models or against different baselines")
    if len({(g.prompt_id, g.order) for g in games}) < len(games):
        raise ValueError("a prompt is compared twice in the same order")
    found: dict[str, list[Comparison]] = {}
    for game in sorted(games, key=lambda g: (g.prompt_id, g.order)):
        found.setdefault(game.prompt_id, []).append(game)
    return found


def _one_each(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons in order of prompt id.

    Raises:
        ValueError: as `_by_prompt`, or a prompt's two games that are not merged.
    """
    games = _by_prompt(comparisons)
    if any(len(of_prompt) > 1 for of_prompt in games.values()):
        raise ValueError("a prompt has two games; merge them with merge_games")
    return [game for (game,) in games.values()]


def _names(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    return {name: getattr(comparisons[0], name) if comparisons else None for name in ("model", "baseline")}


def _interval(values: Floats, weights: Floats, seed: int) -> dict[str, float | None]:
    """Low and high of a weighted mean of outcomes in [0, 1] over prompts (P,)."""
    if len(values) < 2:
        return {"low": None, "high": None}
    if values.min() == values.max():
        low, high = _all_the_same(float(values[0]), weights)
    else:
        low, high = quantile_interval(resampled_means(values[:, None], weights[:, None], seed=seed)[:, 0])
    return {"low": number(low), "high": number(high)}


def _all_the_same(outcome: float, weights: Floats) -> tuple[float, float]:
    """Wilson's interval where every prompt has one outcome, halves of a win rounded outwards.

    Prompts of different weights count as fewer of one weight.
    """
    count = effective_count(weights)
    least, most = (np.arange(count) < round_(count * outcome) for round_ in (math.floor, math.ceil))
    return wilson(least[:, None].astype(float))[0], wilson(most[:, None].astype(float))[1]


def merge_games(games: Sequence[Comparison]) -> tuple[list[Comparison], dict[str, Any]]:
    """A judge's two games per prompt, positions swapped, as one comparison whose outcome is their mean.

    A prompt with one valid game has that game's outcome and order; one with none is left out.

    Returns:
        The comparisons, and counts: `prompts`, of which `both`, `single` and `left_out` games are valid (`failed` holds the
        ids of the last), `invalid_games`, `contradictory` prompts, where either game says another model won, and
        `inconsistency`, their share of `both`.

    Raises:
        ValueError: more than one model or baseline, a game without an order or a second one in the same order, or weights
            that differ within a prompt.
    """
    if any(not game.order for game in games):
        raise ValueError("a judge's game needs its order, ab or ba")
    merged, failed, contradictory, both = [], [], 0, 0
    for prompt, of_prompt in _by_prompt(games).items():
        if len({game.weight for game in of_prompt}) > 1:
            raise ValueError(f"{prompt}: its two games have different weights")
        valid = [game for game in of_prompt if not math.isnan(game.outcome)]
        if not valid:
            failed.append(prompt)
        elif len(valid) == 1:
            merged.append(valid[0])
        else:
            first, second = (game.outcome for game in valid)
            both += 1
            contradictory += (first - 0.5) * (second - 0.5) < 0
            merged.append(replace(valid[0], outcome=(first + second) / 2, order=""))
    return merged, {
        "prompts": len(merged) + len(failed), "both": both, "single": len(merged) - both, "left_out": len(failed),
        "failed": failed, "invalid_games": sum(math.isnan(game.outcome) for game in games),
        "contradictory": contradictory, "inconsistency": contradictory / both if both else None,
    }  # fmt: skip


def win_rate(comparisons: Sequence[Comparison], *, seed: int = 17) -> dict[str, Any]:
    """Share of prompts that the model wins, ties half, with its interval and an exact two-sided sign test.

    Returns:
        `model`, `baseline`, `prompts` that are valid, `invalid` ones, `wins`, `ties` and `losses` of the valid ones (above,
        at and below 0.5), `win_rate`, `low` and `high` in [0, 1], weighted, and `p_value` of the sign test on the prompts
        that are not tied, unweighted.

    Raises:
        ValueError: more than one model or baseline, or a prompt twice.
    """
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    rows = [row for row in _one_each(comparisons) if not math.isnan(row.outcome)]
    outcomes, weights = np.array([row.outcome for row in rows]), np.array([row.weight for row in rows])
    won, lost = int((outcomes > 0.5).sum()), int((outcomes < 0.5).sum())
    return {
        **_names(comparisons),
        "prompts": len(rows),
        "invalid": len(comparisons) - len(rows),
        "wins": won,
        "ties": len(rows) - won - lost,
        "losses": lost,
        "win_rate": float(np.average(outcomes, weights=weights)) if rows else None,
        **_interval(outcomes, weights, seed),
        "p_value": float(binomtest(won, won + lost).pvalue) if won + lost else 1.0 if rows else None,
    }


def compare_win_rates(first: Sequence[Comparison], second: Sequence[Comparison], *, seed: int = 17) -> dict[str, Any]:
    """How much higher the first model's win rate is than the second's against the same baseline, on the same prompts.

    Returns:
        `model`, `against` (the second model), `baseline`, `prompts` valid in both, `left_out` (the other prompts of either),
        `difference`, `low` and `high` (paired bootstrap), and `p_value` of a two-sided paired permutation test, exact where
        there are no more than 9,999 ways to swap the models within prompts. Weights are not used.

    Raises:
        ValueError: different baselines, more than one model on a side, or a prompt twice.
    """
    from scipy.stats import permutation_test

    ours, theirs = ({row.prompt_id: row for row in _one_each(rows)} for rows in (first, second))
    if len({row.baseline for row in (*first, *second)}) > 1:
        raise ValueError("the two models are compared with different baselines")
    pairs = [(ours[prompt].outcome, theirs[prompt].outcome) for prompt in sorted({*ours} & {*theirs})]
    outcomes = np.array([pair for pair in pairs if not any(map(math.isnan, pair))], dtype=float).reshape(-1, 2).T
    prompts = outcomes.shape[1]
    difference = float((outcomes[0] - outcomes[1]).mean()) if prompts else math.nan
    p_value = math.nan
    if prompts > 1:
        p_value = permutation_test(
            tuple(outcomes), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples", vectorized=True,
            n_resamples=PERMUTATIONS, batch=500, rng=np.random.default_rng(seed),
        ).pvalue  # fmt: skip
    low, high = bootstrap_interval(outcomes[0] - outcomes[1], seed=seed)
    names = _names(first) | {"against": _names(second)["model"]}
    counts = {"prompts": prompts, "left_out": len({*ours} | {*theirs}) - prompts}
    found = {"difference": difference, "low": low, "high": high, "p_value": p_value}
    return names | counts | {name: number(value) for name, value in found.items()}


def arena_vote(label: str) -> tuple[float, float]:
    """Outcome and weight of a label (A>>B, A>B, A=B, B>A or B>>A) in which A is the model, whichever answer was shown first.

    (NaN, 1), an invalid game, for any other label.
    """
    return VOTES.get(label, (math.nan, 1.0))


def _fit(features: Floats, outcomes: Floats, weights: Floats) -> Floats | None:
    """Intercept and coefficients of a logistic fit to fractional outcomes, (1 + columns,); None if it did not converge.

    Each row stands for a win with weight w * outcome and a loss with w * (1 - outcome), as AlpacaEval's own code does it.
    """
    from sklearn.linear_model import LogisticRegression

    labels = np.repeat([1, 0], len(outcomes))
    both = np.concatenate([weights * outcomes, weights * (1 - outcomes)])
    model = LogisticRegression(C=RIDGE, solver="newton-cholesky", tol=1e-6)
    model.fit(np.concatenate([features, features]), labels, sample_weight=both)
    return np.concatenate([model.intercept_, model.coef_[0]]) if model.n_iter_[0] < model.max_iter else None


def _at_equal_length(length: Floats, difficulty: Floats, outcomes: Floats, weights: Floats) -> tuple[float, float | None]:
    """Rate in percent with the length difference set to 0, and phi; (nan, None) if the fit did not converge.

    `length` and `difficulty` are (P, 1), or (P, 0) where the model has no such term.
    """
    rate = float(np.average(outcomes, weights=weights))
    features = np.concatenate([length, difficulty], axis=1)
    if not features.shape[1] or rate in (0.0, 1.0):  # theta alone gives the rate; it is infinite where all is won or lost
        return 100 * rate, None
    fitted = _fit(features, outcomes, weights)
    if fitted is None:
        return math.nan, None
    terms = length.shape[1]
    logits = fitted[0] + difficulty @ fitted[1 + terms :]
    return 100 * float(np.average(1 / (1 + np.exp(-logits)), weights=weights)), float(fitted[1]) if terms else None


def _refits(length: Floats, difficulty: Floats, outcomes: Floats, weights: Floats, seed: int) -> Floats:
    """The rate of `_at_equal_length` in `REFITS` resamples of the prompts, (REFITS,); none for a single prompt."""
    prompts, rng = len(outcomes), np.random.default_rng(seed)
    if prompts < 2:
        return np.empty(0)
    picks = (rng.integers(0, prompts, prompts) for _ in range(REFITS))
    drawn = (weights * np.bincount(pick, minlength=prompts) for pick in picks)
    return np.array([_at_equal_length(length, difficulty, outcomes, weight)[0] for weight in drawn])


def _scaled(values: Floats) -> Floats:
    """(P, 1) values over their standard deviation, or (P, 0) where all are the same."""
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return (values / spread)[:, None] if spread > 0 else np.empty((len(values), 0))


def _warning(lc: float, raw: Mapping[str, float | None], gap: Floats) -> str:
    """What a reader has to know before trusting the length-controlled rate; empty if nothing."""
    mean, low, high = raw["mean"], raw["low"], raw["high"]
    found = []
    if mean is not None and abs(lc - mean) > FAR:
        side = "lower" if lc < mean else "higher"
        found.append(
            f"the length-controlled rate, {lc:.1f} %, is {abs(lc - mean):.1f} points {side} than the raw, {mean:.1f} %"
        )
    elif low is not None and high is not None and not low <= lc <= high:
        found.append("the length-controlled rate is outside the raw rate's interval")
    if gap.min() > 0 or gap.max() < 0:
        word = "longer" if gap.min() > 0 else "shorter"
        found.append(f"the model's answer is {word} on every prompt, so equal length is an extrapolation")
    return "; ".join(found)


def _with_lengths(
    comparisons: Sequence[Comparison], difficulty: Mapping[str, float] | None
) -> tuple[list[Comparison], dict[str, int]]:
    """The comparisons that a length-controlled rate can use, and how many it cannot, by reason."""
    rows, left_out = [], {"invalid": 0, "no_length": 0, "no_difficulty": 0}
    for row in comparisons:
        if math.isnan(row.outcome):
            left_out["invalid"] += 1
        elif not math.isfinite(row.length_model - row.length_baseline):
            left_out["no_length"] += 1
        elif difficulty is not None and not math.isfinite(difficulty.get(row.prompt_id, math.nan)):
            left_out["no_difficulty"] += 1
        else:
            rows.append(row)
    return rows, left_out


def length_controlled_win_rate(
    comparisons: Sequence[Comparison], *, difficulty: Mapping[str, float] | None = None, seed: int = 17
) -> dict[str, Any]:
    """Win rate at equal length, in percent, as AlpacaEval 2 (Dubois et al., 2404.04475), beside the raw rate.

    logit P(win | x) = theta + phi * tanh(dlen / sd(dlen)) + psi * gamma_x, dlen the model's length less the baseline's, and
    LC = 100 * mean_x sigmoid(theta + psi * gamma_x). The fit is scikit-learn's logistic regression on rows doubled with
    weights, which takes ties and means of games as they are. A small ridge on phi and psi keeps the fit finite where length
    separates wins from losses; theta is free, so a model without a length effect keeps its raw rate. Unlike AlpacaEval's
    own there is no choice of the penalty by cross-validation and there are no rows of gamed baselines.

    Args:
        comparisons: one per prompt, with both lengths.
        difficulty: gamma_x by prompt id; without it the term is left out.

    Returns:
        `model`, `baseline`, `prompts` used, `left_out` (counts by reason: invalid, no_length, no_difficulty),
        `length_controlled` and `raw` (each with mean, low and high in percent over the same prompts), `length_effect` (phi;
        None where lengths do not differ among prompts or every prompt is won, or lost), `failed_refits` of the bootstrap,
        and `warning`.

    Raises:
        ValueError: more than one model or baseline, or a prompt twice.
        StepError: the fit did not converge.
    """
    rows, left_out = _with_lengths(_one_each(comparisons), difficulty)
    empty = {"mean": None, "low": None, "high": None}
    found: dict[str, Any] = {**_names(comparisons), "prompts": len(rows), "left_out": left_out, "length_controlled": empty}
    found |= {"raw": empty, "length_effect": None, "failed_refits": 0, "warning": ""}
    if not rows:
        return found
    outcomes, weights = np.array([row.outcome for row in rows]), np.array([row.weight for row in rows])
    gap = np.array([row.length_model - row.length_baseline for row in rows])
    gamma = _scaled(np.array([difficulty[row.prompt_id] if difficulty else 0.0 for row in rows]))
    length = np.tanh(_scaled(gap))
    lc, found["length_effect"] = _at_equal_length(length, gamma, outcomes, weights)
    if math.isnan(lc):
        raise StepError(f"length-controlled win rate of {rows[0].model}: the logistic fit did not converge")
    draws = _refits(length, gamma, outcomes, weights, seed)
    raw_ends = {name: None if end is None else 100 * end for name, end in _interval(outcomes, weights, seed).items()}
    raw = {"mean": 100 * float(np.average(outcomes, weights=weights)), **raw_ends}
    low, high = quantile_interval(draws)
    # Where all outcomes are the same, length explains nothing and every refit gives the same rate.
    ends = raw_ends if outcomes.min() == outcomes.max() else {"low": number(low), "high": number(high)}
    found |= {"length_controlled": {"mean": lc, **ends}, "raw": raw}
    return found | {"failed_refits": int(np.isnan(draws).sum()), "warning": _warning(lc, raw, gap)}
