"""`python -m benchmarks [NAME ...]`: the benchmarks that need no GPU, one after another; exit code 1 if a bar is short."""

from __future__ import annotations

import argparse
import subprocess
import sys

CPU_BENCHMARKS = (
    "dpo_vs_trl", "decontaminate", "near_duplicates", "pii", "placement", "corpus_memory", "generation_overhead",
    "scoring", "pairs", "agreement_real", "reward_hh", "suite_overhead",
)  # fmt: skip


def main() -> int:
    """Run those named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(CPU_BENCHMARKS)}; none runs all")
    names = parser.parse_args().names or list(CPU_BENCHMARKS)
    if unknown := sorted(set(names) - set(CPU_BENCHMARKS)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(CPU_BENCHMARKS)}")
    # Each in a process of its own; all run, even after one that was short.
    codes = {name: subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode for name in names}
    for name, code in codes.items():
        if code not in (0, 1):
            print(f"error: {name} ended with code {code}", file=sys.stderr)
    return max((code if code in (0, 1) else 2 for code in codes.values()), default=0)


if __name__ == "__main__":
    sys.exit(main())
