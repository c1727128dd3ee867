"""What a recipe takes from outside of its run, and what of that decides results: models, the engine, prompts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from align.builtin_models import builtin_folder, is_built
from align.core.hashing import file_sha256
from align.recipe.base import ModelSpec
from align.recipe.reward import ClassifierSpec
from align.recipe.schema import Recipe
from data_gen.prompts import Prompts


def model_path(spec: ModelSpec) -> Path:
    """The folder of a recipe's model."""
    return builtin_folder(spec.builtin) if spec.builtin else Path(str(spec.path))


def load_prompts(recipe: Recipe) -> Prompts:
    """The prompts of a recipe: the shipped ones, with the user's in their place."""
    return Prompts(Path(recipe.prompts.folder) if recipe.prompts.folder else None)


def missing_builtins(recipe: Recipe) -> list[str]:
    """Built-in models that the recipe uses and that are not built yet."""
    specs = [*recipe.models.values(), *recipe.taxonomy.embedders.values()]
    specs += [
        spec.train.backbone for _, spec in recipe.reward_models.leaves() if isinstance(spec, ClassifierSpec) and spec.train
    ]
    names = dict.fromkeys(s.builtin for s in specs if s.builtin)
    return [n for n in names if n and not is_built(n)]


def engine_kind(recipe: Recipe) -> str:
    """The kind that `auto` stands for on this machine."""
    if recipe.engine.kind != "auto":
        return recipe.engine.kind
    return "vllm" if importlib.util.find_spec("vllm") else "transformers"


def dump(section: Any, *exclude: str) -> dict[str, Any]:
    return dict(section.model_dump(mode="json", exclude=set(exclude)))


def engine_config(recipe: Recipe) -> dict[str, Any]:
    """What of the engine section changes answers: not the batch size, the address or the time-outs."""
    engine = recipe.engine
    kind = engine.record_with or engine_kind(recipe)
    served: dict[str, Any] = {"model_names": engine.model_names} if kind == "openai" else {}
    if engine.replay_path and not engine.record_with:
        served = {"replay": file_sha256(Path(engine.replay_path))} if Path(engine.replay_path).is_file() else {}
    return {"kind": kind, "dtype": engine.dtype, "max_model_len": engine.max_model_len, **served}
