"""The recipe's sections on data: documents, quality, taxonomy, instructions, evolution, answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from align.recipe.base import Count, Language, Listed, Names, Number, SamplingSpec, Share, Strict, distinct


class DatasetSpec(Strict):
    """A source that the library `datasets` streams."""

    path: str = Field(description="Local folder, loader such as parquet, or a name on the hub (which uses the network).")
    name: str | None = Field(None, description="Configuration of the dataset.")
    split: str = "train"


class CorpusSpec(Strict):
    """The documents: text and, better, id, lang, source, license. Read as a stream, so that millions fit."""

    paths: Annotated[tuple[str, ...], AfterValidator(distinct)] = Field(
        (), description="Files or glob patterns: .jsonl, .jsonl.gz, .parquet, or .txt with one document each."
    )
    datasets: tuple[DatasetSpec, ...] = ()
    columns: Mapping[Literal["text", "id", "lang", "source", "license"], str] = Field(
        default_factory=dict, description="Our column: theirs, where they are called otherwise."
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


class TaxonomySpec(Strict):
    """The tree, defined in advance, and how documents fill it."""

    path: str | None = Field(None, description="YAML tree of your own; null uses the shipped one.")
    units_per_document: Count = Field(2, description="Knowledge units asked of each document.")
    extraction: dict[Language, Literal["model", "sentences"]] = Field(
        {"en": "model", "ko": "model"},
        description="model: the base model states the facts; sentences: the document's own most central sentences.",
    )
    min_grounding: Share = Field(0.7, description="Share of a unit's content words that its quote must contain.")
    min_similarity: Share = Field(0.05, description="Cosine to the nearest topic below which a unit belongs nowhere.")
    sampling: SamplingSpec = SamplingSpec(temperature=0.3, max_tokens=128)


class InstructionsSpec(Strict):
    """Instructions asked of each knowledge unit."""

    per_unit: dict[Language, Count] = Field({"en": 2, "ko": 2}, description="By language.")
    writer: dict[Language, Literal["model", "template"]] = Field(
        {"en": "model", "ko": "model"},
        description="template: fixed wording around the topic's key term, for languages the base model cannot write.",
    )
    task_types: Annotated[tuple[Literal["question", "explain", "list", "compare", "advise"], ...], *Listed] = (
        "question", "explain", "list",
    )  # fmt: skip
    sampling: SamplingSpec = SamplingSpec(temperature=0.7, min_p=0.05, max_tokens=64)


class EvolutionSpec(Strict):
    """Evol-Instruct rounds (arXiv 2304.12244) with an eliminator; a failed child leaves its parent in the pool."""

    rounds: Annotated[int, Number, Field(ge=0, le=5)] = 1
    operators: Annotated[tuple[Literal["constrain", "deepen", "concretize", "reason", "breadth"], ...], *Listed] = (
        "constrain", "deepen", "concretize", "reason", "breadth",
    )  # fmt: skip
    share: Share = Field(0.5, description="Share of the pool that is evolved in each round.")
    sampling: SamplingSpec = SamplingSpec(temperature=0.8, min_p=0.05, max_tokens=96)


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

    writer: dict[Language, Literal["model", "document"]] = Field(
        {"en": "model", "ko": "model"},
        description="document: the source passage itself, for languages the base model cannot write.",
    )
    passage_chars: Count = Field(300, description="Characters of a passage where writer is document.")
    grounded: bool = Field(True, description="Show the model the knowledge unit while it answers.")
    candidates: Count = Field(1, description="Answers sampled per instruction; the first that passes the checks is kept.")
    max_repetition: Share = Field(0.3, description="Highest allowed share of repeated word 4-grams in an answer.")
    sampling: SamplingSpec = SamplingSpec(temperature=0.5, min_p=0.1, max_tokens=160)
