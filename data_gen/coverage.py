"""How the taxonomy is filled, topic by topic and step by step: asked, kept, and rejected by reason."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from align.core.artifact import Manifest
from align.core.errors import StepError, UserError

BINS = 10  # tenths of the measured difficulty, which is below 1; the marks 1 to 10 of a judge
PLACING = "taxonomy"  # the step that gives a unit its topic: what it rejects has none


@dataclass
class Yield:
    """What became of the rows that a step was asked for, of one topic or of several."""

    kept: int = 0
    rejects: Counter[str] = field(default_factory=Counter)

    @property
    def asked(self) -> int:
        return self.kept + sum(self.rejects.values())

    def add(self, other: Yield) -> None:
        """Count another topic's rows too."""
        self.kept += other.kept
        self.rejects.update(other.rejects)


@dataclass(frozen=True)
class Place:
    """A topic, or a domain with all topics below it, and its rows in every counted step."""

    id: str
    path: str
    name: str
    steps: dict[str, Yield]


@dataclass(frozen=True)
class Coverage:
    """The leaves of the tree in its order, the domains above them, and each step over the whole tree.

    `no_topic` is what the step taxonomy rejected, by reason. `not_counted` are finished steps whose manifest does not say
    what was asked of each topic.
    """

    topics: list[Place]
    domains: list[Place]
    steps: dict[str, Yield]
    no_topic: Counter[str]
    not_counted: list[str]

    @property
    def empty(self) -> list[Place]:
        """The topics of which no counted step kept a row."""
        return [topic for topic in self.topics if not any(made.kept for made in topic.steps.values())]

    def spread(self, step: str) -> Spread:
        """How evenly a step's rows lie over the topics."""
        return Spread.of(topic.steps[step].kept for topic in self.topics)

    def as_json(self) -> dict[str, Any]:
        """What `coverage.json` holds."""
        steps = {step: _told(step, made) | vars(self.spread(step)) for step, made in self.steps.items()}
        if PLACING in steps:
            rejected = ordered(self.no_topic)
            steps[PLACING] |= {"asked": self.steps[PLACING].kept + sum(rejected.values()), "rejects_without_topic": rejected}
        return {
            "steps": steps,
            "not_counted": self.not_counted,
            "domains": [_told_place(place) for place in self.domains],
            "topics": [_told_place(place) for place in self.topics],
            "empty": [topic.id for topic in self.empty],
        }


@dataclass(frozen=True)
class Spread:
    """`entropy` in nats of the rows' shares by topic; its exp, `effective_topics`, is how many topics that are filled evenly
    would be as diverse (the Hill number of order 1, Hill 1973, doi:10.2307/1934352)."""

    filled: int
    entropy: float
    effective_topics: float

    @classmethod
    def of(cls, kept: Iterable[int]) -> Spread:
        """From the rows kept of each topic."""
        counts = [count for count in kept if count]
        value = entropy(counts)
        return cls(len(counts), value, round(math.exp(value), 2) if counts else 0.0)


def coverage(tree: Path, folders: Mapping[str, Path]) -> Coverage:
    """Rows asked for, kept and rejected of each topic.

    Args:
        tree: `topics.parquet` of the step taxonomy.
        folders: of the finished steps to count, by step, in their order: of taxonomy, and of any whose rows and rejects have
            a `topic_id` and whose manifest has the metric `asked_by_topic`.

    Raises:
        StepError: of a topic, rows kept and rejected are not as many as were asked for; or a row is of no topic of the tree.
        UserError: a file cannot be read.
    """
    leaves, tops = _nodes(tree)
    counted: dict[str, dict[str, Yield]] = {}
    no_topic: Counter[str] = Counter()
    not_counted: list[str] = []
    for step, folder in folders.items():
        if step == PLACING:
            made = _kept(folder)
            no_topic.update({reason: n for (reason,), n in _counts(folder, "rejects/*.parquet", ("reason",)).items()})
            asked = {topic: of.kept for topic, of in made.items()}
        else:
            manifest = Manifest.load(folder)
            if manifest is None or "asked_by_topic" not in manifest.metrics:
                not_counted.append(step)
                continue
            asked, made = manifest.metrics["asked_by_topic"], _made(folder)
        _check(step, asked, made, {leaf["id"] for leaf in leaves})
        counted[step] = made
    topics = [
        Place(
            leaf["id"], leaf["path"], leaf["name"], {step: made.get(leaf["id"], Yield()) for step, made in counted.items()}
        )
        for leaf in leaves
    ]
    domains = [Place(top["id"], top["path"], top["name"], {step: Yield() for step in counted}) for top in tops]
    by_path = {domain.path: domain for domain in domains}
    total = {step: Yield() for step in counted}
    for topic in topics:
        for step, of in topic.steps.items():
            by_path[domain_of(topic.path)].steps[step].add(of)
            total[step].add(of)
    return Coverage(topics, domains, total, no_topic, not_counted)


def domain_of(path: str) -> str:
    """The path of the domain that a topic is in."""
    return path.split("/", 1)[0]


def entropy(counts: Iterable[int]) -> float:
    """Shannon entropy in nats of the shares of `counts`; exp of it is the number of topics that evenly filled would be as
    diverse."""
    values = [count for count in counts if count]
    total = sum(values)
    return round(sum(-count / total * math.log(count / total) for count in values), 4) if total else 0.0


def histogram(name: str, values: Sequence[float]) -> dict[str, object]:
    """Mean and counts of marks: tenths for the measured difficulty, whole marks from 1 to 10 for a judge's."""
    counts = [0] * BINS
    for value in values:
        place = int(value * BINS) if name == "difficulty" else round(value) - 1
        counts[min(max(place, 0), BINS - 1)] += 1
    return {"mean": round(sum(values) / len(values), 4) if values else 0.0, "counts": counts}


def _nodes(tree: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The leaves, and the nodes without a parent, each with its id, path and name."""
    rows = [row for batch in _batches(tree, ("id", "path", "name")) for row in batch.to_pylist()]
    parents = {row["path"].rpartition("/")[0] for row in rows}
    leaves = [row for row in rows if row["path"] not in parents]
    return leaves, [row for row in rows if "/" not in row["path"]]


def _kept(folder: Path) -> dict[str, Yield]:
    return {topic: Yield(n) for (topic,), n in _counts(folder, "data/*.parquet", ("topic_id",)).items()}


def _made(folder: Path) -> dict[str, Yield]:
    """What a step kept and rejected, by topic."""
    made = _kept(folder)
    for (topic, reason), n in _counts(folder, "rejects/*.parquet", ("topic_id", "reason")).items():
        made.setdefault(topic, Yield()).rejects[reason] += n
    return made


def _check(step: str, asked: Mapping[str, int], made: Mapping[str, Yield], leaves: set[str]) -> None:
    for topic in sorted({*asked, *made}):
        of, wanted = made.get(topic, Yield()), asked.get(topic, 0)
        if of.asked != wanted:
            raise StepError(
                f"{step}: topic {topic or '(none)'}: {wanted} asked, {of.kept} kept and {of.asked - of.kept} rejected "
                "do not add up"
            )
        if of.asked and topic not in leaves:
            raise StepError(f"{step}: {of.asked} rows are of topic {topic}, which is not in the tree of the step {PLACING}")


def _counts(folder: Path, pattern: str, columns: Sequence[str]) -> Counter[tuple[str, ...]]:
    """How often each combination of values occurs; one batch of these columns in memory."""
    found: Counter[tuple[str, ...]] = Counter()
    for path in sorted(folder.glob(pattern)):
        for batch in _batches(path, columns):
            table = pa.Table.from_batches([batch]).group_by(list(columns)).aggregate([([], "count_all")])
            *keys, numbers = (table[name].to_pylist() for name in (*columns, "count_all"))
            for *key, n in zip(*keys, numbers, strict=True):
                found[tuple(key)] += n
    return found


def _batches(path: Path, columns: Sequence[str]) -> Iterable[Any]:
    try:
        with pq.ParquetFile(path) as file:
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                raise UserError(f"{path}: no column {missing[0]}; delete its step's folder and run again")
            yield from file.iter_batches(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({reason}); delete its step's folder and run again") from None


def ordered(rejects: Counter[str]) -> dict[str, int]:
    """Numbers by reason, the most frequent first."""
    return dict(sorted(rejects.items(), key=lambda item: (-item[1], item[0])))


def _told(step: str, made: Yield) -> dict[str, Any]:
    """A unit that is rejected has no topic, so of the step taxonomy only what was kept is known by topic."""
    if step == PLACING:
        return {"kept": made.kept}
    return {"asked": made.asked, "kept": made.kept, "rejects": ordered(made.rejects)}


def _told_place(place: Place) -> dict[str, Any]:
    steps = {step: _told(step, made) for step, made in place.steps.items()}
    return {"id": place.id, "path": place.path, "name": place.name, "steps": steps}
