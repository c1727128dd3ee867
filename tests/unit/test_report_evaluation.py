"""The report's evaluation: sentences no surer than their intervals, charts at the right places, tables that lose nothing."""

import copy
import html
import json
import math
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))

from synthetic_run import build_run, manifest

from align.core.artifact import read_rows
from align.core.errors import UserError
from align.core.rows import EvalResult
from align.evaluate.meter import Place
from align.evaluate.meter import meter as measure
from align.report import meter_charts
from align.report.artifacts import read_recipe
from align.report.estimates import amount, decimals, in_words, listed, p_text, shown, side
from align.report.evaluation import best_of_n_finding, evaluation_view, gather_best_of_n, wins_finding
from align.report.gather import gather
from align.report.meter import finding, meter_view
from align.report.meter_charts import Curve, Line, Mark, Rates, by_checkpoint, by_size, forest, heat_map, numbered, panel
from align.report.notebook import evaluation, open_run
from align.report.page import write_report
from align.report.suites import Suite, gather_suites, run_steps, suites_view

BAD = "<b onload=x>&\"'"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("run") / "synthetic", documents=60)


@pytest.fixture(scope="module")
def metrics(run_dir: Path) -> dict[str, Any]:
    return dict(manifest(run_dir, "eval/result")["metrics"])


@pytest.fixture
def meter(metrics: dict[str, Any]) -> dict[str, Any]:
    return dict(copy.deepcopy(metrics["meter"]))


def report(run_dir: Path) -> str:
    write_report(run_dir, run_dir / "page" / "r.html", name="copy")
    return (run_dir / "page" / "r.html").read_text(encoding="utf-8")


def part(page: str) -> str:
    found = re.search(r'<section id="evaluation">.*?</section>', page, re.DOTALL)
    assert found
    return found[0]


def words(markup: str) -> str:
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", markup).split()))


@pytest.fixture(scope="module")
def page(run_dir: Path) -> str:
    return part(report(run_dir))


def changed(run_dir: Path, tmp_path: Path, folder: str, change: dict[str, Any]) -> Path:
    """A copy of the run with other metrics in one manifest; None removes one."""
    shutil.copytree(run_dir, tmp_path / "copy", ignore=shutil.ignore_patterns("page"))
    path = tmp_path / "copy" / folder / "manifest.json"
    found = json.loads(path.read_text())
    merged = {**found["metrics"], **change}
    found["metrics"] = {name: value for name, value in merged.items() if value is not None}
    path.write_text(json.dumps(found))
    return tmp_path / "copy"


def estimate(mean: float, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"mean": mean, "low": low, "high": high}


class Attributes(HTMLParser):
    """Collects the names of all attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {name for name, _ in attrs}


# -- estimates --------------------------------------------------------------------------------------------------------------


def test_estimates_have_the_precision_of_their_intervals() -> None:
    assert shown(estimate(0.31234, 0.251, 0.369)) == ("0.31", "[0.25, 0.37]")
    assert shown(estimate(0.31234, 0.11, 0.49), signed=True) == ("+0.3", "[0.1, 0.5]")
    assert shown(estimate(0.31234, 0.251, 0.369), factor=100, unit=" %") == ("31 %", "[25, 37]")
    assert shown(estimate(1234.5, 900, 1500)) == ("1,234", "[900, 1,500]")
    assert shown(estimate(0.5, 0.5, 0.5), factor=100, unit=" %") == ("50 %", "[50, 50]")
    assert shown(estimate(0.5, None, None)) == ("0.50", "") and shown(None) == ("–", "")
    assert in_words(estimate(-0.031, -0.08, 0.02), signed=True) == "−0.03 (−0.08 to 0.02)"
    assert amount(-0.001, 2) == "0.00", "no minus before zero"
    assert [p_text(p) for p in (0.0004, 0.0123, 1.0, None)] == ["< 0.001", "0.012", "1", "–"]
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


@given(st.floats(-1e3, 1e3), st.floats(1e-4, 1e3))
def test_the_last_digit_is_worth_at_most_half_the_width_and_at_least_a_tenth_of_it(low: float, width: float) -> None:
    half = (low + width - low) / 2
    last = 10.0 ** -decimals(low, low + width)
    assert last == 1 or half / 10.001 <= last <= half * 1.001


def test_sides_are_open_where_an_interval_touches_the_middle() -> None:
    assert [side(estimate(0, *ends), 0.5) for ends in ((0.51, 0.6), (0.5, 0.6), (0.2, 0.5), (0.2, 0.49), (None, None))] == [
        "above", "open", "open", "below", "none",
    ]  # fmt: skip


# -- win rates --------------------------------------------------------------------------------------------------------------


def won(model: str, by: str, rate: tuple[float, float, float], equal: tuple[float, float, float]) -> dict[str, Any]:
    length = {"length_controlled": estimate(*equal), "warning": "", "failed_refits": 0, "left_out": {"no_length": 0}}
    low, high = rate[1:]
    return {
        "model": model, "by": by, "baseline": "M0", "win_rate": rate[0], "low": low, "high": high, "wins": 6, "ties": 1,
        "losses": 3, "p_value": 0.5, "prompts": 10, "invalid": 0, "length": length,
    }  # fmt: skip


UP, OPEN, DOWN = (0.7, 0.6, 0.8), (0.5, 0.4, 0.6), (0.2, 0.1, 0.3)
UP_EQUAL, OPEN_EQUAL = (70.0, 60.0, 80.0), (52.0, 40.0, 60.0)


def test_models_that_stand_alike_share_a_sentence() -> None:
    rows = [won(model, by, UP, UP_EQUAL) for by in ("selector", "gold") for model in ("M1", "M2")]
    assert wins_finding(rows, "M0") == "M1 and M2 are ahead of M0 by every reward model."
    rows[-1] = won("M2", "gold", OPEN, OPEN_EQUAL)
    assert wins_finding(rows, "M0") == (
        "M1 is ahead of M0 by every reward model; M2 is ahead of M0 by the selector, not told apart from M0 by gold."
    )
    open_by_all = [won("M1", by, OPEN, OPEN_EQUAL) for by in ("selector", "gold")]
    assert wins_finding(open_by_all, "M0") == "M1 is not told apart from M0 by any reward model."
    three = [won("M1", "selector", UP, UP_EQUAL), won("M1", "validator", UP, UP_EQUAL), won("M1", "gold", DOWN, OPEN_EQUAL)]
    assert wins_finding(three, "M0") == "M1 is ahead of M0 by the selector and the validator, behind M0 by gold."
    assert wins_finding([won("M1", "selector", DOWN, OPEN_EQUAL)], "M0") == "M1 is behind M0 by the selector."
    assert "compared on too few prompts by gold" in wins_finding([won("M1", "gold", (1.0, None, None), UP_EQUAL)], "M0")  # type: ignore[arg-type]


def test_a_lead_that_length_explains_is_said() -> None:
    rows = [won("M1", "selector", UP, OPEN_EQUAL), won("M1", "gold", UP, UP_EQUAL), won("M2", "gold", DOWN, OPEN_EQUAL)]
    assert wins_finding(rows, "M0").endswith(" At equal length the lead is not sure for M1 by the selector.")


def test_win_rates_of_the_page_are_those_of_the_manifest(page: str, metrics: dict[str, Any]) -> None:
    text = words(page)
    assert len(metrics["wins"]) == 9
    charts = re.findall(r'class="number end">(\d+)\s%<', page.split('aria-label="By the validator"')[1].split("</svg>")[0])
    drawn = [row for row in metrics["wins"] if row["by"] == "validator"]
    assert charts == [f"{v:.0f}" for r in drawn for v in (100 * r["win_rate"], r["length"]["length_controlled"]["mean"])]
    for row in metrics["wins"]:
        rate = shown(estimate(row["win_rate"], row["low"], row["high"]), factor=100, unit=" %")
        equal = shown(row["length"]["length_controlled"], unit=" %")
        assert " ".join(f"{row['model']} {row['by']} {' '.join(rate)} {' '.join(equal)}".split()) in text
        assert f"{row['wins']} {row['ties']} {row['losses']} {p_text(row['p_value'])}" in text
        if warning := row["length"]["warning"]:
            assert f"{row['model']} by" in text and warning in text


def test_what_is_left_out_of_a_win_rate_is_said(run_dir: Path, tmp_path: Path, metrics: dict[str, Any]) -> None:
    wins = copy.deepcopy(metrics["wins"])
    wins[0] |= {"invalid": 2, "prompts": 8}
    wins[0]["length"] |= {"left_out": {"no_length": 3}, "failed_refits": 4}
    text = words(part(report(changed(run_dir, tmp_path, "eval/result", {"wins": wins}))))
    for lost in ("2 of 10 prompts lack a score", "3 prompts lack a length", "4 refits of the interval"):
        assert f"base by the selector: {lost}" in text


def test_the_forest_has_both_rates_at_their_places() -> None:
    svg = str(forest("t", [Rates("M1", (75.0, 50.0, 100.0), (25.0, 0.0, 50.0))], color="c-gold", guide="50 %"))
    (filled,) = re.findall(r'<circle class="dot c-gold" cx="([\d.]+)"', svg)
    (hollow,) = re.findall(r'<circle class="hollow c-gold" cx="([\d.]+)"', svg)
    lines = [tuple(map(float, ends)) for ends in re.findall(r'thin c-gold" x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)"', svg)]
    middle = float(re.search(r'class="guide" x1="([\d.]+)"', svg).group(1))  # type: ignore[union-attr]
    assert lines[0][0] == middle == lines[1][1] and float(hollow) < middle < float(filled)
    assert float(filled) == pytest.approx((lines[0][0] + lines[0][1]) / 2, abs=0.02)
    assert "75\N{NO-BREAK SPACE}%" in svg and "25\N{NO-BREAK SPACE}%" in svg


# -- the meter --------------------------------------------------------------------------------------------------------------


def test_over_optimization_is_seen_and_the_checkpoint_before_it_chosen(page: str, meter: dict[str, Any]) -> None:
    assert [step["end"] for step in meter["steps"] if step["over_optimized"]], "the made-up run is over-optimized"
    assert finding(meter).startswith("Over-optimization: from M") and finding(meter).endswith("Use M1.")
    text = words(page)
    assert finding(meter) in text and "Choice: M1 has the highest lower bound of the gold gain over M0, +" in text
    assert "Stop rule: stop at M2; gold was under that of M1, beyond the paired interval, at 2 checkpoints in a row." in text
    peak = meter["fits"]["gold"]["best_of_n"]["peak"]
    assert peak["where"] == "inside" and f"has its peak at d = {in_words({**peak, 'mean': peak['d']})}, inside" in text


def test_the_page_says_which_intervals_decide(page: str) -> None:
    assert (
        "Intervals of gains, and those that the choice, the stop rule and over-optimized steps rest on, are Student's t "
        "over prompts; those of distances and curves are percentile bootstraps over prompts." in words(page)
    )


def test_a_meter_without_its_start_is_a_sentence(run_dir: Path, tmp_path: Path) -> None:
    rows = [row for row in read_rows(run_dir / "eval/result", EvalResult) if row.model != "M0"]
    found = measure(rows, [Place(name="M0", stage=0), Place(name="M1", stage=1)], seed=1)
    view = meter_view(found, {})
    assert view and view.finding == found["reason"] and "add M0 to evaluation.models" in view.finding
    assert view.charts == view.drift == view.rows == view.notes == [] and view.has_gold, "gold is not what lacks"
    shown_page = report(changed(run_dir, tmp_path, "eval/result", {"meter": found}))
    assert words(shown_page).count(found["reason"]) == 2, "at the head and in the section"
    assert "has no meter" not in part(shown_page) and "reward_models.gold" not in part(shown_page)


def test_branches_are_drawn_and_told_apart(meter: dict[str, Any]) -> None:
    """M2@1 and M2 went on from M1@1, beside M1."""
    meter["points"][3]["parent"] = "M1@1"
    meter["stop"] = {
        "end": "M2", "stop": None, "best": 4, "comparisons": [{"below": False}],
        "others": [{"end": "M1", "stop": 2, "best": 1, "comparisons": [{"below": True}] * 2}],
    }  # fmt: skip
    for step in meter["steps"]:
        step["over_optimized"] = False
    view = meter_view(meter, {})
    assert view
    assert finding(meter).startswith(
        "Gold fell below that of M1@1 on the way to M1 and stayed there, so training went on too long there. Use "
    )
    notes = " ".join(view.notes)
    assert "Stop rule on the way to M1: stop at M1; gold was under that of M1@1" in notes
    assert "Stop rule on the way to M2: no reason to stop earlier" in notes
    for chart in map(str, view.charts):
        places = {name: f"{x},{y}" for name, x, y in re.findall(r'<title>(\S+):.*?cx="([\d.]+)" cy="([\d.]+)"', chart)}
        drawn = [line.split() for line in re.findall(r'class="path [^"]*" points="([^"]*)"', chart)]
        names = {place: name for name, place in places.items()}
        assert [[names[place] for place in line] for line in drawn] == [["M0", "M1@1", "M1"], ["M1@1", "M2@1", "M2"]]
    tokens = re.findall(r'class="path [^"]*" points="([^"]*)"', str(view.drift[0]))
    assert [len(line.split()) for line in tokens] == [3, 3]
    for point in meter["points"]:  # as an earlier version wrote them
        del point["parent"]
    old = meter_view(meter, {})
    assert old and str(old.charts[0]).count('class="path') == 1


def test_points_without_a_positive_kl_are_named(meter: dict[str, Any]) -> None:
    assert "not above 0" not in " ".join(meter_view(meter, {}).notes)  # type: ignore[union-attr]
    meter["points"][1]["sqrt_kl"]["mean"] = meter["points"][3]["sqrt_kl"]["mean"] = 0.0
    view = meter_view(meter, {})
    assert view and "Left out of the curves, since their estimate of KL is not above 0: M1@1 and M2@1." in view.notes


def test_without_flags_the_sentence_claims_less(meter: dict[str, Any]) -> None:
    for step in meter["steps"]:
        step["over_optimized"] = False
    assert finding(meter) == "Gold fell below that of M1 and stayed there, so training went on too long. Use M1."
    meter["stop"]["stop"] = None
    assert finding(meter) == "M1 is the best checkpoint by gold, and no step shows over-optimization beyond the intervals."
    meter["choice"] |= {"chosen": 0, "name": "M0"}
    assert finding(meter).startswith("No checkpoint is better than M0 by gold beyond its interval. Keep M0")
    meter["steps"][0]["over_optimized"] = True
    assert finding(meter).endswith("beyond their intervals. Keep M0.")
    meter["points"] = meter["points"][:1]
    assert finding(meter) == "Only M0 was measured, so there is nothing to compare."


def test_the_notes_say_why_and_what_is_missing(meter: dict[str, Any]) -> None:
    meter["stop"] |= {"stop": None}
    meter["choice"]["gains"][0]["missing"] = 3
    meter["choice"]["gains"][1]["eligible"] = True
    meter["choice"]["gains"][2]["eligible"] = False
    meter["choice"]["gains"][3] |= {"eligible": False, "low": None, "high": None, "prompts": 5}
    meter["fits"]["gold"]["best_of_n"]["peak"] |= {"where": "beyond", "low": 3.0, "high": None}
    meter["fits"]["gold"]["rl"] |= {"peak": None, "no_peak": "the reward falls from the start"}
    meter["points"][3]["sqrt_kl"] = estimate(None, None, None)  # type: ignore[arg-type]
    view = meter_view(meter, {})
    assert view
    notes = " ".join(view.notes)
    for said in (
        "no reason to stop earlier", "M1@1: 3 prompts lack a gold reward of it or of M0.",
        "M2@1 could not be chosen: too few", "M2 could not be chosen: its gold gains on 5 prompts give no interval.",
        "an extrapolation, with no upper bound", "no peak, since the reward falls from the start",
        "Without a distance, and so not in the charts over it: M2@1.",
    ):  # fmt: skip
        assert said in notes, said
    assert "fit peak" not in view.charts[2], "neither curve has its peak inside"
    assert all("M2@1" not in chart for chart in view.charts) and all("M2" in chart for chart in view.charts)
    meter["fits"]["gold"] = {"reason": "fewer than 3 checkpoints", "best_of_n": None, "rl": None}
    refitted = meter_view(meter, {})
    assert refitted and not refitted.fitted and "No curve was fitted: fewer than 3 checkpoints." in refitted.notes


def test_without_gold_proxies_prove_nothing(run_dir: Path, tmp_path: Path, meter: dict[str, Any]) -> None:
    for point in meter["points"]:
        point["gold_gain"] = estimate(None, None, None)  # type: ignore[arg-type]
    meter |= {"choice": None, "stop": None, "fits": {"proxy": meter["fits"]["proxy"]}}
    page = part(report(changed(run_dir, tmp_path, "eval/result", {"meter": meter})))
    assert "proxies alone cannot show over-optimization" in words(page)
    assert "reward_models.gold" in page and "Choice:" not in page and "ring marks" not in page
    assert 'aria-label="Validator"' in page and 'aria-label="Gold"' not in page


def test_the_panels_share_their_distances_and_the_ring(meter: dict[str, Any]) -> None:
    view = meter_view(meter, {})
    assert view
    charts = [str(chart) for chart in view.charts]
    assert [re.search('aria-label="([^"]*)"', chart).group(1) for chart in charts] == [  # type: ignore[union-attr]
        "Proxy (selector)", "Validator", "Gold",
    ]  # fmt: skip
    assert len({tuple(re.findall(r'class="tick mid">([^<]*)<', chart)) for chart in charts}) == 1
    for chart in charts:
        dots = re.findall(r"<g><title>(\S+):[^<]*</title>(.*?)</g>", chart)
        assert [name for name, _ in dots] == ["M0", "M1@1", "M1", "M2@1", "M2"], "in the order of training"
        assert [name for name, drawn in dots if "ring" in drawn] == ["M1"]
    assert ['class="fit' in chart for chart in charts] == [False, False, True], "curves are of gold"


def test_points_and_whiskers_are_at_their_values() -> None:
    marks = [Mark("M0", 0, 0, 0, 0), Mark("M1", 1, 2, 1, 3, chosen=True), Mark("M2", 2, 4)]
    svg = str(panel("t", marks, color="c-gold", x_ticks=numbered([0, 2]), x_label="d", y_label="gain"))
    dots = [tuple(map(float, xy)) for xy in re.findall(r'class="dot c-gold" cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert dots[1] == pytest.approx([(a + b) / 2 for a, b in zip(dots[0], dots[2], strict=True)])
    ends = re.findall(r'whisker thin c-gold" x1="([\d.]+)" y1="([\d.]+)" x2="[\d.]+" y2="([\d.]+)"', svg)
    assert len(ends) == 2, "M2 has no interval"
    x, low, high = map(float, ends[1])
    step = (dots[0][1] - dots[2][1]) / 4
    assert (x, low, high) == pytest.approx((dots[1][0], dots[1][1] + step, dots[1][1] - step))
    assert re.search(r'class="ring" cx="([\d.]+)"', svg).group(1) == re.findall(r'dot c-gold" cx="([\d.]+)"', svg)[1]  # type: ignore[union-attr]


@settings(max_examples=60, deadline=None)
@example([(0.0, 0.0, 1e-17), (0.0, 1e-16, 0.0)])
@example([(1e-14, 3.0, 0.0)])
@given(st.lists(st.tuples(st.floats(0, 4), st.floats(-2, 2), st.floats(0, 3)), min_size=1, max_size=12))
def test_names_overlap_neither_each_other_nor_points(points: list[tuple[float, float, float]]) -> None:
    marks = [Mark(f"M{i}@{i}", x, y, y - w, y + w) for i, (x, y, w) in enumerate(points)]
    svg = str(panel("t", marks, color="c-m0", x_ticks=numbered([0.0, 4.0]), x_label="d", y_label="y"))
    inside(svg)
    names = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="name mid halo">([^<]*)<', svg)
    half = {name: meter_charts.label_width(name) / 2 for _, _, name in names}
    boxes = [(float(x) - half[n], float(y) - 10, float(x) + half[n], float(y)) for x, y, n in names]
    boxes += [
        (float(x) - 4, float(y) - 4, float(x) + 4, float(y) + 4)
        for x, y in re.findall(r'dot c-m0" cx="([\d.]+)" cy="([\d.]+)"', svg)
    ]
    for i in range(len(names)):
        for other in boxes[i + 1 :]:
            a = boxes[i]
            assert not (a[0] < other[2] and other[0] < a[2] and a[1] < other[3] and other[1] < a[3])
    if len(points) == 1:
        assert names, "there is room for one"


def inside(svg: str) -> None:
    """Everything is drawn within the view box, and no number is NaN."""
    assert "nan" not in svg.lower()
    width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())  # type: ignore[union-attr]
    for names, most in (("x|cx|x1|x2", width), ("y|cy|y1|y2", height)):
        values = [float(v) for v in re.findall(rf' (?:{names})="(-?[\d.]+)"', svg)]
        assert values and min(values) >= 0 and max(values) <= most
    for path in re.findall(r'points="([^"]*)"', svg):
        for pair in path.split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= width and 0 <= y <= height


def test_bands_that_know_nothing_stay_in_the_frame() -> None:
    curve = Curve([(0, 0, 0, 0), (1, 1, -1e6, 1e6), (2, 0.5, math.nan, math.nan)], dashed=True, peak=(1.0, 1.0))
    marks = [Mark("M0", 0, 0), Mark("M1", 2, 1)]
    svg = str(panel("t", marks, color="c-gold", x_ticks=numbered([0, 2]), x_label="d", y_label="y", curves=[curve]))
    inside(svg)
    (band,) = re.findall(r'<polygon class="band" points="([^"]*)"', svg)
    assert len(band.split()) == 4, "there and back, without the point that has no band"
    (peak,) = re.findall(r'class="fit peak" x1="([\d.]+)"', svg)
    first, last = re.findall(r'class="dot c-gold" cx="([\d.]+)"', svg)
    assert float(peak) == pytest.approx((float(first) + float(last)) / 2)


def test_drift_is_against_the_beginning_of_its_own_stage(run_dir: Path, meter: dict[str, Any]) -> None:
    run = gather(run_dir, "x")
    view = evaluation_view(run.evaluation, run.stages, run.best_of_n, run.suites)
    assert view.meter
    drift = str(view.meter.drift[2])
    told = re.findall(r"<title>([^:]*): ([^<]*)</title>", drift)
    expected = {"M1@1": ["−4.5", "−6.5"], "M1": ["−9", "−26"], "M2@1": ["−4.5", "−6.5"], "M2": ["−9", "−26"]}
    for name, values in expected.items():
        assert [value for at, value in told if at == name] == values
    assert len(re.findall("<polyline", drift)) == 4, "two sides of two stages, not joined between stages"
    alone = meter_view(meter, {2: {"chosen_logps": -80.0}})
    assert alone and "M2@1: −4.5" in str(alone.drift[2]) and "M1:" not in str(alone.drift[2])


def test_many_checkpoints_keep_the_last_name() -> None:
    names = [f"M1@{i}" for i in range(1, 40)]
    line = Line("", [Mark(name, i, float(i)) for i, name in enumerate(names)], "c-data")
    svg = str(by_checkpoint("t", names, [line], y_label="y", within=(0, 1)))
    inside(svg)
    ticks = [name for name in re.findall(r'class="tick mid">([^<]*)<', svg) if name]
    assert ticks[-1] == "M1@39" and 2 <= len(ticks) < 10


# -- best of n --------------------------------------------------------------------------------------------------------------


def size(n: int, gain: float, low: float, high: float, prompts: int = 10) -> dict[str, Any]:
    return {
        "n": n,
        "gain": gain,
        "gain_low": low,
        "gain_high": high,
        "prompts": prompts,
        "proxy": "selector",
        "proxy_reward": 1.0,
    }


def test_best_of_n_sentences() -> None:
    assert (
        best_of_n_finding("gold", [size(8, 0.12, 0.05, 0.19)])
        == "The best of 8 by gold changes gold by +0.12 (0.05 to 0.19)."
    )
    assert best_of_n_finding("x", [size(8, 0.0, -0.1, 0.1)]).endswith(" 0.0 (−0.1 to 0.1), not told apart from no change.")
    assert "too few prompts" in best_of_n_finding("x", [size(8, 0.5, math.nan, math.nan)])
    falling = [size(2, 0.4, 0.3, 0.5), size(4, 0.45, 0.32, 0.5), size(8, 0.1, 0.0, 0.2)]
    assert "The best of 4 was better beyond both intervals" in best_of_n_finding("x", falling)
    assert "beyond both" not in best_of_n_finding("x", [size(2, 0.4, 0.15, 0.6), falling[-1]])


def test_best_of_n_is_read_and_shown_by_stage(run_dir: Path, page: str) -> None:
    found = gather_best_of_n(run_dir, 2)
    assert set(found) == {1, 2} and len(found[1]) == manifest(run_dir, "stage1/best_of_n")["rows"]
    assert [row["n"] for row in found[1]] == sorted(row["n"] for row in found[1])
    text = words(page)
    last = [row for row in found[2] if row["proxy"] == "validator"][-1]
    assert f"Stage 2 (M2) The best of {last['n']} by the selector" in text
    assert in_words(estimate(last["gain"], last["gain_low"], last["gain_high"]), signed=True) in text
    assert gather_best_of_n(run_dir / "nothing", 2) == {}


def test_prompts_with_fewer_answers_are_said() -> None:
    rows = [size(n, 0.1, 0.0, 0.2, prompts) for n, prompts in ((1, 10), (2, 10), (4, 7))]
    (view,) = evaluation_view(None, [], {3: rows}, []).best_of_n
    assert view.title == "Stage 3 (3)" and view.note == "Of 10 prompts, n = 4 on 7: the others have fewer answers."


def test_the_axis_of_n_is_logarithmic() -> None:
    marks = [Mark(f"n = {n}", n, float(n), n - 0.5, n + 0.5) for n in (1, 2, 3, 4, 6, 8)]
    svg = str(by_size("t", [Line("a", marks, "c-selector")], y_label="y", guide=True))
    inside(svg)
    x = [float(v) for v in re.findall(r'class="dot c-selector" cx="([\d.]+)"', svg)]
    assert x[1] - x[0] == pytest.approx(x[3] - x[1], abs=0.1) == pytest.approx(x[5] - x[3], abs=0.1)
    assert re.findall(r'class="tick mid">([^<]*)<', svg) == ["1", "2", "4", "8"]
    pair = str(by_size("t", [Line(n, marks, f"c-{n}") for n in ("selector", "validator")], y_label="y", guide=False))
    inside(pair)
    first, second = (float(re.search(rf'dot c-{n}" cx="([\d.]+)"', pair).group(1)) for n in ("selector", "validator"))  # type: ignore[union-attr]
    assert first < second, "whiskers of two proxies do not lie on each other"


# -- suites -----------------------------------------------------------------------------------------------------------------


def suite(kind: str, metric: str, **of: Any) -> Suite:
    return Suite("s", "done", {"kind": kind, "items": 9, "models": list(of), "metrics": {metric: of}})


def number(mean: float, change: dict[str, float | None] | None = None, **failed: int) -> dict[str, Any]:
    return {**estimate(mean, mean - 0.01, mean + 0.01), "items": 9, "failed": failed, "categories": {}, "change": change}


def test_a_change_over_fewer_items_says_how_many(tmp_path: Path) -> None:
    def of(items: int, change: int | None = None) -> dict[str, Any]:
        return {**number(0.5, None if change is None else {**estimate(0.0, -0.1, 0.1), "items": change}), "items": items}

    view = suites_view([suite("safety", "m", base=of(16), M1=of(20, 16), M2=of(16, 16))])
    assert view and [cell and cell.compared for cell in view.rows[0].cells] == [None, 16, None]
    run_dir = build_run(tmp_path / "run")
    path = next(p for p in run_dir.glob("eval/suite/*/manifest.json") if "." not in p.parent.name)
    found = json.loads(path.read_text())
    for table in found["metrics"]["metrics"].values():
        for one in table.values():
            if one["change"]:
                one["change"]["items"] = one["items"] - 1
    path.write_text(json.dumps(found))
    write_report(run_dir, run_dir / "r.html", name="fewer")
    assert re.search(r"<br>on \d+ items of both</div>", (run_dir / "r.html").read_text())


@pytest.mark.parametrize(
    ("kind", "ends", "verdict"),
    [
        ("ifeval", (0.1, 0.3), "good"),
        ("ifeval", (-0.3, -0.1), "bad"),
        ("ifeval", (0.0, 0.3), "open"),
        ("perplexity", (0.1, 0.3), "bad"),
        ("perplexity", (-0.3, -0.1), "good"),
        ("mt_bench", (None, None), "open"),
    ],
)
def test_a_change_is_coloured_only_where_its_interval_leaves_zero(kind: str, ends: tuple[Any, Any], verdict: str) -> None:
    view = suites_view([suite(kind, "m", base=number(0.5), M1=number(0.6, estimate(0.1, *ends)))])
    assert view
    base, ours = view.rows[0].cells
    assert base and ours and (base.change, base.verdict, ours.verdict) == (None, "open", verdict)
    said = {"good": "M1 against base: better in s.", "bad": "M1 against base: worse in s."}
    assert view.findings == [said.get(verdict, "M1 against base: 1 of 1 metrics not told apart.")]


def test_units_follow_the_kind() -> None:
    cells = {}
    for kind in ("ifeval", "perplexity", "logickor"):
        view = suites_view([suite(kind, "some_metric", M1=number(0.5))])
        assert view and view.rows[0].metric == "some metric"
        cells[kind] = [(row.unit, row.cells[0].value[0]) for row in view.rows if row.cells[0]]
    assert cells == {
        "ifeval": [("%", "50")],
        "perplexity": [("lower is better", "0.50"), ("exp(nats per token)", f"{math.exp(0.5):.2f}")],
        "logickor": [("marks from 1 to 10", "0.50")],
    }


def test_every_metric_of_every_suite_is_in_the_table(page: str, run_dir: Path) -> None:
    text = words(page)
    for name in ("ifeval", "math", "ppl", "needle", "chat"):
        found = manifest(run_dir, f"eval/suite/{name}")["metrics"]
        for metric, of in found["metrics"].items():
            assert f"{name} {metric.replace('_', ' ')}" in text
            for model, values in of.items():
                factor = 1.0 if name in ("ppl", "chat") else 100.0
                assert " ".join(shown(values, factor=factor)) in text, (name, metric, model)
                for reason, count in values["failed"].items():
                    assert f"{count} {reason}" in text
    assert "chat: a note with &lt;script&gt;" in page and "judgements that could not be read: 1" in text
    assert f"Of {3 * 6} comparisons at 95 %, about 1 would leave 0 by chance alone." in text


def test_a_model_that_a_suite_did_not_ask_has_a_dash(run_dir: Path, tmp_path: Path) -> None:
    found = manifest(run_dir, "eval/suite/math")["metrics"]
    del found["metrics"]["exact_answer"]["M1"]
    copy = changed(run_dir, tmp_path, "eval/suite/math", {"models": ["base", "M0", "M2"], "metrics": found["metrics"]})
    view = suites_view(gather_suites(copy, read_recipe(copy)))
    assert view and view.models == ["base", "M0", "M1", "M2"]
    row = next(row for row in view.rows if row.suite == "math")
    assert [cell is None for cell in row.cells] == [False, False, True, False]


def test_a_suite_that_the_recipe_no_longer_asks_for_is_marked(run_dir: Path) -> None:
    def marked(*asked: str) -> list[str]:
        view = suites_view(gather_suites(run_dir, {"evaluation": {"suites": dict.fromkeys(asked)}}))
        assert view
        return [line.split(":")[0] for line in view.notes if "of an earlier recipe" in line]

    assert marked("ifeval", "math", "ppl", "needle", "chat") == []
    assert marked("chat", "math") == ["ifeval", "needle", "ppl"]


def test_heat_maps_show_number_shade_and_failures() -> None:
    def cell(mean: float | None, failed: int = 0) -> dict[str, Any]:
        low, high = (None, None) if mean is None else (max(0.0, mean - 0.2), min(1.0, mean + 0.2))
        return {"mean": mean, "low": low, "high": high, "graded": 0 if mean is None else 3, "failed": failed}

    rows = [[cell(0.0), cell(1 / 3)], [cell(1.0, failed=2), cell(None, failed=3)]]
    svg = str(heat_map("M1", {"depths": [0.0, 0.5], "lengths": [700, 32768], "cells": rows}))
    inside(svg)
    shades = [float(v) for v in re.findall(r'fill-opacity="([\d.]+)"', svg)]
    assert shades[3] < shades[0] < shades[1] < shades[2] <= 1
    assert re.findall(r'class="mid(?: on)?">([^<]*)<', svg) == ["0", "33", "100!", "–!"]
    assert "33 % (13 to 53), 3 graded<" in svg and "0 graded, 3 without a grade" in svg and "! 5 without a grade" in svg
    assert "50\N{NO-BREAK SPACE}%" in svg and ">700<" in svg and ">32K<" in svg
    y = [float(v) for v in re.findall(r'<rect class="heat" x="[\d.]+" y="([\d.]+)"', svg)]
    assert y[0] == y[1] < y[2] == y[3], "the beginning of the text is the first row"
    many = {"depths": [0.0], "lengths": [1024 * n for n in range(1, 17)], "cells": [[cell(0.5)] * 16]}
    inside(str(heat_map("M1", many)))


def test_heat_maps_stand_by_language(page: str, run_dir: Path) -> None:
    for lang in ("en", "ko"):
        group = page.split(f"in %: needle, {lang}</h4>")[1].split("</section>")[0].split("<h")[0]
        assert re.findall('aria-label="([^"]*)"', group) == ["base", "M0", "M1", "M2"]
        cells = manifest(run_dir, "eval/suite/needle")["metrics"]["heat_maps"]["base"][lang]["cells"]
        shown_cells = re.findall(r'class="mid(?: on)?">([^<]*)<', group.split("</figure>")[0])
        assert shown_cells == [f"{100 * c['mean']:.0f}" + "!" * bool(c["failed"]) for row in cells for c in row]


# -- the whole section ------------------------------------------------------------------------------------------------------


def test_steps_of_suites_come_before_the_evaluation(run_dir: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "eval/suite/arena.judge.org.v1").mkdir(parents=True)
    (folder.parent / "arena.judgements").mkdir()
    recipe = {"evaluation": {"suites": {"arena": {}, "zeta": {}}}}
    expected = ["eval.score.validator", "eval.suite.arena.judge.org.v1", "eval.suite.arena", "eval.suite.zeta", "eval"]
    assert run_steps(tmp_path, recipe)[-5:] == expected, "and what a judge said is no step"
    steps = run_steps(run_dir, read_recipe(run_dir))
    assert steps[-1] == "eval" and steps.index("eval.suite.ifeval.answer.M2") < steps.index("eval.suite.ifeval")


def test_unfinished_parts_are_said(run_dir: Path, tmp_path: Path) -> None:
    copy = changed(run_dir, tmp_path, "eval/result", {})
    shutil.rmtree(copy / "eval/result")
    shutil.rmtree(copy / "eval/suite/chat")
    text = words(part(report(copy)))
    assert "Evaluation: not run yet." in text and "chat: not run yet." in text
    assert "Best of n, before training" in text and "ifeval prompt strict" in text, "what has run is shown"


def test_a_manifest_of_an_earlier_version_says_what_it_lacks(run_dir: Path, tmp_path: Path) -> None:
    text = words(part(report(changed(run_dir, tmp_path, "eval/result", {"wins": None, "meter": None}))))
    assert "Win rates at equal length are not in the manifest of eval" in text
    assert "The manifest of eval has no meter" in text and "Held-out answers by model" in text


def test_names_and_reasons_are_escaped(run_dir: Path, tmp_path: Path, metrics: dict[str, Any]) -> None:
    text = json.dumps({"wins": metrics["wins"], "meter": metrics["meter"]})
    hostile = json.loads(text.replace('"M2"', json.dumps(BAD)))
    copy = changed(run_dir, tmp_path, "eval/result", hostile)
    for name in ("chat", "needle"):
        path = copy / f"eval/suite/{name}/manifest.json"
        path.write_text(path.read_text().replace('"M2"', json.dumps(BAD)).replace("no_score", "no<b>score"))
    page = part(report(copy))
    assert "<b onload" not in page and 'x>&"' not in page and "no<b>" not in page and "<script" not in page
    assert page.count("&lt;b onload") > 20 and "no&lt;b&gt;score" in page
    outline = Attributes()
    outline.feed(page)
    assert "class" in outline.names and not [name for name in outline.names if name.startswith("on")]


def test_notebook_tables_have_the_numbers_of_the_manifests(run_dir: Path, tmp_path: Path, metrics: dict[str, Any]) -> None:
    tables = evaluation(open_run(run_dir))
    assert list(tables.meter.name) == ["M0", "M1@1", "M1", "M2@1", "M2"]
    assert list(tables.meter["gold_gain.low"]) == [p["gold_gain"]["low"] for p in metrics["meter"]["points"]]
    assert len(tables.wins) == 9 and "length.length_controlled.mean" in tables.wins and len(tables.models) == 4
    assert set(tables.best_of_n.stage) == {1, 2}
    ours = tables.suites.set_index(["suite", "metric", "model"]).loc[("math", "exact_answer", "M2")]
    there = manifest(run_dir, "eval/suite/math")["metrics"]["metrics"]["exact_answer"]["M2"]
    assert (ours["mean"], ours["change.low"], ours["failed"]) == (there["mean"], there["change"]["low"], "too_long 3")
    assert len(tables.suites) == 4 * 6
    shutil.copytree(run_dir / "sft", tmp_path / "sft")
    with pytest.raises(UserError, match="eval is not run yet"):
        evaluation(open_run(tmp_path))
