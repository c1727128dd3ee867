"""Content hashes, fingerprints and seeds: everything that must be the same on every machine and in every order."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

ID_LENGTH = 16  # hex digits: 64 bits, so 8 million rows collide with probability 2e-6


_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; equal values give equal text. NaN is refused."""
    return _CANONICAL.encode(value)


def content_id(*parts: Any) -> str:
    """A row's id: the first 64 bits of the SHA-256 of its canonical JSON."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:ID_LENGTH]


def fingerprint(value: Any) -> str:
    """A step's or a model's identity: SHA-256 of the canonical JSON, 32 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:32]


def derive_seed(run_seed: int, *keys: str | int) -> int:
    """A 31-bit seed from the run's seed and what the draw is for (a step, a prompt id), never from a row's position."""
    digest = hashlib.sha256(canonical_json([run_seed, *keys]).encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF


def unit_interval(run_seed: int, *keys: str | int) -> float:
    """A repeatable number in [0, 1) for hash-based splits: adding rows never moves another row."""
    digest = hashlib.sha256(canonical_json([run_seed, *keys]).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def short_hash(text: str) -> int:
    """64 bits of a text's BLAKE2b hash, never 0; for looking up equal texts among millions without keeping them."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") or 1


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, read in 1 MiB blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# What of a model folder decides its answers. A README or an optimizer state does not.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "adapter_config.json",
)
# Read only where there is no tokenizer.json.
SLOW_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "added_tokens.json",
)


class FileHashes:
    """SHA-256 of files, remembered by size and times of change so that unchanged weights are read once per run."""

    def __init__(self, cache_path: Path) -> None:
        self._path = cache_path
        try:
            self._known: dict[str, Any] = json.loads(cache_path.read_text())
        except (OSError, ValueError):
            self._known = {}

    def sha256(self, path: Path) -> str:
        stat = path.stat()
        key = str(path.resolve())
        # `cp -p` and `rsync -t` keep the modification time; nothing keeps the time of the inode's change.
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        known = self._known.get(key)
        if known and known[0] == stamp:
            return str(known[1])
        value = file_sha256(path)
        self._known[key] = [stamp, value]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self._known))
        temporary.replace(self._path)
        return value

    def model(self, folder: Path) -> str:
        """A model folder's identity: the content of its weights, tokenizer, template and configs; not its path."""
        names = MODEL_FILES if (folder / "tokenizer.json").is_file() else MODEL_FILES + SLOW_TOKENIZER_FILES
        files = [p for name in names if (p := folder / name).is_file()]
        files += sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*_model*.bin"))
        return fingerprint({p.name: self.sha256(p) for p in files})
