"""Scoring and pairing as steps: every kind of reward model, the gate, the held-out split and collected pairs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from align.core.artifact import Artifact
from align.core.chat import Chat
from align.core.rows import Preference, Response, Score, TrainedExample
from tests.e2e.test_proxy_run import align

VALIDATOR = "reward_models.validator="
STAGE1 = "stages.0.pair."


@pytest.fixture
def run(proxy_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished proxy run up to the samples of stage 1."""
    folder = tmp_path / "run"
    shutil.copytree(proxy_run, folder, ignore=shutil.ignore_patterns("stage2", "eval", "report"))
    return folder


def outcomes(run_dir: Path) -> Counter[str]:
    table = pq.read_table(run_dir / "stage1/pair/agreement")
    return Counter(table["outcome"].to_pylist())


def scores(run_dir: Path, role: str = "validator") -> dict[str, float]:
    return {row.response_id: row.score for row in Artifact(run_dir / f"stage1/score/{role}").rows(Score)}


def test_every_prompt_keeps_its_numbers_kept_or_not(proxy_run: Path) -> None:
    for stage, slots in ((1, 1), (2, 2)):
        artifact = Artifact(proxy_run / f"stage{stage}/pair")
        table = pq.read_table(artifact.folder / "agreement")
        prompts = set(table["prompt_id"].to_pylist())
        assert table.num_rows == artifact.manifest.asked == slots * len(prompts)
        expected = Counter(artifact.manifest.rejects) + Counter(kept=artifact.manifest.rows)
        assert Counter(table["outcome"].to_pylist()) == expected
        kept = {pair.id for pair in artifact.rows(Preference)}
        assert {row["id"] for row in table.to_pylist() if row["outcome"] == "kept"} == kept
    weights = [pair.weight for pair in artifact.rows(Preference)]  # stage 2: use: weight
    assert all(0 < weight <= 1 for weight in weights) and len(set(weights)) > 1


def test_the_gate_fails_the_step_and_leaves_the_page(run: Path) -> None:
    anew = ("--set", STAGE1 + "min_margin=1.0e-9")  # the gate itself makes no pairs anew
    strict = ("--set", STAGE1 + "audit={gate: fail, limits: {few_kept: 1.0}}")
    assert align("pair", "--stage", "1", *strict, run_dir=run).stdout.startswith("nothing to do")
    result = align("pair", "--stage", "1", *anew, *strict, run_dir=run)
    assert result.returncode == 2
    assert "few_kept" in result.stderr and "audit.html" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (run / "stage1/pair/manifest.json").exists()
    assert "<svg" in (run / "stage1/pair/audit.html").read_text("utf-8")
    warned = ("--set", STAGE1 + "audit={gate: warn, limits: {few_kept: 1.0}}")
    again = align("pair", "--stage", "1", *anew, *warned, run_dir=run)
    assert again.returncode == 0, again.stderr
    assert json.loads((run / "stage1/pair/audit.json").read_text())["findings"]


def test_held_out_pairs_are_not_trained_on(run: Path) -> None:
    half = ("--set", STAGE1 + "held_out=0.5")
    assert align("pair", "--stage", "1", *half, run_dir=run).returncode == 0
    assert align("dpo", "--stage", "1", *half, run_dir=run).returncode == 0
    pairs = Artifact(run / "stage1/pair").rows(Preference)
    by_split = {split: {p.id for p in pairs if p.split == split} for split in ("train", "test")}
    trained = {row.id for row in Artifact(run / "stage1/train").rows(TrainedExample)}
    assert by_split["test"] and trained == by_split["train"]


def test_collected_pairs_are_scored_again_and_keep_their_share(run: Path, tmp_path: Path) -> None:
    lines = [
        {"prompt": f"Question {i}?", "chosen": f"A first answer to number {i}, in whole words.", "rejected": f"{i} no " * 9}
        for i in range(12)
    ]
    lines += [{"prompt": "Same?", "chosen": "same", "rejected": "same"}, lines[0]]
    path = tmp_path / "bought.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sets = ("--set", f"{STAGE1}collected=[{{path: {path}, share: 0.5}}]")
    for verb in ("sample", "score", "pair"):
        result = align(verb, "--stage", "1", *sets, run_dir=run)
        assert result.returncode == 0, result.stderr
    read = Artifact(run / "stage1/collected").manifest
    assert (read.rows, read.rejects) == (12, {"chosen_equals_rejected": 1, "duplicate_pair": 1})
    artifact = Artifact(run / "stage1/pair")
    rows = artifact.rows(Preference)
    sources = Counter(row.source for row in rows)
    assert 0 < sources["bought"] <= sources["sampled"]
    assert artifact.manifest.asked == 10 + 12
    one = next(row for row in rows if row.source == "bought")
    chat = Chat.load(run / "sft/train/model")
    assert chat.text(one.chosen_token_ids) == one.chosen[0]["content"]
    assert one.selector_chosen > one.selector_rejected and one.validator_chosen > one.validator_rejected


def test_a_function_of_the_users_own_validates(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "brevity.py"
    own.write_text("def score(prompt, responses):\n    return [-len(text) for text in responses]\n")
    result = align("score", "--stage", "1", "--set", f"{VALIDATOR}{{kind: function, path: {own}}}", run_dir=run)
    assert result.returncode == 0, result.stderr
    texts = {r.id: r.text for name in ("M0", "base") for r in Artifact(run / f"stage1/sample/{name}").rows(Response)}
    assert scores(run) == {key: -len(text) for key, text in texts.items()}
    own.write_text("def score(prompt, responses):\n    return [1.0 for text in responses]\n")
    constant = align("score", "--stage", "1", "--set", f"{VALIDATOR}{{kind: function, path: {own}}}", run_dir=run)
    assert constant.returncode == 2
    assert "it cannot rank them" in constant.stderr


def test_scores_made_elsewhere_are_joined_by_id(run: Path, tmp_path: Path) -> None:
    known = scores(run, "selector")
    path = tmp_path / "scores.jsonl"
    lines = [json.dumps({"response_id": key, "score": -value}) for key, value in sorted(known.items(), reverse=True)]
    path.write_text("\n".join(lines))
    sets = ("--set", f"{VALIDATOR}{{kind: column, path: {path}}}")
    assert align("score", "--stage", "1", *sets, run_dir=run).returncode == 0
    assert scores(run) == {key: -value for key, value in known.items()}
    opposite = align("pair", "--stage", "1", *sets, run_dir=run)
    assert opposite.returncode == 2  # the validator says the opposite of the selector: nothing is left, and it is said why
    assert "no pair to train on" in opposite.stderr and "validator_disagrees" in opposite.stderr
    assert "kept" not in outcomes(run)
    path.write_text("\n".join(lines[1:]))
    missing = align("score", "--stage", "1", *sets, run_dir=run)
    assert missing.returncode == 2 and "Traceback" not in missing.stderr


def test_scores_made_elsewhere_have_a_file_for_each_step_that_may_come_later(run: Path, tmp_path: Path) -> None:
    sets = ("--set", f"{VALIDATOR}{{kind: column, path: '{tmp_path}/{{step}}.jsonl'}}")
    waiting = align("score", "--stage", "1", *sets, run_dir=run)
    assert waiting.returncode == 2 and waiting.stderr.count("\n") == 1
    assert f"stage1.score.validator needs {tmp_path}/stage1.jsonl: score the responses of stage1.sample.M0" in waiting.stderr
    lines = [json.dumps({"response_id": key, "score": value}) for key, value in scores(run, "selector").items()]
    (tmp_path / "stage1.jsonl").write_text("\n".join(lines))
    assert align("dpo", "--stage", "1", *sets, run_dir=run).returncode == 2  # its pairs are not made yet
    for verb in ("score", "pair", "dpo"):
        assert align(verb, "--stage", "1", *sets, run_dir=run).returncode == 0
    (tmp_path / "stage2.jsonl").write_text("{}")  # a file of another step makes nothing anew
    assert align("dpo", "--stage", "1", *sets, run_dir=run).stdout.startswith("nothing to do")


def test_an_ensemble_scores_and_its_length_trend_is_taken_off(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "long.py"
    own.write_text("def score(prompt, responses):\n    return [len(text) / 10 for text in responses]\n")
    members = f"[{{kind: function, path: {own}}}, {{kind: rules, weights: {{language: 1, repetition: 1}}}}]"
    sets = ("--set", f"{VALIDATOR}{{kind: ensemble, combine: mean, members: {members}, length_calibration: true}}")
    result = align("score", "--stage", "1", *sets, run_dir=run)
    assert result.returncode == 0, result.stderr
    assert Artifact(run / "stage1/score/validator").manifest.metrics["length_slope"] > 0
    assert len(scores(run)) == len(scores(run, "selector"))


def test_a_judge_that_gives_no_marks_is_refused(run: Path) -> None:
    # Random weights write no digits; real models are asked in test_reward_judge and by hand.
    result = align("score", "--stage", "1", "--set", f"{VALIDATOR}{{kind: judge, scale: 3}}", run_dir=run)
    assert result.returncode == 2
    assert "no score that is a number" in result.stderr and "Traceback" not in result.stderr


def test_two_reward_models_of_the_same_weights_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "reward/selector/model", tmp_path / "one")
    shutil.copytree(run / "reward/selector/model", tmp_path / "other")
    result = align(
        "check", "--set", f"reward_models={{selector: {{path: {tmp_path}/one}}, validator: {{path: {tmp_path}/other}}}}",
        run_dir=run,
    )  # fmt: skip
    assert result.returncode == 2
    assert "the same weights" in result.stderr and result.stderr.count("\n") == 1


def test_audit_and_reward_bench_print_their_tables(run: Path, tmp_path: Path) -> None:
    result = align_plain("audit", str(run / "stage1/pair"), "--json", str(tmp_path / "a.json"))
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "a.json").read_text())
    path = tmp_path / "pairs.jsonl"
    line = {"prompt": "Name a colour.", "chosen": "Red is a colour.", "rejected": "Seven", "subset": "colours"}
    path.write_text(json.dumps(line) + "\n")
    bench = align("reward-bench", "validator", str(path), run_dir=run)
    assert bench.returncode == 0, bench.stderr
    assert "colours" in bench.stdout


def align_plain(*args: str):  # type: ignore[no-untyped-def]
    """A command without recipe."""
    import subprocess
    import sys

    return subprocess.run([sys.executable, "-m", "align.cli", *args], capture_output=True, text=True, check=False)
