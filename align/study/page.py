"""The page of a study: RESULTS.md, results.json and pictures, from the numbers alone and no surer than they are."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from align.core.artifact import write_json, write_text
from align.report.charts import HEIGHT, WIDTH, axes, fit, ticks
from align.report.headline import percent
from align.study.arms import PICTURES

COLORS = ("#3f74ad", "#c4761b", "#7a5bb0", "#24818f", "#a8572f", "#64793a", "#b04a7f", "#5a636e", "#b5482f")
DASHES = ("", "6 3", "2 3")
ROW = 16  # pixels of a line of the legend
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#22262b}.tick,.label{fill:#5a636e}.tick{font-size:11.5px}"
    ".mid{text-anchor:middle}.end{text-anchor:end}.grid{stroke:#e2dfd9}.axis,.mark{stroke:#5a636e}.line{fill:none;stroke-width:1.7}"
)


@dataclass(frozen=True)
class Line:
    """Points (x, y) under one name, with a band (x, low, high) where there is one."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()


def picture(title: str, lines: Sequence[Line], *, x_label: str, y_label: str) -> str:
    """A standalone SVG of lines over a shared axis; what has no point is left out, and without any it is a note."""
    shown = [line for line in lines if line.points]
    height = HEIGHT + ROW * (len(shown) + 1)
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" aria-label="{2}">'
        '<style>{3}</style><rect width="{0}" height="{1}" fill="#fff"/><text x="4" y="13">{4}</text>'
    ).format(WIDTH, height, title, Markup(STYLE), fit(title, WIDTH - 8))
    if not shown:
        return f'{head}<text x="4" y="40">no values</text></svg>\n'
    xs = [x for line in shown for x, _ in line.points]
    ys = [y for line in shown for y in [*(p[1] for p in line.points), *(v for b in line.band for v in b[1:])]]
    parts, x, y = axes(ticks(min(0.0, *xs), max(xs)), ticks(min(0.0, *ys), max(0.0, *ys)), x_label, y_label)
    for k, line in enumerate(shown):
        color, dash = COLORS[k % len(COLORS)], DASHES[k // len(COLORS) % len(DASHES)]
        if line.band:
            edge = [(a, low) for a, low, _ in line.band] + [(a, high) for a, _, high in reversed(line.band)]
            area = " ".join(f"{x(a)},{y(b)}" for a, b in edge)
            parts.append(Markup('<polygon points="{}" fill="{}" fill-opacity=".15"/>').format(area, color))
        path = " ".join(f"{x(a)},{y(b)}" for a, b in line.points)
        stroke = Markup('<polyline class="line" points="{}" stroke="{}" stroke-dasharray="{}"/>')
        parts.append(stroke.format(path, color, dash))
        parts += [Markup('<circle cx="{}" cy="{}" r="2.6" fill="{}"/>').format(x(a), y(b), color) for a, b in line.points]
        top = HEIGHT + ROW * k + 8
        key = Markup('<line x1="8" x2="30" y1="{0}" y2="{0}" stroke="{1}" stroke-width="2" stroke-dasharray="{2}"/>')
        parts.append(key.format(top - 4, color, dash))
        parts.append(Markup('<text x="36" y="{}">{}</text>').format(top, fit(line.name, WIDTH - 44)))
    return f'{head}<g transform="translate(0 {ROW})">{Markup("").join(parts)}</g></svg>\n'


def curve_line(name: str, curve: Sequence[Mapping[str, Any]], reward: str, *, band: bool) -> Line:
    """A reward's gain over the distances of a curve; checkpoints without either are left out."""
    known = [(c["distance"], c[reward]) for c in curve if c["distance"] is not None and c[reward]["mean"] is not None]
    known.sort(key=lambda point: point[0])
    edges = [(d, e["low"], e["high"]) for d, e in known if e["low"] is not None and e["high"] is not None]
    return Line(name, [(d, e["mean"]) for d, e in known], edges if band and len(edges) > 1 else ())


# Markdown.
def escape(text: str) -> str:
    """Text that Markdown shows as it is, also inside a table."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def number(value: float | None, digits: int = 3) -> str:
    """A number with a true minus sign; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def interval(estimate: Mapping[str, Any], digits: int = 3) -> str:
    """Mean with its interval."""
    if estimate["mean"] is None or estimate["low"] is None:
        return number(estimate["mean"], digits)
    return f"{number(estimate['mean'], digits)} ({number(estimate['low'], digits)} to {number(estimate['high'], digits)})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _size(one: Mapping[str, Any]) -> str:
    return f"{_count(one['seeds'], 'seed')}, {_count(one['prompts'], 'prompt')} in all"


def _sentence(one: Mapping[str, Any]) -> str:
    unit = "sd of proxy less gold gain" if one["measure"] == "gap" else "of gold's unit"
    if one["mean"] is None:
        lacking = ", ".join(one["missing"]) or "a seed that both arms have"
        return f"{escape(one['claim'])}: not decided, without {escape(lacking)}"
    return f"{escape(one['claim'])}: **{one['verdict']}**, {interval(one)} {unit}, {_size(one)}"


def _at_equal_distance(one: Mapping[str, Any]) -> str:
    """What is left of a difference of final gold once both are read at one distance."""
    at, (first, second) = one["equal_distance"], one["final_distances"]
    if one["measure"] != "final_gold" or at["gold"]["mean"] is None or first is None or second is None:
        return ""
    return (
        f" The last models are {number(first, 2)} and {number(second, 2)} from M0, and who goes further may gain by that "
        f"alone: at the largest distance that both reached ({number(at['distance'], 2)}) the difference is "
        f"{interval(at['gold'])}."
    )


def _p(value: float | None) -> str:
    if value is None or value >= 0.01:
        return f"p {number(value, 2)}"
    return "p < 0.001" if value < 0.001 else f"p {number(value)}"


def _falls(arms: Mapping[str, Any]) -> str:
    """Whether any arm over-optimized: gold below its peak at the end, beyond chance."""
    known = {name: arm["fall"] for name, arm in arms.items() if arm and arm["fall"]["p"] is not None}
    if not known:
        return "Over-optimization: no arm to see it in yet."
    level = f"p below 0.05/{len(known)}, for {_count(len(known), 'arm')} that ran"
    beyond = {name: fall for name, fall in known.items() if fall["p"] < 0.05 / len(known)}
    if beyond:
        named = ", ".join(f"{escape(name)} ({number(fall['mean'])}, {_p(fall['p'])})" for name, fall in beyond.items())
        return f"Over-optimization: gold ends below its peak beyond chance ({level}) in {named}; in no other of these arms."
    least = min(fall["p"] for fall in known.values())
    return (
        f"Over-optimization: in none of the arms does gold end below its peak beyond chance ({level}; least {_p(least)}), "
        "so nothing here shows whether stages mitigate it."
    )


def _group(comparisons: Sequence[Mapping[str, Any]], verdict: str) -> str:
    found = [escape(one["claim"]) for one in comparisons if one["verdict"] == verdict]
    return f"{verdict.capitalize()} among the other claims ({len(found)}): " + ("; ".join(found) or "none") + "."


def summary(found: Mapping[str, Any]) -> list[str]:
    """The primary claim, the others by verdict, whether there was over-optimization, and what all of it rests on."""
    first, *others = found["comparisons"]
    distances = [arm["distance"] for arm in found["arms"].values() if arm and arm["distance"] is not None]
    reached = f"final distances {min(distances):.1f} to {max(distances):.1f} nats^0.5" if distances else "no distance yet"
    known: dict[str, list[tuple[int, int]]] = {}
    for of in found["reward_right"].values():
        for role, counts in of.items():
            known.setdefault(role, []).append(counts)
    seeds = len(found["reward_right"])

    def of_role(role: str, counts: Sequence[tuple[int, int]]) -> str:
        right, pairs = (sum(part) for part in zip(*counts, strict=True))
        where = "" if len(counts) == seeds else f", with {len(counts)} of {seeds} seeds: ties hide it in the others"
        return f"{role} {right} of {pairs} ({percent(right / pairs)}{where})"

    heard = ", ".join(of_role(role, counts) for role, counts in known.items())
    return [
        f"Primary claim. {_sentence(first)}.{_at_equal_distance(first)}",
        *(_group(others, verdict) for verdict in ("supported", "contradicted", "not decided")),
        _falls(found["arms"]),
        f"This rests on {found['finished']} of {found['asked']} runs; {reached}; held-out pairs that the reward models "
        f"order as gold does: {heard or 'not known yet'}. Only the first claim is primary; the others are not corrected for "
        "their number.",
    ]  # fmt: skip


def _arm_rows(arms: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, arm in arms.items():
        if arm is None:
            rows.append([escape(name), "0", *["–"] * (len(ARM_HEAD) - 2)])
            continue
        start, end = arm["answers"]
        pairs = "; ".join("+".join(map(str, of_stages)) for of_stages in arm["pairs"])
        fall = arm["fall"]
        rows.append([
            escape(name), str(len(arm["seeds"])), pairs, number(arm["steps"], 0), number(arm["tokens"], 0),
            number(arm["distance"], 2), f"{number(start['num_tokens'], 0)} to {number(end['num_tokens'], 0)}",
            f"{percent(start['finished'])} to {percent(end['finished'])}", interval(arm["final_proxy"], 2),
            interval(arm["final_gold"]), f"{number(fall['mean'])}; {number(fall['by_chance'])}; {_p(fall['p'])}",
        ])  # fmt: skip
    return rows


def _comparison_rows(comparisons: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for one in comparisons:
        at = one["equal_distance"]
        measure = "final gold gain" if one["measure"] == "final_gold" else "gap at equal d"
        of_seeds = ", ".join(f"{seed}: {number(value)}" for seed, value in one["of_seeds"].items()) or "–"
        seeds_say = "–" if one["t_low"] is None else f"{number(one['t_low'])} to {number(one['t_high'])}"
        rows.append([
            escape(one["claim"]), measure, interval(one), of_seeds, seeds_say,
            "; ".join(number(d, 2) for d in one["final_distances"]), number(at["distance"], 2), interval(at["gold"]),
            interval(at["proxy"], 2), one["verdict"],
        ])  # fmt: skip
    return rows


ARM_HEAD = (
    "arm", "seeds", "pairs by stage, of each seed", "steps", "tokens trained on", "final d",
    "tokens of an answer, M0 to last", "answers that end, M0 to last", "final proxy gain, sd", "final gold gain",
    "fall of gold from its peak; by chance; p",
)  # fmt: skip
CLAIM_HEAD = (
    "claim", "measure", "difference", "by seed", "t interval of the seeds", "final d of both", "equal d",
    "gold gain there, difference", "proxy gain there, difference, sd", "verdict",
)  # fmt: skip
READING = """M0 is the model after SFT, from which every arm begins. The proxy is the selector, the reward model that
picks the pairs; the validator is the second one, which must agree; gold is the exact reward. Gold took
no part in choosing or filtering preference pairs, but the proxies learned from noisy labels of it, and
it counts what its checks count, nothing else. A fresh stage samples anew from the model before it.

Gains are over M0 on the same held-out prompts, means over seeds with 95 % intervals of a hierarchical bootstrap
(seeds, then prompts). d = sqrt(KL to M0), in square roots of nats, estimated on each model's own answers at
temperature 1. The proxy is in standard deviations (sd) of M0's scores over prompts; gold in its own unit (of rules:
the share of demands that an answer keeps), but in sd in the pictures, whose curves join the means over seeds of the
first, second, ... checkpoint. A gap is proxy less gold gain, both in sd. Equal d is the largest that both arms of a
seed reached; gains there are interpolated between checkpoints. A gap can be smaller because gold is higher or because
the proxy is lower: both differences are shown.

The last checkpoint lies below the best of several noisy ones also where nothing happens: beside each fall stands what
is seen when the checkpoints are exchanged at random within prompts, and how often that falls as far (p). Supported:
the bootstrap's and the t interval over the seeds lie wholly on the claim's side of 0; contradicted: on the other;
else not decided."""


def page(found: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """RESULTS.md.

    Args:
        found: as `align.study.run.results` gives it, with `made_by`.
        pictures: file name -> what it shows.
    """
    made = found["made_by"]
    lines = [f"# Results of {escape(found['study'])}", ""]
    lines += [f"{k}. {line}" for k, line in enumerate(summary(found), 1)]
    if found["missing"]:
        lines += ["", f"**Partial results: {len(found['missing'])} of {found['asked']} runs are missing.**", ""]
        lines += [f"- {escape(m['arm'])}, seed {m['seed']}: {escape(m['why'])}" for m in found["missing"]]
    if not found["same_start"]:
        lines += ["", "**The arms of a seed did not all begin from the same M0; differences between them hold that too.**"]
    lines += ["", "## Arms", "", *_table(ARM_HEAD, _arm_rows(found["arms"])), "", READING, "", "## Claims", ""]
    lines += _table(CLAIM_HEAD, _comparison_rows(found["comparisons"]))
    lines += ["", "## Pictures", "", *(f"![{escape(about)}]({name})" for name, about in pictures.items())]
    lines += ["", "## How it was made", "", f"    {made['command']}", ""]
    lines += [f"- {key}: {escape(str(made[key]))}" for key in ("commit", "device", "date")]
    lines += [f"- this page was written anew by commit {escape(str(made['page_by']))}"] if "page_by" in made else []
    lines.append("- versions: " + escape(", ".join(f"{name} {version}" for name, version in made["versions"].items())))
    lines.append(f"- share of labels turned round: {found['label_noise']:g}; seconds of the last call: {made['seconds']}")
    return "\n".join(lines) + "\n"


def write_page(out: Path, found: Mapping[str, Any]) -> None:
    """Write results.json, the pictures and RESULTS.md into a folder, RESULTS.md last."""
    x, y = {"x_label": "d = sqrt(KL to M0), nats^0.5"}, {"y_label": "gain over M0, sd of M0"}
    arms = {name: arm for name, arm in found["arms"].items() if arm}
    drawn = {
        f"{reward}.svg": (
            f"{reward.capitalize()} gain of every arm",
            [curve_line(name, arm["curve"], reward, band=False) for name, arm in arms.items()],
        )
        for reward in PICTURES
    }
    for name, arm in arms.items():
        both = [curve_line(reward, arm["curve"], reward, band=True) for reward in PICTURES]
        drawn[f"{name}.svg"] = (f"{name}, mean of {_count(len(arm['seeds']), 'seed')}", both)
    write_json(out / "results.json", found)
    for file, (title, lines) in drawn.items():
        write_text(out / "pictures" / file, picture(title, lines, **x, **y))
    write_text(out / "RESULTS.md", page(found, {f"pictures/{file}": title for file, (title, _) in drawn.items()}))
