"""The commands. Importing this module loads no model library."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align import __version__
from align.core.errors import StepError, UserError

if TYPE_CHECKING:
    from align.recipe.schema import Recipe
    from align.runner import Run

# One command per loss, under the loss's own name; a test compares them with the recipe's.
LOSS_VERBS = ("dpo", "ipo", "dpo_norm", "simpo", "simper", "orpo")
STEP_VERBS = {
    "taxonomy": "documents to knowledge units in their topics",
    "instruct": "knowledge units to instructions",
    "evolve": "evolve instructions and eliminate bad ones",
    "respond": "answer the SFT prompts and write the SFT set",
    "sft": "train M0",
    "reward": "make reward pairs and train the reward models",
    "sample": "sample responses for a stage",
    "score": "score a stage's responses with both reward models",
    "pair": "turn scores into preference pairs",
    **{loss: f"train a stage whose loss is {loss}" for loss in LOSS_VERBS},
    "eval": "sample, judge and compare the models on held-out prompts",
    "report": "write report/index.html",
}
STAGE_VERBS = ("sample", "score", "pair", *LOSS_VERBS)
EPILOG = """first steps:
  align init quickstart    copy a starter recipe into this folder
  align check              validate it and print the plan
  align run                do everything that is not done yet; Ctrl-C is safe, the same command goes on
"""
AUDIT = """Reads a stage's pairs with everything both reward models said, or a plain preference file (JSON Lines with prompt,
chosen, rejected), and prints what stands out first. docs/reward.md explains every finding and its limit."""


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="align",
        description="Post-training of language models: taxonomy-driven data, SFT, two-reward preference pairs, DPO, SimPO.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"align {__version__}")
    top.add_argument("-v", "--verbose", action="store_true", help="log more, to stderr")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    recipe = argparse.ArgumentParser(add_help=False)
    recipe.add_argument(
        "--recipe", type=Path,
        help="YAML file (default: the one that a run in --run-dir was made with, $ALIGN_RECIPE, or ./recipe.yaml)",
    )  # fmt: skip
    recipe.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override, such as stages.1.train.beta=2.0 (lists begin with 0: this is stage 2); repeatable",
    )
    recipe.add_argument("--run-dir", type=Path, help="where results go (default: runs/<name of the recipe>)")

    init = commands.add_parser("init", help="copy a starter recipe and its data into this folder")
    init.add_argument("name", nargs="?", default="quickstart", help="quickstart or proxy (default: quickstart)")
    init.add_argument("--to", type=Path, default=Path("."), help="folder (default: this one)")
    commands.add_parser("check", parents=[recipe], help="validate the recipe and print the plan")
    commands.add_parser("run", parents=[recipe], help="do everything that is not done yet")
    for verb, about in STEP_VERBS.items():
        command = commands.add_parser(verb, parents=[recipe], help=about, description=about)
        if verb in STAGE_VERBS:
            command.add_argument("--stage", type=int, required=True, metavar="K", help="1, 2, ...")
        if verb == "eval":
            command.add_argument("suite", nargs="?", help="a name under evaluation.suites (default: everything)")
            command.add_argument(
                "--models", nargs="+", default=[], metavar="MODEL", help="names or folders that the suite compares"
            )
    induce = commands.add_parser("induce", parents=[recipe], help="propose a taxonomy from the recipe's documents")
    induce.add_argument("--out", type=Path, default=Path("taxonomy.yaml"), help="file to write (default: taxonomy.yaml)")
    induce.add_argument(
        "--names", choices=("terms", "model"), default="terms", help="who names topics: their terms, or the base model"
    )
    schema = commands.add_parser("schema", help="print the JSON schema of recipes, for editors")
    schema.set_defaults(recipe=None)
    inspect = commands.add_parser("inspect", help="show what a step left behind")
    inspect.add_argument("artifact", type=Path, help="a step's folder, such as runs/quickstart/stage1/pair")
    inspect.add_argument("-n", "--rows", type=int, default=3, help="rows to show (default: 3)")
    inspect.add_argument("--rejects", action="store_true", help="show dropped rows instead")
    inspect.add_argument("--tokens", action="store_true", help="of a pair: every token, and whether it is trained")
    trace = commands.add_parser("trace", parents=[recipe], help="walk from a row back to its document")
    trace.add_argument("id", help="id of a pair, response, instruction, knowledge unit or document (a prefix will do)")
    chat = commands.add_parser("chat", parents=[recipe], help="talk to one or more models side by side")
    chat.add_argument("models", nargs="+", metavar="MODEL", help="base, M0, M1, ...")
    chat.add_argument("--prompt", action="append", help="ask this and exit (repeatable); else read from the terminal")
    chat.add_argument("--max-tokens", type=int, default=128)
    chat.add_argument("--temperature", type=float, default=0.0)
    audit = commands.add_parser(
        "audit", help="what a preference set would teach: lengths, agreement, sources, refusals", description=AUDIT
    )
    audit.add_argument("path", type=Path, help="a stage's pairs (runs/NAME/stage1/pair) or a preference file")
    audit.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    audit.add_argument("--page", type=Path, metavar="FILE", help="write a page with pictures there")
    bench = commands.add_parser(
        "reward-bench", parents=[recipe], help="accuracy of a reward model on a preference file, by subset",
    )  # fmt: skip
    bench.add_argument("model", help="a classifier's folder, or selector or validator of the recipe")
    bench.add_argument("file", type=Path, help="JSON Lines or Parquet: prompt, chosen, rejected, perhaps subset")
    bench.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of a folder's scoring (default: fp32)")
    bench.add_argument("--max-length", type=int, default=512, help="tokens that a folder's model reads (default: 512)")
    bench.add_argument("--limit", type=int, help="take this many pairs only")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write all numbers and scores there")
    compare = commands.add_parser("compare", help="two runs side by side: recipes, data, training, evaluation")
    compare.add_argument("first", type=Path, metavar="RUN_A", help="a run's folder")
    compare.add_argument("second", type=Path, metavar="RUN_B", help="another's")
    compare.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    study = commands.add_parser("study", help="arms times seeds of a recipe, and a page of what was found")
    study.add_argument("folder", type=Path, help="with recipe.yaml and arms.yaml, such as recipes/study-staging")
    study.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    study.add_argument("--out", type=Path, default=Path("runs/study"), help="where everything goes (default: runs/study)")
    study.add_argument(
        "--jobs", type=int, default=1, help="arms at the same time, each with its part of the cores (default: 1)"
    )
    study.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, for all arms alike")
    study.add_argument("--page", action="store_true", help="run nothing; write the page anew from what is finished")
    commands.add_parser("doctor", help="say what is installed, and what this machine can do")
    return top


def open_run(args: argparse.Namespace) -> Run:
    """The recipe and run folder that the options name."""
    from align.recipe.load import load_recipe
    from align.runner import Run

    around = Path(os.environ.get("ALIGN_RECIPE", "recipe.yaml"))
    inside = args.run_dir / "recipe.yaml" if args.run_dir else None
    # A run goes on as it began: with another recipe that happens to lie here its finished steps would be made anew.
    if args.recipe is None and inside is not None and inside.is_file():
        recipe = load_recipe(inside, args.set, base=around.parent)
        if around.is_file() and not _same_recipe(around, args.set, recipe):
            print(f"with the run's own recipe, {inside}; for the other: --recipe {around}", file=sys.stderr)
    else:
        recipe = load_recipe(args.recipe or around, args.set)
    return Run(recipe, (args.run_dir or Path("runs") / recipe.name).resolve())


def _same_recipe(path: Path, overrides: Sequence[str], recipe: Recipe) -> bool:
    """Whether a file holds this recipe; one that cannot be read does not."""
    from align.recipe.load import load_recipe

    try:
        return load_recipe(path, overrides) == recipe
    except UserError:
        return False


def _init(args: argparse.Namespace) -> None:
    from align.inspecting import recipes_folder

    source = recipes_folder()
    recipe = source / f"{args.name}.yaml"
    if not recipe.is_file():
        known = ", ".join(sorted(p.stem for p in source.glob("*.yaml")))
        raise UserError(f"init: there is no recipe {args.name}; there are {known}")
    target, data = args.to / "recipe.yaml", args.to / "data"
    for path in (target, data):
        if path.exists():
            raise UserError(f"init: {path} is already there; use --to FOLDER")
    args.to.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source / "data", data)
    shutil.copy(recipe, target)
    print(f"wrote {target} and {data}/")
    print("next: align check, then align run")


def _check(args: argparse.Namespace) -> None:
    from align.steps.estimate import print_plan

    run = open_run(args)
    print_plan(run.recipe, run.run_dir, run.plan(), print)


def _run(args: argparse.Namespace) -> None:
    from align.runner import Run, execute

    if args.command == "eval" and args.models and args.suite is None:
        raise UserError("--models goes with a suite: align eval SUITE --models M0 M2")
    run = open_run(args)
    if args.command == "eval" and args.suite is not None and args.suite not in (suites := run.recipe.evaluation.suites):
        raise UserError(f"align eval {args.suite}: evaluation.suites has {', '.join(suites) or 'none'}")
    if args.command == "eval" and args.models:
        from align.evaluating import with_models

        run = Run(with_models(run.recipe, args.suite, args.models), run.run_dir)
    wanted = None if args.command == "run" else wanted_steps(run, args.command, getattr(args, "stage", 0))
    if args.command == "eval" and args.suite is not None:
        own = f"eval.suite.{args.suite}"
        wanted = [name for name in wanted or () if name == own or name.startswith(f"{own}.")]
    before = _compared(run, args.suite) if args.command == "eval" else []
    count = execute(run, wanted, lambda line: print(line, flush=True))
    if not count:
        print(f"nothing to do: everything asked for stands in {run.run_dir}")
    if args.command in ("run", "eval"):
        from align.evaluating import print_tables

        suite = getattr(args, "suite", None)
        names = [suite] if suite else list(run.recipe.evaluation.suites) if args.command == "eval" else []
        print_tables(run.run_dir, names, print, models=suite is None)
        if lost := [name for name in before if name not in _compared(run, suite)]:
            print(f"the run's table of {suite} had {', '.join(lost)} too: name them with --models to have them back")
    if args.command in ("run", "eval", "report") and all(planned.done for planned in run.plan()):
        from align.model_card import write_model_cards

        write_model_cards(run.run_dir)
    report = run.run_dir / "report" / "index.html"
    if args.command in ("run", "report") and report.is_file():
        print(f"report: {report}")


def _compared(run: Run, suite: str | None) -> list[str]:
    """The models in a run's table of a suite, if it has one."""
    from align.core.artifact import Manifest

    found = Manifest.load(run.run_dir / "eval" / "suite" / suite) if suite else None
    return list(found.metrics["models"]) if found else []


def wanted_steps(run: Run, verb: str, stage: int) -> list[str]:
    """The steps of a verb.

    Raises:
        UserError: no such stage, or the stage's loss belongs to another command.
    """
    if verb in STAGE_VERBS:
        stages = run.recipe.stages
        if not 1 <= stage <= len(stages):
            raise UserError(f"--stage {stage}: the recipe has stages 1 to {len(stages)}")
        loss = stages[stage - 1].train.loss
        if verb in LOSS_VERBS and verb != loss:
            raise UserError(f"stage {stage} trains with loss {loss}: run `align {loss} --stage {stage}`")
    steps = [s.name for s in run.steps() if s.verb == verb and (verb not in STAGE_VERBS or s.stage == stage)]
    if not steps:
        raise UserError(f"align {verb}: this recipe has no such step")
    return steps


def _reward_bench(args: argparse.Namespace) -> None:
    from align.reward_bench import reward_bench

    options = {"limit": args.limit, "json_path": args.json, "say": print}
    if args.model not in ("selector", "validator"):
        reward_bench(Path(args.model), args.file, precision=args.precision, max_length=args.max_length, **options)
        return
    from align.steps.context import Process
    from align.steps.outside import load_prompts
    from align.steps.scoring import open_judge

    run = open_run(args)
    process = Process(run.recipe, run.run_dir, {step.name: step for step in run.steps()})
    try:
        reward_bench(open_judge(process, load_prompts(run.recipe), args.model), args.file, **options)
    finally:
        process.close()


def _other(args: argparse.Namespace) -> int:
    from align import inspecting

    if args.command == "induce":
        from align.inducing import induce_taxonomy

        induce_taxonomy(open_run(args), args.out, by_model=args.names == "model", say=print)
    elif args.command == "reward-bench":
        _reward_bench(args)
    elif args.command == "audit":
        from align.auditing import audit_command

        audit_command(args.path, print, json_out=args.json, page=args.page)
    elif args.command == "study":
        from align.study.run import run_study, write_again

        if args.page:
            return write_again(args.folder, args.out, args.set, lambda line: print(line, flush=True))
        return run_study(args.folder, args.out, args.seeds, args.set, args.jobs, lambda line: print(line, flush=True))
    elif args.command == "compare":
        from align.comparing import compare_runs

        compare_runs(args.first, args.second, print, args.json)
    elif args.command == "schema":
        from align.recipe.load import json_schema

        print(json.dumps(json_schema(), indent=1))
    elif args.command == "inspect":
        inspecting.inspect_artifact(args.artifact, args.rows, args.rejects, args.tokens, print)
    elif args.command == "trace":
        inspecting.trace(open_run(args), args.id, print)
    elif args.command == "chat":
        inspecting.chat(open_run(args), args.models, args.prompt, args.max_tokens, args.temperature, print)
    else:
        inspecting.doctor(print)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Parse, run, and turn errors into one line and an exit code: 2 for the user's mistakes, 1 for failures."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(name)s: %(message)s")
    try:
        if args.command == "init":
            _init(args)
        elif args.command == "check":
            _check(args)
        elif args.command == "run" or args.command in STEP_VERBS:
            _run(args)
        else:
            return _other(args)
    except (UserError, StepError) as error:
        sys.stdout.flush()
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `align ... | head` closed the pipe; keep Python from complaining again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        from align.core.errors import explain

        message, code = explain(error)
        if code != UserError.exit_code:
            if not error.filename:
                raise
            message = f"{error.filename}: {error.strerror}"
        print(f"error: {message}", file=sys.stderr)
        return UserError.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
