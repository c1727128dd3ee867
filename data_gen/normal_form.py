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

import numpy as np

SEPARATOR = b"\x01"  # between texts in a batch; no letter or digit, so no text has it once it is normalised
_BREAK = SEPARATOR.decode()
_MARKS = "’‘“”–—…•·\u00a0"
_DROPPED, _SEVERAL = 0, 0xFFFF  # U+FFFF is no character


def normal_form(text: str, *, fold: bool = True) -> str:
    """The letters and digits of a text.

    Args:
        text: any text.
        fold: whether capitals and small letters are the same.
    """
    composed = unicodedata.normalize("NFC", "".join(c for c in _without_marks(text) if c < "\U00010000"))
    if fold:
        composed = unicodedata.normalize("NFC", composed.casefold())
    return "".join(filter(str.isalnum, composed))


@cache
def _table(fold: bool) -> np.ndarray:
    """UTF-16 code unit -> what it becomes, _DROPPED, or _SEVERAL where that depends on its neighbours."""
    table = np.zeros(2**16, np.uint16)
    for code in range(2**16):
        char = chr(code)
        if unicodedata.category(char) == "Cs":
            continue  # half of a character beyond the plane
        becomes = normal_form(char, fold=fold)
        combines = unicodedata.category(char).startswith("M") or 0x1160 <= code <= 0x11FF or len(becomes) > 1
        if combines or unicodedata.normalize("NFC", char) != char:
            table[code] = _SEVERAL
        elif becomes:
            table[code] = ord(becomes)
    table[ord(_BREAK)] = ord(_BREAK)
    return table


@cache
def _ascii(fold: bool) -> tuple[bytes, bytes]:
    """What `bytes.translate` takes: the new value of each byte, and the bytes to delete."""
    kept = [chr(i).isalnum() or chr(i) == _BREAK for i in range(128)]
    new = bytes(ord(chr(i).lower()) if fold and i < 128 else i for i in range(256))
    return new, bytes(i for i in range(128) if not kept[i])


def normal_batch(texts: Sequence[str], *, fold: bool = True) -> bytes:
    """`normal_form` of each text, as UTF-8 joined by SEPARATOR."""
    texts = [_without_marks(text) for text in texts]
    is_ascii = [text.isascii() for text in texts]
    if all(is_ascii):
        return _BREAK.join(texts).encode("ascii").translate(*_ascii(fold))
    if not any(is_ascii):
        return _by_table(texts, fold)
    quick = iter(normal_batch([t for t, a in zip(texts, is_ascii, strict=True) if a], fold=fold).split(SEPARATOR))
    others = iter(_by_table([t for t, a in zip(texts, is_ascii, strict=True) if not a], fold).split(SEPARATOR))
    return SEPARATOR.join(next(quick if a else others) for a in is_ascii)


def _without_marks(text: str) -> str:
    """A text without SEPARATOR and the marks that keep most English from being ASCII; no letter is among them."""
    if _BREAK in text:
        text = text.replace(_BREAK, "")
    if not text.isascii():
        for mark in _MARKS:
            text = text.replace(mark, "")
    return text


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
