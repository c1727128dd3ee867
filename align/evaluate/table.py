"""The evaluation table: per-prompt results in, one row per model out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align.core.hashing import content_id
from align.core.language import detect, repetition
from align.core.rows import EvalResult, Instruction, Response, Score
from align.evaluate.metrics import mean_with_interval, wins


def eval_results(
    prompts: Mapping[str, Instruction], responses: Sequence[Response], scores: Mapping[str, Sequence[Score]]
) -> list[EvalResult]:
    """One row per response, scores joined by response id.

    Raises:
        KeyError: a response without a score of one of the two reward models.
    """
    by_role = {role: {s.response_id: s.score for s in rows} for role, rows in scores.items()}
    return [
        EvalResult(
            id=content_id("eval", r.model, r.id),
            prompt_id=r.prompt_id,
            model=r.model,
            selector=by_role["selector"][r.id],
            validator=by_role["validator"][r.id],
            num_tokens=r.num_tokens,
            finished=int(r.finish_reason == "stop"),
            repetition=round(repetition(r.text), 4),
            language_match=int(detect(r.text) == prompts[r.prompt_id].answer_lang),
        )
        for r in responses
    ]


def _per_prompt(rows: Sequence[EvalResult], column: str) -> dict[str, float]:
    """Mean over a prompt's answers; one without a finite value is left out, and `compared` in the table says so."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if math.isfinite(value := float(getattr(row, column))):
            values.setdefault(row.prompt_id, []).append(value)
    return {prompt: float(np.mean(v)) for prompt, v in values.items()}


def model_table(rows: Sequence[EvalResult], models: Sequence[str], baseline: str, *, seed: int) -> list[dict[str, Any]]:
    """One entry per model: mean rewards and win rates against the baseline (ties count half) with 95 % intervals over
    prompts, tokens, share of finished answers, repetition, language match."""
    by_model = {m: [r for r in rows if r.model == m] for m in models}
    table = []
    for model in models:
        ours = by_model[model]
        entry: dict[str, Any] = {"model": model, "answers": len(ours)}
        for role in ("selector", "validator"):
            mine, theirs = _per_prompt(ours, role), _per_prompt(by_model[baseline], role)
            shared = sorted(set(mine) & set(theirs))
            entry[role] = mean_with_interval([mine[p] for p in sorted(mine)], seed=seed)
            if model != baseline:
                won = wins([mine[p] for p in shared], [theirs[p] for p in shared])
                entry[f"{role}_win_rate"] = mean_with_interval(won, seed=seed)
                entry[f"{role}_compared"] = len(shared)
        for column in ("num_tokens", "finished", "repetition", "language_match"):
            values = [float(getattr(r, column)) for r in ours]
            entry[column] = round(float(np.mean(values)), 4) if values else None
        table.append(entry)
    return table
