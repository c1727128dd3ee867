"""DPO on a CPU: our trainer against TRL's `DPOTrainer`, one epoch over the same pairs, token for token.

SmolLM2-135M-Instruct, bfloat16 autocast over float32 weights, human preference pairs (HH), reference log-probabilities
cached on both sides before the clock starts, the same order of pairs, 8 pairs per optimizer step.

Arms: `ours` (recipe defaults), `trl` (best setting of its knobs for speed: no gradient checkpointing, 4 pairs at once),
`trl_default` (gradient checkpointing on, as TRL ships it; run with --all).

Before the times count, the loss of every step must agree between the arms: bfloat16 rounding moves a pair's margin by up
to a few hundredths.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import harness

DATA = Path(os.environ.get("ALIGN_TEST_DATA", "../shared/data")) / "preferences" / "hh_harmless.jsonl"
BATCH, MAX_LENGTH, LEARNING_RATE, BETA, SEED = 8, 1024, 5e-7, 0.1, 17
LOSS_TOLERANCE = 0.02  # nats; a step's mean over 8 pairs whose margins bf16 moves by up to beta x 0.1 x sqrt(tokens)


def model_folder() -> Path:
    """The embedded model, built on first use."""
    from align.builtin_models import build, builtin_folder, is_built

    name = "smollm2-135m-instruct"
    if not is_built(name):
        build(name)
    return builtin_folder(name)


def load_pairs(path: Path, count: int, longest: int = MAX_LENGTH) -> list[Any]:
    """The first `count` pairs of at most `longest` tokens, in the order in which our trainer will see them."""
    import torch

    from align.core.chat import Chat
    from align.core.hashing import derive_seed
    from align.train.data import PairExample, keep_within

    chat = Chat.load(model_folder())
    pairs = []
    for number, line in enumerate(path.read_text().splitlines()):
        row = json.loads(line)
        prompt, chosen = chat.split(row["prompt"], row["chosen"])
        _, rejected = chat.split(row["prompt"], row["rejected"])
        pairs.append(
            PairExample(id=f"{number:05d}", prompt_ids=tuple(prompt), chosen_ids=tuple(chosen), rejected_ids=tuple(rejected))
        )
    kept = keep_within(pairs, longest, chat.stop_ids)[0][:count]
    generator = torch.Generator().manual_seed(derive_seed(SEED, "order", 0))
    return [kept[i] for i in torch.randperm(len(kept), generator=generator).tolist()]


def ours(pairs: list[Any], folder: Path, precision: str = "bf16") -> dict[str, Any]:
    """Our trainer at the recipe's defaults."""
    from align.train.models import load_model
    from align.train.options import TrainOptions, training_arguments
    from align.train.reference import reference_logprobs
    from align.train.trainer import AlignTrainer

    options = TrainOptions(
        learning_rate=LEARNING_RATE, batch_size=BATCH, seed=SEED, precision=precision, save_steps=10**6, warmup_ratio=0.0
    )
    model = load_model(model_folder())
    begun = time.perf_counter()
    reference = reference_logprobs(
        model,
        pairs,
        micro_batch_tokens=options.micro_batch_tokens,
        precision=precision,
        journal=None,
        key="",
        label="reference",
    )
    cached = time.perf_counter()
    unshuffled = sorted(pairs, key=lambda pair: pair.id)
    trainer = AlignTrainer(
        model, training_arguments(options, len(pairs), folder), examples=unshuffled, loss="dpo", loss_options={"beta": BETA},
        batch_size=BATCH, micro_batch_tokens=options.micro_batch_tokens, reference=reference, precision=precision,
    )  # fmt: skip
    trained = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - trained
    computed = sum(entry["computed_tokens"] for entry in trainer.history)
    return {
        "seconds": seconds, "reference_seconds": cached - begun, "losses": [e["loss"] for e in trainer.history],
        "computed_tokens": computed, "setup": vars(trainer.setup),
    }  # fmt: skip


def trl(pairs: list[Any], folder: Path, *, checkpointing: bool, at_once: int = 4, bf16: bool = True) -> dict[str, Any]:
    """TRL's trainer on the same token ids."""
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from align.train.models import load_model

    class SameTokens(DPOTrainer):
        """Takes the token ids as they are, in the order they come."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    rows = [
        {"prompt_ids": list(p.prompt_ids), "chosen_ids": list(p.chosen_ids), "rejected_ids": list(p.rejected_ids)}
        for p in pairs
    ]
    args = DPOConfig(
        output_dir=str(folder), per_device_train_batch_size=at_once, gradient_accumulation_steps=BATCH // at_once,
        num_train_epochs=1, learning_rate=LEARNING_RATE, lr_scheduler_type="cosine", warmup_steps=0, beta=BETA, bf16=bf16,
        precompute_ref_log_probs=True, gradient_checkpointing=checkpointing, max_length=MAX_LENGTH, logging_steps=1,
        save_strategy="no", report_to="none", use_cpu=not torch.cuda.is_available(), optim="adamw_torch_fused", seed=SEED,
        weight_decay=0.0, max_grad_norm=1.0, disable_tqdm=True,
    )  # fmt: skip
    begun = time.perf_counter()
    trainer = SameTokens(
        model=load_model(model_folder()), args=args, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model_folder()),
    )  # fmt: skip
    trained = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - trained
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": seconds, "reference_seconds": trained - begun, "losses": losses}


def run_arm(arm: str, count: int) -> None:
    """One arm in this process; its row is the last line printed."""
    pairs = load_pairs(DATA, count)
    with tempfile.TemporaryDirectory() as folder:
        arms = {
            "ours": lambda: ours(pairs, Path(folder)),
            "trl": lambda: trl(pairs, Path(folder), checkpointing=False),
            "trl_default": lambda: trl(pairs, Path(folder), checkpointing=True),
        }
        row = arms[arm]()
    row |= {"arm": arm, "pairs": len(pairs), "pairs_per_s": len(pairs) / row["seconds"], "peak_gib": harness.peak_rss_gib()}
    print(json.dumps(row))


def main(args: argparse.Namespace) -> int:
    """Run the arms, check that they trained the same, print the bars."""
    if not DATA.is_file():
        print(f"error: {DATA} is not there; set ALIGN_TEST_DATA to the folder of the test data")
        return 2
    names = ["ours", "trl"] + (["trl_default"] if args.all else [])
    found = harness.run_arms("benchmarks.dpo_vs_trl", names, args.repeats, ["--pairs", str(args.pairs)])
    peer = found["trl"][0]["losses"]
    for name, runs in found.items():
        worst = max(abs(a - b) for run in runs for a, b in zip(run["losses"], peer, strict=True))
        print(f"  {name}: largest difference from TRL's loss of a step {worst:.4f} nats (at most {LOSS_TOLERANCE})")
        if not worst <= LOSS_TOLERANCE:
            print("error: the arms do not train the same; times are not compared")
            return 1
    speed = {name: harness.spread([run["pairs_per_s"] for run in runs]) for name, runs in found.items()}
    memory = {name: harness.spread([run["peak_gib"] for run in runs]) for name, runs in found.items()}
    for name in names:
        print(f"  {name:12} {speed[name]['median']:.3f} pairs/s ({speed[name]['min']:.3f} to {speed[name]['max']:.3f}), "
              f"peak {memory[name]['median']:.2f} GiB")  # fmt: skip
    faster, leaner = speed["ours"]["median"] / speed["trl"]["median"], memory["ours"]["median"] / memory["trl"]["median"]
    harness.write_result(
        "dpo_vs_trl", [run for runs in found.values() for run in runs], speed=speed, memory=memory,
        ratio={"dpo_vs_trl": faster, "dpo_memory": leaner},
    )  # fmt: skip
    met = [harness.bar("dpo_vs_trl", faster, ">=", 3.0), harness.bar("dpo_memory", leaner, "<=", 0.8)]
    return 0 if all(met) else 1


if __name__ == "__main__":
    parser = harness.arguments(__doc__ or "", repeats=3)
    parser.add_argument("--pairs", type=int, default=32, help="how many pairs (default 32)")
    parser.add_argument("--all", action="store_true", help="also TRL with gradient checkpointing, as it ships")
    arguments = parser.parse_args()
    if arguments.arm:
        run_arm(arguments.arm, arguments.pairs)
        sys.exit(0)
    sys.exit(main(arguments))
