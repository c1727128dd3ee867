"""The taxonomy: a tree of topics defined in advance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from align.core.errors import UserError
from align.core.rows import Topic

LEAF_KEYS = ("id", "name", "definition", "include")


@dataclass(frozen=True)
class Node:
    """A topic (leaf) with its texts by language."""

    id: str
    path: str
    name: Mapping[str, str]
    definition: Mapping[str, str]
    include: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Taxonomy:
    """Leaves in file order; `inner` are the domains and fields above them as (id, parent id, path, level, names)."""

    levels: tuple[str, ...]
    leaves: tuple[Node, ...]
    inner: tuple[tuple[str, str, str, str, Mapping[str, str]], ...]

    def topic_rows(self, counts: Mapping[str, int], lang: str = "en") -> list[Topic]:
        """Rows for every node, `counts` by leaf id summed upwards."""
        total: Counter[str] = Counter()
        for leaf in self.leaves:
            parts = leaf.path.split("/")
            for depth in range(1, len(parts) + 1):
                total["/".join(parts[:depth])] += counts.get(leaf.id, 0)
        rows = [
            Topic(id=i, parent_id=parent, path=path, name=_text(names, lang), level=level, description="", lang=lang,
                  count=total[path])
            for i, parent, path, level, names in self.inner
        ]  # fmt: skip
        rows += [
            Topic(id=leaf.id, parent_id=leaf.path.split("/")[-2], path=leaf.path, name=_text(leaf.name, lang),
                  level=self.levels[-1], description=_text(leaf.definition, lang), lang=lang, count=total[leaf.path])
            for leaf in self.leaves
        ]  # fmt: skip
        return rows


def _text(texts: Mapping[str, str], lang: str) -> str:
    return texts.get(lang) or next(iter(texts.values()))


def shipped_taxonomy() -> Path:
    """The tree that comes with the package."""
    return Path(__file__).parent / "taxonomies" / "general.yaml"


def load_taxonomy(path: Path | None) -> Taxonomy:
    """The shipped tree, or a user's YAML file of the same shape.

    Raises:
        UserError: unreadable file, missing key, duplicate id, or no leaf.
    """
    where = str(path or "shipped taxonomy")
    try:
        data = yaml.safe_load((path or shipped_taxonomy()).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{where}: cannot be read as YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(data, dict) or "nodes" not in data or "levels" not in data:
        raise UserError(f"{where}: a taxonomy needs the keys levels and nodes (docs/data.md)")
    leaves: list[Node] = []
    inner: list[tuple[str, str, str, str, Mapping[str, str]]] = []
    seen: set[str] = set()
    if not isinstance(data["levels"], list) or not isinstance(data["nodes"], list):
        raise UserError(f"{where}: levels and nodes are lists (docs/data.md)")
    levels = tuple(map(str, data["levels"]))

    def visit(node: Any, parents: tuple[str, ...]) -> None:
        if not isinstance(node, dict) or "id" not in node or "name" not in node:
            raise UserError(f"{where}: under {'/'.join(parents) or 'nodes'}: every node needs id and name")
        if not isinstance(node["id"], str) or "/" in node["id"]:
            raise UserError(f"{where}: under {'/'.join(parents) or 'nodes'}: id {node['id']!r} must be text without /")
        _check_texts(node, where)
        if node["id"] in seen:
            raise UserError(f"{where}: id {node['id']} is used twice")
        seen.add(node["id"])
        place = (*parents, node["id"])
        if len(place) > len(levels):
            raise UserError(f"{where}: {node['id']} is at depth {len(place)}, but there are {len(levels)} levels")
        if children := node.get("children"):
            inner.append((node["id"], parents[-1] if parents else "", "/".join(place), levels[len(parents)], node["name"]))
            for child in children:
                visit(child, place)
            return
        if missing := [k for k in LEAF_KEYS if k not in node]:
            raise UserError(f"{where}: topic {node['id']} lacks {', '.join(missing)}")
        if empty := [k for k in LEAF_KEYS[1:] if not all(" ".join(text).strip() for text in node[k].values())]:
            raise UserError(f"{where}: topic {node['id']}: {empty[0]} is empty; nothing could be placed there")
        if len(place) != len(levels):
            raise UserError(f"{where}: topic {node['id']} is at depth {len(place)}, but there are {len(levels)} levels")
        leaves.append(Node(node["id"], "/".join(place), node["name"], node["definition"], node["include"]))

    for top in data["nodes"]:
        visit(top, ())
    if not leaves:
        raise UserError(f"{where}: the taxonomy has no topic")
    return Taxonomy(levels, tuple(leaves), tuple(inner))


def _check_texts(node: dict[str, Any], where: str) -> None:
    """Texts are given by language, the same languages for all of a node's texts."""
    for key in ("name", "definition", "include"):
        value = node.get(key, {})
        texts = [[v] if key != "include" else v for v in value.values()] if isinstance(value, dict) else [None]
        if not all(isinstance(t, list) and all(isinstance(s, str) for s in t) for t in texts):
            what = "a list of terms" if key == "include" else "text (quote it where it holds a comma)"
            raise UserError(f"{where}: {node['id']}: {key} holds {what} by language, such as {{en: ...}}")
        if key in node and set(value) != set(node["name"]):
            raise UserError(f"{where}: {node['id']}: {key} and name must be in the same languages")
    if not node["name"]:
        raise UserError(f"{where}: {node['id']}: name is empty")
