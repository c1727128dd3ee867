"""What every benchmark shares: interleaved arms in processes of their own, result rows, and BAR lines.

A script is run as `python -m benchmarks.NAME`. It starts itself again for every arm and repeat (`--arm NAME`), so each arm
has a fresh process, its own peak memory, and nothing left over from another; arms take turns (A B B A A B ...), so that a
slow minute of a shared machine hits all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "trl", "liger-kernel", "cut-cross-entropy", "triton", "accelerate", "peft", "numpy")
COMPARISONS: dict[str, Callable[[float, float], bool]] = {">=": lambda a, b: a >= b, "<=": lambda a, b: a <= b}


def bar(name: str, value: float, comparison: str, target: float) -> bool:
    """Print `BAR <name> <value> <comparison> <target> ok|short`; whether the target is met."""
    met = COMPARISONS[comparison](value, target)
    print(f"BAR {name} {value:.3g} {comparison} {target:g} {'ok' if met else 'short'}", flush=True)
    return met


def machine() -> dict[str, Any]:
    """Device, versions and commit, for every result file."""
    import torch

    found: dict[str, Any] = {"cpu": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))}
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        found["cpu"] = names[0] if names else found["cpu"]
    found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found["versions"] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found["versions"][package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found["commit"] = COMMIT
    return found


def _commit() -> str | None:
    """The commit, "+changes" where tracked files differ from it; None without git."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "") or None
    except OSError:
        return None


COMMIT = _commit()  # of the code that runs, so asked at the start: the checkout may move on meanwhile


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def peak_rss_gib() -> float:
    """Largest resident memory of this process so far, GiB.

    Linux keeps `ru_maxrss` over fork and exec, so a child of a large process starts with its parent's; VmHWM starts anew.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 2**20
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def write_result(name: str, rows: Sequence[Mapping[str, Any]], **more: Any) -> Path:
    """Write `results/NAME.json`: machine, command, rows. Folders of this machine are no part of the command."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    given = ("DIR" if Path(word).is_absolute() else word for word in sys.argv[1:])
    command = " ".join(["python", "-m", f"benchmarks.{name}", *given])
    body = {"name": name, "command": command, "date": time.strftime("%Y-%m-%d"), **machine(), **more, "rows": list(rows)}
    path.write_text(json.dumps(body, indent=1) + "\n")
    return path


def run_arms(module: str, arms: Sequence[str], repeats: int, extra: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """Run every arm `repeats` times, in turns that change direction, each in a process of its own.

    Returns:
        arm -> what its process printed as its last line, as JSON, with the `commit`, once per repeat.

    Raises:
        SystemExit: an arm failed.
    """
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for repeat in range(repeats):
        for arm in arms if repeat % 2 == 0 else arms[::-1]:
            print(f"  {module} {arm} {repeat + 1}/{repeats} ...", end=" ", flush=True)
            begun = time.monotonic()
            command = [sys.executable, "-m", module, "--arm", arm, *extra]
            commit = _commit()  # the arm imports what the checkout holds when it starts
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            if ended.returncode:
                print(ended.stdout[-2000:], ended.stderr[-4000:], sep="\n")
                raise SystemExit(f"{module}: arm {arm} failed with code {ended.returncode}")
            found[arm].append({**json.loads(ended.stdout.strip().splitlines()[-1]), "commit": commit})
            print(f"{time.monotonic() - begun:.0f} s", flush=True)
    return found


def test_data() -> Path | None:
    """The folder of real test data, $ALIGN_TEST_DATA or ../shared/data; None, and a line of why, where it is absent."""
    folder = Path(os.environ.get("ALIGN_TEST_DATA", "../shared/data"))
    if folder.is_dir():
        return folder
    print(f"error: {folder} is not there; set ALIGN_TEST_DATA to the folder of the test data")
    return None


def arguments(about: str, repeats: int) -> argparse.ArgumentParser:
    """The options every script has."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", help="run one arm in this process and print its row as JSON (used by the script itself)")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"processes per arm (default {repeats})")
    return parser
