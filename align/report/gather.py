"""What the report says of a run's data half: facts, funnel, taxonomy, sample rows, supervised set, reward models."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.core.artifact import Manifest
from align.core.rows import Message
from align.report.artifacts import (
    ROLES,
    StepRecord,
    alternate,
    at,
    num_stages,
    read_recipe,
    record,
    reject_examples,
    scan,
    some_of_each,
)
from align.report.coverage import gather_coverage
from align.report.evaluation import gather_best_of_n
from align.report.glossary import measured_by_gold
from align.report.stages import Evaluation, Stage, gather_evaluation, gather_stages
from align.report.suites import Suite, gather_suites, run_steps
from data_gen.coverage import Coverage

REJECT_CHARS = 200
_UNITS = {
    "corpus": "lines read → documents",
    "taxonomy": "knowledge units asked of documents → placed in a topic",
    "instruct": "instructions asked for → generation 0",
    "evolve": "generation 0 plus rewrites → the pool",
    "respond": "answers asked for → answers",
    "respond.score": "answers → marked answers",
    "sft.data": "instructions of the SFT split → examples",
    "sft": "examples → trained on",
    "reward.data": "damaged copies asked for → pairs",
}


def cut(text: str, limit: int) -> str:
    """A text within `limit` characters; what is missing is said."""
    return text if len(text) <= limit else f"{text[:limit]}… (+{len(text) - limit:,} characters)"


@dataclass(frozen=True)
class Facts:
    """What a reader needs to make the run again."""

    name: str
    seed: int | None
    seconds: float
    first: str
    last: str
    versions: dict[str, str]
    engines: list[str]
    steps: list[StepRecord]
    size: int


@dataclass(frozen=True)
class FunnelStep:
    """What went into a step and what came out; `reasons` are (reason, number, examples), the most frequent first."""

    name: str
    about: str
    asked: int
    kept: int
    reasons: list[tuple[str, int, list[str]]]


@dataclass(frozen=True)
class TopicLine:
    """A node of the tree at its depth below the domain, with its count and the share of its level's largest."""

    name: str
    depth: int
    count: int
    share: float
    leaf: bool


@dataclass(frozen=True)
class TopicTree:
    """One domain and all below it."""

    top: TopicLine
    topics: int
    empty: int
    lines: list[TopicLine]


@dataclass(frozen=True)
class TaxonomyData:
    """The tree of topics with the knowledge units that fell into it."""

    trees: list[TopicTree]
    topics: int
    empty: int
    units: int
    by_lang: dict[str, int]


@dataclass(frozen=True)
class Evolved:
    """An instruction and the one it was rewritten from."""

    operator: str
    lang: str
    parent: list[Message]
    child: list[Message]


@dataclass(frozen=True)
class Samples:
    """A few rows of each data step."""

    documents: list[dict[str, Any]] = field(default_factory=list)
    units: list[dict[str, Any]] = field(default_factory=list)
    instructions: list[dict[str, Any]] = field(default_factory=list)
    evolved: list[Evolved] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class RewardModel:
    """One reward model's manifest and its held-out numbers; the role of an ensemble's member is like selector.0."""

    role: str
    state: str
    seconds: float
    metrics: dict[str, Any]


@dataclass(frozen=True)
class RunData:
    """Everything the page shows."""

    facts: Facts
    funnel: list[FunnelStep]
    taxonomy: TaxonomyData | None
    samples: Samples
    sft: dict[str, Any] | None
    sft_by_language: dict[str, int]
    coverage: Coverage | None
    evolution: dict[str, Any] | None
    reward_data: dict[str, Any] | None
    reward_models: list[RewardModel]
    gold: str
    stages: list[Stage]
    evaluation: Evaluation | None
    best_of_n: dict[int, list[dict[str, Any]]]
    suites: list[Suite]


def gather(run_dir: Path, name: str) -> RunData:
    """Read a run folder; steps that are missing leave their part empty.

    Raises:
        StepError: a step lost a row of a topic.
    """
    recipe = read_recipe(run_dir)
    steps = {n: record(run_dir, n) for n in run_steps(run_dir, recipe)}
    done = {n: s.manifest for n, s in steps.items() if s.manifest}
    metrics = {n: m.metrics for n, m in done.items()}
    return RunData(
        facts=_facts(name, list(steps.values())),
        funnel=[_funnel_step(steps[n]) for n in _UNITS if n in done],
        taxonomy=gather_taxonomy(run_dir / "taxonomy") if "taxonomy" in done else None,
        samples=_samples(run_dir, done),
        sft=metrics.get("sft"),
        sft_by_language=metrics.get("sft.data", {}).get("by_language", {}),
        coverage=gather_coverage(run_dir, done, num_stages(run_dir, recipe)),
        evolution=metrics.get("evolve"),
        reward_data=metrics.get("reward.data"),
        reward_models=[_reward_model(s) for n, s in steps.items() if n.startswith("reward.") and n != "reward.data"],
        gold=measured_by_gold(recipe),
        stages=gather_stages(run_dir, recipe),
        evaluation=gather_evaluation(run_dir),
        best_of_n=gather_best_of_n(run_dir, num_stages(run_dir, recipe)),
        suites=gather_suites(run_dir, recipe),
    )


def _facts(name: str, steps: list[StepRecord]) -> Facts:
    done = [s.manifest for s in steps if s.manifest]
    created = sorted(m.created for m in done)
    versions: dict[str, list[str]] = {}
    for manifest in done:
        for package, version in manifest.versions.items():
            known = versions.setdefault(package, [])
            if version not in known:
                known.append(version)
    engines = []
    for manifest in done:
        if engine := manifest.metrics.get("engine"):
            engines.append(" ".join(str(v) for v in (at(engine, "kind"), at(engine, "version")) if v))
    return Facts(
        name=name,
        seed=done[0].seed if done else None,
        seconds=sum(m.seconds for m in done),
        first=created[0] if created else "",
        last=created[-1] if created else "",
        versions={package: ", then ".join(found) for package, found in versions.items()},
        engines=list(dict.fromkeys(engines)),
        steps=steps,
        size=sum(int(entry.get("bytes", 0)) for m in done for entry in m.files.values()),
    )


def readable_reject(raw: str) -> str:
    """The text of a reject; the scores that a rejected prompt keeps as JSON become one line."""
    if raw.startswith("{") and '"compared"' in raw:
        try:
            numbers = json.loads(raw)
        except ValueError:
            return raw
        parts = [f"{len(numbers['compared'])} of {len(numbers.get('selector', {}))} responses compared"]
        for role in ROLES:
            best, worst = (at(numbers, role, numbers.get(side)) for side in ("chosen", "rejected"))
            if isinstance(best, (int, float)) and isinstance(worst, (int, float)):
                parts.append(f"{role}: best {best:.3f}, worst {worst:.3f}")
        parts += [f"{key} {numbers[key]:.2f}" for key in ("gap", "kendall") if isinstance(numbers.get(key), (int, float))]
        return " · ".join(parts)
    return raw


def reasons_of(manifest: Manifest, folder: Path) -> list[tuple[str, int, list[str]]]:
    """(reason, number, up to 3 texts) of a finished step, the most frequent first."""
    if not manifest.rejects:
        return []
    examples = reject_examples(folder, manifest.rejects)
    ordered = sorted(manifest.rejects.items(), key=lambda item: (-item[1], item[0]))
    return [(r, n, [cut(readable_reject(raw), REJECT_CHARS) for raw in examples[r]]) for r, n in ordered]


def _funnel_step(step: StepRecord) -> FunnelStep:
    assert step.manifest is not None
    manifest = step.manifest
    return FunnelStep(step.name, _UNITS[step.name], manifest.asked, manifest.rows, reasons_of(manifest, step.folder))


def gather_taxonomy(folder: Path) -> TaxonomyData | None:
    """The tree from `topics.parquet`, in its order, one entry per domain."""
    topics = list(scan(folder, ("path", "name", "level", "count"), "topics.parquet"))
    if not topics:
        return None
    parents = {t["path"].rsplit("/", 1)[0] for t in topics if "/" in t["path"]}
    largest: Counter[str] = Counter()
    for topic in topics:
        largest[topic["level"]] = max(largest[topic["level"]], topic["count"], 1)
    lines: dict[str, list[TopicLine]] = {}
    for topic in sorted(topics, key=_tree_order(topics)):
        depth = topic["path"].count("/")
        share = topic["count"] / largest[topic["level"]]
        line = TopicLine(topic["name"], depth, topic["count"], share, topic["path"] not in parents)
        lines.setdefault(topic["path"].split("/")[0], []).append(line)
    trees = []
    for top, *rest in lines.values():
        leaves = [line for line in [top, *rest] if line.leaf]
        trees.append(TopicTree(top, len(leaves), sum(not leaf.count for leaf in leaves), rest))
    return TaxonomyData(
        trees=trees,
        topics=sum(t.topics for t in trees),
        empty=sum(t.empty for t in trees),
        units=sum(t.top.count for t in trees),
        by_lang=dict(Counter(row["lang"] for row in scan(folder, ("lang",)))),
    )


def _tree_order(topics: Sequence[Mapping[str, Any]]) -> Any:
    """A sort key that puts every node right after its parent, siblings in the order of the file."""
    place = {t["path"]: i for i, t in enumerate(topics)}

    def key(topic: Mapping[str, Any]) -> tuple[int, ...]:
        parts = topic["path"].split("/")
        return tuple(place.get("/".join(parts[:n]), 0) for n in range(1, len(parts) + 1))

    return key


def _samples(run_dir: Path, done: Mapping[str, Manifest]) -> Samples:
    """Some rows of each data step, as many of each language."""

    def some(step: str, columns: tuple[str, ...], folder: str, number: int) -> list[dict[str, Any]]:
        return some_of_each(scan(run_dir / folder, columns), "lang", number, kinds=2) if step in done else []

    documents = some("corpus", ("text", "lang", "source", "license"), "corpus", 2)
    units = some("taxonomy", ("statement", "lang", "topic_id", "similarity"), "taxonomy", 3)
    examples = some("sft.data", ("messages", "lang", "task_type", "generation"), "sft/data", 2)
    names = {row["id"]: row["name"] for row in scan(run_dir / "taxonomy", ("id", "name"), "topics.parquet")} if units else {}
    for row in documents:
        row["text"] = cut(row["text"], 400)
    for row in units:
        row["topic"] = names.get(row["topic_id"], row["topic_id"])
    instructions = sample_instructions(run_dir / "instruct") if "instruct" in done else []
    evolved = evolved_pairs(run_dir / "evolve") if "evolve" in done else []
    return Samples(documents, units, instructions, evolved, examples)


def sample_instructions(folder: Path) -> list[dict[str, Any]]:
    """One instruction of each form: a dialogue, with a system prompt, with an input below the request, and neither."""

    def form(messages: list[Message]) -> str:
        if sum(message["role"] == "user" for message in messages) > 1:
            return "dialogue"
        if messages[0]["role"] == "system":
            return "system prompt"
        return "input" if "\n\n" in messages[-1]["content"] else "request"

    rows = scan(folder, ("messages", "lang", "answer_lang", "task_type", "operator", "persona", "level"))
    found = some_of_each(({**row, "form": form(row["messages"])} for row in rows), "form", 1, kinds=4)
    return sorted(found, key=lambda row: ("request", "input", "system prompt", "dialogue").index(row["form"]))


def evolved_pairs(folder: Path, each: int = 2) -> list[Evolved]:
    """Up to `each` rewritten instructions per operator, beside the instructions they come from."""
    columns = ("parent_id", "messages", "operator", "lang")
    rows = (r for r in scan(folder, (*columns, "generation")) if r["generation"] > 0)
    children = some_of_each(rows, "operator", each, kinds=6)
    wanted = {row["parent_id"] for row in children}
    parents = {r["id"]: r["messages"] for r in scan(folder, ("id", "messages")) if r["id"] in wanted}
    return [
        Evolved(row["operator"], row["lang"], parents.get(row["parent_id"], []), row["messages"])
        for row in alternate(children, "operator")
    ]


def _reward_model(step: StepRecord) -> RewardModel:
    manifest = step.manifest
    role = step.name.removeprefix("reward.")
    if manifest is None:
        return RewardModel(role, step.state, 0.0, {})
    return RewardModel(role, step.state, manifest.seconds, manifest.metrics)
