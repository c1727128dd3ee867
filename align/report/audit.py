"""The page of an audit: one static file beside the report that shows what a preference set would teach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from align.core.artifact import write_text
from align.report.artifacts import ROLES, at
from align.report.charts import (
    HEIGHT,
    Bar,
    Scale,
    Series,
    axes,
    bars,
    count_ticks,
    figure,
    guide_x,
    line_chart,
    nothing,
    ticks,
)
from align.report.glossary import MEASURES, meanings
from align.report.headline import percent
from align.report.page import number, share
from align.report.stages import funnel_title
from reward.audit import Finding

AGREEMENT_TICKS = (-1.2, -0.8, -0.4, 0.0, 0.4, 0.8, 1.2)  # round ones would leave a third of the axis empty
MOST_BARS = 14  # of topics and reasons; the rest is named by its number
SIDES = (("chosen", "c-good"), ("rejected", "c-bad"))


def write_audit_page(path: Path, title: str, audited: Mapping[str, Any], found: Sequence[Finding]) -> None:
    """Write the page whole or not at all.

    Args:
        path: the HTML file.
        title: names the set.
        audited: from `reward.audit.audit`.
        found: from `reward.audit.findings`.
    """
    loader = PackageLoader("align.report", "templates")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": share, "number": number}
    page = environment.get_template("audit.html.j2").render(
        title=title,
        style=Markup(loader.get_source(environment, "style.css")[0]),
        audited=audited,
        findings=found,
        sections=_sections(audited),
        reasons=meanings(_reasons(audited["kept"])),
        measure=MEASURES.get(at(audited, "agreement", "measure"), ""),
    )
    write_text(path, page + "\n")


def _reasons(kept: Mapping[str, Any]) -> list[str]:
    """Why something was not kept, of sampled pairs and of files."""
    return [*kept["reasons"], *(reason for entry in kept["by_file"].values() for reason in entry["reasons"])]


def _sections(audited: Mapping[str, Any]) -> list[tuple[str, list[Markup]]]:
    """Heading and charts; a section without charts is left out by the template."""
    agreement, responses, pairs, kept = (audited[name] for name in ("agreement", "responses", "pairs", "kept"))
    return [
        ("What was kept", [reason_chart(kept), *group_charts(kept)]),
        ("Whose answers", model_charts(audited["models"])),
        (
            "Do the reward models agree, and is it more than chance",
            ([agreement_chart(agreement, pairs["count"] + kept["dropped_later"])] if agreement else [])
            + ([both_chart(responses["both"])] if responses else []),
        ),
        (
            "What do they go by",
            ([length_chart(responses["by_length"])] if responses else [])
            + [margin_chart(role, pairs["margins"][role]) for role in ROLES if pairs["margins"][role]]
            + [gap_chart(pairs["length"]["gaps"], audited["length_unit"])],
        ),
    ]


def binned(
    title: str,
    edges: Sequence[float],
    groups: Sequence[tuple[str, Sequence[float], str]],
    *,
    x_label: str,
    y_label: str,
    outline: tuple[str, Sequence[float]] | None = None,
    guide: tuple[float, str] | None = None,
    x_ticks: Sequence[float] | None = None,
    note: str = "",
) -> Markup:
    """Counts that are already in equal bins, groups stacked, with another distribution as a line over them.

    Args:
        title: of the figure.
        edges: K + 1 ascending.
        groups: name, K counts and CSS class of each.
        x_label: under the axis.
        y_label: beside the axis.
        outline: its name and K numbers in the groups' unit.
        guide: a vertical line and its name.
        x_ticks: marks of the axis, else round numbers that cover the edges.
        note: under the figure.
    """
    totals = [sum(column) for column in zip(*(counts for _, counts, _ in groups), strict=True)]
    tallest = max([*totals, *(outline[1] if outline else ())], default=0)
    if not tallest:
        return nothing(title)
    marks = [edges[0], edges[-1], *([guide[0]] if guide else [])]
    parts, x, y = axes(x_ticks or ticks(min(marks), max(marks)), count_ticks(tallest), x_label, y_label)
    base = [0.0] * len(totals)
    for name, counts, color in groups:
        for i, n in enumerate(counts):
            if n:
                left, right = x(edges[i]) + 0.75, x(edges[i + 1]) - 0.75
                bar = Markup('<g><title>{}: {}</title><rect class="fill {}" x="{}" y="{}" width="{}" height="{}"/></g>')
                top, foot = y(base[i] + n), y(base[i])
                parts.append(bar.format(name, n, color, left, top, round(right - left, 2), round(foot - top, 2)))
            base[i] += n
    legend = [(name, color) for name, counts, color in groups if any(counts)] if len(groups) > 1 else []
    if outline:
        steps = [f"{x(edges[i + side])},{y(n)}" for i, n in enumerate(outline[1]) for side in (0, 1)]
        parts.append(Markup('<polyline class="line c-base" points="{}"/>').format(" ".join(steps)))
        legend.append((outline[0], "c-base"))
    if guide:
        parts += guide_x(x, *guide)
    return figure(title, parts, HEIGHT, legend, note)


def beyond(counted: Mapping[str, Any]) -> str:
    """What the outermost bins hold besides their own, where the values reach beyond the edges."""
    low, high = counted.get("low"), counted.get("high")
    found = []
    if low is not None and low < counted["edges"][0]:
        found.append(f"the first bin holds all below, down to {number(low)}")
    if high is not None and high > counted["edges"][-1]:
        found.append(f"the last bin holds all above, up to {number(high)}")
    return "; ".join(found)


def heat_map(title: str, counts: Sequence[Sequence[int]], limit: float, *, x_label: str, y_label: str) -> Markup:
    """Counts over a square of [-limit, limit]; rows go along x. Ink is the square root of the share of the fullest."""
    most = max((n for row in counts for n in row), default=0)
    if not most:
        return nothing(title)
    edge = [float(v) for v in range(-math.floor(limit), math.floor(limit) + 1)]
    parts, x, y = axes(edge, edge, x_label, y_label)
    side = Scale(0, len(counts), -limit, limit)
    for i, row in enumerate(counts):
        for j, n in enumerate(row):
            if n:
                left, right, top, foot = x(side(i)), x(side(i + 1)), y(side(j + 1)), y(side(j))
                cell = Markup(
                    '<g><title>{}</title><rect class="fill c-data" fill-opacity="{}" x="{}" y="{}" width="{}" height="{}"/>'
                    "</g>"
                )
                ink = round(0.12 + 0.88 * math.sqrt(n / most), 3)
                parts.append(cell.format(n, ink, left, top, round(right - left, 2), round(foot - top, 2)))
    return figure(
        title, parts, HEIGHT, note=f"{sum(map(sum, counts)):,} responses; the outermost cells hold what lies beyond"
    )


def agreement_chart(agreement: Mapping[str, Any], kept: int) -> Markup:
    """The measure of each compared prompt's first pair, and what unrelated models would have."""
    threshold = agreement["threshold"]
    shown = sum(agreement["kept"])
    others = f" The other {kept - shown:,} of the {kept:,} kept are further pairs of a prompt, or collected ones, for which "
    others += "unrelated models would look otherwise."
    return binned(
        f"Agreement of each compared prompt's first pair ({agreement['measure']})",
        agreement["edges"],
        [("kept", agreement["kept"], "c-good"), ("dropped", agreement["dropped"], "c-bad")],
        x_label=f"agreement ({agreement['measure']})",
        y_label="pairs",
        outline=("unrelated models", agreement["null"]),
        guide=None if threshold is None else (threshold, f"threshold {threshold:g}"),
        x_ticks=AGREEMENT_TICKS,
        note=f"{shown:,} of {agreement['compared']:,} kept." + (others if kept > shown else ""),
    )


def both_chart(both: Mapping[str, Any]) -> Markup:
    """Every response under both reward models, within prompts."""
    return heat_map(
        "Both models, sd from the prompt's mean", both["counts"], both["limit"],
        x_label="selector", y_label="validator",
    )  # fmt: skip


def length_chart(by_length: Mapping[str, Any]) -> Markup:
    """Mean score by length, within prompts; a flat line is a model that does not care."""
    edges = by_length["log2_edges"]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    series = [
        Series(role, [(x, v) for x, v in zip(middles, by_length[role], strict=True) if v is not None], f"c-{role}")
        for role in ROLES
    ]
    return line_chart(
        "Score by length, within prompts", series, x_label="doublings of length over the prompt's mean",
        y_label="score, sd from the mean", guide=(0.0, ""),
    )  # fmt: skip


def margin_chart(role: str, margins: Mapping[str, Any]) -> Markup:
    """Score differences of the kept pairs."""
    return binned(
        f"Margin by the {role}", margins["edges"], [(role, margins["counts"], f"c-{role}")],
        x_label="score of chosen − score of rejected", y_label="pairs", guide=(margins["mean"], "mean"),
        note=beyond(margins),
    )  # fmt: skip


def gap_chart(gaps: Mapping[str, Any] | None, unit: str) -> Markup:
    """How much longer the chosen answers are."""
    title = "Length of chosen less length of rejected"
    if gaps is None:
        return nothing(title)
    groups = [("pairs", gaps["counts"], "c-data")]
    return binned(
        title, gaps["edges"], groups, x_label=f"{unit} more", y_label="pairs", guide=(0.0, "equal"), note=beyond(gaps)
    )


def reason_chart(kept: Mapping[str, Any]) -> Markup:
    """From everything asked for down to the pairs, the commonest reason first."""
    left = kept["asked"]
    items = [Bar("asked for", left, f"{left:,}", "c-data", left)]
    for reason, n in list(kept["reasons"].items())[:MOST_BARS]:
        left -= n
        items.append(Bar(f"without {reason}", left, f"−{n:,} → {left:,}", "c-data", kept["asked"]))
    title = funnel_title(kept["asked"], kept["prompts"], kept["asked"]) if kept["prompts"] else "From rows to pairs"
    return bars(title, items)


def group_charts(kept: Mapping[str, Any]) -> list[Markup]:
    """Kept share by language and by topic, the lowest first, where there are several."""
    charts = []
    what = "prompts" if kept["asked"] == kept["prompts"] else "pairs asked for" if kept["prompts"] else "rows"
    for kind, name in (("language", "by_lang"), ("topic", "by_topic")):
        entries = sorted(kept[name].items(), key=lambda item: item[1]["kept"] / item[1]["asked"])
        items = [
            Bar(key or "no topic", entry["kept"] / entry["asked"], _of(entry["kept"], entry["asked"]), "c-data", 1.0)
            for key, entry in entries[:MOST_BARS]
        ]
        more = f", the lowest {MOST_BARS} of {len(entries):,}" if len(entries) > MOST_BARS else ""
        if len(items) > 1:
            charts.append(bars(f"Kept of the {what} by {kind}{more}", items))
    return charts


def model_charts(models: Mapping[str, Any]) -> list[Markup]:
    """How often a model's responses were chosen and rejected."""
    charts = []
    for side, color in SIDES:
        items = [
            Bar(name, counts[side] / counts["responses"], _of(counts[side], counts["responses"]), color)
            for name, counts in models.items()
            if counts.get("responses")
        ]
        if items:
            charts.append(bars(f"{side.capitalize()}, of all responses of a model", items))
    return charts


def _of(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} · {percent(part / whole)}"
