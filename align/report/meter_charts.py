"""Charts of the evaluation as inline SVG: rewards against distance, win rates, best of n, drift and heat maps.

Scales, colours and escaping are those of `align.report.charts`. Panels that are compared stand beside each other and are
narrower than the page's other charts, so their letters keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from align.report.charts import Scale, figure, fit, nothing, text_width, tick_label, ticks

WIDTH, HEIGHT = 320, 230
TOP, RIGHT, BOTTOM = 12, 14, 42
LINE = 18  # height of a line of text
CELL = 26  # height of a cell of a heat map
HEAT_WIDTH = 244  # of a heat map with few columns
SAME = 1e-9  # numbers that differ by less are one
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Mark:
    """A point with its interval in y; `low` and `high` are NaN where undefined. A ring tells the one that was `chosen`."""

    label: str
    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    chosen: bool = False


@dataclass(frozen=True)
class Curve:
    """A fitted line: points (x, y, low, high), low and high NaN where there is no band; `peak` is a point on it."""

    points: Sequence[tuple[float, float, float, float]]
    dashed: bool = False
    peak: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """Marks in their order under one name, joined; `color` is a CSS class."""

    name: str
    marks: Sequence[Mark]
    color: str


@dataclass(frozen=True)
class Rates:
    """Win rates in percent of one model: as they are, and at equal length; each (mean, low, high), NaN where undefined."""

    label: str
    raw: tuple[float, float, float]
    controlled: tuple[float, float, float]


@dataclass(frozen=True)
class Frame:
    """The area of a chart with its scales; `parts` are its grid, ticks and labels."""

    x: Scale
    y: Scale
    width: float
    height: float
    parts: list[Markup] = field(default_factory=list)

    @property
    def area(self) -> Box:
        return self.x.start, self.y.stop, self.x.stop, self.y.start


def text(x: float, y: float, what: str, css: str) -> Markup:
    return Markup('<text x="{}" y="{}" class="{}">{}</text>').format(round(x, 1), round(y, 1), css, what)


def _line(css: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    place = (round(v, 2) for v in (x1, y1, x2, y2))
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(css, *place)


def finite(values: Sequence[float]) -> list[float]:
    return [float(value) for value in values if math.isfinite(value)]


def frame(
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[float],
    x_label: str,
    y_label: str,
    *,
    height: float = HEIGHT,
    pad: float = 0.0,
) -> Frame:
    """Grid, tick labels and axis labels; `pad` pixels stay free at both ends of the x axis."""
    names = [tick_label(value, y_ticks[1] - y_ticks[0]) for value in y_ticks]
    left = max(text_width(name) for name in names) + (32 if y_label else 12)
    end, base = WIDTH - RIGHT, height - (BOTTOM if x_label else BOTTOM - LINE)
    found = Frame(
        Scale(x_ticks[0][0], x_ticks[-1][0], left + pad, end - pad), Scale(y_ticks[0], y_ticks[-1], base, TOP), WIDTH, height
    )
    for value, name in zip(y_ticks, names, strict=True):
        found.parts.append(_line("grid", left, found.y(value), end, found.y(value)))
        found.parts.append(text(left - 6, found.y(value) + 4, name, "tick end"))
    for value, name in x_ticks:
        found.parts.append(_line("mark", found.x(value), base, found.x(value), base + 4))
        found.parts.append(text(found.x(value), base + 16, name, "tick mid"))
    found.parts.append(_line("axis", left, base, end, base))
    found.parts.append(text((left + end) / 2, height - 6, x_label, "label mid"))
    if y_label:
        turned = Markup('<text transform="translate(12 {}) rotate(-90)" class="label mid">{}</text>')
        found.parts.append(turned.format(round((TOP + base) / 2, 1), y_label))
    return found


def around(values: Sequence[float], count: int = 5) -> list[float]:
    """Round ticks that cover the values; what differs by no more than rounding errors is one value."""
    low, high = min(values), max(values)
    if high - low <= SAME:
        room = abs(low) / 10 if abs(low) > 1000 * SAME else 0.5
        low, high = low - room, high + room
    return ticks(low, high, count)


def numbered(values: Sequence[float]) -> list[tuple[float, str]]:
    """The same with their labels."""
    found = around(values)
    return [(value, tick_label(value, found[1] - found[0])) for value in found]


def _drawn(marks: Sequence[Mark]) -> list[Mark]:
    return [mark for mark in marks if len(finite([mark.x, mark.y])) == 2]


def _reach(marks: Sequence[Mark]) -> list[float]:
    return finite([value for mark in marks for value in (mark.y, mark.low, mark.high)])


def _joined(at: Frame, line: Line, shift: float = 0.0) -> list[Markup]:
    """A line with its marks on it; `shift` moves it to the right by so many pixels."""
    return [*_path(at, line, shift), *_marks(at, line, shift)]


def _path(at: Frame, line: Line, shift: float = 0.0) -> list[Markup]:
    place = [(round(at.x(mark.x) + shift, 2), at.y(mark.y)) for mark in _drawn(line.marks)]
    points = " ".join(f"{x},{y}" for x, y in place)
    return [Markup('<polyline class="path {}" points="{}"/>').format(line.color, points)] if len(place) > 1 else []


def _marks(at: Frame, line: Line, shift: float = 0.0) -> list[Markup]:
    """Dots with their whiskers, rings and tooltips."""
    parts = []
    for mark in _drawn(line.marks):
        x, y = round(at.x(mark.x) + shift, 2), at.y(mark.y)
        said = f"{mark.label}: {mark.y:.3g}"
        if known := len(finite([mark.low, mark.high])) == 2:
            said += f" ({mark.low:.3g} to {mark.high:.3g})"
        parts.append(Markup("<g><title>{}</title>").format(said.replace("-", "\N{MINUS SIGN}")))
        if known:
            parts.append(_line(f"whisker thin {line.color}", x, at.y(mark.low), x, at.y(mark.high)))
        if mark.chosen:
            parts.append(Markup('<circle class="ring" cx="{}" cy="{}" r="8"/>').format(x, y))
        parts.append(Markup('<circle class="dot {}" cx="{}" cy="{}" r="4"/></g>').format(line.color, x, y))
    return parts


def _labels(at: Frame, marks: Sequence[Mark]) -> list[Markup]:
    """Names beside their points where they overlap nothing, the chosen and the stages' last ones first.

    A name that finds no room is left to the point's tooltip.
    """
    taken: list[Box] = []
    for mark in marks:
        x, y = at.x(mark.x), at.y(mark.y)
        taken.append((x - 5, y - 5, x + 5, y + 5))
        if len(finite([mark.low, mark.high])) == 2:
            taken.append((x - 1, at.y(mark.high), x + 1, at.y(mark.low)))
    parts = []
    for mark in sorted(marks, key=lambda mark: (not mark.chosen, "@" in mark.label)):
        spot = next((spot for spot in _spots(at, mark) if not any(_overlap(spot[2], box) for box in taken)), None)
        if spot:
            taken.append(spot[2])
            parts.append(text(spot[0], spot[1], mark.label, "name mid halo"))
    return parts


def label_width(name: str) -> float:
    """About how wide a name is at 12 px, rather more than less: it has capitals and digits, which are wider than most."""
    return text_width(name) + len(name) + 4 * sum(char in "@MWm" for char in name)


def _spots(at: Frame, mark: Mark) -> list[tuple[float, float, Box]]:
    """Where a name may stand: (middle, baseline, its box), those inside the area only."""
    x, y, wide = at.x(mark.x), at.y(mark.y), label_width(mark.label)
    top, bottom = (at.y(mark.high), at.y(mark.low)) if len(finite([mark.low, mark.high])) == 2 else (y, y)
    room = 13 if mark.chosen else 10
    left, right, middle = x - wide - room, x + room, x - wide / 2
    found = []
    for start, base in (
        (right, y + 4), (left, y + 4), (middle, top - 6), (middle, bottom + 14), (right, y - 8), (left, y - 8),
        (right, y + 16), (left, y + 16), (left, top - 6), (left, bottom + 14), (right, bottom + 14),
    ):  # fmt: skip
        box = (start - 1, base - 11, start + wide + 1, base + 3)
        if at.area[0] <= box[0] and box[2] <= at.width and at.area[1] - 6 <= box[1] and box[3] <= at.area[3]:
            found.append((start + wide / 2, base, box))
    return found


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _fitted(at: Frame, curve: Curve) -> list[Markup]:
    """The band, the line and the peak of a fit, kept within the axes."""

    def place(x: float, y: float) -> str:
        return f"{at.x(x)},{at.y(min(max(y, at.y.low), at.y.high))}"

    band = [point for point in curve.points if len(finite(point)) == 4]
    parts = []
    if band:
        around = [place(x, high) for x, _, _, high in band] + [place(x, low) for x, _, low, _ in reversed(band)]
        parts.append(Markup('<polygon class="band" points="{}"/>').format(" ".join(around)))
    path = " ".join(place(x, y) for x, y, _, _ in curve.points)
    parts.append(Markup('<polyline class="fit{}" points="{}"/>').format(" dashed" if curve.dashed else "", path))
    if curve.peak:
        x, y = at.x(curve.peak[0]), at.y(min(max(curve.peak[1], at.y.low), at.y.high))
        parts.append(_line("fit peak", x, at.area[3], x, y))
    return parts


def panel(
    title: str,
    marks: Sequence[Mark],
    *,
    color: str,
    x_ticks: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
    curves: Sequence[Curve] = (),
    runs: Sequence[Sequence[int]] | None = None,
) -> Markup:
    """One reward over the distance: named points in the order of training, and curves fitted to them.

    `x_ticks` are given, so that panels beside each other share their axis. `runs` are the marks that a line joins; without
    them one joins all.
    """
    shown = _drawn(marks)
    if not shown:
        return nothing(title)
    along = [y for curve in curves for _, y, _, _ in curve.points]
    reach = [0.0, *along, *_reach(shown)]
    at = frame(x_ticks, around(reach), x_label, y_label, pad=10)
    parts = [*at.parts, _line("guide", at.area[0] - 10, at.y(0), at.area[2] + 10, at.y(0))]
    for curve in curves:
        parts += _fitted(at, curve)
    for run in [range(len(marks))] if runs is None else runs:
        parts += _path(at, Line("", [marks[k] for k in run], color))
    parts += [*_labels(at, shown), *_marks(at, Line("", shown, color))]
    return figure(title, parts, at.height, width=at.width)


def by_size(title: str, lines: Sequence[Line], *, y_label: str, guide: bool) -> Markup:
    """Lines over n on a logarithmic axis, `x` of the marks being n; `guide` is a line at 0."""
    lines = [Line(line.name, [_log(mark) for mark in _drawn(line.marks)], line.color) for line in lines]
    marks = [mark for line in lines for mark in line.marks]
    if not marks:
        return nothing(title)
    sizes = sorted({round(2**mark.x) for mark in marks})
    shown = [n for n in sizes if n & (n - 1) == 0 and (n == sizes[-1] or math.log2(sizes[-1] / n) > 0.5)]
    named = [(math.log2(n), f"{n}") for n in sorted({*shown, sizes[0], sizes[-1]})]
    if len(named) == 1:
        named = [(named[0][0] - 1, ""), *named, (named[0][0] + 1, "")]
    reach = [*_reach(marks), *([0.0] if guide else [])]
    at = frame(named, around(reach), "n, the best of so many answers", y_label, pad=10)
    parts = list(at.parts)
    if guide:
        parts.append(_line("guide", at.area[0] - 10, at.y(0), at.area[2] + 10, at.y(0)))
    for place, line in enumerate(lines):
        parts += _joined(at, line, 5.0 * (place - (len(lines) - 1) / 2))
    return figure(title, parts, at.height, [(s.name, s.color) for s in lines] if len(lines) > 1 else [], width=at.width)


def _log(mark: Mark) -> Mark:
    return Mark(mark.label, math.log2(mark.x), mark.y, mark.low, mark.high, mark.chosen)


def by_checkpoint(
    title: str, names: Sequence[str], lines: Sequence[Line], *, y_label: str, within: tuple[float, float]
) -> Markup:
    """Lines over checkpoints in their order, `x` of the marks being the place in `names`; the y axis covers `within`.

    Lines of one name, such as one for each stage, share an entry of the legend. Names that have no room are left out.
    """
    marks = [mark for line in lines for mark in _drawn(line.marks)]
    if not marks:
        return nothing(title)
    room = (WIDTH - 80) / max(1, len(names) - 1)
    every = max(1, math.ceil((max(text_width(name) for name in names) + 8) / room))
    last = len(names) - 1
    named = [(float(i), name if (last - i) % every == 0 else "") for i, name in enumerate(names)]
    if len(named) == 1:
        named = [(-1.0, ""), *named, (1.0, "")]
    reach = [*_reach(marks), *within]
    at = frame(named, around(reach, 4), "", y_label, height=148, pad=14)
    parts = list(at.parts)
    if at.y.low < 0:
        parts.append(_line("guide", at.area[0] - 14, at.y(0), at.area[2] + 14, at.y(0)))
    for line in lines:
        parts += _joined(at, line)
    keys = list(dict.fromkeys((line.name, line.color) for line in lines))
    return figure(title, parts, at.height, keys if len(keys) > 1 else [], width=at.width)


def forest(title: str, rates: Sequence[Rates], *, color: str, guide: str) -> Markup:
    """Win rates on an axis from 0 to 100 %: filled as they are, below them hollow at equal length, intervals as lines."""
    rates = [one for one in rates if finite([one.raw[0]])]
    if not rates:
        return nothing(title)
    left, right, row, bottom = 66.0, 52.0, 48, 18 + 48 * len(rates)
    x = Scale(0, 100, left, WIDTH - right)
    parts = []
    for value in (0, 25, 50, 75, 100):
        parts.append(_line("guide" if value == 50 else "grid", x(value), 14, x(value), bottom))
        parts.append(text(x(value), bottom + 15, f"{value}", "tick mid"))
    parts.append(text(x(50), 9, guide, "tick mid"))
    for number, one in enumerate(rates):
        top = 18 + number * row
        parts.append(text(0, top + 26, fit(one.label, left - 6), "name"))
        for offset, css, (mean, low, high) in ((15, "dot", one.raw), (31, "hollow", one.controlled)):
            if not finite([mean]):
                continue
            y = top + offset
            if len(finite([low, high])) == 2:
                parts.append(_line(f"whisker thin {color}", x(low), y, x(high), y))
            parts.append(Markup('<circle class="{} {}" cx="{}" cy="{}" r="4.5"/>').format(css, color, x(mean), y))
            parts.append(text(WIDTH, y + 4, f"{mean:.0f}\N{NO-BREAK SPACE}%", "number end"))
    parts.append(text((left + WIDTH - right) / 2, bottom + 34, "% of held-out prompts", "label mid"))
    return figure(title, parts, bottom + 42, width=WIDTH)


def heat_map(title: str, found: dict[str, Any]) -> Markup:
    """Retrieval in percent by depth (rows) and length (columns); the darker, the more. `!` marks cells with failed answers.

    Args:
        title: names the model.
        found: depths (D), lengths (L) and D rows of L cells {mean, graded, failed}.
    """
    depths, lengths, rows = found["depths"], found["lengths"], found["cells"]
    if not depths or not lengths:
        return nothing(title)
    left, top = 64, 4
    wide = max(26.0, min(44.0, (WIDTH - left - 4) / len(lengths)))
    base, parts, failed = top + CELL * len(depths), [], 0
    for row, (depth, cells) in enumerate(zip(depths, rows, strict=True)):
        y = top + row * CELL
        parts.append(text(left - 6, y + CELL / 2 + 4, f"{100 * depth:.0f}\N{NO-BREAK SPACE}%", "tick end"))
        for column, cell in enumerate(cells):
            failed += cell["failed"]
            parts.append(_cell(cell, left + column * wide, y, wide))
    every = max(1, math.ceil((max(text_width(_size(length)) for length in lengths) + 6) / wide))
    for column, length in enumerate(lengths):
        if column % every == 0:
            parts.append(text(left + (column + 0.5) * wide, base + 15, _size(length), "tick mid"))
    parts.append(text(left + wide * len(lengths) / 2, base + 32, "tokens of the prompt", "label mid"))
    turned = Markup('<text transform="translate(12 {}) rotate(-90)" class="label mid">depth</text>')
    parts.append(turned.format(round((top + base) / 2, 1)))
    note = f"! {failed:,} without a grade" if failed else ""
    return figure(title, parts, base + 38, note=note, width=max(HEAT_WIDTH, left + wide * len(lengths) + 4))


def _size(length: int) -> str:
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length}"


def _cell(cell: dict[str, Any], x: float, y: float, wide: float) -> Markup:
    mean, failed = cell["mean"], cell["failed"]
    graded = f"{cell['graded']} graded" + (f", {failed} without a grade" if failed else "")
    about = graded if mean is None else f"{100 * mean:.0f} % ({100 * cell['low']:.0f} to {100 * cell['high']:.0f}), {graded}"
    shade = 0.06 if mean is None else 0.1 + 0.8 * mean
    said = ("–" if mean is None else f"{100 * mean:.0f}") + ("!" if failed else "")
    return Markup(
        '<g><title>{}</title><rect class="heat" x="{}" y="{}" width="{}" height="{}" fill-opacity="{:.2f}"/>{}</g>'
    ).format(
        about, round(x + 1, 2), y + 1, round(wide - 2, 2), CELL - 2, shade,
        text(x + wide / 2, y + CELL / 2 + 4, said, "mid on" if shade > 0.55 else "mid"),
    )  # fmt: skip
