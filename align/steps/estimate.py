"""The plan of a run as text: which steps stand, and rows, tokens, memory and time that the others will take.

Time is estimated for a CPU only, from rates measured with SmolLM2-135M on two cores (docs/performance.md) and scaled by
parameters; on a GPU it depends too much on the device to be honest.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from align.core.artifact import Manifest
from align.core.errors import UserError
from align.recipe.base import BASE_MODEL
from align.recipe.reward import ClassifierSpec, JudgeSpec, RewardTrainSpec
from align.recipe.schema import Recipe
from align.recipe.suites import ArenaSpec, LogickorSpec, MtBenchSpec, PerplexitySpec
from align.recipe.training import TrainSpec
from align.steps.asked import splits
from align.steps.checks import check_suites, check_taxonomy
from align.steps.outside import engine_kind, missing_builtins, model_path
from align.steps.step import evaluated
from align.steps.suite_table import answering_models, suite_models
from align.steps.table import Planned
from align.train.memory import ModelShape, training_memory
from data_gen.sources import count_records
from data_gen.taxonomy import load_taxonomy

# Parameters x tokens per second on two cores, by kind of work.
RATES = {"engine": 300 * 135e6, "train": 250 * 135e6, "score": 1000 * 135e6}
PROCESS_SECONDS = {"engine": 20.0, "train": 10.0, "score": 10.0}
UNKNOWN_DOCUMENTS = 10_000  # of compressed files and streamed datasets, which nobody counts beforehand
PROMPT_TOKENS = 60  # of an instruction with its template
KEPT = {"taxonomy": 0.75, "instruct": 0.6, "evolve": 0.5, "sft.data": 0.8, "pair": 0.4}  # measured on the quickstart
JUDGE_TOKENS = 20  # of two marks, or a topic, in JSON
SHORTLIST_TOKENS = 25  # of a topic's name and definition
ANSWER_SHARE = 0.7  # of max_tokens that an answer uses
ENGINE_CACHE_GIB = 2.0
REWARD_PAIR_TOKENS = 280  # both sides
HEAP_HOLES = {"cpu": 1.3, "cuda": 1.0}  # resident per byte in use, where row lengths change: 7.3 for 5.6 GiB, docs/LOG.md


@dataclass(frozen=True)
class Estimate:
    """What a step will make and use; tokens are prompt and completion together."""

    rows: float
    tokens: float = 0.0
    memory_gib: float = 0.0
    seconds: float = 0.0


def parameter_count(folder: Path) -> float:
    """Parameters of a model folder, from the headers of its safetensors files; 135M where it is not built yet."""
    total = 0
    for path in folder.glob("*.safetensors"):
        try:
            with path.open("rb") as handle:
                (length,) = struct.unpack("<Q", handle.read(8))
                if length > path.stat().st_size:
                    raise ValueError("the header is longer than the file")
                header = json.loads(handle.read(length))
        except (struct.error, ValueError) as error:
            raise UserError(f"{path}: not a safetensors file, perhaps a git-lfs pointer ({error})") from None
        total += sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__")
    return float(total) if total else 135e6


def stored_bytes(folder: Path) -> int:
    """Bytes per weight in a model's files, to the nearest of 2 and 4."""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return 2 if size < 3 * parameter_count(folder) else 4


def estimates(recipe: Recipe, plan: Sequence[Planned]) -> dict[str, Estimate]:
    """An estimate for every step by name."""
    base = parameter_count(model_path(recipe.models[BASE_MODEL]))
    corpus = next(p.step for p in plan if p.step.name == "corpus")
    known = None if recipe.corpus.datasets else count_records(corpus.files)
    documents = min(UNKNOWN_DOCUMENTS if known is None else known, recipe.corpus.limit or 10**12)
    units = documents * recipe.taxonomy.units_per_document
    spec = recipe.instructions
    instructions = units * KEPT["taxonomy"] * sum(spec.per_unit.values()) / len(spec.per_unit)
    if spec.per_topic:
        leaves = len(load_taxonomy(Path(recipe.taxonomy.path) if recipe.taxonomy.path else None).leaves)
        quota = spec.per_topic * leaves * len(recipe.corpus.languages)
        instructions = min(quota, units * KEPT["taxonomy"] * spec.max_per_unit)
    chosen = recipe.taxonomy.placement == "choice"
    follow_ups = instructions * KEPT["instruct"] * spec.multi_turn
    instructions += follow_ups
    judged = (
        instructions * KEPT["instruct"] * (1 + recipe.evolution.share * recipe.evolution.rounds) * recipe.evolution.judge
    )
    pool = instructions * KEPT["instruct"] * (1 + recipe.evolution.share * KEPT["evolve"]) ** recipe.evolution.rounds
    share = splits(recipe)
    sft = pool * share["sft"] * KEPT["sft.data"]

    candidates = pool * share["sft"] * recipe.answers.candidates

    def generate(rows: float, prompt: float, answer: float) -> Estimate:
        tokens = rows * (prompt + answer)
        seconds = PROCESS_SECONDS["engine"] + base * rows * answer * ANSWER_SHARE / RATES["engine"]
        return Estimate(rows, tokens, base * 2 / 2**30 + ENGINE_CACHE_GIB, seconds)

    def seconds_of(tokens: float, params: float) -> float:
        return PROCESS_SECONDS["train"] + params * tokens / RATES["train"]

    def train(examples: float, tokens: float, spec: TrainSpec, prompt: float) -> Estimate:
        """`tokens` of an epoch in shared rows; `prompt` is the prompts' share of them."""
        memory = training_gib(model_path(recipe.models[BASE_MODEL]), base, spec, tokens / max(examples, 1), prompt)
        return Estimate(examples, tokens * spec.epochs, memory, seconds_of(tokens * spec.epochs, base))

    result = {
        "corpus": Estimate(documents),
        "taxonomy": generate(
            units,
            150 + chosen * SHORTLIST_TOKENS * recipe.taxonomy.shortlist,
            recipe.taxonomy.sampling.max_tokens / recipe.taxonomy.units_per_document + chosen * JUDGE_TOKENS,
        ),
        "instruct": generate(
            instructions,
            110,
            spec.sampling.max_tokens / 2 + follow_ups / max(instructions, 1) * recipe.answers.sampling.max_tokens,
        ),
        "evolve": generate(
            pool,
            60,
            recipe.evolution.sampling.max_tokens / 2 * recipe.evolution.share + judged / max(pool, 1) * JUDGE_TOKENS,
        ),
        "respond": generate(candidates, PROMPT_TOKENS + 30, recipe.answers.sampling.max_tokens),
        "respond.score": generate(candidates, PROMPT_TOKENS + recipe.answers.sampling.max_tokens, JUDGE_TOKENS),
        "sft.data": Estimate(sft),
        "sft": train(sft, sft * 140, recipe.sft, PROMPT_TOKENS / 140),
        "reward.data": Estimate(sft * recipe.reward_data.per_example),
        "report": Estimate(0),
    }
    score_params = dict.fromkeys(recipe.reward_models.roles, 0.0)  # parameters that each response goes through
    for name, judge in recipe.reward_models.leaves():
        if isinstance(judge, ClassifierSpec):
            folder = model_path(judge.train.backbone) if judge.train else Path(str(judge.path))
        elif isinstance(judge, JudgeSpec):
            folder = model_path(recipe.models[judge.model])
        else:
            continue
        params = parameter_count(folder)
        score_params[name.split(".")[0]] += params
        if isinstance(judge, ClassifierSpec) and judge.train:
            pairs = sft * recipe.reward_data.per_example
            tokens = pairs * REWARD_PAIR_TOKENS * judge.train.epochs
            memory = reward_training_gib(folder, params, judge.train, judge.precision == "bf16")
            result[f"reward.{name}"] = Estimate(pairs, tokens, memory, seconds_of(tokens, params))
    for k, stage in enumerate(recipe.stages, 1):
        prompts = min(pool * share[stage.name], stage.sample.max_prompts or 10**12)
        responses = prompts * stage.sample.n
        for model in stage.sample.models:
            result[f"stage{k}.sample.{model}"] = generate(responses, PROMPT_TOKENS, stage.sample.max_tokens)
        scored = responses * len(stage.sample.models)
        for role, params in score_params.items():
            result[f"stage{k}.score.{role}"] = _score(scored, stage.sample.max_tokens, params)
        pairs = prompts * KEPT["pair"]
        result[f"stage{k}.pair"] = Estimate(pairs)
        result[f"stage{k}.best_of_n"] = Estimate(0)
        result[f"stage{k}.collected"] = Estimate(0)
        tokens = pairs * (PROMPT_TOKENS + 2 * stage.sample.max_tokens * ANSWER_SHARE)
        estimate = train(pairs, tokens, stage.train, PROMPT_TOKENS * pairs / max(tokens, 1))
        reference = base * tokens / RATES["train"] / 3 if stage.reference else 0.0  # a forward pass without a backward one
        result[f"stage{k}.train"] = replace(estimate, seconds=estimate.seconds + reference)
    held = min(pool * share["heldout"], recipe.evaluation.max_prompts or 10**12) * recipe.evaluation.n
    models = evaluated(recipe)
    for model in models:
        result[f"eval.sample.{model}"] = generate(held, PROMPT_TOKENS, recipe.evaluation.max_tokens)
    answers = held * len(models)
    for role, params in score_params.items():
        result[f"eval.score.{role}"] = _score(answers, recipe.evaluation.max_tokens, params)
    result |= _suites(recipe, generate, base, documents * share["heldout"])
    result["eval"] = _score(answers * 3, recipe.evaluation.max_tokens, base)
    return result


def _suites(recipe: Recipe, generate: Callable[..., Estimate], base: float, documents: float) -> dict[str, Estimate]:
    """The suites' steps; a file's items are its lines, an answer has half of its limit, `documents` are held out."""
    found: dict[str, Estimate] = {}
    for name, spec in recipe.evaluation.suites.items():
        models = suite_models(recipe, name)
        if isinstance(spec, PerplexitySpec):
            found[f"eval.suite.{name}"] = _score(min(spec.documents, documents) * len(models), spec.max_length, base)
            continue
        path = Path(str(getattr(spec, "path", "")))
        needles = 3 * math.prod(len(getattr(spec, key, ())) for key in ("lengths", "depths", "languages"))
        items = min(count_records([path]) or 0 if path.is_file() else needles, spec.limit or 10**9)
        turns = 2 if isinstance(spec, MtBenchSpec | LogickorSpec | ArenaSpec) else 1  # two turns, or two orders
        for model in answering_models(recipe, name):
            found[f"eval.suite.{name}.answer.{model}"] = generate(items * turns, PROMPT_TOKENS, spec.max_tokens)
        if isinstance(spec, MtBenchSpec | LogickorSpec | ArenaSpec):
            for model in models:
                found[f"eval.suite.{name}.judge.{model}"] = generate(
                    items * turns, 2 * spec.max_tokens, spec.judge_tokens / 4
                )
        found[f"eval.suite.{name}"] = Estimate(items * len(models))
    return found


def _score(rows: float, max_tokens: int, params: float) -> Estimate:
    tokens = rows * (PROMPT_TOKENS + max_tokens * ANSWER_SHARE)
    return Estimate(rows, tokens, params * 4 / 2**30 + 0.5, PROCESS_SECONDS["score"] + params * tokens / RATES["score"])


def training_gib(folder: Path, parameters: float, spec: TrainSpec, example: float, prompt: float) -> float:
    """Peak memory of a process that trains, GiB.

    Args:
        folder: of the model to start from.
        parameters: of it.
        spec: how it is trained.
        example: tokens of a usual example.
        prompt: share of them that is not scored.
    """
    shape = ModelShape.of(folder, parameters)
    if shape is None:  # not built yet, or of another kind: weights, gradients and Adam's moments alone
        return parameters * 16 / 2**30
    tokens = max(example, min(spec.micro_batch_tokens, spec.batch_size / spec.processes * example))
    found = training_memory(
        shape,
        tokens=round(tokens),
        scored=round(tokens * (1 - prompt)),
        bf16=spec.precision == "bf16" or (spec.precision == "auto" and _multiplies_bf16()),
        lora_rank=spec.lora.rank if spec.lora else None,
        gradient_checkpointing=spec.gradient_checkpointing,
        stored_bytes=stored_bytes(folder),
        device="cuda" if _has_gpu() else "cpu",
        shards=spec.processes if spec.parallel == "fsdp2" else 1,
    )
    return found.total / 2**30


def reward_training_gib(folder: Path, parameters: float, spec: RewardTrainSpec, bf16: bool) -> float:
    """Peak memory of training a reward model, GiB; arguments as in `training_gib`.

    Of the longest micro-batch there can be: as `reward.train.micro_batch` fills it, or one pair where that is longer.
    """
    shape = ModelShape.of(folder, parameters)
    if shape is None:
        return parameters * 16 / 2**30
    pair = 2 * spec.max_length
    tokens = max(pair, min(spec.micro_batch_tokens, spec.batch_size * pair))
    device = "cuda" if _has_gpu() else "cpu"
    stored = stored_bytes(folder)
    found = training_memory(shape, tokens=tokens, scored=0, bf16=bf16, stored_bytes=stored, device=device)
    return found.total * HEAP_HOLES[device] / 2**30


def _has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


def _multiplies_bf16() -> bool:
    """Whether `precision: auto` will mean bf16 here; as `align.train.precision` decides, without loading torch."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").is_file() else []
    return _has_gpu() or not {"avx512_bf16", "amx_tile"}.isdisjoint(flags)


def print_plan(recipe: Recipe, run_dir: Path, plan: Sequence[Planned], say: Callable[[str], None]) -> None:
    """Print the plan: a line per step, then what it will take altogether."""
    check_taxonomy(recipe)
    check_suites(recipe, [p.step.name for p in plan if not p.done])
    guess = estimates(recipe, plan)
    gpu = _has_gpu()
    say(f"recipe {recipe.name}: valid. engine {engine_kind(recipe)}, results in {run_dir}")
    if waiting := missing_builtins(recipe):
        say(f"built-in models that `align run` builds first: {', '.join(waiting)}")
    width = max(28, *(len(planned.step.name) for planned in plan))
    say(f"{'step':{width}} {'state':10} {'rows':>8} {'tokens':>9} {'memory':>8} {'time':>8}")
    total, opened = 0.0, set()
    trainings = {p.step.name for p in plan if p.step.process.startswith("train:")}
    for planned in plan:
        name = planned.step.name
        if planned.done:
            manifest = Manifest.load(run_dir / planned.step.folder)
            assert manifest is not None
            say(f"{name:{width}} {'cached':10} {manifest.rows:8d} {'':>9} {'':>8} {manifest.seconds:6.0f} s")
            continue
        g = guess[name]
        seconds = g.seconds
        # One start serves all steps of a process that come between two trainings.
        key = (planned.step.process, *(name for name in planned.step.inputs if name in trainings))
        if planned.step.process.startswith("engine:") and key in opened:
            seconds -= PROCESS_SECONDS["engine"]
        opened.add(key)
        total += seconds
        time = "" if gpu or not seconds else f"~{seconds:.0f} s"
        memory = f"{g.memory_gib:.1f} GiB" if g.memory_gib else ""
        tokens = f"~{g.tokens:,.0f}" if g.tokens else ""
        rows = f"~{g.rows:.0f}" if g.rows else ""
        say(f"{name:{width}} {'resume' if planned.started else 'to run':10} {rows:>8} {tokens:>9} {memory:>8} {time:>8}")
    to_run = [p for p in plan if not p.done]
    if not to_run:
        say("nothing to do")
        return
    peak = max(guess[p.step.name].memory_gib for p in to_run)
    when = "time depends on the GPU and is not estimated" if gpu else f"about {total / 60:.0f} min on two CPU cores"
    say(f"{len(to_run)} of {len(plan)} steps to run: {when}, peak memory about {peak:.1f} GiB")
