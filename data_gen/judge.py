"""A model's marks for instructions: difficulty and quality, from 1 to 10."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from align.core.rows import Instruction
from align.engines.complete import Ask, Asking, Unusable, ask_parsed
from align.engines.protocol import Sampling
from data_gen.prompts import Prompts, fields, read_object


def parse_marks(text: str, names: Sequence[str]) -> dict[str, float]:
    """The marks in a judge's JSON.

    Raises:
        ValueError: not JSON of the agreed shape, or a mark that is no number from 1 to 10.
    """
    data = read_object(text)
    marks: dict[str, float] = {}
    for name in names:
        mark = data.get(name)
        if isinstance(mark, bool) or not isinstance(mark, int | float) or not 1 <= mark <= 10:
            raise ValueError(f"no mark {name} from 1 to 10")
        marks[name] = float(mark)
    return marks


def judged(row: Instruction, prompts: Prompts, sampling: Sampling, tries: int) -> Asking[Instruction]:
    """The instruction with a judge's marks, or as it is where the judge gave none that can be read."""
    text = "\n".join(m["content"] for m in row.messages if m["role"] != "system")
    ask = Ask(
        id=row.id,
        purpose="judge-instruction",
        messages=prompts.render("judge-instruction", row.lang, instruction=text),
        sampling=sampling,
        json_schema=fields("difficulty", "quality", numbers=True),
    )
    marks = yield from ask_parsed(ask, partial(parse_marks, names=("difficulty", "quality")), tries)
    if isinstance(marks, Unusable):
        return row
    return replace(row, judged_difficulty=marks["difficulty"], judged_quality=marks["quality"])
