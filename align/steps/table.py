"""The table of steps of a recipe: what each reads, what decides its result, where it writes, in which process it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.builtin_models import builtin_folder
from align.core.artifact import SHARD_SIZE, Manifest, work_state
from align.core.errors import UserError
from align.core.hashing import FileHashes, fingerprint
from align.core.records import expand_paths
from align.core.rows import (
    BestOfN,
    Document,
    EvalResult,
    Instruction,
    Knowledge,
    Preference,
    Reject,
    Response,
    RewardPair,
    Score,
    SftExample,
    TrainedExample,
)
from align.recipe.base import BASE_MODEL, SFT_MODEL
from align.recipe.schema import Recipe, StageSpec
from align.report.glossary import LOSS_NAMES
from align.steps.asked import splits, task_types, written_languages
from align.steps.judges import REWARD_ROLES, answers_judge, collected_names, judge_needs, judge_seed, trained_judges
from align.steps.outside import dump, engine_config, load_prompts, model_path
from align.steps.step import Step, engine_process, evaluated, uses
from align.steps.suite_table import suite_steps

# Raised when the meaning of rows or of a step's work changes: everything is made anew.
CODE_SCHEMA = 6
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


# Speed and memory, not results: what goes through the model at once and how it is laid out, scored and spread.
_NOT_RESULTS = (
    "micro_batch_tokens", "layout", "head", "processes", "parallel", "gradient_checkpointing", "save_steps",
    "allow_high_learning_rate",
)  # fmt: skip


def build_steps(recipe: Recipe) -> list[Step]:
    """All steps of a recipe, each after its inputs."""
    return [*_data_steps(recipe), *_sft_and_reward_steps(recipe), *_stage_steps(recipe), *_evaluation_steps(recipe)]


def _data_steps(recipe: Recipe) -> Iterator[Step]:
    from data_gen.taxonomy import shipped_taxonomy

    base = (model_path(recipe.models[BASE_MODEL]),)
    process = engine_process(recipe, BASE_MODEL)
    written = {"seed": recipe.seed, "engine": engine_config(recipe), "templates": load_prompts(recipe).fingerprint()}
    corpus_files = tuple(expand_paths(recipe.corpus.paths, "corpus.paths"))
    gates = {"filters": recipe.quality.filters, "near_duplicates": recipe.quality.near_duplicates}
    yield Step(
        name="corpus", verb="taxonomy", folder="corpus", row_type=Document, files=corpus_files,
        config={**dump(recipe.corpus, "paths"), **gates, "seed": recipe.seed},
        about="read, check, mask and de-duplicate documents",
    )  # fmt: skip
    # A dialogue's first answers are written before its follow-ups.
    talks = written_languages(recipe) if recipe.instructions.multi_turn else []
    first = dump(recipe.answers, "best_by", "reward_model", "candidates", "passage_chars", "writer") if talks else {}
    embedders = sorted(recipe.taxonomy.embedders.items())
    tree = (Path(recipe.taxonomy.path) if recipe.taxonomy.path else shipped_taxonomy(),)
    yield Step(
        name="taxonomy", verb="taxonomy", folder="taxonomy", row_type=Knowledge, inputs=("corpus",),
        models=(*base, *(model_path(spec) for _, spec in embedders)),
        config={
            **dump(recipe.taxonomy, "path", "embedders"), **written, "embedders": [str(lang) for lang, _ in embedders],
            "batch": SHARD_SIZE,
        }, files=tree, process=process,
        about="take knowledge units from documents and place them in the taxonomy",
    )  # fmt: skip
    yield Step(
        name="instruct", verb="instruct", folder="instruct", row_type=Instruction, inputs=("corpus", "taxonomy"),
        config={
            **dump(recipe.instructions), **written, "splits": splits(recipe), "task_types": task_types(recipe),
            "talks": talks, "answers": first,
        },
        models=base, files=tree, process=process,
        about="turn knowledge units into instructions",
    )  # fmt: skip
    yield Step(
        name="evolve", verb="evolve", folder="evolve", row_type=Instruction, inputs=("taxonomy", "instruct"),
        config={**dump(recipe.evolution), **written, **_search(recipe), "languages": written_languages(recipe)},
        models=base, files=benchmark_files(recipe), process=process,
        about="evolve instructions, eliminate bad ones",
    )  # fmt: skip
    yield Step(
        name="respond", verb="respond", folder="respond", row_type=Response, models=base, process=process,
        inputs=("corpus", "taxonomy", "evolve"),
        config={**dump(recipe.answers, "max_repetition", "best_by", "reward_model"), **written},
        about="answer the instructions of the SFT split",
    )  # fmt: skip
    best = recipe.answers.best_by
    if best != "first":
        judge = base if best == "judge" else (Path(str(recipe.answers.reward_model)),)
        chosen = written if best == "judge" else dump(answers_judge(recipe), "path", "train", "layout")
        yield Step(
            name="respond.score", verb="respond", folder="respond_score", row_type=Score, models=judge,
            inputs=("evolve", "respond"), config={"best_by": best, **chosen},
            process=process if best == "judge" else "judge", about="score the candidates of each answer",
        )  # fmt: skip
    yield Step(
        name="sft.data", verb="respond", folder="sft/data", row_type=SftExample,
        inputs=("evolve", "respond", *(("respond.score",) if best != "first" else ())),
        config={"max_repetition": recipe.answers.max_repetition, **_search(recipe)}, files=benchmark_files(recipe),
        about="check answers and write the SFT set",
    )  # fmt: skip


def benchmark_files(recipe: Recipe) -> tuple[Path, ...]:
    """The files whose test items must not be in training data."""
    spec = recipe.quality.decontaminate
    return tuple(expand_paths(spec.benchmarks, "quality.decontaminate.benchmarks")) if spec else ()


def _search(recipe: Recipe) -> dict[str, Any]:
    spec = recipe.quality.decontaminate
    return {"decontaminate": {**dump(spec, "benchmarks"), "seed": recipe.seed}} if spec else {}


def _sft_and_reward_steps(recipe: Recipe) -> Iterator[Step]:
    made, outside = uses(recipe, recipe.sft.init)
    yield Step(
        name="sft", verb="sft", folder="sft/train", row_type=TrainedExample, inputs=("sft.data", *made), models=outside,
        config={**dump(recipe.sft, *_NOT_RESULTS), "seed": recipe.seed}, process="train:sft",
        about=f"train {SFT_MODEL} from {recipe.sft.init} on assistant tokens",
    )  # fmt: skip
    trained = trained_judges(recipe)
    if trained:
        data = recipe.reward_data
        yield Step(
            name="reward.data", verb="reward", folder="reward/data", row_type=RewardPair,
            inputs=() if data.path else ("sft.data",), files=(Path(data.path),) if data.path else (),
            config={**dump(data, "path"), "seed": recipe.seed}, about="pairs that teach the reward models",
        )  # fmt: skip
    for name, spec in trained.items():
        assert spec.train is not None
        yield Step(
            name=f"reward.{name}", verb="reward", folder=f"reward/{name}", row_type=TrainedExample,
            inputs=("reward.data",), models=(model_path(spec.train.backbone),), process="train:reward",
            config={
                **dump(spec.train, "backbone", *_NOT_RESULTS), "precision": spec.precision, "seed": judge_seed(recipe, name),
            },
            about=f"train the {name} (Bradley-Terry)",
        )  # fmt: skip


def _stage_steps(recipe: Recipe) -> Iterator[Step]:
    for k, stage in enumerate(recipe.stages, 1):
        yield from _one_stage(recipe, k, stage)


def _one_stage(recipe: Recipe, k: int, stage: StageSpec) -> Iterator[Step]:
    sampling = dump(stage.sample, "models")
    samples = []
    for model in stage.sample.models:
        made, outside = uses(recipe, model)
        samples.append(f"stage{k}.sample.{model}")
        yield Step(
            name=samples[-1], verb="sample", stage=k, folder=f"stage{k}/sample/{model}", row_type=Response,
            inputs=("evolve", *made), models=outside, process=engine_process(recipe, model), asks=model,
            config={**sampling, "engine": engine_config(recipe), "seed": recipe.seed, "split": stage.name, "model": model},
            about=f"{stage.sample.n} responses per prompt from {model}",
        )  # fmt: skip
    collected: tuple[str, ...] = ()
    if stage.pair.collected:
        made, outside = uses(recipe, stage.init)
        collected = (f"stage{k}.collected",)
        yield Step(
            name=collected[0], verb="sample", stage=k, folder=f"stage{k}/collected", row_type=RewardPair,
            inputs=("evolve", *made),
            models=outside, files=tuple(Path(one.path) for one in stage.pair.collected),
            config={"names": collected_names(stage)}, about="read the pairs that were collected elsewhere",
        )  # fmt: skip
    for role in REWARD_ROLES:
        needs = judge_needs(recipe, role, f"stage{k}")
        yield Step(
            name=f"stage{k}.score.{role}", verb="score", stage=k, folder=f"stage{k}/score/{role}", row_type=Score,
            inputs=("evolve", *samples, *collected, *needs.inputs), models=needs.models, files=needs.files,
            awaited=needs.awaited, config={**needs.config, "prompts": stage.sample.max_prompts}, process=needs.process,
            about=f"score responses with the {role}",
        )  # fmt: skip
    if recipe.reward_models.gold is not None:
        needs = judge_needs(recipe, "gold", f"stage{k}")
        yield Step(
            name=f"stage{k}.score.gold", verb="score", stage=k, folder=f"stage{k}/score/gold", row_type=Score,
            inputs=("evolve", *samples, *needs.inputs), models=needs.models, files=needs.files, awaited=needs.awaited,
            config={**needs.config, "prompts": stage.sample.max_prompts}, process=needs.process,
            about="score responses with gold, which chooses nothing",
        )  # fmt: skip
        yield Step(
            name=f"stage{k}.best_of_n", verb="score", stage=k, folder=f"stage{k}/best_of_n", row_type=BestOfN,
            inputs=(*samples, *(f"stage{k}.score.{role}" for role in recipe.reward_models.roles)),
            config={"seed": recipe.seed}, about="what gold says of the best of n by selector and validator",
        )  # fmt: skip
    yield Step(
        name=f"stage{k}.pair", verb="pair", stage=k, folder=f"stage{k}/pair", row_type=Preference,
        inputs=("evolve", *samples, *collected, *(f"stage{k}.score.{role}" for role in REWARD_ROLES)),
        config={
            **dump(stage.pair, "collected", "audit"), **_search(recipe), "seed": recipe.seed,
            "init": stage.init, "shares": [one.share for one in stage.pair.collected],
        }, files=benchmark_files(recipe),
        about="yw and yl by the selector, where the validator agrees",
    )  # fmt: skip
    made, outside = uses(recipe, stage.init, *([stage.reference] if stage.reference else []))
    yield Step(
        name=f"stage{k}.train", verb=stage.train.loss, stage=k, folder=f"stage{k}/train", row_type=TrainedExample,
        inputs=(f"stage{k}.pair", "evolve", *made), models=outside, process=f"train:stage{k}",
        config={**dump(stage.train, *_NOT_RESULTS), "seed": recipe.seed, "init": stage.init, "reference": stage.reference},
        about=f"train {stage.name} from {stage.init} with {LOSS_NAMES[stage.train.loss]}",
    )  # fmt: skip


def _evaluation_steps(recipe: Recipe) -> Iterator[Step]:
    spec = recipe.evaluation
    sampling = dump(spec, "models", "baseline", "precision", "suites")
    samples, roles = [], recipe.reward_models.roles
    for model in evaluated(recipe):
        made, outside = uses(recipe, model)
        samples.append(f"eval.sample.{model}")
        yield Step(
            name=samples[-1], verb="eval", folder=f"eval/sample/{model}", row_type=Response,
            inputs=("evolve", *made), models=outside, process=engine_process(recipe, model), asks=model,
            config={**sampling, "engine": engine_config(recipe), "seed": recipe.seed, "split": "heldout", "model": model},
            about=f"{model} answers the held-out prompts",
        )  # fmt: skip
    for role in roles:
        needs = judge_needs(recipe, role, "eval")
        yield Step(
            name=f"eval.score.{role}", verb="eval", folder=f"eval/score/{role}", row_type=Score, process=needs.process,
            inputs=("evolve", *samples, *needs.inputs), models=needs.models, files=needs.files,
            awaited=needs.awaited, config={**needs.config, "prompts": spec.max_prompts}, about=f"the {role} judges them",
        )  # fmt: skip
    suites = [step.name for step in suite_steps(recipe)]
    yield from suite_steps(recipe)
    # KL is to M0 and to the model that each was trained from, evaluated or not.
    made, outside = uses(recipe, *spec.models, SFT_MODEL, *(s.init for s in recipe.stages if s.name in spec.models))
    yield Step(
        name="eval", verb="eval", folder="eval/result", row_type=EvalResult, process="judge", models=outside,
        inputs=("evolve", *samples, *(f"eval.score.{role}" for role in roles), *made),
        config={"seed": recipe.seed, "baseline": spec.baseline, "precision": spec.precision, "models": evaluated(recipe)},
        about="win rates, lengths, repetition, language match, KL",
    )  # fmt: skip
    scored = recipe.answers.best_by != "first"
    everything = [
        "corpus", "taxonomy", "instruct", "evolve", "respond", *(["respond.score"] if scored else []), "sft.data", "sft",
        *(["reward.data"] if trained_judges(recipe) else []), *(f"reward.{name}" for name in trained_judges(recipe)),
    ]  # fmt: skip
    for k, stage in enumerate(recipe.stages, 1):
        everything += [f"stage{k}.sample.{m}" for m in stage.sample.models]
        everything += [f"stage{k}.score.{role}" for role in roles] + [f"stage{k}.pair", f"stage{k}.train"]
        everything += [f"stage{k}.best_of_n"] if "gold" in roles else []
    yield Step(
        name="report", verb="report", folder="report", row_type=Reject, about="write report/index.html",
        inputs=(*everything, *samples, *(f"eval.score.{role}" for role in roles), *suites, "eval"),
        config={"name": recipe.name},
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A step with its fingerprint (None while an outside model or file is not made) and whether its result stands."""

    step: Step
    fingerprint: str | None
    done: bool
    started: bool
    input_digests: dict[str, str]


def plan_steps(steps: list[Step], run_dir: Path, hashes: FileHashes) -> list[Planned]:
    """Compare what the recipe asks for with what stands in the run folder. Loads no model.

    A step stands when its manifest has the expected fingerprint and its inputs still hold what it read.

    Raises:
        UserError: a model folder or file that the recipe names does not exist.
    """
    planned: dict[str, Planned] = {}
    manifests: dict[str, Manifest] = {}
    for step in steps:
        outside = _outside(step, hashes)
        above = [planned[name] for name in step.inputs]
        known = outside is not None and all(p.fingerprint for p in above)
        value = None
        if known:
            value = fingerprint([CODE_SCHEMA, step.name, step.config, outside, {p.step.name: p.fingerprint for p in above}])
        folder = run_dir / step.folder
        manifest = Manifest.load(folder)
        digests = {p.step.name: manifests[p.step.name].digest() for p in above if p.done}
        done = (
            value is not None
            and manifest is not None
            and manifest.fingerprint == value
            and all(p.done for p in above)
            and manifest.inputs == digests
            and manifest.complete(folder)
        )
        if done and manifest is not None:
            manifests[step.name] = manifest
        state = work_state(folder)
        started = not done and state is not None and state["fingerprint"] == value and state["inputs"] == digests
        planned[step.name] = Planned(step=step, fingerprint=value, done=done, started=started, input_digests=digests)
    return list(planned.values())


def _outside(step: Step, hashes: FileHashes) -> list[str] | None:
    """Content hashes of what a step reads from outside the run; None where a model or file of them is still to be made."""
    values = []
    if not all(file.is_file() for file in step.awaited):
        return None
    for folder in step.models:
        if not (folder / "config.json").is_file():
            if folder.parent == builtin_folder("tiny-llama").parent:
                return None
            raise UserError(f"{folder}: no model there (config.json is missing)")
        if not any(folder.glob("*.safetensors")):
            raise UserError(f"{folder}: no *.safetensors there; other weight formats are not loaded")
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise UserError(f"{folder}: no tokenizer there (none of {', '.join(TOKENIZER_FILES)})")
        values.append(hashes.model(folder))
    for file in (*step.files, *step.awaited):
        if not file.is_file():
            raise UserError(f"{file}: no such file")
        values.append(hashes.sha256(file))
    return values
