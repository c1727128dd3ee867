"""One of several training processes: `torchrun -m align.train.job JOB.json`, or `accelerate launch` on several machines.

Only the first process prints, writes the result and the model; the others write to a log beside the job.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from pathlib import Path

from align.core.artifact import write_json
from align.core.errors import StepError, UserError, explain
from align.core.processes import end_with
from align.train.launch import read_job, run_job


def main() -> int:
    """Run the job that argv names; its exit code."""
    path = Path(sys.argv[1])
    rank = int(os.environ.get("RANK", "0"))
    if parent := os.environ.get("ALIGN_PARENT"):
        end_with(int(parent))
    with contextlib.ExitStack() as stack:
        if rank:
            output = stack.enter_context((path.parent / f"process-{rank}.log").open("w"))
            stack.enter_context(contextlib.redirect_stdout(output))
            stack.enter_context(contextlib.redirect_stderr(output))
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
        try:
            result = run_job(*read_job(path))
        except Exception as error:
            traceback.print_exc()
            message, code = explain(error)
            kind = type(error).__name__ if isinstance(error, UserError | StepError) else "other"
            if code == UserError.exit_code:  # out of memory, a full disk: as telling as a mistake
                kind = UserError.__name__
            write_json(path.parent / f"error-{rank}.json", {"kind": kind, "message": message, "code": code})
            return code
    if rank == 0:
        write_json(path.parent / "result.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
