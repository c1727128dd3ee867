"""Rows of several artifacts side by side, a shard of prompts at a time, so that memory holds one shard.

Steps that sample or score work through one list of prompts, so their rows come in its order; which rows belong to which
prompt is still told by id alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from align.core.artifact import SHARD_SIZE, Artifact
from align.core.errors import StepError, UserError
from align.core.rows import arrow_schema
from align.steps.context import Context


class ByPrompt:
    """The rows of one artifact, handed out by prompt, in the order of a list of prompts."""

    def __init__(self, artifact: Artifact, row_type: type) -> None:
        artifact.check(row_type)
        self._files = iter(sorted(artifact.folder.glob("data/*.parquet")))
        self._schema = arrow_schema(row_type)
        self._rest = self._schema.empty_table()
        self._folder = artifact.folder

    def take(self, prompt_ids: Sequence[str]) -> pa.Table:
        """All rows of these prompts, which are the next in the list."""
        wanted = pa.array(prompt_ids, pa.string())
        parts = [self._schema.empty_table()]
        while self._rest.num_rows or self._open_next():
            others = pc.invert(pc.is_in(self._rest["prompt_id"], value_set=wanted))
            ours = pc.index(others, True).as_py()
            ours = self._rest.num_rows if ours < 0 else ours
            parts.append(self._rest.slice(0, ours))
            self._rest = self._rest.slice(ours)
            if self._rest.num_rows:
                break
        return pa.concat_tables(parts)

    def end(self) -> None:
        """Raises:
        StepError: rows are left, of a prompt that was not in the list.
        """
        if self._rest.num_rows or self._open_next():
            prompt = self._rest["prompt_id"][0].as_py()
            raise StepError(f"{self._folder}: rows of prompt {prompt}, which is not among the prompts of this step")

    def _open_next(self) -> bool:
        for path in self._files:
            self._rest = _read(path, self._schema)
            if self._rest.num_rows:
                return True
        return False


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        return pq.read_table(path).select(schema.names)
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({reason}); delete its step's folder and run again") from None


def shards_by_prompt(
    ctx: Context, prompt_ids: Sequence[str], streams: Sequence[ByPrompt], *, first: int = 0, shards: int
) -> Iterator[tuple[int, slice, list[pa.Table]]]:
    """The shards of these prompts that are not written yet: index, place in the list, and the rows of every stream.

    Args:
        prompt_ids: what the streams hold next, in their order.
        streams: what to read along.
        first: index of the first shard.
        shards: of the whole step.
    """
    pending = {shard.index for shard in ctx.out.pending(shards * SHARD_SIZE)}
    for index, start in enumerate(range(0, len(prompt_ids), SHARD_SIZE), first):
        part = slice(start, min(len(prompt_ids), start + SHARD_SIZE))
        tables = [stream.take(prompt_ids[part]) for stream in streams]
        if index in pending:
            yield index, part, tables


def shard_count(*lists: Sequence[object]) -> int:
    """Shards of several lists, each beginning a shard of its own; at least one."""
    return max(1, sum(-(-len(rows) // SHARD_SIZE) for rows in lists))
