"""The recipe's evaluation suites: files of questions that models answer and that checks or judges grade."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from align.recipe.base import BASE_MODEL, Count, Language, Listed, Names, Share, Strict


class _SuiteSpec(Strict):
    """What suites of every kind share."""

    models: Names | None = Field(None, description="Which models; null: those of the evaluation.")
    limit: Count | None = Field(None, description="Only the first so many items.")


class _AnsweredSpec(_SuiteSpec):
    max_tokens: Count = Field(512, description="Of each answer.")


class IfevalSpec(_AnsweredSpec):
    """IFEval (arXiv 2311.07911): instructions that a program can check, strict and loose, through lm-eval's checkers."""

    kind: Literal["ifeval"]
    path: str = Field(description="JSON Lines with key, prompt, instruction_id_list and kwargs.")
    max_tokens: Count = Field(1280, description="Of each answer; 1280 is lm-eval's.")


class ExactAnswerSpec(_AnsweredSpec):
    """Word problems with one right number, as in GSM8K (arXiv 2110.14168)."""

    kind: Literal["exact_answer"]
    path: str = Field(description="JSON Lines with question and answer, which ends in #### and the number.")


class SafetySpec(_AnsweredSpec):
    """Five-option questions with some right options, in shuffled order."""

    kind: Literal["safety"]
    path: str = Field(description="JSON Lines with id, question, options and correct.")
    max_tokens: Count = Field(64, description="Of each answer.")


class NeedleSpec(_AnsweredSpec):
    """A fact hidden at a depth of a long text, to be found again; the text is the run's corpus."""

    kind: Literal["needle"]
    languages: Annotated[tuple[Language, ...], *Listed] = ("en",)
    lengths: Annotated[tuple[Count, ...], Field(min_length=1)] = Field((256, 512, 768), description="Tokens of the prompt.")
    depths: Annotated[tuple[Share, ...], Field(min_length=1)] = Field((0.0, 0.25, 0.5, 0.75, 1.0), description="0 = first.")
    max_tokens: Count = Field(48, description="Of each answer.")


class PerplexitySpec(_SuiteSpec):
    """Perplexity of held-out documents: what alignment costs the language model itself."""

    kind: Literal["perplexity"]
    documents: Count = Field(64, description="At most so many of the documents that feed no training prompt.")
    max_length: Count = Field(512, description="Tokens of each that are read.")


class _JudgedSpec(_AnsweredSpec):
    judge: str = Field(BASE_MODEL, description="A name under models; it grades at temperature 0.")
    max_tokens: Count = Field(1024, description="Of each answer.")
    judge_tokens: Count = Field(2048, description="Of each judgement.")


class MtBenchSpec(_JudgedSpec):
    """MT-Bench (arXiv 2306.05685) and KoMT-Bench: two turns, marks from 1 to 10."""

    kind: Literal["mt_bench"]
    path: str = Field(description="JSON Lines with question_id, category, turns and perhaps reference.")
    lang: Language = Field("en", description="Of the answers.")
    references: Literal["required", "optional"] = Field(
        "required",
        description="optional: mathematics, coding and reasoning without reference are judged without, and counted.",
    )
    penalty: Literal["none", "intended", "released"] = Field(
        "none",
        description="KoMT-Bench: square root of the mark where the answer is not Korean; released: as its code does it.",
    )

    @model_validator(mode="after")
    def _used(self) -> MtBenchSpec:
        if self.penalty != "none" and self.lang != "ko":
            raise ValueError("penalty goes with lang: ko")
        return self


class LogickorSpec(_JudgedSpec):
    """LogicKor: Korean, six categories, two turns, marks from 0 to 10."""

    kind: Literal["logickor"]
    path: str = Field(description="JSON Lines with id, category, questions and references.")
    failures: Literal["exclude", "zero"] = Field(
        "exclude", description="zero: a mark that cannot be read is 0, as published."
    )


class ArenaSpec(_JudgedSpec):
    """Battles as in Arena-Hard (arXiv 2406.11939): a judge compares with a baseline's answer, in both orders."""

    kind: Literal["arena"]
    path: str = Field(description="JSON Lines with question_id and turns (or prompt).")
    baseline: str = Field(description="The model to battle with.")


SUITE_KINDS = ("ifeval", "exact_answer", "safety", "needle", "perplexity", "mt_bench", "logickor", "arena")
SuiteSpec = Annotated[
    IfevalSpec | ExactAnswerSpec | SafetySpec | NeedleSpec | PerplexitySpec | MtBenchSpec | LogickorSpec | ArenaSpec,
    Field(discriminator="kind"),
]
