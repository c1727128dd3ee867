"""The evaluation table: per-prompt results in, one row per model out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from align.core.hashing import content_id
from align.core.language import detect, repetition
from align.core.rows import EvalResult, Instruction, Response, Score
from align.evaluate.metrics import mean_with_interval
from align.evaluate.win_rates import compare_scores, length_controlled_win_rate, win_rate

ROLES = ("selector", "validator", "gold")


def eval_results(
    prompts: Mapping[str, Instruction],
    responses: Sequence[Response],
    scores: Mapping[str, Sequence[Score]],
    log_ratios: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> list[EvalResult]:
    """One row per response, scores joined by response id.

    Args:
        prompts: by id.
        responses: of all models.
        scores: of selector, validator and perhaps gold.
        log_ratios: `start` and `previous`, each by response id, for those of trained models.

    Raises:
        KeyError: a response without a score of one of the reward models.
    """
    by_role = {role: {s.response_id: s.score for s in rows} for role, rows in scores.items()}
    nothing: Mapping[str, float] = {}
    return [
        EvalResult(
            id=content_id("eval", r.model, r.id),
            prompt_id=r.prompt_id,
            model=r.model,
            selector=by_role["selector"][r.id],
            validator=by_role["validator"][r.id],
            gold=by_role["gold"][r.id] if "gold" in by_role else math.nan,
            start_log_ratio=log_ratios.get("start", nothing).get(r.id, math.nan),
            previous_log_ratio=log_ratios.get("previous", nothing).get(r.id, math.nan),
            num_tokens=r.num_tokens,
            finished=int(r.finish_reason == "stop"),
            repetition=round(repetition(r.text), 4),
            language_match=int(detect(r.text) == prompts[r.prompt_id].answer_lang),
        )
        for r in responses
    ]


def per_prompt(rows: Sequence[EvalResult], column: str) -> dict[str, float]:
    """Mean over a prompt's answers; one without a finite value is left out, and `compared` in the table says so."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if math.isfinite(value := float(getattr(row, column))):
            values.setdefault(row.prompt_id, []).append(value)
    return {prompt: float(np.mean(v)) for prompt, v in values.items()}


def win_rates(rows: Sequence[EvalResult], models: Sequence[str], baseline: str, *, seed: int) -> list[dict[str, Any]]:
    """Each model against the baseline by each reward model: `win_rate` (interval, ties, sign test) and, at equal length,
    `length_controlled_win_rate`; both from the same prompts' mean scores."""
    by_model = {model: [row for row in rows if row.model == model] for model in (*models, baseline)}
    tokens = {model: per_prompt(found, "num_tokens") for model, found in by_model.items()}
    found = []
    for role in ROLES:
        theirs = per_prompt(by_model[baseline], role)
        for model in (name for name in models if name != baseline and theirs):
            comparisons = compare_scores(
                per_prompt(by_model[model], role), theirs, model=model, baseline=baseline,
                lengths=tokens[model], baseline_lengths=tokens[baseline],
            )  # fmt: skip
            controlled = length_controlled_win_rate(comparisons, seed=seed)
            found.append({"by": role, **win_rate(comparisons, seed=seed), "length": controlled})
    return found


def model_table(rows: Sequence[EvalResult], models: Sequence[str], baseline: str, *, seed: int) -> list[dict[str, Any]]:
    """One entry per model: mean rewards and win rates against the baseline (ties count half) with 95 % intervals over
    prompts, tokens, share of finished answers, repetition, language match."""
    by_model = {m: [r for r in rows if r.model == m] for m in models}
    table = []
    for model in models:
        ours = by_model[model]
        entry: dict[str, Any] = {"model": model, "answers": len(ours)}
        for role in ROLES:
            mine, theirs = per_prompt(ours, role), per_prompt(by_model[baseline], role)
            if role == "gold" and not mine and not theirs:
                continue  # there is no third reward model
            entry[role] = mean_with_interval([mine[p] for p in sorted(mine)], seed=seed)
            if model != baseline:
                won = win_rate(compare_scores(mine, theirs, model=model, baseline=baseline), seed=seed)
                shown = {"mean": won["win_rate"], "low": won["low"], "high": won["high"]}
                entry[f"{role}_win_rate"] = {key: None if v is None else round(v, 4) for key, v in shown.items()}
                entry[f"{role}_compared"] = won["prompts"]
        for column in ("num_tokens", "finished", "repetition", "language_match"):
            values = [float(getattr(r, column)) for r in ours]
            entry[column] = round(float(np.mean(values)), 4) if values else None
        table.append(entry)
    return table
