"""What a study keeps of a finished run: `study.json` in its folder, without the weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from align.core.artifact import Artifact, Manifest, write_json
from align.core.errors import StepError
from align.core.rows import EvalResult, Instruction, Response
from align.evaluate.overoptimization import Checkpoint
from align.evaluate.table import per_prompt
from align.recipe.base import BASE_MODEL
from align.runner import Run
from align.study.arms import JUDGES, LABELS, Plan
from align.study.numbers import ArmRun

KEPT = "study.json"


def keep(plan: Plan, arm: str, seed: int, seconds: float) -> None:
    """Write `study.json`: what the study needs of a finished run, and the fingerprint that it stands for.

    Raises:
        StepError: a prompt whose labels trained the reward models is one of the run's stages or its evaluation.
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
    steps = [int(manifest.metrics["steps"]) for manifest in stages]
    accuracy = {role: Manifest.load(plan.judge(role, seed).parent) for role in JUDGES}
    points = []
    if reason := evaluation.manifest.metrics["meter"].get("reason"):
        raise StepError(f"{run_dir}: {reason}")
    for point in evaluation.manifest.metrics["meter"]["points"]:
        mine = [row for row in rows if row.model == point["name"]]
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
        "seconds": round(seconds, 1),
        "start_digest": Artifact(run_dir / "sft" / "train").manifest.files["model/model.safetensors"]["sha256"],
        "reward_accuracy": {
            role: of.metrics["accuracy"] for role, of in accuracy.items() if of and of.metrics["accuracy"] is not None
        },
    }
    write_json(run_dir / KEPT, found)


def drop_weights(run_dir: Path) -> None:
    """Remove the weights of a run's stages, 0.5 GB each for 135M parameters; `study.json` keeps what the study needs."""
    for path in sorted(run_dir.glob("stage*/train/**/*.safetensors")):
        path.unlink()


def read_run(plan: Plan, arm: str, seed: int) -> ArmRun | None:
    """A finished run, or None where it is not finished or was made for another recipe or with other reward models."""
    try:
        found = json.loads((plan.run_dir(arm, seed) / KEPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    planned = {p.step.name: p for p in Run(plan.arm_recipe(arm, seed), plan.run_dir(arm, seed)).plan()}
    if found["fingerprint"] != planned["eval"].fingerprint:
        return None
    checkpoints = tuple(
        Checkpoint(**{**c, "sqrt_kl": math.nan if c["sqrt_kl"] is None else c["sqrt_kl"]}) for c in found["checkpoints"]
    )
    del found["fingerprint"]
    return ArmRun(**{**found, "checkpoints": checkpoints})
