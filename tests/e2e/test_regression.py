"""The golden comparison finds a real change: each of three seeded bugs, in a patched copy of the code, is reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.regression.compare import GOLDEN, ROOT, run_proxy
from tests.regression.measure import BEFORE_SAMPLING, differences, environment, measure


def golden() -> dict[str, object]:
    return dict(json.loads(GOLDEN.read_text()))


def test_proxy_run_agrees_with_the_golden_file(proxy_run: Path) -> None:
    reference = golden()
    exact = reference["environment"] == environment()
    found = differences(reference["steps"], measure(proxy_run), exact=exact)  # type: ignore[arg-type]
    assert found == []


@pytest.mark.parametrize(
    ("file", "old", "new", "commands", "step"),
    [
        (
            "align/train/losses.py",
            "losses = -(1 - flip) * logsigmoid(margin) - flip * logsigmoid(-margin)",
            "losses = -(1 - flip) * logsigmoid(-margin) - flip * logsigmoid(margin)",
            "dpo --stage 1",
            "stage1.train",
        ),
        (
            "align/packing/layout.py",
            "index_add(0, slots, logps)",
            "index_add(0, slots, logps * (self.target_N[self.bounds[first] : self.bounds[last]] != 2))",
            "sft",
            "sft",
        ),
        (
            "reward/pairs.py",
            '(("chosen", slots.chosen[kept]), ("rejected", slots.rejected[kept]))',
            '(("chosen", slots.rejected[kept]), ("rejected", slots.chosen[kept]))',
            "pair --stage 1, dpo --stage 1",
            "stage1.train",
        ),
    ],
    ids=["sign of the DPO margin", "EOS out of the mask", "yw and yl swapped"],
)
def test_seeded_bug_is_found(
    file: str, old: str, new: str, commands: str, step: str, proxy_run: Path, tmp_path: Path
) -> None:
    """The step that the bug sits in runs again on a copy of the run, with the bug in; the comparison must not pass."""
    code = tmp_path / "code"
    for package in ("align", "data_gen", "reward"):
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    text = (code / file).read_text()
    assert text.count(old) == 1, "the line that this test breaks has changed; name the new one"
    (code / file).write_text(text.replace(old, new))
    run_dir = tmp_path / "run"
    shutil.copytree(proxy_run, run_dir)
    clean = measure(run_dir)
    for command in commands.split(", "):
        shutil.rmtree(run_dir / {"sft": "sft/train", "dpo": "stage1/train", "pair": "stage1/pair"}[command.split()[0]])
        run_proxy(run_dir, python_path=code, command=command)
    now = measure(run_dir)
    assert differences(clean, now, exact=True, steps=(step,))
    reference = golden()
    exact = reference["environment"] == environment()
    if exact or step in BEFORE_SAMPLING:
        assert differences(reference["steps"], now, exact=exact, steps=(step,))  # type: ignore[arg-type]


def test_unbroken_copy_of_the_code_gives_no_difference(proxy_run: Path, tmp_path: Path) -> None:
    """The control of the test above: a step made again by unbroken code from a copy compares equal."""
    run_dir = tmp_path / "run"
    shutil.copytree(proxy_run, run_dir)
    clean = measure(run_dir)
    shutil.rmtree(run_dir / "stage1/train")
    run_proxy(run_dir, command="dpo --stage 1")
    assert differences(clean, measure(run_dir), exact=True, steps=("stage1.train",)) == []
