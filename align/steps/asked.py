"""What a recipe asks for in which language and prompt set, where that follows from several of its sections."""

from __future__ import annotations

from align.recipe.data import PASSAGE_TASKS
from align.recipe.schema import Recipe


def splits(recipe: Recipe) -> dict[str, float]:
    """Share of documents by split name: sft, each stage, heldout."""
    share = recipe.splits.stages / len(recipe.stages)
    return {"sft": recipe.splits.sft, **{s.name: share for s in recipe.stages}, "heldout": recipe.splits.heldout}


def task_types(recipe: Recipe) -> dict[str, list[str]]:
    """The task types asked for in each language: where answers are passages, only those that a passage answers."""
    asked, writer = recipe.instructions.task_types, recipe.answers.writer
    return {
        str(lang): [task for task in asked if writer[lang] != "document" or task in PASSAGE_TASKS]
        for lang in recipe.corpus.languages
    }


def written_languages(recipe: Recipe) -> list[str]:
    """The languages whose instructions a model writes and answers: only there they are evolved and followed up."""
    writer, answers = recipe.instructions.writer, recipe.answers.writer
    return [str(lang) for lang in recipe.corpus.languages if writer[lang] == "model" and answers[lang] != "document"]
