"""Monte-Carlo KL divergence between two models, on responses drawn from the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from align.core.progress import Progress
from align.train.data import DialogueExample
from align.train.reference import Scorer, check_unique, longest_of


def _sums(
    folder: Path, examples: Sequence[DialogueExample], micro_batch_tokens: int, precision: str, label: str
) -> dict[str, float]:
    scorer = Scorer(
        folder, precision=precision, micro_batch_tokens=micro_batch_tokens, longest=longest_of(examples)
    )  # fmt: skip
    found: dict[str, float] = {}
    with Progress(label, len(examples), "responses") as bar:
        for part in scorer.score([(e.prompt_ids, e.completions) for e in examples]):
            found.update({examples[i].id: value for i, (value,) in part.items()})
            bar.advance(len(part))
    scorer.close()
    return found


def sample_kl(
    policy: Path,
    other: Path,
    examples: Sequence[DialogueExample],
    *,
    precision: str,
    label: str,
    micro_batch_tokens: int = 2048,
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
        micro_batch_tokens: most tokens that go through the model at once.

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
    ours = _sums(policy, examples, micro_batch_tokens, precision, f"{label} policy")
    theirs = _sums(other, examples, micro_batch_tokens, precision, f"{label} reference")
    ratios = [ours[example.id] - theirs[example.id] for example in examples]
    tokens = sum(len(example.completion_ids) for example in examples)
    return {
        "kl": fmean(ratios),
        "standard_error": stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else 0.0,
        "nats_per_token": sum(ratios) / tokens,
        "responses": len(examples),
        "tokens": tokens,
    }
