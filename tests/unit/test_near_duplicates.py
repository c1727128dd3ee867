"""Near-duplicates: shingles and estimates against exact ones, candidates, clusters, two languages, hostile texts, cost."""

from __future__ import annotations

import hashlib
import json
import random
import re
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_gen import near_duplicates as nd
from data_gen.normal_form import normal_form

HONEY = (
    "Honey keeps for years because its water content is low and bacteria can not grow in it. Bees make it from the "
    "nectar of flowers, which they carry to the hive in a second stomach. There other bees take it over, add enzymes, "
    "and fan it with their wings until most of the water is gone. A colony needs about twenty kilograms of honey to live "
    "through the winter, when no plant is in flower."
)
KOREAN = (
    "꿀은 수분이 적어 세균이 자라지 못하므로 여러 해 동안 상하지 않는다. 꿀벌은 꽃에서 모은 꿀로 이것을 만들고 두 번째 위에 "
    "담아 벌집으로 나른다. 벌집에서는 다른 벌이 그것을 받아 효소를 더하고 날개로 바람을 일으켜 물을 거의 다 날려 보낸다. "
    "한 무리의 벌이 꽃이 피지 않는 겨울을 나려면 꿀이 이십 킬로그램쯤 필요하다. 그래서 벌을 치는 사람은 가을에 꿀을 모두 "
    "거두지 않고 벌이 먹을 만큼 남겨 둔다. 봄이 오면 벌은 다시 들로 나가 사과와 배와 유채의 꽃을 찾아다닌다."
)


def exact_set(text: str) -> set[str]:
    """The shingles as strings, one by one; a short text is no shingle of another."""
    normal = normal_form(text)
    if len(normal) < 5:
        return {f"whole {normal or text}"}
    found = (normal[i : i + (3 if "가" <= c <= "힣" else 5)] for i, c in enumerate(normal))
    return {s for s in found if len(s) == (3 if "가" <= s[0] <= "힣" else 5)}


def jaccard(a: str, b: str) -> float:
    one, other = exact_set(a), exact_set(b)
    return len(one & other) / len(one | other)


def stored(folder: Path, rows: np.ndarray, cuts: Sequence[int] = ()) -> list[Path]:
    files = []
    for k, part in enumerate(np.split(rows, list(cuts))):
        files.append(folder / f"{k:03d}.npy")
        np.save(files[-1], part)
    return files


def clusters_of(folder: Path, texts: Sequence[str], threshold: float = 0.7) -> list[int]:
    return nd.clusters(stored(folder, nd.signatures(texts)), threshold=threshold, work=folder).tolist()


def agreeing(rng: np.random.Generator, row: np.ndarray, similarity: float) -> np.ndarray:
    """A row in which each value is the other's with that probability."""
    return np.where(rng.random(row.shape) < similarity, row, rng.integers(0, 2**32, row.shape, np.uint32)).astype(np.uint32)


def passages(path: Path, size: int) -> list[tuple[int, str]]:
    """(document, about `size` characters of it)."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        part = ""
        for sentence in re.split(r"(?<=[.!?])\s+", json.loads(line)["text"]):
            part += sentence + " "
            if len(part) >= size:
                found.append((number, part))
                part = ""
    return found


# Shingles and signatures


@settings(deadline=None)  # the first call makes a table
@example(["aaaab", "aaaac", "가나다b", "가나다cd라"])
@given(st.lists(st.text(st.sampled_from("abA 가나다.é\nß\x00\ud800😀\u1112\u1161\u11ab")), max_size=6))
def test_shingles_are_those_of_the_normal_form(texts: list[str]) -> None:
    hashes, offsets = nd.shingle_hashes(texts)
    assert offsets[0] == 0 and offsets[-1] == len(hashes) and (np.diff(offsets.astype(np.int64)) > 0).all()
    found = [set(part.tolist()) for part in np.split(hashes, offsets[1:-1].astype(np.int64))] if texts else []
    expected = [exact_set(text) for text in texts]
    for i in range(len(texts)):
        for j in range(i + 1):
            assert len(found[i] & found[j]) == len(expected[i] & expected[j])


def test_shingles_do_not_depend_on_where_blocks_end(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = nd.shingle_hashes([HONEY, KOREAN])[0]
    monkeypatch.setattr(nd, "_BATCH_CHARS", 7)
    assert nd.shingle_hashes([HONEY, KOREAN])[0].tolist() == whole.tolist()


def test_signatures_do_not_change() -> None:
    """Stored signatures would be useless if another machine or version of rensa gave others."""
    found = nd.signatures([HONEY, KOREAN, "꿀 honey", "", "?!"])
    assert found.dtype == np.uint32 and found.shape == (5, 256)
    assert hashlib.sha256(found.astype("<u4").tobytes()).hexdigest()[:16] == "e0ddb6c0a50468f2"
    assert nd.identity() != nd.identity(128)


def test_a_signature_does_not_depend_on_the_texts_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [HONEY, KOREAN, "", HONEY * 40, "꿀"]
    together = nd.signatures(texts)
    assert np.array_equal(together, np.concatenate([nd.signatures([text]) for text in texts]))
    monkeypatch.setattr(nd, "_BATCH_CHARS", 1000)
    assert np.array_equal(together, nd.signatures(texts))


@pytest.mark.parametrize("text", [HONEY, KOREAN], ids=["en", "ko"])
def test_estimates_are_unbiased_and_within_four_standard_errors(text: str) -> None:
    rng, words = random.Random(1), (text + " " + text[::-1]).split()
    errors, sizes = [], []
    for _ in range(400):
        common, a, b = (rng.choices(words, k=rng.randrange(1, 60)) for _ in range(3))
        pair = [" ".join(common + a), " ".join(common + b)]
        exact = jaccard(*pair)
        one, other = nd.signatures(pair)
        errors.append(np.mean(one == other) - exact)
        sizes.append(np.sqrt(exact * (1 - exact) / nd.PERMUTATIONS))
    assert (np.abs(errors) <= 4 * np.array(sizes) + 1e-12).all()
    assert abs(np.sum(errors)) <= 4 * np.sqrt(np.sum(np.square(sizes)))
    assert np.sum(np.square(errors)) > 0.25 * np.sum(np.square(sizes))  # not by comparing a text with itself


# Candidates


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.95, 1.0])
def test_bands_find_what_is_above_the_threshold(threshold: float) -> None:
    bands, rows = nd.bands_and_rows(threshold, 256)
    assert bands * rows <= 256
    above = min(threshold + 0.05, (1 + threshold) / 2)
    assert 1 - (1 - above**rows) ** bands >= 0.99
    more = rows + 1
    assert threshold == 1 or 1 - (1 - above**more) ** (256 // more) < 0.99


def test_candidates_follow_the_curve(tmp_path: Path) -> None:
    rng, count = np.random.default_rng(2), 2000
    bands, rows = nd.bands_and_rows(0.7, 256)
    for similarity in (0.3, 0.5, 0.6, 0.7, 0.75):
        first = rng.integers(0, 2**32, (count, 256), np.uint32)
        both = np.concatenate([first, agreeing(rng, first, similarity)])
        table = np.stack([*nd._band_hashes(nd._Signatures(stored(tmp_path, both)), bands, rows, tmp_path / "bands")])
        share = (table[:, :count] == table[:, count:]).any(axis=0).mean()
        expected = 1 - (1 - similarity**rows) ** bands
        assert abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / count) + 1 / count


def test_equal_bands_are_no_duplicates_by_themselves(tmp_path: Path) -> None:
    rows = np.random.default_rng(3).integers(0, 2**32, (50, 256), np.uint32)
    rows[:, :35] = 7  # five whole bands
    assert nd.clusters(stored(tmp_path, rows), threshold=0.7).tolist() == list(range(50))


@pytest.mark.parametrize(
    "similar",
    ["aa", "a...a", ".aa", ".a..a", "..a.a", "...a.a", "..........aa", "aaaaaaaa.b.b", "ababab.cc.", "a.b.b.......a"],
)
def test_similar_documents_that_do_not_come_first_in_their_bucket_are_found(tmp_path: Path, similar: str) -> None:
    """Equal letters are similar; the expected is the first of each letter, and every dot alone."""
    rng = np.random.default_rng(4)
    originals = {letter: rng.integers(0, 2**32, 256, np.uint32) for letter in "abc"}
    rows = np.stack([agreeing(rng, originals.get(c, originals["a"]), 0.95 if c in originals else 0) for c in similar])
    sets = nd._Sets(nd._Signatures(stored(tmp_path, rows)), 0.7)
    sets.join_similar(np.arange(len(similar)), np.zeros(len(similar), np.uint32))
    expected = [similar.index(c) if c in originals else k for k, c in enumerate(similar)]
    assert sets.roots(np.arange(len(similar))).tolist() == expected


def test_buckets_are_apart(tmp_path: Path) -> None:
    rows = np.full((4, 256), 7, np.uint32)
    sets = nd._Sets(nd._Signatures(stored(tmp_path, rows)), 0.7)
    sets.join_similar(np.array([0, 2, 1, 3]), np.array([1, 1, 2, 2], np.uint32))
    assert sets.roots(np.arange(4)).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("equal", [True, False])
def test_a_huge_bucket_costs_linear_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, equal: bool) -> None:
    count, compared = 20_000, 0
    rows = np.random.default_rng(5).integers(0, 2**32, (count, 32), np.uint32)
    bands, height = nd.bands_and_rows(0.7, 32)
    rows[:, : 32 if equal else height] = 7
    original = nd._Signatures.rows

    def counted(self: Any, places: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(places)
        return original(self, places)

    monkeypatch.setattr(nd._Signatures, "rows", counted)
    found = nd.clusters(stored(tmp_path, rows), threshold=0.7)
    assert found.tolist() == ([0] * count if equal else list(range(count)))
    # Two signatures a comparison, and one to make its bands; chance puts few into the other buckets.
    assert compared <= (3 * count if equal else 2 * (nd.LEADERS + 1) * count + count + 1000 * bands)


def test_two_hundred_thousand_equal_texts(tmp_path: Path) -> None:
    files = stored(tmp_path, np.repeat(nd.signatures([KOREAN], 32), 200_000, axis=0), [50_000])
    assert not nd.clusters(files, threshold=0.7).any()


def test_memory_stays_below_the_signatures(tmp_path: Path) -> None:
    count = 300_000
    files = stored(tmp_path, np.random.default_rng(6).integers(0, 2**32, (count, 64), np.uint32), [count // 2])
    tracemalloc.start()
    try:
        nd.clusters(files, threshold=0.7, work=tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30 * count + 30 * 2**20 < count * 64 * 4


# Clusters


def test_the_first_of_a_cluster_stands_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    texts = ["Nothing of the kind, really.", KOREAN, HONEY, KOREAN + " 끝.", HONEY.upper(), KOREAN.replace(" ", ""), "꿀"]
    assert clusters_of(tmp_path, texts) == [0, 1, 2, 1, 2, 1, 6]
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".npy"], "work is left empty"


def test_where_files_are_cut_makes_no_difference(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    base = rng.integers(0, 2**32, (60, 256), np.uint32)
    rows = agreeing(rng, base[rng.integers(0, 60, 300)], 0.85)
    rows[:, :7] = base[0, :7]  # and all in one bucket
    whole = nd.clusters(stored(tmp_path, rows), threshold=0.7)
    assert 5 < len(set(whole.tolist())) < 295
    assert (whole[whole] == whole).all() and (whole <= np.arange(300)).all()
    for cuts in ([150], [0, 0, 1, 299, 300], list(range(300))):
        assert np.array_equal(nd.clusters(stored(tmp_path, rows, cuts), threshold=0.7), whole)


def test_what_is_similar_to_either_is_in_the_cluster(tmp_path: Path) -> None:
    row = np.arange(256, dtype=np.uint32)
    chain = np.stack([row, row, row])
    chain[0, :50] += 1000
    chain[2, -50:] += 1000
    assert np.mean(chain[0] == chain[2]) < 0.7
    assert nd.clusters(stored(tmp_path, chain), threshold=0.7).tolist() == [0, 0, 0]


def test_no_files_no_documents_one_document(tmp_path: Path) -> None:
    assert nd.signatures([]).shape == (0, 256)
    assert nd.clusters([], threshold=0.7).shape == (0,)
    nd.write_signatures(tmp_path / "none.npy", [])
    assert nd.clusters([tmp_path / "none.npy"], threshold=0.7).shape == (0,)
    nd.write_signatures(tmp_path / "one.npy", [HONEY])
    assert nd.clusters([tmp_path / "none.npy", tmp_path / "one.npy"], threshold=0.7).tolist() == [0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["none.npy", "one.npy"]


@pytest.mark.parametrize("threshold", [0, -0.1, 1.1, float("nan")])
def test_bad_thresholds_are_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        nd.clusters([], threshold=threshold)


@pytest.mark.parametrize("other", [np.zeros((2, 128), np.uint32), np.zeros((2, 256), np.int64), np.zeros(256, np.uint32)])
def test_files_that_do_not_fit_are_refused(tmp_path: Path, other: np.ndarray) -> None:
    nd.write_signatures(tmp_path / "a.npy", [HONEY])
    np.save(tmp_path / "b.npy", other)
    with pytest.raises(ValueError, match=r"b\.npy"):
        nd.clusters([tmp_path / "a.npy", tmp_path / "b.npy"], threshold=0.7)


# Languages


def test_particles_and_spacing(tmp_path: Path) -> None:
    particles = (
        KOREAN.replace("꿀은", "꿀이")
        .replace("꿀벌은", "꿀벌이")
        .replace("벌이 그것을", "벌은 그걸")
        .replace("봄이", "봄은")
    )
    assert sum(a != b for a, b in zip(KOREAN.split(), particles.split(), strict=True)) >= 4
    spacing = KOREAN.replace("자라지 못하므로", "자라지못하므로").replace("두 번째", "두번째")
    other = (
        "사과는 물기가 많아 세균이 자라기 쉬우므로 몇 주 만에 상한다. 농부는 나무에서 딴 사과를 상자에 담아 창고로 나른다."
    )
    assert clusters_of(tmp_path, [KOREAN, other, particles, spacing]) == [0, 1, 0, 0]


@pytest.mark.parametrize("text", [HONEY, KOREAN], ids=["en", "ko"])
def test_order_of_sentences_and_of_words(tmp_path: Path, text: str) -> None:
    sentences = text.split(". ")
    words = text.split()
    random.Random(0).shuffle(words)
    assert clusters_of(tmp_path, [text, ". ".join(sentences[::-1]), " ".join(words)]) == [0, 0, 2]


@pytest.mark.shared_data
@pytest.mark.parametrize("lang", ["en", "ko"])
def test_real_documents(tmp_path: Path, shared_data: Path, lang: str) -> None:
    rng = random.Random(8)
    every = passages(shared_data / f"corpus/web_{lang}.jsonl", 900 if lang == "en" else 450)
    rng.shuffle(every)
    # One of a document and one more of the same: of one subject, and no duplicates.
    originals = [text for _, text in every[:600]]
    changed = []
    for text in originals[:200]:
        words = text.split()
        for _ in range(max(1, len(words) // 40)):
            words[rng.randrange(len(words))] = rng.choice(rng.choice(originals).split())
        changed.append(" ".join(words))
    texts = originals + changed
    found = clusters_of(tmp_path, texts)
    similar = [jaccard(a, b) for a, b in zip(originals, changed, strict=False)]
    assert sum(s >= 0.78 for s in similar) >= 150
    for k, similarity in enumerate(similar):
        assert found[600 + k] == found[k] or similarity < 0.78
    together = [(found[k], k) for k in range(800) if found[k] != k]
    wrong = [(a, b) for a, b in together if jaccard(texts[a], texts[b]) < 0.6]
    assert len(together) >= 150 and wrong == []
    documents = [number for number, _ in every[:600]]
    assert len(set(documents)) < 500, "the subjects are the same ones"


# Hostile texts


def test_ten_megabytes_in_a_line(tmp_path: Path) -> None:
    rng = random.Random(9)
    long = "".join(rng.choices("abcdefghij가나다라마바사 ", k=10_000_000))
    assert clusters_of(tmp_path, [long, HONEY, long[:-50_000], long[:2_000_000]]) == [0, 1, 0, 3]


def test_odd_characters(tmp_path: Path) -> None:
    texts = [
        "\x00", "\ud800", "", "\x00" + HONEY, HONEY.replace(" ", "\ud83d "), HONEY.replace("e", "e\x01"), "😀" * 9, "\udfff",
        "!!!", "꿀", "꿀!", "한", "한", "\ud800", "a" * 100_000, "a" * 10, "", "ab" * 9, "ba" * 9,
    ]  # fmt: skip
    expected = list(range(len(texts)))
    expected[4] = expected[5] = 3
    expected[10], expected[12], expected[13], expected[15], expected[16] = 9, 11, 1, 14, 2
    expected[18] = 17  # "ababa" and "babab", both of both
    assert clusters_of(tmp_path, texts) == expected
