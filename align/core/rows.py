"""The rows that flow between steps, one frozen dataclass and one Arrow schema each.

Every row has an `id` made from its content and the id of what it was made from, so joins are by id and never by position.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, TypeVar

import pyarrow as pa

from align.core.errors import UserError

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
Message = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Document:
    """A web document: `text` as ingested, `lang` is en or ko, `license` an SPDX name or the source's own words.

    `pii` names the types of personal data that were masked in it, sorted, with commas between; it and `license` go along
    with every row that is made from the document, up to the SFT set.
    """

    id: str
    text: str
    lang: str
    source: str
    license: str
    pii: str


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A node of the taxonomy; `path` is domain/field/topic, `count` the knowledge units placed in it or below."""

    id: str
    parent_id: str
    path: str
    name: str
    level: str
    description: str
    lang: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """One fact taken from a document and placed in the taxonomy.

    `quote` is the part of the document that it rests on, `similarity` the cosine to its topic.
    """

    id: str
    topic_id: str
    document_id: str
    statement: str
    quote: str
    lang: str
    similarity: float
    license: str
    pii: str


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """A prompt. `parent_id` is a knowledge unit (generation 0) or the instruction that it evolved from or follows up.

    `persona` and `level` (easy, medium, hard) are what it was asked to be written for, empty where nothing was said.
    `difficulty` is a measured proxy in [0, 1), `judged_difficulty` and `judged_quality` are a model's marks from 1 to 10, or
    0 where none judged. `lang` is the prompt's language and `answer_lang` its answer's: they differ for translation.
    """

    id: str
    parent_id: str
    topic_id: str
    knowledge_id: str
    messages: list[Message]
    generation: int
    operator: str
    task_type: str
    persona: str
    level: str
    difficulty: float
    judged_difficulty: float
    judged_quality: float
    lang: str
    answer_lang: str
    split: str
    license: str
    pii: str


@dataclass(frozen=True, kw_only=True)
class Response:
    """One sampled answer: the engine's own token ids, its text, and why it ended ("stop" or "length")."""

    id: str
    prompt_id: str
    model: str
    sample_index: int
    token_ids: list[int]
    text: str
    finish_reason: str
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """One reward model's scalar for one response."""

    id: str
    response_id: str
    prompt_id: str
    reward_model: str
    score: float


@dataclass(frozen=True, kw_only=True)
class SftExample:
    """One supervised dialogue, in the columns TRL and the rest of the field read (`messages`); `lang` is the answer's."""

    id: str
    parent_id: str
    topic_id: str
    messages: list[Message]
    lang: str
    generation: int
    task_type: str
    license: str
    pii: str


@dataclass(frozen=True, kw_only=True)
class RewardPair:
    """A training pair of a reward model: an answer and a worse one.

    `subset` says how it was made worse, or what a preference file calls the pair's kind; accuracy is given by it. `margin`
    is how much better the chosen answer is, as far as somebody said so, for the loss with a margin.
    """

    id: str
    prompt_id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    subset: str
    margin: float
    lang: str
    split: str


@dataclass(frozen=True, kw_only=True)
class Preference:
    """{x, yw, yl} with both reward models' scores; `prompt`, `chosen`, `rejected` are lists of messages, as TRL expects.

    `*_token_ids` are the sampled completions themselves: training uses them as they are, never re-tokenised text. `source`
    is "sampled", or the name of the preference file that the pair was taken from; `split` is train or test (held out of
    training); `weight` and `flip_rate` carry the agreement into training where the recipe asks for it, else 1 and 0.
    """

    id: str
    prompt_id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    chosen_id: str
    rejected_id: str
    chosen_token_ids: list[int]
    rejected_token_ids: list[int]
    chosen_model: str
    rejected_model: str
    selector_chosen: float
    selector_rejected: float
    validator_chosen: float
    validator_rejected: float
    agreement: float
    kendall_tau: float
    p_value: float
    weight: float
    flip_rate: float
    source: str
    split: str
    topic_id: str
    lang: str


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What both reward models say of pair number `slot` of a prompt; `outcome` is "kept" or the reject's reason.

    The measures are those of `reward.agreement`, `p_value` is that of the recipe's measure; NaN where undefined. Margins are
    score differences of chosen and rejected in each model's own units; ids are empty where no pair was selected.
    """

    id: str
    prompt_id: str
    slot: int
    outcome: str
    source: str
    topic_id: str
    lang: str
    num_responses: int
    num_compared: int
    chosen_id: str
    rejected_id: str
    selector_margin: float
    validator_margin: float
    gap: float
    kendall: float
    spearman: float
    sign: float
    top1: float
    bottom1: float
    overlap: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class TrainedExample:
    """An example or pair that a training step used, by its id, with its tokens (prompt and completions)."""

    id: str
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """One model's answer to one held-out prompt, judged; `repetition` is the share of repeated word 4-grams.

    Log-ratios are log-probability of the answer under the model less that under M0 (`start`) and under the model that it was
    trained from (`previous`), in nats. NaN: there is no gold model, the answer has no score, or the model was not trained.
    """

    id: str
    prompt_id: str
    model: str
    selector: float
    validator: float
    gold: float
    start_log_ratio: float
    previous_log_ratio: float
    num_tokens: int
    finished: int
    repetition: float
    language_match: int


@dataclass(frozen=True, kw_only=True)
class BestOfN:
    """What the best of n responses by a proxy reward model is worth: mean rewards over prompts.

    `kl` is the divergence from the sampled models in nats; `gain` is gold less its value at n = 1, with its 95 % interval.
    """

    id: str
    proxy: str
    n: int
    prompts: int
    kl: float
    proxy_reward: float
    gold: float
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True, kw_only=True)
class SuiteAnswer:
    """A model's conversation about one item of a suite; `failure` says why a turn has no answer, else it is empty."""

    id: str
    item_id: str
    model: str
    messages: list[Message]
    finish_reason: str
    num_tokens: int
    failure: str


LOWER_IS_BETTER = ("nats_per_token",)  # of the metrics of `SuiteResult`


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """One number about one model's answer to one item of a suite; `value` is NaN where there is a `failure`.

    `key` is the turn or game of the item, empty where there is one; `weight` is that of the item in the metric's mean; `raw`
    is what a judge said.
    """

    id: str
    item_id: str
    model: str
    category: str
    lang: str
    metric: str
    key: str
    value: float
    weight: float
    failure: str
    raw: str


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A row that was dropped: what it was, why, and its text; `topic_id` where it had a topic by then."""

    id: str
    reason: str
    raw: str
    topic_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What became of one piece of work: each of the `asked` rows is a row or a reject."""

    rows: Sequence[Any] = ()
    rejects: Sequence[Reject] = ()
    asked: int


R = TypeVar("R")

_ARROW = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "list[int]": pa.list_(pa.int32()),
    "list[Message]": MESSAGES,
}


@cache
def arrow_schema(row_type: type) -> pa.Schema:
    """The Arrow schema of a row type, from its annotations; no column is nullable."""
    return pa.schema([pa.field(f.name, _ARROW[str(f.type)], nullable=False) for f in fields(row_type)])


def to_table(row_type: type, rows: Iterable[Any]) -> pa.Table:
    """An Arrow table of dataclass rows, in their order."""
    rows, schema = list(rows), arrow_schema(row_type)
    # Column by column: `asdict` copies every message and token of every row, fifteen times the cost.
    columns = [pa.array([getattr(row, field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def from_records(row_type: type[R], records: Iterable[Mapping[str, Any]], where: str) -> list[R]:
    """Dataclass rows from plain records.

    Raises:
        UserError: a column is missing or extra; the message names `where`, the row and the columns.
    """
    names = [f.name for f in fields(row_type)]  # type: ignore[arg-type]
    rows = []
    for number, record in enumerate(records, 1):
        if missing := [n for n in names if n not in record]:
            raise UserError(f"{where}: row {number} lacks column {', '.join(missing)}; it has {', '.join(record)}")
        rows.append(row_type(**{n: record[n] for n in names}))
    return rows


ROW_TYPES: dict[str, type] = {
    t.__name__: t
    for t in (
        Document,
        Topic,
        Knowledge,
        Instruction,
        Response,
        Score,
        SftExample,
        RewardPair,
        Preference,
        Agreement,
        TrainedExample,
        EvalResult,
        BestOfN,
        SuiteAnswer,
        SuiteResult,
        Reject,
    )
}
