"""Which numbers of an audit are beyond their limits, and what to make of it, one sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from align.core.errors import UserError
from reward.audit_tables import ROLES

MIN_PROMPTS = 10  # under which a correlation or a tie says little of a judge, and an empty topic little of a filter
MIN_REPEATED = 10  # texts under which their share is only a warning
MIN_FOR_CHANCE = 30  # prompts under which a kept share near chance is only a warning
IDENTICAL = 0.999  # share of equal scores from which two models count as one

# Limits by finding: from where on it is a warning, and from where on a failure; None = never. In brackets what two real
# judges (one nearly binary, one continuous) of 400 prompts with 9 responses reach, who are to fail nowhere.
LIMITS: dict[str, tuple[float | None, float | None]] = {
    # |Mean Spearman within prompts|; a judge of characters goes with the number of words by 0.97. [0.50]
    "length_only_selector": (0.7, 0.95),
    "length_only_validator": (0.7, 0.95),
    # Share of prompts whose different responses all have one score. Verifiable 0/1 rewards tie on easy and on hard prompts,
    # so only next to everything fails. [0.06]
    "constant_selector": (0.25, 0.9),
    "constant_validator": (0.25, 0.9),
    # Correlation given length: a copy with noise of half a standard deviation still has 0.9. [0.43]
    "validator_echoes_selector": (0.8, 0.9),
    # Share of repeated texts with different scores: any is odd, but a hosted judge is never repeatable to the digit. [0.22]
    "not_a_function_of_text": (0.0, None),
    # Lower end of the 95 % interval of P(chosen is longer). [0.88 where the nearly binary judge selects]
    "chosen_longer": (0.8, 0.95),
    # Share of prompts with a pair, at most: a null quantile of 0.95 keeps this much of unrelated models. [0.21 with it]
    "few_kept": (None, 0.05),
    # What chance keeps over what was kept: at 1 the filter found nothing. [0.33 at a gap of 0.5, 0.56 by the sign]
    "agreement_is_chance": (0.8, 1.0),
    # Topics and languages of at least MIN_PROMPTS prompts without any pair.
    "subject_lost": (1.0, None),
    # Share of the chosen answers, where it is above that of the rejected ones. [0.01]
    "refusals_chosen": (0.05, None),
    # Share of the most frequent opening; that of all shared ones grows with the size of the set. [0.04]
    "duplicate_openings": (0.1, None),
}
AT_MOST = ("few_kept",)
FAILING = tuple(name for name, (_, fail) in LIMITS.items() if fail is not None)  # what `limits` of a gate may name


@dataclass(frozen=True)
class Finding:
    """A number beyond its limit; `severity` is "fail" or "warn"."""

    name: str
    severity: str
    value: float
    limit: float
    sentence: str


def findings(audited: Mapping[str, Any], limits: Mapping[str, float | None] | None = None) -> list[Finding]:
    """What is beyond its limit, failures first.

    Args:
        audited: from `audit`.
        limits: for some findings another limit from which they fail (or warn, if they never fail), or None for never.

    Raises:
        UserError: `limits` names no finding.
    """
    limits = limits or {}
    if unknown := sorted(limits.keys() - LIMITS.keys()):
        raise UserError(f"audit: no finding {unknown[0]}; there are {', '.join(LIMITS)}")
    found = []
    if not audited["pairs"]["count"]:
        found.append(Finding("nothing_kept", "fail", 0, 0, "No pair was kept: there is nothing to train on."))
    for name, value, sure, sentence in _suspects(audited):
        if value is None or (name in limits and limits[name] is None):
            continue
        warn, fail = LIMITS[name]
        if name in limits:
            warn, fail = (limits[name], None) if fail is None else (warn, limits[name])
        for severity, limit in (("fail", fail), ("warn", warn)):
            if limit is not None and (value < limit if name in AT_MOST else value >= limit and value > 0):
                found.append(Finding(name, severity if sure else "warn", value, limit, sentence))
                break
    return sorted(found, key=lambda finding: finding.severity != "fail")


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


Suspect = tuple[str, float | None, bool, str]  # name, value (None = not known), whether it may fail, sentence


def _suspects(audited: Mapping[str, Any]) -> Iterator[Suspect]:
    """Every number that has a limit, whether beyond it or not."""
    responses, agreement = audited["responses"], audited["agreement"]
    if responses:
        for role in ROLES:
            yield from _of_judge(role, responses)
        yield _echo(responses)
    yield from _of_pairs(audited["pairs"], audited["length_unit"])
    kept = audited["kept"]
    if audited["pairs"]["count"] and kept["prompts"]:
        yield (
            "few_kept", kept["share"], True,
            f"Of {kept['prompts']:,} prompts only {kept['prompts_kept']:,} gave a pair. The commonest reason is "
            f"{next(iter(kept['reasons']), 'unknown')}.",
        )  # fmt: skip
    if agreement and agreement["passed_share"] is not None and agreement["chance_share"] is not None:
        passed, chance = agreement["passed_share"], agreement["chance_share"]
        yield (
            "agreement_is_chance", chance / passed if passed else None, agreement["compared"] >= MIN_FOR_CHANCE,
            f"The validator agreed on {_percent(passed, 1)} of {agreement['compared']:,} compared prompts; with its scores "
            f"shuffled it agrees on {_percent(chance, 1)}. What was kept may be chance: raise the "
            f"threshold or change the validator.",
        )  # fmt: skip
    # Where nothing was kept, every subject is lost, and that is one finding.
    for kind, name in (("topic", "by_topic"), ("language", "by_lang")) if audited["pairs"]["count"] else ():
        lost = {key: entry for key, entry in kept[name].items() if entry["asked"] >= MIN_PROMPTS and not entry["kept"]}
        first = ", ".join(
            f"{key or '(none)'} ({next(iter(entry['reasons']))} {entry['asked']})" for key, entry in list(lost.items())[:5]
        )
        yield (
            "subject_lost", float(len(lost)) if lost else None, True,
            f"No pair is left of {len(lost)} {kind}(s) that had at least {MIN_PROMPTS}: {first}.",
        )  # fmt: skip


def _of_judge(role: str, responses: Mapping[str, Any]) -> Iterator[Suspect]:
    length, tied = responses["spearman_length"][role], responses["tied"][role]
    if length["prompts"] >= MIN_PROMPTS:
        yield (
            f"length_only_{role}", abs(length["mean"]), True,
            f"The {role} ranks by length: within prompts its scores go with the number of tokens by {length['mean']:.2f} "
            f"(mean Spearman of {length['prompts']:,} prompts). Its pairs would teach length.",
        )  # fmt: skip
    if tied["prompts"] >= MIN_PROMPTS:
        yield (
            f"constant_{role}", tied["whole_prompts"], True,
            f"The {role} gives all responses one score on {_percent(tied['whole_prompts'])} of {tied['prompts']:,} prompts "
            f"with different responses, and ties {_percent(tied['pairs'])} of all pairs of them.",
        )  # fmt: skip
    repeated = responses["repeated_texts"]
    if repeated["texts"]:
        yield (
            "not_a_function_of_text", repeated[role] / repeated["texts"], repeated["texts"] >= MIN_REPEATED,
            f"The {role} gives the same response of the same prompt different scores in {repeated[role]:,} of "
            f"{repeated['texts']:,} cases: something besides the text decides (padding, batch, order or chance).",
        )  # fmt: skip


def _echo(responses: Mapping[str, Any]) -> Suspect:
    between, same = responses["between"]["all"], responses["identical_scores"]
    name, sure = "validator_echoes_selector", between["prompts"] >= MIN_PROMPTS
    if between["spearman"] is not None and same is not None and same >= IDENTICAL:
        return name, 1.0 if sure else None, True, "The validator's scores are the selector's: it adds nothing."
    partial = [v for key in ("pearson", "spearman") if (v := between[f"{key}_without_length"]) is not None]
    value = max(partial, default=None) if sure else None
    return (
        name, value, True,
        f"The validator orders responses as the selector does: within prompts and with length removed they correlate by "
        f"{value or 0:.2f}, so the second model adds hardly anything. Take one of other weights and other data.",
    )  # fmt: skip


def _of_pairs(pairs: Mapping[str, Any], unit: str) -> Iterator[Suspect]:
    length, refusals, opening = pairs["length"], pairs["refusals"], pairs["openings"]["chosen"]
    if length["low"] is not None:
        yield (
            "chosen_longer", length["low"], True,
            f"The chosen answer is the longer one in {_percent(length['chosen_longer'])} of {length['unequal']:,} pairs (at "
            f"least {_percent(length['low'])} with 95 % confidence), by {length['mean_gap']:.0f} {unit} in the mean.",
        )  # fmt: skip
    if refusals["read"] and refusals["chosen"] > refusals["rejected"]:
        yield (
            "refusals_chosen", refusals["chosen"], True,
            f"{_percent(refusals['chosen'], 1)} of the chosen answers decline the request, and "
            f"{_percent(refusals['rejected'], 1)} of the rejected ones: training teaches to decline.",
        )  # fmt: skip
    if opening["top"] and opening["count"] >= MIN_PROMPTS:
        top = opening["top"][0]
        yield (
            "duplicate_openings", top["share"], True,
            f"{_percent(top['share'])} of the chosen answers begin with \N{LEFT DOUBLE QUOTATION MARK}{top['text']}"
            f"\N{RIGHT DOUBLE QUOTATION MARK}.",
        )  # fmt: skip
