"""Estimates in words and cells: a mean with its interval, never more precise than the interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from align.report.artifacts import at

MINUS = "\N{MINUS SIGN}"
LOWEST_P = 0.001


def compared_items(of: Mapping[str, Any], first: Mapping[str, Any]) -> int | None:
    """Items that both a model and the first have a grade for; None where these are all that either mean is over."""
    count = at(of["change"], "items")
    return count if count is not None and {of["items"], first["items"]} != {count} else None


def decimals(low: float | None, high: float | None, *, otherwise: int = 2) -> int:
    """Those that half the interval's width needs: 0 for 6 to each side, 2 for 0.06; `otherwise` where it has no width."""
    if low is None or high is None or not high > low:
        return otherwise
    return min(6, max(0, -math.floor(math.log10((high - low) / 2))))


def amount(value: float | None, digits: int, *, signed: bool = False) -> str:
    """A number for people, without a minus before zero; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    found = round(value, digits) + 0.0
    return f"{found:{'+' if signed and found else ''},.{digits}f}".replace("-", MINUS)


def shown(
    estimate: Mapping[str, Any] | None, *, factor: float = 1.0, signed: bool = False, unit: str = ""
) -> tuple[str, str]:
    """The mean and the interval in brackets, each as text; the interval is empty where undefined.

    Args:
        estimate: mean, low and high, None where undefined.
        factor: 100 for a share that is shown in percent.
        signed: whether a mean above 0 has a plus.
        unit: follows the mean.
    """
    mean, low, high = bounds(estimate, factor)
    digits = decimals(low, high, otherwise=0 if factor == 100 or "%" in unit else 2)
    text = amount(mean, digits, signed=signed) + ("" if mean is None else unit)
    return text, "" if low is None or high is None else f"[{amount(low, digits)}, {amount(high, digits)}]"


def in_words(estimate: Mapping[str, Any] | None, *, factor: float = 1.0, signed: bool = False, unit: str = "") -> str:
    """The same within a sentence: 0.42 (0.30 to 0.54)."""
    mean, interval = shown(estimate, factor=factor, signed=signed, unit=unit)
    return f"{mean} ({interval[1:-1].replace(', ', ' to ')})" if interval else mean


def bounds(estimate: Mapping[str, Any] | None, factor: float = 1.0) -> tuple[float | None, float | None, float | None]:
    """Mean, low and high, None where undefined."""
    found = [(estimate or {}).get(name) for name in ("mean", "low", "high")]
    mean, low, high = (None if value is None or not math.isfinite(value) else factor * value for value in found)
    return mean, low, high


def plot(estimate: Mapping[str, Any] | None, factor: float = 1.0) -> tuple[float, float, float]:
    """Mean, low and high for a chart, NaN where undefined."""
    mean, low, high = (math.nan if value is None else value for value in bounds(estimate, factor))
    return mean, low, high


def side(estimate: Mapping[str, Any] | None, middle: float = 0.0) -> str:
    """above or below where the whole interval lies there, open where it does not, none without an interval."""
    _, low, high = bounds(estimate)
    if low is None or high is None:
        return "none"
    return "above" if low > middle else "below" if high < middle else "open"


def p_text(value: float | None) -> str:
    """A p-value with two digits, `< 0.001` below that."""
    if value is None:
        return "–"
    return f"< {LOWEST_P}" if value < LOWEST_P else f"{value:.2g}"


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
