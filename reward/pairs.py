"""From responses scored by two reward models to {x, yw, yl}, or to rejects that say why not.

`build_pairs` takes the prompts of a shard with the responses to them and both models' scores as Arrow tables, joins them by
id, sorts out what is not compared, and lets `reward.selection` choose. Each prompt has K slots; each slot ends as a pair or
as a reject, and has a row of agreements, so that no prompt loses its numbers. Nothing depends on the order of the inputs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from align.core.errors import StepError
from align.core.hashing import content_id, short_hash, unit_interval
from align.core.language import detect
from align.core.rows import MESSAGES, Agreement, Instruction, Preference, Reject, arrow_schema
from reward.agreement import MEASURES
from reward.join import Samples, join_by_id
from reward.selection import CODES, OUTCOMES, Block, Bools, Ints, PairRules, Selection, check_given, select

_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True)


@dataclass(frozen=True)
class Built:
    """Pairs and rejects, together K for each prompt and in the prompts' order, and what the models say of each.

    `table` has the rows of `Preference`; `agreements` has a row of `Agreement` for every slot, kept or not, whose id is that
    of the pair or of the reject.
    """

    table: pa.Table
    rejects: list[Reject]
    agreements: pa.Table

    @cached_property
    def pairs(self) -> list[Preference]:
        """The pairs one by one; making them takes as long as building the table."""
        return [Preference(**row) for row in self.table.to_pylist()]


def _in_other_language(samples: Samples, finished: Bools) -> Bools:
    """(R,) whether a finished response is in the other language than its prompt's answer_lang.

    `detect` is asked only where a look at all texts at once leaves it open: text without Hangul is not Korean, and text with
    many Hangul syllables is not English. Text without letters, and text of neither language, is not in the other.
    """
    texts = samples.responses["text"]
    expected = np.array([p.answer_lang for p in samples.prompts], str)[samples.place]
    octets = texts.cast(pa.binary())
    # First bytes of U+B000 to U+CFFF, which are Hangul syllables all. English has at most 20 % letters that are not Latin.
    syllables = sum(pc.count_substring(octets, first).to_numpy() for first in (b"\xeb", b"\xec"))
    not_english = syllables > 0.21 * pc.utf8_length(texts).to_numpy()
    fine = np.where(expected == "en", pc.string_is_ascii(texts).to_numpy(), (expected == "ko") & not_english)
    # Nothing can be said where the expected language is neither.
    asked = np.flatnonzero(finished & ~fine & np.isin(expected, ("en", "ko")))
    hangul = pc.match_substring_regex(texts.take(pa.array(asked)), r"\p{Hangul}").to_numpy()
    asked = asked[hangul | (expected[asked] == "ko")]
    wrong = np.zeros(len(texts), bool)
    for row, text in zip(asked.tolist(), texts.take(pa.array(asked)).to_pylist(), strict=True):
        wrong[row] = detect(text) not in (expected[row], "other")
    return wrong


def _completions(responses: pa.Table, max_length: int | None) -> Ints:
    """(R,) numbers that are equal where the token ids are, as far as training keeps them."""
    ids = responses["token_ids"].combine_chunks()
    if max_length is not None:
        ids = pc.list_slice(ids, 0, max_length)
    octets = np.ascontiguousarray(ids.flatten().to_numpy(), np.int32)
    ends = 4 * np.append(0, np.cumsum(pc.list_value_length(ids).to_numpy(), dtype=np.int64))
    as_bytes = pa.Array.from_buffers(pa.large_binary(), len(ids), [None, pa.py_buffer(ends), pa.py_buffer(octets)])
    return as_bytes.dictionary_encode().indices.to_numpy().astype(np.int64)


def _block(samples: Samples, rules: PairRules, run_seed: int) -> Block:
    """The responses that are compared: finished, in the right language, none twice."""
    responses, place = samples.responses, samples.place
    finished = pc.and_(
        pc.greater(pc.list_value_length(responses["token_ids"]), 0),
        pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(responses["text"])), 0),
    ).to_numpy()
    finished &= pc.equal(responses["finish_reason"], "stop").to_numpy()
    right = finished if rules.keep_wrong_language else finished & ~_in_other_language(samples, finished)
    by_id = samples.row[samples.row >= 0]
    by_id = by_id[right[by_id]]
    completions = _completions(responses, rules.max_length)
    # The first of each, by id.
    _, first = np.unique(place[by_id] * (1 + completions.max(initial=0)) + completions[by_id], return_index=True)
    usable = np.zeros(len(place), bool)
    usable[by_id[first]] = True
    few = {
        "fewer_than_two_responses": np.ones(len(place), bool),
        "fewer_than_two_finished": finished,
        "wrong_language": right,
        "all_responses_identical": usable,
    }
    too_few = [np.bincount(place[left], minlength=len(samples.prompts)) < 2 for left in few.values()]
    random = np.zeros(len(place), np.uint64)
    if rules.select == "best_random":
        hashes = (short_hash(f"pair-random {run_seed} {response}") for response in responses["id"].to_pylist())
        random = np.fromiter(hashes, np.uint64, len(place))
    return Block(
        selector=samples.spread(samples.selector, math.nan),
        validator=samples.spread(samples.validator, math.nan),
        usable=samples.spread(usable, False),
        num_tokens=samples.spread(responses["num_tokens"].to_numpy(), 0),
        random=samples.spread(random, 0),
        objection=np.select(too_few, [CODES[why] for why in few], 0),
    )


class _Slots:
    """All P * K slots one below the other; `chosen` and `rejected` are rows of the responses, -1 where there is no pair."""

    def __init__(self, samples: Samples, block: Block, selection: Selection) -> None:
        self.samples, self.block = samples, block
        self.place, self.slot = (at.ravel() for at in np.indices(selection.outcome.shape))
        self.chosen, self.rejected = (
            np.where(at < 0, -1, np.take_along_axis(samples.row, np.maximum(at, 0), axis=1)).ravel()
            for at in (selection.winner, selection.loser)
        )
        self.outcome = selection.outcome.ravel()
        self.measures = {name: values.ravel() for name, values in selection.measures.items()}
        self.measures["p_value"] = selection.p_value.ravel()
        self.ids = [*samples.responses["id"].to_pylist(), ""]  # the last for -1


def _held_out(prompt: Instruction, rules: PairRules, run_seed: int) -> bool:
    """By the prompt's content, so that sampled and collected pairs of one prompt are on one side."""
    key = content_id("prompt", prompt.messages)
    return rules.held_out > 0 and unit_interval(run_seed, "pair-held-out", key) < rules.held_out


def _answers(texts: pa.ChunkedArray) -> pa.Array:
    """Each text as messages of one assistant turn."""
    count, text = len(texts), texts.combine_chunks()
    turns = pa.StructArray.from_arrays([pa.repeat("assistant", count), text], fields=list(MESSAGES.value_type))
    return pa.ListArray.from_arrays(pa.array(range(count + 1), pa.int32()), turns, type=MESSAGES)


def _preferences(slots: _Slots, rules: PairRules, run_seed: int, source: str) -> pa.Table:
    """Rows of `Preference`; what is in the responses' columns goes from table to table and never becomes Python objects."""
    samples, kept = slots.samples, np.flatnonzero(slots.outcome == 0)
    columns: dict[str, Any] = {}
    for side, rows in (("chosen", slots.chosen[kept]), ("rejected", slots.rejected[kept])):
        sampled = samples.responses.select(["id", "text", "token_ids", "model"]).take(pa.array(rows))
        columns |= {
            f"{side}_id": sampled["id"],
            side: _answers(sampled["text"]),
            f"{side}_token_ids": sampled["token_ids"],
            f"{side}_model": sampled["model"],
            f"selector_{side}": samples.selector[rows],
            f"validator_{side}": samples.validator[rows],
        }
    gap = slots.measures["gap"][kept]
    prompts = [samples.prompts[place] for place in slots.place[kept].tolist()]
    sides = zip(prompts, columns["chosen_id"].to_pylist(), columns["rejected_id"].to_pylist(), strict=True)
    columns |= {
        "id": [content_id("preference", prompt.id, chosen, rejected) for prompt, chosen, rejected in sides],
        "prompt_id": [prompt.id for prompt in prompts],
        "prompt": [prompt.messages for prompt in prompts],
        "agreement": slots.measures[rules.agreement][kept],
        "kendall_tau": slots.measures["kendall"][kept],
        "p_value": slots.measures["p_value"][kept],
        "weight": gap if rules.use == "weight" else np.ones(len(kept)),
        "flip_rate": (1 - gap) / 2 if rules.use == "flip_rate" else np.zeros(len(kept)),
        "source": [source] * len(kept),
        "split": ["test" if _held_out(prompt, rules, run_seed) else "train" for prompt in prompts],
        "topic_id": [prompt.topic_id for prompt in prompts],
        "lang": [prompt.lang for prompt in prompts],
    }
    return _table(Preference, columns)


def _table(row_type: type, columns: Mapping[str, Any]) -> pa.Table:
    """Rows of a type from its columns, in any order."""
    schema = arrow_schema(row_type)
    arrays = [c if isinstance(c := columns[f.name], pa.Array | pa.ChunkedArray) else pa.array(c, f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _plain(values: NDArray[Any]) -> list[float | str | None]:
    """Floats as strict JSON knows them: NaN is null, the infinities are text."""
    if np.isfinite(values).all():
        return list(values.tolist())
    return [None if math.isnan(v) else v if math.isfinite(v) else str(v) for v in values.tolist()]


def _rejects(slots: _Slots) -> list[Reject]:
    samples, ids, dropped = slots.samples, slots.ids, np.flatnonzero(slots.outcome > 0)
    selector, validator = _plain(samples.selector), _plain(samples.validator)
    measures = {name: _plain(values[dropped]) for name, values in slots.measures.items()}
    place = slots.place[dropped]
    columns = (slots.outcome[dropped], place, slots.slot[dropped], samples.row[place], slots.block.usable[place],
               slots.chosen[dropped], slots.rejected[dropped])  # fmt: skip
    made = []
    for (code, owner, slot, row, usable, chosen, rejected), values in zip(
        zip(*(column.tolist() for column in columns), strict=True), zip(*measures.values(), strict=True), strict=True
    ):
        prompt = samples.prompts[owner]
        numbers: dict[str, object] = {
            "selector": {ids[r]: selector[r] for r in row if r >= 0},
            "validator": {ids[r]: validator[r] for r in row if r >= 0},
            "compared": [ids[r] for r, is_compared in zip(row, usable, strict=True) if is_compared],
        }
        if chosen >= 0:
            numbers |= {"chosen": ids[chosen], "rejected": ids[rejected], **dict(zip(measures, values, strict=True))}
        key = content_id("pair", prompt.id, slot) if slot else prompt.id
        made.append(Reject(id=key, reason=OUTCOMES[code], raw=_JSON.encode(numbers), topic_id=prompt.topic_id))
    return made


def _built(slots: _Slots, rules: PairRules, run_seed: int, source: str) -> Built:
    """The rows of all slots."""
    samples, block = slots.samples, slots.block
    pairs, rejects = _preferences(slots, rules, run_seed, source), _rejects(slots)
    kept, dropped = iter(pairs["id"].to_pylist()), (r.id for r in rejects)
    owners = [samples.prompts[place] for place in slots.place.tolist()]
    with_none = (np.append(scores, math.nan) for scores in (samples.selector, samples.validator))
    with np.errstate(over="ignore"):  # finite scores may be further apart than a float can say
        margins = [scores[slots.chosen] - scores[slots.rejected] for scores in with_none]
    columns = {
        "id": [next(dropped if code else kept) for code in slots.outcome.tolist()],
        "prompt_id": [p.id for p in owners],
        "slot": slots.slot,
        "outcome": [OUTCOMES[code] for code in slots.outcome.tolist()],
        "source": [source] * len(owners),
        "topic_id": [p.topic_id for p in owners],
        "lang": [p.lang for p in owners],
        "num_responses": (samples.row >= 0).sum(axis=1)[slots.place],
        "num_compared": block.usable.sum(axis=1)[slots.place],
        "chosen_id": [slots.ids[row] for row in slots.chosen.tolist()],
        "rejected_id": [slots.ids[row] for row in slots.rejected.tolist()],
        "selector_margin": margins[0],
        "validator_margin": margins[1],
        **slots.measures,
    }
    return Built(pairs, rejects, _table(Agreement, columns))


def build_pairs(
    prompts: Sequence[Instruction],
    responses: pa.Table,
    selector: pa.Table,
    validator: pa.Table,
    rules: PairRules,
    run_seed: int,
) -> Built:
    """K pairs for each prompt, or the first reason against each; see `reward.selection.OUTCOMES` for the reasons.

    Responses that are unfinished, empty (no token ids, or blank text) or, unless the rules keep them, in the other language
    than the prompt's answer_lang are left out; of responses with equal token ids, cut to max_length, the lowest id stays.
    The rest are compared: a NaN or an infinite score of one of them rules the prompt out, and ranks are among them.

    Args:
        prompts: those of a shard; memory grows with it.
        responses: rows of `Response`, those to these prompts.
        selector: rows of `Score` for these responses, of the model that picks.
        validator: likewise, of the model that must agree.
        rules: see `PairRules`.
        run_seed: of the random choice and of the held-out prompts.

    Raises:
        StepError: an id appears twice, a response answers no prompt of these, or a score is missing, given twice, of another
            model than the others, for an unknown response or for another prompt.
    """
    samples = join_by_id(prompts, responses, selector, validator)
    block = _block(samples, rules, run_seed)
    return _built(_Slots(samples, block, select(block, rules)), rules, run_seed, "sampled")


def check_collected(
    prompts: Sequence[Instruction],
    responses: pa.Table,
    selector: pa.Table,
    validator: pa.Table,
    chosen_of: Mapping[str, str],
    rules: PairRules,
    run_seed: int,
    source: str,
) -> Built:
    """Pairs collected elsewhere, scored by both models: kept where both order the two answers as the label does.

    Filters and margins are as in `build_pairs`. There is one slot for each prompt, nothing is chosen, and no threshold is
    applied, because two responses have no more rank information than the sign.

    Args:
        prompts, responses, selector, validator, rules, run_seed: as in `build_pairs`; two responses for each prompt.
        chosen_of: prompt id -> id of the response that the label prefers.
        source: the file's name.

    Raises:
        StepError: as `build_pairs`; a prompt has more than two responses, or its label names none of them.
    """
    samples = join_by_id(prompts, responses, selector, validator)
    row_of = {response: row for row, response in enumerate(responses["id"].to_pylist())}
    labels = np.array([row_of.get(chosen_of.get(p.id, ""), -2) for p in prompts], np.int64)
    is_winner, count = samples.row == labels[:, None], (samples.row >= 0).sum(axis=1)
    for problem, wrong in (
        ("has more than two responses", count > 2),
        ("has a label that names none of its responses", (count == 2) & ~is_winner.any(axis=1)),
    ):
        if wrong.any():
            raise StepError(f"{source}: prompt {prompts[int(wrong.argmax())].id} {problem}")
    block, winner = _block(samples, rules, run_seed), is_winner.argmax(axis=1)
    selection = check_given(block, winner, is_winner.shape[1] - 1 - winner, rules)
    return _built(_Slots(samples, block, selection), rules, run_seed, source)


def take_share(num_sampled: int, collected: Built, share: float, run_seed: int) -> Built:
    """The collected pairs cut so that they are at most `share` of all, the rest as rejects `beyond_share`.

    They stay in the order of the hash of seed and pair id, so a larger share keeps the same ones and more.

    Args:
        num_sampled: sampled pairs that are kept.
        collected: from `check_collected`.
        share: in [0, 1]; 1 keeps all.
        run_seed: the run's.

    Raises:
        ValueError: a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share {share} must be from 0 to 1")
    by_hash = sorted(collected.pairs, key=lambda pair: (unit_interval(run_seed, "pair-share", pair.id), pair.id))
    most = len(by_hash) if share == 1 else math.floor(share * num_sampled / (1 - share) + 1e-9)
    beyond = {pair.id: pair for pair in by_hash[most:]}
    rows, rejects = collected.agreements.to_pylist(), list(collected.rejects)
    for row in rows:
        if pair := beyond.get(row["id"]):
            row |= {"id": pair.prompt_id, "outcome": "beyond_share"}
            numbers = {
                "selector": {pair.chosen_id: pair.selector_chosen, pair.rejected_id: pair.selector_rejected},
                "validator": {pair.chosen_id: pair.validator_chosen, pair.rejected_id: pair.validator_rejected},
                "compared": sorted([pair.chosen_id, pair.rejected_id]),
                "chosen": pair.chosen_id,
                "rejected": pair.rejected_id,
                **{name: row[name] for name in (*MEASURES, "p_value")},
            }
            raw = _JSON.encode(numbers)
            rejects.append(Reject(id=pair.prompt_id, reason="beyond_share", raw=raw, topic_id=pair.topic_id))
    within = pc.invert(pc.is_in(collected.table["id"], value_set=pa.array(list(beyond), pa.string())))
    return Built(collected.table.filter(within), rejects, pa.Table.from_pylist(rows, schema=arrow_schema(Agreement)))
