"""The table of steps: order, and that a changed value makes exactly the steps that depend on it run again."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from align.core.artifact import Artifact, StepFolder
from align.core.errors import UserError
from align.core.hashing import FileHashes
from align.core.rows import Document, SftExample
from align.recipe.load import load_recipe
from align.recipe.schema import NEEDS_REFERENCE
from align.runner import Run, _next_group, command_of
from align.steps.checks import check_suites
from align.steps.context import Context, Process
from align.steps.estimate import estimates, print_plan
from align.steps.evaluation import _places
from align.steps.step import engine_process
from align.steps.suites import _judgements
from align.steps.table import Planned, build_steps, plan_steps

TEXT = """\
name: mine
models:
  base: {path: models/base}
engine: {kind: transformers}
corpus: {paths: [data/*.jsonl]}
taxonomy: {path: tree.yaml}
instructions: {multi_turn: 0}
reward_models:
  selector: {path: models/judge}
  validator: {train: {backbone: {path: models/backbone}}}
stages:
  - name: M1
    init: M0
    reference: M0
    sample: {models: [M0, base], n: 4, temperature: 1.0}
    train: {loss: dpo, beta: 0.1}
  - name: M2
    init: M1
    sample: {models: [M1, M0], n: 4}
    train: {loss: simpo}
evaluation:
  models: [base, M0, M1, M2]
"""


TREE = """
levels: [topic]
nodes:
  - {id: honey, name: {en: Honey, ko: 꿀}, definition: {en: Honey., ko: 꿀.}, include: {en: [bee], ko: [꿀벌]}}
"""


ENGLISH = TREE.replace(", ko: 꿀}", "}").replace(", ko: 꿀.}", "}").replace(", ko: [꿀벌]}", "}")


@dataclass
class Project:
    """A folder with a recipe, its files, and a run in which every step stands."""

    folder: Path

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs" / "mine"

    def plan(self, *overrides: str) -> list[Planned]:
        recipe = load_recipe(self.folder / "recipe.yaml", overrides)
        return plan_steps(build_steps(recipe), self.run_dir, FileHashes(self.folder / ".hashes.json"))

    def stale(self, *overrides: str) -> set[str]:
        return {p.step.name for p in self.plan(*overrides) if not p.done}

    def make(self, name: str, content: str = "") -> None:
        """Leave the artifact that a step would leave; documents stand in for every row type."""
        planned = next(p for p in self.plan() if p.step.name == name)
        assert planned.fingerprint is not None
        out = StepFolder(
            self.run_dir / planned.step.folder, step=name, fingerprint=planned.fingerprint, inputs=planned.input_digests,
            row_type=Document, seed=17,
        )  # fmt: skip
        out.write_all([Document(id="d", text=name + content, lang="en", source="", license="", pii="")], [], asked=1)
        out.finish()


def model(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors", "README.md"):
        (folder / name).write_text(f"{folder.name} {name}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = Project(tmp_path_factory.mktemp("project"))
    (project.folder / "recipe.yaml").write_text(TEXT)
    (project.folder / "data").mkdir()
    (project.folder / "data" / "a.jsonl").write_text('{"text": "honey"}\n')
    (project.folder / "tree.yaml").write_text(TREE)
    for name in ("base", "judge", "backbone"):
        model(project.folder / "models" / name)
    for planned in project.plan():
        project.make(planned.step.name)
    return project.folder


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Project:
    shutil.copytree(finished, tmp_path / "copy")
    return Project(tmp_path / "copy")


def test_steps_come_after_their_inputs_and_have_places_of_their_own() -> None:
    recipes = Path(__file__).parents[2] / "recipes"
    for path in sorted(recipes.glob("*.yaml")):
        steps = build_steps(load_recipe(path))
        names = [s.name for s in steps]
        assert len(set(names)) == len({s.folder for s in steps}) == len(steps) > 20
        for i, step in enumerate(steps):
            assert set(step.inputs) <= set(names[:i]), step.name
            assert not any(other.folder.startswith(step.folder + "/") for other in steps), step.folder
        assert set(steps[-1].inputs) | {"report"} == set(names), "the report waits for everything"
        assert json.dumps([s.config for s in steps], allow_nan=False)


def test_verbs_are_the_commands() -> None:
    from align.cli import LOSS_VERBS, STAGE_VERBS, STEP_VERBS

    proxy = Path(__file__).parents[2] / "recipes" / "proxy.yaml"
    seen = set()
    for loss in LOSS_VERBS:
        sets = [f"stages.1.train={{loss: {loss}}}", f"stages.1.reference={'M1' if NEEDS_REFERENCE[loss] else 'null'}"]
        steps = build_steps(load_recipe(proxy, sets))
        assert all((s.verb in STAGE_VERBS) == (s.stage > 0) for s in steps)
        assert next(s.verb for s in steps if s.name == "stage2.train") == loss
        seen |= {s.verb for s in steps}
    assert seen == set(STEP_VERBS)


def test_reward_models_that_cannot_work_are_refused_before_anything_runs(project: Project) -> None:
    def refused(*overrides: str) -> str:
        with pytest.raises(UserError) as caught:
            Run(load_recipe(project.folder / "recipe.yaml", overrides), project.run_dir).plan()
        return str(caught.value)

    assert len(Run(load_recipe(project.folder / "recipe.yaml"), project.run_dir).plan()) > 20
    out_of_reach = refused("stages.1.pair={agreement: kendall, null_quantile: 0.99999}")
    assert out_of_reach.startswith("stages.1.pair.null_quantile: 0.99999 cannot be reached with 8 responses")
    own = project.folder / "own.py"
    own.write_text("def score(prompt, responses) return 1")
    assert "own.py, line 1" in refused(f"reward_models.validator={{kind: function, path: {own}}}")
    labels = {"id2label": {"0": "bad", "1": "good", "2": "fine"}}
    (project.folder / "models/judge/config.json").write_text(json.dumps(labels))
    assert refused().endswith("models/judge: 3 outputs; a reward model has one (num_labels 1)")
    (project.folder / "models/judge/config.json").write_text("{}")
    assert "2 outputs" in refused()
    with pytest.raises(UserError, match=r"validator.train.margin: margins are a column of a file, reward_data.path"):
        load_recipe(project.folder / "recipe.yaml", ["reward_models.validator.train.margin=true"])


def test_a_copied_project_stands_where_it_is(project: Project) -> None:
    assert project.stale() == set()
    moved = project.folder.with_name("renamed")
    project.folder.rename(moved)
    assert Project(moved).stale() == set()


DATA = {"taxonomy", "instruct", "evolve", "respond", "sft.data"}
AFTER_M0 = {"stage1.sample.M0", "stage2.sample.M0", "eval.sample.M0"}
END = {"eval.score.selector", "eval.score.validator", "eval", "report"}
STAGE1_JUDGED = {"stage1.score.selector", "stage1.score.validator", "stage1.pair", "stage1.train"}
STAGE2_JUDGED = {"stage2.score.selector", "stage2.score.validator", "stage2.pair", "stage2.train"}
AFTER_M1 = {"stage2.sample.M1", "eval.sample.M1", *STAGE2_JUDGED, "eval.sample.M2", *END}
FROM_SFT = {"sft", "reward.data", "reward.validator", *AFTER_M0, *STAGE1_JUDGED, *AFTER_M1}
BASE_SAMPLES = {"stage1.sample.base", "eval.sample.base"}
EVERYTHING = {"corpus", *DATA, *FROM_SFT, *BASE_SAMPLES}


def test_the_sets_above_are_the_whole_table(project: Project) -> None:
    assert {p.step.name for p in project.plan()} == EVERYTHING


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.0.sample.temperature=0.9", {"stage1.sample.M0", "stage1.sample.base", *STAGE1_JUDGED, *AFTER_M1}),
        ("stages.0.sample.models=[M0]", {*STAGE1_JUDGED, *AFTER_M1}),
        ("stages.0.pair.threshold=0.4", {"stage1.pair", "stage1.train", *AFTER_M1}),
        ("stages.0.train.beta=0.2", {"stage1.train", *AFTER_M1}),
        ("stages.1.train.beta=2.0", {"stage2.train", "eval.sample.M2", *END}),
        ("stages.1.train.gamma_absolute=0.5", {"stage2.train", "eval.sample.M2", *END}),
        ("stages.1.train.nll_weight=0.1", {"stage2.train", "eval.sample.M2", *END}),
        ("stages.1.train={loss: simper}", {"stage2.train", "eval.sample.M2", *END}),
        ("stages.1.init=M0", {"stage2.pair", "stage2.train", "eval.sample.M2", *END}),
        ("stages.1.sample.n=5", {"stage2.sample.M1", "stage2.sample.M0", *STAGE2_JUDGED, "eval.sample.M2", *END}),
        ("evaluation.models=[M0, M1, M2]", END),
        ("evaluation.baseline=M1", {"eval", "report"}),
        ("evaluation.temperature=0.1", {"eval.sample.base", "eval.sample.M0", "eval.sample.M1", "eval.sample.M2", *END}),
        ("reward_models.selector.max_length=400", {"stage1.score.selector", "stage1.pair", "stage1.train", *AFTER_M1}),
        (
            "reward_models.validator.train.epochs=3",
            {"reward.validator", *(STAGE1_JUDGED - {"stage1.score.selector"}), *AFTER_M1},
        ),
        ("sft.learning_rate=1.0e-6", FROM_SFT - {"reward.data", "reward.validator"}),
        ("answers.max_repetition=0.2", FROM_SFT | {"sft.data"}),
        ("answers.candidates=2", FROM_SFT | {"sft.data", "respond"}),
        ("evolution.share=0.1", EVERYTHING - {"corpus", "taxonomy", "instruct"}),
        ("splits={sft: 0.6, stages: 0.3, heldout: 0.1}", EVERYTHING - {"corpus", "taxonomy"}),
        ("taxonomy.units_per_document=3", EVERYTHING - {"corpus"}),
        ("corpus.min_chars=81", EVERYTHING),
        ("seed=18", EVERYTHING),
        ("engine.dtype=float32", EVERYTHING - {"corpus"}),
        ("name=yours", {"report"}),
        # None of these changes a result.
        ("sft.micro_batch_tokens=1", set()),
        ("sft.layout=separate", set()),
        ("stages.0.train.head=plain", set()),
        ("stages.0.train.micro_batch_tokens=1", set()),
        ("stages.0.train.processes=2", set()),
        ("stages.0.train.parallel=fsdp2", set()),
        ("stages.1.train.gradient_checkpointing=true", set()),
        ("engine.max_num_seqs=1", set()),
        ("engine.gpu_memory_utilization=0.5", set()),
    ],
)
def test_a_changed_value_makes_exactly_its_dependents_stale(project: Project, override: str, expected: set[str]) -> None:
    assert project.stale(override) == expected


def change(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (change("data/a.jsonl", '{"text": "honez"}\n'), EVERYTHING),
        (change("data/b.jsonl", "{}\n"), EVERYTHING),
        (change("tree.yaml", TREE.replace("bee]", "bee, wax]")), EVERYTHING - {"corpus"}),
        (change("models/base/chat_template.jinja", "other"), EVERYTHING - {"corpus"}),
        (change("models/base/model.safetensors", "other"), EVERYTHING - {"corpus"}),
        (change("models/base/README.md", "other"), set()),
        (change("models/judge/model.safetensors", "other"),
         {"stage1.score.selector", "stage1.pair", "stage1.train", *AFTER_M1}),
        (change("models/backbone/config.json", "other"),
         {"reward.validator", "stage1.score.validator", "stage1.pair", "stage1.train", *AFTER_M1}),
        (lambda folder: (folder / "data/a.jsonl").rename(folder / "data/z.jsonl") and None, set()),
    ],
    ids=["corpus byte", "corpus file", "tree", "template", "weights", "readme", "judge", "backbone", "file name"],
)  # fmt: skip
def test_a_changed_file_makes_exactly_its_dependents_stale(
    project: Project, edit: Callable[[Path], None], expected: set[str]
) -> None:
    edit(project.folder)
    assert project.stale() == expected


def test_an_input_made_anew_with_other_content_makes_its_readers_stale(project: Project) -> None:
    folder = project.run_dir / "stage1" / "pair"
    shutil.rmtree(folder)
    assert project.stale() == {"stage1.pair", "stage1.train", *AFTER_M1}
    project.make("stage1.pair")
    assert project.stale() == set(), "the same content again: nothing after it is repeated"
    shutil.rmtree(folder)
    project.make("stage1.pair", "other content")
    assert project.stale() == {"stage1.train", *AFTER_M1}


def test_a_begun_step_is_known_from_a_stale_one(project: Project) -> None:
    folder = project.run_dir / "eval" / "result"
    manifest = Artifact(folder).manifest
    shutil.rmtree(folder)
    known = {"step": "eval", "fingerprint": manifest.fingerprint, "row_type": Document, "seed": 17}
    StepFolder(folder, **known, inputs={})
    assert {p.step.name: p.started for p in project.plan()}["eval"] is False  # begun on other inputs
    StepFolder(folder, **known, inputs=manifest.inputs)
    states = {p.step.name: (p.done, p.started) for p in project.plan()}
    assert states["eval"] == (False, True) and states["report"] == (False, False)
    assert {p.step.name: p.started for p in project.plan("evaluation.baseline=M1")}["eval"] is False


@pytest.mark.parametrize("name", ["models/base", "models/judge", "models/backbone"])
def test_a_missing_model_folder_is_named(project: Project, name: str) -> None:
    (project.folder / name / "config.json").unlink()
    with pytest.raises(UserError, match=rf"{name}: no model there \(config.json is missing\)"):
        project.plan()


def test_missing_files_are_named(project: Project) -> None:
    (project.folder / "tree.yaml").unlink()
    with pytest.raises(UserError, match=r"tree\.yaml: no such file"):
        project.plan()
    (project.folder / "data" / "a.jsonl").unlink()
    with pytest.raises(UserError, match=r"corpus\.paths: .*\.jsonl names no file"):
        project.plan()


def test_a_step_with_missing_inputs_names_the_commands(project: Project) -> None:
    shutil.rmtree(project.run_dir / "stage1" / "score")
    with pytest.raises(UserError, match=r"stage1\.train needs stage1\.pair first: run `align pair --stage 1`"):
        _next_group(project.plan(), ["stage1.train"])
    with pytest.raises(
        UserError, match=r"needs stage1\.score\.selector, stage1\.score\.validator first: run `align score --stage 1` "
    ):
        _next_group(project.plan(), ["stage1.pair"])
    assert [p.step.name for p in _next_group(project.plan(), None)] == ["stage1.score.selector", "stage1.score.validator"]


def test_groups_share_a_process_and_cover_every_step_once(project: Project) -> None:
    shutil.rmtree(project.run_dir)
    done: list[str] = []
    groups: list[list[str]] = []
    while group := _next_group(project.plan(), None):
        assert len({p.step.process for p in group}) == 1
        assert len(group) == 1 or group[0].step.process
        for planned in group:
            assert set(planned.step.inputs) <= set(done), planned.step.name
            project.make(planned.step.name)
            done.append(planned.step.name)
        groups.append([p.step.name for p in group])
    assert sorted(done) == sorted(EVERYTHING)
    base = next(g for g in groups if "taxonomy" in g)
    assert "instruct" in base and "evolve" in base, "one start of the base model's engine writes the data"


def test_one_engine_serves_a_model_and_all_that_were_trained_from_it(project: Project) -> None:
    recipe = load_recipe(project.folder / "recipe.yaml", ["stages.1.train.snapshots=2"])
    shared = {engine_process(recipe, name) for name in ("base", "M0", "M1", "M2@1", "M2")}
    assert shared == {"engine:base"} and engine_process(recipe, "other") == "engine:other"
    shutil.rmtree(project.run_dir / "eval")
    group = [p.step for p in _next_group(project.plan(), None)]
    asked = [step.asks for step in group]
    assert {"base", "M0", "M1", "M2"} <= {*asked}
    assert len([model for model, _ in groupby(asked)]) == len({*asked}), "weights change once for each model"


def test_a_group_waits_for_scores_that_others_make(project: Project) -> None:
    shutil.rmtree(project.run_dir / "stage1")
    column = f"{{kind: column, path: '{project.folder}/{{step}}.jsonl'}}"
    sets = (
        f"reward_models.selector={{kind: ensemble, members: [{{kind: judge, model: base}}, {column}]}}",
        "stages.0.sample.models=[base]",
    )
    names = [p.step.name for p in _next_group(project.plan(*sets), None)]
    assert "stage1.sample.base" in names and "stage1.score.selector" not in names
    (project.folder / "stage1.jsonl").write_text("")
    assert "stage1.score.selector" in [p.step.name for p in _next_group(project.plan(*sets), None)]


def test_a_judges_verdicts_are_kept_by_what_answers(project: Project) -> None:
    def kept(*sets: str) -> Path:
        recipe = load_recipe(project.folder / "recipe.yaml", sets)
        process = Process(recipe, project.run_dir, {step.name: step for step in build_steps(recipe)})
        journal = _judgements(Context(process.steps["eval"], cast(StepFolder, None), process), "bench", "base")
        journal.close()
        return journal.path

    server = "engine={{kind: openai, base_url: 'http://localhost:1/v1', model_names: {{base: {}, M0: {}}}}}"
    assert kept(server.format("small", "a")) == kept(server.format("small", "b"))
    assert kept(server.format("small", "a")) != kept(server.format("large", "a"))
    assert kept() != kept("engine.dtype=bfloat16")


def test_suite_files_are_read_while_a_step_needs_them(project: Project) -> None:
    pytest.importorskip("lm_eval")
    file = project.folder / "items.jsonl"
    file.write_text('{"key": 1, "prompt": "Hi", "instruction_id_list": ["no:such"], "kwargs": [{}]}\n')
    recipe = load_recipe(
        project.folder / "recipe.yaml", [f"evaluation.suites={{mine: {{kind: ifeval, path: {file}, max_tokens: 9}}}}"]
    )
    with pytest.raises(UserError, match=r"items\.jsonl:1"):
        check_suites(recipe, ["eval.suite.mine.answer.M0"])
    check_suites(recipe, ["eval", "eval.suite.mine2"])


def test_commands_of_steps(project: Project) -> None:
    steps = {p.step.name: p.step for p in project.plan()}
    assert command_of(steps["sft.data"]) == "`align respond`"
    assert command_of(steps["stage2.train"]) == "`align simpo --stage 2`"


def test_the_plan_is_printed_with_an_estimate_for_what_is_left(project: Project) -> None:
    (project.folder / "models/base/config.json").write_text('{"vocab_size": 1000}')
    for name in ("base", "judge", "backbone"):  # 8 bytes of length, a header with one tensor of 200 parameters
        header = json.dumps({"w": {"dtype": "F32", "shape": [10, 20], "data_offsets": [0, 800]}}).encode()
        (project.folder / f"models/{name}/model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    recipe = load_recipe(project.folder / "recipe.yaml")
    lines: list[str] = []
    print_plan(recipe, project.run_dir, project.plan(), lines.append)
    rows = {line.split()[0]: line for line in lines[2:-1]}
    assert set(rows) == EVERYTHING
    assert " cached " in rows["corpus"] and all(" to run " in rows[name] for name in EVERYTHING - {"corpus"})
    assert re.match(rf"{len(EVERYTHING) - 1} of {len(EVERYTHING)} steps to run: .*peak memory about \d+\.\d GiB", lines[-1])
    guess = estimates(recipe, project.plan())
    assert all(g.rows >= 0 and g.seconds >= 0 and g.memory_gib >= 0 for g in guess.values())
    more = estimates(load_recipe(project.folder / "recipe.yaml", ["stages.0.sample.n=8"]), project.plan())
    assert more["stage1.sample.M0"].rows == 2 * guess["stage1.sample.M0"].rows
    assert more["stage1.score.selector"].seconds > guess["stage1.score.selector"].seconds


def test_a_finished_run_has_nothing_to_do(project: Project) -> None:
    lines: list[str] = []
    recipe = load_recipe(project.folder / "recipe.yaml")
    for name in ("base", "judge", "backbone"):
        header = b'{"w": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}}'
        weights = struct.pack("<Q", len(header)) + header + bytes(48)
        (project.folder / f"models/{name}/model.safetensors").write_bytes(weights)
    (project.folder / "models/base/config.json").write_text("{}")
    shutil.rmtree(project.run_dir)
    for planned in project.plan():
        project.make(planned.step.name)
    print_plan(recipe, project.run_dir, Run(recipe, project.run_dir).plan(), lines.append)
    assert lines[-1] == "nothing to do"


def test_training_data_without_a_certificate_is_refused(project: Project) -> None:
    exam = project.folder / "exam.jsonl"
    exam.write_text('{"question": "Which of these rivers is the longest, and through which countries does it flow?"}\n')
    recipe = load_recipe(project.folder / "recipe.yaml", [
        f"quality.decontaminate.benchmarks=[{exam}]", "quality.require_certificate=true",
    ])  # fmt: skip
    steps = {step.name: step for step in build_steps(recipe)}
    folder = project.run_dir / steps["sft.data"].folder
    out = StepFolder(folder, step="sft.data", fingerprint="f", inputs={}, row_type=SftExample, seed=1)
    out.write_all([], [], asked=0)
    out.finish()
    context = Context(steps["sft"], out, Process(recipe, project.run_dir, steps))
    with pytest.raises(UserError, match=r"sft\.data has no decontamination\.json, and quality\.require_certificate asks"):
        context.certified("sft.data")
    context.clean([], lambda row: [])
    context.certified("sft.data")


@pytest.mark.parametrize(
    ("tree", "override", "message"),
    [
        (TREE, "instructions.topic_weights={wax: 2}", "the taxonomy has no topic, field or domain wax"),
        (TREE.replace("id: honey", "id: none"), "seed=3", "a topic may not have the id none"),
        (ENGLISH, "seed=3", "no topic is in language ko"),
        ("levels: [topic]", "seed=3", "needs the keys levels and nodes"),
    ],
)  # fmt: skip
def test_a_taxonomy_that_cannot_serve_is_told_before_anything_starts(
    project: Project, tree: str, override: str, message: str
) -> None:
    (project.folder / "tree.yaml").write_text(tree)
    recipe = load_recipe(project.folder / "recipe.yaml", [override])
    with pytest.raises(UserError, match=message):
        print_plan(recipe, project.run_dir, project.plan(override), print)


def test_what_decides_the_result_of_generation_is_in_its_fingerprint(project: Project) -> None:
    def fingerprints(*overrides: str) -> dict[str, str | None]:
        return {p.step.name: p.fingerprint for p in project.plan("instructions.task_types=[question, code]", *overrides)}

    plain = fingerprints()
    assert fingerprints("answers.writer={en: model, ko: document}")["instruct"] != plain["instruct"], "other task types"
    spec = "{path: models/backbone}"
    english, korean = (fingerprints(f"taxonomy.embedders={{{lang}: {spec}}}") for lang in ("en", "ko"))
    assert english["taxonomy"] != korean["taxonomy"] != plain["taxonomy"]
    best = ["answers.candidates=2", "answers.best_by=reward", "answers.reward_model=models/judge"]
    assert (
        fingerprints(*best)["respond.score"] != fingerprints(*best, "reward_models.selector.max_length=64")["respond.score"]
    )


def test_a_judge_chooses_answers_without_a_reward_model(project: Project) -> None:
    plan = project.plan("answers.candidates=2", "answers.best_by=judge")
    (score,) = (p.step for p in plan if p.step.name == "respond.score")
    assert score.process.startswith("engine:") and score.config["best_by"] == "judge"


def test_the_meters_places_know_what_they_began_from(project: Project) -> None:
    recipe = load_recipe(
        project.folder / "recipe.yaml",
        ["stages.0.train.snapshots=2", "stages.1.init=M1@1", "evaluation.models=[M0, M2]"],
    )
    looks = {"examined": [{}, {"step": 3}], "steps": 3}
    trained = SimpleNamespace(manifest=SimpleNamespace(metrics=looks))
    ctx = SimpleNamespace(recipe=recipe, artifact=lambda name: trained)
    found = [(place.name, place.parent) for place in _places(cast(Context, ctx))]
    assert found == [("M0", None), ("M1@1", "M0"), ("M1@2", "M1@1"), ("M1", "M1@2"), ("M2", "M1@1")]
