"""Errors that end a command with one clear line.

`UserError` is the user's to mend (exit code 2); `StepError` is ours or the machine's (exit code 1). Nothing else is
shown without a traceback.
"""

from __future__ import annotations

import errno


class UserError(Exception):
    """Something in the recipe, the files or the folder that the user can mend. The text says where and what to do."""

    exit_code = 2


class StepError(Exception):
    """A step could not finish for a reason that is not the user's. The text names the step and its log."""

    exit_code = 1


def explain(error: BaseException) -> tuple[str, int]:
    """One line for the user and the exit code."""
    if isinstance(error, UserError | StepError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        place = error.filename or "the run folder"
        return f"no space left on the disk of {place}; make room and run the same command again", UserError.exit_code
    text = " ".join(str(error).split())[:300]
    # safetensors and torch raise types of their own for a full disk and for too little memory.
    if "No space left" in text:
        return f"no space left on the disk ({text}); make room and run the same command again", UserError.exit_code
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "out of memory; lower micro_batch_tokens or max_length and run the same command again", UserError.exit_code
    return f"{type(error).__name__}: {text}", StepError.exit_code
