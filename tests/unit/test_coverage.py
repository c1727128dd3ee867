"""Coverage of the taxonomy: every row of every topic counted once, lost rows found, and what the counts say of diversity."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.core.artifact import StepFolder
from align.core.errors import StepError, UserError
from align.core.rows import Knowledge, Reject, SftExample, Topic, to_table
from data_gen.coverage import Coverage, Spread, coverage, entropy, histogram

TREE = {"science": {"physics": ("optics", "waves"), "biology": ("cells",)}, "arts": {"music": ("opera",)}}


def write_tree(folder: Path) -> Path:
    paths = [
        path
        for domain, fields in TREE.items()
        for field, topics in fields.items()
        for path in (domain, f"{domain}/{field}", *(f"{domain}/{field}/{topic}" for topic in topics))
    ]
    rows = [
        Topic(id=path.split("/")[-1], parent_id="", path=path, name=path.split("/")[-1].title(), level="", description="",
              lang="en", count=0)
        for path in dict.fromkeys(paths)
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(to_table(Topic, rows), folder / "topics.parquet")
    return folder / "topics.parquet"


def unit(name: str, topic: str) -> Knowledge:
    return Knowledge(
        id=name, topic_id=topic, document_id="d", statement="", quote="", lang="en", similarity=0.0, license="", pii=""
    )


def example(name: str, topic: str) -> SftExample:
    return SftExample(
        id=name, parent_id="", topic_id=topic, messages=[{"role": "user", "content": "Why?"}], lang="en", generation=0,
        task_type="question", license="", pii="",
    )  # fmt: skip


def write_step(
    folder: Path, make: Callable[[str, str], Any], kept: str, rejects: Mapping[str, str], asked: Mapping[str, int] | None
) -> Path:
    """A finished step in shards of three rows; `kept` and the values of `rejects` are topics with spaces between."""
    rows = [make(f"r{i}", topic) for i, topic in enumerate(kept.split())]
    dropped = [
        Reject(id=f"x-{reason}-{i}", reason=reason, raw="", topic_id="" if topic == "-" else topic)
        for reason, topics in rejects.items()
        for i, topic in enumerate(topics.split())
    ]
    out = StepFolder(folder, step=folder.name, fingerprint="f", inputs={}, row_type=type(make("", "")), seed=1)
    for shard in out.pending(max(len(rows), len(dropped)), 3):
        part, gone = rows[shard.start : shard.stop], dropped[shard.start : shard.stop]
        out.write_shard(shard.index, part, gone, asked=len(part) + len(gone))
    out.finish({} if asked is None else {"asked_by_topic": dict(asked)})
    return folder


def placed(folder: Path) -> tuple[Path, dict[str, Path]]:
    """A tree, and a finished step taxonomy whose rejects have no topic."""
    rejects = {"not_grounded": "- -", "too_short": "-"}
    step = write_step(folder / "taxonomy", unit, "optics optics optics waves cells cells", rejects, None)
    return write_tree(step), {"taxonomy": step}


def counted(folder: Path, asked: Mapping[str, int] | None) -> Coverage:
    """After taxonomy, a step sft.data that kept four rows and rejected three."""
    tree, folders = placed(folder)
    rejects = {"empty": "optics waves", "refusal": "waves"}
    folders["sft.data"] = write_step(folder / "sft.data", example, "optics cells optics optics", rejects, asked)
    return coverage(tree, folders)


ASKED = {"optics": 4, "waves": 2, "cells": 1, "opera": 0}


def test_every_leaf_has_asked_kept_and_rejects_by_reason(tmp_path: Path) -> None:
    found = counted(tmp_path, ASKED)
    assert [topic.id for topic in found.topics] == ["optics", "waves", "cells", "opera"], "the order of the tree"
    numbers = {t.id: [(made.kept, dict(made.rejects)) for made in t.steps.values()] for t in found.topics}
    assert numbers == {
        "optics": [(3, {}), (3, {"empty": 1})],
        "waves": [(1, {}), (0, {"empty": 1, "refusal": 1})],
        "cells": [(2, {}), (1, {})],
        "opera": [(0, {}), (0, {})],
    }
    assert {d.id: [made.asked for made in d.steps.values()] for d in found.domains} == {"science": [6, 7], "arts": [0, 0]}
    assert found.steps["sft.data"].rejects == {"empty": 2, "refusal": 1}
    assert found.no_topic == {"not_grounded": 2, "too_short": 1}
    assert [topic.name for topic in found.empty] == ["Opera"] and found.not_counted == []


def test_the_file_for_programs_has_the_same_numbers(tmp_path: Path) -> None:
    told = json.loads(json.dumps(counted(tmp_path, ASKED).as_json()))
    assert told["steps"]["taxonomy"] == {
        "kept": 6, "asked": 9, "filled": 3, "entropy": 1.0114, "effective_topics": 2.75,
        "rejects_without_topic": {"not_grounded": 2, "too_short": 1},
    }  # fmt: skip
    assert told["steps"]["sft.data"] == {
        "asked": 7, "kept": 4, "rejects": {"empty": 2, "refusal": 1}, "filled": 2, "entropy": 0.5623,
        "effective_topics": 1.75,
    }  # fmt: skip
    assert told["topics"][1] == {
        "id": "waves", "path": "science/physics/waves", "name": "Waves",
        "steps": {"taxonomy": {"kept": 1}, "sft.data": {"asked": 2, "kept": 0, "rejects": {"empty": 1, "refusal": 1}}},
    }  # fmt: skip
    assert told["empty"] == ["opera"]
    for step in ("taxonomy", "sft.data"):
        for level in ("topics", "domains"):
            assert sum(place["steps"][step]["kept"] for place in told[level]) == told["steps"][step]["kept"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optics": 5}, "sft.data: topic optics: 5 asked, 3 kept and 1 rejected do not add up"),
        ({"waves": 1}, "sft.data: topic waves: 1 asked, 0 kept and 2 rejected do not add up"),
        ({"opera": 2}, "sft.data: topic opera: 2 asked, 0 kept and 0 rejected do not add up"),
        ({"jazz": 1}, "sft.data: topic jazz: 1 asked, 0 kept and 0 rejected do not add up"),
        # As many rows in all, but one has gone to another topic.
        ({"optics": 5, "cells": 0}, "sft.data: topic cells: 0 asked, 1 kept and 0 rejected do not add up"),
    ],
)
def test_a_lost_row_is_an_error_with_its_step_topic_and_numbers(
    tmp_path: Path, change: Mapping[str, int], words: str
) -> None:
    with pytest.raises(StepError) as error:
        counted(tmp_path, {**ASKED, **change})
    assert str(error.value) == words


def test_a_reject_without_its_topic_is_a_lost_row(tmp_path: Path) -> None:
    tree, folders = placed(tmp_path)
    folders["instruct"] = write_step(tmp_path / "instruct", example, "cells", {"empty": "-"}, {"cells": 2})
    with pytest.raises(StepError, match=r"instruct: topic \(none\): 0 asked, 0 kept and 1 rejected"):
        coverage(tree, folders)


def test_a_topic_that_the_tree_lacks_is_an_error(tmp_path: Path) -> None:
    tree, folders = placed(tmp_path)
    folders["instruct"] = write_step(tmp_path / "instruct", example, "cells jazz jazz", {}, {"cells": 1, "jazz": 2})
    with pytest.raises(StepError, match="instruct: 2 rows are of topic jazz, which is not in the tree"):
        coverage(tree, folders)


def test_a_manifest_without_the_metric_is_named_and_not_counted(tmp_path: Path) -> None:
    found = counted(tmp_path, None)
    assert found.not_counted == ["sft.data"] and list(found.steps) == ["taxonomy"]
    assert found.as_json()["not_counted"] == ["sft.data"]


def test_a_damaged_file_is_the_users_to_mend(tmp_path: Path) -> None:
    tree, folders = placed(tmp_path)
    next((tmp_path / "taxonomy" / "data").iterdir()).write_bytes(b"PAR1")
    with pytest.raises(UserError, match="delete its step's folder"):
        coverage(tree, folders)


def test_entropy_of_even_and_of_single_topics() -> None:
    assert entropy([3, 3, 3, 3, 0]) == pytest.approx(math.log(4), abs=1e-4)
    assert Spread.of([5, 5, 5, 0]) == Spread(3, 1.0986, 3.0)
    assert Spread.of([7]) == Spread(1, 0.0, 1.0)
    assert Spread.of([0, 0]) == Spread(0, 0.0, 0.0), "no topic is not as diverse as one"


@given(st.lists(st.integers(0, 50), max_size=20))
def test_effective_topics_lie_between_one_and_the_filled(counts: list[int]) -> None:
    found = Spread.of(counts)
    assert found.filled == sum(count > 0 for count in counts)
    assert min(found.filled, 1) - 0.01 <= found.effective_topics <= found.filled + 0.01


def test_histogram_bins_by_tenths_and_by_whole_marks() -> None:
    assert histogram("difficulty", [0.0, 0.09, 0.1, 0.99, 1.0]) == {"mean": 0.436, "counts": [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]}
    assert histogram("judged_quality", [1.0, 10.0, 9.6]) == {"mean": 6.8667, "counts": [1, 0, 0, 0, 0, 0, 0, 0, 0, 2]}
    assert histogram("judged_difficulty", []) == {"mean": 0.0, "counts": [0] * 10}
