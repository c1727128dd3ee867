"""Artifacts: counts that add up, resume by shard, stale results dropped, and a manifest that comes last."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from align.core import artifact as module
from align.core.artifact import Artifact, Manifest, StepFolder, write_json, write_text
from align.core.errors import StepError, UserError
from align.core.rows import ROW_TYPES, Document, Instruction, Reject, Topic, arrow_schema, from_records, to_table


def document(number: int, text: str = "") -> Document:
    return Document(id=f"d{number}", text=text or f"꿀 {number}", lang="ko", source="test", license="CC0-1.0", pii="")


def reject(number: int, reason: str = "too_short") -> Reject:
    return Reject(id=f"r{number}", reason=reason, raw="짧다 \u2028 <b>")


def open_folder(folder: Path, fingerprint: str = "f1", inputs: dict[str, str] | None = None) -> StepFolder:
    return StepFolder(folder, step="corpus", fingerprint=fingerprint, inputs=inputs or {}, row_type=Document, seed=17)


def finished(folder: Path) -> Manifest:
    out = open_folder(folder, inputs={"above": "digest"})
    out.write_all([document(1), document(2)], [reject(1), reject(2, "license"), reject(3)], asked=5)
    return out.finish({"cut": 1})


def test_rows_rejects_and_manifest_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    written = finished(folder)
    read = Artifact(folder)
    assert read.manifest == written == Manifest.load(folder)
    assert read.rows(Document) == [document(1), document(2)]
    assert read.rejects() == [reject(1), reject(2, "license"), reject(3)]
    assert (written.asked, written.rows, written.rejects) == (5, 2, {"license": 1, "too_short": 2})
    assert (written.inputs, written.metrics) == ({"above": "digest"}, {"cut": 1})
    assert (written.seed, written.row_type) == (17, "Document")
    assert set(written.files) == {"data/train-00000-of-00001.parquet", "rejects/part-00000.parquet"}
    assert not (folder / "_work").exists()
    with pytest.raises(UserError, match="holds Document rows, not Instruction"):
        read.rows(Instruction)


def test_rows_that_do_not_add_up_stop_the_step(tmp_path: Path) -> None:
    out = open_folder(tmp_path / "corpus")
    shards = out.pending(3)
    with pytest.raises(StepError, match="3 asked, 1 kept and 1 rejected do not add up"):
        out.write_shard(next(shards).index, [document(1)], [reject(1)], asked=3)
    assert not list((tmp_path / "corpus").rglob("*.parquet"))


def test_an_id_that_appears_twice_stops_the_step(tmp_path: Path) -> None:
    out = open_folder(tmp_path / "corpus")
    with pytest.raises(StepError, match="id d1 appears twice"):
        out.write_all([document(1), document(1, "other")], [], asked=2)


def test_an_id_in_two_shards_stops_the_step_before_its_manifest(tmp_path: Path) -> None:
    out = open_folder(tmp_path / "corpus")
    for shard in out.pending(4, 2):
        out.write_shard(shard.index, [document(shard.index), document(7, str(shard.index))], [], asked=2)
    with pytest.raises(StepError, match="id d7 appears in two shards"):
        out.finish()
    assert Manifest.load(out.folder) is None


def test_shards_cover_the_work_once(tmp_path: Path) -> None:
    out = open_folder(tmp_path / "corpus")
    assert [(s.index, s.start, s.stop) for s in out.pending(7, 3)] == [(0, 0, 3), (1, 3, 6), (2, 6, 7)]
    assert [(s.index, s.start, s.stop) for s in out.pending(6, 3)] == [(0, 0, 3), (1, 3, 6)]
    assert [(s.start, s.stop) for s in out.pending(0, 3)] == [(0, 0)], "no work still makes an empty artifact"


def test_a_finished_shard_is_not_pending_again_after_a_kill(tmp_path: Path) -> None:
    items = [document(i) for i in range(5)]
    out = open_folder(tmp_path / "corpus")
    shards = out.pending(5, 2)
    for _ in range(2):
        shard = next(shards)
        out.write_shard(shard.index, items[shard.start : shard.stop], [], asked=shard.stop - shard.start)
    out.journal("calls").put("a", 1)
    assert Manifest.load(out.folder) is None, "there is no manifest before the step is finished"
    # The process dies here. The next one opens the same folder.
    again = open_folder(tmp_path / "corpus")
    assert [s.index for s in again.pending(5, 2)] == [2]
    assert again.journal("calls").get("a") == 1
    for shard in again.pending(5, 2):
        again.write_shard(shard.index, items[shard.start : shard.stop], [], asked=shard.stop - shard.start)
    assert again.finish().rows == 5
    assert Artifact(again.folder).rows(Document) == items


def test_seconds_of_an_interrupted_run_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    out = open_folder(tmp_path / "corpus")
    now = 130.0
    shards = out.pending(2, 1)
    out.write_shard(next(shards).index, [document(0)], [], asked=1)
    now = 1000.0
    again = open_folder(tmp_path / "corpus")
    now = 1005.0
    for shard in again.pending(2, 1):
        again.write_shard(shard.index, [document(1)], [], asked=1)
    assert again.finish().seconds == 35.0


@pytest.mark.parametrize("was_finished", [True, False])
def test_a_stale_result_is_wiped(tmp_path: Path, was_finished: bool) -> None:
    folder = tmp_path / "corpus"
    if was_finished:
        finished(folder)
    else:
        out = open_folder(folder)
        shards = out.pending(4, 2)
        out.write_shard(next(shards).index, [document(1), document(2)], [], asked=2)
        out.journal("calls").put("a", 1)
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text("stale")
    new = open_folder(folder, fingerprint="f2")
    assert [s.index for s in new.pending(4, 2)] == [0, 1]
    assert "a" not in new.journal("calls")
    assert not (folder / "model").exists() and not (folder / "data").exists() and Manifest.load(folder) is None


def test_nothing_but_the_manifest_says_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = open_folder(tmp_path / "corpus")
    out.write_all([document(1)], [], asked=1)

    def crash(path: Path, value: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_json", crash)
    with pytest.raises(KeyboardInterrupt):
        out.finish()
    monkeypatch.undo()
    assert Manifest.load(out.folder) is None
    with pytest.raises(UserError, match="not a finished step"):
        Artifact(out.folder)
    again = open_folder(tmp_path / "corpus")
    assert list(again.pending(1, 1)) == []
    assert again.finish().rows == 1


def test_counts_of_shards_are_checked_again_at_the_end(tmp_path: Path) -> None:
    out = open_folder(tmp_path / "corpus")
    out.write_all([document(1)], [], asked=1)
    write_json(out.work / "shard-00000.json", {"asked": 2, "rows": 1, "rejects": {}})
    with pytest.raises(StepError, match="2 rows in, 1 out and 0 rejected"):
        out.finish()


def test_datasets_and_pandas_open_the_folder_and_see_the_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas
    from datasets import load_dataset

    folder = tmp_path / "taxonomy"
    out = open_folder(folder)
    rows = [document(i, f"텍스트 {i} \U0001f642") for i in range(5)]
    for shard in out.pending(5, 2):
        part = rows[shard.start : shard.stop]
        out.write_shard(shard.index, part, [reject(shard.index)], asked=len(part) + 1)
    topic = Topic(id="t", parent_id="", path="t", name="t", level="domain", description="", lang="en", count=3)
    pq.write_table(to_table(Topic, [topic]), folder / "topics.parquet")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    out.finish()
    assert {p.name for p in folder.iterdir()} == {"data", "rejects", "manifest.json", "topics.parquet", "model"}
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    assert loaded["train"].to_list() == [row.__dict__ for row in rows]
    assert pandas.read_parquet(folder / "data").to_dict("records") == [row.__dict__ for row in rows]


def test_verify_notices_a_changed_byte_and_a_missing_file(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    finished(folder)
    assert Artifact(folder).verify() == []
    path = folder / "data/train-00000-of-00001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert Artifact(folder).verify() == ["data/train-00000-of-00001.parquet"]
    (folder / "rejects/part-00000.parquet").unlink()
    assert len(Artifact(folder).verify()) == 2


def test_digest_is_of_content_not_of_time_or_place(tmp_path: Path) -> None:
    one, two = finished(tmp_path / "a"), finished(tmp_path / "b")
    assert one.digest() == two.digest()
    other = open_folder(tmp_path / "c")
    other.write_all([document(1), document(3)], [], asked=2)
    assert other.finish().digest() != one.digest()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    finished(folder)
    (folder / "data/train-00000-of-00001.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet: cannot be read"):
        Artifact(folder).rows(Document)


@pytest.mark.parametrize("text", ['{"step": "corpus", "fing', "[]", '{"unknown": 1}', "{}"])
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: not a manifest"):
        Manifest.load(tmp_path)


def test_a_file_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match="not a finished step"):
            Artifact(folder)


def test_a_full_disk_leaves_the_old_file_and_no_half_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new" * 1000)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_write_json_refuses_nan_and_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_json(path, {"name": "꿀"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "꿀"} and "꿀" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "꿀"}


@pytest.mark.parametrize("row_type", ROW_TYPES.values(), ids=list(ROW_TYPES))
def test_every_row_type_survives_parquet(row_type: type, tmp_path: Path) -> None:
    samples: dict[str, Any] = {
        "str": "꿀\n\U0001f642", "int": 3, "float": 0.1, "list[int]": [0, 2**31 - 1],
        "list[Message]": [{"role": "user", "content": "왜?"}],
    }  # fmt: skip
    row = row_type(**{f.name: samples[str(f.type)] for f in row_type.__dataclass_fields__.values()})  # type: ignore[attr-defined]
    pq.write_table(to_table(row_type, [row]), tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet")
    assert from_records(row_type, table.to_pylist(), "here") == [row]
    assert not any(field.nullable for field in arrow_schema(row_type))


def test_a_missing_column_is_named_with_what_is_there() -> None:
    with pytest.raises(UserError, match="rows: row 1 lacks column reason, raw, topic_id; it has id, other"):
        from_records(Reject, [{"id": "a", "other": 1}], "rows")


def test_a_shard_that_was_half_written_is_not_there_when_work_goes_on(tmp_path: Path) -> None:
    def opened() -> StepFolder:
        return StepFolder(tmp_path / "a", step="s", fingerprint="f", inputs={}, row_type=Reject, seed=1)

    out = opened()
    for shard in out.pending(4, 2):
        rows = [Reject(id=f"{shard.index}{i}", reason="r", raw="") for i in range(2)]
        out.write_shard(shard.index, rows[:1], rows[1:], asked=2)
    # Killed after the second shard's files and before its marker.
    (out.work / "shard-00001.json").unlink()
    again = opened()
    assert [path.name for path in again.folder.glob("*/*.parquet")] == ["train-00000-of-00002.parquet", "part-00000.parquet"]
    assert [shard.index for shard in again.pending(4, 2)] == [1]
