"""One step of a run as the table declares it, and which step makes which model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.recipe.base import SFT_MODEL
from align.recipe.schema import Recipe
from align.steps.outside import model_path


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a run.

    Attributes:
        name: such as `stage1.sample.M0`.
        verb: the command that runs it.
        stage: 1, 2, ... or 0 outside the stages.
        folder: of its artifact, relative to the run folder.
        inputs: names of the steps whose artifacts it reads.
        config: what of the recipe decides its result.
        models: model folders outside the run that decide its result.
        files: other outside files that do.
        awaited: outside files that are made from the results of earlier steps, and may not be there yet.
        row_type: of its artifact.
        process: steps with the same key share one process (and its open engine); empty means light work in the parent.
        asks: the model that its engine serves; of the steps of a process, those that ask the same one run in a row.
        about: one line for the plan.
    """

    name: str
    verb: str
    folder: str
    row_type: type
    about: str
    stage: int = 0
    inputs: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    models: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()
    awaited: tuple[Path, ...] = ()
    process: str = ""
    asks: str = ""


def training_step(recipe: Recipe, model: str) -> str | None:
    """The step that makes a model, or None for one that exists before the run."""
    if model == SFT_MODEL:
        return "sft"
    return next((f"stage{k}.train" for k, s in enumerate(recipe.stages, 1) if model in (s.name, *s.snapshots)), None)


def engine_process(recipe: Recipe, model: str) -> str:
    """The process whose engine serves a model: that of the model it was trained from, since one engine can serve both."""
    root, stages = model, {name: stage for stage in recipe.stages for name in (stage.name, *stage.snapshots)}
    while root in stages:
        root = stages[root].init
    return f"engine:{recipe.sft.init if root == SFT_MODEL else root}"


def uses(recipe: Recipe, *models: str) -> tuple[tuple[str, ...], tuple[Path, ...]]:
    """(input steps, outside folders) of the models that a step needs."""
    names = tuple(dict.fromkeys(models))
    steps = tuple(s for m in names if (s := training_step(recipe, m)))
    return steps, tuple(model_path(recipe.models[m]) for m in names if m in recipe.models)


def evaluated(recipe: Recipe) -> list[str]:
    """The models of the evaluation, each stage's snapshots before its last model."""
    snapshots = {stage.name: stage.snapshots for stage in recipe.stages}
    return [name for model in recipe.evaluation.models for name in (*snapshots.get(model, ()), model)]
