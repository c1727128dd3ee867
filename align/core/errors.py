"""Errors that end a command with one clear line.

`UserError` is the user's to mend (exit code 2); `StepError` is ours or the machine's (exit code 1). Nothing else is
shown without a traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """Something in the recipe, the files or the folder that the user can mend. The text says where and what to do."""

    exit_code = 2


class StepError(Exception):
    """A step could not finish for a reason that is not the user's. The text names the step and its log."""

    exit_code = 1
