"""The recipe's sections on reward models and preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from align.recipe.base import BASE_MODEL, Count, Listed, ModelSpec, Number, Positive, Share, Strict

NotNegative = Annotated[float, Number, Field(ge=0)]


class RewardTrainSpec(Strict):
    """Bradley-Terry training of a reward model with TRL's RewardTrainer."""

    backbone: ModelSpec
    epochs: Count = Field(1, description="More than one overfits soon.")
    learning_rate: Positive = 1.0e-5
    batch_size: Count = 8
    micro_batch_tokens: Count = Field(
        2048, description="Most tokens that go through the model at once; changes speed and memory, not results."
    )
    max_length: Count = 512
    centering: NotNegative = Field(0.01, description="Weight of (r_w + r_l)^2, which keeps scores near 0; 0 is off.")
    margin: bool = Field(False, description="Use the preference file's column margin: -log s(r_w - r_l - m).")


class _RewardSpec(Strict):
    """What reward models of every kind share."""

    length_penalty: NotNegative = Field(0.0, description="Taken off the score for each token of the response.")
    length_calibration: bool = Field(
        False, description="Take the score's linear trend in length, within prompts, off all scores of a step."
    )

    @model_validator(mode="after")
    def _one_length_rule(self) -> _RewardSpec:
        if self.length_penalty and self.length_calibration:
            raise ValueError("length_calibration takes back what length_penalty adds; choose one")
        return self


class ClassifierSpec(_RewardSpec):
    """An AutoModelForSequenceClassification with one output: a folder, or one that the recipe trains."""

    kind: Literal["classifier"] = "classifier"
    path: str | None = Field(None, description="A trained classifier's folder.")
    train: RewardTrainSpec | None = Field(None, description="Train it here instead.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Of scoring.")
    max_length: Count = Field(512, description="Tokens of prompt and response; a longer prompt loses its beginning.")
    backend: Literal["transformers", "vllm"] = Field("transformers", description="What runs it; vllm: as a pooling model.")
    layout: Literal["auto", "shared", "separate"] = Field(
        "auto", description="shared: the prompt once for its N responses; auto: where the model can. Speed, not results."
    )

    @model_validator(mode="after")
    def _one_of(self) -> ClassifierSpec:
        if (self.path is None) == (self.train is None):
            raise ValueError("give either path (a finished classifier) or train (its backbone and settings)")
        if self.backend == "vllm" and self.layout != "auto":
            raise ValueError("layout goes with backend: transformers")
        return self


class JudgeSpec(_RewardSpec):
    """A generative model with a rubric (prompts judge-response and compare-responses)."""

    kind: Literal["judge"]
    model: str = Field(BASE_MODEL, description="A name under models.")
    mode: Literal["score", "pairwise"] = Field(
        "score", description="score: a mark for each response; pairwise: all pairs in both orders, N(N-1) calls."
    )
    scale: Annotated[int, Number, Field(ge=2, le=9)] = Field(5, description="score: marks are 1 to this.")

    @model_validator(mode="after")
    def _used(self) -> JudgeSpec:
        if self.mode == "pairwise" and self.changed("scale"):
            raise ValueError("scale goes with mode: score")
        return self


Rule = Literal["constraints", "language", "format", "json", "repetition", "exact_answer"]
_RULES: dict[Rule, float] = {"constraints": 1.0, "language": 1.0, "format": 1.0, "repetition": 1.0}


class RulesSpec(_RewardSpec):
    """Verifiable checks in [0, 1] and their weights; the score is the weighted mean of those that apply."""

    kind: Literal["rules"]
    weights: dict[Rule, Positive] = Field(default_factory=_RULES.copy, min_length=1)
    references: str | None = Field(None, description="exact_answer: JSON Lines with prompt (or question) and answer.")

    @model_validator(mode="after")
    def _used(self) -> RulesSpec:
        if ("exact_answer" in self.weights) != (self.references is not None):
            raise ValueError("the check exact_answer goes with references, and references with that check")
        return self


STEP = "{step}"


class ColumnSpec(_RewardSpec):
    """Scores that were made elsewhere, by response id."""

    kind: Literal["column"]
    path: str = Field(
        description="JSON Lines with response_id and the score; {step} in it stands for stage1, stage2, ... or eval, and "
        "that file may be made once the step's responses are there."
    )
    column: str = "score"

    def file(self, step: str) -> Path:
        """The file of a step."""
        return Path(self.path.replace(STEP, step))


class FunctionSpec(_RewardSpec):
    """A function of your own: score(prompt, responses) -> a number for each response. Its file is run as code."""

    kind: Literal["function"]
    path: str = Field(description="A Python file.")
    function: str = "score"


def _kind(value: Any) -> Any:
    return value.get("kind", "classifier") if isinstance(value, dict) else getattr(value, "kind", None)


_Classifier = Annotated[ClassifierSpec, Tag("classifier")]
_Judge = Annotated[JudgeSpec, Tag("judge")]
_Rules = Annotated[RulesSpec, Tag("rules")]
_Column = Annotated[ColumnSpec, Tag("column")]
_Function = Annotated[FunctionSpec, Tag("function")]
MemberSpec = Annotated[_Classifier | _Judge | _Rules | _Column | _Function, Discriminator(_kind)]


class EnsembleSpec(_RewardSpec):
    """Several reward models as one (arXiv 2310.02743). Members must be on one scale, or say which scale each is on."""

    kind: Literal["ensemble"]
    members: Annotated[tuple[MemberSpec, ...], Field(min_length=2)]
    combine: Literal["mean", "min", "mean_minus_variance"] = "mean"
    variance_weight: Positive = Field(1.0, description="mean_minus_variance: lambda.")
    scales: tuple[tuple[float, Positive], ...] | None = Field(
        None,
        description="Mean and standard deviation of each member's scores, fixed beforehand; null takes them as they are.",
    )

    @model_validator(mode="after")
    def _used(self) -> EnsembleSpec:
        if self.combine != "mean_minus_variance" and self.changed("variance_weight"):
            raise ValueError("variance_weight goes with combine: mean_minus_variance")
        if self.scales is not None and len(self.scales) != len(self.members):
            raise ValueError(f"{len(self.scales)} scales for {len(self.members)} members")
        if any(member.length_calibration for member in self.members):
            raise ValueError("length_calibration goes with the ensemble, not with a member")
        # Members are asked in turn, and memory holds one engine.
        engines = {member.model for member in self.members if isinstance(member, JudgeSpec)}
        pooling = sum(isinstance(member, ClassifierSpec) and member.backend == "vllm" for member in self.members)
        if len(engines) + pooling > 1:
            raise ValueError("members: at most one may need an engine of its own (a judge's model, or backend: vllm)")
        return self


_Ensemble = Annotated[EnsembleSpec, Tag("ensemble")]
LeafSpec = ClassifierSpec | JudgeSpec | RulesSpec | ColumnSpec | FunctionSpec
RewardModelSpec = Annotated[
    _Classifier | _Judge | _Rules | _Column | _Function | _Ensemble, Discriminator(_kind)
]  # fmt: skip
KINDS = ("classifier", "judge", "rules", "column", "function", "ensemble")


class RewardModelsSpec(Strict):
    """Two judges of different kind: the selector picks yw and yl, the validator must agree. A third may only look."""

    selector: RewardModelSpec
    validator: RewardModelSpec
    gold: RewardModelSpec | None = Field(
        None,
        description="Held out of choosing and filtering pairs: evaluation alone asks it, so that over-optimization shows.",
    )

    @model_validator(mode="after")
    def _different(self) -> RewardModelsSpec:
        specs = [(role, getattr(self, role)) for role in self.roles]
        for (role, spec), (other, earlier) in ((a, b) for i, a in enumerate(specs) for b in specs[:i]):
            made_of = [(s.path or s.train) if isinstance(s, ClassifierSpec) else None for s in (spec, earlier)]
            if spec == earlier or (made_of[0] is not None and made_of[0] == made_of[1]):
                raise ValueError(f"the {role} is the {other} once more, and a model always agrees with itself")
        return self

    @property
    def roles(self) -> tuple[str, ...]:
        """selector, validator and, where there is one, gold."""
        return ("selector", "validator", *(("gold",) if self.gold is not None else ()))

    def leaves(self) -> list[tuple[str, LeafSpec]]:
        """Every single reward model with its name: selector, or selector.0, selector.1, ... of an ensemble."""
        found: list[tuple[str, LeafSpec]] = []
        for role in self.roles:
            spec = getattr(self, role)
            members = enumerate(spec.members) if isinstance(spec, EnsembleSpec) else ()
            found += [(f"{role}.{i}", member) for i, member in members] or [(role, spec)]
        return found


class RewardDataSpec(Strict):
    """Training pairs of the reward models: degraded answers of the SFT set, or a preference file."""

    path: str | None = Field(
        None, description="JSON Lines or Parquet with prompt, chosen, rejected, and perhaps subset and margin."
    )
    operators: Annotated[tuple[Literal["cut", "repeat", "shuffle", "other", "language"], ...], *Listed] = (
        "cut", "repeat", "shuffle", "other", "language",
    )  # fmt: skip
    per_example: Count = Field(2, description="Degraded versions of each answer.")
    held_out: Annotated[float, Number, Field(gt=0, lt=1)] = Field(0.15, description="Share of prompts kept for accuracy.")

    @model_validator(mode="after")
    def _used(self) -> RewardDataSpec:
        if self.path is not None and (unused := self.changed("operators", "per_example")):
            raise ValueError(f"{', '.join(unused)} have no effect beside path")
        return self


class CollectedSpec(Strict):
    """Preference pairs that were collected elsewhere; both reward models score them again."""

    path: str = Field(description="JSON Lines or Parquet with prompt, chosen, rejected.")
    share: Annotated[float, Number, Field(gt=0, lt=1)] = Field(0.3, description="Of the stage's pairs, at most.")


# The findings of `reward.audit` that can fail a run; a test holds the two together.
AUDIT_FINDINGS = (
    "length_only_selector", "length_only_validator", "constant_selector", "constant_validator", "validator_echoes_selector",
    "chosen_longer", "few_kept", "agreement_is_chance",
)  # fmt: skip


class AuditSpec(Strict):
    """The gate on a stage's preference set: a finding of the audit that is beyond its limit fails the step pair."""

    gate: Literal["fail", "warn"] = Field("fail", description="warn: log findings and go on.")
    limits: dict[str, float | None] = Field(
        default_factory=dict, description="Limits of single findings, by name (docs/reward.md); null switches one off."
    )

    @model_validator(mode="after")
    def _known(self) -> AuditSpec:
        if unknown := [name for name in self.limits if name not in AUDIT_FINDINGS]:
            raise ValueError(f"limits: no finding {unknown[0]}; there are {', '.join(AUDIT_FINDINGS)}")
        return self


# What holds where a recipe gives neither; see docs/reward.md for the measurement behind it.
DEFAULT_THRESHOLD = 0.5


class PairSpec(Strict):
    """How scores become pairs. The report names neither metric nor threshold; see docs/reward.md for these."""

    select: Literal[
        "best_worst", "best_random", "best_second", "best_mu_minus_sigma", "length_matched", "shortest_correct"
    ] = "best_worst"
    sigmas: Positive = Field(2.0, description="best_mu_minus_sigma: yl is nearest to mean - sigmas sd (arXiv 2502.16825).")
    length_tolerance: Share = Field(0.1, description="length_matched: difference in tokens, as a share of the longer one.")
    correct_score: Annotated[float, Number] | None = Field(
        None, description="shortest_correct: selector score from which a response is right."
    )
    pairs_per_prompt: Count = Field(1, description="At most; pairs of a prompt share no response.")
    agreement: Literal["gap", "kendall", "spearman", "sign", "top1", "bottom1", "overlap"] = Field(
        "gap", description="gap: how far apart the validator's ranks put yw and yl, 1 = first and last."
    )
    top_k: Count = Field(2, description="overlap: of the k best responses of both models.")
    threshold: Annotated[float, Number, Field(ge=-1, le=1)] | None = Field(
        None, description=f"Least agreement; {DEFAULT_THRESHOLD} where null_quantile is not given either."
    )
    null_quantile: Annotated[float, Number, Field(gt=0, lt=1)] | None = Field(
        None, description="Or: agreement that unrelated models reach in at most 1 - this of cases, whatever N is."
    )
    use: Literal["drop", "weight", "flip_rate"] = Field(
        "drop", description="Below the threshold drop; or keep, with the gap as the pair's weight or cDPO's flip rate."
    )
    min_margin: NotNegative = Field(0.0, description="Smallest selector score difference.")
    max_margin: NotNegative | None = Field(None, description="Largest; very easy pairs teach little.")
    keep_wrong_language: bool = Field(False, description="Also compare responses in another language than asked for.")
    held_out: Annotated[float, Number, Field(ge=0, lt=1)] = Field(
        0.05, description="Share of prompts whose pairs never enter training; the same prompts in every run of a seed."
    )
    collected: tuple[CollectedSpec, ...] = ()
    audit: AuditSpec = AuditSpec()

    @model_validator(mode="before")
    @classmethod
    def _one_threshold(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = [key for key in ("threshold", "null_quantile") if data.get(key) is not None]
        if len(given) > 1:
            raise ValueError("give threshold or null_quantile, not both (null takes one back)")
        if data.get("use", "drop") != "drop":
            if given:
                raise ValueError(f"{given[0]} has no effect with use: {data['use']}, which drops nothing by it")
            return data
        # Filled in here and not left to the step: a resolved recipe says what was done.
        return data if given else {**data, "threshold": DEFAULT_THRESHOLD}

    @model_validator(mode="after")
    def _used(self) -> PairSpec:
        for name, wanted in (("sigmas", "best_mu_minus_sigma"), ("length_tolerance", "length_matched")):
            if self.select != wanted and self.changed(name):
                raise ValueError(f"{name} goes with select: {wanted}")
        if (self.select == "shortest_correct") != (self.correct_score is not None):
            raise ValueError("correct_score goes with select: shortest_correct, which needs it")
        if self.select == "best_second" and self.agreement == "gap" and self.use == "drop":
            raise ValueError(
                "select: best_second chooses neighbours in rank, whose gap is small however much the models agree; use "
                "agreement: sign, kendall or spearman"
            )
        if self.agreement != "overlap" and self.changed("top_k"):
            raise ValueError("top_k goes with agreement: overlap")
        if self.max_margin is not None and self.max_margin < self.min_margin:
            raise ValueError(f"max_margin {self.max_margin:g} is below min_margin {self.min_margin:g}")
        if sum(one.share for one in self.collected) >= 1:
            raise ValueError("collected: the shares leave nothing for the sampled pairs")
        return self
