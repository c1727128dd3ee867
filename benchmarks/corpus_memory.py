"""Does memory grow with the corpus? 10,000 and 1,000,000 documents through corpus, duplicates and decontamination.

    python -m benchmarks.corpus_memory            about 15 minutes; --documents 100000 for a shorter run

Each size is a process of its own, which reads the JSON Lines file with every filter on, masks personal data, removes exact
and near duplicates, writes the shards and the manifest as the step `corpus` does, and then searches the written documents
for 200 test items. Documents are made up: 40 to 120 words drawn from 20,000, one in twenty an exact and one in twenty a near
duplicate of an earlier one, English and Korean in turn, some with a phone number. The bar is the ratio of the peaks of
resident memory.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from align.core.artifact import StepFolder, read_rows
from align.core.rows import Document, Reject
from align.steps.data import DOCUMENT_SHARD
from benchmarks import harness
from data_gen.corpus import Reading, Rules
from data_gen.decontaminate import Decontamination
from data_gen.sources import read_files

SMALL, LARGE = 10_000, 1_000_000
TEST_ITEMS = 200
SYLLABLES = "가나다라마바사아자차카타파하거너더러머버서어저처고노도로모보소오조초구누두루무부수우주추기니디리미비시이지치"


def vocabulary(lang: str, draw: random.Random) -> list[str]:
    """20,000 made-up words."""
    letters = "abcdefghijklmnopqrstuvwxyz" if lang == "en" else SYLLABLES
    low, high = (3, 9) if lang == "en" else (1, 4)
    return ["".join(draw.choices(letters, k=draw.randint(low, high))) for _ in range(20_000)]


def texts(count: int) -> Iterator[str]:
    """Documents, the same for every run; only the last few thousand are kept to be repeated."""
    draw = random.Random(17)
    words = {lang: vocabulary(lang, draw) for lang in ("en", "ko")}
    recent: list[str] = []
    for number in range(count):
        kind = draw.random()
        if kind < 0.1 and recent:
            text = draw.choice(recent)
            if kind < 0.05:
                parts = text.split(" ")
                parts[draw.randrange(len(parts))] = "changed" if text.isascii() else "바뀐"
                text = " ".join(parts)
        else:
            lang = ("en", "ko")[number % 2]
            some = draw.choices(words[lang], k=draw.randint(40, 120))
            joiner = " the {} of {}. " if lang == "en" else " {}은 {}에 있다. "
            text = "".join(" ".join(some[i : i + 8]) + joiner.format(*some[i : i + 2]) for i in range(0, len(some) - 1, 8))
            if number % 50 == 0:
                text += f" 010-{draw.randrange(1000, 9999)}-{draw.randrange(1000, 9999)}"
            if len(recent) < 2000:
                recent.append(text)
            else:
                recent[draw.randrange(2000)] = text
        yield text


def run_arm(folder: Path, count: int) -> None:
    """One size, in this process; prints its row."""
    source = folder / f"{count}.jsonl"
    begun = time.monotonic()
    rules = Rules(
        languages=("en", "ko"), allow_licenses=None, min_chars=80, max_chars=2000, filters=True, mask_pii=True, run_seed=17
    )
    out = StepFolder(folder / f"corpus-{count}", step="corpus", fingerprint="f", inputs={}, row_type=Document, seed=17)
    reading = Reading(out.work / "read", rules, shard_size=DOCUMENT_SHARD, near_duplicates=0.7)
    reading.read(read_files([source]), count)
    for shard, (rows, rejects) in zip(out.pending(reading.records, DOCUMENT_SHARD), reading.shards(None), strict=True):
        out.write_shard(shard.index, rows, rejects, asked=len(rows) + len(rejects))
    manifest = out.finish()
    corpus_seconds = time.monotonic() - begun
    search = Decontamination([folder / "exam.jsonl"], mode="full", window=50, samples=10, columns=None, seed=17)
    found = sum(isinstance(row, Reject) for row in search.clean(read_rows(out.folder, Document), lambda row: [row.text]))
    row = {
        "documents": count, "kept": manifest.rows, "rejects": manifest.rejects, "contaminated": found,
        "corpus_seconds": corpus_seconds, "seconds": time.monotonic() - begun, "peak_gib": harness.peak_rss_gib(),
    }  # fmt: skip
    print(json.dumps(row))


def main() -> int:
    """Write the files, run both sizes, print the bar."""
    parser = harness.arguments(__doc__ or "", repeats=1)
    parser.add_argument("--documents", type=int, default=LARGE, help=f"of the large corpus (default {LARGE})")
    parser.add_argument("--folder", type=Path, help="where the files are (used by the script itself)")
    args = parser.parse_args()
    if args.arm:
        run_arm(args.folder, int(args.arm))
        return 0
    sizes = (SMALL, args.documents)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "exam.jsonl").open("w", encoding="utf-8") as handle:
            for number, text in enumerate(texts(SMALL)):
                if number % (SMALL // TEST_ITEMS) == 7:
                    handle.write(json.dumps({"question": text[:300]}, ensure_ascii=False) + "\n")
        for count in sizes:
            with (folder / f"{count}.jsonl").open("w", encoding="utf-8") as handle:
                for text in texts(count):
                    handle.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        found = harness.run_arms("benchmarks.corpus_memory", [str(n) for n in sizes], 1, ["--folder", str(folder)])
    rows = [run for runs in found.values() for run in runs]
    for row in rows:
        print(f"  {row['documents']:9} documents: peak {row['peak_gib']:.3f} GiB, {row['documents'] / row['seconds']:.0f} a "
              f"second, {row['kept']} kept, {row['contaminated']} contaminated, rejects {row['rejects']}")  # fmt: skip
    ratio = rows[-1]["peak_gib"] / rows[0]["peak_gib"]
    harness.write_result("corpus_memory", rows, ratio=ratio)
    return 0 if harness.bar("corpus_memory", ratio, "<=", 1.25) else 1


if __name__ == "__main__":
    sys.exit(main())
