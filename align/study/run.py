"""`align study`: prepares every seed, runs the arms, some at a time, and writes what stands after each of them.

    <out>/prepared/<seed>/    labels and the two reward models trained on them
    <out>/runs/<arm>-<seed>/  an ordinary run; `study.json` in it is what the study keeps
    <out>/logs/               what each run printed
    <out>/RESULTS.md          with results.json and pictures, written anew after every run

The same command goes on where it stopped. A finished run gives back the disk space of its stages' weights.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from align.core.artifact import versions, write_text
from align.core.errors import StepError, UserError, explain
from align.core.lock import run_lock
from align.recipe.load import dump_recipe
from align.runner import Run
from align.study.arms import Plan, load_study
from align.study.kept import KEPT, drop_weights, keep, keep_again, read_run
from align.study.labels import prepare
from align.study.numbers import ArmRun, compare, same_start, summarize_arm
from align.study.page import write_page
from align.study.sharing import take_over

Say = Callable[[str], None]
Key = tuple[str, int]  # arm and seed
POLL_S = 0.5


@dataclass
class Running:
    """A run's process and its log."""

    process: subprocess.Popen[bytes]
    log: Path


def run_study(folder: Path, out: Path, seeds: int, overrides: Sequence[str], jobs: int, say: Say) -> int:
    """Run a study, or go on with it.

    Args:
        folder: holds recipe.yaml and arms.yaml.
        out: where everything goes.
        seeds: how many: the recipe's seed and those after it.
        overrides: `key.path=value` on the base recipe, for all arms alike.
        jobs: arms that run at the same time; each gets an equal part of the cores.
        say: prints a line.

    Returns:
        The exit code: 0 where every run is finished, 1 where some failed; RESULTS.md says which and why.

    Raises:
        UserError: a mistake in the folder, the overrides or the options, or another study at work in `out`.
        StepError: a seed's labels or reward models could not be made.
    """
    if seeds < 1 or jobs < 1:
        raise UserError("--seeds and --jobs are whole numbers from 1 up")
    plan = Plan(folder.resolve(), out.resolve(), load_study(folder), tuple(overrides))
    began = time.monotonic()
    first = plan.recipe().seed
    wanted: list[Key] = [(arm, seed) for arm in plan.spec.arms for seed in range(first, first + seeds)]
    for key in wanted:
        plan.arm_recipe(*key)  # a mistake in the last arm is better known before the first has run
    options = f"--seeds {seeds} --out {shlex.quote(str(out))} --jobs {jobs}"
    command = f"align study {shlex.quote(str(folder))} {options}" + "".join(f" --set {shlex.quote(o)}" for o in overrides)
    with run_lock(plan.out):
        for seed in range(first, first + seeds):
            say(f"seed {seed}: labels and reward models")
            prepare(plan, seed, say)
        runs = {key: run for key in wanted if (run := read_run(plan, *key)) is not None}
        for key in runs:
            drop_weights(plan.run_dir(*key))  # where an earlier call was killed before it did
        failed: dict[Key, str] = {}

        def write() -> None:
            about = provenance(command, time.monotonic() - began)
            write_page(plan.out, results(plan, wanted, list(runs.values()), failed) | {"made_by": about})

        write()
        todo = [key for key in wanted if key not in runs]
        say(f"{len(runs)} of {len(wanted)} runs stand, {len(todo)} to do, {min(jobs, max(1, len(todo)))} at a time")
        arms_began = time.monotonic()
        for done, (key, why) in enumerate(run_arms(plan, todo, jobs, say), 1):
            if why:
                failed[key] = why
            elif (found := read_run(plan, *key)) is not None:
                runs[key] = found
            write()
            left = (time.monotonic() - arms_began) / done * (len(todo) - done) / 60
            say(
                f"{key[0]}, seed {key[1]}: {why or 'done'}. {len(runs)} of {len(wanted)} runs done"
                + (f", {len(failed)} failed" if failed else "") + (f", about {left:.0f} min left" if left else "")
            )  # fmt: skip
    say(f"results: {plan.out / 'RESULTS.md'}")
    return 1 if failed else 0


def write_again(folder: Path, out: Path, overrides: Sequence[str], say: Say) -> int:
    """Write the page anew from the runs that were finished, without running anything; they keep their commit and device.

    Numbers and wording are those of this code, answers and rewards those of the code that made the runs; which runs there
    are, why others are missing and the noise of the labels are as the results say that stand.

    Args:
        folder, out, overrides, say: as in `run_study`.

    Raises:
        UserError: `out` holds no results, none of its runs can be read, or another study is at work there.
    """
    plan = Plan(folder.resolve(), out.resolve(), load_study(folder), tuple(overrides))
    try:
        before = json.loads((plan.out / "results.json").read_text(encoding="utf-8"))
        missing = {(one["arm"], one["seed"]): one["why"] for one in before["missing"]}
        finished = [(arm, seed) for arm, of in before["arms"].items() if of for seed in of["seeds"]]
        kept = {key: before[key] for key in ("made_by", "label_noise")}
        wanted = sorted({*missing, *finished}, key=lambda key: (list(before["arms"]).index(key[0]), key[1]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{plan.out}: no results.json of a study there ({explain(error)[0]})") from None
    if gone := sorted({arm for arm, _ in wanted} - set(plan.spec.arms)):
        raise UserError(f"{plan.out}: holds runs of arms that {plan.folder / 'arms.yaml'} does not have: {', '.join(gone)}")
    runs = []
    with run_lock(plan.out):
        for key in wanted:
            try:
                run = keep_again(plan, *key)
            except (UserError, StepError, OSError) as error:
                missing[key] = explain(error)[0]
                continue
            if run is not None:
                runs.append(run)
            elif key in finished:
                missing[key] = f"no {KEPT} in {plan.run_dir(*key).relative_to(plan.out)}"
        if not runs:
            raise UserError(f"{plan.out}: none of {len(wanted)} runs can be read, so its page stays as it is")
        made = kept["made_by"] | {"page_by": provenance("", 0)["commit"]}
        write_page(plan.out, results(plan, wanted, runs, missing) | kept | {"made_by": made})
    say(f"{len(runs)} of {len(wanted)} runs read; results: {plan.out / 'RESULTS.md'}")
    return 0


def run_arms(plan: Plan, todo: Sequence[Key], jobs: int, say: Say) -> Iterator[tuple[Key, str]]:
    """Run arms as processes, `jobs` at a time; yields each when it ends, with why it failed or an empty text."""
    waiting, running = list(todo), dict[Key, Running]()
    cores = max(1, len(os.sched_getaffinity(0)) // jobs)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                key = waiting.pop(0)
                try:
                    running[key] = _start(plan, key, cores, say)
                except (UserError, StepError, OSError) as error:  # also a donor's file that is gone, a disk without links
                    yield key, explain(error)[0]
            ended = [key for key, one in running.items() if one.process.poll() is not None]
            for key in ended:
                yield key, _end(plan, key, running.pop(key))
            if not ended:
                time.sleep(POLL_S)
    finally:
        for one in running.values():
            one.process.terminate()
        for one in running.values():
            one.process.wait()


def _start(plan: Plan, key: Key, cores: int, say: Say) -> Running:
    """Take over what other runs of the seed have, and start the rest."""
    arm, seed = key
    run = Run(plan.arm_recipe(arm, seed), plan.run_dir(arm, seed))
    donors = [plan.run_dir(other, seed) for other in plan.spec.arms if other != arm]
    taken = take_over(run, [folder for folder in donors if folder.is_dir()], say)
    recipe = run.run_dir / "recipe.yaml"
    write_text(recipe, dump_recipe(run.recipe))
    log = plan.out / "logs" / f"{arm}-{seed}.log"
    log.parent.mkdir(exist_ok=True)
    say(f"{arm}, seed {seed}: started" + (f"; {len(taken)} steps are those of other arms" if taken else ""))
    command = [sys.executable, "-m", "align.cli", "run", "--recipe", str(recipe), "--run-dir", str(run.run_dir)]
    with log.open("ab") as handle:
        environment = {**os.environ, "OMP_NUM_THREADS": str(cores), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=handle, stderr=handle, env=environment)
    return Running(process, log)


def _end(plan: Plan, key: Key, one: Running) -> str:
    """Keep what the study needs of a run that ended well; else why it did not."""
    if one.process.returncode:
        said = _lines(one.log)
        why = next((line.removeprefix("error: ") for line in reversed(said) if line.startswith("error: ")), "")
        log = one.log.relative_to(plan.out)
        return f"failed with code {one.process.returncode}: {why or 'no error was printed'} (log: {log})"
    try:
        keep(plan, *key)
        drop_weights(plan.run_dir(*key))
    except (UserError, StepError, OSError) as error:
        return explain(error)[0]
    return ""


def results(plan: Plan, wanted: Sequence[Key], runs: Sequence[ArmRun], failed: Mapping[Key, str]) -> dict[str, Any]:
    """Everything that the page shows, ready for JSON: `arms`, `comparisons`, and `missing` runs with their reasons."""
    there = {(run.arm, run.seed) for run in runs}
    arms = {}
    for arm in plan.spec.arms:
        mine = sorted((run for run in runs if run.arm == arm), key=lambda run: run.seed)
        arms[arm] = summarize_arm(mine) if mine else None
    right = {run.seed: dict(run.reward_right) for run in runs}
    return {
        "study": plan.recipe().name,
        "asked": len(wanted),
        "finished": len(runs),
        "missing": [
            {"arm": arm, "seed": seed, "why": failed.get((arm, seed), "not run yet")}
            for arm, seed in wanted
            if (arm, seed) not in there
        ],
        "same_start": same_start(runs),
        "label_noise": plan.spec.labels.noise,
        "reward_right": {str(seed): of for seed, of in sorted(right.items())},
        "arms": arms,
        "comparisons": [
            one.model_dump() | compare(runs, one.first, one.second, one.measure) for one in plan.spec.comparisons
        ],
    }


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def provenance(command: str, seconds: float) -> dict[str, Any]:
    """Command, commit ("dirty" where files differ from it), device, versions, date, and seconds of this call."""
    import torch

    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    return {
        "command": command,
        "commit": "no git checkout" if commit is None else commit + (" (dirty)" if changed else ""),
        "device": f"{len(os.sched_getaffinity(0))} cores of {cpu}, {gpu}",
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds),
    }


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
