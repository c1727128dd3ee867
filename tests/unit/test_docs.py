"""What the documentation shows does what it says."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_the_example_of_a_step_by_hand_runs(capsys: pytest.CaptureFixture[str], tiny_llama: Path) -> None:
    text = (DOCS / "data.md").read_text(encoding="utf-8").partition("## By hand")[2]
    lines = [line for line in text.splitlines() if line.startswith("    ") or not line]
    code = textwrap.dedent("\n".join(lines))
    # The smallest model, so that the test is quick; what it says is no JSON or not grounded.
    code = code.replace("smollm2-135m-instruct", "tiny-llama").replace("max_model_len=768", "max_model_len=4096")
    code = code.replace('open_engine("auto"', 'open_engine("transformers"')
    exec(compile(code, "docs/data.md", "exec"), {})
    shown = [line for line in capsys.readouterr().out.splitlines() if " | " in line]
    assert len(shown) == 2, "two units were asked for, and each is shown as a unit or as a reject"
