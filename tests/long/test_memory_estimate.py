"""`align check`'s memory formula against the measured peak of real training, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from align.builtin_models import builtin_folder
from align.steps.estimate import parameter_count, stored_bytes
from align.train.memory import ModelShape, training_memory
from benchmarks.harness import peak_rss_gib

pytestmark = [pytest.mark.model, pytest.mark.timeout(1200)]
BASE = "smollm2-135m-instruct"
RANK = 16
CONFIGURATIONS = {
    "all weights, bf16": {"precision": "bf16", "micro_batch_tokens": 2048},
    "all weights, bf16, small micro-batches": {"precision": "bf16", "micro_batch_tokens": 400},
    "adapters on the bf16 model": {"precision": "bf16", "micro_batch_tokens": 2048, "lora": RANK},
    "gradient checkpointing": {"precision": "bf16", "micro_batch_tokens": 2048, "gradient_checkpointing": True},
    "float32": {"precision": "fp32", "micro_batch_tokens": 1024},
}


def measure(folder: Path, checkpoints: Path, given: dict) -> dict:
    """Train two steps on synthetic pairs; the peak of this process and the largest micro-batch."""
    import random

    from align.train.data import PairExample
    from align.train.export import with_adapters
    from align.train.options import LoraOptions, TrainOptions, training_arguments
    from align.train.run import _policy
    from align.train.trainer import AlignTrainer

    draw = random.Random(1)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(100, 40_000) for _ in range(count))

    pairs = [PairExample(id=str(i), prompt_ids=ids(90), chosen_ids=ids(60), rejected_ids=ids(50)) for i in range(10)]
    rank = given.pop("lora", None)
    lora = LoraOptions(rank=rank) if rank else None
    options = TrainOptions(learning_rate=1e-6, batch_size=10, epochs=2, seed=1, save_steps=10**6, lora=lora, **given)
    model = _policy(folder, options)
    trainer = AlignTrainer(
        with_adapters(model, lora, 1) if lora else model, training_arguments(options, 10, checkpoints), examples=pairs,
        loss="simpo", loss_options={}, batch_size=10, micro_batch_tokens=options.micro_batch_tokens,
        precision=options.precision,
    )  # fmt: skip
    sizes: list[tuple[int, int]] = []
    build = trainer._build

    def seen(*args):
        batch = build(*args)
        sizes.append((batch.packed.num_tokens, len(batch.packed.target_N)))
        return batch

    trainer._build = seen
    trainer._save_checkpoint = lambda *args, **kwargs: None  # files in the page cache are not training's memory
    trainer.train()
    tokens, scored = max(sizes)
    return {"peak": peak_rss_gib() * 2**30, "tokens": tokens, "scored": scored}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_estimate_is_within_15_percent_of_the_peak(name: str, tmp_path: Path) -> None:
    folder, given = builtin_folder(BASE), CONFIGURATIONS[name]
    command = [sys.executable, "-m", "tests.long.test_memory_estimate", str(folder), str(tmp_path), json.dumps(given)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout.strip().splitlines()[-1])
    shape = ModelShape.of(folder, parameter_count(folder))
    assert shape is not None
    estimate = training_memory(
        shape, tokens=found["tokens"], scored=found["scored"], bf16=given["precision"] == "bf16",
        lora_rank=given.get("lora"),
        gradient_checkpointing=given.get("gradient_checkpointing", False), stored_bytes=stored_bytes(folder),
    )  # fmt: skip
    print(f"{name}: {found['tokens']} tokens, peak {found['peak'] / 1e9:.2f} GB, estimate {estimate.total / 1e9:.2f} GB")
    assert estimate.total == pytest.approx(found["peak"], rel=0.15), vars(estimate)


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))))
