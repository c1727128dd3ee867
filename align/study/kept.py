"""What a study keeps of a finished run: `study.json` in its folder, without the weights."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

from align.core.artifact import Artifact, Manifest, write_json
from align.core.errors import StepError, UserError
from align.core.rows import EvalResult, Instruction, Response, RewardPair
from align.evaluate.overoptimization import Checkpoint
from align.evaluate.table import per_prompt
from align.recipe.base import BASE_MODEL
from align.runner import Run
from align.study.arms import JUDGES, LABELS, Plan
from align.study.labels import TURNED
from align.study.numbers import ArmRun

KEPT = "study.json"
OF_ANSWERS = ("num_tokens", "finished", "repetition")


def keep(plan: Plan, arm: str, seed: int) -> None:
    """Write `study.json`: what the study needs of a finished run, and the fingerprint that it stands for.

    Raises:
        StepError: a prompt whose labels trained the reward models is one of the run's stages or its evaluation, a stage is
            not finished, or the evaluation cannot say what is needed.
    """
    run_dir, recipe = plan.run_dir(arm, seed), plan.arm_recipe(arm, seed)
    evaluation = Artifact(run_dir / "eval" / "result")
    rows = evaluation.rows(EvalResult)
    used = {row.id for row in Artifact(run_dir / "evolve").rows(Instruction) if row.split != "sft"}
    labelled = Artifact(plan.prepared(seed) / LABELS / "stage1" / "sample" / BASE_MODEL).rows(Response)
    if both := used & {row.prompt_id for row in labelled}:
        raise StepError(f"{run_dir}: {len(both)} prompts both train the reward models and are used by stages or evaluation")
    trained = [Manifest.load(run_dir / f"stage{k}" / "train") for k in range(1, len(recipe.stages) + 1)]
    stages = [manifest for manifest in trained if manifest is not None]
    if len(stages) < len(trained):
        raise StepError(f"{run_dir}: {len(stages)} of {len(trained)} stages are finished")
    steps = [int(manifest.metrics["steps"]) for manifest in stages]
    points, answers = [], []
    if reason := evaluation.manifest.metrics["meter"].get("reason"):
        raise StepError(f"{run_dir}: {reason}")
    for point in evaluation.manifest.metrics["meter"]["points"]:
        mine = [row for row in rows if row.model == point["name"]]
        answers.append({name: sum(getattr(row, name) for row in mine) / len(mine) for name in OF_ANSWERS})
        done = sum(steps[: max(0, point["stage"] - 1)]) + point["step"]
        points.append({
            "name": point["name"], "stage": str(point["stage"]), "step": point["step"], "fraction": done / sum(steps),
            "sqrt_kl": point["sqrt_kl"]["mean"], "gold": per_prompt(mine, "gold"), "proxy": per_prompt(mine, "selector"),
        })  # fmt: skip
    found: dict[str, Any] = {
        "fingerprint": evaluation.manifest.fingerprint,
        "arm": arm,
        "seed": seed,
        "checkpoints": points,
        "pairs": [manifest.rows for manifest in stages],
        "steps": steps,
        "tokens": [int(manifest.metrics["tokens"]) for manifest in stages],
        "start_digest": Artifact(run_dir / "sft" / "train").manifest.files["model/model.safetensors"]["sha256"],
        "answers": answers,
        "reward_right": {role: right for role in JUDGES if (right := reward_right(plan.judge(role, seed).parents[1]))},
    }
    write_json(run_dir / KEPT, found)


def reward_right(folder: Path) -> tuple[int, int] | None:
    """Held-out pairs that a reward model orders as gold does, and how many there are; None where that is not known.

    Accuracy was measured on noisy labels. Where a label was turned round, a model that finds it wrong agrees with gold; with
    ties and missing scores, which find every label wrong, that does not follow.

    Args:
        folder: `reward` in the folder where the model was trained.

    Raises:
        StepError: there is not one trained model.
    """
    found = [of for path in sorted(folder.glob("*")) if path.name != "data" and (of := Manifest.load(path))]
    if len(found) != 1:
        raise StepError(f"{folder}: {len(found)} trained reward models where one is expected")
    metrics = found[0].metrics
    sizes = Counter(row.subset for row in Artifact(folder / "data").rows(RewardPair) if row.split == "test")
    if metrics.get("tie_share") != 0 or metrics["pairs_not_scored"] or metrics["pairs_test"] != sum(sizes.values()):
        return None
    by_subset = metrics["accuracy_by_subset"]
    right = sum(size * (1 - by_subset[name] if name == TURNED else by_subset[name]) for name, size in sizes.items())
    return round(right), sum(sizes.values())


def drop_weights(run_dir: Path) -> None:
    """Remove the weights of a run's stages, 0.5 GB each for 135M parameters; `study.json` keeps what the study needs."""
    for path in sorted(run_dir.glob("stage*/train/**/*.safetensors")):
        path.unlink()


def read_run(plan: Plan, arm: str, seed: int) -> ArmRun | None:
    """A finished run, or None where it is not finished or was made for another recipe, with other reward models or code."""
    found = _read(plan, arm, seed)
    if found is None:
        return None
    planned = {p.step.name: p for p in Run(plan.arm_recipe(arm, seed), plan.run_dir(arm, seed)).plan()}
    if found["fingerprint"] != planned["eval"].fingerprint:
        return None
    if set(found) != {"fingerprint", *(field.name for field in fields(ArmRun))}:  # kept by other code of the study
        try:
            return keep_again(plan, arm, seed)
        except (UserError, StepError):
            return None  # going on with the run says what is wrong with it
    return _arm_run(found)


def keep_again(plan: Plan, arm: str, seed: int) -> ArmRun | None:
    """A run that was finished and kept, whatever code or recipe it was made with, kept anew; None where there is none.

    Raises:
        StepError: what is there is not what was kept, or as in `keep`.
        UserError: a step of it cannot be read.
    """
    before = _read(plan, arm, seed)
    if before is None:
        return None
    run_dir = plan.run_dir(arm, seed)
    evaluation = Manifest.load(run_dir / "eval" / "result")
    known = evaluation is not None and evaluation.fingerprint == before.get("fingerprint")
    stages = [of for path in sorted(run_dir.glob("stage*/train")) if (of := Manifest.load(path))]
    if evaluation is None or not known or any(of.created > evaluation.created for of in stages):
        raise StepError(f"{run_dir}: it was begun anew since its results were kept")
    keep(plan, arm, seed)
    found = _read(plan, arm, seed)
    assert found is not None
    return _arm_run(found)


def _read(plan: Plan, arm: str, seed: int) -> dict[str, Any] | None:
    try:
        found = json.loads((plan.run_dir(arm, seed) / KEPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return dict(found)


def _arm_run(found: dict[str, Any]) -> ArmRun:
    checkpoints = tuple(
        Checkpoint(**{**c, "sqrt_kl": math.nan if c["sqrt_kl"] is None else c["sqrt_kl"]}) for c in found["checkpoints"]
    )
    return ArmRun(**{key: value for key, value in found.items() if key != "fingerprint"} | {"checkpoints": checkpoints})
