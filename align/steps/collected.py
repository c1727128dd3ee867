"""Preference pairs that were collected elsewhere, as candidates of a stage: prompts with two responses each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from align.core.chat import Chat, ChatError
from align.core.errors import StepError
from align.core.hashing import content_id
from align.core.rows import Instruction, Reject, Response, RewardPair
from align.steps.context import Context
from align.steps.judges import collected_names
from reward.preference_file import pairs_from_file


@dataclass(frozen=True, kw_only=True)
class Collected:
    """A collected pair as a prompt (whose id is the pair's) and its responses, the chosen one first."""

    pair: RewardPair
    prompt: Instruction
    responses: tuple[Response, Response]


def run_collected(ctx: Context) -> None:
    """The pairs of the stage's files that its model can read; `subset` becomes the file's name."""
    stage = ctx.recipe.stages[ctx.step.stage - 1]
    chat = Chat.load(ctx.process.model_folder(stage.init))
    examined = {content_id("prompt", row.messages) for row in ctx.stream("evolve", Instruction) if row.split == "heldout"}
    kept: dict[str, RewardPair] = {}
    rejects: list[Reject] = []
    for name, spec in zip(collected_names(stage), stage.pair.collected, strict=True):
        pairs, faults = pairs_from_file(Path(spec.path))
        rejects += faults
        for pair in pairs:
            reason = "duplicate_pair" if pair.id in kept else "evaluation_prompt" if pair.prompt_id in examined else ""
            try:
                _responses(pair, chat)
            except ChatError as error:
                reason = str(error).split(":")[0]
            if reason:
                rejects.append(Reject(id=pair.id, reason=reason, raw=pair.chosen[-1]["content"]))
            else:
                kept[pair.id] = replace(pair, subset=name)
    ctx.out.write_all(list(kept.values()), rejects, asked=len(kept) + len(rejects))
    ctx.finish(by_source=dict(Counter(pair.subset for pair in kept.values())))


def collected_rows(ctx: Context) -> list[Collected]:
    """The collected pairs of this step's stage, in their order, on the token ids of the model to be trained."""
    stage = ctx.recipe.stages[ctx.step.stage - 1]
    chat = Chat.load(ctx.process.model_folder(stage.init))
    found = []
    for pair in ctx.rows(f"stage{ctx.step.stage}.collected", RewardPair):
        try:
            responses = _responses(pair, chat)
        except ChatError as error:
            raise StepError(f"collected pair {pair.id}: {error}, though it was read before") from None
        found.append(Collected(pair=pair, prompt=_prompt(pair), responses=responses))
    return found


def _responses(pair: RewardPair, chat: Chat) -> tuple[Response, Response]:
    chosen, rejected = (_response(pair, chat, side) for side in ("chosen", "rejected"))
    return chosen, rejected


def _response(pair: RewardPair, chat: Chat, side: str) -> Response:
    messages = getattr(pair, side)
    _, ids = chat.split(pair.prompt, messages)
    return Response(
        id=content_id("response", pair.id, side),
        prompt_id=pair.id,
        model=pair.subset,
        sample_index=0,
        token_ids=ids,
        text=messages[-1]["content"],
        finish_reason="stop",
        num_tokens=len(ids),
    )


def _prompt(pair: RewardPair) -> Instruction:
    """A prompt per pair: one prompt's pairs are compared each for itself, since they may come from different raters."""
    return Instruction(
        id=pair.id, parent_id="", topic_id="", knowledge_id="", messages=pair.prompt, generation=0, operator="collected",
        task_type="collected", persona="", level="", difficulty=0.0, judged_difficulty=0.0, judged_quality=0.0,
        lang=pair.lang, answer_lang=pair.lang, split="collected", license="", pii="",
    )  # fmt: skip
