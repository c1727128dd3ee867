"""The tree: the shipped one is whole, and bad ones are refused with their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from align.core.errors import UserError
from data_gen.taxonomy import load_taxonomy


def leaf(own: str, **changes: Any) -> dict[str, Any]:
    texts = {
        "id": own, "name": {"en": own}, "definition": {"en": f"About {own}."}, "include": {"en": [f"{own} term"]},
    }  # fmt: skip
    return {k: v for k, v in (texts | changes).items() if v is not None}


def branch(name: str, *children: Any) -> dict[str, Any]:
    return {"id": name, "name": {"en": name}, "children": list(children)}


def write(path: Path, tree: Any) -> Path:
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return path


def tree(*nodes: Any, levels: Any = ("domain", "topic")) -> dict[str, Any]:
    return {"levels": list(levels) if isinstance(levels, tuple) else levels, "nodes": list(nodes)}


def test_shipped_tree_is_whole() -> None:
    shipped = load_taxonomy(None)
    assert len(shipped.leaves) >= 60
    assert shipped.levels == ("domain", "field", "topic")
    for node in shipped.leaves:
        assert node.path.count("/") == 2
        for texts in (node.name, node.definition, node.include):
            assert set(texts) == {"en", "ko"} and all(texts.values()), node.id
        assert all(len(terms) >= 5 for terms in node.include.values()), node.id
    for name, _, _, _, names in shipped.inner:
        assert set(names) == {"en", "ko"} and all(names.values()), name
    rows = shipped.topic_rows({})
    assert len({r.id for r in rows}) == len(rows) == len({r.path for r in rows})
    assert {r.parent_id for r in rows} <= {"", *(r.id for r in rows)}


def test_counts_sum_upwards() -> None:
    shipped = load_taxonomy(None)
    counts = {node.id: i % 7 for i, node in enumerate(shipped.leaves)}
    rows = {r.id: r for r in shipped.topic_rows(counts, "ko")}
    assert all(rows[i].count == n for i, n in counts.items())
    for row in rows.values():
        children = [r for r in rows.values() if r.parent_id == row.id]
        assert not children or row.count == sum(r.count for r in children)
    assert sum(r.count for r in rows.values() if r.level == "domain") == sum(counts.values()) > 0
    assert rows["physics"].name == "물리학" and rows["physics"].level == "field"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes: [", "cannot be read as YAML"),
        ("- a list", "needs the keys levels and nodes"),
        ("levels: [topic]", "needs the keys levels and nodes"),
        (tree(leaf("a"), levels=2), "levels and nodes are lists"),
        ({"levels": ["topic"], "nodes": 5}, "levels and nodes are lists"),
        (tree(), "has no topic"),
        (tree("a"), "under nodes: every node needs id and name"),
        (tree(branch("top", {"name": {"en": "x"}})), "under top: every node needs id and name"),
        (tree(branch("top", leaf("a"), leaf("a"))), "id a is used twice"),
        (tree(branch("a", leaf("a"))), "id a is used twice"),
        (tree(branch("top", leaf("a", id=1))), "under top: id 1 must be text without /"),
        (tree(branch("top", leaf("a/b"))), "id 'a/b' must be text without /"),
        (tree(branch("top", leaf("a", include=None))), "topic a lacks include"),
        (tree(branch("top", leaf("a", definition=None, include=None))), "topic a lacks definition, include"),
        (tree(leaf("a")), "topic a is at depth 1, but there are 2 levels"),
        (tree(branch("b", branch("c", leaf("a")))), "c is at depth 2, but|a is at depth 3, but there are 2 levels"),
        (tree(branch("b", branch("c", branch("d", leaf("a"))))), "d is at depth 3, but there are 2 levels"),
        (tree(branch("top", leaf("a", name="Physics"))), "a: name holds text"),
        (tree(branch("top", leaf("a", name={}))), "a: definition and name must be in the same languages|a: name is empty"),
        (tree(branch("top", leaf("a", definition={"ko": "뜻"}))), "a: definition and name must be in the same languages"),
        (tree(branch("top", leaf("a", include={"en": "one term"}))), "a: include holds a list of terms"),
        (tree(branch("top", leaf("a", include={"en": ["x", 5]}))), "a: include holds a list of terms"),
        (tree(branch("top", leaf("a", definition={"en": "  "}))), "topic a: definition is empty"),
        (tree(branch("top", leaf("a", include={"en": []}))), "topic a: include is empty"),
        ("levels: [a, b]\nnodes:\n- &top {id: a, name: {en: A}, children: [*top]}", "id a is used twice"),
        ("levels: [a]\nnodes:\n- {id: a, name: {en: Weather, water and wind}}", "a: name holds text .quote it where"),
    ],
)
def test_bad_trees_are_refused_with_their_place(tmp_path: Path, text: Any, message: str) -> None:
    path = write(tmp_path / "tree.yaml", text)
    with pytest.raises(UserError, match=message) as caught:
        load_taxonomy(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"nodes: caf\xe9")
    for path in (tmp_path / "nowhere.yaml", tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(UserError, match=f"^{path}: cannot be read"):
            load_taxonomy(path)


def test_a_tree_of_ones_own(tmp_path: Path) -> None:
    path = write(tmp_path / "tree.yaml", tree(branch("food", leaf("honey"), leaf("bread")), branch("sky", leaf("stars"))))
    own = load_taxonomy(path)
    assert [node.path for node in own.leaves] == ["food/honey", "food/bread", "sky/stars"]
