"""A study's folder: the base recipe (recipe.yaml) and arms.yaml with the arms and claims about them; every arm's recipe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from align.core.errors import UserError
from align.recipe.base import BASE_MODEL, SFT_MODEL, Count, Number, Strict
from align.recipe.load import apply_override, lines_of, load_recipe
from align.recipe.reward import ClassifierSpec
from align.recipe.schema import Recipe
from align.recipe.training import NEEDS_REFERENCE
from align.study.numbers import Measure

JUDGES = ("selector", "validator")
LABELS = "labels"  # name of the stage whose prompts are labelled
PICTURES = ("gold", "proxy")  # of all arms; each arm has one of its own name beside them
# What of a stage the study itself sets, in every arm.
_SET = ("name", "init", "reference", "sample.models", "train.snapshots")
MORE_PROMPTS = "it would give arms of several stages more prompts; lower corpus.limit or splits.stages instead"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class LabelsSpec(Strict):
    """How the reward models' training pairs are made of the gold reward."""

    responses: Count = Field(4, description="Of the base model to each prompt of the recipe's SFT part.")
    pairs_per_prompt: Count = Field(2, description="At most, of responses that gold tells apart.")
    noise: Annotated[float, Number, Field(ge=0, lt=0.5)] = Field(
        0.25, description="Share of pairs whose label is turned round."
    )


class ArmSpec(Strict):
    """One arm: how many stages, and what differs from the recipe's stage in each of them."""

    stages: Count
    stage: dict[str, Any] = Field(default_factory=dict, description="Merged into the recipe's first stage.")
    second_reward_model: bool = Field(True, description="false: the selector stands in for the validator and always agrees.")

    @model_validator(mode="after")
    def _its_own(self) -> ArmSpec:
        sections = {name: self.stage.get(name, {}) for name in ("sample", "train")}
        for name, section in sections.items():
            if not isinstance(section, dict):
                raise ValueError(f"stage.{name}: keys with their values go here, such as {{train: {{loss: simpo}}}}")
        given = [*self.stage, *(f"{name}.{key}" for name, section in sections.items() for key in section)]
        if taken := [key for key in given if key in _SET]:
            raise ValueError(f"stage.{taken[0]}: the study sets it in every arm; remove the key")
        if "sample.max_prompts" in given:
            raise ValueError(f"stage.sample.max_prompts: {MORE_PROMPTS}")
        return self


class ComparisonSpec(Strict):
    """A claim about two arms: that the first has more final gold reward, or a smaller gap of proxy and gold."""

    claim: str
    first: str
    second: str
    measure: Measure = "final_gold"


class StudySpec(Strict):
    """`arms.yaml`. The first comparison is the primary one."""

    checkpoints: Count = Field(6, description="Of every arm, evenly within its stages.")
    labels: LabelsSpec = LabelsSpec()
    arms: Annotated[dict[Name, ArmSpec], Field(min_length=1)]
    comparisons: Annotated[tuple[ComparisonSpec, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> StudySpec:
        for name, arm in self.arms.items():
            if name.lower() in PICTURES:
                raise ValueError(
                    f"arm {name}: {' and '.join(PICTURES)} are names of the study's own pictures; choose another"
                )
            if self.checkpoints % arm.stages:
                raise ValueError(f"arm {name}: {self.checkpoints} checkpoints cannot be shared by {arm.stages} stages")
        for one in self.comparisons:
            if unknown := [name for name in (one.first, one.second) if name not in self.arms]:
                raise ValueError(f"comparisons: no arm {unknown[0]}; there are {', '.join(self.arms)}")
        return self


def load_study(folder: Path) -> StudySpec:
    """The arms and comparisons of a study's folder.

    Raises:
        UserError: a file is missing, or arms.yaml cannot be read or is not as `StudySpec` says; every fault is listed.
    """
    path = folder / "arms.yaml"
    for file in (path, folder / "recipe.yaml"):
        if not file.is_file():
            raise UserError(f"{file}: no such file; a study is a folder with recipe.yaml and arms.yaml")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    try:
        dict(lines_of(yaml.compose(text, Loader=yaml.SafeLoader), (), path))  # refuses a key that is written twice
        return StudySpec.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        faults = [
            f"{path}: {'.'.join(map(str, e['loc'])) or 'study'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        ]
        raise UserError("\n".join(faults)) from None


def in_one_line(value: Any) -> str:
    """YAML in one line, as the value of an override."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True).strip()


def _merged(base: Any, changes: Any) -> Any:
    if isinstance(base, dict) and isinstance(changes, dict):
        return {**base, **{key: _merged(base.get(key), value) for key, value in changes.items()}}
    return changes


@dataclass(frozen=True)
class Plan:
    """A study with what the command line adds to it."""

    folder: Path
    out: Path
    spec: StudySpec
    overrides: tuple[str, ...]

    def __post_init__(self) -> None:
        models = self.recipe().reward_models
        for role in JUDGES:
            spec = getattr(models, role)
            if not isinstance(spec, ClassifierSpec) or spec.train is None:
                raise UserError(f"{self.path}: reward_models.{role}: a study trains both reward models, so give it `train`")
        if models.gold is None:
            raise UserError(f"{self.path}: reward_models.gold: a study needs the reward that counts as the truth")
        if self.recipe().stages[0].sample.max_prompts is not None:
            raise UserError(f"{self.path}: stages.0.sample.max_prompts: {MORE_PROMPTS}")

    @property
    def path(self) -> Path:
        """The base recipe."""
        return self.folder / "recipe.yaml"

    def _raw(self) -> dict[str, Any]:
        data = yaml.safe_load(self._text)
        for override in self.overrides:
            apply_override(data, override)
        return dict(data)

    @cached_property
    def _text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def recipe(self, *more: str) -> Recipe:
        """The base recipe with overrides.

        Raises:
            UserError: it is not as it should be, or changed since it was first read: arms would differ by that too.
        """
        found = load_recipe(self.path, [*self.overrides, *more])
        if self.path.read_text(encoding="utf-8") != self._text:
            raise UserError(f"{self.path}: changed while the study was at work; run the same command again")
        return found

    def prepared(self, seed: int) -> Path:
        """Where a seed's labels and reward models are."""
        return self.out / "prepared" / str(seed)

    def run_dir(self, arm: str, seed: int) -> Path:
        """Of an arm's run."""
        return self.out / "runs" / f"{arm}-{seed}"

    def judge(self, role: str, seed: int) -> Path:
        """The folder of a trained reward model."""
        return self.prepared(seed) / role / "reward" / role / "model"

    def stand_in(self, seed: int) -> Path:
        """A copy of the selector, the validator of arms without a second reward model."""
        return self.prepared(seed) / "stand-in"

    def labels_recipe(self, seed: int) -> Recipe:
        """One stage whose prompts are the SFT part of the arms', answered by the base model and scored by gold."""
        sft = self.recipe().splits.sft
        stage = {**self._raw()["stages"][0], "name": LABELS, "init": BASE_MODEL}
        stage |= {"reference": BASE_MODEL} if "reference" in stage else {}
        stage["sample"] = {**stage["sample"], "models": [BASE_MODEL], "n": self.spec.labels.responses}
        splits = {"sft": 0.0, "stages": sft, "heldout": 1 - sft}
        return self.recipe(
            f"seed={seed}",
            f"stages={in_one_line([stage])}",
            f"splits={in_one_line(splits)}",
            f"evaluation.models=[{SFT_MODEL}]",
        )

    def arm_recipe(self, arm: str, seed: int) -> Recipe:
        """An arm's recipe: equal stages, each from the model before it, with the seed's reward models."""
        spec, raw = self.spec.arms[arm], self._raw()
        pattern = _merged(raw["stages"][0], spec.stage)
        stages, before = [], SFT_MODEL
        for k in range(1, spec.stages + 1):
            train = {**pattern["train"], "snapshots": self.spec.checkpoints // spec.stages - 1}
            sample = {**pattern["sample"], "models": [before]}
            stage = {**pattern, "name": f"M{k}", "init": before, "sample": sample, "train": train}
            stage.pop("reference", None)
            stage |= {"reference": before} if NEEDS_REFERENCE.get(str(train.get("loss")), False) else {}
            stages.append(stage)
            before = stage["name"]
        judges = {}
        for role, source in zip(JUDGES, ("selector", "validator" if spec.second_reward_model else "selector"), strict=True):
            section = {key: value for key, value in raw["reward_models"][source].items() if key != "train"}
            folder = self.judge(source, seed) if role == source else self.stand_in(seed)
            judges[role] = {**section, "path": str(folder)}
        models = [SFT_MODEL, *(stage["name"] for stage in stages)]
        return self.recipe(
            f"name={arm}-{seed}",
            f"seed={seed}",
            f"stages={in_one_line(stages)}",
            f"evaluation.models={in_one_line(models)}",
            *(f"reward_models.{role}={in_one_line(section)}" for role, section in judges.items()),
        )
