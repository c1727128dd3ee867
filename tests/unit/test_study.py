"""Studies: what arms take over from each other, noisy labels, the arms' recipes, and what the finished runs say together."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from align.core.artifact import Artifact, Manifest, StepFolder
from align.core.errors import StepError, UserError
from align.core.formats import contradiction, demands
from align.core.rows import (
    Document,
    EvalResult,
    Instruction,
    Knowledge,
    Response,
    RewardPair,
    Score,
    SftExample,
    TrainedExample,
)
from align.evaluate.meter import Place, meter
from align.evaluate.overoptimization import Checkpoint
from align.recipe.load import dump_recipe, load_recipe
from align.recipe.schema import Recipe
from align.runner import Run, execute
from align.study import kept, labels, run, sharing
from align.study.arms import Plan, load_study
from align.study.kept import KEPT, drop_weights, keep, keep_again, read_run, reward_right
from align.study.labels import noisy_pairs
from align.study.numbers import (
    ArmRun,
    compare,
    fall_from_peak,
    gain_at,
    gap_at,
    over_seeds,
    same_start,
    summarize_arm,
    verdict,
)
from align.study.page import ARM_HEAD, CLAIM_HEAD, curve_line, escape, page, picture, write_page
from align.study.run import results, run_study, write_again
from align.study.sharing import link_folder, take_over
from data_gen.instruct import split_of

STUDY = Path(__file__).parents[2] / "recipes" / "study-staging"
PROXY = Path(__file__).parents[2] / "recipes" / "proxy.yaml"
HOSTILE = "a | b <script>alert(1)</script> [x](javascript:y) `z`"


# Taking over.
def proxy_run(folder: Path, *overrides: str) -> Run:
    return Run(load_recipe(PROXY, overrides), folder)


def fake_step(run: Run, name: str, row_type: type, rows: Sequence[Any] = (), **files: str) -> Manifest:
    """A step as if it had run: the planned fingerprint and inputs, made-up content."""
    planned = next(p for p in run.plan() if p.step.name == name)
    assert planned.fingerprint is not None
    out = StepFolder(
        run.run_dir / planned.step.folder, step=name, fingerprint=planned.fingerprint, inputs=planned.input_digests,
        row_type=row_type, seed=1,
    )  # fmt: skip
    for file, text in files.items():
        (out.folder / file).write_text(text)
    out.write_all(rows, [], asked=len(rows))
    return out.finish()


def unit(text: str) -> Knowledge:
    return Knowledge(
        id=text, topic_id="t", document_id="d", statement=text, quote=text, lang="en", similarity=0.5, license="x", pii=""
    )


@pytest.fixture
def donor(tmp_path: Path, tiny_llama: Path) -> Run:
    run = proxy_run(tmp_path / "donor")
    execute(run, ["corpus"], lambda line: None)
    fake_step(run, "taxonomy", Knowledge, [unit("one")], topics="x")
    return run


def inodes(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_ino for p in folder.rglob("*") if p.is_file()}


def test_equal_steps_are_linked_and_stand(donor: Run, tmp_path: Path) -> None:
    before = inodes(donor.run_dir / "corpus")
    # What comes after the taxonomy differs, so its fingerprint does not.
    other = proxy_run(tmp_path / "other", "instructions.task_types=[list]")
    (other.run_dir / "corpus" / "_work").mkdir(parents=True)  # begun, and not finished
    assert take_over(other, [donor.run_dir], lambda line: None) == ["corpus", "taxonomy"]
    assert inodes(other.run_dir / "corpus") == before == inodes(donor.run_dir / "corpus")
    assert Artifact(other.run_dir / "corpus").rows(Document) and not Artifact(other.run_dir / "taxonomy").verify()
    assert [p.step.name for p in other.plan() if p.done] == ["corpus", "taxonomy"]
    assert take_over(other, [donor.run_dir], lambda line: None) == []
    assert not (other.run_dir / ".linking").exists()


def test_another_fingerprint_is_not_taken(donor: Run, tmp_path: Path) -> None:
    said: list[str] = []
    other = proxy_run(tmp_path / "other", "taxonomy.units_per_document=3")
    assert take_over(other, [tmp_path / "nowhere", donor.run_dir], said.append) == ["corpus"]
    assert take_over(proxy_run(tmp_path / "seed", "seed=26"), [donor.run_dir], said.append) == []
    assert said == []


def test_changed_files_and_other_inputs_are_refused_aloud(donor: Run, tmp_path: Path) -> None:
    said: list[str] = []
    topics = donor.run_dir / "taxonomy" / "topics"
    topics.write_text("y")  # of the same size
    other = proxy_run(tmp_path / "other")
    assert take_over(other, [donor.run_dir], said.append) == ["corpus"]
    assert said == [f"{topics.parent}: not taken over, topics is missing or not what its manifest says"]
    path = topics.parent / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "inputs": {"corpus": "of another corpus"}}))
    said.clear()
    assert take_over(other, [donor.run_dir], said.append) == []
    assert said == [f"{topics.parent}: not taken over, its inputs have other content"]


def test_the_first_donor_that_can_give_gives(donor: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    link_folder(donor.run_dir / "corpus", empty / "corpus", ["manifest.json"], tmp_path / "new")
    other = proxy_run(tmp_path / "other")
    said: list[str] = []
    assert take_over(other, [empty, donor.run_dir], said.append) == ["corpus", "taxonomy"]
    assert len(said) == 1 and str(empty) in said[0]


# Noisy labels.
def prompt(name: str, split: str = "labels") -> Instruction:
    return Instruction(
        id=name, parent_id="k", topic_id="t", knowledge_id="k", messages=[{"role": "user", "content": f"Explain {name}."}],
        generation=0, operator="template", task_type="explain", persona="", level="", difficulty=0.1, judged_difficulty=0.0,
        judged_quality=0.0, lang="en", answer_lang="en", split=split, license="x", pii="",
    )  # fmt: skip


def answer(name: str, number: int, model: str = "base") -> Response:
    return Response(
        id=f"{name}-{number}", prompt_id=name, model=model, sample_index=number, token_ids=[1], text=f"{name} says {number}",
        finish_reason="stop", num_tokens=1,
    )  # fmt: skip


PROMPTS = {f"p{i:03}": prompt(f"p{i:03}") for i in range(400)}
ANSWERS = [answer(name, k) for name in PROMPTS for k in range(3)]
GOLD = {r.id: float(r.sample_index) for r in ANSWERS}


def pairs(**changes: Any) -> list[dict[str, Any]]:
    options: dict[str, Any] = {"judge": "selector", "seed": 1, "noise": 0.25, "per_prompt": 2} | changes
    return noisy_pairs(PROMPTS, ANSWERS, GOLD, **options)


def right(line: Mapping[str, Any]) -> bool:
    return int(line["chosen"][-1]) > int(line["rejected"][-1])


def test_labels_are_golds_but_for_a_share() -> None:
    lines = pairs()
    assert len(lines) == 800 and all(line["prompt"] == PROMPTS[line["chosen"].split()[0]].messages for line in lines)
    assert sum(not right(line) for line in lines) / 800 == pytest.approx(0.25, abs=0.05)
    assert all((line["subset"] == "right") == right(line) for line in lines)
    assert all(map(right, pairs(noise=0.0)))
    assert len({(line["chosen"], line["rejected"]) for line in pairs(noise=0.0, per_prompt=9)}) == 1200


def test_labels_repeat_and_judges_err_apart() -> None:
    assert pairs() == pairs() != pairs(seed=2)
    assert noisy_pairs(PROMPTS, ANSWERS[::-1], GOLD, judge="selector", seed=1, noise=0.25, per_prompt=2) == pairs()
    first, second = pairs(), pairs(judge="validator")
    sides = [[frozenset((line["chosen"], line["rejected"])) for line in lines] for lines in (first, second)]
    assert sides[0] == sides[1]
    turned = [np.array([line["subset"] == "turned" for line in lines]) for lines in (first, second)]
    assert (turned[0] & turned[1]).mean() == pytest.approx(0.25**2, abs=0.03)


def test_equal_and_missing_gold_make_no_pair() -> None:
    gold = {"p000-0": 1.0, "p000-1": 1.0, "p000-2": math.nan, "p001-0": 0.0, "p001-2": 1.0}
    found = noisy_pairs(PROMPTS, ANSWERS, gold, judge="selector", seed=1, noise=0.0, per_prompt=9)
    assert [(line["chosen"], line["rejected"]) for line in found] == [("p001 says 2", "p001 says 0")]


# The arms.
def judges(plan: Plan, seed: int) -> None:
    """Folders that look like trained reward models."""
    for folder in (plan.judge("selector", seed), plan.judge("validator", seed), plan.stand_in(seed)):
        folder.mkdir(parents=True)
        for name in ("config.json", "tokenizer.json"):
            (folder / name).write_text('{"id2label": {"0": "reward"}}')
        save_file({"w": torch.arange(3.0)}, folder / "model.safetensors", metadata={"made": str(folder)})


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    made = Plan(STUDY, tmp_path / "out", load_study(STUDY), ())
    judges(made, 101)
    return made


def shares(recipe: Recipe) -> dict[str, float]:
    each = recipe.splits.stages / len(recipe.stages)
    return {"sft": recipe.splits.sft, **{s.name: each for s in recipe.stages}, "heldout": recipe.splits.heldout}


def test_shipped_arms_are_whole_recipes(plan: Plan, tmp_path: Path) -> None:
    for arm, spec in plan.spec.arms.items():
        recipe = plan.arm_recipe(arm, 101)
        assert [s.name for s in recipe.stages] == [f"M{k}" for k in range(1, spec.stages + 1)]
        before = ["M0", "M1", "M2"][: spec.stages]
        assert [s.init for s in recipe.stages] == before == [s.sample.models[0] for s in recipe.stages]
        dpo = "dpo" in arm.split("-")
        assert [s.reference for s in recipe.stages] == (before if dpo else [None] * spec.stages)
        assert len(recipe.stages) + sum(len(s.snapshots) for s in recipe.stages) == plan.spec.checkpoints
        assert recipe.evaluation.models == ("M0", *(s.name for s in recipe.stages)) and recipe.evaluation.temperature == 1
        assert recipe.name == f"{arm}-101" and {s.train.loss for s in recipe.stages} == {spec.stage.get("train", {}).get(
            "loss", "dpo")}  # fmt: skip
        paths = [getattr(recipe.reward_models, role).path for role in ("selector", "validator")]
        assert paths[0] == str(plan.judge("selector", 101))
        assert paths[1] == str(plan.judge("validator", 101) if spec.second_reward_model else plan.stand_in(101))
        path = tmp_path / "recipe.yaml"
        path.write_text(dump_recipe(recipe))
        assert load_recipe(path) == recipe
    assert plan.spec.comparisons[0].first == "three-stages-dpo" and plan.spec.comparisons[0].second == "one-stage-dpo"


def test_arms_differ_in_stages_alone_and_labels_have_their_own_documents(plan: Plan) -> None:
    one, three, labelled = plan.arm_recipe("one-stage-dpo", 7), plan.arm_recipe("three-stages-dpo", 7), plan.labels_recipe(7)
    same = {"name", "stages", "evaluation"}
    assert one.model_dump(exclude=same) == three.model_dump(exclude=same)
    seen = set()
    for i in range(500):
        whole, part, label = (split_of(f"d{i}", 7, shares(recipe)) for recipe in (one, three, labelled))
        assert (whole == "M1") == (part in ("M1", "M2", "M3")) and (whole == "sft") == (part == "sft") == (label == "labels")
        seen.add(part)
    assert seen == {"sft", "M1", "M2", "M3", "heldout"}
    assert labelled.stages[0].sample.models == ("base",) and labelled.stages[0].sample.n == plan.spec.labels.responses


def test_overrides_hold_in_every_arm(tmp_path: Path) -> None:
    plan = Plan(STUDY, tmp_path, load_study(STUDY), ("stages.0.train.learning_rate=1.0e-6", "evaluation.max_prompts=5"))
    recipe = plan.arm_recipe("three-stages-dpo", 3)
    assert [s.train.learning_rate for s in recipe.stages] == [1e-6] * 3 and recipe.seed == 3
    assert recipe.evaluation.max_prompts == 5 == plan.labels_recipe(3).evaluation.max_prompts
    with pytest.raises(UserError, match="selector: a study trains both"):
        Plan(STUDY, tmp_path, load_study(STUDY), ("reward_models.selector={path: x}",))
    with pytest.raises(UserError, match="gold: a study needs"):
        Plan(STUDY, tmp_path, load_study(STUDY), ("reward_models.gold=null",))
    with pytest.raises(UserError, match="max_prompts: it would give arms of several stages more prompts"):
        Plan(STUDY, tmp_path, load_study(STUDY), ("stages.0.sample.max_prompts=9",))


def test_a_recipe_that_changes_under_way_is_refused(tmp_path: Path) -> None:
    for name in ("recipe.yaml", "arms.yaml"):
        (tmp_path / name).write_text((STUDY / name).read_text())
    plan = Plan(tmp_path, tmp_path / "out", load_study(tmp_path), ("corpus.paths=[a.jsonl]", "prompts.folder=null"))
    plan.arm_recipe("one-stage-dpo", 1)
    (tmp_path / "recipe.yaml").write_text((STUDY / "recipe.yaml").read_text() + "\n")
    with pytest.raises(UserError, match="changed while the study was at work"):
        plan.arm_recipe("one-stage-dpo", 1)


def test_shipped_templates_make_four_demands_that_can_be_met() -> None:
    asked = load_recipe(STUDY / "recipe.yaml").instructions.task_types
    for task in asked:
        text = (STUDY / "prompts" / "en" / f"template-{task}.md").read_text().partition("## user\n")[2].strip()
        found = demands(text.format(keyword="bond price", topic="Personal finance"), "en")
        assert len(found) == 4 and not contradiction(found), task


MORE = "it would give arms of several stages more prompts"


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ("{stages: 1, stage: {train: simpo}}", "arms.odd: stage.train: keys with their values go here"),
        ("{stages: 1, stage: {train: null}}", "arms.odd: stage.train: keys with their values go here"),
        ("{stages: 1, stage: {sample: 3}}", "arms.odd: stage.sample: keys with their values go here"),
        ("{stages: 1, stage: simpo}", "arms.odd.stage: Input should be a valid dictionary"),
        ("{stages: 1, stage: {name: X}}", "arms.odd: stage.name: the study sets it in every arm; remove the key"),
        ("{stages: 1, stage: {init: base}}", "arms.odd: stage.init: the study sets it"),
        ("{stages: 1, stage: {reference: M0}}", "arms.odd: stage.reference: the study sets it"),
        ("{stages: 1, stage: {sample: {models: [base]}}}", "arms.odd: stage.sample.models: the study sets it"),
        ("{stages: 1, stage: {train: {snapshots: 2}}}", "arms.odd: stage.train.snapshots: the study sets it"),
        ("{stages: 3, stage: {sample: {max_prompts: 9}}}", f"arms.odd: stage.sample.max_prompts: {MORE}"),
        ("{stages: 1}\n  odd: {stages: 2}", r"arms.yaml:\d+: arms.odd is written twice \(first in line \d+\)"),
        ("{stages: 1, stages: 2}", "arms.odd.stages is written twice"),
        ("{stages: 1}\n  gold: {stages: 1}", "arm gold: gold and proxy are names of the study's own pictures"),
        ("{stages: 1}\n  Proxy: {stages: 1}", "arm Proxy: gold and proxy are names"),
        ("{stages: 1", "not valid YAML"),
    ],
)
def test_mistakes_in_an_arm_are_one_clear_line(tmp_path: Path, arm: str, says: str) -> None:
    (tmp_path / "recipe.yaml").write_text((STUDY / "recipe.yaml").read_text())
    text = (STUDY / "arms.yaml").read_text()
    (tmp_path / "arms.yaml").write_text(text.replace("arms:\n", f"arms:\n  odd: {arm}\n"))
    with pytest.raises(UserError, match=says) as caught:
        load_study(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "arms.yaml")) and "\n" not in str(caught.value)


def test_what_an_arm_may_change(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text((STUDY / "recipe.yaml").read_text())
    arm = "{stages: 2, stage: {train: {loss: simper, epochs: 3}, sample: {n: 3}, pair: {pairs_per_prompt: 2}}}"
    (tmp_path / "arms.yaml").write_text((STUDY / "arms.yaml").read_text().replace("arms:\n", f"arms:\n  odd: {arm}\n"))
    overrides = ("corpus.paths=[a.jsonl]", "prompts.folder=null")
    stages = Plan(tmp_path, tmp_path / "out", load_study(tmp_path), overrides).arm_recipe("odd", 1).stages
    found = [(s.train.loss, s.train.epochs, s.sample.n, s.pair.pairs_per_prompt) for s in stages]
    assert found == [("simper", 3, 3, 2)] * 2


def test_arms_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text((STUDY / "recipe.yaml").read_text())
    (tmp_path / "arms.yaml").write_bytes((STUDY / "arms.yaml").read_bytes() + "# é".encode("latin-1"))
    with pytest.raises(UserError, match=r"arms.yaml: cannot be read \('utf-8' codec") as caught:
        load_study(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"checkpoints": 4}, "4 checkpoints cannot be shared by 3 stages"),
        ({"arms": {"a/b": {"stages": 1}}}, "should match pattern"),
        ({"comparisons": [{"claim": "x", "first": "nobody", "second": "one-stage-dpo"}]}, "no arm nobody"),
        ({"labels": {"noise": 0.5}}, "labels.noise: .*less than 0.5"),
        ({"arm": {}}, "arm: Extra inputs"),
    ],
)
def test_mistakes_in_a_study_are_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    for name in ("recipe.yaml", "arms.yaml"):
        (tmp_path / name).write_text((STUDY / name).read_text())
    data = yaml.safe_load((tmp_path / "arms.yaml").read_text()) | change
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(UserError, match=says):
        load_study(tmp_path)
    with pytest.raises(UserError, match="a study is a folder with"):
        load_study(tmp_path / "nowhere")


# One finished run.
def reward_training(plan: Plan, role: str, **metrics: Any) -> Path:
    """The folder `reward` where a judge was trained, with five held-out pairs, two of them turned."""
    folder = plan.judge(role, 101).parents[1]
    say = {"prompt_id": "p", "prompt": [], "chosen": [], "rejected": [], "margin": 0.0, "lang": "en"}
    kinds = [("right", "test")] * 3 + [("turned", "test")] * 2 + [("right", "train")] * 4
    rows = [RewardPair(id=f"r{i}", subset=kind, split=split, **say) for i, (kind, split) in enumerate(kinds)]
    pairs = StepFolder(folder / "data", step="s", fingerprint="f", inputs={}, row_type=RewardPair, seed=1)
    pairs.write_all(rows, [], asked=len(rows))
    pairs.finish()
    model = {path.name: path.read_bytes() for path in plan.judge(role, 101).iterdir()}
    out = StepFolder(folder / role, step="s", fingerprint="f", inputs={}, row_type=TrainedExample, seed=1)
    (out.folder / "model").mkdir()
    for name, content in model.items():
        (out.folder / "model" / name).write_bytes(content)
    out.write_all([], [], asked=0)
    by_subset = {"right": 0.6667, "turned": 0.5}
    out.finish({"tie_share": 0.0, "pairs_test": 5, "pairs_not_scored": 0, "accuracy_by_subset": by_subset, **metrics})
    return folder


def test_reward_models_are_judged_by_gold_not_by_their_noisy_labels(plan: Plan) -> None:
    assert reward_right(reward_training(plan, "selector")) == (3, 5)  # two of three right labels, one turned one refused
    unknown = reward_training(plan, "validator", tie_share=0.2)
    assert reward_right(unknown) is None
    (unknown / "validator" / "manifest.json").unlink()
    with pytest.raises(StepError, match="0 trained reward models where one is expected"):
        reward_right(unknown)


def result(model: str, name: str, gold: float, proxy: float, log_ratio: float) -> EvalResult:
    return EvalResult(
        id=f"{model}-{name}", prompt_id=name, model=model, selector=proxy, validator=0.0, gold=gold,
        start_log_ratio=log_ratio, previous_log_ratio=log_ratio, num_tokens=3, finished=1, repetition=0.0, language_match=1,
    )  # fmt: skip


def finished_run(plan: Plan) -> Run:
    """A run of two stages as if it had ended, its plan's fingerprints fixed."""
    recipe = plan.arm_recipe("two-stages-dpo", 101)
    run = Run(recipe, plan.run_dir("two-stages-dpo", 101))

    def write(folder: str, row_type: type, rows: Sequence[Any], fingerprint: str = "f", **metrics: Any) -> None:
        out = StepFolder(plan.out / folder, step="s", fingerprint=fingerprint, inputs={}, row_type=row_type, seed=1)
        (out.folder / "model").mkdir()
        (out.folder / "model" / "model.safetensors").write_text(folder)
        out.write_all(rows, [], asked=len(rows))
        out.finish(metrics)

    names = ["M0", "M1@1", "M1@2", "M1", "M2@1", "M2@2", "M2"]
    rows = [result(m, f"h{i}", i + k, 2.0 * i - k, 0.0 if not k else k * k) for k, m in enumerate(names) for i in range(3)]
    places = [Place(name="M0", stage=0)]
    places += [Place(name=m, stage=1 + (k > 2), step=2 * (k % 3) + 2, steps=6) for k, m in enumerate(names[1:])]
    base = "runs/two-stages-dpo-101"
    planned = {p.step.name: p for p in run.plan()}
    assert planned["eval"].fingerprint
    write(f"{base}/evolve", Instruction, [prompt("s0", "sft"), *(prompt(f"h{i}", "heldout") for i in range(3))])
    write(f"{base}/sft/train", SftExample, [])
    for k in (1, 2):
        trained = [TrainedExample(id=f"t{i}", num_tokens=5) for i in range(4 * k)]
        write(f"{base}/stage{k}/train", TrainedExample, trained, steps=6, tokens=100 * k)
    write(f"{base}/eval/result", EvalResult, rows, planned["eval"].fingerprint, meter=meter(rows, places, seed=1))
    write("prepared/101/labels/stage1/sample/base", Response, [answer("s0", 0)])
    for role in ("selector", "validator"):
        reward_training(plan, role)
    return run


def test_a_finished_run_is_kept_without_its_weights(plan: Plan, smollm2_path: Path) -> None:
    run = finished_run(plan)
    arm = "two-stages-dpo"
    assert read_run(plan, arm, 101) is None
    keep(plan, arm, 101)
    drop_weights(run.run_dir)
    left = sorted(str(p.relative_to(run.run_dir).parent) for p in run.run_dir.rglob("*.safetensors"))
    assert left == ["eval/result/model", "evolve/model", "sft/train/model"]
    found = read_run(plan, arm, 101)
    assert found is not None and (found.arm, found.seed) == (arm, 101)
    assert [c.name for c in found.checkpoints] == ["M0", "M1@1", "M1@2", "M1", "M2@1", "M2@2", "M2"]
    assert [c.fraction for c in found.checkpoints] == pytest.approx([k / 6 for k in range(7)])
    assert [c.sqrt_kl for c in found.checkpoints] == pytest.approx(range(7))
    assert found.checkpoints[2].gold == {"h0": 2.0, "h1": 3.0, "h2": 4.0} and found.checkpoints[2].proxy["h1"] == 0.0
    assert (found.pairs, found.steps, found.tokens) == ([4, 8], [6, 6], [100, 200])
    assert found.answers[6] == {"num_tokens": 3, "finished": 1, "repetition": 0} and len(found.answers) == 7
    assert found.reward_right == {"selector": [3, 5], "validator": [3, 5]}
    # What other code of the study kept is kept anew, not read as it is and not run again.
    other_form = json.loads((run.run_dir / KEPT).read_text())
    del other_form["answers"]
    (run.run_dir / KEPT).write_text(json.dumps({**other_form, "seconds": 3}))
    assert read_run(plan, arm, 101) == found
    # Another recipe makes it another run.
    other = replace(plan, overrides=("evaluation.max_prompts=5",))
    assert read_run(other, arm, 101) is None


def test_labelled_prompts_in_the_evaluation_are_refused(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, smollm2_path: Path
) -> None:
    finished_run(plan)
    sample = Artifact(plan.prepared(101) / "labels" / "stage1" / "sample" / "base")
    monkeypatch.setattr(kept, "Artifact", lambda folder: _Overlap() if folder == sample.folder else Artifact(folder))
    with pytest.raises(StepError, match="1 prompts both train the reward models and are used"):
        keep(plan, "two-stages-dpo", 101)


class _Overlap:
    def rows(self, row_type: type) -> list[Response]:
        return [answer("s0", 0), answer("h1", 0)]


# Numbers.
def arm_run(
    arm: str, seed: int, golds: Sequence[Sequence[float]], proxies: Sequence[Sequence[float]] | None = None,
    distances: Sequence[float] | None = None, digest: str = "d",
) -> ArmRun:  # fmt: skip
    proxies = golds if proxies is None else proxies
    distances = list(map(float, range(len(golds)))) if distances is None else distances
    return ArmRun(
        arm=arm, seed=seed, pairs=(3, 4), steps=(5,), tokens=(7,), start_digest=digest, reward_right={"selector": (3, 4)},
        answers=tuple({"num_tokens": 40.0 - k, "finished": 0.5, "repetition": 0.0} for k in range(len(golds))),
        checkpoints=tuple(
            Checkpoint(
                name=f"c{k}", stage="1", step=k, fraction=k / (len(golds) - 1), sqrt_kl=distances[k],
                gold={f"p{i}": float(v) for i, v in enumerate(gold)}, proxy={f"p{i}": float(v) for i, v in enumerate(proxy)},
            )
            for k, (gold, proxy) in enumerate(zip(golds, proxies, strict=True))
        ),
    )  # fmt: skip


def test_final_gold_is_compared_within_seed_and_prompt() -> None:
    runs = [
        arm_run("a", 1, [[0, 1, 2], [3, 3, 3]]),  # gains 3, 2, 1
        arm_run("b", 1, [[0, 1, 2], [0, 3, 3]]),  # gains 0, 2, 1
        arm_run("a", 2, [[1, 1], [2, 2]]),
        arm_run("b", 2, [[1, 1], [1, 1]]),
        arm_run("a", 3, [[0, 0], [9, 9]]),  # b has no such seed
    ]
    found = compare(runs, "a", "b", "final_gold")
    assert found["of_seeds"] == {"1": pytest.approx(1.0), "2": pytest.approx(1.0)}
    assert (found["mean"], found["seeds"], found["prompts"]) == (pytest.approx(1.0), 2, 5)
    assert found["missing"] == [] and found["final_distances"] == [1.0, 1.0]
    swapped = compare(runs, "b", "a", "final_gold")
    assert swapped["mean"] == pytest.approx(-1.0) and swapped["low"] <= -1 <= swapped["high"]
    nobody = compare(runs, "a", "c", "final_gold")
    assert nobody["missing"] == ["c"] and nobody["mean"] is None and nobody["verdict"] == "not decided"


def test_gap_is_standardised_and_interpolated_at_equal_distance() -> None:
    golds, proxies = [[0, 2], [0, 2], [-2, 0]], [[0, 4], [4, 8], [8, 12]]
    # sd of M0: gold sqrt 2, proxy 2 sqrt 2. Gaps: 0; 4/(2 sqrt 2); 8/(2 sqrt 2) + 2/sqrt 2.
    one = arm_run("a", 1, golds, proxies, [0.0, 1.0, 3.0])
    root = math.sqrt(2)
    assert gap_at(one, 1.0) == pytest.approx({"p0": root, "p1": root})
    assert gap_at(one, 2.0) == pytest.approx({"p0": 2 * root, "p1": 2 * root})  # half way from sqrt 2 to 3 sqrt 2
    assert gap_at(one, 3.0) == pytest.approx({"p0": 3 * root, "p1": 3 * root})
    # The same checkpoints in another order of distance, one of them unmeasured.
    assert gap_at(replace(one, checkpoints=one.checkpoints[::2]), 1.5) == pytest.approx({"p0": 1.5 * root, "p1": 1.5 * root})
    unmeasured = replace(one.checkpoints[1], sqrt_kl=math.nan)
    assert gap_at(replace(one, checkpoints=(one.checkpoints[0], unmeasured, one.checkpoints[2])), 1.5)[
        "p0"
    ] == pytest.approx(1.5 * root)
    other = arm_run("b", 1, [golds[0], golds[0]], [proxies[0], proxies[0]], [0.0, 2.0])  # never moves
    found = compare([one, other], "b", "a", "gap")
    assert found["equal_distance"]["distance"] == 2.0 and found["mean"] == pytest.approx(-2 * root)
    flat = arm_run("c", 1, [[1, 1], [2, 2]])  # M0 has no spread, so there is no unit
    assert compare([one, flat], "a", "c", "gap")["mean"] is None


def test_a_difference_of_final_gold_is_also_given_at_equal_distance() -> None:
    """The first goes twice as far on the same path: more final gold, and nothing of it at equal distance."""
    path = [[0, 2], [1, 3], [2, 4]]
    runs = [arm_run("far", s, path, distances=[0.0, 1.0, 2.0 + s]) for s in (1, 2)]
    runs += [arm_run("near", s, path[:2], distances=[0.0, 1.0]) for s in (1, 2)]
    found = compare(runs, "far", "near", "final_gold")
    assert found["mean"] == pytest.approx(1.0) and found["final_distances"] == [3.5, 1.0]
    equal = found["equal_distance"]
    assert (
        equal["distance"] == 1.0 and equal["gold"]["mean"] == pytest.approx(0) and equal["proxy"]["mean"] == pytest.approx(0)
    )
    assert gain_at(runs[0], "proxy", 2.0) == pytest.approx({"p0": 1.5 / math.sqrt(2), "p1": 1.5 / math.sqrt(2)})
    assert gain_at(runs[0], "gold", 2.0) == pytest.approx({"p0": 1.5, "p1": 1.5})


def test_a_fall_from_the_peak_is_compared_with_chance() -> None:
    rng = np.random.default_rng(3)
    start = [0.0] * 60
    level = [start, *(rng.normal(0.2, 1, 60) for _ in range(6))]  # no checkpoint is better than another
    falls = fall_from_peak([arm_run("a", 1, level)])
    assert falls["mean"] > 0 and falls["by_chance"] == pytest.approx(falls["mean"], abs=0.2) and falls["p"] > 0.1
    worse = [start, *(rng.normal(0.2 + 0.8 * (k == 3), 1, 60) for k in range(1, 7))]
    assert fall_from_peak([arm_run("a", 1, worse), arm_run("a", 2, worse)])["p"] < 0.01
    flat = fall_from_peak([arm_run("a", 1, [[0, 1], [1, 2], [1, 2]])])
    assert (flat["mean"], flat["by_chance"], flat["p"]) == (0, 0, 1)


def test_few_seeds_that_differ_decide_nothing() -> None:
    """The bootstrap lies above 0, Student's t over the three seeds does not."""
    runs = [arm_run("a", s, [[0.0] * 40, [gold] * 40]) for s, gold in ((1, 0.02), (2, 0.1), (3, 0.3))]
    runs += [arm_run("b", s, [[0.0] * 40, [0.0] * 40]) for s in (1, 2, 3)]
    found = compare(runs, "a", "b", "final_gold")
    assert found["low"] > 0 > found["t_low"] and found["verdict"] == "not decided"


def test_hierarchical_interval_draws_seeds_and_prompts() -> None:
    # Within a seed nothing varies: only seeds are left, and of two seeds a quarter of draws is each extreme.
    between = over_seeds([[0.0] * 50, [1.0] * 50])
    assert (between["mean"], between["low"], between["high"]) == (0.5, 0.0, 1.0)
    # One seed: the bootstrap of its prompts alone.
    values = np.random.default_rng(0).normal(0, 1, 100)
    single = over_seeds([values])
    assert single["high"] - single["low"] == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.1) and single["seeds"] == 1
    # A seed weighs the same whatever its prompts.
    assert over_seeds([[0.0], [1.0] * 9])["mean"] == 0.5
    assert over_seeds([[], [1.0]])["low"] is None and over_seeds([])["mean"] is None
    assert over_seeds([values, values + 1]) == over_seeds([values, values + 1])


@pytest.mark.parametrize(
    ("low", "high", "t_low", "t_high", "measure", "says"),
    [
        (0.1, 0.3, 0.05, 0.4, "final_gold", "supported"),
        (0.1, 0.3, -0.05, 0.4, "final_gold", "not decided"),
        (-0.1, 0.3, 0.05, 0.4, "final_gold", "not decided"),
        (-0.3, -0.1, -0.4, -0.05, "final_gold", "contradicted"),
        (0.0, 0.3, 0.1, 0.2, "final_gold", "not decided"),
        (0.1, 0.3, None, None, "final_gold", "not decided"),
        (-0.3, -0.1, -0.2, -0.15, "gap", "supported"),
        (0.1, 0.3, 0.1, 0.2, "gap", "contradicted"),
        (None, None, None, None, "gap", "not decided"),
    ],
)
def test_verdicts(
    low: float | None, high: float | None, t_low: float | None, t_high: float | None, measure: Any, says: str
) -> None:
    assert verdict({"low": low, "high": high, "t_low": t_low, "t_high": t_high}, measure) == says


def test_summary_of_an_arm() -> None:
    runs = [
        arm_run("a", 1, [[0, 2], [1, 3], [0.5, 2.5]]),  # gains 1, 0.5
        arm_run("a", 2, [[0, 2], [0, 2], [2, 4]], distances=[0.0, 2.0, 4.0]),  # gains 0, 2
    ]
    found = summarize_arm(runs)
    assert (found["seeds"], found["prompts"], found["pairs"], found["steps"]) == ([1, 2], [2, 2], [[3, 4], [3, 4]], 5)
    assert found["fall"]["mean"] == pytest.approx(0.25)
    assert [of["num_tokens"] for of in found["answers"]] == [40, 38]
    assert found["final_gold"]["mean"] == pytest.approx(1.25) and found["start_gold"]["mean"] == 1
    assert [point["distance"] for point in found["curve"]] == [0, 1.5, 3]
    assert found["curve"][1]["gold"]["mean"] == pytest.approx(0.5 / math.sqrt(2))
    with pytest.raises(ValueError, match="the same number of checkpoints"):
        summarize_arm([runs[0], arm_run("a", 3, [[0, 1], [1, 2]])])
    assert same_start(runs) and not same_start([runs[0], replace(runs[0], arm="b", start_digest="e")])


# The page.
def study_results(plan: Plan, runs: Sequence[ArmRun], **changes: Any) -> dict[str, Any]:
    wanted = [(arm, seed) for arm in plan.spec.arms for seed in (101, 102)]
    made = {"command": "align study x", "commit": "c", "device": "d", "date": "t", "versions": {"v": "1"}, "seconds": 3}
    return results(plan, wanted, runs, {("two-stages-dpo", 101): HOSTILE}) | {"made_by": made} | changes


def two_arms() -> list[ArmRun]:
    return [
        arm_run(arm, seed, [[0.0, 1.0, 0.5], [k * (1 + seed / 1e5) + 0.1, k * (1 + seed / 1e5) + 1.2, k + 0.6]])
        for seed in (101, 102)
        for k, arm in enumerate(("one-stage-dpo", "three-stages-dpo"))
    ]


def test_partial_results_say_so(plan: Plan, tmp_path: Path) -> None:
    found = study_results(plan, two_arms())
    assert (found["asked"], found["finished"], len(found["missing"])) == (14, 4, 10)
    write_page(tmp_path, found)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "**Partial results: 10 of 14 runs are missing.**" in text and "- two-stages-dpo, seed 102: not run yet" in text
    assert re.search(r"^1\. Primary claim\. DPO: three fresh stages .*\*\*supported\*\*, 1\.001 \(", text, re.M)
    assert re.search(r"^4\. Not decided among the other claims \(8\)", text, re.M)
    assert len([line for line in text.splitlines() if re.match(r"\d\. ", line)]) == 6
    assert "at the largest distance that both reached (1.00) the difference is" in text
    fallen = found["arms"]["one-stage-dpo"] | {"fall": {"mean": 0.2, "by_chance": 0.01, "p": 0.0004}}
    said = page(found | {"arms": found["arms"] | {"one-stage-dpo": fallen}}, {})
    level = "(p below 0.05/2, for 2 arms that ran"
    assert f"beyond chance {level}) in one-stage-dpo (0.200, p < 0.001); in no other of these arms" in said
    assert f"5. Over-optimization: in none of the arms does gold end below its peak beyond chance {level}; least p " in text
    assert re.search(r"selector 6 of 8 \(75.%\)", text)
    hidden = found["reward_right"] | {"102": {}}
    said = page(found | {"reward_right": hidden}, {})
    assert re.search(r"selector 3 of 4 \(75.%, with 1 of 2 seeds: ties hide it in the others\)", said)
    assert json.loads((tmp_path / "results.json").read_text())["arms"]["two-stages-dpo"] is None
    for name in re.findall(r"\]\((pictures/[^)]+)\)", text):
        assert ElementTree.parse(tmp_path / name).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert len(list((tmp_path / "pictures").iterdir())) == 4
    write_page(tmp_path, study_results(plan, []))
    assert "not decided, without three-stages-dpo, one-stage-dpo" in (tmp_path / "RESULTS.md").read_text()


def test_the_page_is_written_anew_from_finished_runs(plan: Plan, smollm2_path: Path) -> None:
    finished_run(plan)
    with pytest.raises(UserError, match="no results"):
        write_again(STUDY, plan.out, [], print)
    keep(plan, "two-stages-dpo", 101)
    wanted = [(arm, seed) for arm in plan.spec.arms for seed in (101, 102)]
    made = {"command": "align study x", "commit": "old", "device": "d", "date": "t", "versions": {}, "seconds": 3}
    write_page(plan.out, results(plan, wanted, [], {}) | {"made_by": made})
    said: list[str] = []
    # Another recipe makes no difference: what was finished is shown.
    assert write_again(STUDY, plan.out, ["evaluation.max_prompts=5"], said.append) == 0
    text = (plan.out / "RESULTS.md").read_text()
    assert "1 of 14 runs read" in said[0] and "13 of 14 runs are missing" in text
    assert "- commit: old" in text and "- this page was written anew by commit " in text and "4+8" in text


def test_a_page_written_anew_keeps_what_it_cannot_know(plan: Plan, smollm2_path: Path) -> None:
    two = "two-stages-dpo"
    finished_run(plan)
    keep(plan, two, 101)
    wanted = [(arm, seed) for arm in plan.spec.arms for seed in (101, 102)]
    failed = {("one-stage-dpo", 102): "failed with code 1: no memory"}
    found = results(plan, wanted, [keep_again(plan, two, 101)], failed)
    made = {"command": "align study x", "commit": "old", "device": "d", "date": "t", "versions": {}, "seconds": 3}
    write_page(plan.out, found | {"label_noise": 0.125, "made_by": made})
    # Another first seed in the recipe of today, and another noise, are not those of the runs.
    assert write_again(STUDY, plan.out, ["seed=500"], print) == 0
    text = (plan.out / "RESULTS.md").read_text()
    assert "share of labels turned round: 0.125" in text and "- one-stage-dpo, seed 102: failed with code 1: no m" in text
    assert "13 of 14 runs are missing" in text

    # A run that was begun anew is not what was kept, and nothing is overwritten where no run is left.
    stage = plan.run_dir(two, 101) / "stage1" / "train" / "manifest.json"
    made_then = stage.read_text()
    stage.write_text(json.dumps({**json.loads(made_then), "created": "2999-01-01T00:00:00+00:00"}))
    with pytest.raises(UserError, match="none of 14 runs can be read"):
        write_again(STUDY, plan.out, [], print)
    stage.write_text(made_then)
    (plan.run_dir(two, 101) / "eval" / "result" / "manifest.json").unlink()
    with pytest.raises(UserError, match="none of 14 runs can be read, so its page stays as it is"):
        write_again(STUDY, plan.out, [], print)
    assert (plan.out / "RESULTS.md").read_text() == text
    (plan.out / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"no results\.json of a study there .*missing"):
        write_again(STUDY, plan.out, [], print)


def test_a_run_with_a_stage_that_is_not_finished_is_not_kept(plan: Plan, smollm2_path: Path) -> None:
    finished_run(plan)
    (plan.run_dir("two-stages-dpo", 101) / "stage2" / "train" / "manifest.json").unlink()
    with pytest.raises(StepError, match="1 of 2 stages are finished"):
        keep(plan, "two-stages-dpo", 101)


def test_pages_and_pictures_escape(plan: Plan) -> None:
    found = study_results(plan, two_arms(), study=HOSTILE, same_start=False)
    text = page(found, {})
    assert "<script" not in text and escape(HOSTILE) in text and "[x](" not in text
    assert escape("a|b\n*c*") == r"a\|b \*c\*"
    assert "did not all begin from the same M0" in text
    drawn = picture(HOSTILE, [curve_line(HOSTILE, summarize_arm(two_arms()[:1])["curve"], "gold", band=True)],
                    x_label=HOSTILE, y_label="y")  # fmt: skip
    assert "<script" not in drawn
    ElementTree.fromstring(drawn)
    assert "no values" in picture("t", [], x_label="x", y_label="y")


def test_rows_of_tables_have_all_cells(plan: Plan) -> None:
    lines = page(study_results(plan, two_arms()), {}).splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {len(ARM_HEAD) + 1, len(CLAIM_HEAD) + 1}


# The whole command.
def test_a_failed_arm_stops_no_other(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    done: dict[tuple[str, int], ArmRun] = {}

    def start(plan: Plan, key: tuple[str, int], cores: int, say: Any) -> run.Running:
        if key[0] == "two-stages-dpo":
            raise UserError("busy")
        bad = key == ("one-stage-simpo", 102)
        log = plan.out / f"{key[0]}-{key[1]}.log"  # one for each: another process's start empties its own
        with log.open("wb") as handle:
            code = "print('error: no pair'); exit(2)" if bad else ""
            return run.Running(subprocess.Popen([sys.executable, "-c", code], stdout=handle), log)

    def kept_run(plan: Plan, arm: str, seed: int) -> None:
        done[arm, seed] = arm_run(arm, seed, [[0.0, 1.0], [1.0, 2.5]])

    said: list[str] = []
    monkeypatch.setattr(run, "prepare", lambda plan, seed, say: None)
    monkeypatch.setattr(run, "_start", start)
    monkeypatch.setattr(run, "keep", kept_run)
    monkeypatch.setattr(run, "read_run", lambda plan, arm, seed: done.get((arm, seed)))
    assert run_study(STUDY, plan.out, 2, [], 2, said.append) == 1
    text = (plan.out / "RESULTS.md").read_text()
    assert len(done) == 11 and "3 of 14 runs are missing" in text
    assert "- one-stage-simpo, seed 102: failed with code 2: no pair" in text and "- two-stages-dpo, seed 101: busy" in text
    assert any("of 14 runs done" in line and "min left" in line for line in said)
    assert f"align study {STUDY} --seeds 2 --out {plan.out} --jobs 2" in text
    said.clear()
    monkeypatch.setattr(run, "_start", lambda *args: pytest.fail("a finished run was started again"))
    done |= {(arm, seed): arm_run(arm, seed, [[0.0, 1.0], [1.0, 2.0]]) for arm in plan.spec.arms for seed in (101, 102)}
    assert run_study(STUDY, plan.out, 2, [], 2, said.append) == 0
    assert "14 of 14 runs stand, 0 to do" in said[2] and "Partial" not in (plan.out / "RESULTS.md").read_text()


@pytest.mark.parametrize("fault", ["no links", "gone", "kept", "weights"])
def test_a_disk_that_fails_an_arm_stops_no_other(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, fault: str, smollm2_path: Path
) -> None:
    bad, good = ("one-stage-dpo", 101), ("two-stages-dpo", 101)
    real, ended = run._start, list[tuple[str, int]]()

    def fail(*args: Any) -> Any:
        raise OSError(18, "Invalid cross-device link", "a", None, "b")

    def start(plan: Plan, key: tuple[str, int], cores: int, say: Any) -> run.Running:
        if key == bad and fault in ("no links", "gone"):
            return real(plan, key, cores, say)
        return run.Running(subprocess.Popen([sys.executable, "-c", ""]), plan.out / "log")

    def kept_run(plan: Plan, arm: str, seed: int) -> None:
        ended.append((arm, seed))
        if fault == "kept" and (arm, seed) == bad:
            raise FileNotFoundError(2, "No such file or directory", "manifest.json")

    def weights(folder: Path) -> None:
        if fault == "weights" and folder == plan.run_dir(*bad):
            fail()

    monkeypatch.setattr(run, "_start", start)
    monkeypatch.setattr(run, "keep", kept_run)
    monkeypatch.setattr(run, "drop_weights", weights)
    if fault == "no links":
        donor = Run(plan.arm_recipe(*good), plan.run_dir(*good))
        fake_step(donor, "corpus", Document)
        monkeypatch.setattr(sharing.os, "link", fail)
    if fault == "gone":
        monkeypatch.setattr(run, "take_over", lambda *args: Path(plan.out / "nowhere").read_text())
    found = dict(run.run_arms(plan, [bad, good], 2, lambda line: None))
    says = {"no links": "Invalid cross-device link", "gone": "nowhere", "kept": "manifest.json", "weights": "cross-device"}
    assert says[fault] in found[bad] and found[good] == "" and good in ended


def test_processes_end_when_the_study_is_interrupted(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(run, "_start", lambda *args: run.Running(process, plan.out / "log"))

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(run.run_arms(plan, [("one-stage-dpo", 101)], 1, lambda line: None))
    assert process.returncode == -15


def test_labels_become_files_for_both_judges(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, list[str]]] = []
    sample = plan.prepared(101) / "labels"

    def rows(folder: Path, row_type: type, found: Sequence[Any]) -> None:
        out = StepFolder(sample / folder, step="s", fingerprint="f", inputs={}, row_type=row_type, seed=1)
        out.write_all(found, [], asked=len(found))
        out.finish()

    scores = [Score(id=f"s{r.id}", response_id=r.id, prompt_id=r.prompt_id, reward_model="gold", score=GOLD[r.id])
              for r in ANSWERS]  # fmt: skip
    rows(Path("evolve"), Instruction, list(PROMPTS.values()))
    rows(Path("stage1/sample/base"), Response, ANSWERS)
    rows(Path("stage1/score/gold"), Score, scores)
    monkeypatch.setattr(labels, "execute", lambda run, wanted, say: ran.append((run.run_dir.name, list(wanted))))
    labels.prepare(plan, 101, lambda line: None)
    assert [name for name, _ in ran] == ["labels", "selector", "validator"]
    assert ran[1][1] == ["reward.data", "reward.selector"] and not any("score.selector" in step for step in ran[0][1])
    files = [(plan.prepared(101) / f"{role}.jsonl").read_text().splitlines() for role in ("selector", "validator")]
    asked = {"seed": 101, "noise": plan.spec.labels.noise, "per_prompt": plan.spec.labels.pairs_per_prompt}
    assert [json.loads(line) for line in files[0]] == pairs(**asked)
    assert [json.loads(line) for line in files[1]] == pairs(**asked, judge="validator")


def test_the_stand_in_scores_alike_and_passes_for_another_model(plan: Plan) -> None:
    judge, stand_in = plan.judge("selector", 101), plan.stand_in(101)
    labels.make_stand_in(judge, stand_in)
    assert load_file(stand_in / "model.safetensors")["w"].tolist() == [0.0, 1.0, 2.0]
    assert (stand_in / "model.safetensors").read_bytes() != (judge / "model.safetensors").read_bytes()
    assert (stand_in / "config.json").read_text() == '{"id2label": {"0": "reward"}}'
    made = (stand_in / "model.safetensors").stat().st_ino
    labels.make_stand_in(judge, stand_in)
    assert (stand_in / "model.safetensors").stat().st_ino == made
    save_file({"w": torch.ones(3)}, judge / "model.safetensors")
    labels.make_stand_in(judge, stand_in)
    assert load_file(stand_in / "model.safetensors")["w"].tolist() == [1.0, 1.0, 1.0]
