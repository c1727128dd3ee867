"""Decontamination: how quick is the full search, does it find every copy, does it take templates for copies?

    python -m benchmarks.decontaminate            about 1 minute, one core

Text: the documents, answers and dialogues of the test data (English and Korean, 9.5 MB of UTF-8), in batches of half
a million characters, searched for the test items of GSM8K, HumanEval, IFEval, MT-Bench and LogicKor, normalisation included.
Peer: a Python set of all 50-character windows of the test items, asked for every window of every text: what a careful user
would write, and the oracle of the gate (the same documents hit in the same 1 MB of text with copies planted in it).

Recall: 1,000 copies of 50 to 400 letters and digits out of test items, beginning and ending at a word or inside one, every
fifth one Korean, each put into a real document. False hits: 1,000 look-alikes, real documents with pieces of test items of
at most 49 letters and digits, or with words that at least three items of a benchmark have in common.

Mode paper: texts of L letters and digits with a copied span of C, 400 of each; the share found against the theory, which is
1 - binom(W - k, 10) / binom(W, 10) for W = L - 49 windows, k = C - 49 of them in the copy. The bar is the largest distance
in standard errors.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import harness
from data_gen.benchmark_files import Benchmark, read_benchmarks
from data_gen.contamination import SAMPLES, WINDOW, Pool, SampledPool
from data_gen.normal_form import normal_form

BENCHMARKS = ("gsm8k_test", "humaneval", "ifeval", "mt_bench", "logickor")
PLANTED = LOOK_ALIKES = 1000
BATCH = 2**19
PAPER = ((600, 300), (2000, 300), (2000, 100), (10_000, 200), (4000, 600))
PAPER_TEXTS = 400
REPEATS = 7


def strings(value: object) -> list[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        return [value]
    parts = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    return [text for part in parts for text in strings(part)]


def real_texts(data: Path) -> list[str]:
    """Documents whole; of answers and dialogues each turn."""
    texts = []
    for name in ("corpus/web_en", "corpus/web_ko", "candidates/alpaca_eval_two_judges", "preferences/hh_harmless"):
        for line in (data / f"{name}.jsonl").open(encoding="utf-8"):
            texts += [text for text in strings(json.loads(line)) if len(text) > 40]
    return texts


def batches(texts: Sequence[str]) -> list[list[str]]:
    """Texts in groups of about BATCH characters."""
    found: list[list[str]] = [[]]
    size = 0
    for text in texts:
        if size > BATCH:
            found.append([])
            size = 0
        found[-1].append(text)
        size += len(text)
    return found


def by_set(benchmarks: Sequence[Benchmark]) -> Callable[[Sequence[str]], set[int]]:
    """The peer: every window of every text in a set, templates and all."""
    windows = set()
    for benchmark in benchmarks:
        for item in benchmark.items:
            for text in item.texts:
                normal = normal_form(text)
                windows.update(normal[i : i + WINDOW] for i in range(len(normal) - WINDOW + 1))

    def find(texts: Sequence[str]) -> set[int]:
        found = set()
        for number, text in enumerate(texts):
            normal = normal_form(text)
            if any(normal[i : i + WINDOW] in windows for i in range(len(normal) - WINDOW + 1)):
                found.add(number)
        return found

    return find


def piece(text: str, letters: int, start: int) -> str:
    """The part of a text from `start` that has so many letters and digits."""
    stop = start
    while letters and stop < len(text):
        letters -= len(normal_form(text[stop]))
        stop += 1
    return text[start:stop] if letters <= 0 else ""


def planted(benchmarks: Sequence[Benchmark], hosts: Sequence[str], draw: random.Random) -> list[tuple[str, str, int]]:
    """(text with a copy, benchmark, item) of PLANTED copies."""
    korean = [b for b in benchmarks if b.name == "logickor"]
    found: list[tuple[str, str, int]] = []
    while len(found) < PLANTED:
        source = draw.choice(korean if len(found) % 5 == 0 else list(benchmarks))
        item = draw.choice(source.items)
        text = draw.choice(item.texts)
        size = len(normal_form(text))
        if size < WINDOW:
            continue
        letters = draw.randint(WINDOW, min(400, size))
        start = draw.randrange(len(text))
        if len(found) % 2:  # at the beginning of a word; the others begin wherever they fall
            start = text.rfind(" ", 0, start) + 1
        copy = piece(text, letters, start)
        if len(normal_form(copy)) < WINDOW:
            continue
        host = draw.choice(hosts)
        place = draw.randrange(len(host))
        found.append((f"{host[:place]} {copy} {host[place:]}", source.name, item.number))
    return found


def look_alikes(benchmarks: Sequence[Benchmark], hosts: Sequence[str], draw: random.Random) -> list[str]:
    """Real documents with pieces of 30 to 49 letters and digits of test items, or with what items have in common."""
    common = templates(benchmarks)
    found = []
    for number in range(LOOK_ALIKES):
        host = draw.choice(hosts)
        if number % 2 and common:
            piece_of = f"zq{draw.choice(common)}qz"  # no item goes on like that
        else:
            text = draw.choice(draw.choice(draw.choice(list(benchmarks)).items).texts)
            text = text if len(normal_form(text)) >= WINDOW else "x"  # a shorter one counts as a whole
            piece_of = f"zq{piece(text, draw.randint(30, WINDOW - 1), draw.randrange(len(text)))}qz"
        place = draw.randrange(len(host))
        found.append(f"{host[:place]} {piece_of} {host[place:]}")
    return found


def templates(benchmarks: Sequence[Benchmark]) -> list[str]:
    """Windows that at least three items of a benchmark have, as letters and digits."""
    found = []
    for benchmark in benchmarks:
        items_of: dict[str, set[int]] = {}
        for item in benchmark.items:
            for text in item.texts:
                normal = normal_form(text)
                for i in range(len(normal) - WINDOW + 1):
                    items_of.setdefault(normal[i : i + WINDOW], set()).add(item.number)
        found += [window for window, items in sorted(items_of.items()) if len(items) >= 3]
    return found


def paper_rows(benchmarks: Sequence[Benchmark], draw: random.Random) -> list[dict[str, float]]:
    """Share found by sampled windows, beside the theory."""
    pool = SampledPool(benchmarks, seed=17)
    long = [normal_form(text, fold=False) for b in benchmarks for item in b.items for text in item.texts]
    rows = []
    for length, copied in PAPER:
        hits = 0
        for number in range(PAPER_TEXTS):
            filling = "".join(draw.choices("bcdfghjklmnpqrstvwxz", k=length - copied))
            source = draw.choice([text for text in long if len(text) >= copied])
            start = draw.randrange(len(source) - copied + 1)
            copy = source[start : start + copied]
            place = draw.randrange(length - copied + 1)
            text = filling[:place] + copy + filling[place:]
            hits += bool(pool.find([text], [f"{length}/{copied}/{number}"]))
        windows, in_copy = length - WINDOW + 1, copied - WINDOW + 1
        theory = 1 - math.comb(windows - in_copy, SAMPLES) / math.comb(windows, SAMPLES)
        error = math.sqrt(max(theory * (1 - theory), 1e-6) / PAPER_TEXTS)
        rows.append(
            {"length": length, "copied": copied, "found": hits / PAPER_TEXTS, "theory": theory,
             "standard_errors": (hits / PAPER_TEXTS - theory) / error}
        )  # fmt: skip
    return rows


def main() -> int:
    """Gate, time, recall, false hits, paper mode."""
    harness.arguments(__doc__ or "", repeats=REPEATS).parse_args()
    data = harness.test_data()
    if data is None:
        return 2
    draw = random.Random(17)
    benchmarks = read_benchmarks([data / "benchmarks" / f"{name}.jsonl" for name in BENCHMARKS])
    begun = time.perf_counter()
    pool = Pool(benchmarks)
    print(
        f"  {pool.windows} windows, {pool.template_windows} of them templates, built in {time.perf_counter() - begun:.2f} s"
    )
    texts = real_texts(data)
    size = sum(len(text.encode()) for text in texts) / 1e6
    hosts = [text for text in texts[:1301] if len(text) > 500 and not pool.find([text])]

    copies = planted(benchmarks, hosts, draw)
    few = [text for text, _, _ in copies[:150]] + hosts[:300]
    set_find = by_set(benchmarks)
    expected, found = set_find(few), set(pool.find(few))
    if not found <= expected or len(expected - found) > 3:  # a copy may lie in a template, which the set does not know
        print(f"error: the arms differ: {len(found - expected)} hits too many, {len(expected - found)} too few")
        return 1

    parts = batches(texts)
    seconds: dict[str, list[float]] = {"ours": [], "set of windows": []}
    some = parts[0]
    some_size = sum(len(text.encode()) for text in some) / 1e6
    for _ in range(REPEATS):
        begun = time.perf_counter()
        hits = [pool.find(part) for part in parts]
        seconds["ours"].append(size / (time.perf_counter() - begun))
        begun = time.perf_counter()
        set_find(some)
        seconds["set of windows"].append(some_size / (time.perf_counter() - begun))
    speed = {name: harness.spread(values) for name, values in seconds.items()}
    for name, value in speed.items():
        print(f"  {name:16} {value['median']:.3g} MB/s ({value['min']:.3g} to {value['max']:.3g})")
    print(f"  real text: {sum(map(len, hits))} of {len(texts)} texts hit, {size:.1f} MB")

    missed = []
    only_templates = 0
    for text, name, number in copies:
        matches = pool.find([text]).get(0, [])
        if not any((m.benchmark, m.number) == (name, number) for m in matches):
            missed.append((name, number))
    common = set(templates(benchmarks))
    for name, number in missed:
        item = next(i for b in benchmarks if b.name == name for i in b.items if i.number == number)
        normal = [normal_form(t) for t in item.texts]
        only_templates += any(t[i : i + WINDOW] in common for t in normal for i in range(len(t) - WINDOW + 1))
    recall = 1 - (len(missed) - only_templates) / (PLANTED - only_templates)
    print(f"  planted: {PLANTED - len(missed)} of {PLANTED} found; {only_templates} missed are of items with templates")
    false = sum(bool(pool.find([text])) for text in look_alikes(benchmarks, hosts, draw))
    paper = paper_rows(benchmarks, draw)
    for row in paper:
        print(f"  paper: L {row['length']}, C {row['copied']}: found {row['found']:.3f}, theory {row['theory']:.3f}")
    worst = max(abs(row["standard_errors"]) for row in paper)
    harness.write_result(
        "decontaminate", [{"arm": name, "mb_per_s": value} for name, value in speed.items()], megabytes=size,
        planted=PLANTED, missed=len(missed), missed_in_templates=only_templates, look_alikes=LOOK_ALIKES, false_hits=false,
        real_texts_hit=sum(map(len, hits)), paper=paper,
    )  # fmt: skip
    met = [
        harness.bar("decontaminate", statistics.median(seconds["ours"]), ">=", 50),
        harness.bar("decontaminate_recall", recall, ">=", 1.0),
        harness.bar("decontaminate_false_hits", false, "<=", 0),
        harness.bar("decontaminate_paper", worst, "<=", 3),
    ]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
