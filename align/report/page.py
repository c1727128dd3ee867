"""`report/index.html`: one static file that shows a run from documents to win rates. No network, no script."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader, Undefined
from markupsafe import Markup

from align.core.artifact import Manifest, write_json, write_text
from align.report.artifacts import ROLES, at
from align.report.charts import Bar, Series, Values, bars, histogram, line_chart, scatter
from align.report.coverage import coverage_view
from align.report.difficulty import difficulty_view
from align.report.evaluation import evaluation_view
from align.report.gather import RunData, cut, gather, reasons_of
from align.report.glossary import LOSS_NAMES, MEASURES, WORDS, meaning
from align.report.headline import by_length, claims, percent, unfinished, watch
from align.report.stages import Stage, funnel_title

TEXT_CHARS = 900  # of a message that are shown
PALETTE = 6  # model colours in style.css, besides the base model's grey


def write_report(run_dir: Path, target: Path, *, name: str) -> None:
    """Write the report of a run, and `coverage.json` beside it; steps that have not run are said to be missing.

    Args:
        run_dir: the run's folder.
        target: the HTML file; it and `coverage.json` are each written whole or not at all.
        name: the recipe's name, the page's title.

    Raises:
        UserError: a manifest, the recipe or a file of rows in `run_dir` cannot be read.
        StepError: a step lost a row: of some topic, it did not keep or reject as many as it was asked for.
    """
    run = gather(run_dir, name)
    page = render(run)
    if run.coverage:
        write_json(target.with_name("coverage.json"), run.coverage.as_json())
    write_text(target, page)


def render(run: RunData) -> str:
    """The page of a gathered run."""
    loader = PackageLoader("align.report", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": share, "number": number, "seconds": seconds, "bytes": file_size, "cut": cut, "plain": plain,
        "by_length": by_length, "meaning": meaning, "loss_name": lambda loss: LOSS_NAMES.get(loss, loss),
    }  # fmt: skip
    colors = model_colors(run)
    style = "".join(loader.get_source(environment, name)[0] for name in ("style.css", "evaluation.css"))
    page = environment.get_template("index.html.j2").render(
        run=run,
        facts=run.facts,
        style=Markup(style),
        claims=claims(run.evaluation) if run.evaluation else [],
        watch=watch(run),
        missing=unfinished(run),
        funnel_chart=bars("Kept of asked, by step", [funnel_bar(f.name, f.asked, f.kept) for f in run.funnel]),
        coverage=coverage_view(run.coverage) if run.coverage else None,
        difficulty=difficulty_view(run.evolution) if run.evolution is not None else None,
        sft_charts=train_charts(run.sft, "nll") if run.sft else [],
        subset_chart=subset_chart(run),
        stages=[stage_view(stage, colors) for stage in run.stages],
        evaluated=evaluation_view(run.evaluation, run.stages, run.best_of_n, run.suites),
        words=WORDS | {stage.measure: MEASURES[stage.measure] for stage in run.stages if stage.measure in MEASURES},
        colors=colors,
        text_chars=TEXT_CHARS,
    )
    return page + "\n"


def number(value: Any, digits: int = 2) -> str:
    """A number for people; a dash where there is none."""
    if value is None or isinstance(value, Undefined) or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")
    return f"{value:,}" if isinstance(value, int) else str(value)


def share(value: Any) -> str:
    """A share as a percentage; a dash where the manifest has none."""
    return percent(None if isinstance(value, Undefined) else value)


def plain(value: Any) -> str:
    """An option as a recipe writes it: 5e-07, 0.1, 2."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def seconds(value: float) -> str:
    """12.3 s, 4 min 05 s, 2 h 07 min."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left:02d} min" if hours else f"{minutes} min {rest:02d} s"


def file_size(value: float) -> str:
    """Bytes in the largest unit that keeps the number above 1."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if value >= 10 or units[0] == "B" else f"{value:.1f} {units[0]}"


def model_colors(run: RunData) -> dict[str, str]:
    """One CSS class per model, the same everywhere: grey for the base model, the palette for M0, M1, ..."""
    names = [str(e["model"]) for e in run.evaluation.table] if run.evaluation else []
    names += [model for stage in run.stages for model, _ in stage.samples]
    ordered = sorted(dict.fromkeys(names), key=lambda n: (not re.fullmatch(r"M\d+", n), n))
    trained = [n for n in ordered if n != "base"]
    return {"base": "c-base"} | {n: f"c-m{i % PALETTE}" for i, n in enumerate(trained)}


def funnel_bar(name: str, asked: int, kept: int) -> Bar:
    """Kept over asked, with both numbers."""
    share = f" · {percent(kept / asked)}" if asked else ""
    return Bar(name, kept, f"{kept:,} of {asked:,}{share}", "c-data", asked)


def _line(history: Iterable[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(float(e.get("step", i)), float(e[key])) for i, e in enumerate(history, 1) if e.get(key) is not None]


def train_charts(metrics: dict[str, Any], loss: str) -> list[Markup]:
    """Loss over steps, and for pairs also margins, accuracy and log-probabilities; each step is of its own batch."""
    history = metrics.get("history", [])
    guide = (math.log(2), "ln 2") if loss == "dpo" or metrics.get("same_weights") else None
    unit = "nats per token" if loss == "nll" else "loss (nats)"
    charts = [
        line_chart(
            "Loss of each step's batch",
            [Series("loss", _line(history, "loss"), "c-loss")],
            x_label="step",
            y_label=unit,
            guide=guide,
        )
    ]
    if not any("margin" in entry for entry in history):
        return charts
    rewards = [
        Series("margin", _line(history, "margin"), "c-loss"),
        Series("reward of chosen", _line(history, "chosen_reward"), "c-good"),
        Series("reward of rejected", _line(history, "rejected_reward"), "c-bad"),
    ]
    logps = [
        Series("chosen", _line(history, "chosen_logps"), "c-good"),
        Series("rejected", _line(history, "rejected_logps"), "c-bad"),
    ]
    accuracy = [Series("accuracy", _line(history, "accuracy"), "c-loss")]
    tied = metrics.get("same_weights") and history[0].get("margin") == 0
    ties = "Step 1 is before any update, when every margin is 0: ties, which count as wrong." if tied else ""
    return [
        *charts,
        line_chart("Implicit rewards and their margin", rewards, x_label="step", y_label="reward", guide=(0.0, "")),
        line_chart(
            "Pairs ranked rightly", accuracy, x_label="step", y_label="share of pairs", guide=(0.5, "chance"), note=ties
        ),
        line_chart("Log-probability of whole answers", logps, x_label="step", y_label="nats"),
    ]


def subset_chart(run: RunData) -> list[Markup]:
    """Held-out accuracy by kind of pair, one chart per reward model."""
    charts = []
    for model in run.reward_models:
        kinds = at(model.metrics, "accuracy_by_subset") or {}
        items = [
            Bar(kind, float(value), percent(value), f"c-{model.role.split('.')[0]}", 1.0)
            for kind, value in kinds.items()
            if value is not None
        ]
        if items:
            charts.append(bars(f"{model.role.capitalize()}: accuracy by subset", items))
    return charts


def pair_charts(stage: Stage, colors: dict[str, str]) -> list[Markup]:
    """The pair funnel, agreement, margins, and the two reward models against each other."""
    charts = []
    by_model: dict[str, list[tuple[float, float]]] = {}
    for point in stage.points:
        by_model.setdefault(point.model, []).append((point.selector, point.validator))
    if by_model:
        note = "" if stage.correlation is None else f"Pearson's r {stage.correlation:.2f} over all responses"
        if stage.correlation is not None and stage.correlation_within is not None:
            note += f", {stage.correlation_within:.2f} within prompts"
        clouds = [Series(model, points, colors.get(model, "c-m0")) for model, points in by_model.items()]
        title = "Every sampled response under both reward models"
        charts.append(scatter(title, clouds, x_label="selector score", y_label="validator score", note=note))
    if stage.pair is None:
        return charts
    total = stage.pair.asked
    lines = []
    for i, (label, left) in enumerate(stage.funnel):
        lost = stage.funnel[i - 1][1] - left if i else 0
        name, note = (label, f"{left:,}") if not i else (f"without {label}", f"−{lost:,} → {left:,}")
        lines.append(Bar(name, left, note, "c-data", total))
    charts.append(bars(funnel_title(total, stage.prompts.asked, stage.prompts.pairs_asked), lines))
    guide = None if stage.threshold is None else (float(stage.threshold), f"threshold {stage.threshold:g}")
    agreement = [Values("kept pairs", stage.columns["agreement"], "c-good")]
    charts.append(
        histogram(f"Agreement of kept pairs ({stage.measure})", agreement, x_label=f"agreement ({stage.measure})",
                  y_label="pairs", within=(0.0, 1.0), guide=guide)
    )  # fmt: skip
    taus = [
        Values("with a pair", stage.prompts.paired_tau, "c-good"),
        Values("without a pair", stage.prompts.other_tau, "c-bad"),
    ]
    charts.append(
        histogram("Rank agreement of all compared prompts", taus, x_label="Kendall's tau", y_label="prompts", within=(-1, 1))
    )
    for role in ROLES:
        margins = [Values(f"{role} margin", stage.columns[f"{role}_margin"], f"c-{role}")]
        charts.append(
            histogram(f"Margin by the {role}", margins, x_label="score of chosen − score of rejected", y_label="pairs",
                      within=(0.0, 0.0))
        )  # fmt: skip
    return charts


def stage_view(stage: Stage, colors: dict[str, str]) -> dict[str, Any]:
    """A stage with its charts and the texts of its rejects, for the template."""
    return {
        "data": stage,
        "charts": pair_charts(stage, colors),
        "train_charts": train_charts(stage.train.metrics, stage.loss) if stage.train else [],
        "reasons": reasons_of(stage.pair, stage.pair_folder) if stage.pair else [],
        "step0": step0_note(stage.train, stage.loss) if stage.train else "",
    }


def step0_note(train: Manifest, loss: str) -> str:
    """What the state before the first update says."""
    before = train.metrics.get("step0") or {}
    if before.get("loss") is None:
        return ""
    text = f"Before the first update the loss was {before['loss']:.4f}"
    if loss == "dpo" or train.metrics.get("same_weights"):
        text += f" (ln 2 = {math.log(2):.4f})"
    if before.get("largest_margin") is not None:
        text += f" and the largest margin {before['largest_margin']:.4f}"
    if train.metrics.get("same_weights"):
        return f"{text}: policy and reference start from the same weights, as checked."
    return f"{text}."
