"""Instruction evolution: in-depth and in-breadth rewriting with eliminators (Evol-Instruct, arXiv 2304.12244, section 3).

Each round evolves a share of the pool. A child that an eliminator rejects leaves its parent in the pool, and children may
be evolved again: an instruction grows a tree of generations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from align.core.formats import split_input
from align.core.hashing import content_id, derive_seed, unit_interval
from align.core.rows import Instruction, Made, Reject
from align.engines.complete import Ask, Asking, Job, Unusable, Writer, ask_parsed
from align.engines.protocol import Sampling
from data_gen.eliminators import BREADTH, elimination_reason
from data_gen.inputs import INPUT_KINDS, input_schema, parse_input
from data_gen.instruct import difficulty, written_line
from data_gen.judge import judged
from data_gen.prompts import Prompts

AUTO = "auto"
COMPLICATE = "complicate_input"
INPUT_TOKENS = 256  # at least, for a request with a table or code; other operators need one line
JUDGE_SAMPLING = Sampling(temperature=0.0, max_tokens=32)


@dataclass(frozen=True, kw_only=True)
class EvolutionRules:
    """How instructions are evolved; the recipe's section `evolution` says what each is for.

    `methods` holds the evolving method of the operator `auto` by language.
    """

    rounds: int
    operators: Sequence[str]
    share: float
    judge: bool
    tries: int
    sampling: Sampling
    methods: Mapping[str, str]


def evolution(
    writer: Writer, roots: Iterable[tuple[Instruction, str]], prompts: Prompts, rules: EvolutionRules, run_seed: int
) -> Iterator[Made]:
    """The trees of instructions, each given with the statement of its unit: a `Made` each, as they are done."""
    jobs = (Job(key=row.id, asking=evolution_job(row, fact, prompts, rules, run_seed)) for row, fact in roots)
    return (made for _, made in writer.run(jobs, label="evolve", total=None, unit="instructions"))


def operators_for(row: Instruction, operators: Sequence[str]) -> list[str]:
    """The operators that suit a row. A request about an input keeps it, so it is neither given another one nor left for a
    new subject; a follow-up is not evolved, since its meaning is in the turns before it."""
    if sum(message["role"] == "user" for message in row.messages) > 1:
        return []
    if split_input(row.messages[-1]["content"])[1]:
        return [operator for operator in operators if operator not in (COMPLICATE, BREADTH)]
    return list(operators)


def operator_of(row: Instruction, rules: EvolutionRules, round_number: int, run_seed: int) -> str:
    """The operator by which a row is evolved in a round, by hash of its id, or an empty text where it is not."""
    if unit_interval(run_seed, "evolve", round_number, row.id) >= rules.share:
        return ""
    operators = operators_for(row, rules.operators)
    return operators[derive_seed(run_seed, "operator", round_number, row.id) % len(operators)] if operators else ""


def evolution_job(root: Instruction, fact: str, prompts: Prompts, rules: EvolutionRules, run_seed: int) -> Asking[Made]:
    """An instruction and its descendants, each child asked for being a row or a reject.

    Args:
        fact: the statement of the instruction's unit, which no child may give away.
    """
    rows = [(yield from judged(root, prompts, JUDGE_SAMPLING, 1)) if rules.judge else root]
    rejects: list[Reject] = []
    asked = 1
    for number in range(1, rules.rounds + 1):
        for parent in list(rows):
            if operator := operator_of(parent, rules, number, run_seed):
                asked += 1
                child = yield from _child(parent, fact, operator, number, prompts, rules, run_seed)
                if isinstance(child, Reject):
                    rejects.append(child)
                else:
                    rows.append(child)
    return Made(rows=rows, rejects=rejects, asked=asked)


def _child(
    parent: Instruction, fact: str, operator: str, number: int, prompts: Prompts, rules: EvolutionRules, run_seed: int
) -> Asking[Instruction | Reject]:
    """What became of one rewriting, in round `number`."""
    before = parent.messages[-1]["content"]

    def reject(reason: str, raw: str) -> Reject:
        key = content_id("evolve-reject", parent.id, number, operator)
        return Reject(id=key, reason=reason, raw=f"[{operator}] {before} -> {raw}", topic_id=parent.topic_id)

    text, fault, raw = yield from _rewritten(parent, operator, number, prompts, rules, run_seed)
    if fault:
        return reject(fault, raw)
    kinds = [f"input_{kind}" for kind in INPUT_KINDS] if operator == COMPLICATE else [operator]
    shown = [m for kind in kinds for m in _messages(kind, parent, "", prompts, rules)]
    examples = [m["content"] for m in shown if m["role"] == "assistant"]
    child = replace(
        parent,
        id=content_id("instruction", parent.id, number, text),
        parent_id=parent.id,
        messages=[*parent.messages[:-1], {"role": "user", "content": text}],
        generation=parent.generation + 1,
        operator=operator,
        difficulty=difficulty(split_input(text)[0]),
        judged_difficulty=0.0,
        judged_quality=0.0,
    )
    marks = parent.difficulty, child.difficulty
    if rules.judge and parent.judged_difficulty:
        # The cheap checks first; how hard the child is, the judge says better than a count.
        if fault := elimination_reason(before, text, operator, parent.lang, fact=fact, examples=examples):
            return reject(fault, raw)
        child = yield from judged(child, prompts, JUDGE_SAMPLING, 1)
        # Whole marks are often equal; then the measure decides, unless there is no higher mark.
        if child.judged_difficulty == 10 or child.judged_difficulty not in (0, parent.judged_difficulty):
            marks = parent.judged_difficulty, child.judged_difficulty
    fault = elimination_reason(
        before, text, operator, parent.lang, fact=fact, examples=examples, parent_score=marks[0], child_score=marks[1]
    )
    return reject(fault, raw) if fault else child


def _rewritten(
    parent: Instruction, operator: str, number: int, prompts: Prompts, rules: EvolutionRules, run_seed: int
) -> Asking[tuple[str, str, str]]:
    """(the child's text, why there is none, the model's own words). An input that the parent has goes along."""
    request, given = split_input(parent.messages[-1]["content"])
    if operator == COMPLICATE:
        kind = INPUT_KINDS[derive_seed(run_seed, "input", number, parent.id) % len(INPUT_KINDS)]
        ask = Ask(
            id=parent.id,
            purpose=f"evolve {operator} round {number}",
            messages=prompts.render(f"evolve-input_{kind}", parent.lang, instruction=request),
            sampling=replace(rules.sampling, max_tokens=max(rules.sampling.max_tokens, INPUT_TOKENS)),
            json_schema=input_schema(kind),
        )
        made = yield from ask_parsed(ask, lambda text: parse_input(text, kind), rules.tries)
        return ("", made.reason, made.raw) if isinstance(made, Unusable) else (made, "", made)
    ask = Ask(
        id=parent.id,
        purpose=f"evolve {operator} round {number}",
        messages=_messages(operator, parent, request, prompts, rules),
        sampling=rules.sampling,
    )
    (reply,) = yield [ask]
    text, fault = written_line(reply)
    return (f"{text}\n\n{given}" if given and text else text), fault, reply.raw


def _messages(
    operator: str, parent: Instruction, request: str, prompts: Prompts, rules: EvolutionRules
) -> list[dict[str, str]]:
    if operator == AUTO:
        return prompts.render("evolve-auto", parent.lang, instruction=request, method=rules.methods[parent.lang])
    return prompts.render(f"evolve-{operator}", parent.lang, instruction=request)
