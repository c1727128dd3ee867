"""Decontamination: the normal form, copies of any length and place found, templates not, the report's mode, certificates."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.errors import UserError
from align.core.rows import Reject
from data_gen.benchmark_files import Benchmark, TestItem, read_benchmarks
from data_gen.contamination import SHORTEST_CONTAINED, TEMPLATE_ITEMS, Pool, SampledPool, window_hashes
from data_gen.decontaminate import Decontamination, original_span
from data_gen.normal_form import SEPARATOR, normal_batch, normal_form

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
SYLLABLES = "가나다라마바사아자차카타파하거너더러머버서어저처커터퍼허"


def prose(seed: int, words: int, alphabet: str = LETTERS) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices(alphabet, k=draw.randint(1, 8))) for _ in range(words))


def bench(*texts: str | tuple[str, ...], name: str = "exam") -> Benchmark:
    items = [TestItem(name, k, (t,) if isinstance(t, str) else t) for k, t in enumerate(texts, 1)]
    return Benchmark(name, Path(name), str(hash(texts)), tuple(items))


@pytest.mark.parametrize(
    ("text", "folded", "kept"),
    [
        ("Hello, World 12!", "helloworld12", "HelloWorld12"),
        ("“Don’t—stop…” ", "dontstop", "Dontstop"),
        ("꿀은 오래 간다.", "꿀은오래간다", "꿀은오래간다"),
        ("Straße İ", "strassei", "Straßeİ"),
        ("ﬁne café cafe\u0301", "finecafécafé", "ﬁnecafécafé"),
        ("\u1112\u1161\u11ab 글", "한글", "한글"),
        ("a_b😀c𝐀\x00\x01d", "abcd", "abcd"),
        ("a\x01\u0301 e’\u0301 가…\u11a8", "áe각", "áe각"),
        ("", "", ""),
    ],
)  # fmt: skip
def test_normal_form(text: str, folded: str, kept: str) -> None:
    assert normal_form(text, fold=False) == kept
    # A dotted capital I folds to an i and a dot above it, which is no letter.
    assert normal_form(text) == folded
    assert normal_batch([text, "x"]) == f"{folded}\x01x".encode()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=6), st.booleans())
def test_a_batch_is_the_normal_form_of_each_text(texts: list[str], fold: bool) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]  # no half characters
    assert normal_batch(texts, fold=fold) == SEPARATOR.join(normal_form(text, fold=fold).encode() for text in texts)


def test_every_character_is_the_same_in_a_batch() -> None:
    chars = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]
    for fold in (True, False):
        batch = normal_batch([f"x{char}y" for char in chars], fold=fold).decode().split(SEPARATOR.decode())
        wrong = [char for char, found in zip(chars, batch, strict=True) if found != normal_form(f"x{char}y", fold=fold)]
        assert not wrong


@given(st.lists(st.integers(0, 65535), max_size=80), st.integers(1, 60))
def test_window_hashes_are_equal_for_equal_windows_only(codes: list[int], window: int) -> None:
    array = np.asarray(codes, np.uint16)
    hashes = window_hashes(array, window)
    windows = [tuple(codes[i : i + window]) for i in range(len(codes) - window + 1)]
    assert len(hashes) == len(windows)
    assert len(set(hashes.tolist())) == len(set(windows))
    for i, first in enumerate(windows):
        for j in range(i):
            assert (windows[j] == first) == (hashes[j] == hashes[i])


@pytest.mark.parametrize("alphabet", [LETTERS, SYLLABLES])
@pytest.mark.parametrize("length", [50, 51, 67, 120, 400])
def test_copies_are_found_wherever_they_lie(alphabet: str, length: int) -> None:
    """Every offset of the copy in the text, modulo the stride of the search, and beginnings inside words."""
    exam = bench(prose(1, 200, alphabet), prose(2, 200, alphabet))
    pool = Pool([exam])
    source = normal_form(exam.items[1].texts[0])
    for shift in range(40):
        host = prose(100 + shift, 60, alphabet)
        start = random.Random(shift).randrange(len(source) - length)
        copy = source[start : start + length]
        text = host[:shift] + " " + " ".join(copy[i : i + 7] for i in range(0, length, 7)).upper() + "! " + host
        ((match,),) = pool.find([text]).values()
        assert (match.benchmark, match.number) == ("exam", 2)
        assert copy in match.span and len(match.span) < length + 4


@pytest.mark.parametrize("alphabet", [LETTERS, SYLLABLES])
def test_a_copy_below_the_window_is_none(alphabet: str) -> None:
    source = normal_form(prose(1, 200, alphabet))
    pool = Pool([bench(source)])
    for start in range(0, 200, 7):
        copy = f"한z{source[start : start + 49]}z한"
        assert pool.find([f"{prose(start + 5, 30, alphabet)} {copy} {prose(start, 30, alphabet)}"]) == {}
    assert pool.find([source[10:59], source[10:60]]).keys() == {1}


def test_texts_are_told_apart() -> None:
    """A copy that begins in one text and ends in the next is none, and a hit has its own text's index."""
    source = normal_form(prose(1, 200))
    pool = Pool([bench(source)])
    halves = [source[20:60], source[60:100]]
    assert pool.find(halves) == {}
    assert pool.find(["", *halves, "x", source[100:160], ""]).keys() == {4}
    two = Pool([bench(source[:70], source[70:140])])
    assert two.find([source[45:95]]) == {}, "25 characters of each of two items"


def test_all_turns_of_an_item_count() -> None:
    pool = Pool([bench((prose(1, 40), prose(2, 40)), (prose(3, 40), "ok"))])
    found = pool.find([prose(2, 40), prose(3, 40), prose(1, 40) + prose(3, 40)])
    assert [[m.number for m in found[k]] for k in range(3)] == [[1], [2], [1, 2]]
    assert all(m.whole for k in range(3) for m in found[k])


def test_short_items_count_as_a_whole() -> None:
    medium, tiny = "Was Caesar right to cross the river?", "Is it true?"
    assert len(normal_form(medium)) >= SHORTEST_CONTAINED > len(normal_form(tiny))
    pool = Pool([bench(medium, tiny)])
    assert pool.short_items == 2
    assert pool.find(["Tell me: was Caesar right to cross the river, or not?"]).keys() == {0}
    assert pool.find(["Was Caesar right to cross the rivers of Gaul?"]).keys() == {0}, "contained, the s does not matter"
    assert pool.find(["Was Caesar right to cross a river?"]) == {}
    assert pool.find(["IS IT TRUE"]).keys() == {0}
    assert pool.find(["It is said that. Is it true? Yes."]) == {}, "too short to count within a text"


def test_sentences_that_items_share_are_no_evidence() -> None:
    common = normal_form("Your entire response should be in English capital letters only and contain no commas.")
    assert len(common) > 60
    own = [prose(k, 30) for k in range(5)]
    pool = Pool([bench(*(f"{text} {common}" for text in own))])
    assert pool.template_windows > 0
    assert pool.find([f"{prose(90, 30)}. {common} {prose(91, 30)}"]) == {}
    assert {k: [m.number for m in ms] for k, ms in pool.find([f"{own[3]} {common}"]).items()} == {0: [4]}
    # Seen from two items only it is evidence, and so it is in an item that is nothing else.
    assert TEMPLATE_ITEMS == 3
    assert Pool([bench(*(f"{text} {common}" for text in own[:2]))]).find([common]) != {}
    alone = Pool([bench(common, *(f"{text} {common}" for text in own))])
    assert [m.number for m in alone.find([f"zz {common} zz"])[0]] == [1]
    # Another benchmark's items do not make a sentence of one benchmark a template.
    spread = [bench(f"{own[k]} {common}", name=f"b{k}") for k in range(4)]
    assert len(Pool(spread).find([common])[0]) == 4


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_against_all_windows_in_a_set(data: st.DataObject) -> None:
    """Few letters, so that much coincides: the same texts are hit as by brute force."""
    small = st.text("ab가", min_size=0, max_size=120)
    items = data.draw(st.lists(small, min_size=1, max_size=2))
    texts = data.draw(st.lists(small | st.sampled_from(items), min_size=1, max_size=5))
    cut = data.draw(st.integers(0, 30))
    texts = [text[cut:] + "b" for text in texts]
    window = 24
    pool = Pool([bench(*items)], window=window)
    windows = {item[i : i + window] for item in items for i in range(len(item) - window + 1)}
    short = {item for item in items if 0 < len(item) < window}
    expected = {
        k for k, text in enumerate(texts)
        if any(text[i : i + window] in windows for i in range(len(text) - window + 1)) or text in short
    }  # fmt: skip
    assert set(pool.find(texts)) == expected


def test_hostile_text_takes_linear_time() -> None:
    pool = Pool([bench("a" * 2000, prose(1, 100))])
    assert pool.find(["a" * 2_000_000]).keys() == {0}
    assert pool.find(["b" * 2_000_000, "\x00" * 10_000, "\x01" * 10_000]) == {}


def test_windows_below_the_shortest_whole_item_are_refused() -> None:
    with pytest.raises(ValueError, match="window 10"):
        Pool([bench("x" * 60)], window=10)


def test_sampled_windows_find_the_share_that_theory_predicts() -> None:
    source = normal_form(prose(1, 400), fold=False)
    pool = SampledPool([bench(source)], seed=3)
    length, copied, trials = 1000, 200, 400
    found = 0
    for k in range(trials):
        text = "Z" * 300 + source[k % 50 : k % 50 + copied] + "Z" * (length - copied - 300)
        found += bool(pool.find([text], [str(k)]))
    windows, inside = length - 49, copied - 49
    theory = 1 - math.comb(windows - inside, 10) / math.comb(windows, 10)
    assert abs(found / trials - theory) < 4 * math.sqrt(theory * (1 - theory) / trials)
    whole = pool.find([source[:59]], ["x"])[0]
    assert len(whole) == 10, "ten windows, all of them copies"
    assert pool.find([source[:59].upper()], ["x"]) == {}, "capitals are kept"
    assert pool.find([source[:40]], ["x"]) == {}
    assert SampledPool([bench("short")], seed=3).find([source], ["x"]) == {}, "nothing to look for"
    one, two = (pool.find(["Z" * 500 + source[:100]], [name]) for name in ("a", "a"))
    assert one == two, "drawn by the id"


@dataclass(frozen=True)
class Example:
    id: str
    texts: tuple[str, ...]


def search(folder: Path, *texts: str, mode: str = "full", **changes: object) -> Decontamination:
    path = folder / "exam.jsonl"
    path.write_text("".join(json.dumps({"question": text, "id": "abc"}) + "\n" for text in texts))
    options: dict = {"mode": mode, "window": 50, "samples": 10, "columns": None, "seed": 17} | changes
    return Decontamination([path], **options)


def texts_of(row: Example) -> Sequence[str]:
    return row.texts


@pytest.mark.parametrize("mode", ["full", "paper"])
def test_rows_are_kept_or_rejected_and_the_certificate_adds_up(tmp_path: Path, mode: str) -> None:
    exam = [prose(1, 50), prose(2, 50)]
    rows = [Example(f"r{k}", (prose(k + 10, 40), prose(k + 500, 40))) for k in range(30)]
    rows[7] = Example("r7", ("Please answer.", f"«{exam[1][:150]}»"))
    runs = [search(tmp_path, *exam, mode=mode) for _ in range(2)]
    outs = [list(run.clean(iter(rows), texts_of)) for run in runs]
    assert outs[0] == outs[1] and runs[0].certificate() == runs[1].certificate()
    assert [row.id for row in outs[0]] == [row.id for row in rows]
    (reject,) = [row for row in outs[0] if isinstance(row, Reject)]
    assert (reject.id, reject.reason) == ("r7", "contaminated") and reject.raw.startswith("exam:2: ")
    about = runs[0].certificate()
    assert json.loads(json.dumps(about)) == about
    assert (about["rows"], about["texts"], about["contaminated"], about["rate"]) == (30, 60, 1, 1 / 30)
    assert about["characters"] == sum(len(t) for row in rows for t in row.texts)
    (only,) = about["benchmarks"]
    assert (only["items"], only["rows_hit"], only["items_hit"]) == (2, 1, 1)
    assert about["hits"][0]["row"] == "r7" and about["hits"][0]["matches"][0]["item"] == 2
    if mode == "full":
        assert about["hits"][0]["matches"][0]["text"] == exam[1][:150].rstrip()
    other = search(tmp_path, *exam, mode=mode, window=60).certificate()
    assert other["pool"] != about["pool"], "another way of looking is another pool"


def test_large_inputs_go_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_gen.decontaminate._BATCH_CHARS", 1000)
    exam = prose(1, 50)
    rows = [Example(f"r{k}", (prose(k + 10, 20), exam if k % 5 == 0 else "x")) for k in range(40)]
    out = list(search(tmp_path, exam).clean(rows, texts_of))
    assert [row.id for row in out if isinstance(row, Reject)] == [f"r{k}" for k in range(0, 40, 5)]
    assert len(out) == 40


def test_the_matched_words_are_shown_as_they_were_written() -> None:
    text = "Well: “Honey keeps — for YEARS”, they say."
    assert original_span(text, "honeykeepsforyears") == "Honey keeps — for YEARS"
    assert original_span(text, "HoneykeepsforYEARS") == "Honey keeps — for YEARS"
    assert original_span("cafe\u0301s", "cafés") == "cafés", "told by the letters themselves"
    assert original_span("꿀은 오래, 간다", "오래간다") == "오래, 간다"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not json\n", "one test item a line (malformed_json)"),
        ('{"id": 1, "category": "math"}\n', "its columns are id, category"),
        ('{"question": "  "}\n', "no test text"),
        ("\n", "an empty benchmark"),
    ],
)
def test_a_file_that_is_no_benchmark_is_an_error(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "exam.jsonl"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_benchmarks([path])
    assert words in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_benchmark_columns(tmp_path: Path) -> None:
    path = tmp_path / "exam.jsonl"
    record = {
        "turns": ["one", "two"],
        "messages": [{"role": "user", "content": "three"}],
        "reference": None,
        "frage": "four",
    }
    path.write_text(json.dumps(record) + "\n")
    assert read_benchmarks([path])[0].items[0].texts == ("one", "two", "three")
    assert read_benchmarks([path], ["frage"])[0].items[0].texts == ("four",)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "exam.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match="two benchmark files are called exam"):
        read_benchmarks([path, tmp_path / "b" / "exam.jsonl"])


@pytest.mark.shared_data
def test_real_benchmarks_find_themselves_and_not_the_real_corpus(shared_data: Path) -> None:
    pool = Pool(exams := read_benchmarks(sorted((shared_data / "benchmarks").glob("*.jsonl"))))
    items = [(item, text) for exam in exams for item in exam.items for text in item.texts]
    found = pool.find([text for _, text in items])
    missed = [
        item for k, (item, _) in enumerate(items)
        if not any((m.benchmark, m.number) == (item.benchmark, item.number) for m in found.get(k, []))
    ]  # fmt: skip
    assert not missed
    documents = [json.loads(line)["text"] for line in (shared_data / "corpus/web_en.jsonl").open(encoding="utf-8")]
    assert pool.find(documents) == {}
