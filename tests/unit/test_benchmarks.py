"""The benchmarks run, count operations as the published formulas do, and report what fails or is missing."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import dpo_gpu, gpu, harness, loss_head, loss_head_arms, peers, prefix_sharing
from benchmarks.prefix_sharing import EXAONE_2B, EXAONE_8B, TINY, speedup, token_limit

CPU = torch.device("cpu")


def is_exact(errors):
    """Float32 rounding; a row of dX whose target is nearly certain is a small difference of large numbers."""
    return max(errors[name] for name in ("loss", "dX", "dW")) < 1e-5 and errors["dX_worst_row"] < 1e-3


# The harness


@pytest.mark.parametrize(
    ("value", "comparison", "target", "word"),
    [(1.4, ">=", 1.35, "ok"), (1.3, ">=", 1.35, "short"), (30, "<=", 33, "ok"), (34, "<=", 33, "short")],
)
def test_bar_says_whether_a_target_is_met(capsys, value, comparison, target, word):
    assert harness.bar("name", value, comparison, target) == (word == "ok")
    assert capsys.readouterr().out == f"BAR name {value:.3g} {comparison} {target:g} {word}\n"


@pytest.mark.parametrize("comparison", [">=", "<="])
def test_what_was_not_measured_meets_no_target(capsys, comparison):
    assert not harness.bar("name", math.nan, comparison, 1)
    assert capsys.readouterr().out.endswith(" short\n")


def test_results_name_device_versions_and_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    path = harness.write_result("some", [{"ms": 1.5}], rates={"gemm_tflops": 700})
    body = json.loads(path.read_text())
    assert body["rows"] == [{"ms": 1.5}] and body["rates"] == {"gemm_tflops": 700}
    assert {"gpu", "cpu", "cores", "commit", "command", "date"} <= set(body)
    assert body["versions"]["torch"] == torch.__version__


# Turns, budgets, the command


def test_arms_take_turns_and_one_that_fails_is_reported():
    order = []

    def arm(name):
        order.append(name)
        if name == "broken":
            raise RuntimeError("no\nkernel")

    arms = {name: partial(arm, name) for name in ("a", "broken", "b")}
    turns = gpu.take_turns(
        arms, CPU, gpu.Clock(1e6), seconds=1e-9, repeats=3, before=lambda name: order.append(f"to {name}")
    )
    assert [word for word in order if not word.startswith("to")][5:] == ["a", "b", "b", "a", "a", "b"]
    assert order[-4:] == ["to a", "a", "to b", "b"]
    assert turns.row("broken") == {"arm": "broken", "status": "failed: RuntimeError: no kernel"}
    assert turns.row("a")["status"] == "ok" and turns.row("a")["turns"] == 3
    assert math.isnan(turns.median_ms("broken")) and turns.median_ms("a") > 0


def test_turns_end_with_the_time_but_every_arm_has_one():
    turns = gpu.take_turns({"a": lambda: None, "b": lambda: None}, CPU, gpu.Clock(0), seconds=1e-9, repeats=5)
    assert [len(turns.seconds[arm]) for arm in "ab"] == [1, 1]


@pytest.mark.parametrize("script", [gpu, loss_head, prefix_sharing, dpo_gpu])
def test_without_a_gpu_there_is_one_line_and_code_2(monkeypatch, capsys, script):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        script.main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_script_that_is_late_is_ended():
    code, bars = gpu.run_script("gpu", ["--smoke"], limit=0.05)
    assert (code, bars) == (124, [])


@pytest.mark.parametrize(("codes", "expected"), [((0, 0, 0), 0), ((0, 1, 0), 1), ((0, 124, 0), 1)])
def test_all_three_share_a_budget_and_one_short_bar_is_code_1(monkeypatch, capsys, codes, expected):
    given = {}

    def run_script(name, options, limit, path):
        given[name] = options
        return codes[len(given) - 1], [f"BAR {name} 1 >= 2 short"]

    monkeypatch.setattr(gpu, "run_script", run_script)
    monkeypatch.setattr(gpu, "Clock", lambda seconds: type("Still", (), {"left": lambda self: seconds})())
    assert gpu.main(["--smoke", "--budget", "100"]) == expected
    assert next(iter(given.values())) == ["--smoke", "--budget", "34"]
    assert given["dpo_gpu"][-1] == "100"  # the last one gets all that is left
    assert "BAR prefix_sharing 1 >= 2 short" in capsys.readouterr().out.splitlines()


# Peers


def test_wheels_are_unpacked_for_the_path_and_a_missing_peer_says_why(monkeypatch, tmp_path):
    with zipfile.ZipFile(tmp_path / "made_up-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("made_up_peer/__init__.py", "ANSWER = 42\n")
        wheel.writestr("made_up-1.0.data/purelib/made_up_too.py", "ANSWER = 43\n")
        wheel.writestr("made_up_peer.pth", "made_up_more\nimport os\n")
        wheel.writestr("made_up_more/made_up_there.py", "ANSWER = 44\n")
        wheel.writestr("made_up-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")
    for folder in peers.unpack(tmp_path, tmp_path / "unpacked"):
        monkeypatch.syspath_prepend(str(folder))
    import made_up_peer
    import made_up_there
    import made_up_too

    assert (made_up_peer.ANSWER, made_up_too.ANSWER, made_up_there.ANSWER) == (42, 43, 44)
    assert peers._load("made-up", [lambda: (1, "package")]).version == "1.0"
    missing = peers._load("absent", [lambda: __import__("no_such_peer")])
    assert missing.load is None and missing.status.startswith("missing (ModuleNotFoundError: No module named 'no_such_peer'")


def test_a_folder_without_wheels_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="no wheels"):
        peers.unpack(tmp_path, tmp_path / "out")


def test_trl_head_runs_from_its_file_alone():
    found = peers.trl_head(alone=True)
    assert found.how == "its file alone" and not found.load.__module__.startswith("trl.")
    case = loss_head_arms.peaked_case(32, 16, 96, 4, CPU, torch.float32, seed=1)
    assert is_exact(
        loss_head_arms.errors_of(loss_head_arms.trl(case, function=found.load, tile=40)(), loss_head_arms.exact(case))
    )


# The loss head


def test_targets_are_as_probable_as_the_file_says():
    case = loss_head_arms.peaked_case(512, 256, 8192, 8, CPU, torch.float32, seed=3)
    p = loss_head_arms.logprobs_of(case).exp()
    low, middle, high = p.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    assert float(p.min()) > 0.03 and float(p.max()) < 0.999
    assert 0.1 < low < 0.25 and 0.45 < middle < 0.65 and 0.85 < high < 0.99
    margins = 0.1 * (loss_head_arms.logprobs_of(case).view(8, 2, 32).sum(2) - case.reference_B2).diff(dim=1)
    assert 0.2 < float(margins.std()) < 3  # where the loss has a slope


def test_the_gate_refuses_wrong_and_missing_gradients():
    case = loss_head_arms.peaked_case(32, 16, 96, 4, CPU, torch.float32, seed=1)
    expected = loss_head_arms.exact(case)
    right = loss_head_arms.ours(case, impl="chunked")()
    assert loss_head_arms.passes(loss_head_arms.errors_of(right, expected))
    for index in range(3):
        wrong = [*right]
        wrong[index] = right[index] * 1.1
        assert not loss_head_arms.passes(loss_head_arms.errors_of(wrong, expected))
        wrong[index] = right[index] * math.nan
        assert not loss_head_arms.passes(loss_head_arms.errors_of(wrong, expected))


def test_frozen_head_and_forced_routes_give_the_same_gradients():
    case = loss_head_arms.peaked_case(64, 16, 96, 4, CPU, torch.float32, seed=2)
    expected = loss_head_arms.exact(case)
    for options in ({"rows": 64}, {"rows": 20}, {"rows": 13, "one_unit": True}):
        assert is_exact(loss_head_arms.errors_of(loss_head_arms.ours(case, impl="chunked", **options)(), expected))
    loss, dx = loss_head_arms.ours(case.frozen(), impl="chunked")()
    assert float(loss) == pytest.approx(float(expected[0])) and torch.allclose(dx.double(), expected[1], atol=1e-6)


def row(arm, ms, peak_gb):
    rows, hidden = loss_head.MAIN
    return {"what": "train", "N": rows, "d": hidden, "arm": arm, "status": "ok", "ms": {"median": ms}, "peak_gb": peak_gb}


def test_bars_of_the_loss_head_take_trls_best_time_and_its_smallest_memory():
    rows = [row("ours", 30.0, 4.0), row("trl, shipped", 50.0, 3.5), row("trl, tile 5", 45.0, 3.75), row("plain torch", 1, 1)]
    bars = {name: value for name, value, _, _ in loss_head.bars_of([*rows, {**rows[0], "what": "frozen"}])}
    assert bars == {"loss_head": 1.5, "loss_head_ms": 30.0, "loss_head_memory": 0.5}
    alone = {name: value for name, value, _, _ in loss_head.bars_of(rows[:1])}
    assert math.isnan(alone["loss_head"]) and math.isnan(alone["loss_head_memory"]) and alone["loss_head_ms"] == 30.0
    assert all(math.isnan(value) for _, value, _, _ in loss_head.bars_of([{**rows[0], "status": "failed: x"}]))


# Prefix sharing


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [(512, 512, 1.32), (1024, 512, 1.48), (2048, 512, 1.64), (4096, 1024, 1.63), (8192, 1024, 1.77), (24_576, 4096, 1.67)],
)
def test_speedup_of_the_sizes_of_exaone_8b(prompt, completion, expected):
    assert speedup(EXAONE_8B, prompt, completion) == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize(("rho", "expected"), [(0.5, 1.20), (1, 1.33), (2, 1.50), (4, 1.67), (8, 1.80), (16, 1.89)])
def test_speedup_counting_tokens_alone(rho, expected):
    assert token_limit(rho) == pytest.approx(expected, abs=0.005)
    # Short sequences of a model with a small head: attention and head hardly count.
    assert speedup(replace(EXAONE_8B, vocab=1), round(rho * 8), 8) == pytest.approx(token_limit(rho), rel=1e-3)


def test_speedup_is_below_2_and_recomputing_brings_it_nearer_to_the_token_limit():
    assert speedup(EXAONE_2B, 10**6, 1) < 2
    assert speedup(EXAONE_2B, 512, 512) < speedup(EXAONE_2B, 512, 512, recompute=True) < token_limit(1)
    assert speedup(EXAONE_2B, 512, 512, head_factor=8) < speedup(EXAONE_2B, 512, 512)


def test_sizes_are_those_of_the_published_models():
    assert pytest.approx(2.14e9, rel=2e-3) == EXAONE_2B.body and pytest.approx(6.98e9, rel=2e-3) == EXAONE_8B.body
    model = prefix_sharing.random_llama(TINY, torch.float32, CPU)
    matrices = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    assert matrices == TINY.body and model.get_output_embeddings().weight.numel() == TINY.head


def test_bar_of_prefix_sharing_is_the_worst_shape():
    rows = [{"measured_over_formula": 0.97}, {"measured_over_formula": 0.93}]
    assert prefix_sharing.bars_of(rows) == [("prefix_sharing", 0.93, ">=", 0.92)]
    assert math.isnan(prefix_sharing.bars_of([*rows, {"status": "failed: x"}])[0][1])
    assert math.isnan(prefix_sharing.bars_of([])[0][1])


# DPO end to end


def test_operations_of_a_pair_counted_one_by_one():
    prompt, chosen, rejected = 5, 3, 2
    branches = [chosen, rejected]
    # Half of a token's own pair: the causal half of n x n pairs is n^2 / 2.
    pairs = prompt**2 / 2 + sum(prompt * length + length**2 / 2 for length in branches)
    tokens = prompt + chosen + rejected
    expected = 6 * TINY.body * tokens + 12 * TINY.attention_width * TINY.layers * pairs + 6 * TINY.head * (chosen + rejected)
    assert dpo_gpu.model_flops(TINY, prompt, chosen, rejected) == pytest.approx(expected)


def test_settings_stay_within_the_memory_they_were_planned_for():
    main = dpo_gpu.MIXES[dpo_gpu.MAIN]
    for arm, choices in dpo_gpu.CHOICES.items():
        assert all(dpo_gpu.fits(arm, choice, main, EXAONE_2B, dpo_gpu.MOST_BYTES) for choice in choices)
        for mix in dpo_gpu.MIXES.values():
            assert any(dpo_gpu.fits(arm, choice, mix, EXAONE_2B, dpo_gpu.MOST_BYTES) for choice in choices)
    assert not dpo_gpu.fits("ours", dpo_gpu.Choice(16_384, False), main, EXAONE_2B, dpo_gpu.MOST_BYTES)
    assert [dpo_gpu.pairs_at_once(choice, main) for choice in dpo_gpu.CHOICES["trl"]] == [2, 8, 1]


def test_mixes_have_the_lengths_they_name():
    for name, mix in dpo_gpu.MIXES.items():
        pairs = dpo_gpu.make_pairs(mix, 1000)
        prompts = sum(len(pair.prompt_ids) for pair in pairs) / len(pairs)
        completions = sum(len(ids) for pair in pairs for ids in pair.completions) / len(pairs) / 2
        assert prompts / completions == pytest.approx(float(name.removeprefix("rho ")), rel=0.25)
        assert max(len(p.prompt_ids) + max(map(len, p.completions)) for p in pairs) <= mix.longest
        assert len(pairs) == mix.pairs and mix.pairs.bit_count() == 1  # TRL's micro-batches are powers of two


def test_bars_of_dpo_need_both_arms_and_equal_losses():
    mine = {"mix": "rho 2", "arm": "ours", "status": "ok", "first_loss": 0.7, "pairs_per_s": {"median": 9.0}, "mfu": 0.45}
    theirs = {**mine, "arm": "trl", "pairs_per_s": {"median": 4.0}, "mfu": 0.2}
    assert [value for _, value, _, _ in dpo_gpu.bars_of([mine, theirs])] == [2.25, 0.45]
    assert math.isnan(dpo_gpu.bars_of([mine, {**theirs, "first_loss": 0.9}])[0][1])
    assert math.isnan(dpo_gpu.bars_of([mine, {"mix": "rho 2", "arm": "trl", "status": "missing (x)"}])[0][1])
    assert all(math.isnan(value) for _, value, _, _ in dpo_gpu.bars_of([]))


# Smoke runs


@pytest.mark.parametrize("script", [loss_head, prefix_sharing, dpo_gpu])
def test_smoke_run(monkeypatch, tmp_path, capsys, script):
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    saved = []
    monkeypatch.setattr(script, "save", lambda name, rows, smoke, **more: saved.append((name, rows, more)))
    assert script.main(["--smoke"]) == 0
    said = capsys.readouterr().out
    assert "smoke:" in said and "BAR" not in said
    name, rows, _ = saved[-1]
    assert name == script.__name__.rpartition(".")[2] and rows
    arms = [found for row in rows for found in (row.get("arms") or {"": row}).values()]
    assert {"ours", "shared"} & {found["arm"] for found in arms if found["status"] == "ok"}
    # On a CPU Liger's Hopper kernel is missing; whatever else is not there must say so, too, and nothing may have failed.
    assert all(found["status"] == "ok" or found["status"].startswith("missing (") for found in arms)
    assert not (tmp_path / "results").exists()


def test_smoke_run_of_the_loss_head_writes_nothing_and_a_real_one_does(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    gpu.save("some", [{"ms": 1.0}], True)
    assert not (tmp_path / "results").exists()
    gpu.save("some", [{"ms": 1.0}], False, rates={})
    assert json.loads((tmp_path / "results" / "some.json").read_text())["rows"] == [{"ms": 1.0}]


def test_rows_are_printed_where_they_cannot_be_written(monkeypatch, tmp_path, capsys):
    (tmp_path / "results").write_text("a file in the way")
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    gpu.save("some", [{"ms": 1.0}], False)
    assert '[{"ms": 1.0}' in capsys.readouterr().out


def test_benchmarks_package_is_where_the_commands_look_for_it():
    assert Path(harness.__file__).parent == Path(__file__).parents[2] / "benchmarks"
