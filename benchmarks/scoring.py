"""Scoring N = 8 responses per prompt with a reward model on a CPU: ours against transformers and vLLM.

A SmolLM2-135M classifier with a fresh seeded head; prompts of about 256 tokens, responses of about 128, each up to 25 %
longer or shorter. Arms: `ours_PRECISION` (`reward.classifier.Classifier`), `transformers_PRECISION` (the same ids, sorted by
length, padded on the right, at the batch size that is fastest in a sweep on a few of them), `vllm_bf16`
(`reward.pooling.PoolingClassifier`: eager, prefix caching). Tokenising is inside the clock of all arms; loading and one
group to warm up are not.

Before times are compared, all arms must rank every two responses of a prompt as transformers does in float32, unless their
scores are closer than bfloat16 rounding; float32 arms must agree within 0.001.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks import harness

RESPONSES, PROMPT_TOKENS, RESPONSE_TOKENS, VARIATION, MAX_LENGTH, SEED = 8, 256, 128, 0.25, 1024, 17
BATCH_SIZES = (1, 4, 8, 16, 32)
TOLERANCE = {"fp32": 1e-3, "bf16": 0.2}  # of the largest difference from transformers float32
CLOSE = 0.1  # two scores closer than this share of all scores' range may change places in bfloat16


def save_model(folder: Path) -> None:
    """A classifier with a seeded head on the embedded model."""
    from align.builtin_models import build
    from reward.encoder import Encoder
    from reward.train import _fresh_model

    source = build("smollm2-135m-instruct")
    encoder = Encoder.load(source, max_length=MAX_LENGTH)
    _fresh_model(source, encoder.pad_id, SEED).save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)


def make_groups(folder: Path, count: int) -> list[Any]:
    """Prompts and responses of words that are one token each."""
    from reward.encoder import Encoder
    from reward.interface import Group

    vocabulary = Encoder.load(folder, max_length=MAX_LENGTH).tokenizer.get_vocab()
    words = sorted(token[1:] for token in vocabulary if re.fullmatch("Ġ[a-z]{3,8}", token))
    draw = random.Random(SEED)

    def text(tokens: int) -> str:
        return " ".join(draw.choices(words, k=round(tokens * draw.uniform(1 - VARIATION, 1 + VARIATION))))

    return [
        Group(
            id=f"p{i}", prompt=[{"role": "user", "content": text(PROMPT_TOKENS)}],
            response_ids=tuple(f"p{i}r{k}" for k in range(RESPONSES)),
            responses=tuple(text(RESPONSE_TOKENS) for _ in range(RESPONSES)),
        )
        for i in range(count)
    ]  # fmt: skip


class Plain:
    """What one writes with transformers: sorted by length, padded on the right, last token that is not padding."""

    def __init__(self, folder: Path, precision: str, batch_size: int) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        from reward.encoder import Encoder

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
        self.encoder, self.batch_size = Encoder.load(folder, max_length=MAX_LENGTH), batch_size

    def score(self, groups: list[Any]) -> Any:
        import torch

        ids = [self.encoder.encode(group.prompt, text).ids for group in groups for text in group.responses]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        scores = [0.0] * len(ids)
        for first in range(0, len(ids), self.batch_size):
            members = order[first : first + self.batch_size]
            batch = self.encoder.tokenizer.pad(
                {"input_ids": [ids[i] for i in members]}, padding_side="right", return_tensors="pt"
            )
            with torch.inference_mode():
                found = self.model(**batch).logits[:, 0].float().tolist()
            for i, score in zip(members, found, strict=True):
                scores[i] = score
        return ((place, scores[place * RESPONSES : (place + 1) * RESPONSES]) for place in range(len(groups)))


def run_arm(arm: str, folder: Path, count: int, batch_sizes: dict[str, int]) -> dict[str, Any]:
    """Load, warm up, and score all groups once."""
    kind, precision = arm.rsplit("_", 1)
    if kind == "sweep":
        return sweep(folder, precision)
    groups = make_groups(folder, count + 1)
    model: Any
    if kind == "ours":
        from reward.classifier import Classifier

        model = Classifier.load(folder, precision=precision, max_length=MAX_LENGTH, layout="shared")
    elif kind == "vllm":
        from reward.pooling import PoolingClassifier

        cores = sorted(os.sched_getaffinity(0))
        if int(os.environ["OMP_NUM_THREADS"]) < len(cores):  # vLLM binds a thread to every core unless told
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores[-int(os.environ["OMP_NUM_THREADS"]) :]))
        model = PoolingClassifier.load(folder, precision=precision, max_length=MAX_LENGTH)
    else:
        model = Plain(folder, precision, batch_sizes[precision])
    list(model.score(groups[-1:]))
    begun = time.perf_counter()
    scores = dict(model.score(groups[:-1]))
    seconds = time.perf_counter() - begun
    return {
        "arm": arm, "seconds": seconds, "responses_per_s": count * RESPONSES / seconds,
        "scores": [scores[i] for i in range(count)], "peak_gib": harness.peak_rss_gib(),
    }  # fmt: skip


def sweep(folder: Path, precision: str) -> dict[str, Any]:
    """Seconds per response of transformers by batch size, on the fewest responses that fill a batch, while it helps."""
    model = Plain(folder, precision, 8)
    groups = make_groups(folder, max(BATCH_SIZES) // RESPONSES)
    list(model.score(groups[:1]))
    seconds: dict[int, float] = {}
    for size in BATCH_SIZES:
        model.batch_size = size
        some = groups[: max(1, size // RESPONSES)]
        begun = time.perf_counter()
        list(model.score(some))
        seconds[size] = (time.perf_counter() - begun) / (len(some) * RESPONSES)
        if seconds[size] > 1.2 * min(seconds.values()):  # larger ones pad more and leave the cache
            break
    return {"arm": f"sweep_{precision}", "seconds_per_response": seconds, "best": min(seconds, key=seconds.__getitem__)}


def disagreement(scores: list[list[float]], oracle: list[list[float]], precision: str) -> tuple[float, int]:
    """Largest difference of a score, and how many pairs of responses of a prompt change places though not close."""
    everything = [score for group in oracle for score in group]
    close = (CLOSE if precision == "bf16" else 1e-3) * (max(everything) - min(everything))
    worst = max(abs(a - b) for mine, theirs in zip(scores, oracle, strict=True) for a, b in zip(mine, theirs, strict=True))
    swapped = sum(
        abs(theirs[i] - theirs[j]) > close and (theirs[i] - theirs[j]) * (mine[i] - mine[j]) <= 0
        for mine, theirs in zip(scores, oracle, strict=True)
        for i, j in combinations(range(len(mine)), 2)
    )
    return worst, swapped


def agrees(found: dict[str, list[dict[str, Any]]]) -> bool:
    """Whether all arms score as transformers in float32; prints how far they are from it."""
    oracle, right = found["transformers_fp32"][0]["scores"], True
    for arm, runs in found.items():
        precision = arm.rsplit("_", 1)[1]
        told = [disagreement(run["scores"], oracle, precision) for run in runs]
        worst, swapped = max(t[0] for t in told), max(t[1] for t in told)
        print(f"  {arm}: largest difference from transformers fp32 {worst:.2g} (at most {TOLERANCE[precision]:g}), "
              f"{swapped} pairs out of order")  # fmt: skip
        right = right and worst <= TOLERANCE[precision] and not swapped
    return right


def bars_of(speed: dict[str, float]) -> list[tuple[str, float, str, float]]:
    """Name, value, comparison and target of each bar, from responses per second by arm; NaN for what was not measured."""
    missing = float("nan")
    theirs = max(speed["transformers_fp32"], speed["transformers_bf16"])
    return [
        ("scoring", speed["ours_bf16"] / theirs, ">=", 1.8),
        ("scoring_fp32", speed["ours_fp32"] / speed["transformers_fp32"], ">=", 1.8),
        ("scoring_vllm", speed["ours_bf16"] / speed.get("vllm_bf16", missing), ">=", 1.0),
    ]


def main(args: argparse.Namespace) -> int:
    """Sweep, run the arms, check that they score the same, print the bars."""
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    with tempfile.TemporaryDirectory() as name:
        save_model(Path(name))
        given = ["--folder", name, "--groups", str(args.groups)]
        swept = harness.run_arms("benchmarks.scoring", ["sweep_fp32", "sweep_bf16"], 1, given)
        sizes = {arm.rsplit("_", 1)[1]: runs[0]["best"] for arm, runs in swept.items()}
        print(f"  transformers is fastest with {sizes['fp32']} (fp32) and {sizes['bf16']} (bf16) rows at once")
        arms = ["ours_bf16", "transformers_bf16", "ours_fp32", "transformers_fp32"]
        if find_spec("vllm"):
            arms.append("vllm_bf16")
        else:
            print("  vLLM is not installed; its arm is left out")
        found = harness.run_arms(
            "benchmarks.scoring", arms, args.repeats, [*given, "--batch-sizes", f"{sizes['fp32']},{sizes['bf16']}"]
        )
    if not agrees(found):
        print("error: the arms do not score the same; times are not compared")
        return 1
    speed = {arm: harness.spread([run["responses_per_s"] for run in runs]) for arm, runs in found.items()}
    memory = {arm: harness.spread([run["peak_gib"] for run in runs]) for arm, runs in found.items()}
    for arm in arms:
        print(f"  {arm:18} {speed[arm]['median']:.2f} responses/s ({speed[arm]['min']:.2f} to {speed[arm]['max']:.2f}), "
              f"peak {memory[arm]['median']:.2f} GiB")  # fmt: skip
    bars = bars_of({arm: values["median"] for arm, values in speed.items()})
    rows = [{k: v for k, v in run.items() if k != "scores"} for runs in [*swept.values(), *found.values()] for run in runs]
    harness.write_result(
        "scoring", rows, speed=speed, memory=memory, ratio={bar[0]: bar[1] for bar in bars},
        threads=int(os.environ["OMP_NUM_THREADS"]), load=os.getloadavg(),
    )  # fmt: skip
    return 0 if all([harness.bar(*bar) for bar in bars]) else 1


if __name__ == "__main__":
    parser = harness.arguments(__doc__ or "", repeats=3)
    parser.add_argument("--groups", type=int, default=4, help="how many prompts (default 4)")
    parser.add_argument("--folder", type=Path, help="the model of an arm (used by the script itself)")
    parser.add_argument("--batch-sizes", default="8,8", help="of transformers, fp32 and bf16 (used by the script itself)")
    arguments = parser.parse_args()
    if arguments.arm:
        batch_sizes = dict(zip(("fp32", "bf16"), map(int, arguments.batch_sizes.split(",")), strict=True))
        print(json.dumps(run_arm(arguments.arm, arguments.folder, arguments.groups, batch_sizes)))
        sys.exit(0)
    sys.exit(main(arguments))
