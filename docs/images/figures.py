"""Makes the pictures of docs/training.md: `python docs/images/figures.py` from the root of the repository."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from align.packing.attention import sees
from align.packing.layout import shared_layout

HERE = Path(__file__).parent
COLOURS = {"prompt": "#4c72b0", "chosen": "#55a868", "rejected": "#c44e52", "seen": "#d9d9d9"}
plt.rcParams.update({"font.size": 9, "svg.hashsalt": "align", "svg.fonttype": "none", "font.family": "sans-serif"})


def shared_row() -> None:
    """The attention matrix of two pairs in one row, drawn from the code that makes it."""
    first = (list(range(10, 16)), [[30, 31, 32, 2], [40, 41, 2]])
    items = [first, (list(range(50, 54)), [[60, 61, 2], [70, 71, 72, 73, 2]])]
    batch = shared_layout(items)
    assert batch.trees is not None
    visible = sees(batch).numpy()
    kinds = [k for tree in batch.trees for k, n in enumerate((tree.prefix, *tree.branches)) for _ in range(n)]
    picture = np.zeros(visible.shape, dtype=int)
    for column, kind in enumerate(kinds):
        picture[visible[:, column], column] = kind + 1
    names = ["prompt", "chosen", "rejected"]
    figure, axes = plt.subplots(figsize=(7.2, 6.2))
    axes.imshow(picture, cmap=ListedColormap(["white", *(COLOURS[name] for name in names)]), vmin=0, vmax=3)
    positions = batch.position_ids[0].tolist()
    labels = [f"{names[kind][0]}{position}" for kind, position in zip(kinds, positions, strict=True)]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xticks(np.arange(-0.5, len(labels)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(labels)), minor=True)
    axes.grid(which="minor", color="#cccccc", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    border = batch.trees[0].stop - 0.5
    axes.axhline(border, color="black", linewidth=1.2)
    axes.axvline(border, color="black", linewidth=1.2)
    axes.set_xlabel("this token's key and value (letter: part of the pair, number: position)")
    axes.set_ylabel("are seen by this token")
    axes.set_title("Two pairs in one row: white is never computed")
    patches = [Patch(color=COLOURS[name], label=name) for name in names]
    axes.legend(handles=patches, loc="upper right", title="key and value of")
    figure.tight_layout()
    figure.savefig(HERE / "shared_row.svg", metadata={"Date": None})


def memory() -> None:
    """Estimated and measured peaks; the measured ones are copied from docs/LOG.md."""
    from align.builtin_models import builtin_folder
    from align.steps.estimate import parameter_count, stored_bytes
    from align.train.memory import ModelShape, training_memory

    folder = builtin_folder("smollm2-135m-instruct")
    shape = ModelShape.of(folder, parameter_count(folder))
    assert shape is not None
    rows = []
    for name, tokens, scored, measured, options in MEASURED:
        found = training_memory(shape, tokens=tokens, scored=scored, stored_bytes=stored_bytes(folder), **options)
        rows.append((f"{name}\n{tokens} tokens", vars(found), measured))
    parts = list(rows[0][1])
    figure, axes = plt.subplots(figsize=(7.2, 3.6))
    left = np.zeros(len(rows))
    for part, colour in zip(parts, plt.get_cmap("tab10").colors, strict=False):
        width = np.array([row[1][part] / 1e9 for row in rows])
        axes.barh(range(len(rows)), width, left=left, color=colour, label=part, height=0.6)
        left += width
    axes.plot([row[2] for row in rows], range(len(rows)), "k|", markersize=22, markeredgewidth=2.5, label="measured peak")
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("GB resident, SmolLM2-135M on a CPU")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.18), ncols=5, frameon=False)
    figure.tight_layout()
    figure.savefig(HERE / "memory.svg", metadata={"Date": None})


# name, tokens and scored tokens of the largest micro-batch, measured peak in GB, options
MEASURED: list[tuple[str, int, int, float, dict]] = [
    ("all weights, bf16", 2000, 1100, 5.48, {"bf16": True}),
    ("all weights, bf16", 400, 220, 4.13, {"bf16": True}),
    ("gradient checkpointing, bf16", 2000, 1100, 3.77, {"bf16": True, "gradient_checkpointing": True}),
    ("adapters, bf16", 2000, 1100, 3.96, {"bf16": True, "lora_rank": 16}),
    ("all weights, float32", 1000, 550, 5.55, {"bf16": False}),
]

if __name__ == "__main__":
    shared_row()
    memory()
