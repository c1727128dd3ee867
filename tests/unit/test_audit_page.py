"""`align audit` on a run folder and on a preference file, and the page that it writes."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from synthetic_run import HOSTILE, build_run

from align.auditing import audit_command, audit_file, audit_stage
from align.core.errors import StepError, UserError
from align.report.audit import agreement_chart, binned, group_charts, heat_map, margin_chart, reason_chart, write_audit_page
from align.report.charts import TOP
from reward.audit import audit, findings, histogram

VOID = {"meta", "line", "circle", "rect", "polyline"}


class Page(HTMLParser):
    """Checks nesting; collects tags, attributes and text."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.stack == []

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
            self.text += data


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("run") / "synthetic", prompts=40, until="stage1") / "stage1"


def copied(stage: Path, target: Path) -> Path:
    return Path(shutil.copytree(stage.parent, target / "run")) / "stage1"


# -- a run folder ---------------------------------------------------------------------------------------------------------


def test_a_stage_is_read_whole(stage: Path, tmp_path: Path) -> None:
    said: list[str] = []
    found = audit_command(stage / "pair", said.append, json_out=tmp_path / "a.json", page=tmp_path / "a.html")
    written = json.loads((tmp_path / "a.json").read_text())
    audited = written["audit"]
    manifest = json.loads((stage / "pair" / "manifest.json").read_text())
    assert audited["pairs"]["count"] == manifest["rows"] == sum(audited["agreement"]["kept"])
    assert audited["kept"]["asked"] == manifest["asked"] and audited["kept"]["reasons"] == manifest["rejects"]
    assert sum(m["responses"] for m in audited["models"].values()) == audited["responses"]["responses"]
    assert (audited["agreement"]["measure"], audited["agreement"]["threshold"]) == ("gap", 0.4)
    assert [f.name for f in found] == [f["name"] for f in written["findings"]]
    text = "\n".join(said)
    assert f"{manifest['rows']:,}; kept" in text and "gap >= 0.4" in text and "by chance" in text
    assert text.index("WARN" if found else "No finding") < text.index("pairs  ")
    assert all(line.isprintable() for line in said if line)


def test_rule_limits_and_policy_come_from_the_recipe(stage: Path, tmp_path: Path) -> None:
    mine = copied(stage, tmp_path)
    path = mine.parent / "recipe.yaml"
    recipe: dict[str, Any] = yaml.safe_load(path.read_text())
    recipe["stages"][0] |= {
        "init": "M0",
        "pair": {"agreement": "kendall", "null_quantile": 0.9, "audit": {"limits": {"few_kept": 1.0}}},
    }
    path.write_text(yaml.safe_dump(recipe))
    audited, found = audit_stage(mine / "pair")
    assert (audited["agreement"]["measure"], audited["agreement"]["null_quantile"]) == ("kendall", 0.9)
    assert 0 < audited["agreement"]["chance_share"] < 0.12
    assert [f.name for f in found if f.severity == "fail"] == ["few_kept"]
    assert audited["pairs"]["on_policy"]["chosen"] == pytest.approx(
        audited["models"]["M0"]["chosen"] / audited["pairs"]["count"], abs=1e-5
    )
    path.unlink()
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        audit_stage(mine / "pair")


def test_a_stage_is_audited_over_the_samples_its_pairs_were_made_of(stage: Path, tmp_path: Path) -> None:
    mine = copied(stage, tmp_path)
    path = mine / "pair" / "manifest.json"
    manifest = json.loads(path.read_text())
    chance = []
    for order in (("base", "M0"), ("M0", "base")):
        path.write_text(json.dumps({**manifest, "inputs": {f"stage1.sample.{name}": "" for name in order}}))
        (mine / "sample" / "of an earlier recipe").mkdir(exist_ok=True)  # holds no finished step
        audited, _ = audit_stage(mine / "pair")
        assert list(audited["models"])[:2] == list(order)
        chance.append(audited["agreement"]["chance_share"])
    assert chance[0] != chance[1], "the order decides over which shuffles chance is counted"
    assert chance[1] == audit_stage(stage / "pair")[0]["agreement"]["chance_share"]


def test_what_is_no_pair_step_is_said(stage: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a finished step"):
        audit_stage(tmp_path)
    with pytest.raises(UserError, match="holds Score rows, not Preference"):
        audit_stage(stage / "score" / "selector")
    with pytest.raises(UserError, match=r"nothing\.jsonl"):
        audit_command(tmp_path / "nothing.jsonl", print)


def test_missing_or_damaged_files_are_said(stage: Path, tmp_path: Path) -> None:
    mine = copied(stage, tmp_path)
    shutil.rmtree(mine / "pair" / "agreement")
    with pytest.raises(UserError, match=r"no agreement/\*\.parquet; run the step anew"):
        audit_stage(mine / "pair")
    shutil.copytree(stage / "pair" / "agreement", mine / "pair" / "agreement")
    scores = next((mine / "score" / "validator").glob("data/*.parquet"))
    table = pq.read_table(scores)
    pq.write_table(table.slice(3), scores)
    with pytest.raises(StepError, match=r"3 of .* responses have no validator score"):
        audit_stage(mine / "pair")
    scores.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"cannot be read .*; run the step anew"):
        audit_stage(mine / "pair")
    shutil.rmtree(mine / "sample")
    with pytest.raises(UserError, match="no responses"):
        audit_stage(mine / "pair")


# -- a preference file ------------------------------------------------------------------------------------------------------


def preference_file(path: Path) -> Path:
    lines: list[dict[str, Any]] = [
        {
            "prompt": f"Question {i}?",
            "chosen": f"{HOSTILE} is an answer {i}",
            "rejected": f"worse {i}",
            "subset": "a\x1b[31m<i>",
        }
        for i in range(12)
    ]
    lines += [
        {"prompt": "Same?", "chosen": "one", "rejected": "one"},
        {"prompt": "질문?", "chosen": "한국어 답입니다", "rejected": "x"},
    ]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\nbroken\n", encoding="utf-8")
    return path


def test_a_preference_file_says_what_can_be_known(tmp_path: Path) -> None:
    said: list[str] = []
    path = preference_file(tmp_path / "pairs.jsonl")
    audit_command(path, said.append, page=tmp_path / "page.html")
    audited, found = audit_file(path)
    assert audited["pairs"]["count"] == 13 and audited["kept"]["reasons"] == {"chosen_equals_rejected": 1, "not_json": 1}
    assert audited["length_unit"] == "words" and audited["agreement"] is audited["responses"] is None
    assert audited["pairs"]["by_lang"] == {"en": 12, "ko": 1} and audited["pairs"]["by_source"]["file"] == 1
    assert audited["pairs"]["length"]["chosen_longer"] == 1.0
    assert {f.name for f in found} == {"duplicate_openings", "chosen_longer"} - (
        {"chosen_longer"} if (audited["pairs"]["length"]["low"] or 0) < 0.8 else set()
    )
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", "".join(said)), "a file's names must not move the cursor"
    assert "[31m<i>" in Page(tmp_path / "page.html").text


# -- the page ---------------------------------------------------------------------------------------------------------------


def test_the_page_is_one_escaped_file(stage: Path, tmp_path: Path) -> None:
    audited, _ = audit_stage(stage / "pair")
    audited["pairs"]["openings"]["chosen"]["top"] = [{"text": HOSTILE, "share": 0.5}]
    audited["kept"]["by_topic"][HOSTILE] = {"asked": 12, "kept": 0, "reasons": {HOSTILE: 12}}
    audited["kept"]["reasons"][HOSTILE] = 12
    audited["models"][HOSTILE] = {"responses": 3, "chosen": 1, "rejected": 1}
    audited["kept"]["by_file"][HOSTILE] = {"asked": 3, "kept": 0, "reasons": {"beyond_share": 3}}
    found = findings(audited)
    assert "subject_lost" in {f.name for f in found}
    write_audit_page(tmp_path / "audit.html", f"run {HOSTILE}", audited, found)
    page = Page(tmp_path / "audit.html")
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("<script>") >= 7
    for sign in ("http://", "https://", "src=", "@import", "url(", "<link", "<img"):
        assert sign not in page.source, sign
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert [p.name for p in tmp_path.iterdir()] == ["audit.html"]
    for one in found:
        assert one.sentence in page.text


def test_the_page_shows_every_picture_of_a_stage(stage: Path, tmp_path: Path) -> None:
    audited, found = audit_stage(stage / "pair")
    write_audit_page(tmp_path / "audit.html", "run", audited, found)
    page = Page(tmp_path / "audit.html")
    titles = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    assert titles == [
        "From prompts to pairs", "Kept of the prompts by language", titles[2], "Chosen, of all responses of a model",
        "Rejected, of all responses of a model", "Agreement of each compared prompt's first pair (gap)",
        "Both models, sd from the prompt's mean", "Score by length, within prompts",
        "Margin by the selector", "Margin by the validator", "Length of chosen less length of rejected",
    ]  # fmt: skip
    assert str(titles[2]).startswith("Kept of the prompts by topic, the lowest 14 of ")
    kept = audited["kept"]
    last = list(kept["reasons"].values())[-1]
    assert f"−{last:,} → {audited['pairs']['count']:,}" in page.text, "the funnel ends at the pairs"
    assert "no values" not in page.text and "nan" not in page.text.lower().split()


def test_an_audit_of_nothing_has_a_page(tmp_path: Path) -> None:
    nothing = audit([], None, None, refuses=lambda text, lang: False)
    write_audit_page(tmp_path / "audit.html", "nothing", nothing, findings(nothing))
    assert "No pair was kept" in Page(tmp_path / "audit.html").text


def test_stacked_bars_and_outline_are_drawn_to_scale() -> None:
    figure = binned(
        "t", [-1.0, 0.0, 1.0], [("kept", [0, 30], "c-good"), ("dropped", [20, 10], "c-bad")], x_label="x", y_label="y",
        outline=("null", [40.0, 0.0]),
    )  # fmt: skip
    rects = [
        (kind, *(float(v) for v in values))
        for kind, *values in re.findall(
            r'<title>(\w+): \d+</title><rect class="fill c-\w+" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" '
            r'height="([\d.]+)"',
            figure,
        )
    ]
    (kept, x, y, width, height), (_, left, _, _, low), (_, above, top, _, small) = rects
    assert kept == "kept" and height == pytest.approx(1.5 * low, abs=0.1) == pytest.approx(3 * small, abs=0.1)
    assert above == x > left + width and top + small == pytest.approx(y, abs=0.05)  # stacked, in the right bin
    line = re.search(r'points="([^"]+)"', figure)
    assert line
    heights = [float(point.split(",")[1]) for point in line.group(1).split()]
    assert heights[0] == heights[1] < heights[2] == heights[3]
    assert figure.count('class="key') == 3
    # Marks at 0, 2.5, ..., 12.5 are thinned to whole numbers, and the bar must still end below the highest one.
    tall = binned("t", [0.0, 1.0], [("a", [11], "c-good")], x_label="x", y_label="y")
    assert float(re.findall(r'rect [^>]* y="([-\d.]+)"', tall)[0]) >= TOP
    assert "no values" in binned("t", [0.0, 1.0], [("a", [0], "c-good")], x_label="x", y_label="y")


def test_values_beyond_the_edges_are_said() -> None:
    near = margin_chart("selector", histogram(np.array([0.1, 0.2, 0.3, 0.5])) or {})
    assert "bin holds" not in near
    far = margin_chart("selector", histogram(np.array([*np.linspace(0, 1, 200), 40.0, -7.0])) or {})
    assert "the first bin holds all below, down to \N{MINUS SIGN}7.00; the last bin holds all above, up to 40.00" in far


def test_further_pairs_of_a_prompt_are_pairs_and_no_prompts(stage: Path) -> None:
    audited, _ = audit_stage(stage / "pair")
    agreement, kept = audited["agreement"], {**audited["kept"], "asked": 2 * audited["kept"]["prompts"]}
    count = sum(agreement["kept"])
    assert f"{count} of {agreement['compared']} kept.</span>" in agreement_chart(agreement, count)
    assert f"The other 3 of the {count + 3} kept are further pairs of a prompt" in agreement_chart(agreement, count + 3)
    assert "From prompts to pairs" in reason_chart(audited["kept"])
    assert f"From pairs asked for (2 of each of {kept['prompts']} prompts) to pairs" in reason_chart(kept)
    assert "Kept of the pairs asked for by language" in group_charts(kept)[0]


def test_heat_map_rows_go_along_x() -> None:
    counts = [[0] * 4 for _ in range(4)]
    counts[3][0] = 5  # high selector, low validator: at the right, at the bottom
    figure = heat_map("t", counts, 3.0, x_label="x", y_label="y")
    cells = re.findall(r'<title>5</title><rect class="fill c-data" fill-opacity="1.0" x="([\d.]+)" y="([\d.]+)"', figure)
    assert len(cells) == 1 and float(cells[0][0]) > 300 and float(cells[0][1]) > 130
    assert "no values" in heat_map("t", [[0]], 3.0, x_label="x", y_label="y")
