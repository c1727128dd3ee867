"""`align eval`: which suites and models are asked for, and the tables that it prints."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from align.core.artifact import Manifest
from align.core.errors import UserError
from align.core.rows import LOWER_IS_BETTER
from align.recipe.base import RESERVED, SFT_MODEL
from align.recipe.schema import Recipe
from align.report.artifacts import at, read_recipe
from align.report.estimates import compared_items
from align.steps.outside import model_path

Say = Callable[[str], None]


def with_models(recipe: Recipe, suite: str, models: Sequence[str]) -> Recipe:
    """The recipe with these models side by side in a suite: its own by their names, or folders, which get the folder's name.

    A name that the recipe knows is its model, also where a folder of that name lies in the current one.

    Args:
        recipe: whose names win.
        suite: one of its suites.
        models: names or folders.

    Raises:
        UserError: neither a model nor a folder, one twice, a folder whose name is taken or cannot be a model's, or a suite
            that cannot be had with these models.
    """
    made = (SFT_MODEL, *(name for stage in recipe.stages for name in (*stage.snapshots, stage.name)))
    known = (*recipe.models, *made)
    found: dict[str, Path | None] = {}
    for model in models:
        name, path = (model, None) if model in known else _outside(recipe, model, known)
        if name in found:
            raise UserError(
                f"--models: {model}: {name} is there twice; leave one out, or link the folder under another name"
            )
        found[name] = path
    data = recipe.model_dump(mode="json")
    data["models"] |= {name: {"path": str(path)} for name, path in found.items() if path}
    data["evaluation"]["suites"][suite]["models"] = list(found)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        faults = [f"--models: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
        raise UserError("\n".join(faults)) from None


def _outside(recipe: Recipe, model: str, known: Sequence[str]) -> tuple[str, Path | None]:
    """Name and folder of a model outside of the recipe; no folder where it is that of one of the recipe's."""
    path = Path(model).absolute()  # the name of a link is its own, not that of where it leads
    if ".." in path.parts:
        path = path.resolve()
    if not (path / "config.json").is_file():
        raise UserError(f"--models: {model}: no folder with config.json, and no model of the recipe ({', '.join(known)})")
    name = path.parent.name if path.name == "model" else path.name
    if path.parts[-2:] == ("train", "model") and len(path.parts) > 4:  # a run's: its name and the step's
        name = "-".join(path.parts[-4:-2])
    if name in recipe.models and path.resolve() == model_path(recipe.models[name]).resolve():
        return name, None
    if name in (*known, *RESERVED):
        raise UserError(
            f"--models: {model}: the recipe has the name {name} already; rename the folder, or link it under another name"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(
            f"--models: {model}: {name!r} cannot be a model's name (letters, digits, ., - and _); "
            "rename the folder, or link it under another name"
        )
    return name, path


def print_tables(run_dir: Path, suites: Sequence[str], say: Say, *, models: bool) -> None:
    """The finished tables: of the models on held-out prompts, and of each suite.

    Args:
        run_dir: of the run.
        suites: names.
        say: prints a line.
        models: whether the table of models is asked for.
    """
    found = Manifest.load(run_dir / "eval/result") if models else None
    if found is not None:
        _print_models(found.metrics, divergence_name(read_recipe(run_dir)), say)
    for suite in suites:
        manifest = Manifest.load(run_dir / "eval/suite" / suite)
        if manifest is not None:
            say(f"\n{suite}: {manifest.metrics['items']} items" + _note(manifest.metrics))
            _print_suite(manifest.metrics["metrics"], say)


def divergence_name(recipe: Mapping[str, Any]) -> str:
    """What the mean log-ratio on a model's own answers is called: KL only where the model itself was sampled from."""
    drawn = [at(recipe, "evaluation", key) for key in ("temperature", "top_p", "min_p", "repetition_penalty")]
    return "KL" if drawn == [1, 1, 0, 1] else "log-ratio"


def _note(metrics: Mapping[str, Any]) -> str:
    return "".join(f"; {line}" for line in metrics.get("notes", ()))


def _print_models(metrics: Mapping[str, Any], divergence: str, say: Say) -> None:
    table, baseline = metrics["table"], metrics["baseline"]
    roles = [role for role in ("selector", "validator", "gold") if role in table[0]]
    say(f"{metrics['prompts']} held-out prompts; win rates against {baseline}, 95 % intervals over prompts")
    heads = [*(f"wins by {role}" for role in roles), "tokens", "finished", "repetition", "language"]
    last = f"{divergence} to {baseline}"
    width = max(12, len(last) + 2)
    say(f"{'model':12}" + "".join(f"{h:>22}" if "wins" in h else f"{h:>12}" for h in heads) + f"{last:>{width}}")
    distances = {entry["model"]: entry for entry in metrics["kl"] if entry["to"] == baseline}
    for row in table:
        cells = [f"{interval(row.get(f'{role}_win_rate'), percent=True):>22}" for role in roles]
        cells += [f"{row['num_tokens']:12.0f}" if row["num_tokens"] is not None else f"{'-':>12}"]
        cells += [f"{share(row[name]):>12}" for name in ("finished", "repetition", "language_match")]
        kl = distances.get(row["model"])
        cells.append(f"{kl['kl']:{width}.2f}" if kl else f"{'-':>{width}}")
        say(f"{row['model']:12}" + "".join(cells))


def _print_suite(metrics: Mapping[str, Any], say: Say) -> None:
    for metric, by_model in metrics.items():
        first = next(iter(by_model))
        better = ", lower is better" if metric in LOWER_IS_BETTER else ""
        say(f"  {metric:18}{'mean':>24}{f'change from {first}':>34}{'items':>8}  failed{better}")
        for model, of in by_model.items():
            failed = ", ".join(f"{count} {reason}" for reason, count in of["failed"].items()) or "-"
            say(f"  {model:18}{interval(of):>24}{_change(of, by_model[first]):>34}{of['items']:8d}  {failed}")


def _change(of: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """A model's change against the first with its interval, and over how many items where one of the means is over more."""
    count = compared_items(of, first)
    return interval(of["change"]) + (f" on {count}" if count is not None else "")


def interval(value: Mapping[str, Any] | None, *, percent: bool = False) -> str:
    """Mean and interval as text, - where there is none."""
    if value is None or value["mean"] is None:
        return "-"
    numbers = [value[key] for key in ("mean", "low", "high")]
    said = [("?" if v is None or math.isnan(v) else f"{100 * v:.0f}%" if percent else f"{v:.3f}") for v in numbers]
    return f"{said[0]} ({said[1]} to {said[2]})"


def share(value: float | None) -> str:
    """A share in percent."""
    return "-" if value is None else f"{100 * value:.0f}%"
