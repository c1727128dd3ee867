"""The responses to a shard's prompts with both models' scores, joined by id and never by position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from align.core.errors import StepError
from align.core.rows import Instruction
from reward.selection import Floats, Ints


@dataclass(frozen=True)
class Samples:
    """R responses to P prompts, joined by id.

    `row` (P, N) leads from a prompt and a column (its responses in the order of their ids) to the table's row, -1 = none;
    `place` (R,) leads back to the prompt. Scores are (R,), in the table's order.
    """

    prompts: Sequence[Instruction]
    responses: pa.Table
    row: Ints
    place: Ints
    selector: Floats
    validator: Floats

    def spread(self, values: NDArray[Any], fill: Any) -> NDArray[Any]:
        """(P, N) of (R,) values, with `fill` where there is no response."""
        return np.append(values, np.asarray([fill], values.dtype))[self.row]


def _score_of_each(name: str, scores: pa.Table, responses: pa.Table) -> Floats:
    """(R,) the scores of one model in the order of the responses; each must have exactly one."""
    ids = responses["id"]
    at = pc.index_in(scores["response_id"], value_set=ids)
    if at.null_count:
        stranger = scores["response_id"].filter(pc.is_null(at))[0]
        raise StepError(f"{name}: a score for response {stranger}, which is not among the samples")
    answered = responses["prompt_id"].take(at)
    if len(other := pc.indices_nonzero(pc.not_equal(answered, scores["prompt_id"]))):
        first = other[0].as_py()
        response, prompt = scores["response_id"][first], scores["prompt_id"][first]
        raise StepError(f"{name}: response {response} is scored for prompt {prompt}, it answers {answered[first]}")
    place = at.to_numpy()
    times = np.bincount(place, minlength=len(ids))
    if (times > 1).any():
        raise StepError(f"{name}: two scores for response {ids[int(times.argmax())]}")
    if len(models := pc.unique(scores["reward_model"])) > 1:
        raise StepError(f"{name}: scores of more than one reward model: {', '.join(sorted(models.to_pylist()))}")
    if missing := pc.filter(ids, pa.array(times == 0)).to_pylist():
        raise StepError(f"{name}: {len(missing)} responses without a score, the first is {min(missing)}")
    return np.asarray(scores["score"].to_numpy()[np.argsort(place)])


def join_by_id(prompts: Sequence[Instruction], responses: pa.Table, selector: pa.Table, validator: pa.Table) -> Samples:
    """The responses to these prompts and both models' scores of each.

    Raises:
        StepError: an id appears twice, a response answers none of these prompts, or a score is missing, given twice, of
            another model than the others, for an unknown response or for another prompt.
    """
    prompt_ids = pa.array([p.id for p in prompts], pa.string())
    for what, ids in (("prompt", prompt_ids), ("response", responses["id"])):
        if len(pc.unique(ids)) < len(ids):
            twice, _ = Counter(ids.to_pylist()).most_common(1)[0]
            raise StepError(f"{what} id {twice} appears twice")
    at = pc.index_in(responses["prompt_id"], value_set=prompt_ids)
    if at.null_count:
        lost = responses.filter(pc.is_null(at)).slice(0, 1).to_pylist()[0]
        raise StepError(f"response {lost['id']} answers prompt {lost['prompt_id']}, which is not among the prompts")
    place = at.to_numpy().astype(np.int64)
    keys = pa.table({"place": at, "id": responses["id"]})
    by_id = pc.sort_indices(keys, [("place", "ascending"), ("id", "ascending")]).to_numpy()
    counts = np.bincount(place, minlength=len(prompts))
    column = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
    row = np.full((len(prompts), max(1, counts.max(initial=0))), -1)
    row[place[by_id], column] = by_id
    scores = (_score_of_each(n, s, responses) for n, s in (("selector", selector), ("validator", validator)))
    return Samples(prompts, responses, row, place, *scores)
