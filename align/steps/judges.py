"""The recipe's reward models as the table of steps sees them: what scoring with one reads, and what decides its scores."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from align.core.hashing import derive_seed
from align.recipe.reward import STEP, ClassifierSpec, ColumnSpec, FunctionSpec, JudgeSpec, LeafSpec, RulesSpec
from align.recipe.schema import Recipe, StageSpec
from align.steps.outside import dump, engine_config, load_prompts, model_path
from align.steps.step import engine_process

REWARD_ROLES = ("selector", "validator")


@dataclass(frozen=True, kw_only=True)
class JudgeNeeds:
    """What a step that scores with a reward model declares; the fields are those of a step."""

    inputs: tuple[str, ...]
    models: tuple[Path, ...]
    files: tuple[Path, ...]
    awaited: tuple[Path, ...]
    config: dict[str, Any]
    process: str


def leaves(recipe: Recipe, role: str) -> list[tuple[str, LeafSpec]]:
    """The single reward models of a role, with their names."""
    return [(name, spec) for name, spec in recipe.reward_models.leaves() if name.split(".")[0] == role]


def trained_judges(recipe: Recipe) -> dict[str, ClassifierSpec]:
    """Those that the recipe trains, by name."""
    return {n: spec for n, spec in recipe.reward_models.leaves() if isinstance(spec, ClassifierSpec) and spec.train}


def judge_seed(recipe: Recipe, name: str) -> int:
    """Of training: members of an ensemble differ by it, if by nothing else."""
    return derive_seed(recipe.seed, "reward-member", name) % 2**31 if "." in name else recipe.seed


def answers_judge(recipe: Recipe) -> ClassifierSpec:
    """The classifier that chooses SFT answers (`answers.best_by: reward`), run as the selector is where that is one too."""
    known = next((spec for _, spec in leaves(recipe, "selector") if isinstance(spec, ClassifierSpec)), None)
    chosen = {} if known is None else {"precision": known.precision, "max_length": known.max_length}
    return ClassifierSpec(path=recipe.answers.reward_model, **chosen)


def collected_names(stage: StageSpec) -> list[str]:
    """A name for each file of collected pairs, none twice."""
    names: list[str] = []
    for one in stage.pair.collected:
        stem = Path(one.path).name.split(".")[0]
        # "sampled" is the name of the stage's own pairs.
        taken = {"sampled", *names}
        names.append(next(name for k in count() if (name := f"{stem}-{k}" if k else stem) not in taken))
    return names


def judge_needs(recipe: Recipe, role: str, step: str) -> JudgeNeeds:
    """What scoring with a role's reward model needs in stage1, stage2, ... or eval.

    One process holds one engine or one vLLM pooling model; classifiers under transformers share the process "judge".
    """
    inputs: list[str] = []
    models: list[Path] = []
    files: list[Path] = []
    awaited: list[Path] = []
    parts: list[dict[str, Any]] = []
    process = "judge"
    for name, spec in leaves(recipe, role):
        # Where a model or file lies changes nothing, and what it was trained with is its own step's matter.
        config = dump(spec, "path", "train", "layout", "references")
        if isinstance(spec, ClassifierSpec):
            if spec.train:
                inputs.append(f"reward.{name}")
            else:
                models.append(Path(str(spec.path)))
            if spec.backend == "vllm":
                process = f"pooling:{role}"
        elif isinstance(spec, JudgeSpec):
            models.append(model_path(recipe.models[spec.model]))
            config |= {"engine": engine_config(recipe), "templates": load_prompts(recipe).fingerprint()}
            process = engine_process(recipe, spec.model)
        elif isinstance(spec, ColumnSpec):
            (awaited if STEP in spec.path else files).append(spec.file(step))
        elif isinstance(spec, FunctionSpec):
            files.append(Path(spec.path))
        elif isinstance(spec, RulesSpec) and spec.references:
            files.append(Path(spec.references))
        parts.append(config)
    whole = getattr(recipe.reward_models, role)
    config = {**dump(whole, "members"), "members": parts} if len(parts) > 1 else parts[0]
    return JudgeNeeds(
        inputs=tuple(inputs), models=tuple(models), files=tuple(files), awaited=tuple(awaited), config=config,
        process=process,
    )  # fmt: skip
