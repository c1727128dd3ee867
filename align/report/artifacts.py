"""Where a run's artifacts lie, and how the report reads them: by columns and batches, never a whole large table of rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from align.core.artifact import Manifest
from align.core.errors import UserError

ROLES = ("selector", "validator")
GOLD = "gold"  # the third reward model, which chooses nothing; not every run has one
DATA_STEPS = ("corpus", "taxonomy", "instruct", "evolve", "respond")
DONE, UNFINISHED, NOT_RUN = "done", "unfinished", "not run yet"
_FOLDERS = {
    "sft": "sft/train",
    "eval": "eval/result",
    "respond.score": "respond_score",
}  # the others are their name with slashes


@dataclass(frozen=True)
class StepRecord:
    """One step as it stands in a run folder; `manifest` is None unless it is finished."""

    name: str
    folder: Path
    state: str
    manifest: Manifest | None


def folder_of(step: str) -> str:
    """The folder of a step below the run folder: `stage1.sample.M0` is `stage1/sample/M0`."""
    stage, _, rest = step.partition(".")
    if re.fullmatch(r"stage\d+|eval", stage) and rest:
        kind, _, name = rest.partition(".")  # a model's name may hold dots
        return "/".join(part for part in (stage, kind, name) if part)
    if stage == "reward":  # members of ensembles have a dot in their names
        return f"reward/{rest}"
    return _FOLDERS.get(step, step.replace(".", "/"))


def record(run_dir: Path, step: str) -> StepRecord:
    """How a step stands in a run folder."""
    folder = run_dir / folder_of(step)
    manifest = Manifest.load(folder)
    state = DONE if manifest else UNFINISHED if (folder / "_work").is_dir() else NOT_RUN
    return StepRecord(step, folder, state, manifest)


def fresh(run_dir: Path, step: str, known: dict[str, bool]) -> bool:
    """Whether a finished step, and every step before it, was made of what its inputs hold now.

    Files that are gone since, such as weights that a study gave back, change nothing of what was made of them.

    Args:
        run_dir: of the run.
        step: its name.
        known: what has been found out, by step; more is put in.
    """
    if step not in known:
        known[step] = False  # until all is read: no step comes before itself
        manifest = record(run_dir, step).manifest
        above = {name: record(run_dir, name).manifest for name in (manifest.inputs if manifest else ())}
        known[step] = manifest is not None and all(
            now is not None and now.digest() == manifest.inputs[name] and fresh(run_dir, name, known)
            for name, now in above.items()
        )
    return known[step]


def stands(run_dir: Path, step: str) -> bool:
    """Whether a step is finished, its files are there, and it is `fresh`."""
    found = record(run_dir, step)
    return found.manifest is not None and found.manifest.complete(found.folder) and fresh(run_dir, step, {})


def read_recipe(run_dir: Path) -> dict[str, Any]:
    """The run's resolved recipe as plain values; empty where the run folder has none."""
    try:
        found = yaml.safe_load((run_dir / "recipe.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{run_dir / 'recipe.yaml'}: cannot be read ({' '.join(str(error).split())[:120]})") from None
    return found if isinstance(found, dict) else {}


def at(value: Any, *keys: str | int) -> Any:
    """`value[key][key]...`, or None where something on the way is missing."""
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _models(run_dir: Path, part: str, wanted: Sequence[str] | None) -> list[str]:
    """Models of a `sample` folder: those of the recipe first, then others found on disk."""
    found = sorted(p.name for p in (run_dir / part / "sample").glob("*") if p.is_dir())
    return list(dict.fromkeys([*(wanted or ()), *found]))


def num_stages(run_dir: Path, recipe: Mapping[str, Any]) -> int:
    """Stages of the recipe, or more where the folder holds more."""
    on_disk = [int(m.group(1)) for p in run_dir.glob("stage*") if (m := re.fullmatch(r"stage(\d+)", p.name))]
    return max([len(recipe.get("stages") or ()), *on_disk])


def step_names(run_dir: Path, recipe: Mapping[str, Any]) -> list[str]:
    """All steps of a run in their order, whether finished or not."""
    roles = (*ROLES, GOLD) if at(recipe, "reward_models", GOLD) else ROLES
    trained = [r for r in roles if not recipe or at(recipe, "reward_models", r, "train")]
    for role in roles:
        members = at(recipe, "reward_models", role, "members") or ()
        trained += [f"{role}.{i}" for i, member in enumerate(members) if at(member, "train")]
    scored = at(recipe, "answers", "best_by") not in (None, "first")
    names = [
        *DATA_STEPS,
        *(["respond.score"] if scored else []),
        "sft.data",
        "sft",
        *(["reward.data"] if trained else []),
        *(f"reward.{r}" for r in trained),
    ]
    for k in range(1, num_stages(run_dir, recipe) + 1):
        models = _models(run_dir, f"stage{k}", at(recipe, "stages", k - 1, "sample", "models"))
        names += [f"stage{k}.sample.{m}" for m in models]
        names += [*(f"stage{k}.score.{r}" for r in roles), *([f"stage{k}.best_of_n"] if roles != ROLES else [])]
        names += [f"stage{k}.pair", f"stage{k}.train"]
    names += [f"eval.sample.{m}" for m in _models(run_dir, "eval", _evaluated(recipe))]
    return [*names, *(f"eval.score.{r}" for r in roles), "eval"]


def _evaluated(recipe: Mapping[str, Any]) -> list[str]:
    """The evaluation's models, with the snapshots of a stage before its last model."""
    snapshots = {at(stage, "name"): at(stage, "train", "snapshots") or 0 for stage in recipe.get("stages") or ()}
    models = at(recipe, "evaluation", "models") or ()
    return [name for m in models for name in (*(f"{m}@{k}" for k in range(1, snapshots.get(m, 0) + 1)), m)]


def scan(folder: Path, columns: Sequence[str], pattern: str = "data/*.parquet") -> Iterator[dict[str, Any]]:
    """Rows as plain records with only these columns, read batch by batch."""
    for path in sorted(folder.glob(pattern)):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256, columns=list(columns)):
                yield from batch.to_pylist()


def columns_of(folder: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Whole columns of an artifact."""
    found: dict[str, list[Any]] = {name: [] for name in columns}
    for path in sorted(folder.glob("data/*.parquet")):
        for name, values in pq.read_table(path, columns=list(columns)).to_pydict().items():
            found[name] += values
    return found


def some_of_each(rows: Iterator[dict[str, Any]], key: str, number: int, kinds: int) -> list[dict[str, Any]]:
    """The first `number` rows of each value of `key`; reading stops once `kinds` values are complete."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        group = found.setdefault(row[key], [])
        if len(group) < number:
            group.append(row)
        if len(found) >= kinds and all(len(g) >= number for g in found.values()):
            break
    return [row for value in sorted(found, key=str) for row in found[value]]


def alternate(rows: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """The first row of each value of `key`, then the second of each, and so on."""
    seen: Counter[Any] = Counter()
    placed = []
    for row in rows:
        placed.append((seen[row[key]], row))
        seen[row[key]] += 1
    return [row for _, row in sorted(placed, key=lambda item: item[0])]


def reject_examples(folder: Path, counts: Mapping[str, int], number: int = 3) -> dict[str, list[str]]:
    """Up to `number` texts of rejects for each reason."""
    found: dict[str, list[str]] = {reason: [] for reason in counts}
    wanted = sum(min(number, n) for n in counts.values())
    for row in scan(folder, ("reason", "raw"), "rejects/*.parquet"):
        group = found.setdefault(row["reason"], [])
        if len(group) < number:
            group.append(row["raw"])
            wanted -= 1
        if wanted <= 0:
            break
    return found
