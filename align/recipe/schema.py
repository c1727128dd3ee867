"""The typed recipe: frozen pydantic models, unknown keys are errors, every default has a reason beside it.

Formulas and published settings behind the defaults are in docs/recipe.md. Relative paths are relative to the recipe file.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from align.core.language import OTHER_LANGUAGE
from align.recipe.base import (
    BASE_MODEL,
    RESERVED,
    SFT_MODEL,
    Count,
    EngineSpec,
    Language,
    ModelSpec,
    Names,
    Number,
    SamplingSpec,
    Strict,
)
from align.recipe.data import (
    PASSAGE_TASKS,
    AnswersSpec,
    CorpusSpec,
    EvolutionSpec,
    InstructionsSpec,
    PromptsSpec,
    QualitySpec,
    SplitSpec,
    TaxonomySpec,
)
from align.recipe.reward import ClassifierSpec, JudgeSpec, PairSpec, RewardDataSpec, RewardModelsSpec
from align.recipe.suites import ArenaSpec, SuiteSpec
from align.recipe.training import (
    NEEDS_REFERENCE,
    DpoNormSpec,
    DpoSpec,
    IpoSpec,
    NoisyLabelsSpec,
    OrpoSpec,
    SftSpec,
    SimperSpec,
    SimpoSpec,
)


class StageSampleSpec(SamplingSpec):
    """N responses per prompt from each of these models."""

    models: Names = Field(description="Names under models, M0, M1, ... or snapshots of earlier stages, M1@1, ...")
    n: Count = Field(8, description="Responses per prompt from each model; the literature uses 4 to 16.")
    max_prompts: Count | None = Field(None, description="At most this many prompts of the stage's split.")

    @model_validator(mode="after")
    def _enough(self) -> StageSampleSpec:
        if self.n * len(self.models) < 2:
            raise ValueError("n: 1 from one model leaves nothing to compare; sample at least two responses per prompt")
        return self


class StageSpec(Strict):
    """One stage: sample, score, pair, train. `init`, `reference` and the sampled models are always written out."""

    name: str
    init: str
    reference: str | None = None
    sample: StageSampleSpec
    pair: PairSpec = PairSpec()
    train: Annotated[DpoSpec | IpoSpec | DpoNormSpec | SimpoSpec | SimperSpec | OrpoSpec, Field(discriminator="loss")]

    @property
    def snapshots(self) -> list[str]:
        """Names of the models that training saves on its way, such as M1@1 and M1@2."""
        return [f"{self.name}@{k}" for k in range(1, self.train.snapshots + 1)]

    @model_validator(mode="after")
    def _reference(self) -> StageSpec:
        if NEEDS_REFERENCE[self.train.loss] and self.reference is None:
            raise ValueError(f"loss {self.train.loss} needs a reference: write which model it is")
        if not NEEDS_REFERENCE[self.train.loss] and self.reference is not None:
            raise ValueError(f"loss {self.train.loss} is reference-free: remove the key reference")
        if self.pair.use == "flip_rate":
            if not isinstance(self.train, NoisyLabelsSpec):
                raise ValueError(
                    f"pair.use: flip_rate goes with the losses that know wrong labels, not with {self.train.loss}"
                )
            if self.train.label_smoothing:
                raise ValueError("pair.use: flip_rate gives each pair its own rate; set train.label_smoothing to 0")
        return self


class EvaluationSpec(SamplingSpec):
    """Held-out prompts answered by each model and judged by both reward models."""

    models: Names = Field(description="Names under models, or M0, M1, ...; snapshots of these come by themselves.")
    baseline: str = Field(SFT_MODEL, description="Win rates are against this model.")
    n: Count = Field(1, description="Answers per prompt and model.")
    max_prompts: Count | None = None
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Of the KL estimates.")
    suites: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], SuiteSpec] = Field(
        default_factory=dict, description="Benchmarks by a name of your own; docs/evaluation.md lists the kinds."
    )


class Recipe(Strict):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Number, Field(ge=0, lt=2**31)] = 17
    models: dict[str, ModelSpec]
    engine: EngineSpec = EngineSpec()
    corpus: CorpusSpec
    quality: QualitySpec = QualitySpec()
    prompts: PromptsSpec = PromptsSpec()
    taxonomy: TaxonomySpec = TaxonomySpec()
    instructions: InstructionsSpec = InstructionsSpec()
    evolution: EvolutionSpec = EvolutionSpec()
    splits: SplitSpec = SplitSpec()
    answers: AnswersSpec = AnswersSpec()
    sft: SftSpec = SftSpec()
    reward_data: RewardDataSpec = RewardDataSpec()
    reward_models: RewardModelsSpec
    stages: Annotated[tuple[StageSpec, ...], Field(min_length=1)]
    evaluation: EvaluationSpec

    @model_validator(mode="after")
    def _names(self) -> Recipe:
        by_language: tuple[tuple[str, dict[Language, Any]], ...] = (
            ("taxonomy.extraction", self.taxonomy.extraction),
            ("instructions.writer", self.instructions.writer),
            ("instructions.per_unit", self.instructions.per_unit),
            ("answers.writer", self.answers.writer),
        )
        for where, given in by_language:
            if missing := [lang for lang in self.corpus.languages if lang not in given]:
                raise ValueError(f"{where}: say how for language {', '.join(missing)} too")
        if unread := [lang for lang in self.taxonomy.embedders if lang not in self.corpus.languages]:
            raise ValueError(f"taxonomy.embedders: no document in {unread[0]} is read (corpus.languages)")
        for lang in self.corpus.languages:
            if self.answers.writer[lang] == "document" and not {*PASSAGE_TASKS} & {*self.instructions.task_types}:
                raise ValueError(
                    f"instructions.task_types: answers.writer gives passages in {lang}, which answer only "
                    f"{', '.join(PASSAGE_TASKS)}; name one of these, or let the model answer"
                )
        if "translate" in self.instructions.task_types:
            for lang in (lang for lang in self.corpus.languages if self.answers.writer[lang] != "document"):
                other = OTHER_LANGUAGE[lang]
                if {str(key): how for key, how in self.answers.writer.items()}.get(other) != "model":
                    raise ValueError(
                        f"instructions.task_types: translate asks for answers in {other}, so answers.writer needs {other}: "
                        "model; name the other task types if the model cannot write it"
                    )
        if BASE_MODEL not in self.models:
            raise ValueError(f"models needs an entry named {BASE_MODEL}: the model that SFT starts from")
        trained = [SFT_MODEL, *(stage.name for stage in self.stages)]
        made = [[SFT_MODEL], *([*stage.snapshots, stage.name] for stage in self.stages)]
        for name in (*self.models, *trained[1:]):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):  # it becomes a folder
                raise ValueError(f"model or stage name {name!r}: use letters, digits, ., - and _")
        if len({*trained, *self.models, *RESERVED}) != len(trained) + len(self.models) + len(RESERVED):
            raise ValueError(f"stage names, model names, M0, {' and '.join(RESERVED)} must all differ")
        _known(self.sft.init, list(self.models), "sft.init")
        for where, spec in self.reward_models.leaves():
            if isinstance(spec, JudgeSpec):
                _known(spec.model, list(self.models), f"reward_models.{where}.model")
            if isinstance(spec, ClassifierSpec) and spec.train and spec.train.margin and self.reward_data.path is None:
                raise ValueError(f"reward_models.{where}.train.margin: margins are a column of a file, reward_data.path")
        for k, stage in enumerate(self.stages):
            known = [*self.models, *(name for names in made[: k + 1] for name in names)]
            _known(stage.init, known, f"stages.{k}.init")
            if stage.reference is not None:
                _known(stage.reference, known, f"stages.{k}.reference")
            for name in stage.sample.models:
                _known(name, known, f"stages.{k}.sample.models")
        writing = ("taxonomy", "instructions", "evolution", "answers")
        limits = {f"{key}.sampling": getattr(self, key).sampling.max_tokens for key in writing}
        if self.evolution.auto:
            limits["evolution.auto"] = self.evolution.auto.max_tokens
        limits |= {f"stages.{k}.sample": stage.sample.max_tokens for k, stage in enumerate(self.stages)}
        for where, limit in {**limits, "evaluation": self.evaluation.max_tokens}.items():
            if limit >= self.engine.max_model_len:
                raise ValueError(f"{where}.max_tokens: {limit} leaves no room for a prompt in engine.max_model_len")
        for name in (*self.evaluation.models, self.evaluation.baseline):
            _known(name, [*self.models, *trained], "evaluation")
        if self.evaluation.baseline not in self.evaluation.models:
            raise ValueError("evaluation.baseline must be one of evaluation.models")
        return self

    @model_validator(mode="after")
    def _suites(self) -> Recipe:
        known = [*self.models, SFT_MODEL, *(name for stage in self.stages for name in (*stage.snapshots, stage.name))]
        for name, suite in self.evaluation.suites.items():
            where = f"evaluation.suites.{name}"
            if isinstance(suite, ArenaSpec) and not {*(suite.models or self.evaluation.models)} - {suite.baseline}:
                raise ValueError(f"{where}: the baseline battles with no other model")
            for model in (*(suite.models or ()), *(getattr(suite, key, BASE_MODEL) for key in ("judge", "baseline"))):
                _known(model, known, where)
            for key in ("max_tokens", "judge_tokens"):
                if (limit := getattr(suite, key, 0)) >= self.engine.max_model_len:
                    raise ValueError(f"{where}.{key}: {limit} leaves no room for a prompt in engine.max_model_len")
        return self


def _known(name: str, known: list[str], where: str) -> None:
    if name not in known:
        raise ValueError(f"{where}: no model {name!r} at that point; there are {', '.join(known)}")
