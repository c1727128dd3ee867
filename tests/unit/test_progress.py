"""Progress: a line at least every interval, with count, rate and time left."""

from __future__ import annotations

import re
import time

import pytest

from align.core.progress import Progress


def test_plain_lines_come_by_themselves_with_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("sample M0", 40, "responses", interval_s=0.1) as bar:
        bar.advance(10, note="loss 0.69")
        time.sleep(0.55)  # one long call: nothing is advanced, lines come all the same
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  sample M0: 0/40 responses"
    assert 3 <= len(lines[1:-1]) <= 6
    for line in lines[1:-1]:
        found = re.fullmatch(r"  sample M0: 10/40 responses, ([\d.e+]+)/s, 0:(\d\d) left, loss 0.69", line)
        assert found, line
    # 10 in about 0.5 s: 20 a second, and 30 more take about 1.5 s.
    assert found is not None and 8 < float(found[1]) < 40 and int(found[2]) in (1, 2, 3)
    assert re.fullmatch(r"  sample M0: 10/40 responses, [\d.]+/s, 0:0[01], loss 0.69", lines[-1])


def test_rate_counts_only_what_this_run_did(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("train", 1000, "pairs", done=900, interval_s=10) as bar:
        time.sleep(0.1)
        bar.advance()
        bar.advance(4)
        bar._print()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  train: 900/1000 pairs"
    found = re.fullmatch(r"  train: 905/1000 pairs, ([\d.e+]+)/s, 0:0(\d) left", lines[1])
    assert found and float(found[1]) <= 50 and int(found[2]) >= 2
    assert lines[2].startswith("  train: 905/1000 pairs")


def test_nothing_is_printed_after_the_end_and_an_error_still_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), Progress("score", 3, "rows", interval_s=0.05) as bar:
        bar.advance()
        raise RuntimeError
    before = capsys.readouterr().out
    assert before.splitlines()[-1].startswith("  score: 1/3 rows")
    time.sleep(0.2)
    assert capsys.readouterr().out == ""


def test_hours_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("long", 10**6, "rows", interval_s=10) as bar:
        bar._begun -= 3700
        bar.advance(10**6 // 2)
        bar._print()
    assert re.search(r" 1:01:4\d left", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("done", "total", "told"), [(1, 36, False), (2, 36, True), (7, 10**6, False), (8, 10**6, True), (1, 5, True)]
)
def test_rate_and_time_left_wait_for_more_than_the_first_answers(
    capsys: pytest.CaptureFixture[str], done: int, total: int, told: bool
) -> None:
    with Progress("sample", total, "prompts", interval_s=10) as bar:
        bar._begun -= 60
        bar.advance(done)
        bar._print()
    line = capsys.readouterr().out.splitlines()[1]
    rate = rf", {done / 60:.2g}/s, [\d:]+ left" if told else ""
    assert re.fullmatch(rf"  sample: {done}/{total} prompts{rate}", line)
