"""`align compare`: differences of two small made-up runs against hand counts, and what does not compare."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from align.comparing import compare_runs, flattened
from align.core.artifact import Artifact, StepFolder
from align.core.errors import UserError
from align.core.hashing import content_id
from align.core.rows import Document, EvalResult, Preference, Reject, Response, SuiteAnswer, SuiteResult, TrainedExample
from align.report.artifacts import folder_of

RECIPE: dict[str, Any] = {
    "name": "small",
    "seed": 7,
    "models": {"base": {"path": "/models/base"}},
    "reward_models": {
        "selector": {"kind": "classifier", "path": None, "train": {"epochs": 1}, "max_length": 64, "layout": "auto"},
        "validator": {"kind": "classifier", "path": "/models/validator", "train": None},
    },
    "stages": [{"name": "M1", "init": "M0", "sample": {"models": ["M0"]}, "train": {"loss": "dpo", "beta": 0.1}}],
    "evaluation": {
        "models": ["M1"],
        "suites": {"sums": {"kind": "exact_answer", "path": "/data/sums.jsonl", "limit": 4, "max_tokens": 8}},
    },
}
DEFAULT = {"str": "x", "int": 1, "float": 0.0, "list[int]": [1], "list[Message]": [{"role": "user", "content": "x"}]}
# What the runs remember of files outside of them.
HASHES = {"/models/base/w": "b", "/models/newer/w": "n", "/models/validator/w": "v", "/models/other/w": "o"}
SCORES = {"p1": (1.0, 0.0), "p2": (2.0, 0.0), "p3": (3.0, 0.0), "p4": (4.0, 0.0)}  # selector and validator of M1


def row(row_type: type, name: str, **given: Any) -> Any:
    """A row of which only what is given matters."""
    fields = {column: DEFAULT[str(kind)] for column, kind in row_type.__annotations__.items()}
    return row_type(**{**fields, "id": name, **given})


def write(
    run: Path, step: str, row_type: type, rows: Sequence[Any], files: Mapping[str, bytes] | None = None,
    rejects: Sequence[str] = (), inputs: Sequence[str] = (), **metrics: Any,
) -> None:  # fmt: skip
    """A finished step, which read its inputs as they stand."""
    folder = run / folder_of(step)
    read = {name: Artifact(run / folder_of(name)).manifest.digest() for name in inputs}
    out = StepFolder(folder, step=step, fingerprint=content_id(step), inputs=read, row_type=row_type, seed=7)
    for name, data in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    lost = [Reject(id=f"x{i}", reason=reason, raw="") for i, reason in enumerate(rejects)]
    out.write_all(list(rows), lost, asked=len(rows) + len(lost))
    out.finish(metrics)


def evaluate(run: Path, scores: Mapping[str, tuple[float, float]], model: str = "M1") -> None:
    rows = [
        row(EvalResult, f"{model}-{p}", prompt_id=p, model=model, selector=s, validator=v, gold=math.nan)
        for p, (s, v) in scores.items()
    ]
    write(run, "eval", EvalResult, rows)


def suite(run: Path, values: Mapping[str, float], asked: Mapping[str, str] | None = None, **more: Any) -> None:
    """Answers of M1 to a suite, and their grades; NaN is a failure."""
    held = [
        row(
            SuiteAnswer,
            f"a{i}",
            item_id=i,
            messages=[{"role": "user", "content": (asked or {}).get(i, f"How much is {i}?")}],
        )
        for i in values
    ]
    write(run, "eval.suite.sums.answer.M1", SuiteAnswer, held)
    rows = [
        row(SuiteResult, f"r{i}", item_id=i, model="M1", metric="exact", value=v, weight=1.0, category="",
            failure="lost" if math.isnan(v) else "")
        for i, v in values.items()
    ]  # fmt: skip
    known = [v for v in values.values() if not math.isnan(v)]
    more = {"file_sha256": "sums", "wording": "first"} | more
    of = {"mean": sum(known) / len(known), "low": 0.0, "high": 1.0, "items": len(known), "failed": {}, "change": None}
    write(run, "eval.suite.sums", SuiteResult, rows, metrics={"exact": {"M1": of}}, kind="exact_answer", **more)


def build(
    run: Path, *, recipe: Mapping[str, Any] = RECIPE, documents: Sequence[str] = ("d1", "d2"), weights: bytes = b"w"
) -> Path:
    """A run up to its trained model, with its reward model."""
    run.mkdir()
    (run / "recipe.yaml").write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
    remember(run, HASHES)
    write(
        run, "corpus", Document, [row(Document, name) for name in documents], rejects=["too_short", "too_short", "too_long"]
    )
    write(
        run, "reward.selector", TrainedExample, [row(TrainedExample, "t")], {"model/weights": weights}, final_loss=0.25,
        accuracy=0.875, mean_margin=1.5,
    )  # fmt: skip
    answers = [row(Response, f"s{i}", num_tokens=5) for i in range(3)]
    write(run, "stage1.sample.M0", Response, answers)
    write(run, "stage1.pair", Preference, [row(Preference, f"pair-{name}", prompt_id=f"p-{name}") for name in documents])
    examined = [{"loss": 0.7, "accuracy": 0.0, "margin": 0.0}, {"loss": 0.5, "accuracy": 0.625, "margin": 2.5}]
    used = [row(TrainedExample, "t")]
    write(run, "stage1.train", TrainedExample, used, {"model/w": b"m"}, loss=0.375, examined=examined, tokens=77)
    return run


def remember(run: Path, hashes: Mapping[str, str]) -> None:
    """Write down the content of files outside of a run, as its plans do."""
    (run / ".hashes.json").write_text(json.dumps({path: [[1, 2, 3], value] for path, value in hashes.items()}))


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs that differ in nothing yet."""
    return build(tmp_path / "first"), build(tmp_path / "second")


def compared(a: Path, b: Path) -> tuple[dict[str, Any], list[str]]:
    """What is found, and the lines that are printed."""
    lines: list[str] = []
    return compare_runs(a, b, lines.append), lines


def line_of(lines: Sequence[str], *starts: str) -> list[str]:
    """The cells of the one line that begins with these words."""
    (found,) = [line.split() for line in lines if line.split()[: len(starts)] == list(starts)]
    return found[len(starts) :]


def test_a_run_and_itself(runs: tuple[Path, Path]) -> None:
    for run in runs:
        evaluate(run, SCORES)
        suite(run, {"1": 1.0, "2": 0.0})
    found, lines = compared(*runs)
    assert found["recipe"] == {"differ": {}, "only_a": {}, "only_b": {}}
    assert {of["step"] for of in found["steps"] if of["same"]} == {
        "corpus", "reward.selector", "stage1.sample.M0", "stage1.pair", "stage1.train", "eval", "eval.suite.sums",
        "eval.suite.sums.answer.M1",
    }  # fmt: skip
    for of in found["evaluation"]:
        assert of["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "prompts": 4}
        assert of["win_rate"]["win_rate"] == 0.5
    assert [of["by"] for of in found["evaluation"]] == ["selector", "validator"]
    assert [of["difference"]["mean"] for of in found["suites"]] == [0.0]
    assert "recipe, where it differs: nothing" in lines


def test_recipes(tmp_path: Path) -> None:
    other = json.loads(json.dumps(RECIPE))
    other["stages"][0]["train"] |= {"beta": 0.2, "tau": 1}
    del other["seed"]
    other["models"]["base"]["path"] = "x" * 100
    found, lines = compared(build(tmp_path / "a"), build(tmp_path / "b", recipe=other))
    assert found["recipe"]["differ"] == {
        "models.base.path": ["/models/base", "x" * 100], "stages[0].train.beta": [0.1, 0.2],
    }  # fmt: skip
    assert found["recipe"]["only_a"] == {"seed": 7}
    assert found["recipe"]["only_b"] == {"stages[0].train.tau": 1}
    assert line_of(lines, "stages[0].train.beta") == ["0.1", "0.2"]
    assert line_of(lines, "seed") == ["7", "(not", "there)"]
    assert line_of(lines, "models.base.path") == ["/models/base", "x" * 60 + "…", "(+40)"]


PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.lists(st.integers()))
KEYS = st.text("abc", min_size=1, max_size=3)
SECTIONS = st.recursive(PLAIN, lambda inner: st.one_of(st.dictionaries(KEYS, inner), st.lists(inner)), max_leaves=12)


@given(SECTIONS, SECTIONS)
def test_flattened_sections_differ_where_sections_do(first: Any, second: Any) -> None:
    assert (flattened(first) == flattened(second)) == (first == second)


def test_steps_rows_and_training(runs: tuple[Path, Path]) -> None:
    a, b = runs
    write(b, "corpus", Document, [row(Document, name) for name in ("d2", "d3", "d4")], rejects=["too_short"])
    pairs = [row(Preference, f"pair-{name}", prompt_id="p-d1") for name in ("d1", "new")]
    write(b, "stage1.pair", Preference, pairs)
    found, lines = compared(a, b)
    steps = {of["step"]: of for of in found["steps"]}
    assert steps["corpus"]["A"]["rejects"] == {"too_long": 1, "too_short": 2}
    assert line_of(lines, "corpus", "2")[:3] == ["3", "3", "1"]
    assert line_of(lines, "corpus", "rejected:") == ["too_long", "1", "|", "0,", "too_short", "2", "|", "1"]
    assert steps["corpus"]["same"] is False
    assert steps["stage1.train"]["A"]["tokens"] == 77
    assert steps["stage1.sample.M0"]["B"]["tokens"] == 15
    shared = {of["what"]: (of["A"], of["B"], of["both"]) for of in found["shared"]}
    assert shared["documents"] == (2, 3, 1)
    assert shared["pairs of stage1.pair"] == (2, 2, 1)
    assert shared["prompts of stage1.pair"] == (2, 1, 1)
    assert shared["prompts"] == (None, None, None)
    trained = {of["step"]: of["A"] for of in found["training"]}
    assert trained["stage1.train"] == {"loss": 0.5, "accuracy": 0.625, "margin": 2.5}  # all of the same rows
    assert trained["reward.selector"] == {"loss": 0.25, "accuracy": 0.875, "margin": 1.5}


def test_paired_differences_of_models(runs: tuple[Path, Path]) -> None:
    a, b = runs
    evaluate(a, SCORES)
    evaluate(b, {"p2": (2.5, 0.0), "p3": (1.0, 0.0), "p4": (4.0, 1.0), "p9": (90.0, 0.0)})
    found, _ = compared(a, b)
    by = {of["by"]: of for of in found["evaluation"]}
    assert (by["selector"]["A"]["mean"], by["selector"]["A"]["prompts"]) == (2.5, 4)
    difference = by["selector"]["difference"]
    assert (difference["mean"], difference["prompts"]) == (0.5, 3)  # (-0.5 + 2 + 0) / 3, p1 and p9 are not shared
    assert (difference["low"], difference["high"]) == (-0.5, 2.0)
    won = by["selector"]["win_rate"]
    assert (won["wins"], won["ties"], won["losses"], won["win_rate"]) == (1, 1, 1, 0.5)
    assert by["validator"]["win_rate"]["win_rate"] == pytest.approx(1 / 3)  # two ties and a loss


def test_answers_to_other_prompts_are_not_paired(runs: tuple[Path, Path]) -> None:
    evaluate(runs[0], {"p1": (1.0, 0.0)})
    evaluate(runs[1], {"p2": (1.0, 0.0)})
    found, lines = compared(*runs)
    assert found["evaluation"][0]["difference"] is None
    assert line_of(lines, "M1", "selector")[-2:] == ["-", "-"]


def test_a_model_of_one_run_only(runs: tuple[Path, Path]) -> None:
    evaluate(runs[0], SCORES)
    evaluate(runs[1], SCORES, "M2")
    found, _ = compared(*runs)
    assert [(of["model"], of["A"]["prompts"], of["B"]["prompts"]) for of in found["evaluation"][::2]] == [
        ("M1", 4, 0), ("M2", 0, 4),
    ]  # fmt: skip
    assert {of["difference"] is None for of in found["evaluation"]} == {True}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The recipe with another value at `a.b.c`."""
    recipe = json.loads(json.dumps(RECIPE))
    *parents, last = path.split(".")
    section = recipe
    for key in parents:
        section = section[key]
    section[last] = value
    return dict(recipe)


@pytest.mark.parametrize(
    ("recipe", "weights", "role", "same"),
    [
        (RECIPE, b"w", "selector", True),
        (RECIPE, b"v", "selector", False),  # other weights of the same settings
        (changed("reward_models.selector.train.epochs", 9), b"w", "selector", True),  # its weights are the same
        (changed("reward_models.selector.layout", "separate"), b"w", "selector", True),
        (changed("reward_models.selector.max_length", 32), b"w", "selector", False),
        (changed("reward_models.validator.path", "/models/other"), b"w", "validator", False),
        (changed("reward_models.validator.path", "/models/other"), b"w", "selector", True),
        (changed("reward_models.validator", {"kind": "judge", "model": "base"}), b"w", "validator", False),
    ],
)
def test_scores_of_different_judges_do_not_compare(
    tmp_path: Path, recipe: dict[str, Any], weights: bytes, role: str, same: bool
) -> None:
    a, b = build(tmp_path / "a"), build(tmp_path / "b", recipe=recipe, weights=weights)
    evaluate(a, SCORES)
    evaluate(b, SCORES)
    found, lines = compared(a, b)
    (judge,) = [of for of in found["reward_models"] if of["role"] == role]
    assert judge["same"] is same
    (entry,) = [of for of in found["evaluation"] if of["by"] == role]
    assert (entry["difference"] is not None, entry["win_rate"] is not None) == (same, same)
    assert entry["A"]["prompts"] == entry["B"]["prompts"] == 4
    assert any(line.startswith(f"{role}: ") for line in lines) is not same


def test_judges_that_are_models_of_their_own_run(tmp_path: Path) -> None:
    """One name, another model behind it; and calibration, which is fitted within a run."""
    judged = changed("reward_models.validator", {"kind": "judge", "model": "base"})
    other = json.loads(json.dumps(judged))
    other["models"]["base"]["path"] = "/models/newer"
    runs = build(tmp_path / "a", recipe=judged), build(tmp_path / "b", recipe=other)
    assert [of["same"] for of in compared(*runs)[0]["reward_models"]] == [True, False]
    calibrated = changed("reward_models.validator.length_calibration", True)
    runs = build(tmp_path / "c", recipe=calibrated), build(tmp_path / "d", recipe=calibrated)
    assert [of["same"] for of in compared(*runs)[0]["reward_models"]] == [True, False]


def test_ensembles_are_known_by_all_members(tmp_path: Path) -> None:
    members = [{"kind": "rules"}, {"kind": "classifier", "train": {"epochs": 1}}]
    recipe = changed("reward_models.selector", {"kind": "ensemble", "members": members})
    runs = [build(tmp_path / name, recipe=recipe) for name in "ab"]
    assert not compared(*runs)[0]["reward_models"][0]["same"]  # a member is not trained
    for run, weights in zip(runs, (b"1", b"1"), strict=True):
        out = StepFolder(
            run / "reward/selector.1", step="reward.selector.1", fingerprint="f", inputs={}, row_type=TrainedExample, seed=7
        )
        (out.folder / "model").mkdir()
        (out.folder / "model/weights").write_bytes(weights)
        out.write_all([], [], asked=0)
        out.finish({})
    found = compared(*runs)[0]
    assert found["reward_models"][0]["same"]
    assert "reward.selector.1" in {of["step"] for of in found["training"]}


def test_suites_are_paired_by_question(runs: tuple[Path, Path]) -> None:
    a, b = runs
    suite(a, {"1": 1.0, "2": 1.0, "3": 1.0, "4": math.nan, "5": 1.0})
    suite(b, {"1": 0.0, "2": 1.0, "3": 0.0, "4": 1.0, "6": 1.0}, asked={"3": "Something else?"})
    found, lines = compared(a, b)
    (entry,) = found["suites"]
    # 1 and 2: the third question was another, the fourth failed in A, and no other is in both.
    assert (entry["difference"]["mean"], entry["difference"]["items"]) == (0.5, 2)
    assert (entry["A"]["mean"], entry["B"]["mean"]) == (1.0, 0.6)
    assert line_of(lines, "sums", "exact", "M1")[-1] == "2"


@pytest.mark.parametrize(
    ("key", "value", "compares"),
    [("max_tokens", 99, True), ("limit", 2, True), ("judge", "base", False), ("kind", "safety", False)],
)
def test_suites_that_were_graded_in_other_ways_are_not_paired(tmp_path: Path, key: str, value: Any, compares: bool) -> None:
    runs = build(tmp_path / "a"), build(tmp_path / "b", recipe=changed(f"evaluation.suites.sums.{key}", value))
    for run in runs:
        suite(run, {"1": 1.0, "2": 0.0})
    (entry,) = compared(*runs)[0]["suites"]
    assert (entry["difference"] is not None) is compares
    assert (entry["note"] == "") is compares


def test_a_baseline_of_one_name_may_be_another_model(tmp_path: Path) -> None:
    recipe = changed("evaluation.suites.sums.baseline", "M1")
    runs = build(tmp_path / "a", recipe=recipe), build(tmp_path / "b", recipe=recipe)
    for run in runs:
        suite(run, {"1": 1.0, "2": 0.0})
    assert compared(*runs)[0]["suites"][0]["difference"] is not None
    write(runs[1], "stage1.train", TrainedExample, [row(TrainedExample, "t")], {"model/w": b"another"}, loss=0.1)
    (entry,) = compared(*runs)[0]["suites"]
    assert (entry["difference"], entry["note"]) == (
        None,
        "not graded alike (the baselines are different models of one name)",
    )


@pytest.mark.parametrize(
    ("recorded", "note"),
    [
        ({"file_sha256": "other"}, "not graded alike (the suite's file differs)"),
        ({"wording": "second"}, "not graded alike (the wording of the judge's questions differs)"),
    ],
)
def test_the_same_questions_with_another_key_or_wording_are_not_paired(
    tmp_path: Path, recorded: dict[str, str], note: str
) -> None:
    recipe = changed("evaluation.suites.sums.judge", "base")
    runs = build(tmp_path / "a", recipe=recipe), build(tmp_path / "b", recipe=recipe)
    suite(runs[0], {"1": 1.0, "2": 0.0})
    suite(runs[1], {"1": 1.0, "2": 0.0})
    assert compared(*runs)[0]["suites"][0]["note"] == ""
    suite(runs[1], {"1": 1.0, "2": 0.0}, **recorded)
    found, lines = compared(*runs)
    (entry,) = found["suites"]
    assert (entry["difference"], entry["note"]) == (None, note)
    assert (entry["A"]["items"], entry["B"]["items"]) == (2, 2)
    assert f"sums: {note}" in lines


def test_a_suites_file_is_known_from_what_the_run_read_where_its_manifest_is_older(runs: tuple[Path, Path]) -> None:
    for run in runs:
        suite(run, {"1": 1.0, "2": 0.0}, file_sha256=None)
    (entry,) = compared(*runs)[0]["suites"]
    assert entry["difference"]["items"] == 2
    assert entry["note"] == "not recorded in both runs: the suite's file"
    for run, content in zip(runs, ("first", "corrected"), strict=True):
        remember(run, {**HASHES, "/data/sums.jsonl": content})
    (entry,) = compared(*runs)[0]["suites"]
    assert (entry["difference"], entry["note"]) == (None, "not graded alike (the suite's file differs)")
    remember(runs[1], {**HASHES, "/data/sums.jsonl": "first"})
    (entry,) = compared(*runs)[0]["suites"]
    assert (entry["difference"]["items"], entry["note"]) == (2, "")


def test_a_suite_of_one_recipe_alone_is_not_paired(tmp_path: Path) -> None:
    runs = build(tmp_path / "a"), build(tmp_path / "b", recipe=changed("evaluation.suites", {}))
    for run in runs:
        suite(run, {"1": 1.0, "2": 0.0})
    (entry,) = compared(*runs)[0]["suites"]
    assert (entry["difference"], entry["note"]) == (None, "only one of the recipes has it")


def outside(kind: str, path: str) -> dict[str, Any]:
    """The recipe with a validator that lies outside of the run."""
    more = {"rules": {"references": path}, "judge": {"model": "base"}}.get(kind, {"path": path})
    recipe = changed("reward_models.validator", {"kind": kind, **more})
    if kind == "judge":
        recipe["models"]["base"]["path"] = path
    return recipe


@pytest.mark.parametrize(
    ("kind", "path", "file"),
    [
        ("classifier", "/x/here", "/x/here/weights"),
        ("function", "/x/here.py", "/x/here.py"),
        ("rules", "/x/here.jsonl", "/x/here.jsonl"),
        ("column", "/x/here-{step}.jsonl", "/x/here-eval.jsonl"),
        ("judge", "/x/here", "/x/here/weights"),
    ],
)
def test_reward_models_outside_of_a_run_are_known_by_content(tmp_path: Path, kind: str, path: str, file: str) -> None:
    runs = [build(tmp_path / name, recipe=outside(kind, path)) for name in "ab"]

    def validator() -> dict[str, Any]:
        return dict(compared(*runs)[0]["reward_models"][1])

    note = "taken for the same by its path; the runs do not record its content"
    assert validator() == {"role": "validator", "same": True, "reason": "", "note": note}
    assert f"validator: {note}" in compared(*runs)[1]
    remember(runs[0], {file: "1"})
    assert validator()["note"] == note, "only one of the runs tells"
    remember(runs[1], {file: "1"})
    assert (validator()["same"], validator()["note"]) == (True, "")
    remember(runs[1], {file: "2"})
    assert "different ones, so their scores" in validator()["reason"]
    # The same in another place.
    (runs[1] / "recipe.yaml").write_text(yaml.safe_dump(outside(kind, path.replace("here", "there")), sort_keys=False))
    assert "different ones (by settings and paths" in validator()["reason"]
    remember(runs[1], {file.replace("here", "there"): "1"})
    assert validator()["same"]


def test_a_suites_judge_of_unknown_content_is_said_to_be_so(tmp_path: Path) -> None:
    recipe = changed("evaluation.suites.sums.judge", "base")
    runs = build(tmp_path / "a", recipe=recipe), build(tmp_path / "b", recipe=recipe)
    for run in runs:
        suite(run, {"1": 1.0, "2": 0.0})
    (runs[1] / ".hashes.json").write_text("[")
    (entry,) = compared(*runs)[0]["suites"]
    assert (entry["difference"]["items"], entry["note"]) == (2, "its judge is taken for the same by its path")
    remember(runs[1], {**HASHES, "/models/base/w": "another"})
    (entry,) = compared(*runs)[0]["suites"]
    assert (entry["difference"], entry["note"]) == (None, "not graded alike (the judges are different models of one name)")


def test_documents_of_perplexity_need_as_many_tokens(tmp_path: Path) -> None:
    recipe = changed("evaluation.suites.sums.kind", "perplexity")
    runs = build(tmp_path / "a", recipe=recipe), build(tmp_path / "b", recipe=recipe)
    for run, weights in zip(runs, ((10.0, 20.0), (10.0, 21.0)), strict=True):
        rows = [
            row(SuiteResult, f"r{i}", item_id=f"d{i}", model="M1", metric="nats_per_token", value=2.0 - i, weight=weight,
                failure="", category="")
            for i, weight in enumerate(weights)
        ]  # fmt: skip
        of = {"mean": 1.0, "low": 0.0, "high": 1.0, "items": 2, "failed": {}, "change": None}
        write(run, "eval.suite.sums", SuiteResult, rows, metrics={"nats_per_token": {"M1": of}}, kind="perplexity")
    (entry,) = compared(*runs)[0]["suites"]
    assert entry["difference"]["items"] == 1


def test_what_has_not_run_is_said_to_be_so(runs: tuple[Path, Path]) -> None:
    a, b = runs
    evaluate(a, SCORES)
    suite(a, {"1": 1.0})
    (b / "stage1/train/manifest.json").unlink()
    (b / "stage1/train/_work").mkdir()
    (b / "stage1/pair/data/train-00000-of-00001.parquet").write_bytes(b"short")
    found, lines = compared(a, b)
    states = {of["step"]: of["B"]["state"] for of in found["steps"]}
    assert states["eval"] == states["eval.suite.sums"] == "not run yet"
    assert states["eval.suite.sums.answer.M1"] == "not in this run"
    assert states["stage1.train"] == "unfinished"
    assert states["stage1.pair"] == "damaged"
    assert line_of(lines, "stage1.pair")[:2] == ["2", "damaged"]
    assert {of["what"]: of["both"] for of in found["shared"]}["pairs of stage1.pair"] is None
    assert {of["difference"] is None for of in (*found["evaluation"], *found["suites"])} == {True}
    assert not any(line.startswith("stage1.pair rejected") for line in lines)


def test_what_was_made_of_something_else_is_stale(runs: tuple[Path, Path]) -> None:
    """A step whose input was made anew, and all that came of it: nothing of them is this run's any more."""
    after = (
        ("stage1.sample.M0", Response, ["corpus"]), ("stage1.train", TrainedExample, ["stage1.sample.M0"]),
        ("eval.sample.M1", Response, ["stage1.train"]), ("eval", EvalResult, ["eval.sample.M1"]),
        ("eval.suite.sums.answer.M1", SuiteAnswer, ["stage1.train"]),
        ("eval.suite.sums", SuiteResult, ["eval.suite.sums.answer.M1"]),
    )  # fmt: skip
    for run in runs:
        evaluate(run, SCORES)
        suite(run, {"1": 1.0, "2": 0.0})
        for step, row_type, inputs in after:
            found = Artifact(run / folder_of(step)) if (run / folder_of(step)).exists() else None
            metrics = found.manifest.metrics if found else {}
            write(run, step, row_type, found.rows(row_type) if found else [], inputs=inputs, **metrics)
    found, _ = compared(*runs)
    assert {of[letter]["state"] for of in found["steps"] for letter in "AB" if of[letter]["state"] != "not run yet"} == {
        "done"
    }
    assert found["suites"][0]["difference"] is not None
    # Weights that were given back are lacking; what was made of them is what it was.
    (runs[0] / "stage1/train/data/train-00000-of-00001.parquet").unlink()
    found, _ = compared(*runs)
    assert {of["step"]: of["A"]["state"] for of in found["steps"]}["stage1.train"] == "damaged"
    assert found["suites"][0]["difference"] is not None
    write(runs[1], "corpus", Document, [row(Document, "d9")])
    found, lines = compared(*runs)
    states = {of["step"]: of["B"]["state"] for of in found["steps"]}
    assert {step for step, state in states.items() if state == "stale"} == {step for step, _, _ in after}
    assert states["corpus"] == states["stage1.pair"] == "done"
    assert line_of(lines, "eval.suite.sums")[1] == "stale"
    assert [(of["A"] is None, of["B"], of["difference"]) for of in found["suites"]] == [(False, None, None)]
    assert {of["B"]["prompts"] for of in found["evaluation"]} == {0}


def test_steps_that_name_each_other_as_inputs_are_stale(runs: tuple[Path, Path]) -> None:
    for step, other in (("corpus", "stage1.pair"), ("stage1.pair", "corpus")):
        path = runs[1] / folder_of(step) / "manifest.json"
        inputs = {other: Artifact(runs[1] / folder_of(other)).manifest.digest()}
        path.write_text(json.dumps({**json.loads(path.read_text()), "inputs": inputs}))
    states = {of["step"]: of["B"]["state"] for of in compared(*runs)[0]["steps"]}
    assert states["corpus"] == states["stage1.pair"] == "stale"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("recipe.yaml", None),
        ("recipe.yaml", "a: [b"),
        ("recipe.yaml", "stages: 5"),
        ("corpus/manifest.json", "{"),
        ("corpus/manifest.json", "[]"),
        ("corpus/data/train-00000-of-00001.parquet", "garbage"),
        ("eval/result/data/train-00000-of-00001.parquet", "garbage"),
    ],
)
def test_damage_is_one_clear_line(runs: tuple[Path, Path], file: str, text: str | None) -> None:
    a, b = runs
    evaluate(b, SCORES)
    path = b / file
    if text is None:
        path.unlink()
    else:  # of the same size where a manifest tells it
        path.write_text(text.ljust(path.stat().st_size) if file.endswith("parquet") else text)
    with pytest.raises(UserError) as caught:
        compared(a, b)
    assert str(b) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_metrics_of_another_version(runs: tuple[Path, Path]) -> None:
    path = runs[1] / "stage1/train/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rows": "many"}))
    with pytest.raises(UserError, match="does not hold what this version writes"):
        compared(*runs)


def test_the_json_is_what_is_returned(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for run in runs:
        evaluate(run, SCORES)
        suite(run, {"1": 1.0, "2": 0.0})
    found = compare_runs(*runs, lambda line: None, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(json.dumps(found))
    assert set(found) == {
        "runs", "recipe", "steps", "shared", "training", "reward_models", "evaluation", "suites",
    }  # fmt: skip


def test_names_from_files_do_not_move_the_cursor(tmp_path: Path) -> None:
    recipe = {**RECIPE, "name": "a\x1b[2Jb\nc\u202ed"}
    _, lines = compared(build(tmp_path / "a", recipe=recipe), build(tmp_path / "b"))
    assert lines[0].startswith("A: a [2Jb c d, ")
    assert all(line.isprintable() for line in lines)
