"""From a YAML file and `--set` overrides to a checked `Recipe`; errors name key, line and the nearest valid key."""

from __future__ import annotations

import difflib
import glob
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from align.core.errors import UserError
from align.recipe.reward import KINDS
from align.recipe.schema import NEEDS_REFERENCE, Recipe
from align.recipe.suites import SUITE_KINDS

Loc = tuple[str | int, ...]


def load_recipe(path: Path, overrides: Sequence[str] = (), *, base: Path | None = None) -> Recipe:
    """Read, override and check a recipe.

    Args:
        path: the YAML file.
        overrides: `stages.1.train.beta=2.0` and the like; values are read as YAML.
        base: the folder that relative paths start from; by default the file's.

    Raises:
        UserError: missing file, bad YAML, unknown or misplaced key, wrong type, contradiction; every fault is listed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe; `align init quickstart` copies one here") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if data is None:
        raise UserError(f"{path}: this file is empty; `align init quickstart` copies a recipe here")
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys; this is {type(data).__name__}")
    lines = dict(lines_of(node, (), path))
    for override in overrides:
        apply_override(data, override)
    for loc in _PATH_KEYS:
        _make_absolute(data, loc, (base or path.parent).resolve())
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        faults = [_explain(e, lines, path) for e in error.errors()]
        raise UserError("\n".join(faults)) from None


# Where a recipe names files or folders; relative ones are relative to the recipe's own folder.
_PATH_KEYS: tuple[Loc, ...] = (
    ("corpus", "paths"),
    ("quality", "decontaminate", "benchmarks"),
    ("models", "*", "path"),
    ("prompts", "folder"),
    ("taxonomy", "path"),
    ("taxonomy", "embedders", "*", "path"),
    ("answers", "reward_model"),
    ("reward_data", "path"),
    ("reward_models", "*", "path"),
    ("reward_models", "*", "references"),
    ("reward_models", "*", "train", "backbone", "path"),
    ("reward_models", "*", "members", "*", "path"),
    ("reward_models", "*", "members", "*", "references"),
    ("reward_models", "*", "members", "*", "train", "backbone", "path"),
    ("stages", "*", "pair", "collected", "*", "path"),
    ("evaluation", "suites", "*", "path"),
    ("engine", "replay_path"),
)


def _make_absolute(data: Any, loc: Loc, base: Path) -> None:
    head, *rest = loc
    if isinstance(data, list) and head == "*" and rest:
        for entry in data:
            _make_absolute(entry, tuple(rest), base)
        return
    if not isinstance(data, dict):
        return
    for key in list(data) if head == "*" else [head]:
        value = data.get(key)
        if rest:
            _make_absolute(value, tuple(rest), base)
        elif isinstance(value, str):
            data[key] = str(base / Path(value).expanduser())
        elif isinstance(value, list):
            # Lists hold patterns, and the folder's own name is none.
            root = Path(glob.escape(str(base)))
            data[key] = [str(root / Path(v).expanduser()) if isinstance(v, str) else v for v in value]


def lines_of(node: yaml.Node | None, loc: Loc, path: Path) -> Iterator[tuple[Loc, int]]:
    if node is None:
        return
    yield loc, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                where = ".".join(map(str, (*loc, key.value)))
                raise UserError(f"{path}:{line}: {where} is written twice (first in line {seen[key.value]})")
            seen[key.value] = line
            for inner, number in lines_of(value, (*loc, key.value), path):
                yield inner, line if inner == (*loc, key.value) else number
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from lines_of(value, (*loc, index), path)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one dotted key in place.

    Raises:
        UserError: no `=`, or the path leads through something that is no mapping or list.
    """
    dotted, equals, raw = override.partition("=")
    if not equals or not dotted:
        raise UserError(f"--set {override}: write it as key.path=value")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: the value is not valid YAML") from None
    *parents, last = dotted.split(".")
    place: Any = data
    for part in parents:
        place = place[_index(place, part, override)] if isinstance(place, list) else place.setdefault(part, {})
        if not isinstance(place, dict | list):
            raise UserError(f"--set {override}: {part} holds a value, not a section")
    if isinstance(place, list):
        place[_index(place, last, override)] = value
    else:
        place[last] = value


def _index(place: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(place):
        raise UserError(f"--set {override}: {part!r} is not one of the list's entries 0 to {len(place) - 1}")
    return int(part)


def _fields(model: type[BaseModel], loc: Loc = ()) -> Iterator[tuple[Loc, type[BaseModel]]]:
    """Every section of the schema with its place; list and mapping entries are `*`."""
    yield loc, model
    for name, info in model.model_fields.items():
        for inner, star in _models(info.annotation):
            yield from _fields(inner, (*loc, name, *(["*"] if star else [])))


def _models(annotation: Any, star: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, star
        return
    many = getattr(annotation, "__origin__", None) in (tuple, dict)
    for part in get_args(annotation):
        yield from _models(part, star or many)


def _explain(error: Any, lines: dict[Loc, int], path: Path) -> str:
    loc: Loc = tuple(error["loc"])
    # pydantic puts the chosen branch of a union (dpo, simpo, ...) into the location; the file has no such key.
    judged, suite = loc[:1] == ("reward_models",), loc[:2] == ("evaluation", "suites")

    def branch(i: int, part: str | int) -> bool:
        if judged:  # of a role, or of a member of an ensemble
            return (i == 2 or (i > 2 and isinstance(loc[i - 1], int))) and part in KINDS
        return i == 3 and part in SUITE_KINDS if suite else i > 1 and part in NEEDS_REFERENCE and loc[i - 1] == "train"

    loc = tuple(part for i, part in enumerate(loc) if not branch(i, part))
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"].startswith("union_tag"):
        loc = (*loc, "kind" if judged or suite else "loss")
        *names, last = map(repr, KINDS if judged else SUITE_KINDS if suite else NEEDS_REFERENCE)
        message = f"Input should be {', '.join(names)} or {last}"
    if not loc and (named := re.match(r"([a-z_]+(?:\.\w+)*): ", message)):
        # A check across sections names the place itself.
        loc = tuple(int(p) if p.isdigit() else p for p in named[1].split("."))
        message = message[named.end() :]
    known = next((loc[:n] for n in range(len(loc), -1, -1) if loc[:n] in lines), ())
    where = f"{path}:{lines.get(known, 1)}: {'.'.join(map(str, loc)) or 'recipe'}"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key{_suggest(loc)}"
    if error["type"] == "missing":
        return f"{where}: this key is required"
    shown = json.dumps(error["input"], ensure_ascii=False, default=str)
    value = f" (it is {shown})" if error["type"] != "value_error" and len(shown) < 80 else ""
    return f"{where}: {message}{value}"


# Keys that two programs read differently, or that went: what to write in their place.
REFUSED = {
    "gamma": "SimPO's margin is gamma_absolute (the margin itself, as in the paper's equation and as gamma was here) or "
    "gamma_over_beta (the ratio gamma/beta, as in SimPO's code)",
    "micro_batch": "it counted examples; micro_batch_tokens counts tokens",
    "keep_unfinished": "it is gone, since training left such pairs out; take the line out (pairs are then made anew)",
}


def _suggest(loc: Loc) -> str:
    key = str(loc[-1])
    if key in REFUSED:
        return f"; {REFUSED[key]}"
    # Entries of lists, of `models` and of `evaluation.suites` have names of their own.
    named = (("models",), ("evaluation", "suites"))
    parent = tuple("*" if isinstance(p, int) or loc[:i] in named else p for i, p in enumerate(loc[:-1]))
    here: set[str] = set()
    elsewhere: list[str] = []
    branches: list[str] = []  # of the union at this place, those that have the key
    tag = ""
    for place, model in _fields(Recipe):
        if key in model.model_fields and place == parent:
            tag = "loss" if "loss" in model.model_fields else "kind"
            branches += get_args(model.model_fields[tag].annotation)
        if place == parent:
            here |= set(model.model_fields)
        if key in model.model_fields:
            elsewhere.append(".".join(map(str, (*place, key))))
    if branches:
        return f" for this {tag}; it goes with {tag}: {', '.join(branches)}"
    # A key that another section really has is more likely misplaced than misspelt.
    if elsewhere and not difflib.get_close_matches(key, here, 1, 0.8):
        return f"; it belongs at {' or '.join(dict.fromkeys(elsewhere[:2]))}"
    near = difflib.get_close_matches(key, sorted(here), 1, 0.5)
    return f"; did you mean {near[0]}?" if near else f"; valid here: {', '.join(sorted(here))}" if here else ""


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe, for editors."""
    return Recipe.model_json_schema()
