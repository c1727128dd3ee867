"""`make regress`: run recipes/proxy.yaml and compare it with golden.json.

python -m tests.regression.compare                 run anew, compare, exit 1 on a difference
python -m tests.regression.compare --run DIR       compare a finished run
python -m tests.regression.compare --record        write golden.json (only from a clean working tree)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.regression.measure import differences, environment, measure

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden.json")
# One thread: sums in another order are other sums, and so small a model gains nothing from two.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run_proxy(run_dir: Path, *extra: str, python_path: Path | None = None, command: str = "run") -> None:
    """Run the proxy recipe in `run_dir` through the command line.

    Raises:
        subprocess.CalledProcessError: it failed; its output is in the error.
    """
    env = {**os.environ, **ENVIRONMENT}
    if python_path:
        env["PYTHONPATH"] = str(python_path)
    subprocess.run(
        [sys.executable, "-m", "align.cli", *command.split(), "--recipe", str(ROOT / "recipes/proxy.yaml"),
         "--run-dir", str(run_dir), *extra],
        check=True, env=env, capture_output=True, text=True, cwd=python_path or ROOT,
    )  # fmt: skip


def main() -> int:
    """Run, compare, report."""
    parser = argparse.ArgumentParser(prog="python -m tests.regression.compare", description=main.__doc__)
    parser.add_argument("--run", type=Path, help="a finished proxy run to compare instead of running it")
    parser.add_argument("--record", action="store_true", help="write golden.json from this run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = args.run or Path(folder) / "proxy"
        if not args.run:
            started = time.monotonic()
            try:
                run_proxy(run_dir)
            except subprocess.CalledProcessError as error:
                sys.stderr.write(error.stdout + error.stderr)
                return 1
            sys.stdout.write(f"proxy run: {time.monotonic() - started:.0f} s\n")
        now = measure(run_dir)
    if args.record:
        status = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True)
        if [x for x in status.stdout.splitlines() if not x.endswith("golden.json")]:
            sys.stderr.write(
                "error: the working tree has changes; commit them first, so that the golden file has a source\n"
            )
            return 2
        GOLDEN.write_text(json.dumps({"environment": environment(), "steps": now}, indent=1, sort_keys=True) + "\n")
        sys.stdout.write(f"wrote {GOLDEN}\n")
        return 0
    golden = json.loads(GOLDEN.read_text())
    exact = golden["environment"] == environment()
    found = differences(golden["steps"], now, exact=exact)
    how = "exactly" if exact else "with tolerance (other versions or another CPU)"
    sys.stdout.write(f"compared {len(golden['steps'])} steps, {how}\n")
    for line in found:
        sys.stdout.write(f"  {line}\n")
    sys.stdout.write("regression: " + (f"{len(found)} differences\n" if found else "no difference\n"))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
