"""The form in which texts are compared with benchmarks: letters and digits alone.

Normalised to NFC, case-folded unless the case is to be kept, everything else dropped. Hangul stays, as do all letters and
digits of Unicode's Basic Multilingual Plane; beyond it are emoji, styled letters and rare ideographs, which are dropped.
"Remove all but letters and digits" is from the EXAONE 3.5 report (arXiv 2412.04862, section 2.2.2).

Many texts are normalised at once, as one array of UTF-16 code units looked up in a table; a text with characters that fold
or compose to several goes through Python's own functions instead.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import groupby

import numpy as np

SEPARATOR = b"\x01"  # between texts in a batch; no letter or digit, so no text has it once it is normalised
_BREAK = SEPARATOR.decode()
_DROPPED, _SEVERAL = 0, 0xFFFF  # U+FFFF is no character


def normal_form(text: str, *, fold: bool = True) -> str:
    """The letters and digits of a text.

    Args:
        text: any text.
        fold: whether capitals and small letters are the same.
    """
    composed = unicodedata.normalize("NFC", "".join(c for c in text if c < "\U00010000" and c != _BREAK))
    if fold:
        composed = unicodedata.normalize("NFC", composed.casefold())
    return "".join(filter(str.isalnum, composed))


@cache
def _table(fold: bool) -> np.ndarray:
    """UTF-16 code unit -> what it becomes, _DROPPED, or _SEVERAL where that depends on its neighbours."""
    table = np.zeros(2**16, np.uint16)
    # What may join with the character before it: the second parts of canonical decompositions, vowels and finals of Hangul.
    parts = [unicodedata.decomposition(chr(code)).split() for code in range(2**16)]
    joins = {int(part[1], 16) for part in parts if len(part) == 2 and not part[0].startswith("<")} | {*range(0x1160, 0x1200)}
    for code in range(2**16):
        char = chr(code)
        if unicodedata.category(char) == "Cs":
            continue  # half of a character beyond the plane
        becomes = normal_form(char, fold=fold)
        moves = code in joins or unicodedata.combining(char) != 0 or len(becomes) > 1
        if moves or unicodedata.normalize("NFC", char) != char:
            table[code] = _SEVERAL
        elif becomes:
            table[code] = ord(becomes)
    table[ord(_BREAK)] = ord(_BREAK)
    return table


@cache
def _bytes(fold: bool) -> tuple[bytes, bytes]:
    """What `bytes.translate` takes: the new value of each byte of Windows-1252, and those that are no letter or digit."""
    chars = bytes(range(256)).decode("cp1252", "replace")
    new = bytes(ord(c.lower()) if fold and c.isascii() else i for i, c in enumerate(chars))
    return new, bytes(i for i, c in enumerate(chars) if not c.isalnum() and c != _BREAK)


def normal_batch(texts: Sequence[str], *, fold: bool = True) -> bytes:
    """`normal_form` of each text, as UTF-8 joined by SEPARATOR."""
    texts = [text.replace(_BREAK, "") if _BREAK in text else text for text in texts]
    return SEPARATOR.join(_run(list(run), fold) for _, run in groupby(texts, str.isascii))


def _run(texts: list[str], fold: bool) -> bytes:
    """Of texts that are all ASCII, or all not."""
    if (form := _quick(_BREAK.join(texts), fold)) is not None:
        return form
    if len(texts) == 1:
        return _by_table(texts, fold)
    found = [_quick(text, fold) for text in texts]
    others = iter(_by_table([t for t, f in zip(texts, found, strict=True) if f is None], fold).split(SEPARATOR))
    return SEPARATOR.join(next(others) if f is None else f for f in found)


def _quick(text: str, fold: bool) -> bytes | None:
    """Of a text whose letters are ASCII, whatever its quotation marks and dashes; None for others."""
    try:
        form = text.encode("ascii" if text.isascii() else "cp1252").translate(*_bytes(fold))
    except UnicodeEncodeError:
        return None
    return form if form.isascii() else None


def _by_table(texts: Sequence[str], fold: bool) -> bytes:
    joined = _BREAK.join(texts)
    units = np.frombuffer(joined.encode("utf-16-le", "surrogatepass"), "<u2")
    found = _table(fold)[units]
    if (unclear := np.flatnonzero(found == _SEVERAL)).size:
        by_python = set(np.searchsorted(np.flatnonzero(units == ord(_BREAK)), unclear).tolist())
        others = iter(normal_batch([t for i, t in enumerate(texts) if i not in by_python], fold=fold).split(SEPARATOR))
        return SEPARATOR.join(
            normal_form(text, fold=fold).encode() if i in by_python else next(others) for i, text in enumerate(texts)
        )
    return found[found != _DROPPED].tobytes().decode("utf-16-le").encode()
