"""Which two responses of a prompt become a pair, and what speaks against it: many prompts at a time, pure NumPy.

A block holds P prompts with at most N responses each. The columns of a prompt are its responses in the order of their ids,
so that every tie is settled by the lowest id and nothing depends on the order of the input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reward.agreement import MEASURES, all_measures
from reward.agreement_null import null_p_value, null_quantile

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

SELECTS = ("best_worst", "best_random", "best_second", "best_mu_minus_sigma", "length_matched", "shortest_correct")
USES = ("drop", "weight", "flip_rate")
# What became of a pair, in the order in which it is asked; the place in this tuple is the code in arrays.
OUTCOMES = (
    "kept",
    "fewer_than_two_responses",
    "fewer_than_two_finished",
    "wrong_language",
    "all_responses_identical",
    "nan_score",
    "infinite_score",
    "selector_tie",
    "label_disagrees_selector",
    "no_length_match",
    "none_correct",
    "all_correct",
    "no_further_pair",
    "validator_tie",
    "validator_disagrees",
    "too_few_for_null_quantile",
    "agreement_below_threshold",
    "margin_below_minimum",
    "margin_above_maximum",
)
CODES = {outcome: code for code, outcome in enumerate(OUTCOMES)}
ROUNDING = 1e-12  # a threshold met exactly is met, whatever the last bit of the measure
MATRIX_CELLS = 2**22  # P x N x N of the prompts that are worked on at a time


@dataclass(frozen=True, kw_only=True)
class PairRules:
    """How pairs are chosen and what they must satisfy.

    Attributes:
        select: how the selector chooses yw and yl among the usable responses of a prompt. `best_*`: yw is the highest score.
            best_worst: yl the lowest.
            best_random: yl any response strictly below yw, drawn by the hash of seed and response id.
            best_second: yl the highest strictly below yw.
            best_mu_minus_sigma: yl the response strictly below yw whose score is nearest to mean - sigmas * sd (sample sd,
                ddof 1; equally near: the lower), arXiv 2502.16825. No score of N is more than (N - 1) / sqrt(N) sd below
                the mean, so with 2 sigmas and N <= 5 the target is below them all and yl is the lowest.
            length_matched: the pair with the largest score difference among those whose lengths differ by at most
                `length_tolerance` of the longer one.
            shortest_correct: yw is the shortest response with a score of at least `correct_score` (equally short: the
                higher score), yl the lowest below it (equal: the longest); EXAONE 4.0, arXiv 2507.11407.
        sigmas: of best_mu_minus_sigma.
        length_tolerance: of length_matched, a share in [0, 1].
        correct_score: of shortest_correct.
        pairs_per_prompt: K; each further pair is chosen in the same way from what the earlier ones left.
        agreement: a name in `reward.agreement.MEASURES`, over all usable responses.
        top_k: of the measure `overlap`.
        threshold: least agreement, in the measure's own range.
        null_quantile: instead of `threshold`: keep what is as rare as 1 - null_quantile between unrelated models.
        use: "drop" applies the threshold; "weight" and "flip_rate" keep every pair that both models order alike and turn its
            gap g in (0, 1] into a weight g or a label flip rate (1 - g) / 2. They need neither threshold nor null_quantile.
        min_margin: least selector score difference of yw and yl, in that model's own units.
        max_margin: largest such difference; None = any.
        keep_wrong_language: keep responses in the other language than the prompt's answer_lang.
        max_length: completion tokens that training will keep; None = all.
        held_out: share of prompts whose pairs are kept from training (split "test"), in [0, 1).

    Raises:
        ValueError: a value outside these.
    """

    select: str = "best_worst"
    sigmas: float = 2.0
    length_tolerance: float = 0.1
    correct_score: float | None = None
    pairs_per_prompt: int = 1
    agreement: str
    top_k: int = 2
    threshold: float | None = None
    null_quantile: float | None = None
    use: str = "drop"
    min_margin: float = 0.0
    max_margin: float | None = None
    keep_wrong_language: bool = False
    max_length: int | None = None
    held_out: float = 0.0

    def __post_init__(self) -> None:
        for name, known in (("select", SELECTS), ("agreement", MEASURES), ("use", USES)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known are {', '.join(known)}")
        given = (self.threshold is not None) + (self.null_quantile is not None)
        if given > 1 or (given == 0 and self.use == "drop"):
            raise ValueError("give either threshold or null_quantile")
        if self.select == "shortest_correct" and self.correct_score is None:
            raise ValueError("select shortest_correct needs correct_score")
        for name, low, high in (
            ("threshold", -1, 1),
            ("correct_score", -math.inf, math.inf),
            ("min_margin", 0, math.inf),
            ("max_margin", self.min_margin, math.inf),
            ("length_tolerance", 0, 1),
            ("max_length", 1, math.inf),
            ("pairs_per_prompt", 1, math.inf),
            ("top_k", 1, math.inf),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} {value} must be from {low} to {high}")
        if not (self.sigmas >= 0 and math.isfinite(self.sigmas)):
            raise ValueError(f"sigmas {self.sigmas} must be a number of at least 0")
        if self.null_quantile is not None and not 0 < self.null_quantile < 1:
            raise ValueError(f"null_quantile {self.null_quantile} must be between 0 and 1")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out {self.held_out} must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class Block:
    """P prompts with N columns; a prompt's responses stand in the order of their ids.

    Attributes:
        selector: (P, N) scores of the model that picks.
        validator: (P, N) scores of the model that must agree.
        usable: (P, N) which places hold a response that is compared; the others may hold anything.
        num_tokens: (P, N) lengths of the responses.
        random: (P, N) uint64 hashes of run seed and response id, for best_random.
        objection: (P,) codes into OUTCOMES of what already speaks against a prompt, else 0.
    """

    selector: Floats
    validator: Floats
    usable: Bools
    num_tokens: Ints
    random: NDArray[np.uint64]
    objection: Ints

    def part(self, rows: slice) -> Block:
        """Some of the prompts."""
        return Block(**{name: values[rows] for name, values in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What became of the K pairs of each prompt, (P, K) each.

    Attributes:
        winner: column of yw, -1 where no pair could be chosen.
        loser: column of yl, -1 likewise.
        outcome: codes into OUTCOMES, 0 = kept.
        measures: each of `reward.agreement.MEASURES`; NaN where undefined, gap and sign also where there is no pair.
        p_value: of the rules' measure: how often unrelated models agree as much. NaN where there is no pair.
    """

    winner: Ints
    loser: Ints
    outcome: Ints
    measures: Mapping[str, Floats]
    p_value: Floats


def _lowest(among: Bools, *keys: Floats | Ints) -> Ints:
    """(P,) the column with the lowest first key, then second key, ..., then the lowest column; -1 where none is `among`."""
    for key in keys:
        among = among & (key == np.where(among, key, np.inf).min(axis=1, keepdims=True))
    return np.where(among.any(axis=1), among.argmax(axis=1), -1)


def _nearest_to_low_quantile(scores: Floats, rest: Bools, below: Bools, sigmas: float) -> Ints:
    """(P,) the column of `below` whose score is nearest to mean - sigmas * sd of `rest`."""
    n = rest.sum(axis=1, keepdims=True)
    kept = np.where(rest, scores, 0.0)
    # A power of two changes no comparison and keeps the squares of huge and tiny scores in range.
    scaled = np.ldexp(kept, -np.frexp(np.abs(kept).max(axis=1, keepdims=True))[1])
    mean = scaled.sum(axis=1, keepdims=True) / np.maximum(n, 1)
    sd = np.sqrt(np.where(rest, (scaled - mean) ** 2, 0.0).sum(axis=1, keepdims=True) / np.maximum(n - 1, 1))
    distance = np.where(below, np.abs(scaled - (mean - sigmas * sd)), np.inf)
    # Scores on either side of the target are rarely equally far to the last bit.
    near = below & (distance <= distance.min(axis=1, keepdims=True) + 1e-9 * sd)
    return _lowest(near, scores)


def _length_matched(block: Block, rest: Bools, tolerance: float) -> tuple[Ints, Ints]:
    """(P,) columns of the pair of similar length with the largest score difference, -1 where there is none."""
    scores, lengths, n = block.selector, block.num_tokens, rest.shape[1]
    above = (scores[:, :, None] > scores[:, None, :]) & rest[:, :, None] & rest[:, None, :]
    longer = np.maximum(lengths[:, :, None], lengths[:, None, :])
    matched = above & (np.abs(lengths[:, :, None] - lengths[:, None, :]) <= tolerance * longer + 1e-9)
    with np.errstate(over="ignore", invalid="ignore"):
        difference = np.where(matched, scores[:, :, None] - scores[:, None, :], -np.inf).reshape(len(rest), n * n)
    winner, loser = np.divmod(difference.argmax(axis=1), n)
    found = matched.any(axis=(1, 2))
    return np.where(found, winner, -1), np.where(found, loser, -1)


def _pick(block: Block, rest: Bools, rules: PairRules) -> tuple[Ints, Ints, Ints]:
    """(P,) winner, loser and code of one more pair from the responses in `rest`; -1, -1 and why, where there is none."""
    scores = block.selector
    below = rest & (scores < np.where(rest, scores, -np.inf).max(axis=1, keepdims=True))
    why: Ints = np.full(len(rest), CODES["selector_tie"])
    if rules.select == "length_matched":
        winner, loser = _length_matched(block, rest, rules.length_tolerance)
        why[below.any(axis=1)] = CODES["no_length_match"]
    elif rules.correct_score is not None and rules.select == "shortest_correct":
        correct = rest & (scores >= rules.correct_score)
        winner, loser = _lowest(correct, block.num_tokens, -scores), _lowest(rest & ~correct, scores, -block.num_tokens)
        why = np.where(winner < 0, CODES["none_correct"], CODES["all_correct"])
    else:
        winner = _lowest(rest, -scores)
        if rules.select == "best_mu_minus_sigma":
            loser = _nearest_to_low_quantile(scores, rest, below, rules.sigmas)
        else:
            key = {"best_worst": scores, "best_second": -scores, "best_random": block.random.astype(np.float64)}
            loser = _lowest(below, key[rules.select])
    found = (winner >= 0) & (loser >= 0)
    return np.where(found, winner, -1), np.where(found, loser, -1), np.where(found, 0, why)


def _before_choice(block: Block) -> Ints:
    """(P,) codes of what rules a prompt out whatever the strategy, else 0."""
    both = np.stack([block.selector, block.validator])
    return np.select(
        [
            block.objection > 0,
            block.usable.sum(axis=1) < 2,
            (np.isnan(both) & block.usable).any(axis=(0, 2)),
            (np.isinf(both) & block.usable).any(axis=(0, 2)),
        ],
        [block.objection, *(CODES[why] for why in ("fewer_than_two_responses", "nan_score", "infinite_score"))],
        0,
    )


def _below_threshold(rules: PairRules, value: Floats, p_value: Floats, n: Ints) -> tuple[Bools, Bools]:
    """(P,) whether the agreement is too low, and whether it is so at any value, because n responses are too few."""
    if rules.null_quantile is None:
        assert rules.threshold is not None  # PairRules wants one of the two
        return ~(value >= rules.threshold - ROUNDING), np.zeros(len(n), bool)
    low = ~(p_value <= 1 - rules.null_quantile + ROUNDING)
    sizes = [
        int(size)
        for size in np.unique(n[low & (n > 1)])
        if math.isnan(null_quantile(rules.agreement, int(size), rules.null_quantile, rules.top_k))
    ]
    return low, low & np.isin(n, sizes)


def _judge(block: Block, winner: Ints, loser: Ints, code: Ints, rules: PairRules, threshold: bool) -> Selection:
    """What both models say of one pair per prompt, (P,) each; `code` is what already speaks against it."""
    found = (winner >= 0) & (loser >= 0)
    yw, yl = np.maximum(winner, 0), np.maximum(loser, 0)
    measures = all_measures(block.selector, block.validator, yw, yl, block.usable, rules.top_k)
    measures |= {name: np.where(found, measures[name], np.nan) for name in ("gap", "sign")}
    p_value = np.full(len(found), np.nan)
    p_value[found] = null_p_value(
        rules.agreement, block.selector[found], block.validator[found], yw[found], yl[found], block.usable[found],
        rules.top_k,
    )  # fmt: skip
    rows = np.arange(len(found))
    with np.errstate(over="ignore", invalid="ignore"):
        margin = block.selector[rows, yw] - block.selector[rows, yl]
    first, second = block.validator[rows, yw], block.validator[rows, yl]
    none = np.zeros(len(found), bool)
    low, too_few = none, none
    if threshold:
        low, too_few = _below_threshold(rules, measures[rules.agreement], p_value, block.usable.sum(axis=1))
    objections = {
        "validator_tie": first == second,
        "validator_disagrees": ~(first > second),
        "too_few_for_null_quantile": too_few,
        "agreement_below_threshold": low,
        "margin_below_minimum": ~(margin >= rules.min_margin),
        "margin_above_maximum": none if rules.max_margin is None else ~(margin <= rules.max_margin),
    }
    outcome = np.select([code > 0, *objections.values()], [code, *(CODES[why] for why in objections)], 0)
    return Selection(winner=winner, loser=loser, outcome=outcome, measures=measures, p_value=p_value)


def _joined(parts: list[Selection], axis: int) -> Selection:
    """Slots side by side (axis 1, from (P,) each) or prompts below each other (axis 0)."""
    join = np.concatenate if axis == 0 else lambda arrays: np.stack(arrays, axis=1)
    arrays = {name: join([getattr(p, name) for p in parts]) for name in ("winner", "loser", "outcome", "p_value")}
    return Selection(**arrays, measures={name: join([p.measures[name] for p in parts]) for name in MEASURES})


def _select(block: Block, rules: PairRules) -> Selection:
    before = _before_choice(block)
    rest = block.usable & (before == 0)[:, None]
    slots = []
    for slot in range(rules.pairs_per_prompt):
        winner, loser, why = _pick(block, rest, rules)
        if slot:
            why[why > 0] = CODES["no_further_pair"]
        code = np.where(before > 0, before, why)
        slots.append(_judge(block, winner, loser, code, rules, threshold=rules.use == "drop"))
        rest = rest.copy()
        found = np.flatnonzero(winner >= 0)
        rest[found, winner[found]] = rest[found, loser[found]] = False
    return _joined(slots, axis=1)


def select(block: Block, rules: PairRules) -> Selection:
    """K pairs for each prompt of a block, or why not.

    A pair's two responses are taken out before the next is chosen, whether the validator agreed to it or not. What rules out
    a prompt is said of each of its K slots; a slot for which the earlier ones left too little is `no_further_pair`.
    shortest_correct knows no `selector_tie`: responses with one score are all correct or all not.
    """
    prompts, n = block.usable.shape
    step = max(1, MATRIX_CELLS // max(1, n) ** 2)
    parts = [_select(block.part(slice(start, start + step)), rules) for start in range(0, max(1, prompts), step)]
    return _joined(parts, axis=0)


def check_given(block: Block, winner: Ints, loser: Ints, rules: PairRules) -> Selection:
    """The outcome of pairs that a label chose, K = 1: both models must order them as the label does.

    No threshold is applied: two responses have no more rank information than the sign.

    Args:
        block: P prompts.
        winner: (P,) column of the preferred response.
        loser: (P,) column of the other.
        rules: of which the filters and margins count.
    """
    before = _before_choice(block)
    first, second = (np.take_along_axis(block.selector, at[:, None], axis=1)[:, 0] for at in (winner, loser))
    code = np.select(
        [before > 0, first == second, first < second],
        [before, CODES["selector_tie"], CODES["label_disagrees_selector"]],
        0,
    )
    winner, loser = (np.where(before > 0, -1, at) for at in (winner, loser))
    return _joined([_judge(block, winner, loser, code, rules, threshold=False)], axis=1)
