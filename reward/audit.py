"""An audit of a preference set before training: who is in it, what was lost, and what its reward models really rank by.

`audit` counts; `reward.audit_findings` says which numbers are beyond their limits. What cannot be found: a validator that is
the selector plus much noise looks like an honest weak judge, because a correlation is all that either leaves. On 400 prompts
of a real judge such a copy fails with noise of up to 0.5 standard deviations within prompts, is a warning up to 0.7, and is
taken for honest from 1.0 on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from align.core.language import OTHER_LANGUAGE, words
from align.core.rows import Preference
from reward.agreement_null import null_pmf
from reward.audit_findings import FAILING, LIMITS, Finding, findings
from reward.audit_tables import LARGEST, ROLES, Points, Rule, grouped, kept_by_chance, plain, response_numbers

__all__ = [
    "AGREEMENT_COLUMNS", "FAILING", "LIMITS", "Finding", "Pair", "audit", "findings", "histogram", "pair_of", "wilson",
]  # fmt: skip

SIDES = ("chosen", "rejected")
# What `audit` reads of the agreements, beside the column of the rule's measure.
AGREEMENT_COLUMNS = ["prompt_id", "slot", "outcome", "source", "topic_id", "lang", "num_compared", "selector_margin"]
OPENING_WORDS = 5
OPENING_CHARS = 400  # of a text, in which its first words are looked for
TOP_OPENINGS = 5
REFUSALS_READ = 5000  # pairs: a text takes a millisecond or so, and the standard error of the share is below 0.01
BINS = 24
FAR_OFF = 2.0  # times as wide as the middle 98 % of the values is a range that does not fit into its bins
AGREEMENT_EDGES = np.linspace(-1.05, 1.05, 22)  # bins whose middles are -1, -0.9, ..., 1
# Outcomes that say that the validator's order was not good enough; later ones are about other things.
DISAGREED = ("validator_tie", "validator_disagrees", "agreement_below_threshold", "too_few_for_null_quantile")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A preference pair as the audit reads it; margins are NaN where nobody scored it, and models "" where unknown.

    Lengths are in tokens, or in words for a file without tokens. `source` is "sampled", a file's name or its subset.
    """

    prompt_id: str
    chosen: str
    rejected: str
    chosen_length: int
    rejected_length: int
    lang: str
    source: str
    split: str
    chosen_model: str = ""
    rejected_model: str = ""
    selector_margin: float = math.nan
    validator_margin: float = math.nan


def pair_of(row: Preference) -> Pair:
    """What the audit reads of a row of the step pair."""
    return Pair(
        prompt_id=row.prompt_id,
        chosen=row.chosen[-1]["content"],
        rejected=row.rejected[-1]["content"],
        chosen_length=len(row.chosen_token_ids),
        rejected_length=len(row.rejected_token_ids),
        lang=row.lang,
        source=row.source,
        split=row.split,
        chosen_model=row.chosen_model,
        rejected_model=row.rejected_model,
        selector_margin=row.selector_chosen - row.selector_rejected,
        validator_margin=row.validator_chosen - row.validator_rejected,
    )


def wilson(count: int, total: int, z: float = 1.959964) -> tuple[float | None, float | None]:
    """The 95 % interval of a share (Wilson 1927), or None twice where `total` is 0."""
    if not total:
        return None, None
    share, weight = count / total, 1 + z * z / total
    middle = (share + z * z / (2 * total)) / weight
    half = z / weight * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return plain(max(0.0, middle - half)), plain(min(1.0, middle + half))


def audit(
    pairs: Iterable[Pair],
    agreements: pa.Table | None,
    points: Points | None,
    *,
    refuses: Callable[[str, str], bool],
    rule: Rule | None = None,
    on_policy: Collection[str] = (),
    length_unit: str = "tokens",
    rejects: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Everything that `findings` and the page are made from, JSON-ready; a part is None where its input is missing.

    Args:
        pairs: the kept ones, read once, so that they may come from a file as they are needed.
        agreements: AGREEMENT_COLUMNS and the rule's measure, one row for each prompt and slot, kept or not.
        points: every scored response.
        refuses: (text, language) -> whether it declines the request.
        rule: what the agreement had to satisfy; needed with `agreements`.
        on_policy: models that training starts from.
        length_unit: of the pairs' lengths.
        rejects: reasons and counts, where there are no `agreements` to tell them.

    Raises:
        ValueError: agreements without a rule.
    """
    if agreements is not None and rule is None:
        raise ValueError("agreements need the rule that they had to satisfy")
    of_pairs, used = _of_pairs(pairs, refuses, on_policy)
    groups = grouped(points) if points is not None else None
    kept, agreement, responses, num_compared = _kept_of_file(of_pairs["count"], rejects or {}), None, None, None
    langs = [""] * len(points.prompt_ids) if points is not None else []
    if agreements is not None and rule is not None:
        kept, agreement = _of_outcomes(agreements, of_pairs["count"]), _of_agreement(agreements, rule)
        if points is not None and groups is not None:
            langs, num_compared = _by_prompt(agreements, points)
            chance = kept_by_chance(groups, rule, num_compared)
            agreement["chance_share"] = chance
            agreement["chance_among_kept"] = plain(min(1.0, chance / agreement["passed_share"])) if (
                chance is not None and agreement["passed_share"]
            ) else None  # fmt: skip
    if points is not None and groups is not None:
        responses = response_numbers(points, groups, langs)
        number = np.bincount(points.model, minlength=len(points.models))
        none = {side: 0 for side in SIDES}
        sampled = {name: {"responses": int(n)} for name, n in zip(points.models, number, strict=True)}
        used = {
            name: none | used.get(name, {}) | sampled.get(name, {})
            for name in [*sampled, *sorted(used.keys() - sampled.keys())]
        }
    return {
        "length_unit": length_unit, "kept": kept, "pairs": of_pairs, "models": used, "agreement": agreement,
        "responses": responses,
    }  # fmt: skip


def histogram(values: NDArray[np.float64]) -> dict[str, Any] | None:
    """Counts in `BINS` equal bins over the whole range, which `low` and `high` tell.

    Where few values far off would leave the others no bins, the bins are over the middle 98 %, and the outermost ones hold
    what lies beyond.
    """
    values = values[np.abs(values) < LARGEST]
    if not len(values):
        return None
    least, low, high, most = (float(v) for v in np.quantile(values, [0, 0.01, 0.99, 1]))
    if most - least <= FAR_OFF * (high - low):
        low, high = least, most
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = max(0.5, 0.1 * abs(low))
        low, high = low - room, high + room
    counts, edges = np.histogram(np.clip(values, low, high), bins=BINS, range=(low, high))
    return {
        "edges": [plain(e) for e in edges], "counts": counts.tolist(), "mean": plain(values.mean()), "low": plain(least),
        "high": plain(most),
    }  # fmt: skip


def _of_pairs(
    pairs: Iterable[Pair], refuses: Callable[[str, str], bool], on_policy: Collection[str]
) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
    """Lengths, margins, openings, refusals, sources; and how often each model was chosen and rejected."""
    numbers: list[tuple[float, float, float, float]] = []
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("lang", "source", "split", "policy", *SIDES)}
    openings = {side: _Openings() for side in SIDES}
    read: list[Pair] = []  # an unbiased sample (reservoir sampling, Vitter 1985)
    draw = Random(0)
    for pair in pairs:
        numbers.append((pair.chosen_length, pair.rejected_length, pair.selector_margin, pair.validator_margin))
        for name in ("lang", "source", "split"):
            counts[name][getattr(pair, name)] += 1
        own = []
        for side, text, model in (
            ("chosen", pair.chosen, pair.chosen_model),
            ("rejected", pair.rejected, pair.rejected_model),
        ):
            openings[side].add(pair.prompt_id, text)
            counts[side][model] += bool(model)
            own.append(model in on_policy)
            counts["policy"][side] += own[-1]
        counts["policy"]["both"] += all(own)
        if len(read) < REFUSALS_READ:
            read.append(pair)
        elif (place := draw.randrange(len(numbers))) < REFUSALS_READ:
            read[place] = pair
    columns = np.asarray(numbers, np.float64).reshape(-1, 4).T
    total = columns.shape[1]
    found = {
        "count": total,
        "length": _lengths(columns[0], columns[1]),
        "margins": {role: histogram(columns[2 + i]) for i, role in enumerate(ROLES)},
        "openings": {side: openings[side].summary() for side in SIDES},
        "refusals": _refusals(read, refuses),
        "on_policy": {side: plain(counts["policy"][side] / total) for side in (*SIDES, "both")}
        if on_policy and total
        else None,
        "held_out": counts["split"]["test"],
        "by_source": dict(counts["source"].most_common()),
        "by_lang": dict(counts["lang"].most_common()),
    }
    models = sorted(name for name in counts["chosen"].keys() | counts["rejected"].keys() if name)
    return found, {name: {side: counts[side][name] for side in SIDES} for name in models}


def _refusals(read: Sequence[Pair], refuses: Callable[[str, str], bool]) -> dict[str, Any]:
    found = {side: 0 for side in SIDES}
    for pair in read:
        lang = pair.lang if pair.lang in OTHER_LANGUAGE else "en"
        for side in SIDES:
            found[side] += refuses(getattr(pair, side), lang)
    return {"read": len(read), **{side: plain(n / len(read)) if read else None for side, n in found.items()}}


def _lengths(chosen: NDArray[np.float64], rejected: NDArray[np.float64]) -> dict[str, Any]:
    """How often and by how much the chosen answer is longer; pairs of equal length are counted apart."""
    gap = chosen - rejected
    longer, unequal = int((gap > 0).sum()), int((gap != 0).sum())
    low, high = wilson(longer, unequal)
    return {
        "chosen_longer": plain(longer / unequal) if unequal else None,
        "low": low,
        "high": high,
        "unequal": unequal,
        "mean_gap": plain(gap.mean()) if len(gap) else None,
        "median_gap": plain(float(np.median(gap))) if len(gap) else None,
        "mean_chosen": plain(chosen.mean()) if len(gap) else None,
        "mean_rejected": plain(rejected.mean()) if len(gap) else None,
        "gaps": histogram(gap),
    }


class _Openings:
    """The first words of one side's answers, once for each prompt; a shorter answer has no opening."""

    def __init__(self) -> None:
        self.prompts: Counter[str] = Counter()
        self.seen: set[int] = set()

    def add(self, prompt_id: str, text: str) -> None:
        """Count an answer."""
        first = words(text[:OPENING_CHARS])[:OPENING_WORDS]
        key = hash((prompt_id, *first))
        if len(first) == OPENING_WORDS and key not in self.seen:
            self.seen.add(key)
            self.prompts[" ".join(first)] += 1

    def summary(self) -> dict[str, Any]:
        """Share that another prompt's answer begins with as well, and the most frequent ones with their shares."""
        total = self.prompts.total()
        top = [{"text": text, "share": plain(n / total)} for text, n in self.prompts.most_common(TOP_OPENINGS) if n > 1]
        shared = sum(n for n in self.prompts.values() if n > 1)
        return {"count": total, "shared": plain(shared / total) if total else None, "top": top}


def _kept_of_file(count: int, rejects: Mapping[str, int]) -> dict[str, Any]:
    asked = count + sum(rejects.values())
    return {
        "prompts": None, "prompts_kept": None, "share": plain(count / asked) if asked else None, "asked": asked,
        "dropped_later": 0, "reasons": dict(Counter(rejects).most_common()), "by_topic": {}, "by_lang": {}, "by_file": {},
    }  # fmt: skip


def _of_outcomes(agreements: pa.Table, count: int) -> dict[str, Any]:
    """Kept and rejected sampled pairs, in all, by topic and by language; those of files, which are cut to a share, apart.

    `dropped_later` is what was taken out after pairing.
    """
    sampled = agreements.filter(pc.equal(agreements["source"], "sampled"))
    outcome = sampled["outcome"]
    is_kept = pc.equal(outcome, "kept")
    prompts = pc.count_distinct(sampled["prompt_id"]).as_py()
    kept = pc.count_distinct(sampled["prompt_id"].filter(is_kept)).as_py()
    reasons = Counter({item["values"]: item["counts"] for item in pc.value_counts(outcome).to_pylist()})
    del reasons["kept"]
    files = _outcomes_by(agreements, "source")
    everything_kept = sum(entry["kept"] for entry in files.values())
    files.pop("sampled", None)
    return {
        "prompts": prompts,
        "prompts_kept": kept,
        "share": plain(kept / prompts) if prompts else None,
        "asked": sampled.num_rows,
        "dropped_later": max(0, everything_kept - count),
        "reasons": dict(reasons.most_common()),
        "by_topic": _outcomes_by(sampled, "topic_id"),
        "by_lang": _outcomes_by(sampled, "lang"),
        "by_file": files,
    }


def _outcomes_by(agreements: pa.Table, column: str) -> dict[str, dict[str, Any]]:
    """asked, kept and reasons of each value of a column."""
    found: dict[str, dict[str, Any]] = {}
    counts = agreements.group_by([column, "outcome"]).aggregate([([], "count_all")]).to_pylist()
    for row in sorted(counts, key=lambda row: (row[column], -row["count_all"])):
        entry = found.setdefault(row[column], {"asked": 0, "kept": 0, "reasons": {}})
        entry["asked"] += row["count_all"]
        if row["outcome"] == "kept":
            entry["kept"] = row["count_all"]
        else:
            entry["reasons"][row["outcome"]] = row["count_all"]
    return found


def _of_agreement(agreements: pa.Table, rule: Rule) -> dict[str, Any]:
    """The measure over all compared pairs, kept or not, beside what unrelated models without ties would show."""
    # A margin above 0 says that the selector chose a pair. Further pairs of a prompt lie closer in rank by construction.
    first = pc.and_(pc.equal(agreements["source"], "sampled"), pc.equal(agreements["slot"], 0))
    sampled = pc.and_(first, pc.greater(agreements["selector_margin"], 0))
    table = agreements.select([rule.measure, "outcome", "num_compared"]).filter(sampled)
    values = table[rule.measure].to_numpy()
    defined = np.isfinite(values)
    disagreed = pc.is_in(table["outcome"], value_set=pa.array(DISAGREED)).to_numpy()
    kept = pc.equal(table["outcome"], "kept").to_numpy()
    null = np.zeros(len(AGREEMENT_EDGES) - 1)
    sizes, prompts = np.unique(table["num_compared"].to_numpy()[defined], return_counts=True)
    for n, number in zip(sizes, prompts, strict=True):
        places, probabilities = null_pmf(rule.measure, int(n), rule.top_k)
        null += number * np.histogram(places, bins=AGREEMENT_EDGES, weights=probabilities)[0]
    passed = int((defined & ~disagreed).sum())
    compared = int(defined.sum())
    low, high = wilson(passed, compared)
    return {
        "measure": rule.measure, "threshold": rule.threshold, "null_quantile": rule.null_quantile,
        "compared": compared, "passed": passed, "passed_share": plain(passed / compared) if compared else None,
        "low": low, "high": high, "chance_share": None, "chance_among_kept": None,
        "mean": plain(values[defined].mean()) if compared else None,
        "edges": [plain(edge) for edge in AGREEMENT_EDGES],
        "kept": np.histogram(values[defined & kept], bins=AGREEMENT_EDGES)[0].tolist(),
        "dropped": np.histogram(values[defined & ~kept], bins=AGREEMENT_EDGES)[0].tolist(),
        "null": [plain(n) for n in null],
    }  # fmt: skip


def _by_prompt(agreements: pa.Table, points: Points) -> tuple[list[str], NDArray[np.int64]]:
    """Language ("" where unknown) and number of compared responses (0 where unknown) of each of the points' prompts."""
    places = pc.index_in(points.prompt_ids, value_set=agreements["prompt_id"].combine_chunks())
    langs = pc.fill_null(agreements["lang"].combine_chunks().take(places), "").to_pylist()
    return langs, pc.fill_null(agreements["num_compared"].combine_chunks().take(places), 0).to_numpy()
