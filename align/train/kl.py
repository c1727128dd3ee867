"""Monte-Carlo KL divergence between two models, on responses drawn from the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from align.core.progress import Progress
from align.train.data import DialogueExample
from align.train.reference import by_length, check_unique, open_scorer


def _sums(
    folder: Path, examples: Sequence[DialogueExample], micro_batch: int, precision: str, label: str
) -> dict[str, float]:
    sums = open_scorer(folder, precision)
    found: dict[str, float] = {}
    with Progress(label, len(examples), "responses") as bar:
        for group in by_length(examples, micro_batch):
            values = sums([e.prompt_ids for e in group], [e.completion_ids for e in group])
            found.update({example.id: value for example, value in zip(group, values, strict=True)})
            bar.advance(len(group))
    return found


def sample_kl(
    policy: Path, other: Path, examples: Sequence[DialogueExample], *, precision: str, label: str, micro_batch: int = 4
) -> dict[str, Any]:
    """Estimate KL(policy || other) per response.

        KL = mean_i sum_t [ log policy(y_it | x_i, y_i<t) - log other(y_it | x_i, y_i<t) ],   y_i ~ policy(. | x_i)

    Unbiased only when the responses were drawn from `policy` at temperature 1 without top-p or min-p; with other sampling it
    is the mean log-ratio on those responses, not a KL. A single term may be negative, and so may a small estimate.

    Args:
        policy: folder of the model that wrote the responses.
        other: folder of the model to compare with.
        examples: prompts and sampled responses, cut-off ones included as they are.
        precision: auto, bf16 or fp32 of both models' forward passes.
        label: of the progress bars.
        micro_batch: responses per forward pass.

    Returns:
        {"kl": nats per response, "standard_error": of it (0 for a single response), "nats_per_token": total log-ratio
        over total tokens, "responses", "tokens"}.

    Raises:
        ValueError: no examples.
        StepError: an id appears twice.
    """
    if not examples:
        raise ValueError("sample_kl needs at least one response")
    check_unique([example.id for example in examples])
    ours = _sums(policy, examples, micro_batch, precision, f"{label} policy")
    theirs = _sums(other, examples, micro_batch, precision, f"{label} reference")
    ratios = [ours[example.id] - theirs[example.id] for example in examples]
    tokens = sum(len(example.completion_ids) for example in examples)
    return {
        "kl": fmean(ratios),
        "standard_error": stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else 0.0,
        "nats_per_token": sum(ratios) / tokens,
        "responses": len(examples),
        "tokens": tokens,
    }
