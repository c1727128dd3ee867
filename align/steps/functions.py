"""Which function does which step's work."""

from __future__ import annotations

from collections.abc import Callable

from align.steps.context import Context


def work_of(step_name: str) -> Callable[[Context], None]:
    """The function of a step; imported here, when it is needed, so that planning loads no model library."""
    from align.steps import collected, data, evaluation, pairing, reward, scoring, suites, training

    exact: dict[str, Callable[[Context], None]] = {
        "corpus": data.run_corpus,
        "taxonomy": data.run_taxonomy,
        "instruct": data.run_instruct,
        "evolve": data.run_evolve,
        "respond": data.run_respond,
        "respond.score": scoring.run_score_answers,
        "sft.data": data.run_sft_data,
        "sft": training.run_sft,
        "reward.data": reward.run_reward_data,
        "eval": evaluation.run_eval,
        "report": evaluation.run_report,
    }
    if step_name in exact:
        return exact[step_name]
    kind = step_name.split(".")[1]
    if kind == "suite":
        part = step_name.split(".")[3:4]
        return {"answer": suites.run_suite_answers, "judge": suites.run_suite_judge}.get("".join(part), suites.run_suite)
    by_kind: dict[str, Callable[[Context], None]] = {
        "sample": reward.run_sample,
        "collected": collected.run_collected,
        "score": scoring.run_score,
        "best_of_n": evaluation.run_best_of_n,
        "pair": pairing.run_pair,
        "train": training.run_preference,
    }
    return by_kind.get(kind, reward.run_reward_train)
