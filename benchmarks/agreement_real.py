"""Does agreement pay? Pairs on real answers by two reward models of different kind, confirmed by a third judge.

    python -m benchmarks.agreement_real        about 25 minutes on two CPU cores; needs the test data

Of 400 prompts with 8 or 9 models' answers each, all with a mark by GPT-4-turbo (`judge_b`), the first 240 train two
reward models on pairs in the order of that mark: a decoder (SmolLM2-135M) and an encoder (all-MiniLM-L6-v2, 22M). On the
other
160 prompts the decoder picks best and worst, and the encoder's agreement on the pair is measured as in a run. A pair is
confirmed if the mark puts yw above yl. The value is the confirmed share of the pairs kept at a threshold less that of all
pairs that were picked; intervals are bootstrapped over prompts. Also reported: the roles exchanged, the other measures, and
null quantiles.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align.builtin_models import build, builtin_folder
from align.core.hashing import content_id
from align.core.records import read_jsonl
from align.core.rows import RewardPair
from align.recipe.reward import DEFAULT_THRESHOLD
from benchmarks import harness
from reward.interface import Group
from reward.preference_file import reward_pair

TRAIN, SEED, MAX_LENGTH = 240, 17, 384
TARGET = 0.06
# Pairs per prompt, epochs, learning rate, pairs per step, precision.
MODELS: Mapping[str, tuple[str, int, int, float, int, str]] = {
    "decoder": ("smollm2-135m-instruct", 2, 1, 3e-5, 8, "bf16"),
    "encoder": ("all-minilm-l6-v2", 4, 1, 1e-4, 16, "fp32"),
}
THRESHOLDS = (0.0, 0.2, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
QUANTILES = (0.8, 0.9, 0.95)
RESAMPLES = 5_000


def training_pairs(rows: Sequence[Mapping[str, Any]], per_prompt: int) -> list[RewardPair]:
    """Random pairs of each prompt's answers in the order of `judge_b`."""
    draw = random.Random(SEED)
    pairs = []
    for row in rows:
        ordered = [(a, b) for a, b in itertools.permutations(row["responses"], 2) if a["judge_b"] > b["judge_b"]]
        for better, worse in draw.sample(ordered, min(per_prompt, len(ordered))):
            pairs.append(
                reward_pair(
                    content_id("prompt", row["prompt"]), row["prompt"], better["text"], worse["text"], subset="judge_b",
                    lang="en", split="train",
                )
            )  # fmt: skip
    return pairs


def train_and_score(name: str, rows: Sequence[Mapping[str, Any]], folder: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """(scores (P, N) of the prompts that were not trained on, NaN where there is no answer; facts)."""
    from reward.classifier import Classifier
    from reward.train import train_reward_model

    backbone, per_prompt, epochs, rate, batch, precision = MODELS[name]
    build(backbone)
    pairs = training_pairs(rows[:TRAIN], per_prompt)
    begun = time.monotonic()

    def on_step(step: int, steps: int, loss: float) -> None:
        if step % 10 == 0 or step == steps:
            print(f"  {name}: step {step} of {steps}, loss {loss:.3f}, {time.monotonic() - begun:.0f} s", flush=True)

    if not (folder / name / "config.json").is_file():
        train_reward_model(
            builtin_folder(backbone), folder / name, pairs, epochs=epochs, learning_rate=rate, batch_size=batch,
            max_length=MAX_LENGTH, seed=SEED, precision=precision, on_step=on_step,
            checkpoint_dir=folder / f"{name}-checkpoints", save_steps=10**6,
        )  # fmt: skip
    trained = time.monotonic()
    model = Classifier.load(folder / name, precision=precision, max_length=MAX_LENGTH)
    test = rows[TRAIN:]
    groups = [
        Group(
            id=str(i), prompt=row["prompt"], response_ids=tuple(f"{i}-{k}" for k in range(len(row["responses"]))),
            responses=tuple(answer["text"] for answer in row["responses"]),
        )
        for i, row in enumerate(test)
    ]  # fmt: skip
    scores = np.full((len(test), max(len(row["responses"]) for row in test)), np.nan)
    for place, found in model.score(groups):
        scores[place, : len(found)] = found
    facts = {
        "backbone": backbone, "pairs": len(pairs), "epochs": epochs, "train_seconds": round(trained - begun),
        "score_seconds": round(time.monotonic() - trained),
    }  # fmt: skip
    return scores, facts


def confirmed_rows(
    selector: np.ndarray, validator: np.ndarray, marks: np.ndarray, measure: str, cuts: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """For each cut: kept share, confirmed share, and its gain over all picked pairs with a bootstrap interval.

    Args:
        selector, validator, marks: (P, N), NaN where there is no answer.
        measure: of agreement.
        cuts: name -> threshold or null_quantile, as `PairRules` has them.
    """
    from reward.selection import Block, PairRules, select

    usable = ~np.isnan(marks)
    block = Block(
        selector=selector, validator=validator, usable=usable, num_tokens=np.zeros(marks.shape, np.int64),
        random=np.zeros(marks.shape, np.uint64), objection=np.zeros(len(marks), np.int64),
    )  # fmt: skip
    draw = np.random.default_rng(SEED).integers(0, len(marks), (RESAMPLES, len(marks)))
    rows = []
    for name, cut in cuts.items():
        found = select(block, PairRules(agreement=measure, **cut))
        picked = found.winner[:, 0] >= 0
        prompts = np.arange(len(marks))
        right = picked & (marks[prompts, found.winner[:, 0]] > marks[prompts, found.loser[:, 0]])
        kept = found.outcome[:, 0] == 0

        def share(of: np.ndarray, right: np.ndarray = right) -> np.ndarray:
            return (of & right)[draw].sum(axis=1) / np.maximum(of[draw].sum(axis=1), 1)

        gains = share(kept) - share(picked)
        rows.append(
            {
                "measure": measure, "cut": name, "picked": int(picked.sum()), "all": round(float(right[picked].mean()), 4),
                "kept_share": round(float(kept.sum() / picked.sum()), 4),
                "kept": round(float(right[kept].mean()), 4) if kept.any() else None,
                "gain": round(float(right[kept].mean() - right[picked].mean()), 4) if kept.any() else None,
                "interval": [round(float(v), 4) for v in np.quantile(gains, (0.025, 0.975))],
            }
        )  # fmt: skip
    return rows


def pairwise_accuracy(scores: np.ndarray, marks: np.ndarray) -> float:
    """The share of all pairs of answers that a model orders as the marks do."""
    upper = np.triu_indices(scores.shape[1], 1)
    one, other = (m[:, upper[0]] - m[:, upper[1]] for m in (scores, marks))
    known = ~np.isnan(one) & ~np.isnan(other) & (other != 0)
    return float((one[known] * other[known] > 0).mean())


def main() -> int:
    """Train both, pair, print the table, write the result."""
    parser = harness.arguments(__doc__, repeats=1)
    parser.add_argument("--keep", type=Path, help="keep the trained models in this folder, or use those that are there")
    args = parser.parse_args()
    data = harness.test_data()
    if data is None:
        return 2
    path = data / "candidates/alpaca_eval_two_judges.jsonl"
    rows = [line.record for line in read_jsonl(path) if line.record]
    marks = np.full((len(rows) - TRAIN, max(len(row["responses"]) for row in rows)), np.nan)
    for i, row in enumerate(rows[TRAIN:]):
        marks[i, : len(row["responses"])] = [answer["judge_b"] for answer in row["responses"]]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        found = {name: train_and_score(name, rows, folder) for name in MODELS}
    scores = {name: part[0] for name, part in found.items()}
    facts = {
        name: {**part[1], "pairwise_accuracy": round(pairwise_accuracy(part[0], marks), 4)} for name, part in found.items()
    }
    cuts: dict[str, dict[str, float]] = {f">= {t:g}": {"threshold": t} for t in THRESHOLDS}
    quantiles: dict[str, dict[str, float]] = {f"null {q:g}": {"null_quantile": q} for q in QUANTILES}
    table = []
    for selector, validator in (("decoder", "encoder"), ("encoder", "decoder")):
        for measure, wanted in (("gap", {**cuts, **quantiles}), ("kendall", quantiles), ("spearman", quantiles)):
            for row in confirmed_rows(scores[selector], scores[validator], marks, measure, wanted):
                table.append({"selector": selector, "validator": validator, **row})
    for name, fact in facts.items():
        print(f"{name}: {fact}")
    print(f"{'selector':9} {'measure':9} {'cut':10} {'all':>6} {'kept':>6} {'share':>6} {'gain':>7}  95 % interval")
    for row in table:
        kept, gain = ("-" if row[k] is None else f"{row[k]:.3f}" for k in ("kept", "gain"))
        print(
            f"{row['selector']:9} {row['measure']:9} {row['cut']:10} {row['all']:6.3f} {kept:>6} {row['kept_share']:6.2f} "
            f"{gain:>7}  {row['interval'][0]:.3f} to {row['interval'][1]:.3f}"
        )
    harness.write_result("agreement_real", table, models=facts, scores={n: s.tolist() for n, s in scores.items()})
    default = next(row for row in table if row["measure"] == "gap" and row["cut"] == f">= {DEFAULT_THRESHOLD:g}")
    return 0 if harness.bar("agreement_real", default["gain"] or 0.0, ">=", TARGET) else 1


if __name__ == "__main__":
    sys.exit(main())
