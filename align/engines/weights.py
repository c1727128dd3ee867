"""Whether a running engine may take another model's weights, instead of an engine being started for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from align.core.hashing import MODEL_FILES, SLOW_TOKENIZER_FILES

NOT_COMPUTED = ("_name_or_path", "transformers_version", "use_cache")  # keys of config.json that change no answer
DTYPE = ("dtype", "torch_dtype")
# But config.json, which is compared by key, and the template: an engine is sent token ids.
WORDS = tuple(sorted({*MODEL_FILES, *SLOW_TOKENIZER_FILES} - {"config.json", "chat_template.jinja"}))
LARGE = ("tokenizer.json", "vocab.json", "added_tokens.json")


def only_weights_differ(model: Path, other: Path, *, any_dtype: bool) -> bool:
    """Whether two model folders have the same architecture, tensors, tokens and stop tokens.

    Args:
        model, other: the folders, with safetensors weights.
        any_dtype: the engine computes in a dtype of its own, so that the one a folder names does not matter.
    """
    dropped = {*NOT_COMPUTED, *(DTYPE if any_dtype else ())}
    config = _json(model / "config.json", dropped)
    return (
        config == _json(other / "config.json", dropped)
        and "quantization_config" not in config
        and all(_words(model / name) == _words(other / name) for name in WORDS)
        and _shapes(model) == _shapes(other)
    )


def _json(path: Path, dropped: set[str]) -> dict[str, Any]:
    def pairs(given: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in given if key not in dropped}

    return dict(json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=pairs))


def _words(path: Path) -> Any:
    if not path.is_file():
        return None
    # The small ones name the version of transformers that wrote them.
    return _json(path, {*NOT_COMPUTED}) if path.suffix == ".json" and path.name not in LARGE else path.read_bytes()


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return shapes
