"""What the report says of the preference stages and of the evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from align.core.artifact import Manifest
from align.core.errors import UserError
from align.report.artifacts import ROLES, alternate, at, columns_of, num_stages, record, scan, some_of_each, step_names
from reward.selection import OUTCOMES

# What a stage's training is described by, whichever of these its loss has.
SHOWN_OPTIONS = (
    "beta", "tau", "gamma_absolute", "gamma_over_beta", "odds_ratio_weight", "label_smoothing", "robust", "nll_weight",
    "learning_rate", "epochs", "batch_size",
)  # fmt: skip
SAMPLE_PAIRS = 4


@dataclass(frozen=True)
class Point:
    """A sampled response under both reward models."""

    model: str
    selector: float
    validator: float
    tokens: int


@dataclass(frozen=True)
class Prompts:
    """The prompts that a stage sampled, each once: how many, the pairs asked of them all, how many gave one or more, and
    Kendall's tau of each where it is defined."""

    asked: int = 0
    pairs_asked: int = 0
    paired: int = 0
    paired_tau: list[float] = field(default_factory=list)
    other_tau: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """One preference stage, as far as it has run."""

    number: int
    name: str
    loss: str
    options: dict[str, Any]
    samples: list[tuple[str, Manifest]]
    points: list[Point]
    correlation: float | None
    pair: Manifest | None
    pair_folder: Path
    funnel: list[tuple[str, int]]
    columns: dict[str, list[Any]]
    prompts: Prompts
    measure: str
    threshold: float | None
    pairs: list[dict[str, Any]]
    audit: dict[str, Any]
    findings: list[dict[str, Any]]
    audited: bool
    train: Manifest | None
    missing: list[str]

    @property
    def longer(self) -> tuple[float | None, str]:
        """How often the chosen answer is the longer one, and of which pairs: as the audit counts, where there is one."""
        length = at(self.audit, "pairs", "length")
        if length:
            return length["chosen_longer"], f"{length['unequal']:,} pairs of unequal length"
        return (at(self.pair.metrics, "chosen_longer_share"), f"{self.pair.rows:,} pairs") if self.pair else (None, "")

    @property
    def correlation_within(self) -> float | None:
        """Pearson's r of the two reward models within prompts, as the audit has it."""
        found = at(self.audit, "responses", "between", "all", "pearson")
        return None if found is None else float(found)

    @property
    def pairs_trained(self) -> int:
        """Pairs that are not held out of training."""
        if self.pair is None:
            return 0
        splits = at(self.pair.metrics, "by_split")
        return self.pair.rows if splits is None else int(splits.get("train", 0))


@dataclass(frozen=True)
class Evaluation:
    """The manifest of the evaluation, split into its tables; an earlier version wrote neither `wins` nor `meter`."""

    table: list[dict[str, Any]]
    kl: list[dict[str, Any]]
    prompts: int
    baseline: str
    wins: list[dict[str, Any]] = field(default_factory=list)
    meter: dict[str, Any] = field(default_factory=dict)

    @property
    def has_gold(self) -> bool:
        """Whether a gold reward model scored the answers."""
        return any(entry.get("gold") for entry in self.table)


def gather_stages(run_dir: Path, recipe: Mapping[str, Any]) -> list[Stage]:
    """All stages that the recipe or the run folder knows."""
    return [_stage(run_dir, recipe, k) for k in range(1, num_stages(run_dir, recipe) + 1)]


def _stage(run_dir: Path, recipe: Mapping[str, Any], k: int) -> Stage:
    spec = at(recipe, "stages", k - 1) or {}
    names = [n for n in step_names(run_dir, recipe) if n.startswith(f"stage{k}.")]
    steps = {n: record(run_dir, n) for n in names}
    samples = [(n.split(".", 2)[2], s.manifest) for n, s in steps.items() if ".sample." in n and s.manifest]
    points = response_points(run_dir, k) if all(steps[f"stage{k}.score.{r}"].manifest for r in ROLES) else []
    pair = steps[f"stage{k}.pair"]
    prompts = _prompts(pair.folder) if pair.manifest else Prompts()
    audited = _audit(pair.folder) if pair.manifest else {}
    train = dict(at(spec, "train") or {})
    return Stage(
        number=k,
        name=str(spec.get("name") or f"stage {k}"),
        loss=str(train.get("loss") or ""),
        options={key: train[key] for key in SHOWN_OPTIONS if train.get(key)},  # 0, false and null do nothing
        samples=samples,
        points=points,
        correlation=correlation(points),
        pair=pair.manifest,
        pair_folder=pair.folder,
        funnel=pair_funnel(pair.manifest, prompts.asked) if pair.manifest else [],
        columns=_pair_columns(pair.folder) if pair.manifest else {},
        prompts=prompts,
        measure=str(at(spec, "pair", "agreement") or "agreement"),
        threshold=at(spec, "pair", "threshold"),
        pairs=_sample_pairs(pair.folder) if pair.manifest else [],
        audit=audited.get("audit", {}),
        findings=audited.get("findings", []),
        audited=bool(pair.manifest) and (pair.folder / "audit.html").is_file(),
        train=steps[f"stage{k}.train"].manifest,
        missing=[n for n, s in steps.items() if not s.manifest],
    )


def response_points(run_dir: Path, stage: int | str) -> list[Point]:
    """Every response of a stage (or of `eval`) that both reward models scored, joined by its id."""
    part = run_dir / (f"stage{stage}" if isinstance(stage, int) else stage)
    scores: list[dict[str, float]] = []
    for role in ROLES:
        found = columns_of(part / "score" / role, ("response_id", "score"))
        scores.append(dict(zip(found["response_id"], found["score"], strict=True)))
    points = []
    for folder in sorted(p for p in (part / "sample").glob("*") if p.is_dir()):
        for row in scan(folder, ("id", "model", "num_tokens")):
            if all(row["id"] in found for found in scores):
                points.append(Point(row["model"], scores[0][row["id"]], scores[1][row["id"]], row["num_tokens"]))
    return points


def correlation(points: Sequence[Point]) -> float | None:
    """Pearson's r of the two reward models; None for fewer than three responses or equal scores."""
    finite = [(p.selector, p.validator) for p in points if math.isfinite(p.selector) and math.isfinite(p.validator)]
    if len(finite) < 3:
        return None
    values = np.asarray(finite)
    if not (values.std(axis=0) > 0).all():
        return None
    return float(np.corrcoef(values.T)[0, 1])


def funnel_title(asked: int, prompts: int, pairs_asked: int) -> str:
    """Of the bars from what was asked for down to the pairs; several pairs of a prompt are no prompts.

    Args:
        asked: for all pairs.
        prompts: that were sampled.
        pairs_asked: of these prompts; the others are collected.
    """
    if asked == prompts:
        return "From prompts to pairs"
    each = (
        f" ({asked // prompts} of each of {prompts:,} prompts)"
        if prompts and asked == pairs_asked and asked % prompts == 0
        else ""
    )
    return f"From pairs asked for{each} to pairs"


def pair_funnel(manifest: Manifest, prompts: int) -> list[tuple[str, int]]:
    """(label, pairs left) from all that were asked for down to the pairs, in the order of the rules."""
    left = manifest.asked
    lines = [("prompts" if left == prompts else "pairs asked for", left)]
    order = {reason: i for i, reason in enumerate(OUTCOMES)}
    for reason, number in sorted(manifest.rejects.items(), key=lambda item: (order.get(item[0], len(order)), item[0])):
        left -= number
        lines.append((reason, left))
    return lines


def _pair_columns(folder: Path) -> dict[str, list[Any]]:
    """Per kept pair: agreement, Kendall's tau, both margins."""
    scores = [f"{role}_{side}" for role in ROLES for side in ("chosen", "rejected")]
    found = columns_of(folder, ("agreement", "kendall_tau", *scores))
    margins = {
        f"{role}_margin": [a - b for a, b in zip(found[f"{role}_chosen"], found[f"{role}_rejected"], strict=True)]
        for role in ROLES
    }
    return {"agreement": found["agreement"], "kendall_tau": found["kendall_tau"], **margins}


def _prompts(folder: Path) -> Prompts:
    """The sampled prompts of a stage, each once however many pairs were asked of it."""
    tau: dict[str, float] = {}
    paired, pairs_asked = set(), 0
    for row in scan(folder, ("prompt_id", "outcome", "source", "kendall"), "agreement/*.parquet"):
        if row["source"] != "sampled":
            continue
        pairs_asked += 1
        if math.isnan(tau.get(row["prompt_id"], math.nan)):  # of all its responses, so the same for each of its pairs
            tau[row["prompt_id"]] = row["kendall"]
        if row["outcome"] == "kept":
            paired.add(row["prompt_id"])
    defined = {prompt: value for prompt, value in tau.items() if not math.isnan(value)}
    return Prompts(
        asked=len(tau),
        pairs_asked=pairs_asked,
        paired=len(paired),
        paired_tau=[value for prompt, value in defined.items() if prompt in paired],
        other_tau=[value for prompt, value in defined.items() if prompt not in paired],
    )


def _audit(folder: Path) -> dict[str, Any]:
    """`audit`, the numbers, and `findings`, worst first, of the audit of a stage's pairs; empty where there is none."""
    try:
        found = json.loads((folder / "audit.json").read_text("utf-8"))
        return {"audit": dict(found["audit"]), "findings": list(found["findings"])}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/audit.json: cannot be read ({error}); delete its step's folder and run again") from None


def _sample_pairs(folder: Path) -> list[dict[str, Any]]:
    """A few pairs, both languages where there are two."""
    scores = [f"{role}_{side}" for role in ROLES for side in ("chosen", "rejected")]
    plain = ("id", "lang", "prompt", "chosen", "rejected", "chosen_model", "rejected_model", "agreement", "kendall_tau")
    rows = scan(folder, (*plain, *scores, "chosen_token_ids", "rejected_token_ids"))
    found = some_of_each(rows, "lang", SAMPLE_PAIRS, kinds=2)
    turns = alternate(found, "lang")[:SAMPLE_PAIRS]
    for row in turns:
        for side in ("chosen", "rejected"):
            row[f"{side}_tokens"] = len(row.pop(f"{side}_token_ids"))
    return turns


def gather_evaluation(run_dir: Path) -> Evaluation | None:
    """The evaluation, or None where it has not run."""
    manifest = record(run_dir, "eval").manifest
    if manifest is None:
        return None
    found = manifest.metrics
    return Evaluation(
        table=found.get("table", []),
        kl=found.get("kl", []),
        prompts=int(found.get("prompts", 0)),
        baseline=str(found.get("baseline", "")),
        wins=found.get("wins", []),
        meter=found.get("meter", {}),
    )
