"""Near-duplicates: our signatures and clusters against datasketch, from texts to clusters, on one core.

    python -m benchmarks.near_duplicates        # needs: pip install rensa==0.5.0 datasketch==2.0.0 xxhash

Question: how much faster is `data_gen.near_duplicates` than the library that most pipelines use, and does it find the same?

Texts: passages of the test data's real documents, about 800 English or 400 Korean characters each, and changed copies
of some: words replaced, dropped or put in, the site's header and footer put around it, a sentence left out, Korean
particles changed. Both arms have the same shingles and the threshold 0.7. A copy is to be found if the exact Jaccard
similarity of the shingles is at least 0.75; two documents in a cluster are wrong below 0.65; what is between is counted
and left out.

Arms: `ours` (256 permutations; signatures are written to files and read back, as in a run); `datasketch` (MinHash.bulk
of 128 permutations and MinHashLSH with an insertion session; xxhash in place of SHA-1, which is about twice as fast;
candidates verified by their signatures, as ours are). With --all also `datasketch_default` (SHA-1), and
`datasketch_recall` (LSH weights 0.1 and 0.9, which find more). One process each, one thread; the clock starts after
imports and the making of the table of letters, which both use.

Before the times count, each arm must give the same clusters in every repeat, and ours must find what datasketch finds
but for one pair in a hundred, at a precision of at least 0.9.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from data_gen.normal_form import SEPARATOR, normal_batch, normal_form

DATA = Path(os.environ.get("ALIGN_TEST_DATA", "../shared/data")) / "corpus"
NEEDED = {"datasketch": "datasketch==2.0.0", "xxhash": "xxhash", "rensa": "rensa==0.5.0"}
LENGTHS = {"en": 800, "ko": 400}
COPIES = 1000  # of each language
THRESHOLD, POSITIVE, NEGATIVE, SEED = 0.7, 0.75, 0.65, 17
SHARDS = 4
# As SHINGLE and HANGUL_SHINGLE of data_gen.near_duplicates say; it looks ahead, so one match per place.
SHINGLES = re.compile(r"(?=([가-힣]..|[^가-힣].{4}))")
AROUND = {
    "en": (
        "Home | About | Products | Support | Contact us | Sign in | Subscribe to our newsletter\n",
        "\nAll rights reserved. Terms of use | Privacy policy | Cookie settings. Follow us on social media for updates.",
    ),
    "ko": (
        "홈 | 회사 소개 | 제품 | 고객 지원 | 문의하기 | 로그인 | 회원 가입\n",
        "\n모든 권리 보유. 이용 약관 | 개인정보 처리방침 | 쿠키 설정. 새 소식은 뉴스레터를 구독하세요.",
    ),
}
PARTICLES = {"은": "이", "는": "가", "이": "은", "가": "는", "을": "도", "를": "만", "에": "에서", "의": "", "로": "에"}


@dataclass(frozen=True)
class Corpus:
    """Texts, the language of each, and (original, changed copy) by number."""

    texts: list[str]
    langs: list[str]
    pairs: list[tuple[int, int]]


def passages(lang: str) -> list[str]:
    """Sentences in a row of one document, about LENGTHS[lang] characters."""
    found = []
    for line in (DATA / f"web_{lang}.jsonl").read_text(encoding="utf-8").splitlines():
        part = ""
        for sentence in re.split(r"(?<=[.!?])\s+", json.loads(line)["text"]):
            part += sentence + " "
            if len(part) >= LENGTHS[lang]:
                found.append(part[: 3 * LENGTHS[lang]])
                part = ""
    return found


def changed(text: str, lang: str, words: Sequence[str], rng: random.Random) -> str:
    """A copy with one kind of change, of a strength drawn at random."""
    rate = rng.choice((0.01, 0.02, 0.04, 0.06, 0.09, 0.13, 0.2))

    def each(change: Callable[[str], str]) -> str:
        return " ".join(change(word) if rng.random() < rate else word for word in text.split())

    def without_a_sentence() -> str:
        sentences = re.split(r"(?<=[.!?])\s+", text)
        sentences.pop(rng.randrange(len(sentences)))
        return " ".join(sentences)

    kinds: list[Callable[[], str]] = [
        lambda: each(lambda _: rng.choice(words)),
        lambda: each(lambda _: ""),
        lambda: each(lambda word: f"{word} {rng.choice(words)}"),
        lambda: AROUND[lang][0] + text,
        lambda: AROUND[lang][0] + text + AROUND[lang][1],
        without_a_sentence,
    ]
    if lang == "ko":
        rate *= 3  # of the words, of which a third end in one of them
        kinds.append(lambda: each(lambda word: word[:-1] + PARTICLES.get(word[-1], word[-1])))
    return rng.choice(kinds)()


def build() -> Corpus:
    """The same texts on every call."""
    rng = random.Random(SEED)
    rows: list[tuple[str, str, int, bool]] = []
    for lang in LENGTHS:
        originals = passages(lang)
        words = [word for text in originals for word in text.split()]
        start = len(rows)
        rows += [(text, lang, start + k, False) for k, text in enumerate(originals)]
        chosen = rng.sample(range(len(originals)), COPIES)
        rows += [(changed(originals[k], lang, words, rng), lang, start + k, True) for k in chosen]
    order = list(range(len(rows)))
    rng.shuffle(order)
    place = {number: k for k, number in enumerate(order)}
    pairs = [(place[rows[number][2]], place[number]) for number in order if rows[number][3]]
    return Corpus([rows[k][0] for k in order], [rows[k][1] for k in order], pairs)


# Arms: texts in, the first document of each one's cluster out


def ours(texts: Sequence[str]) -> list[int]:
    from data_gen import near_duplicates

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{k}.npy" for k in range(SHARDS)]
        for k, file in enumerate(files):
            near_duplicates.write_signatures(file, texts[k * len(texts) // SHARDS : (k + 1) * len(texts) // SHARDS])
        return near_duplicates.clusters(files, threshold=THRESHOLD, work=Path(folder)).tolist()


def datasketch(texts: Sequence[str], *, sha1: bool = False, weights: tuple[float, float] = (0.5, 0.5)) -> list[int]:
    import xxhash
    from datasketch import MinHash, MinHashLSH

    def shingles(normal: str) -> list[bytes]:
        if normal.isascii():  # slices of bytes are the quickest, and a set of them costs more than it saves
            data = normal.encode()
            return [data[i : i + 5] for i in range(len(data) - 4)] or [data]
        return [shingle.encode() for shingle in SHINGLES.findall(normal)] or [normal.encode()]

    options: dict[str, Any] = {} if sha1 else {"hashfunc": xxhash.xxh32_intdigest}
    normal = normal_batch(texts).decode().split(SEPARATOR.decode())
    sketches = MinHash.bulk((shingles(text) for text in normal), num_perm=128, **options)
    index = MinHashLSH(threshold=THRESHOLD, num_perm=128, weights=weights)
    with index.insertion_session() as session:
        for k, sketch in enumerate(sketches):
            session.insert(k, sketch, check_duplication=False)
    parent = list(range(len(texts)))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = k = parent[parent[k]]
        return k

    for k, sketch in enumerate(sketches):
        for other in index.query(sketch):
            if other < k and root(other) != root(k) and sketch.jaccard(sketches[other]) >= THRESHOLD:
                parent[max(root(k), root(other))] = min(root(k), root(other))
    return [root(k) for k in range(len(texts))]


ARMS: dict[str, Callable[[Sequence[str]], list[int]]] = {
    "ours": ours,
    "datasketch": datasketch,
    "datasketch_default": lambda texts: datasketch(texts, sha1=True),
    "datasketch_recall": lambda texts: datasketch(texts, weights=(0.1, 0.9)),
}


def run_arm(arm: str) -> None:
    """One arm in this process; its row is the last line printed."""
    texts = build().texts
    ARMS[arm]([*texts[:50], "가"])  # imports, and the tables that both make once
    begun = time.perf_counter()
    found = ARMS[arm](texts)
    seconds = time.perf_counter() - begun
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    row = {"arm": arm, "seconds": seconds, "documents_per_s": len(texts) / seconds, "mb_per_s": megabytes / seconds}
    print(json.dumps(row | {"peak_gib": harness.peak_rss_gib(), "clusters": found}))


# What was found


def judged(corpus: Corpus, found: Sequence[int], lang: str) -> dict[str, Any]:
    """Precision and recall of pairs of a language, and how many pairs each is of."""
    sets: dict[int, set[str]] = {}

    def similarity(a: int, b: int) -> float:
        for k in (a, b):
            if k not in sets:
                sets[k] = set(SHINGLES.findall(normal_form(corpus.texts[k])))
        return len(sets[a] & sets[b]) / max(len(sets[a] | sets[b]), 1)

    planted = [(similarity(a, b), found[a] == found[b]) for a, b in corpus.pairs if corpus.langs[a] == lang]
    clusters: dict[int, list[int]] = {}
    for k, first in enumerate(found):
        if corpus.langs[k] == lang:
            clusters.setdefault(first, []).append(k)
    together = [similarity(a, b) for members in clusters.values() for a, b in combinations(members, 2)]
    right, wrong = sum(s >= POSITIVE for s in together), sum(s < NEGATIVE for s in together)
    wanted = [hit for s, hit in planted if s >= POSITIVE]
    bins = {
        f"{low:.2f}": [hit for s, hit in planted if low <= s < high] for low, high in ((0.75, 0.8), (0.8, 0.9), (0.9, 1.1))
    }
    return {
        "precision": right / max(right + wrong, 1), "recall": sum(wanted) / len(wanted), "right": right, "wrong": wrong,
        "planted": len(planted), "positives": len(wanted), "between_together": len(together) - right - wrong,
        "planted_between": sum(NEGATIVE <= s < POSITIVE for s, _ in planted),
        "recall_from": {low: round(sum(hits) / max(len(hits), 1), 4) for low, hits in bins.items()},
    }  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Run the arms, judge what they found, print the bars."""
    missing = [package for name, package in NEEDED.items() if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: not installed: {', '.join(missing)}; run: {sys.executable} -m pip install {' '.join(missing)}")
        return 2
    if not DATA.is_dir():
        print(f"error: {DATA} is not there; set ALIGN_TEST_DATA to the folder of the test data")
        return 2
    for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    names = list(ARMS) if args.all else ["ours", "datasketch"]
    corpus = build()
    print(f"  {len(corpus.texts)} texts, of these {len(corpus.pairs)} changed copies")
    found = harness.run_arms("benchmarks.near_duplicates", names, args.repeats)
    quality: dict[str, dict[str, Any]] = {}
    for name, runs in found.items():
        answers = [run.pop("clusters") for run in runs]
        if any(answer != answers[0] for answer in answers):
            print(f"error: {name} does not give the same clusters in every repeat")
            return 1
        for run in runs:
            run["clusters_sha256"] = hashlib.sha256(np.asarray(answers[0], "<i8").tobytes()).hexdigest()[:16]
        quality[name] = {lang: judged(corpus, answers[0], lang) for lang in LENGTHS}
        for lang, row in quality[name].items():
            print(f"  {name:18} {lang}: {row['right']} pairs right, {row['wrong']} wrong: precision {row['precision']:.4f}; "
                  f"of {row['positives']} copies recall {row['recall']:.4f}, from {row['recall_from']}; "
                  f"left out: {row['planted_between']} copies, {row['between_together']} pairs found")  # fmt: skip
    for lang in LENGTHS:
        mine, peer = quality["ours"][lang], quality["datasketch"][lang]
        if mine["recall"] < peer["recall"] - 0.01 or mine["precision"] < 0.9:
            print(f"error: ours finds less than datasketch, or wrong pairs, in {lang}; times are not compared")
            return 1
    speed = {name: harness.spread([run["seconds"] for run in runs]) for name, runs in found.items()}
    rate = {name: harness.spread([run["mb_per_s"] for run in runs]) for name, runs in found.items()}
    for name in names:
        print(f"  {name:18} {speed[name]['median']:.3f} s ({speed[name]['min']:.3f} to {speed[name]['max']:.3f}), "
              f"{rate[name]['median']:.1f} MB/s, peak {found[name][0]['peak_gib']:.2f} GiB")  # fmt: skip
    faster = speed["datasketch"]["median"] / speed["ours"]["median"]
    precision, recall = (min(quality["ours"][lang][what] for lang in LENGTHS) for what in ("precision", "recall"))
    harness.write_result(
        "near_duplicates", [run for runs in found.values() for run in runs], speed=speed, mb_per_s=rate, quality=quality,
        ratio={"near_duplicates": faster}, packages={name: metadata.version(name) for name in NEEDED},
        texts=len(corpus.texts),
    )  # fmt: skip
    met = [
        harness.bar("near_duplicates", faster, ">=", 5.0),
        harness.bar("near_duplicates_precision", precision, ">=", 0.95),
        harness.bar("near_duplicates_recall", recall, ">=", 0.95),
    ]
    return 0 if all(met) else 1


if __name__ == "__main__":
    parser = harness.arguments(__doc__ or "", repeats=5)
    parser.add_argument("--all", action="store_true", help="also datasketch with SHA-1, and with its LSH tuned for recall")
    arguments = parser.parse_args()
    if arguments.arm:
        run_arm(arguments.arm)
        sys.exit(0)
    sys.exit(main(arguments))
