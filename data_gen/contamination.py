"""Test items in training texts: every window of every text is looked up, in time linear in the text.

A text is contaminated by a test item if both have `window` letters and digits in a row in common (50 in the EXAONE 3.5
report, arXiv 2412.04862, appendix C, which looks up ten of a text's windows; see `SampledPool` for that). Items shorter than
the window count as a whole. Windows that at least TEMPLATE_ITEMS items of a benchmark share ("Your entire response should
...") are instructions common to the task and no evidence, unless an item has no others.

How all windows are looked up without touching each: two texts that share 50 characters share 50 bytes of UTF-8, and those
hold a block of 32 that begins at a multiple of 19 of the searched text. So only every 19th block is hashed and looked up
among all blocks of the test items; around those found every window is. Windows are told apart by 64 bits: of a billion that
are looked up among a million, one is taken for another with probability 5e-5.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from align.core.hashing import derive_seed, fingerprint
from data_gen.benchmark_files import Benchmark, TestItem
from data_gen.normal_form import SEPARATOR, normal_batch, normal_form

WINDOW = 50
SAMPLES = 10
TEMPLATE_ITEMS = 3
SHORTEST_CONTAINED = 24  # a shorter item ("Is it true?") is in too many texts by chance; it counts where it is all of a text
_BREAK = SEPARATOR[0]
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, the constant of Fibonacci hashing
_FILTER_BITS = 22  # 4 MiB of flags, twice: with a million test windows one random block in twenty passes both
_UPPER, _LOWER = np.uint64(64 - _FILTER_BITS), np.uint64(2**_FILTER_BITS - 1)


@dataclass(frozen=True)
class Match:
    """A test item found in a text.

    Attributes:
        benchmark: name of the benchmark.
        number: line of the item in its file.
        span: the letters and digits that both have in common, the longest found.
        whole: the span is all of a text of the item.
    """

    benchmark: str
    number: int
    span: str
    whole: bool


def _mixed(words: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each row of 64-bit words."""
    total = np.zeros(len(words), np.uint64)
    for column in range(words.shape[1]):
        total = (total ^ words[:, column]) * _ODD
        total ^= total >> np.uint64(29)
    return total


class _Blocks:
    """Where other bytes may have `shortest` bytes in a row in common with some bytes.

    Attributes:
        width: of a block.
        starts: (blocks,) where each begins, one of every kind, in the order of their hashes.
    """

    def __init__(self, data: bytes, shortest: int) -> None:
        self.width = 32 if shortest >= 40 else 16
        self._stride = shortest - self.width + 1
        array = np.frombuffer(data, np.uint8)
        starts = np.arange(max(0, len(data) - self.width + 1))
        # A block that goes over the end of a text is in no other text.
        breaks = np.concatenate([[0], np.cumsum(array == _BREAK)])
        self.starts = starts[breaks[starts + self.width] == breaks[starts]]
        hashes = [
            _mixed(array[some[:, None] + np.arange(self.width)].view(np.uint64))
            for some in np.array_split(self.starts, len(self.starts) // 2**18 + 1)
        ]
        self.hashes = np.concatenate(hashes)
        self._kinds = np.unique(self.hashes)
        # Which upper and which lower bits occur: most hashes that are in no text fail one of the two.
        self._upper, self._lower = np.zeros(2**_FILTER_BITS, bool), np.zeros(2**_FILTER_BITS, bool)
        self._upper[self._kinds >> _UPPER] = True
        self._lower[self._kinds & _LOWER] = True

    def hits(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Places in `data` where a block begins, and the block's hash."""
        count = (len(data) - self.width) // self._stride + 1
        if count <= 0 or not len(self._kinds):
            return np.empty(0, int), np.empty(0, np.uint64)
        array = np.frombuffer(data, np.uint8)
        rows = np.lib.stride_tricks.as_strided(array, (count, self.width), (self._stride, 1), writeable=False)
        hashes = _mixed(np.ascontiguousarray(rows).view(np.uint64))
        flagged = np.flatnonzero(self._upper[hashes >> _UPPER])
        flagged = flagged[self._lower[hashes[flagged] & _LOWER]]
        at = np.minimum(np.searchsorted(self._kinds, hashes[flagged]), len(self._kinds) - 1)
        found = flagged[self._kinds[at] == hashes[flagged]]
        return found * self._stride, hashes[found]

    def regions(self, data: bytes, reach: int) -> Iterator[tuple[int, int]]:
        """[start, stop) of the parts of `data` that are `reach` bytes around a block, those that touch as one."""
        places, _ = self.hits(data)
        gaps = np.flatnonzero(np.diff(places) > 2 * reach + self.width)
        for first, last in zip([0, *(gaps + 1)], [*gaps, len(places) - 1], strict=True) if len(places) else ():
            yield max(0, int(places[first]) - reach), min(len(data), int(places[last]) + self.width + reach)


class _ShortTexts:
    """Texts below the window, each to be found as a whole.

    Args:
        texts: normalised, each at least SHORTEST_CONTAINED long.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = {text.encode() for text in texts}
        data = SEPARATOR.join(sorted(self._texts))
        self._blocks = _Blocks(data, SHORTEST_CONTAINED)
        # Where a block lies in its text, and how long that is: few of each, however many texts begin alike.
        self._around: dict[int, set[tuple[int, int]]] = {}
        for start, value in zip(self._blocks.starts.tolist(), self._blocks.hashes.tolist(), strict=True):
            first = data.rfind(SEPARATOR, 0, start) + 1
            stop = data.find(SEPARATOR, start)
            self._around.setdefault(value, set()).add((start - first, (stop if stop >= 0 else len(data)) - first))

    def found(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(place, text) of every one, by place of a block in it."""
        for place, value in zip(*(values.tolist() for values in self._blocks.hits(data)), strict=True):
            for offset, size in self._around[value]:
                text = data[max(0, place - offset) : place - offset + size]
                if text in self._texts:
                    yield place, text


def window_hashes(codes: np.ndarray, window: int) -> np.ndarray:
    """A 64-bit polynomial hash of every `window` codes in a row, modulo 2^64, from its prefix sums.

    Args:
        codes: (n,) uint16.
        window: >= 1.

    Returns:
        (n - window + 1,) uint64, or none for shorter codes.
    """
    if len(codes) < window:
        return np.empty(0, np.uint64)
    values = (codes.astype(np.uint64) + np.uint64(1)) * _ODD
    values = (values ^ (values >> np.uint64(31))) * _ODD
    powers = np.full(len(codes) + 1, _ODD)
    powers[0] = 1
    powers = np.cumprod(powers)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values * powers[:-1])])
    # Divided by the power of the window's start: multiplied by that of the inverse of an odd number modulo 2^64.
    inverse = np.full(len(codes) - window + 1, np.uint64(pow(int(_ODD), -1, 2**64)))
    inverse[0] = 1
    return (sums[window:] - sums[:-window]) * np.cumprod(inverse)


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-16-le"), "<u2")


class _Windows:
    """All windows of some texts: which items have each.

    Args:
        texts: normalised, each at least `window` long.
        owners: the item of each text.
        groups: the benchmark of each item.
        window: characters.
    """

    def __init__(self, texts: Sequence[str], owners: Sequence[int], groups: np.ndarray, window: int) -> None:
        self.window = window
        hashes = [window_hashes(_codes(text), window) for text in texts]
        hash_W = np.concatenate([*hashes, np.empty(0, np.uint64)])
        owner_W = np.repeat(np.asarray(owners, int), [len(h) for h in hashes])
        order = np.lexsort((owner_W, hash_W))
        hash_W, owner_W = hash_W[order], owner_W[order]
        new = np.ones(len(order), bool)
        new[1:] = (hash_W[1:] != hash_W[:-1]) | (owner_W[1:] != owner_W[:-1])
        hash_W, owner_W = hash_W[new], owner_W[new]
        # How many items of its benchmark have a window; owners of one benchmark stand together.
        shared = np.ones(len(hash_W), bool)
        shared[1:] = (hash_W[1:] != hash_W[:-1]) | (groups[owner_W[1:]] != groups[owner_W[:-1]])
        group_W = np.cumsum(shared) - 1
        is_template = np.bincount(group_W)[group_W] >= TEMPLATE_ITEMS if len(group_W) else shared
        # An item that is made of common windows alone would never be found; its windows count.
        with_own = np.zeros(len(groups), bool)
        with_own[owner_W[~is_template]] = True
        is_template &= with_own[owner_W]
        self.distinct = int(np.count_nonzero(hash_W[1:] != hash_W[:-1])) + bool(len(hash_W))
        self.templates = int(is_template.sum())
        self._hashes, self._owners = hash_W[~is_template], owner_W[~is_template]

    def found(self, text: str) -> Iterator[tuple[int, int]]:
        """(place, item) of every window of a text that an item has, in the order of places."""
        hashes = window_hashes(_codes(text), self.window)
        first = np.searchsorted(self._hashes, hashes, "left")
        last = np.searchsorted(self._hashes, hashes, "right")
        for place in np.flatnonzero(last > first):
            for owner in self._owners[first[place] : last[place]]:
                yield int(place), int(owner)


class Pool:
    """The test items, searched for in full.

    Args:
        benchmarks: as `read_benchmarks` gives them.
        window: letters and digits in a row that make a text contaminated, >= 24.

    Attributes:
        windows: how many different ones there are.
        template_windows: how many (of an item) are no evidence.
        short_items: texts of items below the window.
        fingerprint: of what is looked for.
    """

    def __init__(self, benchmarks: Sequence[Benchmark], window: int = WINDOW) -> None:
        if window < SHORTEST_CONTAINED:
            raise ValueError(f"window {window}: below {SHORTEST_CONTAINED} characters any text holds what another does")
        self.window = window
        self._items = [item for benchmark in benchmarks for item in benchmark.items]
        groups = np.repeat(np.arange(len(benchmarks)), [len(b.items) for b in benchmarks])
        normal = normal_batch([text for item in self._items for text in item.texts]).decode().split(SEPARATOR.decode())
        owners = [k for k, item in enumerate(self._items) for _ in item.texts]
        self._whole: dict[str, list[int]] = {}
        for text, owner in zip(normal, owners, strict=True):
            self._whole.setdefault(text, []).append(owner)
        long = [(text, k) for text, k in zip(normal, owners, strict=True) if len(text) >= window]
        self._long = _Windows([t for t, _ in long], [k for _, k in long], groups, window)
        self._blocks = _Blocks(SEPARATOR.join(text.encode() for text, _ in long), window)
        self.short_items = sum(0 < len(text) < window for text in normal)
        self._short = _ShortTexts([text for text in normal if SHORTEST_CONTAINED <= len(text) < window])
        self._longest_tiny = max((len(text) for text in normal if len(text) < SHORTEST_CONTAINED), default=0)
        self.windows, self.template_windows = self._long.distinct, self._long.templates
        self.fingerprint = fingerprint([window, TEMPLATE_ITEMS, [(b.name, b.sha256) for b in benchmarks]])

    def find(self, texts: Sequence[str], ids: Sequence[str] = ()) -> dict[int, list[Match]]:
        """Index of each contaminated text -> the test items in it, the longest match of each.

        Args:
            texts: any number; about a megabyte at a time is quickest.
            ids: not needed, here for `SampledPool`.
        """
        data = normal_batch(texts)
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == _BREAK)
        best: dict[tuple[int, int], str] = {}

        def add(text: int, owner: int, span: str) -> None:
            if len(span) > len(best.get((text, owner), "")):
                best[text, owner] = span

        for text, part in _parts(data, ends, self._blocks, 3 * self.window):  # a character is at most three bytes
            for start, stop, owner in _runs(self._long, part):
                add(text, owner, part[start:stop])
        for place, short in self._short.found(data):
            for owner in self._whole[short.decode()]:
                add(int(np.searchsorted(ends, place)), owner, short.decode())
        if self._longest_tiny:
            for text, whole in enumerate(data.split(SEPARATOR)):
                if 0 < len(whole) <= 3 * self._longest_tiny and len(key := whole.decode()) < SHORTEST_CONTAINED:
                    for owner in self._whole.get(key, ()):
                        add(text, owner, key)
        found: dict[int, list[Match]] = {}
        for (text, owner), span in sorted(best.items()):
            item = self._items[owner]
            match = Match(item.benchmark, item.number, span, owner in self._whole.get(span, ()))
            found.setdefault(text, []).append(match)
        return found


def _parts(data: bytes, ends: np.ndarray, blocks: _Blocks, reach: int) -> Iterator[tuple[int, str]]:
    """(text, part of it) around what may be common, in whole characters."""
    for start, stop in blocks.regions(data, reach):
        first = int(np.searchsorted(ends, start))
        for number, part in enumerate(data[start:stop].split(SEPARATOR), first):
            # What is cut off at the edges of a region lies outside every window that matters.
            yield number, part.decode(errors="ignore")


def _runs(windows: _Windows, part: str) -> Iterator[tuple[int, int, int]]:
    """(start, stop, item) of windows in a row that an item has."""
    open_runs: dict[int, tuple[int, int]] = {}
    for place, owner in windows.found(part):
        start, stop = open_runs.get(owner, (place, place))
        if place > stop - windows.window + 1 and stop > start:
            yield start, stop, owner
            start = place
        open_runs[owner] = (start, place + windows.window)
    for owner, (start, stop) in open_runs.items():
        yield start, stop, owner


class SampledPool:
    """The report's own check: ten windows of each training text, drawn at random, are looked up among all test windows.

    Capitals are kept, as the report removes "all but letters and digits" and says no more. It is there for fidelity; a short
    copy in a long text is mostly missed (300 of 2,000 characters are found in three texts out of four, 200 of 10,000 in one
    out of seven).

    Args:
        benchmarks: as `read_benchmarks` gives them.
        window, samples: 50 and 10 in the report.
        seed: of the run.
    """

    def __init__(self, benchmarks: Sequence[Benchmark], window: int = WINDOW, samples: int = SAMPLES, seed: int = 0) -> None:
        self.window, self.samples, self._seed = window, samples, seed
        texts = [(text, item) for b in benchmarks for item in b.items for text in item.texts]
        hashes, owners = [], []
        for k, (text, _) in enumerate(texts):
            found = window_hashes(_codes(normal_form(text, fold=False)), window)
            hashes.append(found)
            owners.append(np.full(len(found), k))
        every, first = np.unique(np.concatenate(hashes), return_index=True)
        self._hashes, self._owners = every, np.concatenate(owners)[first]
        self._items: list[TestItem] = [item for _, item in texts]
        self.windows, self.template_windows, self.short_items = len(every), 0, sum(not len(h) for h in hashes)
        self.fingerprint = fingerprint([window, samples, seed, [(b.name, b.sha256) for b in benchmarks]])

    def find(self, texts: Sequence[str], ids: Sequence[str]) -> dict[int, list[Match]]:
        """As `Pool.find`; which windows are drawn depends on a text's id alone. Texts below a window are not looked up."""
        found: dict[int, list[Match]] = {}
        everything = normal_batch(texts, fold=False).split(SEPARATOR) if texts else []
        for k, (text, name) in enumerate(zip(everything, ids, strict=True)):
            normal = text.decode()
            count = len(normal) - self.window + 1
            if count <= 0 or not len(self._hashes):
                continue
            draw = random.Random(derive_seed(self._seed, "decontaminate", name))
            places = sorted(draw.sample(range(count), min(self.samples, count)))
            codes = _codes("".join(normal[p : p + self.window] for p in places))
            hashes = np.concatenate([window_hashes(part, self.window) for part in np.split(codes, len(places))])
            at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
            for i in np.flatnonzero(self._hashes[at] == hashes):
                item = self._items[self._owners[at[i]]]
                span = normal[places[i] : places[i] + self.window]
                found.setdefault(k, []).append(Match(item.benchmark, item.number, span, whole=False))
        return found
