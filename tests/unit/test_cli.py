"""The commands: one clear line and the right exit code for each mistake, and no model library for the light ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from align.cli import STAGE_VERBS, STEP_VERBS, main, open_run, parser
from align.core.artifact import StepFolder
from align.core.rows import Document, Reject
from align.inspecting import recipes_folder
from align.recipe.load import dump_recipe, load_recipe
from align.runner import Run, execute

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """An empty folder into which `align init proxy` has been run; the current one."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("ALIGN_RECIPE", raising=False)
    assert main(["init", "proxy"]) == 0
    capsys.readouterr()
    return tmp_path / "project"


def error(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    """The error text of a command that fails, without the `error: ` before it."""
    assert main(list(argv)) == code
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    lines = out.err.splitlines()
    assert lines and all(line.startswith("error: ") for line in lines), out.err
    return "\n".join(line.removeprefix("error: ") for line in lines)


def test_unknown_recipe_file(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("check", "run", "taxonomy"):
        assert error(capsys, verb, "--recipe", "nowhere.yaml") == (
            "nowhere.yaml: no such recipe; `align init quickstart` copies one here"
        )


def test_recipe_may_come_from_the_environment(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGN_RECIPE", "elsewhere.yaml")
    assert error(capsys, "check").startswith("elsewhere.yaml: no such recipe")
    monkeypatch.setenv("ALIGN_RECIPE", str(project / "recipe.yaml"))
    monkeypatch.chdir("/")
    assert error(capsys, "check", "--set", "x=1").startswith(f"{project / 'recipe.yaml'}:")


def test_a_run_goes_on_with_its_own_recipe(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = Path("runs/mine/recipe.yaml")
    mine.parent.mkdir(parents=True)
    mine.write_text(dump_recipe(load_recipe(Path("recipe.yaml"), ["name=mine"])))
    assert main(["check", "--run-dir", "runs/mine"]) == 0
    found = capsys.readouterr()
    assert found.out.startswith("recipe mine: valid.")
    assert found.err == "with the run's own recipe, runs/mine/recipe.yaml; for the other: --recipe recipe.yaml\n"
    assert main(["check", "--run-dir", "runs/mine", "--recipe", "recipe.yaml"]) == 0
    found = capsys.readouterr()
    assert found.out.startswith("recipe proxy: valid.") and not found.err
    mine.write_text(dump_recipe(load_recipe(Path("recipe.yaml"))))
    assert main(["check", "--run-dir", "runs/mine"]) == 0
    assert not capsys.readouterr().err, "the recipe that lies here is the same"
    # A path of --set begins where it does without a run folder.
    assert error(capsys, "check", "--run-dir", "runs/mine", "--set", "corpus.paths=[new.jsonl]").endswith(
        f"{project / 'new.jsonl'} names no file"
    )
    assert main(["check", "--run-dir", "runs/new"]) == 0, "a new folder takes the recipe that lies here"
    assert capsys.readouterr().out.startswith("recipe proxy: valid.")


def test_a_step_that_replaces_a_result_says_so(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def corpus(*more: str) -> list[str]:
        said: list[str] = []
        execute(open_run(parser().parse_args(["run", *more])), ["corpus"], said.append)
        return said

    about = "corpus: read, check, mask and de-duplicate documents"
    assert corpus()[0] == about and not corpus()
    next(Path("runs/proxy/corpus/data").glob("*.parquet")).unlink()
    assert corpus()[0] == f"{about} (anew: files of it are missing)"
    assert (
        corpus("--set", "corpus.min_chars=41")[0]
        == f"{about} (anew: recipe, models, files or code changed since it was made)"
    )


def test_bad_key(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("recipe.yaml").read_text()
    Path("recipe.yaml").write_text(text.replace("\nseed: ", "\nsed: "))
    line = next(i for i, x in enumerate(text.splitlines(), 1) if x.startswith("seed: "))
    assert error(capsys, "check") == f"recipe.yaml:{line}: sed: unknown key; did you mean seed?"
    assert "\n" in error(capsys, "check", "--set", "stages.0.train.tau=1"), "every fault has its line"


def test_bad_override(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert error(capsys, "run", "--set", "seed") == "--set seed: write it as key.path=value"


def test_missing_model_folder(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = error(capsys, "check", "--set", "models.base={path: models/llm}")
    assert text == f"{project / 'models/llm'}: no model there (config.json is missing)"
    assert not (project / "runs").exists(), "checking makes no run folder"


def test_wrong_loss_names_the_right_command(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert error(capsys, "dpo", "--stage", "2") == "stage 2 trains with loss simpo: run `align simpo --stage 2`"
    assert error(capsys, "simpo", "--stage", "1") == "stage 1 trains with loss dpo: run `align dpo --stage 1`"
    other = ("--set", "stages.1.train={loss: orpo}", "--stage", "2")
    assert error(capsys, "simpo", *other) == "stage 2 trains with loss orpo: run `align orpo --stage 2`"


@pytest.mark.parametrize("verb", STAGE_VERBS)
def test_stage_out_of_range(project: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    for stage in ("0", "3", "-1"):
        assert error(capsys, verb, "--stage", stage) == f"--stage {stage}: the recipe has stages 1 to 2"
    with pytest.raises(SystemExit) as caught:
        main([verb])
    assert caught.value.code == 2


def test_a_recipe_without_reward_training_has_no_such_step(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judges = "reward_models={selector: {path: a}, validator: {path: b}}"
    assert error(capsys, "reward", "--set", judges) == "align reward: this recipe has no such step"


def test_missing_inputs_name_their_command(
    project: Path, capsys: pytest.CaptureFixture[str], tiny_llama: Path, tiny_bert: Path
) -> None:
    first = "instruct needs corpus, taxonomy first: run `align taxonomy` (or `align run` for everything)"
    assert error(capsys, "instruct") == first
    assert "needs evolve, sft first: run `align evolve` and `align sft` " in error(capsys, "sample", "--stage", "1")
    assert "`align sample --stage 2`" in error(capsys, "score", "--stage", "2")
    assert "`align respond`" in error(capsys, "sft")


def test_inspect_on_what_is_no_artifact(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("data", "nowhere", "recipe.yaml"):
        assert error(capsys, "inspect", name) == f"{name}: no manifest.json, so this is not a finished step"
    Path("broken").mkdir()
    Path("broken/manifest.json").write_text("{")
    assert "broken/manifest.json: not a manifest" in error(capsys, "inspect", "broken")


def test_inspect_shows_counts_rows_and_rejects(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = project / "runs/x/corpus"
    out = StepFolder(folder, step="corpus", fingerprint="f", inputs={}, row_type=Document, seed=17)
    rows = [Document(id=f"d{i}", text=f"꿀 {i}", lang="ko", source="s", license="CC0", pii="") for i in range(4)]
    out.write_all(rows, [Reject(id="r", reason="too_short", raw="짧다")] * 2, asked=6)
    out.finish({"cut": 1})
    assert main(["inspect", str(folder), "-n", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == "corpus: 6 asked, 4 Document rows kept, 2 rejected"
    assert "rejected      2  too_short" in shown and "  cut: 1" in shown
    assert "text: 꿀 1" in shown and "꿀 2" not in shown and "WARNING" not in shown
    assert main(["inspect", str(folder), "--rejects"]) == 0
    assert "raw: 짧다" in capsys.readouterr().out
    assert "--tokens shows preference pairs; this holds Document rows" in error(capsys, "inspect", str(folder), "--tokens")
    (folder / "rejects/part-00000.parquet").unlink()
    main(["inspect", str(folder)])
    assert "WARNING: changed since it was written: rejects/part-00000.parquet" in capsys.readouterr().out
    (folder / "data/train-00000-of-00001.parquet").write_bytes(b"cut")
    assert "train-00000-of-00001.parquet: cannot be read" in error(capsys, "inspect", str(folder))


def test_init_does_not_overwrite(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert error(capsys, "init", "proxy") == "init: recipe.yaml is already there; use --to FOLDER"
    Path("recipe.yaml").unlink()
    assert error(capsys, "init") == "init: data is already there; use --to FOLDER"
    assert main(["init", "--to", "deeper/folder"]) == 0
    assert "name: quickstart" in Path("deeper/folder/recipe.yaml").read_text()
    assert error(capsys, "init", "nothing").startswith("init: there is no recipe nothing; there are proxy, quickstart")
    assert not Path("recipe.yaml").exists()


def test_check_in_a_fresh_quickstart_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGN_RECIPE", raising=False)
    assert main(["init", "quickstart"]) == 0
    said = capsys.readouterr().out
    assert "recipe.yaml" in said and "align check" in said
    assert main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("recipe quickstart: valid.") and str(tmp_path / "runs/quickstart") in lines[0]
    for step in ("corpus", "sft", "reward.selector", "stage1.pair", "stage2.train", "eval", "report"):
        assert any(line.startswith(f"{step} ") and " to run " in line for line in lines), step
    assert " steps to run: " in lines[-1]
    assert {p.name for p in tmp_path.iterdir()} == {"recipe.yaml", "data"}, "checking writes nothing here"


def test_a_suite_and_its_models_are_checked_before_anything_runs(
    project: Path, capsys: pytest.CaptureFixture[str], tiny_llama: Path
) -> None:
    has = "align eval nosuch: evaluation.suites has constraints, documents"
    assert error(capsys, "eval", "nosuch") == error(capsys, "eval", "nosuch", "--models", "M0") == has
    assert error(capsys, "eval", "--models", "M0") == "--models goes with a suite: align eval SUITE --models M0 M2"
    unknown = "--models: M7: no folder with config.json, and no model of the recipe (base, M0, M1, M2@1, M2)"
    assert error(capsys, "eval", "constraints", "--models", "M0", "M7") == unknown
    shutil.copytree(tiny_llama, "other/base")
    taken = "--models: other/base: the recipe has the name base already; rename the folder, or link it under another name"
    assert error(capsys, "eval", "constraints", "--models", "other/base", "M0") == taken
    assert not Path("runs").exists()


def test_a_table_that_loses_models_says_so(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_llama: Path
) -> None:
    def table(run: Run, *models: str) -> int:
        out = StepFolder(
            run.run_dir / "eval/suite/constraints", step="s", fingerprint="f", inputs={}, row_type=Document, seed=1
        )
        out.write_all([], [], asked=0)
        out.finish({"kind": "ifeval", "items": 3, "models": models, "metrics": {}})
        return 1

    tables = iter([("base", "M0", "M2"), ("M0", "M2"), ("M0", "M2")])
    monkeypatch.setattr("align.runner.execute", lambda run, wanted, say: table(run, *next(tables)))
    said = []
    for _ in range(3):
        assert main(["eval", "constraints", "--models", "M2", "M0"]) == 0
        said.append([line for line in capsys.readouterr().out.splitlines() if "had" in line])
    assert said == [[], ["the run's table of constraints had base too: name them with --models to have them back"], []]


def test_the_models_of_a_suite_are_the_recipes_or_folders(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_llama: Path
) -> None:
    """Names are the recipe's, whatever lies in the current folder; a folder may have any name that a model may have."""
    ran: list[Run] = []
    monkeypatch.setattr("align.runner.execute", lambda run, wanted, say: ran.append(run) or len(wanted))
    shutil.copytree(tiny_llama, "base")
    shutil.copytree(tiny_llama, "it's/Llama-3.1-8B")
    shutil.copytree(tiny_llama, "2024")
    assert main(["eval", "constraints", "--models", "base", "M2", "it's/Llama-3.1-8B", "2024", "--set", "seed=3"]) == 0
    recipe = ran[0].recipe
    assert recipe.evaluation.suites["constraints"].models == ("base", "M2", "Llama-3.1-8B", "2024")
    assert recipe.models["base"].builtin == "tiny-llama" and recipe.seed == 3
    assert [recipe.models[name].path for name in ("Llama-3.1-8B", "2024")] == [
        str(project / "it's/Llama-3.1-8B"), str(project / "2024"),
    ]  # fmt: skip
    assert ran[0].run_dir == project / "runs" / "proxy"


def test_check_before_the_built_in_models_are_built(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "home"))
    assert main(["check"]) == 0
    assert "built-in models that `align run` builds first: tiny-llama, tiny-bert" in capsys.readouterr().out


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"models", "stages", "corpus", "evaluation"} <= set(schema["required"])


def test_trace_of_an_unknown_id(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "0 rows in" in error(capsys, "trace", "0123")


def test_chat_with_an_unknown_or_untrained_model(
    project: Path, capsys: pytest.CaptureFixture[str], tiny_llama: Path
) -> None:
    assert error(capsys, "chat", "M7", "--prompt", "x") == "chat: no model M7; there are base, M0, M1, M2"
    assert error(capsys, "chat", "M2", "--prompt", "x") == "chat: M2 is not there yet; run `align run` first"


def test_a_run_folder_that_is_a_file(
    project: Path, capsys: pytest.CaptureFixture[str], tiny_llama: Path, tiny_bert: Path
) -> None:
    assert "cannot be used as a run folder" in error(capsys, "run", "--run-dir", "recipe.yaml")


def test_interrupt_says_that_work_goes_on(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("align.cli._run", interrupted)
    assert main(["run"]) == 130
    assert capsys.readouterr().err == "\nstopped; the same command goes on from here\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for command in (*STEP_VERBS, "init", "check", "run", "inspect", "trace", "chat", "doctor", "schema"):
        assert f"    {command} " in text, command
    with pytest.raises(SystemExit) as caught:
        main(["tran"])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["schema"], ["init", "--to", "copy"], ["check", "--recipe", "x.yaml"]]
)
def test_light_commands_load_no_model_library(argv: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom align.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = ('torch', 'transformers', 'vllm', 'datasets', 'sklearn', 'pandas')\n"
        "sys.stderr.write(f'loaded: {[m for m in heavy if m in sys.modules]}')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr.endswith("loaded: []")


def test_the_installed_command_fails_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "align.cli", "check", "--recipe", "nowhere.yaml"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == ["error: nowhere.yaml: no such recipe; `align init quickstart` copies one here"]


def test_shipped_recipes_are_found() -> None:
    assert (recipes_folder() / "quickstart.yaml").is_file() and (recipes_folder() / "data/corpus/ko.jsonl").is_file()


def test_the_recipe_of_a_run_folder_serves_where_none_is_named(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, tiny_bert: Path
) -> None:
    run_dir = project / "runs" / "elsewhere"
    run_dir.mkdir(parents=True)
    (project / "recipe.yaml").rename(run_dir / "recipe.yaml")
    assert "no such recipe" in error(capsys, "check")
    assert main(["check", "--run-dir", str(run_dir)]) in (0, 2)
    assert "no such recipe" not in capsys.readouterr().err
    assert "nope.yaml: no such recipe" in error(capsys, "check", "--recipe", "nope.yaml", "--run-dir", str(run_dir))
