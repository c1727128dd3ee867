"""A reward model on human preferences (HH): ours against TRL's `RewardTrainer`, accuracy on held-out pairs and seconds.

SmolLM2-135M-Instruct, one epoch over the same training pairs, the same learning rate, batch size (in micro-batches
of the same size), longest sequence, seed and precision, on a CPU. Training pairs are the first that both arms can use whole,
test pairs the next ones; no prompt is in both.

Arms: `ours` (`reward.train.train_reward_model` as the reward step calls it), `trl` (messages in, everything else as TRL
ships it: its tokenization, padding and schedule; neither arm computes activations twice). Both models are scored in fp32,
each on its own arm's tokens, one sequence at a time, so that no padding takes part; intervals are bootstrapped over
prompts, and the difference of the arms over the same pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from align.core.rows import RewardPair
from benchmarks import harness
from benchmarks.dpo_vs_trl import model_folder

MAX_LENGTH, BATCH, LEARNING_RATE, SEED = 512, 8, 2e-5, 17
AT_ONCE = 2  # pairs; whole batches of 8 take 17 GiB


def dialogue_ids(tokenizer: Any, pair: RewardPair, side: str) -> list[int]:
    """A side as TRL tokenizes it: prompt and answer through the chat template, to its very end."""
    return list(tokenizer.apply_chat_template([*pair.prompt, *getattr(pair, side)], tokenize=True, return_dict=False))


def load_pairs(path: Path, train: int, test: int) -> list[RewardPair]:
    """The first `train` usable pairs and the `test` after them, as far as there are so many; prompts are all different.

    Usable is what neither arm would cut or drop: both sides within `MAX_LENGTH`.
    """
    from transformers import AutoTokenizer

    from align.core.chat import ChatError
    from reward.encoder import Encoder
    from reward.preference_file import pairs_from_file

    encoder = Encoder.load(model_folder(), max_length=MAX_LENGTH)
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    usable: dict[str, RewardPair] = {}
    for pair in pairs_from_file(path)[0]:
        try:
            for side in (pair.chosen, pair.rejected):
                encoder.encode(pair.prompt, side[-1]["content"])
        except ChatError:
            continue
        if max(len(dialogue_ids(tokenizer, pair, side)) for side in ("chosen", "rejected")) <= MAX_LENGTH:
            usable.setdefault(pair.prompt_id, pair)
    chosen = list(usable.values())[: train + test]
    return [replace(pair, split="train" if i < train else "test") for i, pair in enumerate(chosen)]


def ours(pairs: list[RewardPair], folder: Path, precision: str) -> dict[str, Any]:
    """Our training; seconds are of everything but the held-out scores."""
    from reward.classifier import Classifier
    from reward.train import train_reward_model

    begun = time.perf_counter()
    found = train_reward_model(
        model_folder(), folder / "model", [p for p in pairs if p.split == "train"], epochs=1, learning_rate=LEARNING_RATE,
        batch_size=BATCH, micro_batch_tokens=2 * AT_ONCE * MAX_LENGTH, max_length=MAX_LENGTH, seed=SEED, precision=precision,
        on_step=None, checkpoint_dir=folder / "checkpoints", save_steps=10**6,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    model = Classifier.load(folder / "model", precision="fp32", max_length=MAX_LENGTH)
    ids = [
        [model.encoder.encode(p.prompt, side[-1]["content"]).ids for side in (p.chosen, p.rejected)]
        for p in pairs if p.split == "test"
    ]  # fmt: skip
    return {
        "seconds": seconds,
        "steps": found["steps"],
        "loss": found["final_loss"],
        "scores": plain_scores(model.model, ids),
    }


def trl(pairs: list[RewardPair], folder: Path, precision: str) -> dict[str, Any]:
    """TRL's trainer, used as its documentation does."""
    import torch
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs if p.split == "train"]
    begun = time.perf_counter()
    trainer = RewardTrainer(
        model=str(model_folder()),
        args=RewardConfig(
            output_dir=str(folder), num_train_epochs=1, learning_rate=LEARNING_RATE, per_device_train_batch_size=AT_ONCE,
            gradient_accumulation_steps=BATCH // AT_ONCE, max_length=MAX_LENGTH, seed=SEED, bf16=precision == "bf16",
            gradient_checkpointing=False, use_cpu=not torch.cuda.is_available(), logging_steps=1, save_strategy="no",
            report_to="none", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
    )  # fmt: skip
    trainer.train()
    seconds = time.perf_counter() - begun
    trainer.save_model(str(folder / "model"))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-10:]
    tokenizer = trainer.processing_class
    ids = [[dialogue_ids(tokenizer, p, side) for side in ("chosen", "rejected")] for p in pairs if p.split == "test"]
    return {
        "seconds": seconds, "steps": trainer.state.global_step, "loss": sum(losses) / len(losses),
        "scores": plain_scores(read_back(folder / "model"), ids),
    }  # fmt: skip


def read_back(folder: Path) -> Any:
    """A saved model in fp32: the one in TRL's trainer still computes in the precision of training."""
    import torch

    from reward.classifier import load_classifier

    return load_classifier(folder, torch.float32, "no model")[0].eval()


def plain_scores(model: Any, ids: list[list[list[int]]]) -> list[list[float]]:
    """Scores of each pair's two sequences, one sequence at a time."""
    import torch

    device = next(model.parameters()).device
    with torch.inference_mode():
        return [[float(model(input_ids=torch.tensor([row], device=device)).logits[0, 0]) for row in both] for both in ids]


def run_arm(arm: str, pairs: list[RewardPair], precision: str) -> None:
    """One arm in this process; its row is the last line printed."""
    with tempfile.TemporaryDirectory() as folder:
        row = {"ours": ours, "trl": trl}[arm](pairs, Path(folder), precision)
    print(json.dumps({"arm": arm, "peak_gib": harness.peak_rss_gib(), **row}))


def held_out(pairs: list[RewardPair], scores: list[list[float]]) -> dict[str, Any]:
    """`held_out_metrics` of an arm, with the lengths of the answers in tokens."""
    from transformers import AutoTokenizer

    from reward.held_out import ScoredPair, count_tokens, held_out_metrics

    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    scored = [
        ScoredPair(
            id=p.id, prompt_id=p.prompt_id, subset=p.subset, lang=p.lang, chosen_score=chosen, rejected_score=rejected,
            chosen_length=count_tokens(tokenizer, p.chosen[-1]["content"]),
            rejected_length=count_tokens(tokenizer, p.rejected[-1]["content"]),
        )
        for p, (chosen, rejected) in zip(pairs, scores, strict=True)
    ]  # fmt: skip
    return held_out_metrics(scored, seed=SEED)


def main(args: argparse.Namespace, path: Path) -> int:
    """Train both, compare on the same held-out pairs."""
    from reward.held_out import bootstrap_interval

    pairs = load_pairs(path, args.train, args.test)
    test = [p for p in pairs if p.split == "test"]
    print(f"  {len(pairs) - len(test)} training pairs, {len(test)} test pairs, {args.precision}")
    if not test:
        print(f"error: {path} has no pair left to test on")
        return 2
    extra = ["--train", str(args.train), "--test", str(args.test), "--precision", args.precision]
    arms = ["ours", "trl"]
    kept = json.loads((harness.RESULTS / "reward_hh.json").read_text()) if args.only else {}
    same = {"pairs_train": len(pairs) - len(test), "pairs_test": len(test), "precision": args.precision}
    if kept and any(kept[key] != value for key, value in same.items()):
        print(f"error: --only {args.only}: the last result is of other pairs or another precision than {same}")
        return 2
    found = harness.run_arms("benchmarks.reward_hh", [args.only] if args.only else arms, args.repeats, extra)
    if args.only:
        found = {arm: found.get(arm) or [row for row in kept["rows"] if row["arm"] == arm] for arm in arms}
    rows = [{**run, **held_out(test, run["scores"])} for runs in found.values() for run in runs]
    for row in rows:
        low, high = row["accuracy_interval"] or (math.nan, math.nan)
        same = row["accuracy_length_matched"]
        print(
            f"  {row['arm']:5} accuracy {row['accuracy']:.3f} ({low:.3f} to {high:.3f}), of equal length "
            f"{math.nan if same is None else same:.3f} of {row['pairs_length_matched']}, log loss {row['log_loss']:.3f}, "
            f"training loss {row['loss']:.3f}, {row['seconds']:.0f} s, peak {row['peak_gib']:.1f} GiB, "
            f"commit {row['commit']}"
        )
    print(f"  a model that always prefers the longer answer: {rows[0]['longer_is_chosen']:.3f}")
    hits = {arm: [float(a > b) for a, b in runs[0]["scores"]] for arm, runs in found.items()}
    gains = [a - b for a, b in zip(hits["ours"], hits["trl"], strict=True)]
    low, high = bootstrap_interval(gains, [p.prompt_id for p in test], seed=SEED)
    seconds = {arm: harness.spread([run["seconds"] for run in runs]) for arm, runs in found.items()}
    gain, faster = sum(gains) / len(gains), seconds["trl"]["median"] / seconds["ours"]["median"]
    print(f"  ours less TRL's: accuracy {gain:+.3f} ({low:+.3f} to {high:+.3f}); TRL takes {faster:.2f} times as long")
    harness.write_result(
        "reward_hh", rows, **same,
        seconds=seconds, difference={"accuracy": gain, "interval": [low, high]}, ratio={"reward_hh": faster},
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    parser = harness.arguments(__doc__ or "", repeats=1)
    parser.add_argument("--train", type=int, default=1000, help="training pairs (default 1000)")
    parser.add_argument("--test", type=int, default=400, help="test pairs, as far as the file has them (default 400)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of training (default bf16)")
    parser.add_argument(
        "--only", choices=("ours", "trl"), help="run this arm; the other's rows are those of the last result"
    )
    arguments = parser.parse_args()
    data = harness.test_data()
    if data is None:
        sys.exit(2)
    file = data / "preferences" / "hh_harmless.jsonl"
    if arguments.arm:
        run_arm(arguments.arm, load_pairs(file, arguments.train, arguments.test), arguments.precision)
        sys.exit(0)
    sys.exit(main(arguments, file))
