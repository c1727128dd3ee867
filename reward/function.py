"""A reward of the user's own: a Python function in a local file.

    def score(prompt, responses):
        return [-len(response) for response in responses]

`prompt` is a list of {"role", "content"}, `responses` a list of texts; one number comes back for each response.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from align.core.errors import StepError, UserError
from reward.interface import Group


def _told(error: BaseException, path: Path) -> str:
    """Type and message of an error on one line, after the user's file and, where known, the line in it."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line, text = error.lineno, error.msg
    else:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line, text = lines[-1] if lines else None, str(error)
    return f"{path}{f':{line}' if line else ''}: {type(error).__name__}: {' '.join(text.split())[:300]}"


class Function:
    """A user's function as a reward model; `load_function` makes one."""

    def __init__(self, function: Callable[[list[dict[str, str]], list[str]], Any], name: str, path: Path) -> None:
        self._function, self._name, self._path = function, name, path

    def score(self, groups: Sequence[Group]) -> Iterator[tuple[int, list[float]]]:
        """See `reward.interface.RewardModel`. NaN from the function says that a response cannot be scored.

        Raises:
            StepError: the function raised, or returned something else than one number (bool, int, float) for each response.
        """
        for place, group in enumerate(groups):
            try:
                # Copies: what the function does to its arguments must not reach the rows.
                returned = self._function([dict(turn) for turn in group.prompt], list(group.responses))
            except (Exception, SystemExit) as error:
                raise StepError(f"{_told(error, self._path)} (in {self._name}, prompt {group.id})") from error
            yield place, self._numbers(returned, group)

    def _numbers(self, returned: Any, group: Group) -> list[float]:
        said = f"{self._path}: {self._name} returned for prompt {group.id}"
        if not isinstance(returned, list | tuple):
            raise StepError(f"{said} a {type(returned).__name__}; it must return a list of numbers")
        if len(returned) != len(group.responses):
            raise StepError(
                f"{said} {len(returned)} scores for {len(group.responses)} responses; it must return one for each"
            )
        for i, value in enumerate(returned):
            if not isinstance(value, int | float):
                raise StepError(f"{said} {value!r:.80} ({type(value).__name__}) for response {i}; return float, int or bool")
        try:
            return [float(value) for value in returned]
        except OverflowError:
            raise StepError(f"{said} an integer that is too large for a float") from None


def load_function(path: Path, name: str = "score") -> Function:
    """The reward function `name` of a Python file.

    The file is run as code, with all rights of this process, and only because the recipe names it. It is read as it is now:
    no compiled copy is kept beside it.

    Raises:
        UserError: no such file, the file does not import, or it has no such function.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; a reward of your own is a Python file with a function {name}")
    module = ModuleType(f"reward function {path}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their own module up
    try:
        exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise UserError(f"{_told(error, path)} (while it was imported)") from error
    function = getattr(module, name, None)
    if not callable(function):
        has = "there is no such name in it" if function is None else f"it is a {type(function).__name__}"
        raise UserError(f"{path}: {name} is not a function ({has}); define {name}(prompt, responses)")
    return Function(function, name, path)
