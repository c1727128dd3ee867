"""Runs of one seed have steps in common: finished ones are taken over by hard links instead of being made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from align.core.artifact import Artifact, Manifest
from align.core.lock import run_lock
from align.runner import Run
from align.steps.table import Planned

Say = Callable[[str], None]


def link_folder(source: Path, target: Path, names: Sequence[str], temporary: Path) -> None:
    """A folder of hard links to some files of another, put in place whole by renaming `temporary`; what was there goes."""
    shutil.rmtree(temporary, ignore_errors=True)
    for name in names:
        place = temporary / name
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(source / name, place)
    if target.exists():
        (target / "manifest.json").unlink(missing_ok=True)  # a kill must not leave one over missing files
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(target)


def take_over(run: Run, donors: Sequence[Path], say: Say) -> list[str]:
    """Link finished steps of other runs that are also this run's: same fingerprint, same inputs, files as recorded.

    Nothing of the others changes. A step that has the fingerprint and cannot be taken is said, and made anew.

    Args:
        run: its folder is made where it is not there.
        donors: folders of other runs on the same disk, finished or not.
        say: prints a line.

    Returns:
        The names of the steps taken over.
    """
    taken: list[str] = []
    refused: set[Path] = set()
    with run_lock(run.run_dir):
        while True:
            plan = run.plan()
            done = {p.step.name for p in plan if p.done}
            ready = [p for p in plan if not p.done and p.fingerprint and set(p.step.inputs) <= done]
            found = next(((p, d) for p in ready if (d := _donor(p, donors, refused, say))), None)
            if found is None:
                return taken
            planned, source = found
            names = [*Artifact(source).manifest.files, "manifest.json"]
            link_folder(source, run.run_dir / planned.step.folder, names, run.run_dir / ".linking")
            taken.append(planned.step.name)


def _donor(planned: Planned, donors: Sequence[Path], refused: set[Path], say: Say) -> Path | None:
    """The folder of the same step in another run, if there is one that can be used."""
    for donor in donors:
        folder = donor / planned.step.folder
        manifest = None if folder in refused else Manifest.load(folder)
        if manifest is None or manifest.fingerprint != planned.fingerprint:
            continue
        why = ""
        if manifest.inputs != planned.input_digests:
            why = "its inputs have other content"
        elif changed := Artifact(folder).verify():
            why = f"{changed[0]} is missing or not what its manifest says"
        if not why:
            return folder
        refused.add(folder)
        say(f"{folder}: not taken over, {why}")
    return None
