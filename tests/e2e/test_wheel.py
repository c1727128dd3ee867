"""Installed as a wheel, in an empty folder: `align init quickstart && align check`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.regression.compare import ROOT


def test_wheel_brings_recipes_data_prompts_and_templates(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)], check=True
    )
    env = {**os.environ, "PYTHONPATH": str(site)}

    def align(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "align.cli", *args]
        return subprocess.run(command, env=env, cwd=work, capture_output=True, text=True, check=False)

    where = subprocess.run(
        [sys.executable, "-c", "import align; print(align.__file__)"],
        env=env, cwd=work, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(site))
    first = align("init", "quickstart")
    assert first.returncode == 0, first.stderr
    assert (work / "recipe.yaml").is_file()
    assert len(list((work / "data/corpus").glob("*.jsonl"))) == 2
    checked = align("check")
    assert checked.returncode == 0, checked.stderr
    assert "recipe quickstart: valid" in checked.stdout
    assert "report" in checked.stdout
    assert (site / "align/report/templates/index.html.j2").is_file()
