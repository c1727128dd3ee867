"""The steps of the evaluation suites: each model's answers, each model's judgements, and the table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from align.core.rows import SuiteAnswer, SuiteResult
from align.evaluate.verdicts import templates_fingerprint
from align.recipe.base import BASE_MODEL
from align.recipe.schema import Recipe
from align.recipe.suites import ArenaSpec, LogickorSpec, MtBenchSpec, NeedleSpec, PerplexitySpec, SuiteSpec
from align.steps.asked import splits
from align.steps.outside import dump, engine_config
from align.steps.step import Step, engine_process, uses

JUDGED = (MtBenchSpec, LogickorSpec, ArenaSpec)
# What of a suite's section does not change a model's answers.
_NOT_ANSWERS = ("models", "judge", "judge_tokens", "references", "penalty", "failures", "baseline")


def suite_models(recipe: Recipe, name: str) -> list[str]:
    """The models that a suite puts side by side; the first is what changes are measured against."""
    return list(recipe.evaluation.suites[name].models or recipe.evaluation.models)


def answering_models(recipe: Recipe, name: str) -> list[str]:
    """Those that answer: also the baseline of battles."""
    spec = recipe.evaluation.suites[name]
    return list(dict.fromkeys([*suite_models(recipe, name), *([spec.baseline] if isinstance(spec, ArenaSpec) else [])]))


def suite_steps(recipe: Recipe) -> Iterator[Step]:
    """All steps of all suites. Each has folders of its own, so no suite sees another's answers."""
    for name, spec in recipe.evaluation.suites.items():
        if isinstance(spec, PerplexitySpec):
            yield _perplexity(recipe, name, spec)
        else:
            yield from _answered(recipe, name, spec)


def _answered(recipe: Recipe, name: str, spec: SuiteSpec) -> Iterator[Step]:
    files = () if isinstance(spec, NeedleSpec) else (Path(str(getattr(spec, "path", ""))),)
    haystack = ("corpus",) if isinstance(spec, NeedleSpec) else ()
    common = {**dump(spec, "path", *_NOT_ANSWERS), "seed": recipe.seed, "engine": engine_config(recipe)}
    wording = {"wording": templates_fingerprint()} if isinstance(spec, JUDGED) else {}
    base_made, base = uses(recipe, BASE_MODEL)
    answers = []
    for model in answering_models(recipe, name):
        made, outside = uses(recipe, model)
        answers.append(f"eval.suite.{name}.answer.{model}")
        yield Step(
            name=answers[-1], verb="eval", folder=f"eval/suite/{name}.answer.{model}", row_type=SuiteAnswer, files=files,
            inputs=(*haystack, *made, *base_made), models=tuple(dict.fromkeys((*outside, *(base if haystack else ())))),
            config={**common, "model": model}, process=engine_process(recipe, model), asks=model,
            about=f"{model} answers the suite {name}",
        )  # fmt: skip
    judged = isinstance(spec, JUDGED)
    judgements = []
    for model in suite_models(recipe, name) if judged else ():
        judge = spec.judge if isinstance(spec, JUDGED) else ""
        if isinstance(spec, ArenaSpec) and model == spec.baseline:
            continue  # it does not battle with itself
        made, outside = uses(recipe, judge)
        judgements.append(f"eval.suite.{name}.judge.{model}")
        opponents = {f"eval.suite.{name}.answer.{m}" for m in (model, getattr(spec, "baseline", model))}
        yield Step(
            name=judgements[-1], verb="eval", folder=f"eval/suite/{name}.judge.{model}", row_type=SuiteResult, files=files,
            inputs=(*sorted(opponents), *made), models=outside, process=engine_process(recipe, judge), asks=judge,
            config={**common, **wording, **dump(spec, "path", "models", "max_tokens"), "model": model},
            about=f"{judge} judges the answers of {model} in {name}",
        )  # fmt: skip
    yield Step(
        name=f"eval.suite.{name}", verb="eval", folder=f"eval/suite/{name}", row_type=SuiteResult, files=files,
        inputs=(*haystack, *(judgements or answers)), models=base if haystack else (), process="judge",
        config={**common, "models": suite_models(recipe, name)}, about=f"the numbers of {name}",
    )  # fmt: skip


def _perplexity(recipe: Recipe, name: str, spec: PerplexitySpec) -> Step:
    made, outside = uses(recipe, *suite_models(recipe, name))
    return Step(
        name=f"eval.suite.{name}", verb="eval", folder=f"eval/suite/{name}", row_type=SuiteResult, process="judge",
        inputs=("corpus", *made), models=outside,
        config={
            **dump(spec, "models"), "models": suite_models(recipe, name), "seed": recipe.seed, "splits": splits(recipe),
            "precision": recipe.evaluation.precision,
        }, about="perplexity of held-out documents",
    )  # fmt: skip
