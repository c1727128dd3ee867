"""`align eval`: whose name a model's name is, models from folders, and what the tables say of their numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.core.artifact import StepFolder
from align.core.errors import UserError
from align.core.rows import EvalResult, SuiteResult
from align.evaluating import print_tables, with_models
from align.recipe.load import dump_recipe, load_recipe
from align.recipe.schema import Recipe
from align.report.artifacts import folder_of
from align.report.estimates import compared_items

PROXY = Path(__file__).parents[2] / "recipes" / "proxy.yaml"
SUITE = "constraints"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """The proxy recipe, whose base model is a folder, with snapshots in its first stage."""
    base = model(tmp_path / "mine" / "base-model")
    return load_recipe(PROXY, [f"models.base={{path: {base}}}", "stages.0.train.snapshots=1"])


def model(folder: Path) -> Path:
    """A folder that passes for a model's."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def asked(recipe: Recipe, *models: object) -> tuple[list[str], dict[str, str | None]]:
    """The models of the suite, and the folders of all models, as a recipe that was written and read again has them."""
    found = with_models(recipe, SUITE, list(map(str, models)))
    again = Recipe.model_validate(yaml.safe_load(dump_recipe(found)))
    assert again == found
    changed = found.model_dump()
    changed["models"], changed["evaluation"] = recipe.model_dump()["models"], recipe.model_dump()["evaluation"]
    assert changed == recipe.model_dump(), "something else was changed"
    return list(found.evaluation.suites[SUITE].models or ()), {name: spec.path for name, spec in found.models.items()}


@pytest.mark.parametrize("name", ["base", "M0", "M1", "M1@1", "M2"])
def test_the_names_of_the_recipe_win(recipe: Recipe, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model(tmp_path / "here" / name)
    monkeypatch.chdir(folder.parent)
    paths = {name: spec.path for name, spec in recipe.models.items()}
    assert asked(recipe, name) == ([name], paths)
    for argument in (f"./{name}", folder):
        with pytest.raises(UserError) as caught:
            with_models(recipe, SUITE, [str(argument)])
        assert f"the recipe has the name {name} already; rename the folder, or link it under another name" in str(
            caught.value
        )


def test_the_folder_of_a_model_of_the_recipe_is_that_model(recipe: Recipe, tmp_path: Path) -> None:
    folder = Path(str(recipe.models["base"].path))
    named = recipe.model_copy(update={"models": {**recipe.models, "base-model": recipe.models["base"]}})
    assert asked(named, folder, "M0")[0] == ["base-model", "M0"]
    (tmp_path / "base").symlink_to(folder)
    assert asked(recipe, tmp_path / "base") == (["base"], {"base": str(folder)})
    with pytest.raises(UserError, match="base is there twice"):
        with_models(recipe, SUITE, ["base", str(tmp_path / "base")])


def test_a_link_gives_another_name(recipe: Recipe, tmp_path: Path) -> None:
    folder, link = model(tmp_path / "there" / "base"), tmp_path / "candidate"
    link.symlink_to(folder)
    names, paths = asked(recipe, "base", link)
    assert names == ["base", "candidate"]
    assert paths == {"base": recipe.models["base"].path, "candidate": str(link)}


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "2024", "3.10", "1e5", "true", "null", "a.b.c"])
def test_names_that_yaml_or_a_key_would_read_otherwise(recipe: Recipe, name: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "it's: a {place}, #1" / name)
    names, paths = asked(recipe, "M0", folder)
    assert names == ["M0", name]
    assert paths[name] == str(folder)


def test_folders_called_model_go_by_the_folder_above(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(tmp_path / "mine" / "model")
    assert asked(recipe, folder) == (["mine"], {"base": recipe.models["base"].path, "mine": str(folder)})
    monkeypatch.chdir(folder / "..")
    assert asked(recipe, "model")[0] == asked(recipe, "../mine/model/../model")[0] == ["mine"]
    # All models of runs lie in train/model; they go by run and step.
    folders = [model(tmp_path / run / step / "train" / "model") for run in "ab" for step in ("sft", "stage2")]
    assert asked(recipe, *folders)[0] == ["a-sft", "a-stage2", "b-sft", "b-stage2"]


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        (["nowhere"], r"nowhere: no folder with config.json, and no model of the recipe \(base, M0, M1@1, M1, M2@1, M2\)"),
        (["a/x", "b/x"], "b/x: x is there twice"),
        (["a/x", "a/x"], "x is there twice"),
        (["has space"], "'has space' cannot be a model's name"),
        (["모델"], "cannot be a model's name"),
        (["M3@1"], "cannot be a model's name"),
        (["sft"], "the recipe has the name sft already"),
    ],
)
def test_what_cannot_be_a_model_is_refused(recipe: Recipe, tmp_path: Path, folders: list[str], says: str) -> None:
    for folder in {*folders} - {"nowhere"}:
        model(tmp_path / folder)
    with pytest.raises(UserError, match=says) as caught:
        with_models(recipe, SUITE, [str(tmp_path / folder) for folder in folders])
    assert "\n" not in str(caught.value)


def test_a_suite_that_cannot_be_had_with_these_models(recipe: Recipe) -> None:
    data = recipe.model_dump()
    data["evaluation"]["suites"]["fights"] = {
        "kind": "arena",
        "path": "/data/arena.jsonl",
        "baseline": "M0",
        "max_tokens": 8,
        "judge_tokens": 8,
    }
    arena = Recipe.model_validate(data)
    with pytest.raises(UserError, match=r"^--models: evaluation.suites.fights: the baseline battles with no other model$"):
        with_models(arena, "fights", ["M0"])


# The tables.
def of(mean: float, items: int, change: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"mean": mean, "low": 0.0, "high": 1.0, "items": items, "failed": {}, "change": change}


def write(run: Path, step: str, row_type: type, **metrics: Any) -> None:
    out = StepFolder(run / folder_of(step), step=step, fingerprint="f", inputs={}, row_type=row_type, seed=1)
    out.write_all([], [], asked=0)
    out.finish(metrics)


def printed(run: Path, suites: list[str]) -> list[str]:
    lines: list[str] = []
    print_tables(run, suites, lines.append, models=not suites)
    return lines


def test_a_change_over_fewer_items_says_over_how_many(tmp_path: Path) -> None:
    same = {"mean": 0.0, "low": -0.1, "high": 0.1, "items": 16}
    table = {"base": of(0.5625, 16), "M1": of(0.5, 16, same), "M2": of(0.65, 20, same)}
    write(tmp_path, "eval.suite.safety", SuiteResult, items=20, metrics={"accuracy": table})
    lines = {line.split()[0]: line for line in printed(tmp_path, ["safety"])[1:]}
    assert "0.000 (-0.100 to 0.100) on 16      20" in lines["M2"]
    assert " on " not in lines["M1"] and " on " not in lines["base"]
    assert len({len(line.split("  failed")[0].rstrip("- ")) for line in lines.values()}) == 1, "columns do not line up"


def test_compared_items() -> None:
    change = {"mean": 0.0, "low": 0.0, "high": 0.0, "items": 16}
    assert compared_items(of(0.5, 16, change), of(0.5, 20)) == 16  # the first model's mean is over more
    assert compared_items(of(0.5, 16, change), of(0.5, 16)) is None
    assert compared_items(of(0.5, 16), of(0.5, 16)) is None  # the first model itself
    assert compared_items(of(0.5, 16, {**change, "items": 0}), of(0.5, 4)) == 0


@pytest.mark.parametrize(
    ("drawn", "name"),
    [
        ({"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}, "KL to M0"),
        ({"temperature": 0.9, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}, "log-ratio to M0"),
        ({"temperature": 1.0, "top_p": 0.9, "min_p": 0.0, "repetition_penalty": 1.0}, "log-ratio to M0"),
        ({"temperature": 1.0, "top_p": 1.0, "min_p": 0.05, "repetition_penalty": 1.0}, "log-ratio to M0"),
        ({"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.1}, "log-ratio to M0"),
        ({}, "log-ratio to M0"),
    ],
)
def test_only_what_is_a_kl_is_called_one(tmp_path: Path, drawn: dict[str, float], name: str) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps({"evaluation": drawn}))
    line = {"num_tokens": 5.0, "finished": 1.0, "repetition": 0.0, "language_match": 1.0}
    kl = [{"model": "M1", "to": "M0", "kl": 3.375}]
    rows = [{"model": "M0", **line}, {"model": "M1", **line}]
    write(tmp_path, "eval", EvalResult, table=rows, prompts=8, baseline="M0", kl=kl)
    lines = printed(tmp_path, [])
    assert lines[1].endswith(f"  {name}")
    assert lines[3].endswith(" 3.38")
    assert len({len(line) for line in lines[1:]}) == 1, "columns do not line up"
