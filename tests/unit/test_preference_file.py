"""Preference files: every shape and every fault of a line, subsets and margins, and the three formats."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.core.errors import UserError
from align.core.hashing import unit_interval
from reward.preference_file import pairs_from_file


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n\n", encoding="utf-8")
    return path


def text_row(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"Why {number}?", "chosen": "Because.", "rejected": "No.", **more}


def test_file_with_every_shape_and_every_fault(tmp_path: Path) -> None:
    user, good, bad = said("user", "Why?"), said("assistant", "Because."), said("assistant", "No.")
    lines = [
        {"prompt": [user], "chosen": [good], "rejected": [bad], "extra": 1},
        {"prompt": "Why not?", "chosen": "그래서 그렇습니다.", "rejected": "No."},
        {"chosen": [user, good, user, good], "rejected": [user, good, user, bad]},  # whole dialogues
        {"prompt": "Why so?", "chosen": [said("user", "Why so?"), good], "rejected": [said("user", "Why so?"), bad]},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        "{broken",
        [1, 2],
        {"prompt": [user], "chosen": [good]},
        {"chosen": "a", "rejected": "b"},
        {"prompt": [user], "chosen": [{"role": "assistant"}], "rejected": [bad]},
        {"prompt": "Else?", "chosen": [user, good], "rejected": [user, bad]},
        {"prompt": [user], "chosen": [said("user", "x")], "rejected": [bad]},
        {"prompt": [user], "chosen": " ", "rejected": "b"},
        {"prompt": [user], "chosen": "b", "rejected": "b"},
        {"chosen": [good], "rejected": [bad]},
        '{"prompt": "half \\ud83d", "chosen": "a", "rejected": "b"}',
    ]
    path = write(tmp_path / "pairs.jsonl", lines)
    with path.open("ab") as handle:
        handle.write(b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}\n')
    pairs, rejects = pairs_from_file(path, run_seed=3, held_out=0.5)
    assert len(pairs) + len(rejects) == len(lines) + 1
    assert [p.prompt for p in pairs] == [[user], [said("user", "Why not?")], [user, good, user], [said("user", "Why so?")]]
    assert all(p.chosen[0]["role"] == p.rejected[0]["role"] == "assistant" and len(p.chosen) == 1 for p in pairs)
    assert [p.lang for p in pairs] == ["en", "ko", "en", "en"]
    assert {(p.subset, p.margin) for p in pairs} == {("file", 0.0)}
    assert [r.reason for r in rejects] == [
        "duplicate_pair", "not_json", "not_an_object", "missing_column", "no_prompt", "not_text_or_messages",
        "prompt_differs_from_dialogue", "not_one_assistant_turn", "empty_chosen", "chosen_equals_rejected", "no_prompt",
        "half_a_character", "not_utf8",
    ]  # fmt: skip
    assert rejects[1].raw == "{broken" and json.loads(rejects[0].raw) == lines[4] and len({r.id for r in rejects}) == 13
    for pair in pairs:
        assert pair.split == ("test" if unit_interval(3, "reward-split", pair.prompt_id) < 0.5 else "train")
    assert {p.split for p in pairs_from_file(path)[0]} == {"train"}


def test_subset_and_margin_are_read_and_checked(tmp_path: Path) -> None:
    good = [
        text_row(0, subset="math-prm", id=7, margin=1),
        text_row(1, subset="hep-cpp", margin=0.5),
        text_row(2, subset=None, margin=None),
        text_row(3, subset="", margin=0),
    ]
    margins: list[Any] = [-1, "2", True, [1], float("nan"), float("inf"), 10**400]
    bad = [text_row(10 + i, margin=value) for i, value in enumerate(margins)]
    pairs, rejects = pairs_from_file(write(tmp_path / "pairs.jsonl", [*good, *bad, text_row(20, subset=3)]))
    assert [(p.subset, p.margin) for p in pairs] == [("math-prm", 1.0), ("hep-cpp", 0.5), ("file", 0.0), ("file", 0.0)]
    assert all(isinstance(p.margin, float) for p in pairs)
    assert [r.reason for r in rejects] == ["bad_margin"] * len(margins) + ["bad_subset"]


def test_parquet_and_gzip_hold_the_same_pairs(tmp_path: Path) -> None:
    rows = [text_row(i, subset=("a", "b")[i % 2], margin=float(i), id=i) for i in range(5)]
    rows += [text_row(9, subset=None, margin=None, id=9), text_row(0, subset="a", margin=0.0, id=10)]
    plain = pairs_from_file(write(tmp_path / "pairs.jsonl", rows), run_seed=1, held_out=0.5)
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress((tmp_path / "pairs.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    assert len(plain[0]) == 6 and [r.reason for r in plain[1]] == ["duplicate_pair"]
    for name in ("pairs.jsonl.gz", "pairs.parquet"):
        pairs, rejects = pairs_from_file(tmp_path / name, run_seed=1, held_out=0.5)
        assert pairs == plain[0]
        assert [(r.reason, json.loads(r.raw)) for r in rejects] == [("duplicate_pair", rows[-1])]


def test_messages_in_parquet_are_messages(tmp_path: Path) -> None:
    row = {"prompt": [said("user", "Why?")], "chosen": [said("assistant", "So.")], "rejected": [said("assistant", "No.")]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "pairs.parquet")
    ((pair,), rejects) = pairs_from_file(tmp_path / "pairs.parquet")
    assert (pair.prompt, pair.chosen, pair.rejected, rejects) == (row["prompt"], row["chosen"], row["rejected"], [])


def test_file_without_the_columns_is_the_users_to_mend(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n{"question": "r", "answer": "b"}\n')
    with pytest.raises(UserError, match=r"expected prompt, chosen, rejected, found answer, question"):
        pairs_from_file(path)
    path.write_text("")
    with pytest.raises(UserError, match="no JSON object"):
        pairs_from_file(path)
    with pytest.raises(UserError, match="No such file"):
        pairs_from_file(tmp_path / "missing.jsonl")
    whole = gzip.compress(json.dumps(text_row(1)).encode() * 50)
    for name, data in (
        ("no.parquet", b"PAR"), ("no.jsonl.gz", b"text"), ("torn.jsonl.gz", whole[:-12]),
        ("bent.jsonl.gz", whole[:12] + b"\xff" * 20 + whole[32:]),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            pairs_from_file(tmp_path / name)
    for name in ("missing.parquet", "missing.jsonl.gz"):
        with pytest.raises(UserError, match="cannot be read"):
            pairs_from_file(tmp_path / name)
