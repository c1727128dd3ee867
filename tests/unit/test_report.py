"""The report: numbers from manifests, texts escaped, nothing loaded from elsewhere; charts; notebook helpers."""

import html
import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from synthetic_run import HOSTILE, LONG, build_run, manifest, write_recipe

from align.builtin_models import _byte_tokenizer
from align.core.artifact import Manifest
from align.core.chat import Chat
from align.core.errors import StepError, UserError
from align.core.rows import Preference
from align.recipe.training import NEEDS_REFERENCE
from align.report import charts
from align.report.artifacts import alternate, columns_of, folder_of, num_stages, read_recipe, step_names
from align.report.charts import Bar, Distribution, Interval, Series, Values
from align.report.gather import cut, gather, readable_reject
from align.report.glossary import LOSS_NAMES, MEASURES, REASONS, meaning, measured_by_gold
from align.report.headline import _conclusion, by_length, claims, verdict
from align.report.notebook import Run, open_run, render_pair_text, visible
from align.report.page import TEXT_CHARS, file_size, number, seconds, write_report
from align.report.stages import Evaluation, correlation, funnel_title, response_points
from align.report.suites import run_steps
from reward.agreement import MEASURES as AGREEMENTS
from reward.rules import CHECKS
from reward.selection import OUTCOMES

VOID = {"meta", "br", "wbr", "line", "circle", "rect", "polyline"}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("run") / "synthetic")


@pytest.fixture(scope="module")
def page(run_dir: Path) -> str:
    target = run_dir / "report" / "index.html"
    write_report(run_dir, target, name="synthetic & <friends>")
    assert sorted(p.name for p in target.parent.iterdir()) == ["coverage.json", "index.html"]
    return target.read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Checks nesting and collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.texts.append(data)


def words(page: str) -> str:
    """The visible text, every run of white space as one space."""
    return " ".join(" ".join(read(page).texts).split())


def read(page: str) -> Outline:
    outline = Outline()
    outline.feed(page)
    assert outline.stack == []
    return outline


# -- the page ---------------------------------------------------------------------------------------------------------------


def test_all_text_is_escaped(page: str) -> None:
    outline = read(page)
    assert "script" not in {tag for tag, _ in outline.tags}
    assert "<script" not in page.lower()
    assert html.escape(HOSTILE, quote=False).replace("&#x27;", "'").split(" &amp;")[0] in page
    text = "".join(outline.texts)
    assert text.count(HOSTILE) > 10, "hostile texts are shown as they are"
    assert "synthetic & <friends>" in text
    assert not [name for _, attrs in outline.tags for name in attrs if name.startswith("on")]


def test_one_file_without_references_elsewhere(page: str) -> None:
    for sign in ("http://", "https://", "src=", "@import", "url(", "<link", "<iframe", "<img", "javascript:"):
        assert sign not in page, sign
    outline = read(page)
    links = [attrs["href"] for tag, attrs in outline.tags if tag == "a"]
    anchors = {attrs["id"] for _, attrs in outline.tags if "id" in attrs}
    assert links and {link.removeprefix("#") for link in links if link} <= anchors
    assert str(Path.home()) not in page


def test_numbers_of_manifests_appear(page: str, run_dir: Path) -> None:
    text = words(page)
    for found in sorted(run_dir.rglob("manifest.json")):
        one = json.loads(found.read_text())
        assert re.search(rf"{re.escape(one['step'])} [\d.]+ s ?{one['asked']:,} ?{one['rows']:,}", text), one["step"]
    pair = manifest(run_dir, "stage1/pair")
    assert f"{pair['rows']} of {pair['asked']} asked" in text
    assert f"of {pair['rows']} pairs {100 * pair['metrics']['chosen_longer_share']:.0f} %" in text
    table = manifest(run_dir, "eval/result")["metrics"]["table"]
    for row in table:
        low, high = row["selector"]["low"], row["selector"]["high"]
        assert f"{row['selector']['mean']:.2f} [{low:.2f}, {high:.2f}]".replace("-", "\N{MINUS SIGN}") in text
    assert "1.234" in text or "1.235" in text, "KL"
    assert "0.6931 (ln 2 = 0.6931)" in text
    assert "seed 17" in text and "transformers 5.19.0" in text


def test_every_reason_appears_with_its_number_and_examples(page: str, run_dir: Path) -> None:
    text = words(page)
    reasons = 0
    for found in run_dir.rglob("manifest.json"):
        for reason, count in json.loads(found.read_text())["rejects"].items():
            assert f"{reason} · {count}" in text, reason
            reasons += 1
    assert reasons >= 15
    assert "responses compared · selector: best" in text
    shown = [li for li in re.findall(r"<li>(.*?)</li>", page, re.DOTALL) if "verylongword" in li]
    assert shown and all(len(html.unescape(li)) < 240 for li in shown), "long rejects are cut"


def test_the_tree_counts_empty_topics(page: str, run_dir: Path) -> None:
    taxonomy = gather(run_dir, "x").taxonomy
    assert taxonomy is not None
    metrics = manifest(run_dir, "taxonomy")["metrics"]
    assert (taxonomy.topics, taxonomy.topics - taxonomy.empty) == (metrics["topics"], metrics["topics_filled"])
    assert f"{taxonomy.empty} topics are empty" in page
    assert taxonomy.units == sum(leaf.count for t in taxonomy.trees for leaf in t.lines if leaf.leaf) == 30
    assert page.count('<span class="tag">empty</span>') == sum(not ln.count for t in taxonomy.trees for ln in t.lines)
    for tree in taxonomy.trees:
        depths = [line.depth for line in tree.lines]
        assert depths[0] == 1 and all(b - a <= 1 for a, b in pairwise(depths)), "children follow parents"


def test_evolved_instructions_stand_beside_their_parents(run_dir: Path) -> None:
    evolved = gather(run_dir, "x").samples.evolved
    assert len({row.operator for row in evolved[:5]}) == 5
    assert evolved
    for row in evolved:
        assert (
            row.parent
            and row.child[:-1] == row.parent[:-1]
            and row.child[-1]["content"].startswith(row.parent[-1]["content"])
        )


def test_sample_rows_show_every_turn(run_dir: Path, page: str) -> None:
    samples = gather(run_dir, "x").samples
    forms = {row["form"]: row["messages"] for row in samples.instructions}
    assert list(forms) == ["request", "input", "system prompt", "dialogue"]
    assert [m["role"] for m in forms["dialogue"]] == ["system", "user", "assistant", "user"]
    assert "\n\n" in forms["input"][-1]["content"]
    text = "".join(read(page).texts)
    evolved = [messages for row in samples.evolved for messages in (row.parent, row.child)]
    assert any(messages[0]["role"] == "system" for messages in evolved)
    shown = [*forms.values(), *evolved, *(row["messages"] for row in samples.examples)]
    for role in ("system", "user", "assistant"):
        number_of = sum(message["role"] == role for messages in shown for message in messages)
        assert section(page, "rows").count(f"<b>{role}</b>") == number_of
    for messages in shown:
        for message in messages:
            whole = message["content"]
            assert (whole if len(whole) <= TEXT_CHARS else f"{whole[:TEXT_CHARS]}… (+{len(whole) - TEXT_CHARS:,}") in text


# -- coverage and difficulty ------------------------------------------------------------------------------------------------


def copied(run_dir: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    return copy


def section(page: str, name: str) -> str:
    """One section of the page."""
    found = re.search(rf'<section id="{name}">.*?</section>', page, re.DOTALL)
    assert found, name
    return found[0]


def report(run_dir: Path) -> str:
    write_report(run_dir, run_dir / "page" / "r.html", name="copy")
    return (run_dir / "page" / "r.html").read_text(encoding="utf-8")


def rewritten(folder: Path, column: str, change: Callable[[Any], Any]) -> None:
    """Every value of a column in a folder's files replaced."""
    for path in [folder] if folder.is_file() else sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        place = table.schema.get_field_index(column)
        values = pa.array([change(v) for v in table[column].to_pylist()], table.schema.field(column).type)
        pq.write_table(table.set_column(place, table.schema.field(column), values), path)


def test_coverage_adds_up_and_its_file_has_the_same_numbers(page: str, run_dir: Path) -> None:
    told = json.loads((run_dir / "report" / "coverage.json").read_text())
    text = words(section(page, "coverage"))
    assert list(told["steps"]) == ["taxonomy", "instruct", "evolve", "sft.data", "stage1.pair", "stage2.pair"]
    for step, of in told["steps"].items():
        one = manifest(run_dir, folder_of(step))
        assert (of["asked"], of["kept"]) == (one["asked"], one["rows"]), step
        assert of.get("rejects", of.get("rejects_without_topic")) == one["rejects"], step
        line = f"{step} {of['asked']} {of['kept']} {of['filled']} of 325 {of['entropy']:.2f} {of['effective_topics']:.1f}"
        assert line in text, line
    for topic in told["topics"]:
        made = topic["steps"]["instruct"]
        if made["asked"]:
            assert f"{made['kept']}/{made['asked']}" in text and topic["name"] in text
        assert (topic["id"] in told["empty"]) == (not any(of["kept"] for of in topic["steps"].values()))
    assert f"{len(told['empty'])} of 325 topics have no row at any counted step" in text
    assert "No topic: a unit that taxonomy rejected has none. not_grounded 9" in text


def test_names_of_topics_and_reasons_are_escaped(tmp_path: Path, run_dir: Path) -> None:
    copy, bad = copied(run_dir, tmp_path), f'"><b onload=x> {HOSTILE}'
    rewritten(copy / "taxonomy/topics.parquet", "name", lambda name: f"{name} {bad}")
    rewritten(copy / "instruct/rejects", "reason", lambda reason: reason + bad)
    page = section(report(copy), "coverage")
    outline = read(page)
    assert not {tag for tag, _ in outline.tags} - {
        "section", "h2", "h3", "p", "code", "div", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "span",
        "b", "i", "ul", "li",
    }  # fmt: skip
    assert {name for _, attrs in outline.tags for name in attrs} == {"id", "class", "style", "title"}
    assert "".join(outline.texts).count(bad) > 300
    assert any(bad in (attrs.get("title") or "") for _, attrs in outline.tags), "reasons on hover"


def test_a_lost_row_stops_the_report(tmp_path: Path, run_dir: Path) -> None:
    copy = copied(run_dir, tmp_path)
    (path,) = (copy / "evolve/data").iterdir()
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    topic = table["topic_id"][0].as_py()
    asked = manifest(copy, "evolve")["metrics"]["asked_by_topic"][topic]
    with pytest.raises(StepError, match=rf"^evolve: topic {topic}: {asked} asked, \d+ kept and \d+ rejected do not add up"):
        report(copy)
    assert not (copy / "page").exists(), "no half of a report"


def test_a_run_without_evolution(tmp_path: Path, run_dir: Path) -> None:
    copy = copied(run_dir, tmp_path)
    shutil.rmtree(copy / "evolve")
    page = report(copy)
    assert "Evolution: not run yet." in words(section(page, "difficulty"))
    coverage = words(section(page, "coverage"))
    assert "instruct 48 35" in coverage and "evolve" not in coverage and "stage2.pair" in coverage


def test_a_run_of_an_earlier_version_says_what_it_cannot(tmp_path: Path, run_dir: Path) -> None:
    copy = copied(run_dir, tmp_path)
    new = {"asked_by_topic", "generations", "by_turns", "with_persona", "with_system_prompt", "by_operator", "by_task_type"}
    for path in copy.rglob("manifest.json"):
        found = json.loads(path.read_text())
        kept = {name: value for name, value in found["metrics"].items() if name not in new}
        path.write_text(json.dumps({**found, "metrics": kept}))
    for path in copy.rglob("rejects/*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["topic_id"]), path)
    page = report(copy)
    text = words(section(page, "coverage"))
    assert "Not counted by topic: instruct, evolve, sft.data, stage1.pair, stage2.pair. Their manifests do not say" in text
    assert "taxonomy 43 30 27 of 325" in text and "instruct 48" not in text
    difficulty = section(page, "difficulty")
    assert "does not tell difficulty by generation" in words(difficulty) and "<svg" not in difficulty
    assert json.loads((copy / "page" / "coverage.json").read_text())["not_counted"][0] == "instruct"


def test_each_generation_has_a_histogram_on_the_same_axes(page: str, run_dir: Path) -> None:
    generations = manifest(run_dir, "evolve")["metrics"]["generations"]
    part = section(page, "difficulty")
    figures = re.findall(r'<figure class="chart"><figcaption>([^<]*)</figcaption>(.*?)</figure>', part, re.DOTALL)
    for title, mark in (("Measured difficulty", "difficulty"), ("Quality by the judge", "judged_quality")):
        drawn = [figure for name, figure in figures if name == title]
        assert len(drawn) == len(generations) == 3
        axes = {tuple(re.findall(r'<text[^>]*class="tick \w+">([^<]*)<', figure)) for figure in drawn}
        assert len(axes) == 1, "same labels at both axes"
        for figure, of in zip(drawn, generations.values(), strict=True):
            counts = of[mark]["counts"]
            shown = [int(n) for n in re.findall(r"<title>(\d+) of \d+</title>", figure)]
            assert shown == counts and f"mean {of[mark]['mean']:.2f}, n = {sum(counts)}" in figure
            heights = numbers(figure, "height")
            assert heights.index(max(heights)) == counts.index(max(counts))
    text = words(part)
    assert "user turns 50 with 1, 5 with 2" in text and "with a system prompt 11 of 55" in text and "follow_up 5" in text


def test_without_a_judge_there_are_no_charts_of_its_marks(tmp_path: Path, run_dir: Path) -> None:
    part = section(report(build_run(tmp_path / "run", until="data", judge=False)), "difficulty")
    assert "No judge marked these instructions." in words(part)
    assert "by the judge" not in part and part.count("Measured difficulty") == 2 * 3
    copy = copied(run_dir, tmp_path)
    path = copy / "evolve/manifest.json"
    found = json.loads(path.read_text())
    for mark in ("judged_difficulty", "judged_quality"):
        found["metrics"]["generations"]["2"][mark] = {"mean": 0.0, "counts": [0] * 10}
    path.write_text(json.dumps(found))
    part = section(report(copy), "difficulty")
    assert words(part).count("by the judge: none marked") == 2, "said of the one generation"
    assert "No judge marked" not in part and part.count('aria-label="Quality by the judge"') == 2


def test_points_are_joined_by_response_id(run_dir: Path) -> None:
    points = response_points(run_dir, 1)
    sampled = [manifest(run_dir, f"stage1/sample/{m}")["rows"] for m in ("M0", "base")]
    assert len(points) == sum(sampled)
    by_id = columns_of(run_dir / "stage1/sample/M0", ("id", "num_tokens"))
    first = columns_of(run_dir / "stage1/score/selector", ("response_id", "score"))
    scores = dict(zip(first["response_id"], first["score"], strict=True))
    assert {(p.selector, p.tokens) for p in points if p.model == "M0"} == {
        (scores[i], n) for i, n in zip(by_id["id"], by_id["num_tokens"], strict=True)
    }


def test_the_pair_funnel_ends_at_the_pairs(run_dir: Path) -> None:
    for stage in gather(run_dir, "x").stages:
        assert stage.pair is not None
        assert stage.funnel[0][1] == stage.pair.asked and stage.funnel[-1][1] == stage.pair.rows
        assert all(a[1] >= b[1] for a, b in pairwise(stage.funnel))


def test_several_pairs_of_a_prompt_are_no_prompts(tmp_path: Path, run_dir: Path) -> None:
    copy = copied(run_dir, tmp_path)
    folder = copy / "stage1/pair"
    first = pq.read_table(folder / "agreement/part-00000.parquet")
    outcome, tau = (first.schema.get_field_index(name) for name in ("outcome", "kendall"))
    further = first.set_column(outcome, first.schema.field("outcome"), [["no_further_pair"] * len(first)])
    further = further.set_column(tau, first.schema.field("kendall"), [[math.nan] * len(first)])
    pq.write_table(pa.concat_tables([first, further]), folder / "agreement/part-00000.parquet")
    found = json.loads((folder / "manifest.json").read_text())
    more = {"asked": found["asked"] + len(first), "rejects": {**found["rejects"], "no_further_pair": len(first)}}
    found["metrics"].pop("asked_by_topic")  # coverage is not what is looked at
    (folder / "manifest.json").write_text(json.dumps({**found, **more}))
    stage = gather(copy, "x").stages[0]
    once = gather(run_dir, "x").stages[0].prompts
    assert (stage.prompts.asked, stage.prompts.pairs_asked) == (len(first), 2 * len(first))
    assert (stage.prompts.paired_tau, stage.prompts.other_tau) == (once.paired_tau, once.other_tau)
    assert stage.funnel[0] == ("pairs asked for", 2 * len(first))
    text = words(section(report(copy), "stage1"))
    assert f"prompts with a pair {stage.prompts.paired} of {len(first)}" in text
    assert f"From pairs asked for (2 of each of {len(first)} prompts) to pairs" in text
    assert "Pairs asked for that were not made, by reason" in text and "Prompts without a pair" not in text
    assert funnel_title(70, 36, 36) == "From pairs asked for to pairs", "with collected ones"


def test_the_audit_counts_lengths_and_correlation_for_the_report(tmp_path: Path, run_dir: Path) -> None:
    copy = copied(run_dir, tmp_path)
    numbers = {
        "pairs": {"length": {"chosen_longer": 0.9, "unequal": 18}}, "responses": {"between": {"all": {"pearson": 0.125}}},
    }  # fmt: skip
    (copy / "stage1/pair/audit.json").write_text(json.dumps({"audit": numbers, "findings": []}))
    path = copy / "stage1/pair/manifest.json"
    found = json.loads(path.read_text())
    found["metrics"]["by_split"] = {"train": 7, "test": found["rows"] - 7}
    path.write_text(json.dumps(found))
    text = words(report(copy))
    assert "P(chosen is longer), of 18 pairs of unequal length 90 %" in text
    assert "the chosen answer is the longer one in 90 % of 18 pairs of unequal length" in text
    assert re.search(r"Pearson's r 0\.\d\d over all responses, 0\.12 within prompts", text)
    assert "Stage 1 trains on 7 pairs" in text


def test_both_ends_of_a_loss_are_of_the_same_rows(tmp_path: Path, run_dir: Path) -> None:
    copy = copied(run_dir, tmp_path)
    path = copy / "stage1/train/manifest.json"
    found = json.loads(path.read_text())
    found["metrics"] |= {"loss": 0.9, "examined": [{"loss": 0.6931}, {"loss": 0.1184}]}
    found["metrics"]["history"][0]["margin"] = 0.0
    path.write_text(json.dumps(found))
    text = words(section(report(copy), "stage1"))
    assert "loss of the same examples, before → after 0.6931 → 0.1184" in text and "0.9000" not in text
    assert "every margin is 0: ties, which count as wrong" in text
    assert "ties, which" not in words(section(report(copy), "stage2")), "SimPO has margins from the start"


def test_length_alone_is_one_number(tmp_path: Path, run_dir: Path) -> None:
    assert by_length(0.625) == (0.625, "longer") and by_length(0.25) == (0.75, "shorter")
    assert by_length(0.5) == (0.5, "longer")
    copy = copied(run_dir, tmp_path)
    path = copy / "reward/selector/manifest.json"
    found = json.loads(path.read_text())
    found["metrics"] |= {"accuracy": 0.64, "longer_is_chosen": 0.36}
    path.write_text(json.dumps(found))
    text = words(report(copy))
    assert "right on 64 % of held-out pairs; preferring the shorter answer alone would reach up to 64 %" in text
    assert "64 % (shorter)" in text and "36 %" not in words(section(report(copy), "reward"))
    found["metrics"] |= {"accuracy": None, "longer_is_chosen": None}
    path.write_text(json.dumps(found))
    assert "(shorter)" not in words(section(report(copy), "reward")), "no pair was held out"


def test_words_are_explained(page: str) -> None:
    for known, explained in ((OUTCOMES[1:], REASONS), (AGREEMENTS, MEASURES), (NEEDS_REFERENCE, LOSS_NAMES)):
        assert set(known) <= set(explained)
    assert set(CHECKS) == set(re.findall(r"(\w+) 2 \(", measured_by_gold(gold_of(dict.fromkeys(CHECKS, 2.0)))))
    assert "see the recipe" not in measured_by_gold(gold_of(dict.fromkeys(CHECKS, 2.0)))
    assert measured_by_gold({}) == "" and "classifier far/model" in measured_by_gold(
        {"reward_models": {"gold": {"path": "far/model"}}}
    )
    assert meaning("follow_up_stands_alone").startswith("second turn: ") and meaning("unheard_of") == ""
    text = words(page)
    assert meaning("validator_disagrees") in text and "Gold is no trained model but checks" in text
    assert f"gap {MEASURES['gap']}" in words(section(page, "words")) and "proxy the reward that is followed" in text
    assert re.search(r"steps finished, with this report (\d+) of \1 ", text)


def gold_of(weights: dict[str, float]) -> dict[str, Any]:
    return {"reward_models": {"gold": {"kind": "rules", "weights": weights}}}


@pytest.mark.parametrize("until", ["nothing", "data", "supervised", "stage1", "stage2"])
def test_missing_steps_are_said(tmp_path: Path, until: str) -> None:
    if until == "nothing":
        write_recipe(tmp_path)
    else:
        build_run(tmp_path, until=until)
    write_report(tmp_path, tmp_path / "r.html", name="partial")
    text = "".join(read((tmp_path / "r.html").read_text()).texts)
    assert "No model has been evaluated: not run yet." in text and "Evaluation: not run yet." in text
    assert ("Taxonomy: not run yet." in text) == (until == "nothing")
    assert ("Supervised fine-tuning: not run yet." in text) == (until in ("nothing", "data"))
    assert text.count("Training: not run yet.") == {"stage1": 1, "stage2": 0}.get(until, 2)


def test_no_recipe_and_a_step_under_way(tmp_path: Path, run_dir: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    (copy / "recipe.yaml").unlink()
    (copy / "stage2/train/manifest.json").unlink()
    (copy / "stage2/train/_work").mkdir()
    write_report(copy, copy / "r.html", name="no recipe")
    text = "".join(read((copy / "r.html").read_text()).texts)
    assert "unfinished" in text and "Stage 2" in text and "ln 2" in text


def test_metrics_that_are_missing_become_dashes(tmp_path: Path, run_dir: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    for path in copy.rglob("manifest.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "metrics": {}}))
    write_report(copy, copy / "r.html", name="bare")
    assert "–" in "".join(read((copy / "r.html").read_text()).texts)


def test_steps_and_folders(run_dir: Path) -> None:
    assert folder_of("stage1.sample.a.b-0.5B") == "stage1/sample/a.b-0.5B"
    assert [folder_of(n) for n in ("sft", "sft.data", "eval", "eval.score.selector", "stage2.pair", "reward.data")] == [
        "sft/train", "sft/data", "eval/result", "eval/score/selector", "stage2/pair", "reward/data",
    ]  # fmt: skip
    steps = {json.loads(p.read_text())["step"]: p.parent for p in run_dir.rglob("manifest.json")}
    assert set(run_steps(run_dir, read_recipe(run_dir))) == set(steps)
    assert all(run_dir / folder_of(name) == folder for name, folder in steps.items())
    assert num_stages(run_dir, {"stages": [{}] * 3}) == 3
    outside = {"reward_models": {"selector": {"path": "x"}, "validator": {"train": None}}}
    assert not [n for n in step_names(run_dir, outside) if n.startswith("reward.")]
    judged = step_names(run_dir, {"answers": {"best_by": "judge"}})
    assert judged.index("respond") + 1 == judged.index("respond.score") == judged.index("sft.data") - 1
    assert folder_of("respond.score") == "respond_score"


# -- sentences --------------------------------------------------------------------------------------------------------------


def rate(mean: float, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"mean": mean, "low": low, "high": high}


def evaluation(selector: dict[str, float | None], validator: dict[str, float | None]) -> Evaluation:
    row = {"model": "M1", "selector_win_rate": selector, "validator_win_rate": validator}
    return Evaluation([{"model": "M0"}, row], [], 20, "M0")


@pytest.mark.parametrize(
    ("first", "second", "words", "side"),
    [
        (rate(0.7, 0.55, 0.85), rate(0.6, 0.51, 0.7), "Both reward models prefer it", "up"),
        (rate(0.7, 0.5, 0.85), rate(0.6, 0.4, 0.7), "Both intervals include 50 %", "open"),
        (rate(0.7, 0.55, 0.85), rate(0.5, 0.4, 0.7), "the validator's includes 50 %: the evidence is one-sided", "open"),
        (rate(0.2, 0.1, 0.3), rate(0.3, 0.1, 0.45), "prefer the baseline", "down"),
        (rate(0.8, 0.7, 0.9), rate(0.3, 0.1, 0.45), "contradict each other", "open"),
        (rate(1.0, None, None), rate(1.0, None, None), "too few prompts", "none"),
    ],
)
def test_headlines_are_no_surer_than_their_intervals(first: dict, second: dict, words: str, side: str) -> None:
    base, claim = claims(evaluation(first, second))
    assert base.verdict == "base" and "20 held-out prompts" in base.sentence
    assert words in claim.sentence and claim.verdict == side


def test_every_combination_of_verdicts_has_words() -> None:
    assert verdict(None) == "none"
    for first in ("up", "down", "open", "none"):
        for second in ("up", "down", "open", "none"):
            assert _conclusion(first, second).endswith(".")


def test_formats() -> None:
    assert [seconds(s) for s in (3.14, 65, 3600 + 59)] == ["3.1 s", "1 min 05 s", "1 h 00 min"]
    assert seconds(7200) == "2 h 00 min"
    assert [file_size(n) for n in (0, 1023, 1536, 3 * 2**30)] == ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]
    assert [number(v) for v in (None, math.nan, 1234, -0.5)] == ["–", "–", "1,234", "\N{MINUS SIGN}0.50"]
    assert cut("abc", 3) == "abc" and cut("abcd", 3).startswith("abc…")
    assert readable_reject('{"compared": broken') == '{"compared": broken'
    rows = [{"k": "a", "n": 1}, {"k": "a", "n": 2}, {"k": "b", "n": 3}]
    assert [r["n"] for r in alternate(rows, "k")] == [1, 3, 2]


# -- charts -----------------------------------------------------------------------------------------------------------------


def numbers(svg: str, attribute: str) -> list[float]:
    return [float(v) for v in re.findall(rf'\b{attribute}="(-?[\d.]+)"', svg)]


def inside(svg: str) -> None:
    """Everything is drawn within the view box, and no number is NaN."""
    assert "nan" not in svg.lower().replace("nanum", "") and "inf" not in svg
    width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())  # type: ignore[union-attr]
    xs = [v for a in ("x", "cx", "x1", "x2") for v in numbers(svg, a)]
    ys = [v for a in ("y", "cy", "y1", "y2") for v in numbers(svg, a)]
    for pairs in re.findall(r'points="([^"]*)"', svg):
        for pair in pairs.split():
            x, y = map(float, pair.split(","))
            xs.append(x)
            ys.append(y)
    assert xs and min(xs) >= 0 and max(xs) <= width
    assert ys and min(ys) >= 0 and max(ys) <= height
    assert all(v >= 0 for a in ("width", "height") for v in numbers(svg, a))


SETS = {
    "usual": [(1, 0.7), (2, 0.6), (3, 0.65)],
    "one point": [(5, 0.25)],
    "equal values": [(1, 2.0), (2, 2.0), (3, 2.0)],
    "zeros": [(0, 0.0), (0, 0.0)],
    "tiny": [(1, 1e-9), (2, 3e-9)],
    "large": [(1, -4e7), (2, 9e7)],
    "with gaps": [(1, math.nan), (2, 1.0), (3, math.inf), (4, 2.0)],
}


@pytest.mark.parametrize("points", SETS.values(), ids=SETS)
def test_charts_stay_in_their_frame(points: list[tuple[float, float]]) -> None:
    series = [Series("a", points, "c-m0"), Series("b", points[:1], "c-m1")]
    values = [y for _, y in points]
    inside(charts.line_chart("t", series, x_label="x", y_label="y", guide=(math.log(2), "ln 2")))
    inside(charts.scatter("t", series, x_label="x", y_label="y"))
    inside(charts.histogram("t", [Values("a", values, "c-m0"), Values("b", values, "c-m1")], x_label="x", y_label="y"))
    inside(charts.bars("t", [Bar(str(v), abs(v), "n", "c-data", abs(v) * 2) for v in values if math.isfinite(v)]))
    whiskers = [Interval("M", v, v - 0.1, v + 0.1, "c-m0") for v in values]
    inside(charts.intervals("t", whiskers, x_label="x", guide=(0.5, "50 %")))


@pytest.mark.parametrize("counts", [[0, 3, 5], [7], [1] * 10, [10**9, 0, 1]])
def test_distributions_stay_in_their_frame(counts: list[int]) -> None:
    for within in ((0.0, 1.0), (0.5, 0.5 + len(counts))):
        for mean in within:
            inside(charts.distribution("t", Distribution(counts, mean), within=within, highest=1.0))


def test_no_values_is_a_note() -> None:
    nothing = [Series("a", [(math.nan, 1.0)], "c-m0")]
    for figure in (
        charts.line_chart("t", [], x_label="x", y_label="y"),
        charts.line_chart("t", nothing, x_label="x", y_label="y", guide=(1.0, "one")),
        charts.scatter("t", nothing, x_label="x", y_label="y"),
        charts.histogram("t", [Values("a", [], "c-m0")], x_label="x", y_label="y"),
        charts.bars("t", []),
        charts.intervals("t", [Interval("M", math.nan, 0, 1, "c-m0")], x_label="x", guide=(0.5, "")),
    ):
        assert "no values" in figure and "<svg" not in figure


def test_positions_are_in_the_order_of_the_values() -> None:
    svg = charts.line_chart("t", [Series("a", [(1, 1.0), (2, 3.0), (3, 2.0)], "c-m0")], x_label="x", y_label="y")
    place = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]*)"', svg).group(1).split()]  # type: ignore[union-attr]
    assert place[0][0] < place[1][0] < place[2][0]
    assert place[1][1] < place[2][1] < place[0][1], "larger values are higher up"


def test_labels_are_escaped() -> None:
    bad = "<b onload=x>&\"'"
    for figure in (
        charts.bars(bad, [Bar(bad, 1, bad, "c-m0")]),
        charts.line_chart(bad, [Series(bad, [(1, 1)], "c-m0"), Series(bad, [(1, 2)], "c-m1")], x_label=bad, y_label=bad),
        charts.scatter(bad, [Series(bad, [(1, 1)], "c-m0")], x_label=bad, y_label=bad, note=bad),
        charts.histogram(bad, [Values(bad, [1], "c-m0")], x_label=bad, y_label=bad, guide=(1, bad)),
        charts.intervals(bad, [Interval(bad, 0.5, 0.4, 0.6, "c-m0")], x_label=bad, guide=(0.5, bad)),
    ):
        assert "<b" not in figure and '&"' not in figure


def test_histogram_counts_every_value_once() -> None:
    rng = np.random.default_rng(0)
    for values in ([0.0, 0.05, 0.4, 0.4, 1.0], list(rng.normal(size=500)), [1.0] * 7):
        svg = charts.histogram("t", [Values("a", values, "c-m0")], x_label="x", y_label="y")
        top = [float(t) for t in re.findall(r'class="tick end">([\d.]+)<', svg)]
        full = charts.HEIGHT - charts.BOTTOM - charts.TOP
        heights = sum(numbers(svg, "height"))
        assert heights / full * max(top) == pytest.approx(len(values), rel=0.01)


def test_ticks_cover_the_range() -> None:
    for low, high in ((0, 1), (-3.7, 12.2), (0.693, 0.694), (5, 5), (0, 0), (-1e9, 1e9), (1e-12, 3e-12)):
        found = charts.ticks(low, high)
        assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 9
        labels = [charts.tick_label(v, found[1] - found[0]) for v in found]
        assert len(set(labels)) == len(labels) or high < 1e-6


def test_long_lines_keep_their_spikes() -> None:
    points = [(float(i), 50.0 if i == 7777 else 0.0) for i in range(20_000)]
    thin = charts.thin(points)
    assert len(thin) <= charts.MAX_POINTS and (7777.0, 50.0) in thin
    assert thin == sorted(thin)


def test_texts_are_cut_to_their_room() -> None:
    assert charts.fit("short", 100) == "short"
    assert charts.text_width(charts.fit("가나다라마바사" * 9, 120)) <= 126
    assert correlation([]) is None


# -- notebook ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    folder = tmp_path_factory.mktemp("tokenizer")
    _byte_tokenizer(folder, encoder=False)
    return Chat.load(folder)


def test_run_tables(run_dir: Path) -> None:
    run = open_run(str(run_dir))
    funnel = run.funnel()
    assert (funnel.asked == funnel.kept + funnel.rejected).all() and len(funnel) == len(list(run_dir.rglob("manifest.json")))
    assert run.reasons().rejects.sum() == funnel.rejected.sum()
    assert len(run.rejects("evolve")) == 11 and set(run.rejects("evolve").columns) == {"id", "reason", "raw"}
    topics = run.taxonomy()
    assert topics[~topics.path.str.contains("/")]["count"].sum() == len(run.rows("taxonomy"))
    assert len(run.history("stage1.train")) == 12 and "selector_win_rate.low" in run.evaluation()


def test_scores_are_joined_by_id(run_dir: Path) -> None:
    run = Run(run_dir)
    for stage in (1, 2, "eval"):
        table = run.scores(stage)
        assert not table[["selector", "validator"]].isna().any().any() and table.response_id.is_unique
    pair = run.pair(1, 0)
    row = run.scores(1).set_index("response_id").loc[pair.chosen_id]
    assert (row.selector, row.validator, row.tokens) == (
        pair.selector_chosen,
        pair.validator_chosen,
        len(pair.chosen_token_ids),
    )


def test_pair_tokens_are_what_the_trainer_sees(run_dir: Path, chat: Chat) -> None:
    run = Run(run_dir)
    pair = run.pair(1, 2)
    table = run.pair_tokens(1, 2, chat)
    for side in ("chosen", "rejected"):
        half = table[table.row == side]
        sampled = list(getattr(pair, f"{side}_token_ids"))
        assert list(half.token_id) == [*chat.prompt_ids(pair.prompt), *sampled], "prompt and the sampled ids, nothing else"
        assert list(half[half.trained].token_id) == sampled
        assert half[half.trained].iloc[-1].token == "<|im_end|>"
        assert list(half.position) == list(range(len(half)))
        assert (half.trained == (half.part == side)).all()


def test_pair_text_and_html(run_dir: Path, chat: Chat) -> None:
    run = Run(run_dir)
    pair = run.pair(1, 1)
    text = render_pair_text(run, 1, 1, chat)
    assert text.count("\n* ") == len(pair.chosen_token_ids) + len(pair.rejected_token_ids)
    assert pair.id in text and f"selector {pair.selector_chosen:.3f}" in text
    page = str(run.pair_html(1, 1, chat))
    assert "<|im_start|>" not in page and "&lt;|im_start|&gt;" in page
    assert page.count("background") == text.count("\n* ")
    assert visible(" a\n") == "·a⏎"


def test_korean_bytes_are_shown_as_bytes(run_dir: Path, chat: Chat) -> None:
    run = Run(run_dir)
    numbers = [i for i, lang in enumerate(run.rows("stage1.pair").lang) if lang == "ko"]
    tokens = run.pair_tokens(1, numbers[0], chat)
    prompt = tokens[(tokens.row == "chosen") & (tokens.part == "prompt")]
    raw = bytes(int(t[1:3], 16) for t in prompt.token if re.fullmatch(r"<[0-9A-F]{2}>", t))
    assert raw.decode() and all("가" <= c <= "힣" or c in "🙂" for c in raw.decode())


def test_the_newest_tokenizer_at_or_before_a_stage_is_used(tmp_path: Path, run_dir: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    with pytest.raises(UserError, match="no tokenizer"):
        Run(copy).chat(1)
    _byte_tokenizer(copy / "sft/train/model", encoder=False)
    assert Run(copy).chat(2).stop_ids == (2,)
    assert len(Run(copy).pair_tokens(2, 0)) > 20


def test_errors_name_what_is_missing(tmp_path: Path, run_dir: Path) -> None:
    with pytest.raises(UserError, match="no finished step"):
        open_run(tmp_path)
    run = open_run(run_dir)
    with pytest.raises(UserError, match=r"pairs 0 to \d+, not 999"):
        run.pair(1, 999)
    with pytest.raises(UserError, match="not run yet"):
        run.rows("stage3.pair")
    with pytest.raises(UserError, match="no finished samples"):
        run.scores(3)


def test_the_builder_is_a_whole_run(run_dir: Path) -> None:
    for path in run_dir.rglob("manifest.json"):
        one = Manifest.load(path.parent)
        assert one is not None and one.asked == one.rows + sum(one.rejects.values())
    texts = " ".join(row["content"] for pair in Run(run_dir).rows("stage1.pair").chosen for row in pair)
    assert LONG in texts and HOSTILE in texts
    assert Preference.__dataclass_fields__.keys() == set(Run(run_dir).rows("stage1.pair").columns)
