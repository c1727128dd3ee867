"""Documents in: each reason to drop a line, de-duplication, cutting, and a limit that does not depend on order."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from align.core.errors import UserError
from align.core.rows import Document, Reject
from data_gen.corpus import read_documents

HONEY = "Honey keeps for years because its water content is low. Bees make it from the nectar of flowers."
KOREAN = "꿀은 수분이 적어 세균이 자라지 못하므로 여러 해 동안 상하지 않는다. 꿀벌은 꽃의 꿀로 이것을 만든다."


def write(path: Path, *records: Any) -> Path:
    lines = [r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() for r in records]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def read(*paths: Path, **changes: Any) -> tuple[list[Document], list[Reject], dict[str, int]]:
    options: dict[str, Any] = {
        "languages": ("en", "ko"), "allow_licenses": None, "min_chars": 40, "max_chars": 2000, "limit": None, "run_seed": 17,
    }  # fmt: skip
    return read_documents(paths, **(options | changes))


BAD = {
    "malformed_json": b'{"text": "cut',
    "not_utf8": json.dumps({"text": KOREAN}, ensure_ascii=False).encode("cp949"),
    "not_an_object": ["text"],
    "half_a_character": b'{"text": "' + HONEY.encode() + b' \\ud83d"}',
    "missing_text": {"content": HONEY},
    "text_is_not_a_string": {"text": [HONEY]},
    "too_short": {"text": "Honey keeps."},
    "language_other": {"text": "蜂蜜" * 40},
    "language_fr": {"text": HONEY + " Oui.", "lang": "fr"},
    "license_not_allowed": {"text": HONEY + " Again.", "license": "CC-BY-NC-4.0"},
    "duplicate_id": {"id": "honey", "text": HONEY + " Really."},
    "duplicate_text": {"id": "other", "text": f"  {HONEY.replace(' ', chr(10))} "},
}


@pytest.mark.parametrize("reason", BAD)
def test_each_bad_line_is_dropped_with_its_reason_and_the_rest_kept(tmp_path: Path, reason: str) -> None:
    good = {"id": "honey", "text": HONEY, "lang": "en", "source": "mine", "license": "CC0-1.0"}
    path = write(tmp_path / "a.jsonl", good, BAD[reason] | {"license": "CC0-1.0"} if _needs(reason) else BAD[reason],
                 {"text": KOREAN, "license": "CC0-1.0"})  # fmt: skip
    documents, rejects, counts = read(path, allow_licenses=["CC0-1.0"])
    assert [d.text for d in documents] == [HONEY, KOREAN]
    assert [r.reason for r in rejects] == [reason]
    assert counts == {"cut": 0}
    assert documents[0].source == "mine / honey" and documents[0].license == "CC0-1.0"
    assert documents[1].source == "a.jsonl" and documents[1].lang == "ko"


def _needs(reason: str) -> bool:
    return isinstance(BAD[reason], dict) and reason != "license_not_allowed"


def test_rejects_name_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": HONEY}, {"text": "short"}, {"text": "brief"})
    _, rejects, _ = read(path)
    assert [r.raw for r in rejects] == [f"{path}:2: short", f"{path}:3: brief"]
    assert len({r.id for r in rejects}) == 2


def test_no_license_given_passes_only_where_all_are_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": HONEY}, {"text": KOREAN, "license": "CC0-1.0"})
    assert [d.license for d in read(path)[0]] == ["unknown", "CC0-1.0"]
    assert [d.text for d in read(path, allow_licenses=["CC0-1.0"])[0]] == [KOREAN]


def test_a_rejected_line_does_not_shadow_a_good_one(tmp_path: Path) -> None:
    bad = {"id": "x", "text": HONEY, "license": "secret"}
    path = write(tmp_path / "a.jsonl", bad, bad | {"license": "CC0-1.0"})
    documents, rejects, _ = read(path, allow_licenses=["CC0-1.0"])
    assert len(documents) == 1 and [r.reason for r in rejects] == ["license_not_allowed"]


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([{"content": HONEY}, {"body": HONEY}], ["2 missing_text", "columns found: content, body", "expected: text"]),
        ([{"text": "short"}], ["1 too_short", "columns found: text"]),
        ([b"{cut"], ["1 malformed_json", "no columns"]),
        ([b""], ["the files are empty"]),
    ],
)
def test_a_corpus_without_any_document_is_one_clear_error(tmp_path: Path, records: list[Any], words: list[str]) -> None:
    path = write(tmp_path / "mine.jsonl", *records)
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("corpus.paths: no usable document in ") and str(path) in message
    for word in words:
        assert word in message


def test_limit_is_by_hash_and_does_not_depend_on_the_order(tmp_path: Path) -> None:
    records = [{"text": f"{HONEY} This is document number {i}."} for i in range(60)]
    one = write(tmp_path / "one.jsonl", *records)
    documents, rejects, _ = read(one, limit=20)
    chosen = {d.text for d in documents}
    assert len(chosen) == 20 and Counter(r.reason for r in rejects) == {"over_limit": 40}
    assert {r.id for r in rejects}.isdisjoint(d.id for d in documents)
    random.Random(0).shuffle(records)
    two = [write(tmp_path / "two.jsonl", *records[:30]), write(tmp_path / "three.jsonl", *records[30:])]
    assert {d.text for d in read(*two, limit=20)[0]} == chosen
    assert {d.text for d in read(one, limit=20, run_seed=18)[0]} != chosen
    assert chosen < {d.text for d in read(one, limit=21)[0]}, "a higher limit keeps what a lower one chose"
    assert len({int(t.split()[-1][:-1]) < 20 for t in chosen}) == 2, "not just the first ones"


def test_long_documents_are_cut_at_a_sentence_end_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": " ".join([HONEY] * 5)}, {"text": "x" * 500}, {"text": KOREAN})
    documents, _, counts = read(path, max_chars=120)
    assert counts == {"cut": 2}
    assert documents[0].text == HONEY
    assert documents[1].text == "x" * 120
    assert documents[2].text == KOREAN


def test_ids_are_of_the_text_so_that_files_may_move(tmp_path: Path) -> None:
    first = read(write(tmp_path / "a.jsonl", {"text": HONEY}, {"text": KOREAN}))[0]
    second = read(write(tmp_path / "b.jsonl", {"text": KOREAN, "id": 7}, {"text": HONEY}))[0]
    assert {d.id for d in first} == {d.id for d in second}


def test_shipped_documents_all_pass() -> None:
    folder = Path(__file__).parents[2] / "recipes/data/corpus"
    documents, rejects, counts = read(folder / "en.jsonl", folder / "ko.jsonl", allow_licenses=["CC0-1.0"], min_chars=80)
    assert rejects == [] and counts == {"cut": 0}
    assert Counter(d.lang for d in documents) == {"en": 56, "ko": 28}


@pytest.mark.shared_data
def test_real_web_documents(shared_data: Path) -> None:
    files = [shared_data / f"corpus/web_{lang}.jsonl" for lang in ("en", "ko")]
    documents, rejects, _ = read(*files, min_chars=80)
    lines = sum(1 for f in files for line in f.open("rb") if line.strip())
    assert len(documents) + len(rejects) == lines
    assert len(documents) > 0.8 * lines
    assert {r.reason for r in rejects} <= {"too_short", "language_other", "duplicate_text", "duplicate_id"}
    assert max(len(d.text) for d in documents) <= 2000
