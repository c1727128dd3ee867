"""The numbers of an audit that are of every scored response: how scores go with length and with each other within prompts.

Everything is within prompts, because a reward model's scores of different prompts need not be comparable. Columns are
NumPy arrays of all responses, sorted by prompt; nothing is done per row in Python.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from align.core.errors import StepError
from reward.agreement import average_ranks, measure
from reward.agreement_null import null_p_value

ROLES = ("selector", "validator")
BLOCK = 2_000_000  # pairs of responses compared at once: some tens of MB
SHUFFLED = 20_000  # prompts behind the share that chance keeps: a standard error of at most 0.004
SAME_SCORE = 1e-3  # of the spread within prompts: what batching in low precision may change
DETERMINED = 1e-6  # share of variance that must be left once length is removed
GRID, GRID_SDS = 24, 3.0  # cells per side of the picture of both models, and how far it reaches
LENGTH_BINS = np.arange(-3.0, 3.25, 0.5)  # log2 of length over the prompt's geometric mean
LARGEST = 1e100  # a score; the squares of larger ones are infinite
FEW = 5  # responses in a bin under which a mean says nothing

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rule:
    """When a pair's agreement is enough: the measure with a threshold or a null quantile, or with neither the sign alone."""

    measure: str = "gap"
    threshold: float | None = None
    null_quantile: float | None = None
    top_k: int = 2


@dataclass(frozen=True)
class Points:
    """R scored responses of P prompts, sorted by prompt.

    Attributes:
        prompt_ids: (P,) Arrow strings.
        models: names of the models that wrote the responses.
        prompt: (R,) places in `prompt_ids`, ascending.
        model: (R,) places in `models`.
        num_tokens: (R,) lengths.
        text: (R,) hashes; equal texts have equal ones.
        selector, validator: (R,) scores.
    """

    prompt_ids: Any
    models: Sequence[str]
    prompt: Ints
    model: Ints
    num_tokens: Floats
    text: Ints
    selector: Floats
    validator: Floats

    def take(self, rows: NDArray[Any]) -> Points:
        """The points at these rows (places or a mask), which must not change the order of prompts."""
        columns = (self.prompt, self.model, self.num_tokens, self.text, self.selector, self.validator)
        return Points(self.prompt_ids, self.models, *(column[rows] for column in columns))


def text_hashes(texts: pa.ChunkedArray) -> pa.Array:
    """An int64 for each text, equal for equal texts; of this process alone, not to be kept."""
    return pa.array([hash(text) for chunk in texts.chunks for text in chunk.to_pylist()], pa.int64())


def points_of(responses: pa.Table, selector: pa.Table, validator: pa.Table) -> Points:
    """Points from Arrow tables, joined by id.

    Args:
        responses: id, prompt_id, model, num_tokens and text_hash (see `text_hashes`).
        selector: response_id and score.
        validator: likewise.

    Raises:
        StepError: a response without a score of either model.
    """
    scores = []
    for role, table in zip(ROLES, (selector, validator), strict=True):
        places = pc.index_in(responses["id"], value_set=table["response_id"].combine_chunks())
        if places.null_count:
            raise StepError(f"audit: {places.null_count} of {len(places)} responses have no {role} score")
        scores.append(table["score"].combine_chunks().take(places.combine_chunks()).to_numpy(zero_copy_only=False))
    prompt_ids, prompt = _encoded(responses["prompt_id"])
    models, model = _encoded(responses["model"])
    numbers = [responses[name].to_numpy() for name in ("num_tokens", "text_hash")]
    points = Points(prompt_ids, models.to_pylist(), prompt, model, numbers[0].astype(np.float64), numbers[1], *scores)
    return points.take(np.argsort(prompt, kind="stable"))


def _encoded(column: pa.ChunkedArray) -> tuple[Any, Ints]:
    found = column.combine_chunks().dictionary_encode()
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks()
    return found.dictionary, found.indices.to_numpy().astype(np.int64)


@dataclass(frozen=True)
class Groups:
    """Prompts with at least two finite points: where each begins in `points`, how many it has, and its place in the ids."""

    points: Points
    starts: Ints
    sizes: Ints
    prompts: Ints

    def sums(self, values: Floats) -> Floats:
        """(G,) sums of (R,) values."""
        return np.asarray(np.add.reduceat(values, self.starts), np.float64) if len(self.starts) else np.empty(0)

    def centred(self, values: Floats) -> Floats:
        """(R,) values less their prompt's mean."""
        return values - np.repeat(self.sums(values) / self.sizes, self.sizes)

    def blocks(self, wanted: Ints | None = None) -> Iterator[tuple[Ints, Ints]]:
        """(B,) groups of one size n and the (B, n) rows of their points; `wanted` may name a group more than once."""
        groups = np.arange(len(self.starts)) if wanted is None else wanted
        for n in np.unique(self.sizes[groups]):
            same = groups[self.sizes[groups] == n]
            step = max(1, BLOCK // int(n * n))
            for start in range(0, len(same), step):
                part = same[start : start + step]
                yield part, self.starts[part][:, None] + np.arange(n)


def _is_number(points: Points) -> NDArray[np.bool_]:
    return np.asarray((np.abs(points.selector) < LARGEST) & (np.abs(points.validator) < LARGEST))  # False for NaN


def grouped(points: Points) -> Groups:
    """The prompts that can be compared; points with a NaN or infinite score of either model are left out."""
    points = points.take(_is_number(points))
    sizes = np.bincount(points.prompt, minlength=len(points.prompt_ids))
    points = points.take(sizes[points.prompt] > 1)
    prompts = np.flatnonzero(sizes > 1)
    starts = np.cumsum(sizes[prompts]) - sizes[prompts]
    return Groups(points, starts, sizes[prompts], prompts)


def response_numbers(points: Points, groups: Groups, lang: Sequence[str]) -> dict[str, Any]:
    """Length, ties, repeated texts and the relation of both models, as JSON-ready values; None where undefined.

    Args:
        points: all of them.
        groups: `grouped(points)`.
        lang: of each of the P prompts.
    """
    found = groups.points
    ranked = {name: np.empty(len(found.prompt)) for name in (*ROLES, "length")}
    columns = {"selector": found.selector, "validator": found.validator, "length": found.num_tokens}
    ties = _Ties(groups)
    for part, rows in groups.blocks():
        for name, column in columns.items():
            # Over n, so that a prompt counts by its number of responses and not by that number's cube.
            ranked[name][rows] = average_ranks(column[rows]) / rows.shape[1]
        ties.add(part, rows, columns)
    raw = {**columns, "length": np.log1p(found.num_tokens)}
    ranks, values = (_products(groups, of) for of in (ranked, raw))
    langs = np.asarray(lang, dtype=object)[groups.prompts]
    freedom = max(1, len(found.prompt) - len(groups.starts))
    spread = {role: math.sqrt(values[role, role].sum() / freedom) for role in ROLES}
    return {
        "responses": len(points.prompt),
        "not_finite": int((~_is_number(points)).sum()),
        "prompts_compared": len(groups.starts),
        "spearman_length": {role: _mean_correlation(ranks, role, "length") for role in ROLES},
        "tied": ties.shares(),
        "spread": {role: plain(spread[role]) for role in ROLES},
        "repeated_texts": _repeated_texts(found, spread),
        "between": {"all": _between(ranks, values, np.ones(len(langs), bool))}
        | {str(name): _between(ranks, values, langs == name) for name in sorted(set(langs))},
        "identical_scores": plain(float((found.selector == found.validator).mean()) if len(found.prompt) else math.nan),
        "by_length": _by_length(groups, raw, spread),
        "both": _both(groups, spread),
    }


def plain(value: float) -> float | None:
    """A float as JSON has it, to six places; None where it is not finite."""
    return round(float(value), 6) if math.isfinite(value) else None


def _products(groups: Groups, columns: dict[str, Floats]) -> dict[tuple[str, str], Floats]:
    """(G,) sums of products of each two columns, each less its prompt's mean."""
    centred = {name: groups.centred(values) for name, values in columns.items()}
    names = list(columns)
    return {(a, b): groups.sums(centred[a] * centred[b]) for i, a in enumerate(names) for b in names[i:]}


def _mean_correlation(products: dict[tuple[str, str], Floats], a: str, b: str) -> dict[str, float | int | None]:
    """Mean over prompts of a prompt's own correlation; prompts where one side does not vary have none."""
    square = products[a, a] * products[b, b]
    defined = square > 1e-18
    each = products[a, b][defined] / np.sqrt(square[defined])
    return {"mean": plain(each.mean() if len(each) else math.nan), "prompts": len(each)}


def _between(
    ranks: dict[tuple[str, str], Floats], values: dict[tuple[str, str], Floats], of: NDArray[np.bool_]
) -> dict[str, float | int | None]:
    """Correlations of both models within these prompts, pooled, and the partial ones given length."""
    found: dict[str, float | int | None] = {"prompts": int(of.sum())}
    for name, products in (("pearson", values), ("spearman", ranks)):
        total = {pair: float(sums[of].sum()) for pair, sums in products.items()}

        def correlation(a: str, b: str, total: dict[tuple[str, str], float] = total) -> float:
            square = total[a, a] * total[b, b]
            return total[a, b] / math.sqrt(square) if square > 1e-18 else math.nan

        raw = correlation("selector", "validator")
        # A length that does not vary within prompts explains nothing.
        by_length = [0.0 if total["length", "length"] == 0 else correlation(role, "length") for role in ROLES]
        left = [1 - r * r for r in by_length]
        partial = (raw - by_length[0] * by_length[1]) / math.sqrt(left[0] * left[1]) if min(left) > DETERMINED else math.nan
        found |= {name: plain(raw), f"{name}_without_length": plain(partial)}
    return found


class _Ties:
    """Pairs of different texts under one prompt that a model gives one score."""

    def __init__(self, groups: Groups) -> None:
        self.text = groups.points.text
        self.pairs = np.zeros(len(groups.starts), np.int64)
        self.tied = {role: np.zeros(len(groups.starts), np.int64) for role in ROLES}

    def add(self, part: Ints, rows: Ints, columns: dict[str, Floats]) -> None:
        """Count in one block."""
        first, second = np.triu_indices(rows.shape[1], k=1)
        text = self.text[rows]
        differ = text[:, first] != text[:, second]
        self.pairs[part] = differ.sum(axis=1)
        for role in ROLES:
            scores = columns[role][rows]
            self.tied[role][part] = ((scores[:, first] == scores[:, second]) & differ).sum(axis=1)

    def shares(self) -> dict[str, dict[str, float | int | None]]:
        """Of pairs, and of the prompts in which every pair is tied."""
        some = self.pairs > 0
        count = int(some.sum())
        return {
            role: {
                "pairs": plain(tied.sum() / self.pairs.sum() if count else math.nan),
                "whole_prompts": plain((tied == self.pairs)[some].mean() if count else math.nan),
                "prompts": count,
            }
            for role, tied in self.tied.items()
        }


def _repeated_texts(found: Points, spread: dict[str, float]) -> dict[str, Any]:
    """How many texts stand more than once under their prompt, and of how many a model's scores differ."""
    if not len(found.prompt):
        return {"texts": 0, **{role: 0 for role in ROLES}}
    order = np.lexsort((found.text, found.prompt))
    text, prompt = found.text[order], found.prompt[order]
    starts = np.flatnonzero(np.r_[True, (text[1:] != text[:-1]) | (prompt[1:] != prompt[:-1])])
    repeated = np.diff(np.r_[starts, len(text)]) > 1
    counts: dict[str, Any] = {"texts": int(repeated.sum())}
    for role in ROLES:
        scores = getattr(found, role)[order]
        apart = np.maximum.reduceat(scores, starts) - np.minimum.reduceat(scores, starts)
        counts[role] = int((repeated & (apart > SAME_SCORE * spread[role])).sum())
    return counts


def _by_length(groups: Groups, raw: dict[str, Floats], spread: dict[str, float]) -> dict[str, Any]:
    """Mean score, in standard deviations from the prompt's mean, by length over the prompt's geometric mean."""
    place = np.digitize(groups.centred(raw["length"]) / math.log(2), LENGTH_BINS[1:-1])
    bins = len(LENGTH_BINS) - 1
    counts = np.bincount(place, minlength=bins)
    found: dict[str, Any] = {"log2_edges": LENGTH_BINS.tolist(), "counts": counts.tolist()}
    for role in ROLES:
        sums = np.bincount(place, weights=groups.centred(raw[role]), minlength=bins)
        found[role] = [plain(s / n / spread[role]) if n >= FEW and spread[role] else None for s, n in zip(sums, counts)]  # noqa: B905
    return found


def _both(groups: Groups, spread: dict[str, float]) -> dict[str, Any]:
    """(GRID, GRID) counts of responses, selector by validator, both in standard deviations from the prompt's mean."""
    if not len(groups.starts) or not all(spread.values()):
        return {"limit": GRID_SDS, "counts": []}
    cells = [
        np.floor((groups.centred(getattr(groups.points, role)) / spread[role] / GRID_SDS + 1) / 2 * GRID).astype(np.int64)
        for role in ROLES
    ]
    first, second = (np.clip(cell, 0, GRID - 1) for cell in cells)
    counts = np.bincount(first * GRID + second, minlength=GRID * GRID).reshape(GRID, GRID)
    return {"limit": GRID_SDS, "counts": counts.tolist()}


def kept_by_chance(groups: Groups, rule: Rule, num_compared: Ints | None = None) -> float | None:
    """Share of comparable prompts that the rule keeps once the validator's scores are shuffled within each prompt.

    Shuffled and not computed from the untied null, because a model with many ties passes less often by chance. At most
    `SHUFFLED` prompts are drawn, with a fixed seed; with few prompts each is shuffled several times.

    Args:
        groups: the prompts.
        rule: see `Rule`.
        num_compared: (P,) responses that were compared per prompt, where unusable ones were left out; 0 = all.
    """
    if not len(groups.starts):
        return None
    rng = np.random.default_rng(0)
    everyone = np.arange(len(groups.starts))
    wanted = rng.choice(everyone, SHUFFLED, replace=False) if len(everyone) > SHUFFLED else np.tile(
        everyone, max(1, SHUFFLED // (4 * len(everyone)))
    )  # fmt: skip
    kept = comparable = 0
    for part, places in groups.blocks(wanted):
        rows = rng.permuted(places, axis=1)
        compared = np.full(len(part), rows.shape[1]) if num_compared is None else num_compared[groups.prompts[part]]
        compared = np.where(compared > 0, np.minimum(compared, rows.shape[1]), rows.shape[1])
        valid = np.arange(rows.shape[1]) < compared[:, None]
        selector = groups.points.selector[rows]
        validator = rng.permuted(groups.points.validator[rows], axis=1)
        winner = np.where(valid, selector, -np.inf).argmax(axis=1)
        loser = np.where(valid, selector, np.inf).argmin(axis=1)
        row = np.arange(len(part))
        given = (rule.measure, selector, validator, winner, loser)
        values = np.asarray(measure(*given, valid=valid, top_k=rule.top_k))
        is_comparable = (compared > 1) & (selector[row, winner] > selector[row, loser]) & np.isfinite(values)
        passes = is_comparable & (validator[row, winner] > validator[row, loser])
        if rule.threshold is not None:
            passes &= values >= rule.threshold - 1e-12
        elif rule.null_quantile is not None:
            rare = np.asarray(null_p_value(*given, valid=valid, top_k=rule.top_k))
            passes &= rare <= 1 - rule.null_quantile + 1e-12
        kept, comparable = kept + int(passes.sum()), comparable + int(is_comparable.sum())
    return plain(kept / comparable) if comparable else None
