"""Recipes: each misspelt, misplaced or wrong-typed key is an error with its line, its path and the nearest valid key."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from align.cli import LOSS_VERBS
from align.core.errors import UserError
from align.recipe.load import apply_override, dump_recipe, json_schema, load_recipe
from align.recipe.schema import Recipe, StageSpec
from align.recipe.training import NEEDS_REFERENCE, PreferenceTrainSpec
from align.train.losses import GAMMA_OVER_BETA, LOSSES, find_loss

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
TEXT = """\
name: mine
models:
  base: {path: models/base}
corpus:
  paths: [data/*.jsonl]
sft:
  epochs: 2
reward_models:
  selector: {path: judges/a}
  validator:
    train: {backbone: {path: judges/b}}
stages:
  - name: M1
    init: M0
    reference: M0
    sample:
      models: [M0, base]
      n: 4
    train:
      loss: dpo
      beta: 0.1
  - name: M2
    init: M1
    sample: {models: [M1]}
    train:
      loss: simpo
      gamma_absolute: 1.25
evaluation:
  models: [base, M0, M1, M2]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(TEXT)
    return tmp_path / "recipe.yaml"


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


# (a line of the recipe, what it is replaced by, the faulty line's number, what the message says)
FAULTS = [
    ("sft:", "sfft:", 6, "sfft: unknown key; did you mean sft?"),
    ("  epochs: 2", "  epoch: 2", 7, "sft.epoch: unknown key; did you mean epochs?"),
    ("  epochs: 2", "  beta: 2", 7, "sft.beta: unknown key; it belongs at stages.*.train.beta"),
    ("  epochs: 2", "  zzzz: 2", 7, "sft.zzzz: unknown key; valid here: batch_size, epochs"),
    (
        "  epochs: 2",
        "  epochs: two",
        7,
        'sft.epochs: Input should be a valid integer, unable to parse string as an integer (it is "two")',
    ),
    ("  epochs: 2", "  epochs: 0", 7, "sft.epochs: Input should be greater than or equal to 1 (it is 0)"),
    ("  epochs: 2", "  epochs: 1.5", 7, "sft.epochs: Input should be a valid integer"),
    ("  epochs: 2", "  epochs: true", 7, "sft.epochs: a number goes here, not true or false"),
    ("  epochs: 2", "  epochs: [2]", 7, "sft.epochs: Input should be a valid integer (it is [2])"),
    ("  epochs: 2", "  epochs:", 7, "sft.epochs: Input should be a valid integer (it is null)"),
    ("  epochs: 2", "  learning_rate: .inf", 7, "sft.learning_rate: Input should be a finite number"),
    ("  epochs: 2", "  learning_rate: .nan", 7, "sft.learning_rate: Input should be a finite number"),
    ("  epochs: 2", "  learning_rate: -1.0e-5", 7, "sft.learning_rate: Input should be greater than 0"),
    (
        "  epochs: 2",
        "  schedule: cosin",
        7,
        "sft.schedule: Input should be 'cosine', 'linear' or 'constant' (it is \"cosin\")",
    ),
    ("  epochs: 2", "  init: M0", 7, "sft.init: no model 'M0' at that point; there are base"),
    ("  epochs: 2", "  epochs: 2\n  epochs: 3", 8, "sft.epochs is written twice (first in line 7)"),
    ("name: mine", "name: mine\nname: yours", 2, "name is written twice (first in line 1)"),
    ("name: mine", "seed: 1", 1, "name: this key is required"),
    ("name: mine", "name: ../mine", 1, "name: String should match pattern"),
    ("name: mine", "name: mine\nseed: -1", 2, "seed: Input should be greater than or equal to 0 (it is -1)"),
    ("name: mine", "name: mine\nlearning_rate: 1", 2, "learning_rate: unknown key; it belongs at sft.learning_rate"),
    ("  base: {path: models/base}", "  base: {pth: models/base}", 3, "models.base.pth: unknown key; did you mean path?"),
    ("  base: {path: models/base}", "  base: {}", 3, "models.base: give either path or builtin"),
    ("  base: {path: models/base}", "  base: {path: a, builtin: tiny-llama}", 3, "models.base: give either path or builtin"),
    ("  base: {path: models/base}", "  bass: {path: models/base}", 1, "models needs an entry named base"),
    ("  base: {path: models/base}", "  base: {path: b}\n  ../x: {path: b}", 1, "model or stage name '../x': use letters"),
    ("  - name: M2", "  - name: M/2", 1, "model or stage name 'M/2': use letters"),
    (
        "  base: {path: models/base}",
        "  base: {path: b}\n  M1: {path: b}",
        1,
        "stage names, model names, M0, sft and heldout must all differ",
    ),
    ("  paths: [data/*.jsonl]", "  paths: data/a.jsonl", 5, "corpus.paths: Input should be a valid tuple"),
    ("  paths: [data/*.jsonl]", "  paths: []", 4, "corpus: name documents with paths or datasets"),
    ("  paths: [data/*.jsonl]", "  paths: [a, a]", 5, "/a is listed twice"),
    ("  paths: [data/*.jsonl]", "  datasets: [{name: x}]", 5, "corpus.datasets.0.path: this key is required"),
    ("  paths: [data/*.jsonl]", "  paths: [a]\n  columns: {body: text}", 6, "corpus.columns.body"),
    ("  paths: [data/*.jsonl]", "  paths: [a]\n  pii: drop", 6, "corpus.pii: Input should be 'mask' or 'keep'"),
    (
        "evaluation:",
        "quality: {require_certificate: true}\nevaluation:",
        28,
        "quality: require_certificate: nothing makes a certificate without decontaminate.benchmarks",
    ),
    (
        "evaluation:",
        "quality: {decontaminate: {benchmarks: [a], samples: 20}}\nevaluation:",
        28,
        "quality.decontaminate: samples has no effect in mode full",
    ),
    (
        "evaluation:",
        "quality: {decontaminate: {benchmarks: [a], window: 5}}\nevaluation:",
        28,
        "quality.decontaminate.window: Input should be greater than or equal to 24",
    ),
    ("  paths: [data/*.jsonl]", "  path: [data/*.jsonl]", 5, "corpus.path: unknown key; did you mean paths?"),
    (
        "  paths: [data/*.jsonl]",
        "  paths: [a]\n  languages: [en, fr]",
        6,
        "corpus.languages.1: Input should be 'en' or 'ko' (it is \"fr\")",
    ),
    ("  paths: [data/*.jsonl]", "  paths: [a]\n  languages: [en, en]", 6, "corpus.languages: en is listed twice"),
    ("  selector: {path: judges/a}", "  selector: {}", 9, "reward_models.selector: give either path"),
    (
        "  selector: {path: judges/a}",
        "  critic: {path: judges/a}",
        9,
        "reward_models.critic: unknown key; valid here: gold, selector, validator",
    ),
    (
        "  selector: {path: judges/a}",
        "  validater: {path: judges/a}",
        9,
        "reward_models.validater: unknown key; did you mean validator?",
    ),
    ("    init: M0", "    init: M1", 14, "stages.0.init: no model 'M1' at that point; there are base, M0"),
    ("    reference: M0", "    ref: M0", 15, "stages.0.ref: unknown key; did you mean reference?"),
    ("    reference: M0", "    tau: 1", 15, "stages.0.tau: unknown key; it belongs at stages.*.train.tau"),
    ("    reference: M0", "    reference: M2", 15, "stages.0.reference: no model 'M2' at that point"),
    ("      models: [M0, base]", "      models: [M0, M0]", 17, "stages.0.sample.models: M0 is listed twice"),
    ("      models: [M0, base]", "      models: [M0, M1]", 17, "stages.0.sample.models: no model 'M1' at that point"),
    ("      models: [M0, base]", "      models: []", 17, "stages.0.sample.models: Tuple should have at least 1 item"),
    ("      n: 4", "      temprature: 1", 18, "stages.0.sample.temprature: unknown key; did you mean temperature?"),
    ("      n: 4", "      top_p: 1.5", 18, "stages.0.sample.top_p: Input should be less than or equal to 1 (it is 1.5)"),
    ("      beta: 0.1", "      tau: 0.1", 21, "stages.0.train.tau: unknown key for this loss; it goes with loss: ipo"),
    ("      beta: 0.1", "      micro_batch: 4", 21, "it counted examples; micro_batch_tokens counts tokens"),
    ("      beta: 0.1", "      keep_unfinished: false", 21, "it is gone, since training left such pairs out"),
    (
        "      beta: 0.1",
        "      gamma: 0.1",
        21,
        "stages.0.train.gamma: unknown key; SimPO's margin is gamma_absolute (the margin itself, as in the paper's equation",
    ),
    (
        "      gamma_absolute: 1.25",
        "      gamma: 1.25",
        27,
        "as gamma was here) or gamma_over_beta (the ratio gamma/beta, as in SimPO's code)",
    ),
    (
        "      gamma_absolute: 1.25",
        "      gamma_absolute: 1.25\n      gamma_over_beta: 0.5",
        25,
        "stages.1.train: give gamma_absolute or gamma_over_beta, not both (null takes one back)",
    ),
    (
        "      gamma_absolute: 1.25",
        "      gamma_absolute: -1",
        27,
        "gamma_absolute: Input should be greater than or equal to 0",
    ),
    ("      gamma_absolute: 1.25", "      gamma_over_beta: true", 27, "gamma_over_beta: a number goes here, not true or"),
    ("      beta: 0.1", "      label_smoothing: 0.5", 21, "stages.0.train.label_smoothing: Input should be less than 0.5"),
    (
        "      beta: 0.1",
        "      nll_weight: -0.1",
        21,
        "stages.0.train.nll_weight: Input should be greater than or equal to 0",
    ),
    ("      beta: 0.1", "      robust: true", 19, "stages.0.train: robust: true changes nothing without label_smoothing"),
    (
        "      loss: dpo",
        "      loss: ipo",
        21,
        "stages.0.train.beta: unknown key for this loss; it goes with loss: dpo, dpo_norm",
    ),
    ("      loss: dpo", "      loss: simper", 21, "stages.0.train.beta: unknown key for this loss"),
    ("      beta: 0.1", "      bta: 0.1", 21, "stages.0.train.bta: unknown key; did you mean beta?"),
    ("      beta: 0.1", "      learning_rate: 1.0e-5", 19, "write allow_high_learning_rate: true if you mean it"),
    (
        "      loss: dpo",
        "      loss: kto",
        20,
        "stages.0.train.loss: Input should be 'dpo', 'ipo', 'dpo_norm', 'simpo', 'simper' or 'orpo'",
    ),
    ("      loss: dpo\n", "", 19, "stages.0.train.loss: "),
    (
        "      gamma_absolute: 1.25",
        "      label_smoothing: 0.1",
        27,
        "stages.1.train.label_smoothing: unknown key for this loss; it goes with loss: dpo, dpo_norm",
    ),
    (
        "    sample: {models: [M1]}",
        "    sample: {models: [M1]}\n    reference: M0",
        22,
        "stages.1: loss simpo is reference-free: remove the key reference",
    ),
    ("    reference: M0\n", "", 13, "stages.0: loss dpo needs a reference"),
    ("  - name: M2", "  - name: M1", 1, "must all differ"),
    ("  - name: M2", "  - name: heldout", 1, "M0, sft and heldout must all differ"),
    ("  models: [base, M0, M1, M2]", "  models: [base, M1]", 1, "evaluation.baseline must be one of evaluation.models"),
    (
        "  models: [base, M0, M1, M2]",
        "  models: [base, M9]",
        28,
        "evaluation: no model 'M9' at that point; there are base, M0, M1, M2",
    ),
    ("evaluation:", "engine: {api_key_env: KEY}\nevaluation:", 28, "engine: api_key_env go with kind: openai"),
    (
        "evaluation:",
        "engine: {kind: openai}\nevaluation:",
        28,
        "engine: base_url goes with kind: openai, and kind: openai needs it",
    ),
    ("evaluation:", "splits: {sft: 0.5}\nsft_: 1\nevaluation:", 29, "sft_: unknown key; did you mean sft?"),
    ("evaluation:", "splits: {sft: 0.9}\nevaluation:", 28, "splits: sft + stages + heldout must be 1"),
    (
        "evaluation:",
        "reward_data: {path: a, per_example: 3}\nevaluation:",
        28,
        "reward_data: per_example have no effect beside path",
    ),
    ("evaluation:", "answers: {writer: {en: model}}\nevaluation:", 28, "answers.writer: say how for language ko too"),
    ("evaluation:", "evolution: {operators: []}\nevaluation:", 28, "evolution.operators: Tuple should have at least 1 item"),
    (
        "evaluation:",
        "instructions: {task_types: []}\nevaluation:",
        28,
        "instructions.task_types: Tuple should have at least 1 item",
    ),
]


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"), FAULTS, ids=[new.strip().split("\n")[-1] for _, new, _, _ in FAULTS]
)
def test_each_fault_is_named_with_its_line(path: Path, old: str, new: str, line: int, expected: str) -> None:
    assert TEXT.count(old) == 1 or old.endswith(":") or old.startswith(("    ", "  -")), old
    path.write_text(TEXT.replace(old, new, 1))
    found = message(path)
    assert expected in found
    assert any(one.startswith(f"{path}:{line}:") and expected in one for one in found.splitlines()), found
    assert "pydantic" not in found and "Traceback" not in found


def test_every_fault_is_listed_at_once(path: Path) -> None:
    path.write_text(TEXT.replace("epochs: 2", "epoch: 2").replace("beta: 0.1", "tau: 0.1").replace("n: 4", "n: none"))
    assert [line.split(": ")[1] for line in message(path).splitlines()] == [
        "sft.epoch", "stages.0.sample.n", "stages.0.train.tau",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sft.epochs", "--set sft.epochs: write it as key.path=value"),
        ("=2", "--set =2: write it as key.path=value"),
        ("sft.epochs=[", "--set sft.epochs=[: the value is not valid YAML"),
        ("stages.2.name=x", "--set stages.2.name=x: '2' is not one of the list's entries 0 to 1"),
        ("stages.first.name=x", "'first' is not one of the list's entries 0 to 1"),
        ("stages.-1.name=x", "'-1' is not one of the list's entries 0 to 1"),
        ("name.first=x", "--set name.first=x: name holds a value, not a section"),
        ("stages.0.train.bta=2", "stages.0.train.bta: unknown key; did you mean beta?"),
        ("taxonmy.path=x", "taxonmy: unknown key; did you mean taxonomy?"),
        ("sft.epochs=many", "sft.epochs: Input should be a valid integer"),
        ("stages.1.train.loss=dpo", "stages.1.train.gamma_absolute: unknown key for this loss; it goes with loss: simpo"),
    ],
)
def test_bad_overrides_are_named(path: Path, override: str, expected: str) -> None:
    assert expected in message(path, override)


def test_overrides_are_read_as_yaml_and_the_last_one_holds(path: Path) -> None:
    sets = [
        "stages.1.train.beta=3",
        "stages.1.train.beta=2.0",
        "sft.learning_rate=1e-6",
        "corpus.languages=[en]",
        "evaluation.n=2",
    ]
    recipe = load_recipe(path, [*sets, "engine.kind=transformers", "corpus.limit=null", "answers.grounded=false"])
    assert recipe.stages[1].train.beta == 2.0 and recipe.sft.learning_rate == 1e-6
    assert recipe.corpus.languages == ("en",) and recipe.corpus.limit is None and recipe.evaluation.n == 2
    assert recipe.engine.kind == "transformers" and recipe.answers.grounded is False


def test_override_replaces_a_list_entry_and_makes_sections() -> None:
    data = {"a": [1, {"b": 2}], "c": {}}
    apply_override(data, "a.0=5")
    apply_override(data, "a.1.b=x=y")
    apply_override(data, "d.e.f=1")
    assert data == {"a": [5, {"b": "x=y"}], "c": {}, "d": {"e": {"f": 1}}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [", "not valid YAML"),
        ("- a", "a recipe is a mapping of keys; this is list"),
        ("", "this file is empty; `align init quickstart` copies a recipe here"),
        ("name: !!python/object:os.system x", "not valid YAML"),
        ("{[a]: b}", "not valid YAML"),
    ],
)
def test_files_that_are_no_recipe(path: Path, text: str, expected: str) -> None:
    path.write_text(text)
    assert expected in message(path)
    assert message(path).startswith(f"{path}: ") and "\n" not in message(path)


def test_files_that_cannot_be_read(path: Path) -> None:
    path.write_bytes(b"name: caf\xe9")
    assert message(path).startswith(f"{path}: cannot be read")
    assert "no such recipe; `align init quickstart`" in message(path.with_name("nowhere.yaml"))
    assert "cannot be read" in message(path.parent)


def test_relative_paths_are_relative_to_the_recipe(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = path.parent
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", "/home/someone")
    recipe = load_recipe(
        Path("../recipe.yaml"), ["taxonomy.path=tree.yaml", "reward_data.path=/abs/pairs.jsonl", "models.other.path=~/llm"]
    )
    assert recipe.models["base"].path == str(folder / "models/base")
    assert recipe.models["other"].path == "/home/someone/llm"
    assert recipe.corpus.paths == (str(folder / "data/*.jsonl"),)
    assert recipe.taxonomy.path == str(folder / "tree.yaml")
    assert recipe.reward_data.path == "/abs/pairs.jsonl"
    assert recipe.reward_models.selector.path == str(folder / "judges/a")
    train = recipe.reward_models.validator.train
    assert train is not None and train.backbone.path == str(folder / "judges/b")
    replay = load_recipe(path, ["engine={kind: replay, replay_path: calls.jsonl}"])
    assert replay.engine.replay_path == str(folder / "calls.jsonl")


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipes_load_and_survive_their_own_dump(shipped: Path, tmp_path: Path) -> None:
    recipe = load_recipe(shipped)
    assert recipe.name == shipped.stem
    resolved = tmp_path / "runs" / "recipe.yaml"
    resolved.parent.mkdir()
    resolved.write_text(dump_recipe(recipe))
    assert load_recipe(resolved) == recipe
    assert dump_recipe(load_recipe(resolved)) == dump_recipe(recipe)
    written = yaml.safe_load(resolved.read_text())
    assert written["sft"]["max_grad_norm"] == 1.0, "every default is written out"
    assert [stage.train.loss for stage in recipe.stages] == ["dpo", "simpo"]


def test_there_are_shipped_recipes() -> None:
    assert {"quickstart", "proxy"} <= {p.stem for p in SHIPPED}


def test_a_resolved_dpo_stage_has_no_key_of_simpo(path: Path) -> None:
    stages = yaml.safe_load(dump_recipe(load_recipe(path)))["stages"]
    assert "gamma_absolute" not in stages[0]["train"] and "label_smoothing" not in stages[1]["train"]
    assert stages[0]["reference"] == "M0" and stages[1]["reference"] is None


SECTIONS = {get_args(s.model_fields["loss"].annotation)[0]: s for s in get_args(StageSpec.model_fields["train"].annotation)}


def test_recipe_and_losses_know_the_same_losses() -> None:
    """Names, options, defaults and the need of a reference: the recipe states them anew, since it imports no torch."""
    paired = {name: loss for name, loss in LOSSES.items() if loss.paired}
    assert list(SECTIONS) == list(NEEDS_REFERENCE) == list(LOSS_VERBS) == list(paired)
    shared = set(PreferenceTrainSpec.model_fields) - {"nll_weight"}
    for name, loss in paired.items():
        section = SECTIONS[name]
        assert NEEDS_REFERENCE[name] == loss.needs_reference
        fields = {key: field.default for key, field in section.model_fields.items() if key not in shared | {"loss"}}
        assert fields == loss.options, name
        assert all(section.model_fields[key].description or key == "beta" for key in fields)


def test_the_default_margin_of_simpo_is_the_loss_s_own() -> None:
    """It is written out in a resolved recipe, so it stands in two places."""
    section = SECTIONS["simpo"](loss="simpo")
    assert (section.gamma_absolute, section.gamma_over_beta) == (None, GAMMA_OVER_BETA)
    assert SECTIONS["simpo"](loss="simpo", gamma_absolute=0.0).gamma_over_beta is None
    again = SECTIONS["simpo"].model_validate(section.model_dump())
    assert again == section and SECTIONS["simpo"].model_validate(section) == section


@pytest.mark.parametrize("loss", LOSS_VERBS)
def test_each_loss_trains_a_stage(path: Path, loss: str) -> None:
    """By a command of its own name, with or without a reference; the other way round is an error."""
    sets = [f"stages.1.train={{loss: {loss}, nll_weight: 0.1}}"]
    reference = "stages.1.reference=M1"
    right, wrong = ([*sets, reference], sets) if NEEDS_REFERENCE[loss] else (sets, [*sets, reference])
    stage = load_recipe(path, right).stages[1]
    assert stage.train.loss == loss and stage.train.nll_weight == 0.1
    written = path.parent / "resolved.yaml"
    written.write_text(dump_recipe(load_recipe(path, right)))
    assert load_recipe(written) == load_recipe(path, right)
    expected = f"loss {loss} needs a reference" if NEEDS_REFERENCE[loss] else f"loss {loss} is reference-free"
    assert expected in message(path, *wrong)
    find_loss(loss).bind({key: getattr(stage.train, key) for key in find_loss(loss).options})


def test_json_schema_has_the_keys() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False
    for name, keys in {
        "SimpoSpec": {"gamma_absolute", "gamma_over_beta", "beta"},
        "DpoSpec": {"label_smoothing", "robust"},
        "OrpoSpec": {"odds_ratio_weight", "nll_weight"},
        "StageSpec": {"init", "reference"},
    }.items():
        assert keys <= set(schema["$defs"][name]["properties"])
    assert schema["$defs"]["CorpusSpec"]["properties"]["paths"]["description"]
    assert "gamma_absolute" not in schema["$defs"]["DpoSpec"]["properties"]


def test_loading_imports_no_model_library(path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom align.recipe.load import load_recipe\n"
        f"load_recipe(Path({str(path)!r}))\n"
        "print([m for m in ('torch', 'transformers', 'vllm', 'datasets', 'sklearn') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_recipe_may_move_with_its_folder(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(path, other)
    assert load_recipe(other / "recipe.yaml").models["base"].path == str(other / "models/base")
    assert load_recipe(other / "recipe.yaml").sft == load_recipe(path).sft


def test_passages_answer_only_what_a_passage_can() -> None:
    passages = ["answers.writer={en: document, ko: document}"]
    with pytest.raises(UserError, match=r"answers.writer gives passages in en, which answer only question, explain, list"):
        load_recipe(Path(__file__).parents[2] / "recipes/proxy.yaml", [*passages, "instructions.task_types=[code, plan]"])
    assert load_recipe(Path(__file__).parents[2] / "recipes/proxy.yaml", [*passages, "instructions.task_types=[code, list]"])
    with pytest.raises(UserError, match=r"translate asks for answers in ko, so answers.writer needs ko: model"):
        load_recipe(
            Path(__file__).parents[2] / "recipes/proxy.yaml",
            ["answers.writer={en: model, ko: document}", "instructions.task_types=[question, translate]"],
        )


def test_an_ensemble_holds_one_engine() -> None:
    from pydantic import ValidationError

    from align.recipe.reward import EnsembleSpec

    judge = {"kind": "judge", "model": "base"}
    EnsembleSpec(kind="ensemble", members=(judge, {**judge, "scale": 9}))  # type: ignore[arg-type]
    for other in ({"kind": "judge", "model": "big"}, {"kind": "classifier", "path": "x", "backend": "vllm"}):
        with pytest.raises(ValidationError, match="at most one may need an engine"):
            EnsembleSpec(kind="ensemble", members=(judge, other))  # type: ignore[arg-type]
