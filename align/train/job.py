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
from align.core.errors import StepError, UserError
from align.train.launch import read_job, run_job


def main() -> int:
    """Run the job that argv names; its exit code."""
    path = Path(sys.argv[1])
    rank = int(os.environ.get("RANK", "0"))
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
            code = error.exit_code if isinstance(error, UserError | StepError) else StepError.exit_code
            message = str(error) if isinstance(error, UserError | StepError) else f"{type(error).__name__}: {error}"
            if rank == 0 or not (path.parent / "error.json").exists():
                write_json(path.parent / "error.json", {"message": message, "code": code})
            return code
    if rank == 0:
        write_json(path.parent / "result.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
