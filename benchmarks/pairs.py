"""How long do pairs take, and does memory grow? 100,000 and 1,000,000 prompts with 8 scored responses each.

    python -m benchmarks.pairs                    about 5 minutes; --prompts 200000 for a shorter run

Each size is a process of its own, which makes shards of 512 prompts as Arrow tables, builds the pairs of each, and writes
pairs, rejects and agreements to Parquet files. Timed are the building and the writing; making up the shards is not. Half of
the prompts are Korean; responses have 16 to 48 tokens and as many letters, one in ten is unfinished, one in twenty repeats
another, one in fifty is in the other language. The validator's scores correlate 0.7 with the selector's, and a pair is kept
at a gap of at least 0.5. The bars are the seconds of the large size and the ratio of the peaks of resident memory.

There is no peer to compare with: other packages take the best and the worst score of one model.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align.core.artifact import PARQUET
from align.core.rows import Instruction, Reject, Response, Score, arrow_schema, to_table
from benchmarks import harness
from reward.pairs import Built, PairRules, build_pairs

SMALL, LARGE = 100_000, 1_000_000
RESPONSES = 8
SHARD = 512
RULES = PairRules(agreement="gap", threshold=0.5, held_out=0.02)
LETTERS = {"en": "abcdefghijklmnop qrstuvwxyz ", "ko": "가나다라마바사아자차카타파하 거너더러머버서 어저처"}


def instructions(first: int, count: int) -> list[Instruction]:
    """Prompts number `first` and up, English and Korean in turn."""
    return [
        Instruction(
            id=f"{number:016x}", parent_id="k", topic_id=f"topic-{number % 200}", knowledge_id="k",
            messages=[{"role": "user", "content": f"Question {number}: why is the sky blue?"}], generation=0,
            operator="generate", task_type="question", persona="", level="", difficulty=0.5, judged_difficulty=0.0,
            judged_quality=0.0, lang=("en", "ko")[number % 2], answer_lang=("en", "ko")[number % 2], split="stage1",
            license="CC0-1.0", pii="",
        )
        for number in range(first, first + count)
    ]  # fmt: skip


def tables(prompts: Sequence[Instruction], seed: int) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Responses to the prompts in random order, and both models' scores of them in two other orders."""
    draw = np.random.default_rng(seed)
    count = len(prompts) * RESPONSES
    prompt_ids = [prompt.id for prompt in prompts for _ in range(RESPONSES)]
    ids = [f"{prompt}{column:02x}" for prompt in (p.id for p in prompts) for column in range(RESPONSES)]
    sizes = draw.integers(16, 49, count).tolist()
    tokens = draw.integers(0, 100_000, (count, 48), np.int32)
    token_ids = [tokens[row, :size].tolist() for row, size in enumerate(sizes)]
    texts = []
    for row, other in enumerate((draw.random(count) < 0.02).tolist()):
        alphabet = LETTERS[("en", "ko")[(row // RESPONSES + other) % 2]]
        texts.append("".join([alphabet[token % len(alphabet)] for token in token_ids[row]]))
    for row in np.flatnonzero(draw.random(count) < 0.05).tolist():
        twin = row ^ 1
        token_ids[row], texts[row], sizes[row] = token_ids[twin], texts[twin], sizes[twin]
    responses = pa.table(
        {
            "id": ids,
            "prompt_id": prompt_ids,
            "model": ["M0"] * count,
            "sample_index": list(range(RESPONSES)) * len(prompts),
            "token_ids": token_ids,
            "text": texts,
            "finish_reason": np.where(draw.random(count) < 0.1, "length", "stop").tolist(),
            "num_tokens": sizes,
        },
        schema=arrow_schema(Response),
    )
    first = draw.standard_normal(count)
    scores = []
    for name, values in (("selector", first), ("validator", 0.7 * first + 0.51**0.5 * draw.standard_normal(count))):
        columns = {"id": ids, "response_id": ids, "prompt_id": prompt_ids, "reward_model": [name] * count, "score": values}
        scores.append(pa.table(columns, schema=arrow_schema(Score)).take(pa.array(draw.permutation(count))))
    return responses.take(pa.array(draw.permutation(count))), *scores


def write(folder: Path, number: int, built: Built) -> None:
    """The rows of a shard, as a step writes them."""
    for name, table in (
        ("pairs", built.table),
        ("rejects", to_table(Reject, built.rejects)),
        ("agreements", built.agreements),
    ):
        path = folder / f"{name}-{number:05d}.parquet"
        pq.write_table(table, path, **PARQUET)
        path.unlink()  # a million prompts need not lie on the disk


def run_arm(folder: Path, prompts: int) -> None:
    """One size, in this process; prints its row."""
    building = writing = processor = 0.0
    outcomes: Counter[str] = Counter()
    for number, first in enumerate(range(0, prompts, SHARD)):
        some = instructions(first, min(SHARD, prompts - first))
        made = tables(some, number)
        begun, begun_processor = time.perf_counter(), time.process_time()
        built = build_pairs(some, *made, RULES, 17)
        between = time.perf_counter()
        write(folder, number, built)
        processor += time.process_time() - begun_processor
        building, writing = building + between - begun, writing + time.perf_counter() - between
        outcomes.update(["kept"] * len(built.table), **Counter(reject.reason for reject in built.rejects))
    if outcomes.total() != prompts:
        raise SystemExit(f"{prompts} prompts became {outcomes.total()} rows")
    row: dict[str, Any] = {
        "prompts": prompts, "seconds": building + writing, "build_seconds": building, "write_seconds": writing,
        "processor_seconds": processor, "peak_gib": harness.peak_rss_gib(), "outcomes": dict(outcomes.most_common()),
    }  # fmt: skip
    print(json.dumps(row))


def main() -> int:
    """Run both sizes and print the bars."""
    parser = harness.arguments(__doc__ or "", repeats=1)
    parser.add_argument("--prompts", type=int, default=LARGE, help=f"of the large size (default {LARGE})")
    args = parser.parse_args()
    if args.arm:
        pa.set_cpu_count(1)
        with tempfile.TemporaryDirectory() as name:
            run_arm(Path(name), int(args.arm))
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    found = harness.run_arms("benchmarks.pairs", [str(SMALL), str(args.prompts)], args.repeats)
    rows = [run for runs in found.values() for run in runs]
    for row in rows:
        print(f"  {row['prompts']:9} prompts: peak {row['peak_gib']:.3f} GiB, {row['seconds']:.1f} s (building "
              f"{row['build_seconds']:.1f}, writing {row['write_seconds']:.1f}; processor {row['processor_seconds']:.1f}), "
              f"{row['outcomes']}")  # fmt: skip
    small, large = (min(found[arm], key=lambda run: run["seconds"]) for arm in (str(SMALL), str(args.prompts)))
    ratio = large["peak_gib"] / small["peak_gib"]
    harness.write_result("pairs", rows, ratio=ratio)
    met = [harness.bar("pairs", large["seconds"], "<=", 60), harness.bar("pairs_memory", ratio, "<=", 1.25)]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
