"""Evaluation as steps: the meter over snapshots, best of n, suites on models and folders, judges that do not judge."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from align.core.artifact import Artifact
from align.core.rows import BestOfN, EvalResult, SuiteAnswer, SuiteResult
from tests.e2e.test_proxy_run import align

SUITES = "evaluation.suites="


@pytest.fixture
def run(proxy_run: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(proxy_run, folder, ignore=shutil.ignore_patterns("report"))
    return folder


def test_the_meter_reads_every_checkpoint(proxy_run: Path) -> None:
    manifest = Artifact(proxy_run / "eval/result").manifest
    points = manifest.metrics["meter"]["points"]
    assert [p["name"] for p in points] == ["M0", "M1", "M2@1", "M2"]
    assert [p["stage"] for p in points] == [0, 1, 2, 2]
    assert points[2]["step"] < points[2]["steps"] == points[3]["step"]
    assert all(p["sqrt_kl"]["mean"] is not None and p["gold_gain"]["mean"] is not None for p in points)
    assert all("chosen_logps" in p["drift"] for p in points[1:])
    assert manifest.metrics["meter"]["choice"]["name"] in ("M0", "M1", "M2@1", "M2")
    rows = Artifact(proxy_run / "eval/result").rows(EvalResult)
    assert {row.model for row in rows} == {"base", "M0", "M1", "M2@1", "M2"}
    ratios = {model: [row.start_log_ratio for row in rows if row.model == model] for model in {row.model for row in rows}}
    assert all(ratio == 0.0 for ratio in ratios["M0"])
    assert all(math.isfinite(ratio) and ratio != 0.0 for model in ("M1", "M2@1", "M2") for ratio in ratios[model])
    assert [row["model"] for row in manifest.metrics["table"]] == ["base", "M0", "M1", "M2"]
    assert {(w["model"], w["by"]) for w in manifest.metrics["wins"]} == {
        (m, by) for m in ("base", "M1", "M2") for by in ("selector", "validator", "gold")
    }


def test_best_of_n_comes_before_training(proxy_run: Path) -> None:
    for stage, most in ((1, 8), (2, 6)):
        rows = Artifact(proxy_run / f"stage{stage}/best_of_n").rows(BestOfN)
        assert {row.proxy for row in rows} == {"selector", "validator"}
        assert max(row.n for row in rows) <= most
        assert all(row.gain == 0.0 and row.kl == 0.0 for row in rows if row.n == 1)
        inputs = Artifact(proxy_run / f"stage{stage}/best_of_n").manifest.inputs
        assert inputs and not [name for name in inputs if "pair" in name or "train" in name]


def test_a_suite_on_names_and_folders(run: Path) -> None:
    before = (run / "eval/suite/constraints.answer.M0/manifest.json").read_text()
    folder = run.parent / "other"
    shutil.copytree(run / "stage1/train/model", folder)
    result = align("eval", "constraints", "--models", "M0", str(folder), run_dir=run)
    assert result.returncode == 0, result.stderr
    assert "eval.suite.constraints.answer.other" in result.stdout and "eval.suite.documents" not in result.stdout
    assert "prompt_strict" in result.stdout and "change from M0" in result.stdout
    assert (run / "eval/suite/constraints.answer.M0/manifest.json").read_text() == before, "it was asked again"
    assert Artifact(run / "eval/suite/constraints").manifest.metrics["models"] == ["M0", "other"]
    again = align("eval", "constraints", "--models", "M0", str(folder), run_dir=run)
    assert again.stdout.startswith("nothing to do") and "prompt_strict" in again.stdout


def test_every_item_is_graded_or_failed_for_every_model(proxy_run: Path) -> None:
    rows = Artifact(proxy_run / "eval/suite/constraints").rows(SuiteResult)
    assert {(r.model, r.item_id, r.metric) for r in rows} == {
        (model, item, metric)
        for model in ("base", "M0", "M1", "M2")
        for item in {r.item_id for r in rows}
        for metric in ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose")
    }
    assert len({r.item_id for r in rows}) == 4
    documents = Artifact(proxy_run / "eval/suite/documents").manifest.metrics["metrics"]["nats_per_token"]
    assert documents["M0"]["mean"] < documents["base"]["mean"], "SFT on the corpus's passages makes its documents likelier"


def test_suites_do_not_see_each_other(run: Path) -> None:
    known = (run / "recipe.yaml").read_text()
    path = next(line.split("path:")[1].strip() for line in known.splitlines() if "constraints.jsonl" in line)
    one = f"{{kind: ifeval, path: {path}, limit: 2, max_tokens: 8, models: [base]}}"
    result = align("eval", "b", "--set", f"{SUITES}{{a: {one}, b: {one}}}", run_dir=run)
    assert result.returncode == 0, result.stderr
    assert len(Artifact(run / "eval/suite/b.answer.base").rows(SuiteAnswer)) == 2
    assert not (run / "eval/suite/a.answer.base").exists()


def test_what_cannot_be_graded_is_said(run: Path, tmp_path: Path) -> None:
    def fails(suite: str, *options: str) -> str:
        result = align("eval", "mine", "--set", f"{SUITES}{{mine: {suite}}}", *options, run_dir=run)
        assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
        return result.stderr

    file = tmp_path / "items.jsonl"
    question = {"question_id": 1, "category": "math", "turns": ["2 + 2?", "And 3?"]}
    file.write_text("\n".join(json.dumps(question | {"category": "writing"}) for _ in range(2)))
    bench = f"{{kind: mt_bench, path: {file}, max_tokens: 8, judge_tokens: 16, models: [base]}}"
    assert "items.jsonl:2" in fails(bench)  # the same id twice
    file.write_text(json.dumps(question))
    assert "reference" in fails(bench)
    # Random weights write no marks: every failure is counted, and none is a zero.
    prose = fails(bench.replace("models", "references: optional, models"))
    assert "the judge base gave no verdict that can be read (2 " in prose
    zeros = fails(bench.replace("mt_bench", "logickor, failures: zero"))
    assert "the judge base gave no verdict that can be read (2 " in zeros, "LogicKor's zeros hid that there was none"
    assert "evaluation.suites has constraints, documents" in align("eval", "nothing", run_dir=run).stderr
    assert "--models goes with a suite" in align("eval", "--models", "M0", run_dir=run).stderr


def test_a_stage_may_begin_from_a_snapshot(run: Path) -> None:
    result = align("check", "--set", "stages.1.sample.models=[M1@1]", run_dir=run)
    assert result.returncode == 2 and "no model 'M1@1' at that point" in result.stderr
    fine = align("check", "--set", "stages.0.train.snapshots=1", "--set", "stages.1.init=M1@1", run_dir=run)
    assert fine.returncode == 0 and "eval.sample.M1@1" in fine.stdout
    many = ("--set", "stages.1.train.snapshots=999")
    result = align("simpo", "--stage", "2", *many, run_dir=run)
    assert result.returncode == 2 and "snapshots: 999 need more steps than the" in result.stderr


def test_scores_are_of_the_evaluation_alone(proxy_run: Path) -> None:
    gold = pq.read_table(proxy_run / "eval/score/gold/data")
    assert gold.num_rows == Artifact(proxy_run / "eval/result").manifest.rows
    pairs = pq.read_table(proxy_run / "stage1/pair/data")
    assert "gold" not in " ".join(pairs.column_names)
