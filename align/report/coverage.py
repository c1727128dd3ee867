"""What the report says of the taxonomy's coverage: rows of each topic at each step, as lines of small bars."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from align.report.artifacts import folder_of
from data_gen.coverage import PLACING, Coverage, Place, Spread, Yield, coverage, domain_of, ordered

COUNTED = (PLACING, "instruct", "evolve", "sft.data")


@dataclass(frozen=True)
class Cell:
    """A step's rows of one place; `kept` and `asked` are also percentages of the step's widest bar."""

    made: Yield
    text: str
    kept: float
    asked: float
    about: str


@dataclass(frozen=True)
class Line:
    """A topic or a domain; `reasons` are (step, [(reason, number)]) of the steps that rejected something."""

    name: str
    path: str
    cells: list[Cell]
    reasons: list[tuple[str, list[tuple[str, int]]]]


@dataclass(frozen=True)
class DomainLines:
    """A domain, and its topics that a step kept a row of or was asked for one."""

    top: Line
    topics: int
    filled: int
    lines: list[Line]


@dataclass(frozen=True)
class StepLine:
    """A step over the whole tree, and for taxonomy also what it rejected before there was a topic."""

    name: str
    asked: int
    kept: int
    spread: Spread


@dataclass(frozen=True)
class CoverageView:
    """The section's content; `empty` are (domain, names of its empty topics)."""

    steps: list[StepLine]
    topics: int
    domains: list[DomainLines]
    empty: list[tuple[str, list[str]]]
    num_empty: int
    no_topic: list[tuple[str, int]]
    not_counted: list[str]


def gather_coverage(run_dir: Path, finished: Collection[str], stages: int) -> Coverage | None:
    """The coverage of a run by its finished steps; None where none has placed anything in a tree.

    Raises:
        StepError: a step lost a row (see `data_gen.coverage.coverage`).
    """
    tree = run_dir / folder_of(PLACING) / "topics.parquet"
    if PLACING not in finished or not tree.is_file():
        return None
    names = [*COUNTED, *(f"stage{k}.pair" for k in range(1, stages + 1))]
    return coverage(tree, {name: run_dir / folder_of(name) for name in names if name in finished})


def coverage_view(found: Coverage) -> CoverageView:
    """A coverage as the page shows it."""
    names = {domain.path: domain.name for domain in found.domains}
    inside: dict[str, list[Place]] = {path: [] for path in names}
    for topic in found.topics:
        inside[domain_of(topic.path)].append(topic)
    wide, narrow = _widest(found.domains), _widest(found.topics)
    domains = []
    for domain in found.domains:
        topics = inside[domain.path]
        asked = [topic for topic in topics if any(made.asked for made in topic.steps.values())]
        filled = sum(any(made.kept for made in topic.steps.values()) for topic in asked)
        domains.append(DomainLines(_line(domain, wide), len(topics), filled, [_line(topic, narrow) for topic in asked]))
    empty = [
        (names[path], [topic.name for topic in topics])
        for path, topics in groupby(found.empty, key=lambda topic: domain_of(topic.path))
    ]
    return CoverageView(
        steps=[
            StepLine(step, made.asked + (found.no_topic.total() if step == PLACING else 0), made.kept, found.spread(step))
            for step, made in found.steps.items()
        ],
        topics=len(found.topics),
        domains=domains,
        empty=empty,
        num_empty=len(found.empty),
        no_topic=list(ordered(found.no_topic).items()),
        not_counted=found.not_counted,
    )


def _widest(places: Iterable[Place]) -> dict[str, int]:
    """The most rows that each step was asked for of one place, at least 1."""
    found: dict[str, int] = {}
    for place in places:
        for step, made in place.steps.items():
            found[step] = max(found.get(step, 1), made.asked)
    return found


def _line(place: Place, widest: Mapping[str, int]) -> Line:
    reasons = [(step, list(ordered(made.rejects).items())) for step, made in place.steps.items() if made.rejects]
    return Line(place.name, place.path, [_cell(step, made, widest[step]) for step, made in place.steps.items()], reasons)


def _cell(step: str, made: Yield, widest: int) -> Cell:
    if not made.asked:
        return Cell(made, "–", 0.0, 0.0, f"{step}: nothing asked")
    text = f"{made.kept:,}" if step == PLACING else f"{made.kept:,}/{made.asked:,}"
    about = f"{step}: {made.kept:,} kept" if step == PLACING else f"{step}: {made.kept:,} kept of {made.asked:,} asked"
    if made.rejects:
        about += "; rejected: " + ", ".join(f"{reason} {n:,}" for reason, n in ordered(made.rejects).items())
    return Cell(made, text, round(100 * made.kept / widest, 1), round(100 * made.asked / widest, 1), about)
