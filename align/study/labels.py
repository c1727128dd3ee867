"""What is made once for a seed: preference labels of the gold reward, made noisy, and two reward models trained on them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from align.core.artifact import Artifact, write_text
from align.core.errors import UserError
from align.core.hashing import file_sha256, unit_interval
from align.core.rows import Instruction, Response, Score
from align.recipe.base import BASE_MODEL
from align.runner import Run, execute
from align.study.arms import JUDGES, LABELS, Plan

Say = Callable[[str], None]
TURNED = "turned"  # subset of pairs whose label is not gold's


def noisy_pairs(
    prompts: Mapping[str, Instruction], responses: Sequence[Response], gold: Mapping[str, float], *,
    judge: str, seed: int, noise: float, per_prompt: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Preference pairs that gold tells apart, some with the label turned round; lines of a preference file.

    Which pairs are taken depends on the seed alone, which are turned on the judge too: the errors of two are independent.

    Args:
        prompts: by id.
        responses: to them.
        gold: by response id; one without it, or with NaN, makes no pair.
        judge: the reward model that learns from them.
        seed: of the run.
        noise: chance that a label is turned.
        per_prompt: most pairs of a prompt, drawn by hash.
    """
    by_prompt: dict[str, list[Response]] = {}
    for response in sorted(responses, key=lambda r: r.id):
        by_prompt.setdefault(response.prompt_id, []).append(response)
    lines = []
    for prompt_id, answers in sorted(by_prompt.items()):
        scores = {r.id: gold.get(r.id, math.nan) for r in answers}
        # NaN is neither above nor below anything.
        apart = [(a, b) for a, b in combinations(answers, 2) if scores[a.id] < scores[b.id] or scores[b.id] < scores[a.id]]
        apart.sort(key=lambda pair: unit_interval(seed, "label-pair", pair[0].id, pair[1].id))
        for pair in apart[:per_prompt]:
            good, bad = sorted(pair, key=lambda r: -scores[r.id])
            turned = unit_interval(seed, "label-noise", judge, good.id, bad.id) < noise
            chosen, rejected = (bad, good) if turned else (good, bad)
            lines.append({
                "prompt": prompts[prompt_id].messages, "chosen": chosen.text, "rejected": rejected.text,
                "subset": TURNED if turned else "right",
            })  # fmt: skip
    return lines


def prepare(plan: Plan, seed: int, say: Say) -> None:
    """The labels and reward models of a seed; does only what is not done.

    Raises:
        UserError: gold tells no two responses apart, or a mistake in the recipe.
        StepError: a step failed.
    """
    folder, spec = plan.prepared(seed), plan.spec.labels
    recipe = plan.labels_recipe(seed)
    steps = ["corpus", "taxonomy", "instruct", "evolve", f"stage1.sample.{BASE_MODEL}", "stage1.score.gold"]
    execute(Run(recipe, folder / LABELS), steps, say)
    prompts = {row.id: row for row in Artifact(folder / LABELS / "evolve").rows(Instruction)}
    responses = Artifact(folder / LABELS / "stage1" / "sample" / BASE_MODEL).rows(Response)
    gold = {row.response_id: row.score for row in Artifact(folder / LABELS / "stage1" / "score" / "gold").rows(Score)}
    for role in JUDGES:
        lines = noisy_pairs(
            prompts, responses, gold, judge=role, seed=seed, noise=spec.noise, per_prompt=spec.pairs_per_prompt
        )
        if not lines:
            raise UserError(f"{plan.path}: reward_models.gold tells no two of {len(responses)} responses apart; change it")
        file, text = folder / f"{role}.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_text(file, text)
        trained = plan.recipe(f"seed={seed}", f"reward_data.path={json.dumps(str(file))}")
        execute(Run(trained, folder / role), ["reward.data", f"reward.{role}"], say)
    make_stand_in(plan.judge("selector", seed), plan.stand_in(seed))


def make_stand_in(judge: Path, folder: Path) -> None:
    """A copy of a reward model's folder that scores alike and whose weight files are other files.

    A run refuses a validator with the selector's weights, rightly, since it always agrees; an arm without a second reward
    model wants just that. What differs is a note in the files' headers.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    files = sorted(judge.glob("*.safetensors"))
    notes = {file.name: {"format": "pt", "stand_in_for": file_sha256(file)} for file in files}

    def stands(file: Path) -> bool:
        if not file.is_file():
            return False
        with safe_open(file, "pt") as opened:
            return bool(opened.metadata() == notes[file.name])

    if all(stands(folder / name) for name in notes):
        return
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(judge, temporary, ignore=shutil.ignore_patterns("*.safetensors"))
    for file in files:
        save_file(load_file(file), temporary / file.name, metadata=notes[file.name])
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)
