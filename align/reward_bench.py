"""`align reward-bench`: how well a reward model ranks the pairs of a preference file, in RewardBench's way.

RewardBench itself (Lambert et al. 2024, arXiv:2403.13787) is such a file, with `prompt`, `chosen`, `rejected` and `subset`;
of it the section scores are given too.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from align.core.errors import StepError, UserError
from align.core.progress import Progress
from align.core.rows import Reject, RewardPair
from reward.golden import load_checked
from reward.held_out import REWARD_BENCH_SECTIONS, ScoredPair, accuracy, by, count_tokens, held_out_metrics
from reward.interface import Group, RewardModel
from reward.preference_file import pairs_from_file

Say = Callable[[str], None]
SEED = 17  # of the bootstrap
MANY_TIES = 0.01
STRONG_CORRELATION = 0.3
HEADER = f"{'subset':24} {'pairs':>6} {'accuracy':>8} {'95 % interval':>15} {'same length':>19} {'longer is chosen':>16}"


def reward_bench(
    model: Path | RewardModel,
    path: Path,
    *,
    precision: str = "fp32",
    max_length: int = 512,
    limit: int | None = None,
    json_path: Path | None = None,
    say: Say,
) -> dict[str, Any]:
    """Score the pairs of a file, print a table and warnings, and return every number.

    Args:
        model: a classifier's folder, or any reward model. Lengths are in its tokens, or in characters where it has no
            `encoder`.
        path: as `pairs_from_file` reads it.
        precision: of a folder's model, "fp32" or "bf16".
        max_length: of a folder's model, tokens of prompt and response; what is longer is cut.
        limit: take the first so many usable pairs.
        json_path: write the numbers there too.
        say: prints a line.

    Returns:
        `held_out_metrics` and `model`, `file`, `precision` and `max_length` (None for a ready model), `length_unit`,
        `rejects` (reason -> lines of the file), `subsets` (name -> `accuracy` of it), `warnings` and `pairs` (scores and
        lengths of each).

    Raises:
        UserError: the file has no usable pair, `json_path` names no folder that exists, or what `Classifier.load` raises.
        StepError: the model gives a pair another number of scores than two, or leaves pairs out.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: at least 1")
    if json_path is not None and not json_path.resolve().parent.is_dir():
        raise UserError(f"--json {json_path}: the folder {json_path.parent} is not there")
    pairs, rejects = pairs_from_file(path)
    if not pairs:
        raise UserError(f"{path}: no usable pair ({_reasons(rejects)})")
    ready = load_checked(model, precision=precision, max_length=max_length) if isinstance(model, Path) else model
    tokenizer = getattr(getattr(ready, "encoder", None), "tokenizer", None)
    scored = score_pairs(ready, pairs[:limit], length=len if tokenizer is None else lambda t: count_tokens(tokenizer, t))
    given = (str(model), precision, max_length) if isinstance(model, Path) else (type(model).__name__, None, None)
    found = {
        **dict(zip(("model", "precision", "max_length"), given, strict=True)),
        "file": str(path),
        "length_unit": "characters" if tokenizer is None else "tokens",
        "rejects": dict(Counter(reject.reason for reject in rejects)),
        **held_out_metrics(scored, seed=SEED),
        "subsets": {name: accuracy(group, seed=SEED) for name, group in by(scored, lambda p: p.subset).items()},
    }
    found["warnings"] = _warnings(found)
    _print(found, rejects, say)
    found["pairs"] = [_row(pair) for pair in scored]
    if json_path is not None:
        json_path.write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        say(f"wrote {json_path}")
    return found


def score_pairs(model: RewardModel, pairs: Sequence[RewardPair], *, length: Callable[[str], int]) -> list[ScoredPair]:
    """Both answers of every pair as a group of two, scored, in the order of the pairs.

    Raises:
        StepError: the model gives a pair another number of scores than two, or leaves pairs out.
    """
    answers = [(pair.chosen[-1]["content"], pair.rejected[-1]["content"]) for pair in pairs]
    lengths = [(length(chosen), length(rejected)) for chosen, rejected in answers]
    groups = [
        Group(id=pair.id, prompt=pair.prompt, response_ids=(f"{pair.id}-chosen", f"{pair.id}-rejected"), responses=texts,
              num_tokens=counted, lang=pair.lang)
        for pair, texts, counted in zip(pairs, answers, lengths, strict=True)
    ]  # fmt: skip
    scores: dict[int, list[float]] = {}
    with Progress("score pairs", len(groups), "pairs") as bar:
        for place, both in model.score(groups):
            if len(both) != 2:
                raise StepError(f"pair {groups[place].id}: {len(both)} scores for 2 answers")
            scores[place] = both
            bar.advance()
    if len(scores) != len(groups):
        raise StepError(f"the reward model scored {len(scores)} of {len(groups)} pairs")
    return [
        ScoredPair(
            id=pair.id, prompt_id=pair.prompt_id, subset=pair.subset, lang=pair.lang, chosen_score=scores[i][0],
            rejected_score=scores[i][1], chosen_length=lengths[i][0], rejected_length=lengths[i][1],
        )
        for i, pair in enumerate(pairs)
    ]  # fmt: skip


def _row(pair: ScoredPair) -> dict[str, Any]:
    """A pair for JSON, which has neither NaN nor infinities."""
    scores = (pair.chosen_score, pair.rejected_score)
    chosen, rejected = (score if math.isfinite(score) else None for score in scores)
    return {"id": pair.id, "subset": pair.subset, "chosen_score": chosen, "rejected_score": rejected,
            "chosen_length": pair.chosen_length, "rejected_length": pair.rejected_length}  # fmt: skip


def _reasons(rejects: Sequence[Reject]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in Counter(r.reason for r in rejects).most_common())


def _warnings(found: dict[str, Any]) -> list[str]:
    """What makes the accuracy mean less than it seems."""
    said = []
    if found["tie_share"] > MANY_TIES:
        said.append(f"{found['tie_share']:.1%} of pairs tie and count as wrong; the model may cut the answers or saturate")
    if count := found["pairs_not_scored"]:
        said.append(f"{count} pairs could not be scored and count as wrong")
    if found["accuracy"] <= found["longer_is_chosen"]:
        said.append("always preferring the longer answer would be as accurate or more")
    correlation = found["margin_length_correlation"]
    known = found["pairs_test"] - found["pairs_not_scored"]
    if correlation is not None and abs(correlation) > max(STRONG_CORRELATION, chance_correlation(known)):
        side = "longer" if correlation > 0 else "shorter"
        said.append(f"the model prefers {side} answers: score differences follow length differences, rho {correlation:.2f}")
    return said


def chance_correlation(count: int) -> float:
    """How far from 0 a correlation of `count` unrelated pairs stays in 95 % of cases (Fisher's z); 1 for three or fewer."""
    return math.tanh(1.96 / math.sqrt(count - 3)) if count > 3 else 1.0


def _line(name: str, numbers: dict[str, Any]) -> str:
    low_high, same = numbers["accuracy_interval"], numbers["accuracy_length_matched"]
    interval = "" if low_high is None else f"{low_high[0]:.3f} to {low_high[1]:.3f}"
    matched = "" if same is None else f"{same:.3f} of {numbers['pairs_length_matched']}"
    name = "".join(char if char.isprintable() else "?" for char in name)  # it is the file's, and this is a terminal
    return (
        f"{name:24} {numbers['pairs']:6d} {numbers['accuracy']:8.3f} {interval:>15} {matched:>19} "
        f"{numbers['longer_is_chosen']:16.3f}"
    )


def _print(found: dict[str, Any], rejects: Sequence[Reject], say: Say) -> None:
    """The table, the sections, what to read the accuracy against, and the warnings."""
    if rejects:
        first = f"the first begins {rejects[0].raw[:60]!r}"
        say(f"{len(rejects)} lines of {found['file']} hold no usable pair: {_reasons(rejects)}; {first}")
    overall = {**found, "pairs": found["pairs_test"]}
    say(HEADER)
    for name, numbers in found["subsets"].items():
        say(_line(name, numbers))
    say(_line("all", overall))
    for section, score in found.get("sections", {}).items():
        here = sum(subset in found["subsets"] for subset in REWARD_BENCH_SECTIONS[section])
        say(f"section {section:16} {score:15.3f}  ({here} of {len(REWARD_BENCH_SECTIONS[section])} subsets)")
    if len(sections := found.get("sections", {})) == len(REWARD_BENCH_SECTIONS):
        say(f"mean of the sections {sum(sections.values()) / len(sections):18.3f}")
    say(
        f"accuracy {found['accuracy']:.3f}, where a model that always prefers the longer answer would have "
        f"{found['longer_is_chosen']:.3f} (lengths in {found['length_unit']}; ties are wrong, {found['tie_share']:.1%} tie)"
    )
    for line in found["warnings"]:
        say(f"warning: {line}")
