"""Near-duplicate documents: MinHash signatures in files, then clusters by locality-sensitive hashing, band after band.

A document is the set of its shingles: SHINGLE letters and digits in a row of its normal form (`normal_form`), or
HANGUL_SHINGLE where the first is a Hangul syllable. There are no words, nor white space: Korean particles glue
to words, and writers differ in where they put its spaces. With 5 and 3 the languages are alike: passages of different
documents share 0.02 of their shingles (Jaccard, median), and one word in twenty replaced leaves 0.85 and 0.86.

Signatures are R-MinHash of the library rensa (Fast Similarity Sketching, arXiv 1704.04370). For sets of 5 to 20,000 its
estimates showed no bias, and 0.7 to 1.0 times the standard error of MinHash, sqrt(J (1 - J) / permutations). Its
C-MinHash is as exact and slower; its "rho" sketches sample places of the text and are off by up to 0.6. rensa takes the
shingles as one array of 64-bit hashes, made here.

Two documents are candidates if they agree in all rows of a band. Candidates whose whole signatures say that they are
similar are in one cluster, and so is what is similar to either (single linkage).
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rensa import RMinHash

from align.core.hashing import fingerprint
from data_gen.normal_form import SEPARATOR, normal_batch

PERMUTATIONS = 256
SHINGLE, HANGUL_SHINGLE = 5, 3
THRESHOLD = 0.7
LEADERS = 4  # how many documents of a bucket all others of it are compared with
SEED = 42
_BATCH_CHARS = 2**17  # the hashes of a batch, 1 MiB, stay in a core's cache
_BLOCK = 2**13  # signatures handled at once, 8 MiB
_BREAK = SEPARATOR.decode()
_FIRST = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, the constant of Fibonacci hashing
_SECOND = np.uint64(0xBF58476D1CE4E5B9)  # of SplitMix64, as are the shifts


def identity(permutations: int = PERMUTATIONS) -> str:
    """Fingerprint of all that decides a signature besides its text: files with different ones can not be compared."""
    return fingerprint([RMinHash.ALGORITHM_VERSION, permutations, SEED, SHINGLE, HANGUL_SHINGLE])


def shingle_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The shingles of each text as 64-bit hashes, with repeats, in one row.

    A text of fewer than SHINGLE letters and digits is one, its whole normal form; one without any, the text as it is.

    Returns:
        (shingles,) uint64, and (texts + 1,) uint64, where each text's begin and end.
    """
    offsets = np.zeros(len(texts) + 1, np.uint64)
    if not texts:
        return np.empty(0, np.uint64), offsets
    # The end of the last text, and codes to read beyond it.
    normal = normal_batch(texts).decode() + _BREAK + "\0" * (SHINGLE - 1)
    codes = np.frombuffer(normal.encode("utf-16-le"), "<u2")
    ends = np.flatnonzero(codes == ord(_BREAK))
    begins = np.concatenate([[0], ends[:-1] + 1])
    offsets[1:] = ends + 1
    hashes, hangul = np.empty(ends[-1] + 1, np.uint64), np.empty(ends[-1] + 1, bool)
    for start in range(0, len(hashes), _BATCH_CHARS):
        stop = min(start + _BATCH_CHARS, len(hashes))
        hashes[start:stop], hangul[start:stop] = _hashed(codes, start, stop)
    # What goes over the end of a text becomes its first shingle once more: sets have no repeats.
    for back in range(SHINGLE):
        over = np.maximum(ends - back, begins)
        over = over if back < HANGUL_SHINGLE else over[~hangul[over]]
        hashes[over] = hashes[begins[np.searchsorted(ends, over)]]
    for k in np.flatnonzero(ends - begins < SHINGLE):
        whole = codes[begins[k] : ends[k]].tobytes() or texts[k].encode("utf-16-le", "surrogatepass")
        hashes[begins[k] : ends[k] + 1] = int.from_bytes(hashlib.blake2b(whole, digest_size=8).digest(), "little")
    return hashes, offsets


def _hashed(codes: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """(stop - start,) uint64, the shingle that begins at each place, and whether it begins with Hangul."""
    four = np.ndarray(stop - start, "<u8", codes, 2 * start, (2,)).copy()  # four codes from each place on, as a number
    fifth = codes[start + 4 : stop + 4].astype(np.uint64)
    hangul = (codes[start:stop] >= 0xAC00) & (codes[start:stop] <= 0xD7A3)
    if hangul.any():
        np.bitwise_and(four, np.uint64(2 ** (16 * HANGUL_SHINGLE) - 1), out=four, where=hangul)
        fifth *= ~hangul
    four *= _FIRST
    fifth *= _SECOND
    four += fifth
    four ^= four >> np.uint64(30)
    four *= _SECOND
    four ^= four >> np.uint64(27)
    return four, hangul


def signatures(texts: Sequence[str], permutations: int = PERMUTATIONS) -> np.ndarray:
    """The signature of each text: (texts, permutations) uint32, the same on every machine and beside any other texts.

    rensa uses all cores; $RAYON_NUM_THREADS limits them.
    """
    pack = struct.Struct(f"={permutations}I").pack  # three times as fast as numpy from lists
    found = bytearray()
    for batch in _batches(texts):
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(*shingle_hashes(batch), permutations, SEED)
        found += b"".join(pack(*row) for row in matrix.to_rows())
    return np.frombuffer(found, np.uint32).reshape(-1, permutations)


def write_signatures(path: Path, texts: Sequence[str], permutations: int = PERMUTATIONS) -> None:
    """Write the signatures of a shard's texts to a .npy file; it is there whole or not at all."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as handle:
        np.save(handle, signatures(texts, permutations))
    temporary.replace(path)


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start = size = 0
    for k, text in enumerate(texts):
        size += len(text) + 100  # short texts cost their signatures, lists of Python's numbers for a while
        if size >= _BATCH_CHARS:
            yield texts[start : k + 1]
            start, size = k + 1, 0
    if start < len(texts):
        yield texts[start:]


class _Signatures:
    """The rows of several signature files, which stay on disk: mapped to be read, and let go, or they would fill memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files, sizes = files, []
        self.permutations = int(np.load(files[0], mmap_mode="r").shape[-1]) if files else 1
        for file in files:
            part = np.load(file, mmap_mode="r")
            if part.dtype != np.uint32 or part.shape != (len(part), self.permutations):
                raise ValueError(f"{file}: {part.dtype} {part.shape}, expected rows of {self.permutations} uint32")
            sizes.append(len(part))
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.count = int(self._starts[-1])

    def rows(self, places: np.ndarray) -> np.ndarray:
        """(places, permutations) uint32."""
        found = np.empty((len(places), self.permutations), np.uint32)
        owner = np.searchsorted(self._starts, places, "right") - 1
        order = np.argsort(owner, kind="stable")
        for mine in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1) if len(places) else ():
            k = owner[mine[0]]
            found[mine] = np.load(self._files[k], mmap_mode="r")[places[mine] - self._starts[k]]
        return found


def bands_and_rows(threshold: float, permutations: int) -> tuple[int, int]:
    """Bands, and rows of each: as many rows as let a pair above the threshold be a candidate with probability 0.99.

    A pair of similarity J is one with probability 1 - (1 - J^rows)^bands; more rows make fewer false ones. Above means
    by 0.05, or half way to 1 for thresholds over 0.9.
    """
    above = min(threshold + 0.05, (1 + threshold) / 2)
    enough = [rows for rows in range(1, permutations + 1) if (1 - above**rows) ** (permutations // rows) <= 0.01]
    return permutations // max(enough, default=1), max(enough, default=1)


def clusters(files: Sequence[Path], *, threshold: float = THRESHOLD, work: Path | None = None) -> np.ndarray:
    """The clusters of near-duplicates; a document that is the first of its own is to be kept.

    Memory: 30 bytes per document and 30 MiB. Disk: 4 bytes per document and band in `work`, until it returns.
    Time: linear whatever the buckets hold, but for a sort per band.

    Args:
        files: of `write_signatures`, in the order of the documents; how these are cut into files makes no difference.
        threshold: estimated Jaccard similarity from which two documents are near-duplicates.
        work: an existing folder; None is the system's for temporary files.

    Returns:
        (documents,) int64, the number of the first document of each one's cluster.

    Raises:
        ValueError: the threshold is not in (0, 1]; a file does not hold signatures like the first one's.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold}: expected a Jaccard similarity, above 0 and at most 1")
    stored = _Signatures(files)
    sets = _Sets(stored, threshold)
    bands, rows = bands_and_rows(threshold, stored.permutations)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        for band in _band_hashes(stored, bands, rows, Path(folder) / "bands"):
            sets.join_similar(*_buckets(band))
    return sets.roots(slice(None))


def _band_hashes(stored: _Signatures, bands: int, rows: int, path: Path) -> Iterator[np.ndarray]:
    """(documents,) uint32 of each band, kept in a file. Two that are equal by chance cost a comparison and no more."""
    powers = np.cumprod(np.full(rows, _FIRST))
    with path.open("w+b") as table:
        for start in range(0, stored.count, _BLOCK):
            block = stored.rows(np.arange(start, min(start + _BLOCK, stored.count)))
            total = np.zeros((bands, len(block)), np.uint64)
            for row in range(rows):
                total += block[:, row : bands * rows : rows].T * powers[row]
            total = (total ^ (total >> np.uint64(29))) * _SECOND
            for band, values in enumerate((total >> np.uint64(32)).astype(np.uint32)):
                table.seek(4 * (band * stored.count + start))
                table.write(values.tobytes())
        table.seek(0)
        for _ in range(bands):
            yield np.frombuffer(table.read(4 * stored.count), np.uint32)


def _buckets(band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The documents that share their hash with another, bucket by bucket, and the number of each one's bucket."""
    keys = band.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(len(keys), dtype=np.uint32)  # sorts by hash, then by document, in 8 bytes each
    keys.sort()
    document, value = keys.view(np.uint32)[::2], keys.view(np.uint32)[1::2]
    same = np.zeros(len(keys) + 1, bool)
    np.equal(value[1:], value[:-1], out=same[1:-1])
    shared = same[1:] | same[:-1]
    return document[shared], np.cumsum(~same[:-1][shared], dtype=np.uint32)


class _Sets:
    """Disjoint sets of documents; the root of each is its first."""

    def __init__(self, stored: _Signatures, threshold: float) -> None:
        self._stored, self._least = stored, threshold * stored.permutations
        self._parent = np.arange(stored.count)

    def roots(self, members: np.ndarray | slice) -> np.ndarray:
        """(members,) int64."""
        found = self._parent[members]
        while not np.array_equal(further := self._parent[found], found):
            found = further
        self._parent[members] = found
        return found

    def join_similar(self, members: np.ndarray, bucket: np.ndarray) -> None:
        """Unite the similar ones of each bucket. Each is compared with the first and with the one before it; those that
        are not in the first one's set, with the first of them, and so on: LEADERS + 1 comparisons per document."""
        for turn in range(LEADERS):
            starts = np.ones(len(members), bool)
            np.not_equal(bucket[1:], bucket[:-1], out=starts[1:])
            leaders = members[starts][np.cumsum(starts) - 1]
            self._join(leaders[~starts], members[~starts])
            if turn == 0:
                self._join(members[:-1][~starts[1:]], members[1:][~starts[1:]])
            left = self.roots(members) != self.roots(leaders)
            members, bucket = members[left], bucket[left]

    def _join(self, some: np.ndarray, others: np.ndarray) -> None:
        for start in range(0, len(some), _BLOCK):
            a, b = some[start : start + _BLOCK], others[start : start + _BLOCK]
            apart = self.roots(a) != self.roots(b)
            a, b = a[apart], b[apart]
            similar = np.count_nonzero(self._stored.rows(a) == self._stored.rows(b), axis=1) >= self._least
            parent = self._parent
            for one, other in zip(a[similar].tolist(), b[similar].tolist(), strict=True):
                while parent[one] != one:
                    parent[one] = one = parent[parent[one]]
                while parent[other] != other:
                    parent[other] = other = parent[parent[other]]
                parent[max(one, other)] = min(one, other)
