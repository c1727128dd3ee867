"""Model cards: what they say of a small made-up run, what they leave out, and that writing them makes nothing stale."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from align.core.artifact import Artifact, Manifest, StepFolder
from align.core.errors import UserError
from align.core.hashing import FileHashes, content_id, file_sha256
from align.core.rows import Document, EvalResult, Instruction, Preference, SftExample, SuiteResult, TrainedExample
from align.model_card import CARD, MARK, escaped, interval, write_model_cards
from align.report.artifacts import folder_of
from align.steps.step import Step
from align.steps.table import plan_steps

HOSTILE = "<script>alert(1)</script> | `a` *b* _c_ [d](https://e.org) ![f](g) $h$\n# i\u202e"
WEIGHTS = save({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float32)})
INTERVAL = {"mean": 0.625, "low": 0.5125, "high": 0.75}
ROWS: dict[type, dict[str, Any]] = {
    Preference: {"lang": "ko", "source": "sampled", "split": "train"},
    SftExample: {},
    Document: {},
    Instruction: {},
    TrainedExample: {},
    EvalResult: {},
    SuiteResult: {},
}
DEFAULT = {"str": "x", "int": 1, "float": 0.5, "list[int]": [1], "list[Message]": [{"role": "user", "content": "x"}]}


def row(row_type: type, number: int, **given: Any) -> Any:
    """A row of which only what is given matters."""
    fields = {name: DEFAULT[str(kind)] for name, kind in row_type.__annotations__.items()}
    return row_type(**{**fields, "id": f"r{number}", **ROWS[row_type], **given})


def write(
    run: Path,
    step: str,
    row_type: type,
    inputs: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
    **metrics: Any,
) -> Manifest:
    """A finished step of two rows which read its inputs as they stand."""
    digests = {name: Artifact(run / folder_of(name)).manifest.digest() for name in inputs}
    folder = run / folder_of(step)
    out = StepFolder(folder, step=step, fingerprint=content_id(step), inputs=digests, row_type=row_type, seed=7)
    for name, data in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    out.write_all([row(row_type, 0), row(row_type, 1)], [], asked=2)
    return out.finish(metrics)


def edit(run: Path, step: str, **metrics: Any) -> None:
    """Put other metrics into a step's manifest."""
    path = run / folder_of(step) / "manifest.json"
    found = json.loads(path.read_text())
    found["metrics"] |= metrics
    path.write_text(json.dumps(found))


def model_files(weights: bytes = WEIGHTS) -> dict[str, bytes]:
    return {"model/model.safetensors": weights, "model/config.json": b"{}", "model/tokenizer.json": b"{}"}


RECIPE: dict[str, Any] = {
    "name": "small",
    "models": {"base": {"path": "/models/tiny-base"}},
    "sft": {"init": "base", "epochs": 2, "learning_rate": 0.25, "lora": {"rank": 3}},
    "reward_models": {
        "selector": {"kind": "rules"},
        "validator": {"kind": "judge", "model": "base"},
        "gold": {"kind": "rules"},
    },
    "stages": [{"name": "M1", "init": "M0", "reference": "M0", "train": {"loss": "dpo", "beta": 0.125, "max_length": 99}}],
    "evaluation": {
        "models": ["M0", "M1"],
        "temperature": 1.0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "suites": {"sums": {"kind": "exact_answer", "path": "/data/sums.jsonl"}},
    },
}
METER = {
    "points": [
        {"name": "M0", **{k: INTERVAL for k in ("sqrt_kl", "proxy_gain", "validator_gain", "gold_gain")}},
        {"name": "M1", **{k: INTERVAL for k in ("sqrt_kl", "proxy_gain", "validator_gain", "gold_gain")}},
    ],
    "choice": {"name": "M1", "reason": "highest lower bound"},
    "stop": {"stop": 1, "best": 0, "comparisons": [{"name": "M1"}]},
    "steps": [{"start": "M0", "end": "M1", "over_optimized": True}],
}
LINES: list[dict[str, Any]] = [{"model": "M0"}, {"model": "M1", "num_tokens": 51.25}]
for role in ("selector", "validator", "gold"):
    LINES[1] |= {f"{role}_win_rate": INTERVAL, f"{role}_compared": 8}
LENGTH = {"length_controlled": {"mean": 41.5, "low": 30.0, "high": 52.0}, "warning": "the answers are longer"}
SUITE = {
    "M0": {"mean": 0.75, "low": 0.5, "high": 0.875, "items": 16, "failed": {}, "change": None},
    "M1": {
        "mean": 0.25, "low": 0.125, "high": 0.5, "items": 15, "failed": {"cut_short": 1},
        "change": {"mean": -0.5, "low": -0.75, "high": -0.125, "items": 15},
    },
}  # fmt: skip


def build(run: Path, *, evaluated: bool = True) -> Path:
    """A run of one stage."""
    run.mkdir()
    (run / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    write(run, "corpus", Document, by_language={"en": 1, "ko": 1}, by_license={"CC0-1.0": 2}, pii={"email": 3})
    write(run, "evolve", Instruction, ["corpus"], by_lang={"en": 2})
    write(run, "sft.data", SftExample, ["evolve"], by_language={"en": 2}, by_license={"CC0-1.0": 2})
    write(run, "sft", TrainedExample, ["sft.data"], model_files(), loss=2.5, tokens=1234, steps=7)
    finding = {"name": "length_only", "severity": "warn", "sentence": "Its pairs teach length."}
    certificate = {"benchmarks": [{"name": "sums", "items": 16}], "contaminated": 3, "rows": 5}
    files = {"audit.json": {"findings": [finding]}, "decontamination.json": certificate}
    write(run, "stage1.pair", Preference, ["evolve"], {name: json.dumps(value).encode() for name, value in files.items()})
    examined = [{"loss": 0.7, "accuracy": 0.0, "margin": 0.0}, {"loss": 0.5, "accuracy": 0.875, "margin": 1.375}]
    write(run, "stage1.train", TrainedExample, ["stage1.pair", "sft"], model_files(), loss=0.5625, examined=examined)
    if evaluated:
        evaluate(run)
    return run


def evaluate(run: Path) -> None:
    write(
        run, "eval", EvalResult, ["sft", "stage1.train"], table=LINES, prompts=8, baseline="M0", meter=METER,
        wins=[{"by": "selector", "model": "M1", "length": LENGTH}],
        kl=[{"model": "M1", "to": "M0", "kl": 3.375, "standard_error": 0.5, "nats_per_token": 0.0625}],
    )  # fmt: skip
    write(run, "eval.suite.sums", SuiteResult, ["sft", "stage1.train"], kind="exact_answer", metrics={"exact": SUITE})


def cards(run: Path) -> dict[str, str]:
    """All cards by model, without front matter."""
    names = {"sft/train/model": "M0", "stage1/train/model": "M1"}
    return {names[str(p.parent.relative_to(run))]: p.read_text("utf-8") for p in write_model_cards(run)}


def front(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return build(tmp_path / "run")


def limits(text: str) -> str:
    return text.split("## Limits")[1].split("## How to load it")[0]


def test_front_matter(run: Path) -> None:
    found = cards(run)
    assert front(found["M0"]) == {
        "language": ["en"], "license": "unknown", "library_name": "transformers", "pipeline_tag": "text-generation",
        "base_model": "tiny-base", "tags": ["align", "sft"],
    }  # fmt: skip
    assert front(found["M1"])["language"] == ["en", "ko"]  # the pairs are Korean
    assert front(found["M1"])["tags"] == ["align", "sft", "dpo"]


def test_what_it_was_made_from_and_with(run: Path) -> None:
    text = cards(run)["M1"]
    assert "trained from M0 with DPO\n(preference stage 1 of 1, reference M0)" in text
    assert "- Documents: 2; languages: en 1, ko 1; licences: CC0-1.0 2; personal data masked: email 3" in text
    assert "- Preference pairs of M1: 2 of 2 asked for; languages: ko 2; source: sampled 2; split: train 2" in text
    assert "  - Audit, warn: length\\_only. Its pairs teach length." in text
    assert "in stage1.pair: 3 of 5 rows had some and were taken out; searched for sums (16 items)" in text
    assert "| M0 | base | SFT | 2 | 7 | 1234 |" in text
    assert "| 0.5 | 0.875 | 1.38 |" in text  # of the last look, neither the first nor the last batch
    assert "| lora.rank | 3 |  |" in text
    assert "| beta |  | 0.125 |" in text
    assert f"recipe.yaml: {file_sha256(run / 'recipe.yaml')}" in text
    assert f"model.safetensors: {file_sha256(run / 'stage1/train/model/model.safetensors')}" in text


def test_numbers(run: Path) -> None:
    found = cards(run)
    text = found["M1"]
    assert "| selector | 62.5 (51.2 to 75) | 41.5 (30 to 52) | 8 | the answers are longer |" in text
    assert "| gold | 62.5 (51.2 to 75) |  | 8 |  |" in text
    assert "- KL to M0: 3.38 nats for each answer, standard error 0.5; 0.0625 for each token" in text
    assert (
        "| sums | exact | 0.25 (0.125 to 0.5) | -0.5 (-0.75 to -0.125) from M0, on 15 items of both | 15 | cut\\_short 1 |"
        in text
    )
    assert "Alignment tax: 1 of 1 numbers are worse" in text
    assert "- Chosen checkpoint: M1, this model (highest lower bound)" in text
    assert "- Stop rule: it fired at M1; the gold reward was best at M0" in text
    assert "each beyond its interval: M0 to M1" in text
    assert "10 parameters (F32); no training example was longer than 99 tokens" in limits(text)
    assert "Win rate against" not in found["M0"]
    assert "win rate by" not in limits(found["M0"])  # it is the baseline
    assert "not this model" in found["M0"]


def test_what_was_not_measured_is_named_and_nowhere_else(run: Path, tmp_path: Path) -> None:
    text = limits(cards(run)["M1"])
    assert "win rate by gold at equal length" in text
    assert "win rate by selector" not in text
    assert "safety" in text
    assert "test items were not searched for in evolve, sft.data" in text  # only the pairs have a certificate
    text = cards(build(tmp_path / "bare", evaluated=False))["M1"]
    for name in ("win rates", "KL to other models", "over-optimization", "suite sums", "safety"):
        assert name in limits(text)
    assert "| sums |" not in text
    assert "## Over-optimization\n\nNot measured." in text


def test_a_change_over_fewer_items_says_over_how_many(run: Path) -> None:
    assert "-0.125) from M0, on 15 items of both | 15 |" in cards(run)["M1"]  # M0's mean is over 16
    fewer = {**SUITE["M1"], "items": 16, "change": {**SUITE["M1"]["change"], "items": 12}}
    edit(run, "eval.suite.sums", metrics={"exact": {**SUITE, "M1": fewer}})
    text = cards(run)["M1"]
    assert "-0.125) from M0, on 12 items of both | 16 |" in text
    assert "- Worse in sums, exact: -0.5 (-0.75 to -0.125) from M0, on 12 items of both\n" in text
    equal = {**fewer, "change": {**SUITE["M1"]["change"], "items": 16}}
    edit(run, "eval.suite.sums", metrics={"exact": {**SUITE, "M1": equal}})
    assert "items of both" not in cards(run)["M1"]


def test_only_what_is_a_kl_is_called_one(run: Path) -> None:
    assert "log-ratio" not in cards(run)["M1"].lower()
    cut = {**RECIPE, "evaluation": {**RECIPE["evaluation"], "temperature": 0.7}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(cut, sort_keys=False))
    text = cards(run)["M1"]
    assert "- Log-ratio to M0: 3.38 nats for each answer" in text
    assert "no estimate of the KL, since answers were not sampled at temperature 1 without cut-offs" in text
    assert "sqrt(log-ratio) 0.625 (0.512 to 0.75) away" in text
    assert "KL to" not in text and "sqrt(KL)" not in text
    edit(run, "eval", kl=[])
    assert "log-ratio to other models" in limits(cards(run)["M1"])


def test_a_run_without_gold_has_no_verdict(run: Path) -> None:
    edit(run, "eval", meter={**METER, "choice": None, "stop": None})
    text = cards(run)["M1"]
    assert "Chosen checkpoint" not in text
    assert "over-optimization: no gold reward model" in limits(text)


def test_lower_is_better_where_it_is(run: Path) -> None:
    edit(run, "eval.suite.sums", metrics={"nats_per_token": SUITE})
    assert "Alignment tax: 0 of 1" in cards(run)["M1"]
    unsure = {**SUITE, "M1": {**SUITE["M1"], "change": {"mean": 0.1, "low": -0.1, "high": 0.3, "items": 15}}}
    edit(run, "eval.suite.sums", metrics={"nats_per_token": unsure, "exact": unsure})
    assert "Alignment tax: 0 of 2" in cards(run)["M1"]
    grown = {**SUITE, "M1": {**SUITE["M1"], "change": {"mean": 0.5, "low": 0.25, "high": 0.75, "items": 15}}}
    edit(run, "eval.suite.sums", metrics={"nats_per_token": grown})
    assert "Alignment tax: 1 of 1" in cards(run)["M1"]


def test_numbers_of_an_earlier_model_are_not_this_ones(run: Path) -> None:
    changed = model_files(save({"a": np.ones((2, 3), np.float32)}))
    write(run, "stage1.train", TrainedExample, ["stage1.pair", "sft"], changed, loss=0.5)
    text = cards(run)["M1"]
    assert "62.5" not in text
    assert "| sums |" not in text
    assert "win rates: no evaluation of this model as it is now" in limits(text)
    evaluate(run)
    assert "62.5" in cards(run)["M1"]


def test_writing_cards_makes_nothing_stale(run: Path) -> None:
    """A plan of the trained models and of a step that reads one from outside, before and after."""
    model = run / "sft/train/model"
    steps = [
        Step(name="sft.data", verb="sft", folder="sft/data", row_type=SftExample, about=""),
        Step(name="sft", verb="sft", folder="sft/train", row_type=TrainedExample, inputs=("sft.data",), about=""),
        Step(
            name="eval", verb="eval", folder="eval/result", row_type=EvalResult, inputs=("sft",), models=(model,), about=""
        ),
    ]
    for planned in plan_steps(steps, run, FileHashes(run / ".hashes.json")):
        path = run / planned.step.folder / "manifest.json"
        recorded = json.loads(path.read_text())
        inputs = {name: Artifact(run / folder_of(name)).manifest.digest() for name in planned.step.inputs}
        path.write_text(json.dumps({**recorded, "fingerprint": planned.fingerprint, "inputs": inputs}))
    hashes = FileHashes(run / ".hashes.json")
    before = plan_steps(steps, run, hashes), hashes.model(model), Artifact(run / "sft/train").manifest.digest()
    assert [planned.done for planned in before[0]] == [True] * 3
    assert (model / CARD) in write_model_cards(run)
    hashes = FileHashes(run / ".hashes.json")
    assert (plan_steps(steps, run, hashes), hashes.model(model), Artifact(run / "sft/train").manifest.digest()) == before
    assert Artifact(run / "sft/train").verify() == []
    first = (model / CARD).read_text()
    write_model_cards(run)
    assert (model / CARD).read_text() == first
    assert sorted(p.name for p in model.iterdir()) == sorted(["config.json", "tokenizer.json", "model.safetensors", CARD])


def test_somebodys_own_text_stays(run: Path) -> None:
    path, said = run / "sft/train/model" / CARD, list[str]()
    write_model_cards(run)
    path.write_text(path.read_text().replace(MARK, "") + "More.\n")
    kept = path.read_text()
    assert write_model_cards(run, said.append) == [run / "stage1/train/model" / CARD]
    assert path.read_text() == kept
    assert "somebody's own text" in said[0]
    # One that a step recorded is part of the step.
    files = {**model_files(), f"model/{CARD}": MARK.encode()}
    write(run, "stage1.train", TrainedExample, ["stage1.pair", "sft"], files, loss=0.5)
    assert write_model_cards(run) == []
    assert Artifact(run / "stage1/train").verify() == []


def test_no_card_for_what_does_not_stand(run: Path) -> None:
    said: list[str] = []
    (run / "stage1/train/manifest.json").unlink()
    assert write_model_cards(run, said.append) == [run / "sft/train/model" / CARD]
    assert "not trained yet" in said[1]
    write(run, "sft", TrainedExample, ["sft.data"], model_files(), loss=2.0)
    write(run, "stage1.train", TrainedExample, ["stage1.pair", "sft"], model_files(), loss=0.5)
    # Other data: neither model was made from what is there now.
    write(run, "sft.data", SftExample, ["evolve"], {"more.txt": b"x"})
    assert write_model_cards(run, said.append) == []
    assert "M0 or what it was trained on is damaged or has been made anew" in said[-1]
    write(run, "sft", TrainedExample, ["sft.data"], model_files(), loss=2.0)
    write(run, "stage1.train", TrainedExample, ["stage1.pair", "sft"], model_files(), loss=0.5)
    # Nor from other documents, though the step between them is not made anew.
    write(run, "corpus", Document, files={"more.txt": b"x"})
    assert write_model_cards(run) == []
    write(run, "corpus", Document)
    (run / "stage1/train/model/model.safetensors").write_bytes(b"short")
    assert write_model_cards(run) == [run / "sft/train/model" / CARD]
    next((run / "sft/data/data").glob("*.parquet")).write_bytes(b"short")
    assert write_model_cards(run) == []
    (run / "sft/train/manifest.json").unlink()
    assert write_model_cards(run, said.append) == []
    assert "a model that it comes from is not" in said[-1]


@pytest.mark.parametrize(
    ("base", "data", "expected"),
    [
        ("apache-2.0", {"Apache-2.0": 2}, "apache-2.0"),
        ("apache-2.0", {"CC0-1.0": 2}, "other"),
        ("apache-2.0", {"Apache-2.0": 1, "unknown": 1}, "unknown"),
        ("apache-2.0", {"Apache-2.0": 1, "": 1}, "unknown"),
        ("other", {"CC0-1.0": 2}, "unknown"),
        (None, {"CC0-1.0": 2}, "unknown"),
    ],
)
def test_a_licence_is_never_invented(
    run: Path, tmp_path: Path, base: str | None, data: dict[str, int], expected: str
) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / CARD).write_text(f"---\nlicense: {base}\n---\n# Base\n" if base else "# Base\n")
    (run / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "models": {"base": {"path": str(folder)}}}))
    for step in ("corpus", "sft.data"):
        edit(run, step, by_license=data)
    assert front(cards(run)["M0"])["license"] == expected


def test_collected_pairs_have_no_known_licence(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / CARD).write_text("---\nlicense: cc0-1.0\n---\n")
    (run / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "models": {"base": {"path": str(folder)}}}))
    assert front(cards(run)["M1"])["license"] == "cc0-1.0"
    monkeypatch.setitem(ROWS[Preference], "source", "elsewhere")
    write(run, "stage1.pair", Preference, ["evolve"])
    write(run, "stage1.train", TrainedExample, ["stage1.pair", "sft"], model_files(), loss=0.5)
    assert front(cards(run)["M1"])["license"] == "unknown"


def test_names_of_base_models(run: Path) -> None:
    for spec, expected in (
        ({"builtin": "tiny-llama"}, "tiny-llama"),
        ({"path": "/x/qwen"}, "qwen"),
        ({"path": "/runs/first/sft/train/model"}, "first-sft-train"),
    ):
        (run / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "models": {"base": spec}}))
        assert front(cards(run)["M1"])["base_model"] == expected


def test_a_stage_may_begin_at_a_snapshot_or_outside(run: Path) -> None:
    second = {"name": "M2", "init": "M1@1", "train": {"loss": "simpo", "beta": 2.0}}
    third = {"name": "M3", "init": "other", "train": {"loss": "orpo"}}
    models = {**RECIPE["models"], "other": {"path": "/models/far"}}
    (run / "recipe.yaml").write_text(
        yaml.safe_dump({**RECIPE, "models": models, "stages": [*RECIPE["stages"], second, third]})
    )
    for k, made in ((2, ["stage1.train"]), (3, [])):
        write(run, f"stage{k}.pair", Preference, ["evolve"])
        write(run, f"stage{k}.train", TrainedExample, [f"stage{k}.pair", *made], model_files(), loss=0.5)
    paths = write_model_cards(run)
    text = paths[2].read_text()
    assert "trained from M1@1 with SimPO" in text
    assert "| M0 | base |" in text
    assert "| M2 | M1@1 | SimPO |" in text
    text = paths[3].read_text()
    assert front(text)["base_model"] == "far"
    assert "| M0 |" not in text
    assert "Supervised examples" not in text


def test_text_of_others_stays_text(run: Path) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    recipe = {**RECIPE, "name": HOSTILE, "models": {"base": {"path": f"/x/{HOSTILE.replace('/', '')}"}}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    edit(run, "corpus", by_license={HOSTILE: 2}, pii={HOSTILE: 1})
    edit(run, "eval", kl=[{"model": "M1", "to": HOSTILE, "kl": 1.0, "standard_error": None, "nats_per_token": None}])
    edit(run, "eval.suite.sums", metrics={HOSTILE: {**SUITE, "M1": {**SUITE["M1"], "failed": {HOSTILE: 1}}}})
    path = run / "stage1/pair/audit.json"
    path.write_text(json.dumps({"findings": [{"name": HOSTILE, "severity": "warn", "sentence": HOSTILE}]}))
    record = run / "stage1/pair/manifest.json"
    size = path.stat().st_size
    manifest = json.loads(record.read_text())
    manifest["files"]["audit.json"]["bytes"] = size
    record.write_text(json.dumps(manifest))
    text = cards(run)["M1"]
    assert front(text)["base_model"] == " ".join(HOSTILE.replace("/", "").replace("\u202e", " ").split())
    body = text.split("---\n", 2)[2].replace(MARK, "")
    html = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    assert "alert(1)" in html
    for tag in ("<script", "<a ", "<img", "<em>", "<strong>"):
        assert tag not in html
    assert html.count("<h1>") == 1
    assert html.count("<code>") == 1  # the chat template's
    assert "\u202e" not in text
    rows = [line.split("</tr>")[0].count("<td>") for line in html.split("<tr>")[1:]]
    assert len([n for n in rows if n == 6]) == 1  # one line of suites; a bar in a name makes no other column
    assert "alert(1)" in html.split("<th>Suite</th>")[1].split("</table>")[0]


@given(st.text())
def test_escaped_text_reads_as_it_was(text: str) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    html = markdown_it.MarkdownIt("commonmark", {"html": True}).render(f"Text {escaped(text)}")
    shown = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    assert html == f"<p>Text {shown}".rstrip() + "</p>\n"


def test_intervals() -> None:
    assert interval(None) == ""
    assert interval({"mean": None, "low": None, "high": None}) == ""
    assert interval({"mean": 0.5, "low": None, "high": None}) == "0.5 (no interval)"
    assert interval({"mean": 0.12345, "low": 0.0, "high": 1.0}, 100) == "12.3 (0 to 100)"


@pytest.mark.parametrize("damage", ["no recipe", "recipe", "table", "manifest", "weights"])
def test_damage_is_one_clear_line(run: Path, damage: str) -> None:
    if damage == "no recipe":
        (run / "recipe.yaml").unlink()
    elif damage == "recipe":
        (run / "recipe.yaml").write_text("stages: [{name: M1}]\n")
    elif damage == "table":
        edit(run, "eval", table=[1, 2])
    elif damage == "manifest":
        (run / "corpus/manifest.json").write_text("[]")
    else:
        path = run / "sft/train/model/model.safetensors"
        path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(UserError) as caught:
        write_model_cards(run)
    assert str(run) in str(caught.value)
    assert "\n" not in str(caught.value)
