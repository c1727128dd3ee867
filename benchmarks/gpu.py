"""The three GPU benchmarks within a time budget, and what they share: events, interleaved arms, peaks, machine rates.

    python -m benchmarks.gpu                       loss head, prefix sharing, DPO end to end: under 9 minutes on one H100
    python -m benchmarks.gpu --wheels DIR          peers (trl, liger-kernel, datasets, ...) unpacked from wheels, no network
    python -m benchmarks.gpu --only loss_head      one of them, with the whole budget
    python -m benchmarks.gpu --smoke               tiny shapes on the CPU, nothing written: does the code run?

Each script runs in a process of its own, so that one that dies or fills the memory takes nothing along, and within a script
the arms take turns in one process (A B B A ...), timed by CUDA events. What a script leaves of its time, the next one gets.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.harness import bar, spread, write_result
from benchmarks.peers import unpack

SHARES = {"loss_head": 0.34, "prefix_sharing": 0.26, "dpo_gpu": 0.40}  # of the budget
GRACE = 15.0  # seconds that a script may be late before it is ended
QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
Call = Callable[[], Any]


def parser(about: str | None, budget: float) -> argparse.ArgumentParser:
    """The options every GPU script has."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--budget", type=float, default=budget, help=f"seconds in all (default {budget:g})")
    made.add_argument("--profile", action="store_true", help="also print where our arm spends its time")
    made.add_argument("--smoke", action="store_true", help="tiny shapes on the CPU, writes no result")
    return made


def device_for(smoke: bool) -> torch.device:
    """The CPU for a smoke run, else the GPU.

    Raises:
        SystemExit: with code 2, there is no GPU.
    """
    if smoke:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        print(
            "error: this benchmark needs a CUDA device and there is none; --smoke runs tiny shapes on the CPU",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return torch.device("cuda", 0)


class Clock:
    """What is left of a budget that began with the process: imports take seconds, too."""

    def __init__(self, seconds: float) -> None:
        age = time.time() - psutil.Process().create_time()
        self._end = time.monotonic() - age + seconds

    def left(self) -> float:
        return self._end - time.monotonic()


# Time and memory


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clean(device: torch.device) -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def seconds_per_call(call: Call, count: int, device: torch.device) -> float:
    """Mean of `count` calls in a row: CUDA events around them, or the wall clock on a CPU."""
    if device.type != "cuda":
        begun = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - begun) / count
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(count):
        call()  # what it returns is dropped at once, so that memory never holds two of them
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3 / count


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """Most memory that a call holds over what is there before it; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def reason_of(error: BaseException) -> str:
    """One line that says what went wrong."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Turns:
    """What `take_turns` found.

    Attributes:
        seconds: arm -> one mean per turn, seconds per call.
        calls: arm -> calls timed in all.
        failed: arm -> why it was left out.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.calls: dict[str, int] = {}
        self.failed: dict[str, str] = {}

    def median_ms(self, arm: str) -> float:
        """NaN for an arm without a time, which no bar is met by."""
        return spread(self.seconds[arm])["median"] * 1e3 if self.is_timed(arm) else float("nan")

    def is_timed(self, arm: str) -> bool:
        return arm not in self.failed and bool(self.seconds.get(arm))

    def row(self, arm: str) -> dict[str, Any]:
        """What a result row says of an arm."""
        if not self.is_timed(arm):
            return {"arm": arm, "status": f"failed: {self.failed.get(arm, 'never called')}"}
        turns, calls = self.seconds[arm], self.calls[arm]
        return {
            "arm": arm,
            "status": "ok",
            "ms": {name: value * 1e3 for name, value in spread(turns).items()},
            "turns": len(turns),
            "calls": calls,
            "loop_seconds": sum(turns) / len(turns) * calls,
        }


def take_turns(
    arms: Mapping[str, Call],
    device: torch.device,
    clock: Clock,
    *,
    seconds: float,
    repeats: int,
    reserve: float = 0.0,
    before: Callable[[str], object] | None = None,
) -> Turns:
    """Warm every arm up, then time all of them in turns that change direction.

    Args:
        arms: what to call.
        device: of the work.
        clock: no turn but the first begins when less than `reserve` is left.
        seconds: of loops for each arm, all turns together.
        repeats: turns.
        reserve: seconds to leave.
        before: called with an arm's name before its calls, outside of the measurement.
    """
    turns = Turns()
    counts: dict[str, int] = {}

    def attempt(arm: str, count: int) -> float | None:
        try:
            if before is not None:
                before(arm)
            return seconds_per_call(arms[arm], count, device)
        except Exception as error:  # a peer may fail in any way; its row says so
            turns.failed[arm] = reason_of(error)
            return None

    for arm in arms:
        if attempt(arm, 1) is not None and (once := attempt(arm, 1)) is not None:
            counts[arm] = max(1, min(500, round(seconds / repeats / once)))
        else:
            clean(device)
    for turn in range(repeats):
        if turn and clock.left() < reserve:
            break
        for arm in list(counts) if turn % 2 == 0 else list(counts)[::-1]:
            if arm not in turns.failed and (took := attempt(arm, counts[arm])) is not None:
                turns.seconds.setdefault(arm, []).append(took)
                turns.calls[arm] = turns.calls.get(arm, 0) + counts[arm]
    return turns


def show_profile(call: Call, device: torch.device, title: str, rows: int = 18) -> None:
    """Print the operations that take most time in three calls."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        for _ in range(3):
            call()
        synchronize(device)
    print(f"profile of {title}, three calls:", flush=True)
    sort_by = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    print(seen.key_averages().table(sort_by=sort_by, row_limit=rows, max_name_column_width=60), flush=True)


# The machine


class Watch:
    """Clocks, power and temperature while a script runs, twice a second, from nvidia-smi where there is one."""

    FIELDS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")

    def __init__(self, device: torch.device) -> None:
        self._samples: list[list[float]] = []
        self._process: subprocess.Popen[str] | None = None
        self._is_wanted = device.type == "cuda"

    def __enter__(self) -> Watch:
        command = ["nvidia-smi", f"--query-gpu={','.join(self.FIELDS)}", "--format=csv,noheader,nounits", "-lms", "500"]
        if self._is_wanted:
            with contextlib.suppress(OSError):
                self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                self._samples.append([float(word) for word in line.split(",")])

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def found(self) -> dict[str, dict[str, float]] | None:
        """Field -> median, min and max so far; None where nvidia-smi said nothing."""
        samples = [sample for sample in self._samples if len(sample) == len(self.FIELDS)]
        if not samples:
            return None
        return {name: spread(column) for name, column in zip(self.FIELDS, zip(*samples, strict=True), strict=True)}


def machine_rates(device: torch.device, clock: Clock, *, smoke: bool) -> dict[str, float]:
    """What the device does at best: the matrix product of a head with 8,192 rows, and a copy that no cache can hold."""
    rows, inner, columns = (32, 16, 64) if smoke else (8192, 4096, 102_400)
    dtype = torch.float32 if smoke else torch.bfloat16
    left = torch.randn(rows, inner, dtype=dtype, device=device)
    right = torch.randn(inner, columns, dtype=dtype, device=device)
    product = torch.empty(rows, columns, dtype=dtype, device=device)
    source = torch.randint(256, (2**10 if smoke else 2**30,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    arms: dict[str, Call] = {"gemm": lambda: torch.mm(left, right, out=product), "copy": lambda: target.copy_(source)}
    turns = take_turns(arms, device, clock, seconds=0.02 if smoke else 1.0, repeats=2 if smoke else 5)
    gemm, copy = (turns.median_ms(arm) / 1e3 for arm in arms)
    return {"gemm_tflops": 2 * rows * inner * columns / gemm / 1e12, "copy_gb_per_s": 2 * source.numel() / copy / 1e9}


# Results

Bar = tuple[str, float, str, float]  # name, value, comparison, target


def save(name: str, rows: Sequence[Mapping[str, Any]], smoke: bool, **more: Any) -> None:
    """Write the rows so far to `results/NAME.json`; a smoke run only checks that they could be written."""
    text = json.dumps([*rows, more])
    if smoke:
        return
    try:
        write_result(name, rows, **more)
    except OSError as error:  # a folder that cannot be written, no git: the numbers are worth more than the file
        print(f"results/{name}.json not written ({error}); its rows: {text}", flush=True)


def say_bars(bars: Sequence[Bar], smoke: bool) -> int:
    """Print the BAR lines; 1 if any is short. Numbers of a smoke run mean nothing, so it has no such line."""
    if smoke:
        print("smoke:", *(f"{name} {value:.3g}" for name, value, _, _ in bars), flush=True)
        return 0
    return int(not all([bar(*each) for each in bars]))  # a list: every line is printed


# All three


def run_script(name: str, options: Sequence[str], limit: float, path: Sequence[Path] = ()) -> tuple[int, list[str]]:
    """Run a script, showing what it prints; `path` comes before all else on its path.

    Returns:
        its exit code, 124 where it was ended after `limit` seconds; its BAR lines.
    """
    lines: list[str] = []

    def show(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))

    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    before = os.environ.get("PYTHONPATH")
    whole = os.pathsep.join([*map(str, path), *([before] if before else [])])
    environment = {**os.environ, **QUIET, **({"PYTHONPATH": whole} if whole else {})}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    reader = threading.Thread(target=show, args=(process,), daemon=True)
    reader.start()
    try:
        code = process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        print(f"{name}: ended after {limit:.0f} s; results/{name}.json has what was done by then", flush=True)
        code = 124
    reader.join(timeout=5)
    return code, [line for line in lines if line.startswith("BAR ")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the three scripts; 1 if a bar is short or a script failed, 2 without a GPU."""
    made = parser(__doc__, budget=500.0)
    made.add_argument("--wheels", type=Path, help="folder of wheels with the peers; they are unpacked, nothing is installed")
    made.add_argument("--only", choices=list(SHARES), help="run one script")
    options = made.parse_args(argv)
    device_for(options.smoke)
    clock = Clock(options.budget)
    flags = [*(["--smoke"] if options.smoke else []), *(["--profile"] if options.profile else [])]
    names = [options.only] if options.only else list(SHARES)
    codes: dict[str, int] = {}
    bars: list[str] = []
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        path = unpack(options.wheels, Path(folder)) if options.wheels is not None else []
        for index, name in enumerate(names):
            share = SHARES[name] / sum(SHARES[each] for each in names[index:])
            seconds = max(1.0, clock.left() * share)
            print(f"--- {name}: up to {seconds:.0f} s", flush=True)
            codes[name], said = run_script(name, [*flags, "--budget", f"{seconds:.0f}"], seconds + GRACE, path)
            bars += said
    print("---", *bars, sep="\n", flush=True)
    for name, code in codes.items():
        if code not in (0, 1):
            print(f"{name} ended with code {code}", flush=True)
    return int(any(codes.values()))


if __name__ == "__main__":
    sys.exit(main())
