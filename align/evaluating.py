"""`align eval`: which suites and models are asked for, and the tables that it prints."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.core.artifact import Manifest
from align.core.errors import UserError
from align.core.rows import LOWER_IS_BETTER

Say = Callable[[str], None]


def model_overrides(suite: str, models: Sequence[str]) -> list[str]:
    """`--set` overrides that put these models side by side in a suite: names, or folders, which get the folder's name.

    Raises:
        UserError: two folders of one name, or a folder whose name cannot be a model's.
    """
    overrides, names = [], []
    for model in models:
        folder = Path(model)
        if not (folder / "config.json").is_file():
            names.append(model)
            continue
        path = folder.resolve()
        name = path.parent.name if path.name == "model" else path.name
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name in names:
            raise UserError(f"--models: {model}: give it a name in the recipe, models: {{my-name: {{path: {path}}}}}")
        overrides.append(f"models.{name}={{path: '{path}'}}")
        names.append(name)
    return [*overrides, f"evaluation.suites.{suite}.models=[{', '.join(names)}]"]


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
        _print_models(found.metrics, say)
    for suite in suites:
        manifest = Manifest.load(run_dir / "eval/suite" / suite)
        if manifest is not None:
            say(f"\n{suite}: {manifest.metrics['items']} items" + _note(manifest.metrics))
            _print_suite(manifest.metrics["metrics"], say)


def _note(metrics: Mapping[str, Any]) -> str:
    return "".join(f"; {line}" for line in metrics.get("notes", ()))


def _print_models(metrics: Mapping[str, Any], say: Say) -> None:
    table, baseline = metrics["table"], metrics["baseline"]
    roles = [role for role in ("selector", "validator", "gold") if role in table[0]]
    say(f"{metrics['prompts']} held-out prompts; win rates against {baseline}, 95 % intervals over prompts")
    heads = [*(f"wins by {role}" for role in roles), "tokens", "finished", "repetition", "language", f"KL to {baseline}"]
    say(f"{'model':12}" + "".join(f"{head:>22}" if "wins" in head else f"{head:>12}" for head in heads))
    divergence = {entry["model"]: entry for entry in metrics["kl"] if entry["to"] == baseline}
    for row in table:
        cells = [f"{interval(row.get(f'{role}_win_rate'), percent=True):>22}" for role in roles]
        cells += [f"{row['num_tokens']:12.0f}" if row["num_tokens"] is not None else f"{'-':>12}"]
        cells += [f"{share(row[name]):>12}" for name in ("finished", "repetition", "language_match")]
        kl = divergence.get(row["model"])
        cells.append(f"{kl['kl']:12.2f}" if kl else f"{'-':>12}")
        say(f"{row['model']:12}" + "".join(cells))


def _print_suite(metrics: Mapping[str, Any], say: Say) -> None:
    for metric, by_model in metrics.items():
        first = next(iter(by_model))
        better = ", lower is better" if metric in LOWER_IS_BETTER else ""
        say(f"  {metric:18}{'mean':>24}{f'change from {first}':>28}{'items':>8}  failed{better}")
        for model, of in by_model.items():
            failed = ", ".join(f"{count} {reason}" for reason, count in of["failed"].items()) or "-"
            say(f"  {model:18}{interval(of):>24}{interval(of['change']):>28}{of['items']:8d}  {failed}")


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
