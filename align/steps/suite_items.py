"""The questions of a recipe's evaluation suites, as its files have them."""

from __future__ import annotations

from pathlib import Path

from align.core.errors import StepError
from align.evaluate.exact_answer import read_exact_answers
from align.evaluate.judged_files import read_arena, read_logickor, read_mt_bench
from align.evaluate.safety import read_safety
from align.evaluate.suite import Item
from align.recipe.suites import ArenaSpec, ExactAnswerSpec, IfevalSpec, LogickorSpec, MtBenchSpec, SafetySpec, SuiteSpec


def items_of_file(spec: SuiteSpec, seed: int) -> list[Item]:
    """All questions of a suite that has a file, in its order.

    Raises:
        UserError: the file cannot be used (see the readers).
        StepError: a suite without a file.
    """
    if isinstance(spec, IfevalSpec):
        from align.evaluate.ifeval import read_ifeval  # seconds, for lm-eval's checkers

        return read_ifeval(Path(spec.path))
    if isinstance(spec, ExactAnswerSpec):
        return read_exact_answers(Path(spec.path))
    if isinstance(spec, SafetySpec):
        return read_safety(Path(spec.path), seed=seed)
    if isinstance(spec, MtBenchSpec):
        return read_mt_bench(Path(spec.path), spec.lang, spec.references)
    if isinstance(spec, LogickorSpec):
        return read_logickor(Path(spec.path))
    if isinstance(spec, ArenaSpec):
        return read_arena(Path(spec.path))
    raise StepError(f"a suite of kind {spec.kind} has no file of questions")
