"""The process that runs steps which hold an engine or train: `python -m align.worker --run-dir DIR --steps A,B`.

The runner starts it; when it ends, all its memory is given back, and a crash in it leaves the runner alive. Errors travel
to the runner as JSON in the file `--error`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import traceback
from pathlib import Path

from align.core.artifact import StepFolder, write_json
from align.core.errors import StepError, explain
from align.core.hashing import FileHashes
from align.core.processes import end_with
from align.recipe.load import load_recipe
from align.steps.context import Context, Process
from align.steps.functions import work_of
from align.steps.table import Planned, build_steps, plan_steps


def run_one(planned: Planned, process: Process) -> None:
    """Run one step in this process: open its folder, do its work, see that it ended with a manifest."""
    step = planned.step
    assert planned.fingerprint is not None
    out = StepFolder(
        process.run_dir / step.folder,
        step=step.name,
        fingerprint=planned.fingerprint,
        inputs=planned.input_digests,
        row_type=step.row_type,
        seed=process.recipe.seed,
    )
    work_of(step.name)(Context(step, out, process))
    if not (out.folder / "manifest.json").is_file():
        raise StepError(f"{step.name}: ended without a manifest")


def main() -> int:
    """Run the named steps in order; on the first failure write the error file and stop."""
    parser = argparse.ArgumentParser(prog="align.worker", description=main.__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--steps", required=True, help="comma-separated names, in order")
    parser.add_argument("--parent", type=int, required=True, help="process id of the runner")
    parser.add_argument("--error", type=Path, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    end_with(args.parent)
    # Set before any model library is imported; a recipe that wants a server names it itself.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    recipe = load_recipe(args.run_dir / "recipe.yaml")
    steps = build_steps(recipe)
    process = Process(recipe, args.run_dir, {s.name: s for s in steps})
    hashes = FileHashes(args.run_dir / ".hashes.json")
    name = ""
    try:
        for name in args.steps.split(","):
            planned = next(p for p in plan_steps(steps, args.run_dir, hashes) if p.step.name == name)
            run_one(planned, process)
    except BaseException as error:
        traceback.print_exc()
        message, code = explain(error)
        write_json(args.error, {"step": name, "message": message, "code": code})
        return code
    finally:
        process.close()
    return 0


def read_error(path: Path) -> dict[str, object] | None:
    """What a failed worker left, or None where it died without a word."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Engines leave threads behind that can block a normal exit; everything of ours is on disk by now.
    os._exit(code)
