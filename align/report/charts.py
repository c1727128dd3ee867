"""Charts as inline SVG: no script, no file, colours from the page's style sheet.

Every function takes plain numbers and returns a `<figure>` as Markup; all labels are escaped. Values that are not finite are
left out, and a chart without any value is a short note instead. Colours are CSS classes that set `--c` (see style.css), so
one model or role has one colour on the whole page, light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 12, 42
MAX_POINTS = 300  # of a line, beyond which only the extremes of equal stretches are drawn
MAX_DOTS = 2000


@dataclass(frozen=True)
class Series:
    """Points (x, y) under one name; `color` is a CSS class."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str


@dataclass(frozen=True)
class Values:
    """Numbers under one name; `color` is a CSS class."""

    name: str
    values: Sequence[float]
    color: str


@dataclass(frozen=True)
class Bar:
    """A bar of `value`, drawn over a paler one of `total` where there is one; `note` stands at the right."""

    label: str
    value: float
    note: str
    color: str
    total: float | None = None


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; `low` and `high` are NaN where undefined."""

    label: str
    mean: float
    low: float
    high: float
    color: str


@dataclass(frozen=True)
class Distribution:
    """Counts in equal bins, at least one of them above 0, and the mean of what was counted."""

    counts: Sequence[int]
    mean: float

    @property
    def highest(self) -> float:
        """The share in the fullest bin."""
        return max(self.counts) / sum(self.counts)


@dataclass(frozen=True)
class Scale:
    """Data to pixels, linear."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start), 2)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) that cover [low, high]; about `count` of them."""
    if not high > low:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def tick_label(value: float, step: float) -> str:
    """A tick's number with as many decimals as its distance to the next one needs."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    decimals = next((d for d in range(0, 7) if abs(round(step, d) - step) < step * 1e-6), 6)
    return f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _finite(values: Iterable[float]) -> list[float]:
    return [float(v) for v in values if v is not None and math.isfinite(v)]


def _finite_points(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if len(_finite((x, y))) == 2]


def text_width(text: str) -> float:
    """About how wide a text is at 12 px; Korean and the like are square."""
    return sum(12.0 if ord(char) > 0x1100 else 6.6 for char in text)


def fit(text: str, width: float) -> str:
    """The text, or its beginning with an ellipsis, so that it stays within `width`."""
    if text_width(text) <= width:
        return text
    while text and text_width(text) > width - 9:
        text = text[:-1]
    return f"{text}…"


def _text(x: float, y: float, text: str, css: str) -> Markup:
    return Markup('<text x="{}" y="{}" class="{}">{}</text>').format(round(x, 1), round(y, 1), css, text)


def figure(
    title: str, body: Sequence[Markup], height: float, legend: Sequence[tuple[str, str]] = (), note: str = "",
    width: float = WIDTH,
) -> Markup:  # fmt: skip
    keys = [Markup('<span class="key {}">{}</span>').format(color, name) for name, color in legend]
    if note:
        keys.append(Markup('<span class="note">{}</span>').format(note))
    foot = Markup('<div class="legend">{}</div>').format(Markup("").join(keys)) if keys else Markup("")
    return Markup(
        '<figure class="chart"><figcaption>{0}</figcaption>'
        '<svg viewBox="0 0 {1} {2}" role="img" aria-label="{0}">{3}</svg>{4}</figure>'
    ).format(title, round(width), round(height), Markup("").join(body), foot)


def nothing(title: str) -> Markup:
    return Markup('<figure class="chart"><figcaption>{}</figcaption><p class="none">no values</p></figure>').format(title)


def axes(
    x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str
) -> tuple[list[Markup], Scale, Scale]:
    """Grid, tick labels and axis labels, and the two scales."""
    x = Scale(x_ticks[0], x_ticks[-1], LEFT, WIDTH - RIGHT)
    y = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = []
    for value in y_ticks:
        parts.append(
            Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(LEFT, WIDTH - RIGHT, y(value))
        )
        parts.append(_text(LEFT - 6, y(value) + 4, tick_label(value, y_ticks[1] - y_ticks[0]), "tick end"))
    for value in x_ticks:
        parts.append(
            Markup('<line class="mark" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
                x(value), HEIGHT - BOTTOM, HEIGHT - BOTTOM + 4
            )
        )
        parts.append(_text(x(value), HEIGHT - BOTTOM + 16, tick_label(value, x_ticks[1] - x_ticks[0]), "tick mid"))
    parts.append(
        Markup('<line class="axis" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM)
    )
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "label mid"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        Markup('<text transform="translate(12 {}) rotate(-90)" class="label mid">{}</text>').format(
            round(middle, 1), y_label
        )
    )
    return parts, x, y


def _guide_y(y: Scale, value: float, name: str) -> list[Markup]:
    line = Markup('<line class="guide" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(LEFT, WIDTH - RIGHT, y(value))
    return [line, _text(WIDTH - RIGHT - 2, y(value) - 5, name, "tick end halo")]


def guide_x(x: Scale, value: float, name: str) -> list[Markup]:
    line = Markup('<line class="guide" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(x(value), TOP, HEIGHT - BOTTOM)
    left = x(value) > WIDTH * 0.6
    return [line, _text(x(value) + (-5 if left else 5), TOP + 9, name, "tick halo" + (" end" if left else ""))]


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A long line by the lowest and highest point of equal stretches, so that no spike is lost."""
    if len(points) <= MAX_POINTS:
        return list(points)
    size = math.ceil(2 * len(points) / MAX_POINTS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    guide: tuple[float, str] | None = None,
    note: str = "",
) -> Markup:
    """Lines over a shared axis; `guide` is a horizontal line with its name. A line of one point is a dot."""
    lines = [(s, thin(_finite_points(s.points))) for s in series]
    lines = [(s, points) for s, points in lines if points]
    if not lines:
        return nothing(title)
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points] + ([guide[0]] if guide else [])
    parts, x, y = axes(ticks(min(xs), max(xs)), ticks(min(ys), max(ys)), x_label, y_label)
    for s, points in lines:
        place = [(x(a), y(b)) for a, b in points]
        if len(place) == 1:
            parts.append(Markup('<circle class="dot {}" cx="{}" cy="{}" r="3.5"/>').format(s.color, *place[0]))
        else:
            path = " ".join(f"{a},{b}" for a, b in place)
            parts.append(Markup('<polyline class="line {}" points="{}"/>').format(s.color, path))
    if guide:
        parts += _guide_y(y, *guide)
    return figure(title, parts, HEIGHT, [(s.name, s.color) for s, _ in lines] if len(lines) > 1 else [], note)


def scatter(title: str, series: Sequence[Series], *, x_label: str, y_label: str, note: str = "") -> Markup:
    """Dots, at most MAX_DOTS evenly taken from the points in their order."""
    groups = [(s, _finite_points(s.points)) for s in series]
    groups = [(s, points) for s, points in groups if points]
    if not groups:
        return nothing(title)
    total = sum(len(points) for _, points in groups)
    stride = math.ceil(total / MAX_DOTS)
    xs = [x for _, points in groups for x, _ in points]
    ys = [y for _, points in groups for _, y in points]
    parts, x, y = axes(ticks(min(xs), max(xs)), ticks(min(ys), max(ys)), x_label, y_label)
    for s, points in groups:
        dots = [Markup('<circle cx="{}" cy="{}" r="2.6"/>').format(x(a), y(b)) for a, b in points[::stride]]
        parts.append(Markup('<g class="dots {}">{}</g>').format(s.color, Markup("").join(dots)))
    shown = f"every {stride}th of {total} points. " if stride > 1 else ""
    return figure(title, parts, HEIGHT, [(s.name, s.color) for s, _ in groups], shown + note)


def count_ticks(tallest: float) -> list[float]:
    """Whole numbers from 0 that reach over `tallest`."""
    marks = [t for t in ticks(0, tallest) if t == int(t)] if tallest > 1 else [0.0, 1.0]
    if marks[-1] < tallest:  # the mark above it was no whole number
        marks.append(2 * marks[-1] - marks[-2])
    return marks


def histogram(
    title: str,
    groups: Sequence[Values],
    *,
    x_label: str,
    y_label: str,
    bins: int = 20,
    within: tuple[float, float] | None = None,
    guide: tuple[float, str] | None = None,
) -> Markup:
    """Counts in about `bins` equal bins that start at the ticks, groups stacked.

    The axis covers at least `within`; `guide` is a vertical line with its name.
    """
    data = [(g, _finite(g.values)) for g in groups]
    everything = [v for _, values in data for v in values]
    if not everything:
        return nothing(title)
    marks = [*everything, *(within or ()), *([guide[0]] if guide else [])]
    x_ticks = ticks(min(marks), max(marks))
    low, high = x_ticks[0], x_ticks[-1]
    bins = (len(x_ticks) - 1) * max(1, round(bins / (len(x_ticks) - 1)))
    width = (high - low) / bins
    counts = [[0] * bins for _ in data]
    for row, (_, values) in zip(counts, data, strict=True):
        for value in values:
            row[min(bins - 1, int((value - low) / width + 1e-9))] += 1
    tallest = max(sum(column) for column in zip(*counts, strict=True))
    y_ticks = count_ticks(tallest)
    parts, x, y = axes(x_ticks, y_ticks, x_label, y_label)
    base = [0] * bins
    for row, (group, _) in zip(counts, data, strict=True):
        for i, n in enumerate(row):
            if n:
                left, right = x(low + i * width) + 0.75, x(low + (i + 1) * width) - 0.75
                top = y(base[i] + n)
                parts.append(
                    Markup('<rect class="fill {}" x="{}" y="{}" width="{}" height="{}"/>').format(
                        group.color, left, top, round(right - left, 2), round(y(base[i]) - top, 2)
                    )
                )
            base[i] += n
    if guide:
        parts += guide_x(x, *guide)
    return figure(title, parts, HEIGHT, [(g.name, g.color) for g, values in data if values] if len(data) > 1 else [])


def distribution(title: str, given: Distribution, *, within: tuple[float, float], highest: float) -> Markup:
    """A small histogram of shares; those drawn with the same `within` and `highest` have the same axes.

    Args:
        within: where the first bin begins and the last one ends; bins of width 1 are labelled by their middle.
        highest: the largest share that any of the charts to compare shows.
    """
    width, height, left, right, base = 300, 140, 40, 290, 114
    (low, high), total = within, sum(given.counts)
    y_ticks = ticks(0, 100 * highest, 3)
    x, y = Scale(low, high, left, right), Scale(0, y_ticks[-1], base, 8)
    parts = []
    for value in y_ticks:
        parts.append(Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(left, right, y(value)))
        label = f"{tick_label(value, y_ticks[1])}\N{NO-BREAK SPACE}%"
        parts.append(_text(left - 5, y(value) + 4, label, "tick end"))
    step = (high - low) / len(given.counts)
    x_ticks = [low + i + 0.5 for i in range(len(given.counts))] if step == 1 else ticks(low, high)
    apart = 1.0 if step == 1 else x_ticks[1] - x_ticks[0]
    parts += [_text(x(v), base + 17, tick_label(v, apart), "tick mid") for v in x_ticks]
    for i, n in enumerate(given.counts):
        start, end, top = x(low + i * step) + 0.75, x(low + (i + 1) * step) - 0.75, y(100 * n / total)
        bar = Markup('<g><title>{} of {}</title><rect class="fill c-data" x="{}" y="{}" width="{}" height="{}"/></g>')
        parts.append(bar.format(n, total, round(start, 2), top, round(end - start, 2), round(base - top, 2)))
    parts.append(Markup('<line class="axis" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(left, right, base))
    parts.append(Markup('<line class="guide" x1="{0}" x2="{0}" y1="8" y2="{1}"/>').format(x(given.mean), base))
    return figure(title, parts, height, note=f"mean {given.mean:.2f}, n = {total:,}", width=width)


def bars(title: str, items: Sequence[Bar]) -> Markup:
    """Horizontal bars, each under its label, all on one scale from zero."""
    items = [item for item in items if _finite([item.value])]
    if not items:
        return nothing(title)
    most = max(max(item.value, item.total or 0.0) for item in items) or 1.0
    x, parts = Scale(0, most, 0, WIDTH), []
    for row, item in enumerate(items):
        top = row * 36
        room = WIDTH - text_width(item.note) - 12
        parts.append(Markup("<g><title>{}: {}</title>").format(item.label, item.note))
        parts += [_text(0, top + 13, fit(item.label, room), "name"), _text(WIDTH, top + 13, item.note, "number end")]
        parts += [
            Markup('<rect class="{} {}" x="0" y="{}" width="{}" height="9" rx="1.5"/>').format(
                css, item.color, top + 19, max(0.0, x(max(0.0, width)))
            )
            for css, width in (("track", item.total), ("fill", item.value))
            if width is not None
        ]
        parts.append(Markup("</g>"))
    return figure(title, parts, len(items) * 36)


def intervals(
    title: str, items: Sequence[Interval], *, x_label: str, guide: tuple[float, str], percent: bool = True
) -> Markup:
    """Means with their intervals beside a vertical guide; a mean without interval is a hollow dot."""
    items = [item for item in items if _finite([item.mean])]
    if not items:
        return nothing(title)
    factor = 100 if percent else 1
    values = [*_finite([v * factor for item in items for v in (item.mean, item.low, item.high)]), guide[0] * factor]
    x_ticks = ticks(min(values), max(values))
    left, bottom = 74, 16 + len(items) * 34
    x, parts = Scale(x_ticks[0], x_ticks[-1], left, WIDTH - RIGHT), []
    for value in x_ticks:
        parts.append(Markup('<line class="grid" x1="{0}" x2="{0}" y1="14" y2="{1}"/>').format(x(value), bottom))
        parts.append(_text(x(value), bottom + 15, tick_label(value, x_ticks[1] - x_ticks[0]), "tick mid"))
    parts.append(Markup('<line class="guide" x1="{0}" x2="{0}" y1="14" y2="{1}"/>').format(x(guide[0] * factor), bottom))
    at_right = x(guide[0] * factor) > WIDTH * 0.7
    parts.append(_text(x(guide[0] * factor) + (-3 if at_right else 3), 9, guide[1], "tick" + (" end" if at_right else "")))
    for row, item in enumerate(items):
        y = 16 + row * 34 + 20
        parts.append(_text(left - 10, y + 4, fit(item.label, left - 12), "name end"))
        known = len(_finite([item.low, item.high])) == 2
        if known:
            parts.append(
                Markup('<line class="whisker {}" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(
                    item.color, x(item.low * factor), x(item.high * factor), y=y
                )
            )
        css = "dot" if known else "hollow"
        parts.append(
            Markup('<circle class="{} {}" cx="{}" cy="{}" r="4.5"/>').format(css, item.color, x(item.mean * factor), y)
        )
        parts.append(_text(x(item.mean * factor), y - 9, f"{item.mean * factor:.{0 if percent else 2}f}", "number mid halo"))
    parts.append(_text((left + WIDTH - RIGHT) / 2, bottom + 34, x_label, "label mid"))
    return figure(title, parts, bottom + 42)
