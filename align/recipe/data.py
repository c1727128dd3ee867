"""The recipe's sections on data: documents, quality, taxonomy, instructions, evolution, answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from align.recipe.base import Count, Language, Listed, ModelSpec, Names, Number, SamplingSpec, Share, Strict, distinct


class DatasetSpec(Strict):
    """A source that the library `datasets` streams."""

    path: str = Field(description="Local folder, loader such as parquet, or a name on the hub (which uses the network).")
    name: str | None = Field(None, description="Configuration of the dataset.")
    split: str = "train"


class CorpusSpec(Strict):
    """The documents: text and, better, title, id, lang, source, license. Read as a stream, so that millions fit."""

    paths: Annotated[tuple[str, ...], AfterValidator(distinct)] = Field(
        (), description="Files or glob patterns: .jsonl, .jsonl.gz, .parquet, or .txt with one document each."
    )
    datasets: tuple[DatasetSpec, ...] = ()
    columns: Mapping[Literal["text", "title", "id", "lang", "source", "license"], str] = Field(
        default_factory=dict,
        description="Our column: theirs, where they are called otherwise; a title goes before its text.",
    )
    languages: Annotated[tuple[Language, ...], *Listed] = ("en", "ko")
    allow_licenses: tuple[str, ...] | None = Field(None, description="Exact licence names to keep; null keeps all.")
    min_chars: Count = Field(80, description="Shorter documents hold no fact to ask about.")
    max_chars: Count = Field(2000, description="Longer documents are cut at a sentence end; the model reads this much.")
    limit: Count | None = Field(None, description="At most this many documents, chosen by hash of their id.")
    pii: Literal["mask", "keep"] = Field("mask", description="mask: typed placeholders for personal data (docs/data.md).")

    @model_validator(mode="after")
    def _some(self) -> CorpusSpec:
        if not self.paths and not self.datasets:
            raise ValueError("name documents with paths or datasets")
        return self


class DecontaminateSpec(Strict):
    """Test items must not be in what is trained on: prompts, answers and pairs are searched for them."""

    benchmarks: Names = Field(description="Benchmark files (JSON Lines) or glob patterns.")
    columns: tuple[str, ...] | None = Field(None, description="Those that hold test text; null for the usual names.")
    mode: Literal["full", "paper"] = Field("full", description="full: every window; paper: sampled ones, as EXAONE 3.5 did.")
    window: Annotated[int, Number, Field(ge=24)] = Field(50, description="Letters and digits in a row that both have.")
    samples: Count = Field(10, description="Windows drawn from each text in mode paper.")

    @model_validator(mode="after")
    def _used(self) -> DecontaminateSpec:
        if self.mode == "full" and self.changed("samples"):
            raise ValueError("samples has no effect in mode full, which looks at every window")
        return self


class QualitySpec(Strict):
    """What documents and training data must pass."""

    filters: bool = Field(True, description="Rule-based filters of documents (Gopher, C4), each with its reason.")
    near_duplicates: Annotated[float, Number, Field(ge=0.5, lt=1)] | None = Field(
        0.7, description="Jaccard similarity from which the later of two documents goes; null keeps both."
    )
    decontaminate: DecontaminateSpec | None = None
    require_certificate: bool = Field(False, description="No training on data without a decontamination certificate.")

    @model_validator(mode="after")
    def _can(self) -> QualitySpec:
        if self.require_certificate and self.decontaminate is None:
            raise ValueError("require_certificate: nothing makes a certificate without decontaminate.benchmarks")
        return self


class PromptsSpec(Strict):
    """The prompts that generation uses."""

    folder: str | None = Field(None, description="Your own, such as en/knowledge.md; they replace the shipped ones by name.")


class TaxonomySpec(Strict):
    """The tree, defined in advance, and how documents fill it."""

    path: str | None = Field(None, description="YAML tree of your own; null uses the shipped one.")
    units_per_document: Count = Field(2, description="Knowledge units asked of each document.")
    extraction: dict[Language, Literal["model", "sentences"]] = Field(
        {"en": "model", "ko": "model"},
        description="model: the base model states the facts; sentences: the document's own most central sentences.",
    )
    min_grounding: Share = Field(0.7, description="Share of a unit's content words that its quote must contain.")
    placement: Literal["nearest", "choice"] = Field(
        "choice", description="choice: the base model picks among the nearest topics, or none; nearest: the first of them."
    )
    shortlist: Count = Field(8, description="Topics that the model chooses among.")
    embedders: dict[Language, ModelSpec] = Field(
        default_factory=dict,
        description="By language: a sentence encoder beside TF-IDF, such as {en: {builtin: all-minilm-l6-v2}}.",
    )
    neighbours: Annotated[int, Number, Field(ge=0)] = Field(
        5, description="Alike documents whose places help to place one; 0 places each by itself."
    )
    min_similarity: Share = Field(0.1, description="Similarity to the nearest topic below which a unit belongs nowhere.")
    tries: Count = Field(2, description="How often the model is asked until its answer can be read.")
    sampling: SamplingSpec = SamplingSpec(temperature=0.3, max_tokens=128)

    @model_validator(mode="after")
    def _used(self) -> TaxonomySpec:
        if self.placement == "nearest" and self.changed("shortlist"):
            raise ValueError("shortlist has no effect with placement: nearest")
        return self


Task = Literal[
    "question", "explain", "list", "compare", "advise", "reason", "plan", "code", "format", "role_play", "summarize",
    "extract", "rewrite", "translate", "classify",
]  # fmt: skip


# What a passage of the document answers as it stands: where answers are passages, nothing else is asked.
PASSAGE_TASKS = ("question", "explain", "list")


class InstructionsSpec(Strict):
    """Instructions asked of (topic, knowledge unit, task type, persona, language, difficulty)."""

    per_unit: dict[Language, Count] = Field({"en": 2, "ko": 2}, description="By language; not used with per_topic.")
    per_topic: Count | None = Field(
        None, description="Quota of every topic and language, shared by its units (on average), so that holes are filled."
    )
    max_per_unit: Count = Field(8, description="Most that a quota asks of one unit.")
    topic_weights: dict[str, Annotated[float, Number, Field(ge=0)]] = Field(
        default_factory=dict, description="Times as many for a topic, field or domain (by id); 0 asks none."
    )
    writer: dict[Language, Literal["model", "template"]] = Field(
        {"en": "model", "ko": "model"},
        description="template: fixed wording around the topic's key term, for languages the base model cannot write.",
    )
    task_types: Annotated[tuple[Task, ...], *Listed] = (
        "question", "explain", "list", "compare", "advise", "reason", "plan", "code", "format", "role_play", "summarize",
        "extract", "rewrite", "translate", "classify",
    )  # fmt: skip
    passage_chars: Count = Field(600, description="Characters of the text that summarize, extract, ... are about.")
    personas: Share = Field(0.3, description="Share that is written for a persona, so that prompts differ.")
    levels: Annotated[tuple[Literal["easy", "medium", "hard"], ...], AfterValidator(distinct)] = Field(
        ("easy", "medium", "hard"), description="Difficulties that are asked for, drawn alike; [] says nothing of it."
    )
    system_prompts: Share = Field(0.2, description="Share that has a system prompt.")
    multi_turn: Share = Field(0.2, description="Share that is also continued: answered, then followed up.")
    novelty: Annotated[float, Number, Field(gt=0, le=1)] | None = Field(
        0.7, description="Highest ROUGE-L to an earlier instruction (Self-Instruct); null for no limit."
    )
    sampling: SamplingSpec = SamplingSpec(temperature=0.7, min_p=0.05, max_tokens=64)

    @model_validator(mode="after")
    def _used(self) -> InstructionsSpec:
        if self.per_topic is None and self.changed("max_per_unit"):
            raise ValueError("max_per_unit has no effect without per_topic")
        if self.per_topic is not None and self.changed("per_unit"):
            raise ValueError("per_unit has no effect with per_topic")
        return self


class AutoSpec(Strict):
    """Auto Evol-Instruct (arXiv 2406.00770): the method of the operator `auto` is rewritten where it fails."""

    rounds: Count = 3
    candidates: Count = Field(2, description="Rewritings drawn in a round.")
    dev: Count = Field(32, description="Instructions of each language that methods are tried on.")
    max_tokens: Count = Field(256, description="Of a rewritten method.")


class EvolutionSpec(Strict):
    """Evol-Instruct rounds (arXiv 2304.12244) with eliminators; a failed child leaves its parent in the pool."""

    rounds: Annotated[int, Number, Field(ge=0, le=5)] = 1
    operators: Annotated[
        tuple[Literal["constrain", "deepen", "concretize", "reason", "complicate_input", "auto", "breadth"], ...], *Listed
    ] = ("constrain", "deepen", "concretize", "reason", "complicate_input", "breadth")
    share: Share = Field(0.5, description="Share of the pool that is evolved in each round.")
    judge: bool = Field(True, description="The base model marks difficulty and quality; a child that it marks easier goes.")
    auto: AutoSpec | None = Field(None, description="Optimise the method of the operator auto first.")
    tries: Count = Field(2, description="How often the model is asked until its answer can be read.")
    sampling: SamplingSpec = SamplingSpec(temperature=0.8, min_p=0.05, max_tokens=96)

    @model_validator(mode="after")
    def _used(self) -> EvolutionSpec:
        if self.auto is not None and "auto" not in self.operators:
            raise ValueError("auto has no effect: the operator auto is not in operators")
        return self


class SplitSpec(Strict):
    """Disjoint prompt sets, by document, so that no document feeds two of them. Stages share their part equally."""

    sft: Share = 0.5
    stages: Share = 0.4
    heldout: Share = 0.1

    @model_validator(mode="after")
    def _sum(self) -> SplitSpec:
        if abs(self.sft + self.stages + self.heldout - 1) > 1e-9:
            raise ValueError("sft + stages + heldout must be 1")
        return self


class AnswersSpec(Strict):
    """Answers for the SFT set."""

    writer: dict[Language, Literal["model", "rewrite", "document"]] = Field(
        {"en": "model", "ko": "model"},
        description="By language of the answer. rewrite: the model rewrites the source passage as an answer "
        "(back-and-forth); document: the passage itself, for languages the base model cannot write.",
    )
    passage_chars: Count = Field(300, description="Characters of a passage where writer is rewrite or document.")
    grounded: bool = Field(True, description="Show the model the knowledge unit while it answers.")
    candidates: Count = Field(1, description="Answers sampled per instruction; of those that pass the checks one is kept.")
    best_by: Literal["first", "judge", "reward"] = Field(
        "first", description="Which: the first, the one the base model marks highest, or a reward model's best."
    )
    reward_model: str | None = Field(None, description="Folder of the reward model of best_by: reward.")
    max_repetition: Share = Field(0.3, description="Highest allowed share of repeated word 4-grams in an answer.")
    sampling: SamplingSpec = SamplingSpec(temperature=0.5, min_p=0.1, max_tokens=160)

    @model_validator(mode="after")
    def _used(self) -> AnswersSpec:
        if (self.best_by == "reward") != (self.reward_model is not None):
            raise ValueError("reward_model goes with best_by: reward, and best_by: reward needs it")
        if self.best_by != "first" and self.candidates == 1:
            raise ValueError(f"best_by: {self.best_by} has no effect with one candidate; raise candidates")
        return self
