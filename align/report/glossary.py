"""What the words of the pages mean: names of losses, reasons of rejects, measures, and the checks behind gold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from align.report.artifacts import GOLD, at

# As the papers that named them write them.
LOSS_NAMES = {
    "sft": "SFT", "dpo": "DPO", "ipo": "IPO", "dpo_norm": "length-normalised DPO", "simpo": "SimPO", "simper": "SimPER",
    "orpo": "ORPO",
}  # fmt: skip
REASONS = {
    # documents and knowledge units
    "duplicate": "said before",
    "duplicate_id": "another document has its id",
    "duplicate_text": "another document has its text",
    "near_duplicate": "nearly the text of another document",
    "over_limit": "beyond the number of documents asked for",
    "license_not_allowed": "under a licence that the recipe does not allow",
    "not_grounded": "says what its source does not say",
    "not_a_sentence": "no whole sentence",
    "too_short": "shorter than allowed",
    "too_long": "longer than allowed",
    "too_few_sentences": "its document has fewer sentences than were asked for",
    "no_topic_near": "like no topic of the tree",
    "no_topic_fits": "the model named no topic for it",
    # what a model wrote
    "truncated": "cut off at its token limit",
    "not_json": "not the JSON that was asked for",
    "empty": "nothing written",
    "no_answer": "no answer was there to choose from",
    "off_language": "in another language than asked for",
    "refusal": "declines the request",
    "repetitive": "repeats itself",
    "chatter": "talks about the task instead of doing it",
    "contaminated": "holds a benchmark's test item",
    # instructions
    "not_a_request": "asks for nothing",
    "not_novel": "too like an earlier instruction",
    "not_about_the_fact": "does not ask about its fact",
    "copies_the_fact": "repeats its fact instead of asking",
    "refers_to_source": "speaks of a text that the reader does not see",
    "copied_example": "copies an example of its prompt",
    "copied_prompt_wording": "copies the wording of its prompt",
    "stands_alone": "needs nothing of the earlier turns",
    "repeats_earlier_turn": "asks again what an earlier turn asked",
    "parent_rejected": "what it was rewritten from was rejected",
    "no_content": "only punctuation or filler words",
    "language_switch": "changes the language of its parent",
    "several_requests": "more than one request",
    "lost_input": "lost the input that its parent has",
    "lost_subject": "lost the subject of its parent",
    "points_at_nothing": "points at a text or list that is not there",
    "contradiction": "its demands contradict each other",
    "no_information_gain": "asks nothing that its parent does not ask",
    "too_close": "nearly its parent's wording",
    "answer_leak": "gives away its answer",
    "length_blow_up": "far longer than its parent",
    "no_rise_in_difficulty": "no harder than its parent by the difficulty measure",
    # reward pairs
    "cannot_degrade": "the damage asked for changes nothing in this answer",
    "no_assistant_turn": "has no answer to damage",
    "cannot_be_encoded": "cannot be written in the model's chat template",
    "identical_after_truncation": "both answers are the same once cut to the model's length",
    # lines of a preference file
    "missing_column": "lacks the prompt, the chosen or the rejected answer",
    "no_prompt": "has no prompt",
    "not_text_or_messages": "neither text nor messages",
    "chosen_equals_rejected": "both answers are the same",
    "prompt_differs_from_dialogue": "its prompt is not how its dialogues begin",
    "not_one_assistant_turn": "an answer is not one turn of the assistant",
    "empty_chosen": "its chosen answer is empty",
    "bad_subset": "its subset is no text",
    "bad_margin": "its margin is no number of 0 or more",
    "duplicate_pair": "the same pair is there already",
    "evaluation_prompt": "its prompt is one of the evaluation's",
    # preference pairs, in the order of `reward.selection.OUTCOMES`
    "fewer_than_two_responses": "its prompt has fewer than two responses",
    "fewer_than_two_finished": "fewer than two responses ended before their token limit",
    "wrong_language": "fewer than two finished responses are in the language asked for",
    "all_responses_identical": "all responses to its prompt are the same text",
    "nan_score": "a reward model gave no number",
    "infinite_score": "a reward model gave an infinite number",
    "selector_tie": "the selector gives all responses one score",
    "label_disagrees_selector": "the selector prefers the answer that the file calls rejected",
    "no_length_match": "no two responses are about equally long",
    "none_correct": "no response is correct",
    "all_correct": "every response is correct",
    "no_further_pair": "earlier pairs of its prompt left no two responses",
    "validator_tie": "the validator scores both answers alike",
    "validator_disagrees": "the validator prefers the answer that the selector would reject",
    "too_few_for_null_quantile": "too few responses to be as rare by chance as the recipe asks",
    "agreement_below_threshold": "the validator agrees, but less than the recipe asks",
    "margin_below_minimum": "the selector's scores lie too close together",
    "margin_above_maximum": "the selector's scores lie too far apart",
    "beyond_share": "beyond the share of its file",
}
FOLLOW_UP = "follow_up_"
MEASURES = {
    "gap": "of the validator's ranks of chosen and rejected: their difference over the largest possible one, from −1 (the "
    "rejected answer first, the chosen one last) to 1",
    "kendall": "Kendall's tau of the two reward models' orders of a prompt's responses, from −1 to 1",
    "spearman": "Spearman's rank correlation of the two reward models' scores of a prompt's responses, from −1 to 1",
    "sign": "1 where the validator prefers the chosen answer, −1 where it prefers the rejected one, else 0",
    "top1": "1 where both reward models put the same response first, else 0",
    "bottom1": "1 where both reward models put the same response last, else 0",
    "overlap": "share of the selector's best responses that are among the validator's best",
}
WORDS = {
    "selector": "the reward model that chooses the best and the worst response of a prompt; training follows it",
    "validator": "the second reward model, which must prefer the chosen answer too",
    "proxy": "the reward that is followed, in training the selector's; it stands for what is wanted and is not that itself",
    "margin": "score of the chosen answer less score of the rejected one; in training, the same of implicit rewards",
    "Kendall's tau": "of all two responses of a prompt: the share that both reward models order alike less the share that "
    "they order differently",
    "d": "√KL, the root of the mean log-ratio of a checkpoint to the model that it is measured against",
}
_CHECKS = {
    "constraints": "share of the instruction's format demands that are kept",
    "language": "whether it is in the language asked for",
    "format": "whether code fences are closed and tables even",
    "json": "whether it is JSON where JSON is asked for",
    "repetition": "1 less the share of word 4-grams said before",
    "exact_answer": "whether the final answer is the reference",
}


def meaning(reason: str) -> str:
    """What a reject's reason says of it; empty for one that is not known here."""
    if reason.startswith(FOLLOW_UP):
        said = REASONS.get(reason.removeprefix(FOLLOW_UP), "")
        return f"second turn: {said}" if said else ""
    return REASONS.get(reason, "")


def meanings(reasons: Iterable[str]) -> dict[str, str]:
    """Those of the reasons that are known here, each once."""
    return {reason: said for reason in dict.fromkeys(reasons) if (said := meaning(reason))}


def measured_by_gold(recipe: Mapping[str, Any]) -> str:
    """What the gold reward model of a recipe measures, as a sentence; empty where it has none."""
    spec = at(recipe, "reward_models", GOLD)
    if not spec:
        return ""
    if at(spec, "kind") != "rules":
        made_of = at(spec, "train", "backbone") or spec
        name = at(made_of, "builtin") or at(made_of, "path") or at(made_of, "model")
        return f"Gold is a third reward model, {at(spec, 'kind') or 'classifier'}{f' {name}' if name else ''}."
    weights = at(spec, "weights") or {}
    parts = [f"{name} {weight:g} ({_CHECKS.get(name, 'see the recipe')})" for name, weight in weights.items()]
    said = f": {'; '.join(parts)}" if parts else ""
    return (
        f"Gold is no trained model but checks that code decides, a mark from 0 to 1: the mean, by these weights, of those "
        f"that apply to the prompt{said}. It knows nothing of whether an answer is helpful."
    )
