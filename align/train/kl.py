"""Monte-Carlo KL divergence between two models, on responses drawn from the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from align.core.progress import Progress
from align.train.data import DialogueExample
from align.train.reference import Scorer, check_unique, longest_of


def sequence_logprobs(
    folder: Path, examples: Sequence[DialogueExample], *, precision: str, label: str, micro_batch_tokens: int = 2048
) -> dict[str, float]:
    """Log-probability of each completion under a model, in nats, by example id.

    Args:
        folder: of the model.
        examples: prompts and completions, cut-off ones included as they are.
        precision: auto, bf16 or fp32 of the forward passes.
        label: of the progress bar.
        micro_batch_tokens: most tokens that go through the model at once.

    Raises:
        StepError: an id appears twice.
    """
    check_unique([example.id for example in examples])
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
    how: dict[str, Any] = {"precision": precision, "micro_batch_tokens": micro_batch_tokens}
    ours = sequence_logprobs(policy, examples, label=f"{label} policy", **how)
    theirs = sequence_logprobs(other, examples, label=f"{label} reference", **how)
    return kl_estimate({i: ours[i] - theirs[i] for i in ours}, sum(len(e.completion_ids) for e in examples))


def kl_estimate(log_ratios: Mapping[str, float], tokens: int) -> dict[str, Any]:
    """What `sample_kl` returns, from the log-ratio of each response and the number of their tokens."""
    ratios = list(log_ratios.values())
    return {
        "kl": fmean(ratios),
        "standard_error": stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else 0.0,
        "nats_per_token": sum(ratios) / tokens,
        "responses": len(ratios),
        "tokens": tokens,
    }
