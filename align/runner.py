"""Runs the steps of a recipe: skips what stands, resumes what was begun, shares engines between steps, contains crashes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.core.artifact import Manifest, write_text
from align.core.errors import StepError, UserError, explain
from align.core.hashing import FileHashes
from align.core.lock import run_lock
from align.recipe.load import dump_recipe
from align.recipe.schema import Recipe
from align.steps.checks import check_judges, check_suites, check_taxonomy
from align.steps.context import Process
from align.steps.outside import missing_builtins
from align.steps.step import Step
from align.steps.table import Planned, build_steps, plan_steps
from align.worker import read_error, run_one

Say = Callable[[str], None]
MIN_FREE_BYTES = 512 * 2**20  # below this a checkpoint of the smallest model would not fit


@dataclass(frozen=True)
class Run:
    """A recipe and its folder."""

    recipe: Recipe
    run_dir: Path

    def steps(self) -> list[Step]:
        """The table of steps."""
        return build_steps(self.recipe)

    def plan(self) -> list[Planned]:
        """What stands and what is to be done; makes no folder and loads no model."""
        hashes = FileHashes(self._hash_cache())
        plan = plan_steps(self.steps(), self.run_dir, hashes)
        check_judges(self.recipe, hashes)
        return plan

    def _hash_cache(self) -> Path:
        from align.builtin_models import models_home

        inside = self.run_dir / ".hashes.json"
        return inside if self.run_dir.is_dir() else models_home() / ".hashes.json"


def execute(run: Run, wanted: Sequence[str] | None, say: Say) -> int:
    """Run steps that are not done yet; returns how many ran.

    Args:
        run: recipe and folder.
        wanted: names of the steps to run, their inputs must stand; None runs everything.
        say: prints a line.

    Raises:
        UserError: an input of a wanted step is missing, a user's mistake inside a step, or a busy folder.
        StepError: a step failed.
    """
    with run_lock(run.run_dir) as lock:
        _check_space(run.run_dir)
        check_taxonomy(run.recipe)
        _build_builtins(run, say)
        check_suites(run.recipe, [p.step.name for p in run.plan() if not p.done])
        write_text(run.run_dir / "recipe.yaml", dump_recipe(run.recipe))
        count = 0
        process = Process(run.recipe, run.run_dir, {s.name: s for s in run.steps()})
        while group := _next_group(run.plan(), wanted):
            for planned in group:
                say(f"{planned.step.name}: {planned.step.about}{_manner(run, planned)}")
            started = time.monotonic()
            if group[0].step.process:
                _run_in_worker(run, [p.step.name for p in group], lock)
            else:
                _run_here(group[0], process)
            say(f"{', '.join(_kept(run, p.step) for p in group)}: done in {time.monotonic() - started:.0f} s")
            count += len(group)
        return count


def _manner(run: Run, planned: Planned) -> str:
    """Whether a step goes on, or replaces a result that stood."""
    if planned.started:
        return " (resuming)"
    if planned.fingerprint is None or (before := Manifest.load(run.run_dir / planned.step.folder)) is None:
        return ""
    if before.fingerprint != planned.fingerprint:
        return " (anew: recipe, models, files or code changed since it was made)"
    if not before.complete(run.run_dir / planned.step.folder):
        return " (anew: files of it are missing)"
    return " (anew: what it was made from is made anew)"


def _kept(run: Run, step: Step) -> str:
    """A finished step's name, with what it kept where it rejected something."""
    manifest = Manifest.load(run.run_dir / step.folder)
    if manifest is None or not manifest.rejects:
        return step.name
    return f"{step.name} ({manifest.rows:,} of {manifest.asked:,} kept)"


def _next_group(plan: list[Planned], wanted: Sequence[str] | None) -> list[Planned]:
    """The first step that can run, and every later one that can share its process.

    A step can join when its inputs stand or are made earlier in the same group: so the base model's engine is started
    once for the data steps, the first stage's samples and the evaluation. Steps that ask the same model come in a row.
    """
    standing = {p.step.name for p in plan if p.done}
    todo = [p for p in plan if not p.done and (wanted is None or p.step.name in wanted)]
    group: list[Planned] = []

    def ready(planned: Planned) -> bool:
        return planned not in group and all(name in standing for name in planned.step.inputs)

    late = {p.step.name: [file for file in p.step.awaited if not file.is_file()] for p in todo}
    waiting = [(p.step, late[p.step.name][0]) for p in todo if ready(p) and late[p.step.name]]
    while joining := [p for p in todo if ready(p) and not late[p.step.name] and _shares(p, group)]:
        group.append(next((p for p in joining if group and p.step.asks == group[-1].step.asks), joining[0]))
        standing.add(group[-1].step.name)
    if waiting and not group:
        step, file = waiting[0]
        samples = ", ".join(name for name in step.inputs if ".sample." in name)
        raise UserError(
            f"{step.name} needs {file}: score the responses of {samples}, which are there, and run the same command again"
        )
    if todo and not group:
        step = todo[0].step
        lacking = [p.step for p in plan if p.step.name in step.inputs and not p.done]
        commands = dict.fromkeys(command_of(s) for s in lacking)
        raise UserError(
            f"{step.name} needs {', '.join(s.name for s in lacking)} first: run {' and '.join(commands)} "
            "(or `align run` for everything)"
        )
    return group


def _shares(planned: Planned, group: Sequence[Planned]) -> bool:
    return not group or planned.step.process == group[0].step.process != ""


def command_of(step: Step) -> str:
    """The command that makes a step's artifact."""
    return f"`align {step.verb}" + (f" --stage {step.stage}`" if step.stage else "`")


def _check_space(run_dir: Path) -> None:
    free = shutil.disk_usage(run_dir).free
    if free < MIN_FREE_BYTES:
        raise UserError(
            f"{run_dir}: only {free / 2**20:.0f} MiB free on its disk, {MIN_FREE_BYTES / 2**20:.0f} MiB needed at least; "
            "make room or use another --run-dir"
        )


def _build_builtins(run: Run, say: Say) -> None:
    names = missing_builtins(run.recipe)
    if not names:
        return
    say(f"building {', '.join(names)}, once for all runs")
    log = run.run_dir / "logs" / "models.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as handle:
        made = subprocess.run(
            [sys.executable, "-m", "align.builtin_models", *names], stdout=handle, stderr=handle, check=False
        )
    if made.returncode:
        reason = next((x for x in reversed(log.read_text().splitlines()) if x.startswith("error: ")), "")
        raise UserError(reason.removeprefix("error: ") or f"the models could not be built; see {log}")


def _run_here(planned: Planned, process: Process) -> None:
    try:
        run_one(planned, process)
    except (UserError, StepError):
        raise
    except OSError as error:
        message, code = explain(error)
        raise (UserError if code == UserError.exit_code else StepError)(f"{planned.step.name}: {message}") from error


def _run_in_worker(run: Run, names: list[str], lock: int) -> None:
    logs = run.run_dir / "logs"
    logs.mkdir(exist_ok=True)
    log = logs / f"{names[0]}.log"
    error = logs / f"{names[0]}.error.json"
    error.unlink(missing_ok=True)
    options = {"--run-dir": run.run_dir, "--steps": ",".join(names), "--error": error, "--parent": os.getpid()}
    command = [sys.executable, "-m", "align.worker", *(str(part) for option in options.items() for part in option)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("w") as handle:
        worker = subprocess.Popen(command, stderr=handle, pass_fds=(lock,), env=environment)
        try:
            code = worker.wait()
        except BaseException:
            # Ctrl-C reaches the worker too; give it a moment, then make sure that nothing of it is left.
            try:
                worker.wait(timeout=10)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            raise
    if code == 0:
        return
    left = read_error(error)
    if not left:
        _check_space(run.run_dir)  # on a full disk the worker cannot even say so
    if left:
        kind = UserError if left["code"] == UserError.exit_code else StepError
        raise kind(f"{left['message']}" + ("" if kind is UserError else f" (step {left['step']}, log: {log})"))
    if code < 0:
        why = signal.Signals(-code).name
        hint = ", often the system's answer to too little memory" if -code == signal.SIGKILL else ""
        raise StepError(f"{names[0]}: its process was ended by {why}{hint}; run the same command to go on (log: {log})")
    raise StepError(f"{names[0]}: its process ended with code {code} (log: {log})")
