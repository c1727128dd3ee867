"""What is checked of a recipe and the files it names before anything starts; the schema sees the recipe alone."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path

from align.core.errors import UserError
from align.core.hashing import FileHashes
from align.recipe.reward import ClassifierSpec, FunctionSpec
from align.recipe.schema import Recipe
from align.recipe.suites import IfevalSpec, NeedleSpec, PerplexitySpec
from align.steps.suite_items import items_of_file
from data_gen.knowledge import NONE
from data_gen.taxonomy import load_taxonomy
from reward.agreement_null import null_quantile


def check_taxonomy(recipe: Recipe) -> None:
    """Raises:
    UserError: the tree cannot be read or used, or the recipe names a topic that it has not.
    """
    where = recipe.taxonomy.path
    tree = load_taxonomy(Path(where) if where else None)
    for lang in recipe.corpus.languages:
        if not any(lang in leaf.name for leaf in tree.leaves):
            raise UserError(f"{where or 'shipped taxonomy'}: no topic is in language {lang} (corpus.languages)")
    if any(leaf.id == NONE for leaf in tree.leaves):
        raise UserError(f"{where}: a topic may not have the id {NONE}, by which the model says that none fits")
    known = {node for leaf in tree.leaves for node in leaf.path.split("/")}
    if unknown := [node for node in recipe.instructions.topic_weights if node not in known]:
        raise UserError(f"instructions.topic_weights: the taxonomy has no topic, field or domain {unknown[0]}")


def _check_outputs(folder: Path) -> None:
    """What `reward.classifier.load_classifier` will say, before hours of sampling; transformers' default is two labels."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return  # the plan says that there is no model
    if (outputs := len(config.get("id2label", "ab"))) != 1:
        raise UserError(f"{folder}: {outputs} outputs; a reward model has one (num_labels 1)")


def _check_thresholds(recipe: Recipe) -> None:
    for k, stage in enumerate(recipe.stages):
        pair, most = stage.pair, stage.sample.n * len(stage.sample.models)
        level = pair.null_quantile
        if level is not None and math.isnan(null_quantile(pair.agreement, most, level, pair.top_k)):
            raise UserError(
                f"stages.{k}.pair.null_quantile: {level:g} cannot be reached with {most} responses to a prompt, since "
                f"unrelated models show full {pair.agreement} more often; sample more or lower it"
            )


def check_suites(recipe: Recipe, to_run: Sequence[str]) -> None:
    """Read the files of the suites that have a step among `to_run`.

    Raises:
    UserError: a suite's file cannot be read as what it should be, or the checkers of IFEval are not installed.
    """
    for name, spec in recipe.evaluation.suites.items():
        if isinstance(spec, IfevalSpec) and importlib.util.find_spec("lm_eval") is None:
            raise UserError(
                f"evaluation.suites.{name}: IFEval's checkers are not installed; pip install '.[eval]' in the "
                "checkout adds them"
            )
        own = f"eval.suite.{name}"
        if not isinstance(spec, NeedleSpec | PerplexitySpec) and any(f"{step}.".startswith(f"{own}.") for step in to_run):
            items_of_file(spec, recipe.seed)


def check_judges(recipe: Recipe, hashes: FileHashes) -> None:
    """Raises:
    UserError: a selector and a validator have the same weights, whatever their folders are called; a classifier has
        several outputs; a function's file is no Python; no prompt can reach a null quantile.
    """
    _check_thresholds(recipe)
    weights: dict[str, str] = {}
    for name, spec in recipe.reward_models.leaves():
        if isinstance(spec, FunctionSpec) and Path(spec.path).is_file():
            try:
                compile(Path(spec.path).read_bytes(), spec.path, "exec", dont_inherit=True)
            except (SyntaxError, ValueError) as error:
                raise UserError(f"{spec.path}: {error} (reward_models.{name})") from None
        folder = Path(spec.path) if isinstance(spec, ClassifierSpec) and spec.path else None
        if folder:
            _check_outputs(folder)
        files = sorted(folder.glob("*.safetensors")) if folder else []
        if not files:
            continue
        content = ",".join(hashes.sha256(file) for file in files)
        other = weights.setdefault(content, name)
        if other.split(".")[0] != name.split(".")[0]:
            raise UserError(
                f"reward_models: {other} and {name} have the same weights ({folder}); a model always agrees with itself, so "
                "name two different ones"
            )
