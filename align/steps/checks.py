"""What is checked of a recipe and the files it names before anything starts; the schema sees the recipe alone."""

from __future__ import annotations

from pathlib import Path

from align.core.errors import UserError
from align.core.hashing import FileHashes
from align.recipe.reward import ClassifierSpec
from align.recipe.schema import Recipe
from data_gen.knowledge import NONE
from data_gen.taxonomy import load_taxonomy


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


def check_judges(recipe: Recipe, hashes: FileHashes) -> None:
    """Raises:
    UserError: a selector and a validator have the same weights, whatever their folders are called.
    """
    weights: dict[str, str] = {}
    for name, spec in recipe.reward_models.leaves():
        folder = Path(spec.path) if isinstance(spec, ClassifierSpec) and spec.path else None
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
