"""Reading users' JSON Lines: every bad line named with its reason and place, and nothing dropped in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.core.errors import UserError
from align.core.hashing import content_id
from align.core.records import expand_paths, read_jsonl


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_each_line_is_a_record_or_a_reason(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        b'\xef\xbb\xbf{"text": "with a byte order mark"}',
        b'{"text": "cut',
        "{'text': '파이썬'}".encode(),
        b"",
        b"  \r",
        '{"text": "꿀"}'.encode("cp949"),
        b"[1, 2]",
        b'"text"',
        b"null",
        '{"text": "꿀\u2028은"}\r'.encode(),
        b"[" * 100_000,
        b'{"text": "half an emoji \\ud83d"}',
        b'{"text": "a whole one \\ud83d\\ude42"}',
    )
    lines = list(read_jsonl(path))
    assert [(line.where.rpartition(":")[2], line.reason) for line in lines] == [
        ("1", ""), ("2", "malformed_json"), ("3", "malformed_json"), ("6", "not_utf8"), ("7", "not_an_object"),
        ("8", "not_an_object"), ("9", "not_an_object"), ("10", ""), ("11", "malformed_json"), ("12", "half_a_character"),
        ("13", ""),
    ]  # fmt: skip
    assert lines[0].record == {"text": "with a byte order mark"}
    assert lines[7].record == {"text": "꿀\u2028은"}
    assert all(line.where.startswith(f"{path}:") for line in lines)
    assert lines[1].raw == '{"text": "cut' and "�" in lines[3].raw
    assert all(len(line.raw) <= 2000 for line in lines)
    for line in lines:
        content_id(line.where, line.raw, line.record)  # whatever comes through can be written and hashed


def test_a_byte_order_mark_counts_in_the_first_line_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"{}", b"\xef\xbb\xbf{}")
    assert [line.reason for line in read_jsonl(path)] == ["", "malformed_json"]


def test_an_empty_file_has_no_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    assert list(read_jsonl(tmp_path / "a.jsonl")) == []


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.jsonl", tmp_path):
        with pytest.raises(UserError, match=f"^{path}: "):
            list(read_jsonl(path))


def test_patterns_give_each_file_once_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "deep/er/c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "folder.jsonl").mkdir()
    paths = [str(tmp_path / "b.jsonl"), str(tmp_path / "*.jsonl"), str(tmp_path / "**/*.jsonl")]
    assert [p.relative_to(tmp_path).as_posix() for p in expand_paths(paths, "corpus.paths")] == [
        "b.jsonl", "a.jsonl", "deep/er/c.jsonl",
    ]  # fmt: skip


def test_a_pattern_that_names_no_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for pattern in ("*.jsonl", "folder"):
        with pytest.raises(UserError, match=r"^corpus\.paths: .* names no file$"):
            expand_paths([str(tmp_path / pattern)], "corpus.paths")
