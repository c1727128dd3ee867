"""What a proxy run is compared by: counts, losses, margins, log-probs and evaluation numbers, out of its manifests."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from align.core.hashing import content_id

PACKAGES = ("torch", "transformers", "trl", "tokenizers", "numpy", "scikit-learn")
# What is known before any token is sampled; it must agree closely on every machine.
BEFORE_SAMPLING = ("corpus", "taxonomy", "instruct", "sft.data", "sft", "reward.data")
HISTORY_COLUMNS = ("loss", "margin", "chosen_logps", "rejected_logps", "grad_norm")


def environment() -> dict[str, str]:
    """Versions, and the processor as far as it decides rounding."""
    known: dict[str, str] = {}
    cpu = Path("/proc/cpuinfo")
    if cpu.is_file():
        for line in cpu.read_text().splitlines():
            name, _, value = line.partition(":")
            known.setdefault(name.strip(), value.strip())
    # Virtual machines hide the model's number, so what the processor can do is part of its name.
    features = content_id(sorted(known.get("flags", "").split()))
    model = known.get("model name") or platform.processor()
    return {**{p: metadata.version(p) for p in PACKAGES}, "cpu": f"{model} {features}"}


def measure(run_dir: Path) -> dict[str, Any]:
    """Every number of a run that a real change would move, by step."""
    found: dict[str, Any] = {}
    for path in sorted(run_dir.rglob("manifest.json")):
        manifest = json.loads(path.read_text())
        entry: dict[str, Any] = {k: manifest[k] for k in ("asked", "rows", "rejects")}
        metrics = manifest["metrics"]
        if "history" in metrics:
            entry["history"] = [{k: row[k] for k in HISTORY_COLUMNS if row.get(k) is not None} for row in metrics["history"]]
            entry["step0"] = metrics["step0"]
            entry["tokens"] = metrics["tokens"]
        for name in ("accuracy", "final_loss", "mean_margin", "mean_agreement", "kept_share", "finished_share"):
            if name in metrics:
                entry[name] = metrics[name]
        if "table" in metrics:
            entry["table"] = {row["model"]: row for row in metrics["table"]}
            entry["kl"] = {f"{row['model']} to {row['to']}": row["kl"] for row in metrics["kl"]}
        if "metrics" in metrics:  # of a suite
            entry["means"] = {
                f"{metric} {model}": of["mean"] for metric, by in metrics["metrics"].items() for model, of in by.items()
            }
        found[manifest["step"]] = entry
    return found


def differences(
    golden: dict[str, Any], now: dict[str, Any], *, exact: bool, steps: tuple[str, ...] | None = None
) -> list[str]:
    """What a run has otherwise than the golden file, one line each; empty when all agrees.

    Where versions and processor match, floats agree to 1e-6 and counts exactly. Elsewhere rounding can turn a sampled
    token, so only what precedes sampling is held closely (1e-3); of what follows, ln 2 at step 0 and the signs of learning
    are held: the shares of finished answers and kept pairs within 0.3, losses within 0.3 (or 30 % above 1).
    """
    lines: list[str] = []
    if steps is None:
        lines += [f"{step}: not in the golden file" for step in now if step not in golden]
    for step in golden:
        if steps is not None and step not in steps:
            continue
        if step not in now:
            lines.append(f"{step}: missing")
            continue
        close = exact or step in BEFORE_SAMPLING
        tolerance = 1e-6 if exact else 1e-3 if close else 0.3
        _compare(golden[step], now[step], step, tolerance, close, lines)
    return lines


def _compare(golden: Any, now: Any, where: str, tolerance: float, close: bool, lines: list[str]) -> None:
    if isinstance(golden, dict):
        if where.endswith("rejects") and not close:
            return
        for key in golden.keys() | (now.keys() if isinstance(now, dict) else set()):
            if not isinstance(now, dict) or key not in now or key not in golden:
                lines.append(f"{where}.{key}: only on one side")
                continue
            _compare(golden[key], now[key], f"{where}.{key}", tolerance, close, lines)
    elif isinstance(golden, list):
        if not isinstance(now, list) or len(golden) != len(now):
            if close:
                lines.append(f"{where}: {len(golden)} entries became {len(now)}")
            return
        for i, (a, b) in enumerate(zip(golden, now, strict=True)):
            _compare(a, b, f"{where}[{i}]", tolerance, close, lines)
    elif isinstance(golden, float) or isinstance(now, float):
        last = where.rsplit(".", 1)[-1]
        if golden is None or now is None:
            if golden is not now:
                lines.append(f"{where}: {golden} became {now}")
        elif not close and last not in ("loss", "finished_share", "kept_share"):
            return
        elif abs(golden - now) > (1e-3 if where.endswith("step0.loss") else tolerance) * max(1.0, abs(golden)):
            lines.append(f"{where}: {golden:.8g} became {now:.8g}")
    elif golden != now and close:
        lines.append(f"{where}: {golden} became {now}")
