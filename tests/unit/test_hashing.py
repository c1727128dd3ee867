"""Hashes, seeds and fingerprints: the same on every machine, in every order, and different when the content is."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from align.core.hashing import FileHashes, canonical_json, content_id, derive_seed, file_sha256, fingerprint, unit_interval


def test_canonical_json_ignores_the_order_of_keys_and_keeps_korean() -> None:
    text = canonical_json({"b": [1, 2.5, None], "a": {"y": "꿀", "x": True}})
    assert text == '{"a":{"x":true,"y":"꿀"},"b":[1,2.5,null]}'
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_refuses_what_json_lacks(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"loss": [value]})


def test_ids_are_pinned_and_tell_parts_apart() -> None:
    # `printf '["document","꿀"]' | sha256sum`. A changed id would orphan every run folder that exists.
    assert content_id("document", "꿀") == "a2cf537bca294a11"
    assert fingerprint(["x", 1]) == "59402b0471b497c05ad760c869c511f9"
    assert content_id("a", "bc") != content_id("ab", "c") != content_id("abc")
    assert content_id("1") != content_id(1)


def test_seeds_depend_on_what_the_draw_is_for_and_on_nothing_else() -> None:
    keys = [("sample", f"prompt-{i}") for i in range(500)]
    first = {key: derive_seed(17, *key) for key in keys}
    random.Random(0).shuffle(keys)
    assert {key: derive_seed(17, *key) for key in reversed(keys)} == first
    assert len(set(first.values())) == 500
    assert all(0 <= seed < 2**31 for seed in first.values())
    assert derive_seed(18, *keys[0]) != first[keys[0]]
    assert derive_seed(17, "sample", "1") != derive_seed(17, "sample", 1)


def test_seeds_are_the_same_in_another_process() -> None:
    code = "from align.core.hashing import derive_seed, unit_interval; print(derive_seed(17, 'a', 2), unit_interval(3, 'b'))"
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    assert out.split() == [str(derive_seed(17, "a", 2)), str(unit_interval(3, "b"))]


def test_unit_interval_is_even() -> None:
    values = [unit_interval(17, "split", str(i)) for i in range(2000)]
    assert 0 <= min(values) < max(values) < 1
    tenths = [sum(1 for v in values if i / 10 <= v < (i + 1) / 10) for i in range(10)]
    assert all(140 < count < 260 for count in tenths)  # 200 expected, standard deviation 13


def test_file_hash_reads_past_its_block(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x" * (1 << 20) + b"a")
    first = file_sha256(path)
    path.write_bytes(b"x" * (1 << 20) + b"b")
    assert file_sha256(path) != first


def test_cache_reads_a_file_once_and_again_after_one_changed_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = tmp_path / "model.safetensors", tmp_path / "run" / ".hashes.json"
    path.write_bytes(b"aaaa")
    reads: list[Path] = []

    def counted(path: Path) -> str:
        reads.append(path)
        return file_sha256(path)

    monkeypatch.setattr("align.core.hashing.file_sha256", counted)
    first = FileHashes(cache).sha256(path)
    assert FileHashes(cache).sha256(path) == first == file_sha256(path)
    assert len(reads) == 1, "a second process reads the cache"
    stat = path.stat()
    path.write_bytes(b"aaab")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert FileHashes(cache).sha256(path) == file_sha256(path) != first


def test_cache_sees_a_change_that_keeps_size_and_modification_time(tmp_path: Path) -> None:
    path, cache = tmp_path / "model.safetensors", tmp_path / ".hashes.json"
    path.write_bytes(b"aaaa")
    stat = path.stat()
    first = FileHashes(cache).sha256(path)
    new = tmp_path / "new"
    new.write_bytes(b"aaab")
    while new.stat().st_ctime_ns == stat.st_ctime_ns:  # the kernel's clock for files ticks every few milliseconds
        new.write_bytes(b"aaab")
    os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    new.replace(path)  # what `rsync -t` does
    assert FileHashes(cache).sha256(path) != first


def test_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    path, cache = tmp_path / "a", tmp_path / ".hashes.json"
    path.write_text("a")
    cache.write_text('{"cut')
    assert FileHashes(cache).sha256(path) == file_sha256(path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors", "README.md"):
        (folder / name).write_text(f"content of {name}")
    return folder


def test_model_fingerprint_ignores_path_and_readme(model: Path, tmp_path: Path) -> None:
    hashes = FileHashes(tmp_path / "cache.json")
    first = hashes.model(model)
    other = tmp_path / "elsewhere" / "copy"
    shutil.copytree(model, other)
    (other / "README.md").write_text("other words")
    (other / "trainer_state.json").write_text("{}")
    assert hashes.model(other) == first


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"])
def test_model_fingerprint_covers_what_decides_answers(model: Path, tmp_path: Path, name: str) -> None:
    first = FileHashes(tmp_path / "cache-1.json").model(model)
    (model / name).write_text("other content")
    second = FileHashes(tmp_path / "cache-2.json").model(model)
    (model / name).unlink()
    assert len({first, second, FileHashes(tmp_path / "cache-3.json").model(model)}) == 3


@pytest.mark.parametrize(
    ("replaced", "name"),
    [
        ("tokenizer.json", "vocab.json"),
        ("tokenizer.json", "merges.txt"),
        ("tokenizer.json", "tokenizer.model"),
        ("model.safetensors", "pytorch_model.bin"),
        ("README.md", "model-00002-of-00002.safetensors"),
        ("README.md", "generation_config.json"),
        ("README.md", "adapter_config.json"),
    ],
)
def test_model_fingerprint_covers_other_formats(model: Path, tmp_path: Path, replaced: str, name: str) -> None:
    (model / replaced).unlink()
    (model / name).write_text("one")
    first = FileHashes(tmp_path / "cache-1.json").model(model)
    (model / name).write_text("two!")
    assert FileHashes(tmp_path / "cache-2.json").model(model) != first
