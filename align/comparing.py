"""`align compare`: two runs side by side, from recipes and data to what their models answered to the same prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from align.comparing_text import SIDES, comparison_lines
from align.core.artifact import Manifest, read_rows, write_json
from align.core.errors import UserError
from align.core.hashing import fingerprint
from align.core.rows import SuiteAnswer, SuiteResult
from align.evaluate.metrics import mean_with_interval
from align.evaluate.suite import summarize
from align.evaluate.table import per_prompt
from align.evaluate.win_rates import compare_scores, win_rate
from align.report.artifacts import DONE, GOLD, ROLES, StepRecord, at, fresh, read_recipe, record, step_names

Say = Callable[[str], None]
Told = Callable[[str], Any]  # what stands for a file or folder outside of the runs: its content, or its path
SEED = 17  # of the bootstraps
DAMAGED, STALE = "damaged", "stale"
_SHARED = {"corpus": "documents", "evolve": "prompts", "sft.data": "SFT examples", "reward.data": "reward pairs"}
_SPEED = ("layout", "backend", "train")  # of a reward model's section: not what it says, or told by its weights
_OUTSIDE = ("path", "references")  # of a reward model's section: files or folders


@dataclass(frozen=True)
class Side:
    """A run that is compared.

    Attributes:
        run_dir: its folder.
        recipe: as it was written there.
        steps: by name; one that is damaged or stale has no manifest either.
        hashes: SHA-256 of files outside of the run, by path, as it last read them.
    """

    run_dir: Path
    recipe: dict[str, Any]
    steps: dict[str, StepRecord]
    hashes: dict[str, str]

    def manifest(self, step: str) -> Manifest | None:
        """Of a finished step."""
        found = self.steps.get(step)
        return found.manifest if found else None

    def metrics(self, step: str, *keys: str | int) -> Any:
        """What a finished step's metrics hold under these keys, or None."""
        manifest = self.manifest(step)
        return at(manifest.metrics, *keys) if manifest else None

    def content(self, path: str) -> dict[str, str] | None:
        """SHA-256 of a file outside of the run, or of a folder's files by name; None where the run recorded none."""
        place = str(Path(path).resolve())
        files = {name: value for name, value in self.hashes.items() if place in (name, str(Path(name).parent))}
        return {name[len(place) :]: value for name, value in files.items()} or None


def compare_runs(a: Path, b: Path, say: Say, json_out: Path | None = None) -> dict[str, Any]:
    """Print two runs side by side, and return all that was found.

    Steps that are not finished, of which files are missing, or which were made of what is no longer there, are said to be so
    and compared no further. Differences are A less B; their intervals are 95 % bootstraps over the prompts, or the items,
    that both runs have.

    Args:
        a: a run's folder.
        b: another's.
        say: prints a line.
        json_out: write what is returned there too.

    Returns:
        `runs`, `recipe` (`differ`, `only_a`, `only_b`), `steps`, `shared` rows, `training`, `reward_models` (whether scores
        compare), `evaluation` and `suites`.

    Raises:
        UserError: a folder is no run's, or a file of it cannot be read.
    """
    try:
        sides = (_side(a), _side(b))
        found: dict[str, Any] = {"runs": [{"folder": str(s.run_dir), "name": s.recipe.get("name")} for s in sides]}
        found["recipe"] = _recipes(*sides)
        found["steps"] = [_step(name, sides) for name in dict.fromkeys(n for side in sides for n in side.steps)]
        found["shared"] = list(_shared(sides))
        found["training"] = list(_training(sides))
        found["reward_models"] = list(_reward_models(sides))
        found["evaluation"] = list(_evaluation(sides, {r["role"]: r["same"] for r in found["reward_models"]}))
        suites = dict.fromkeys(name for side in sides for name in at(side.recipe, "evaluation", "suites") or ())
        found["suites"] = [entry for name in suites for entry in _suite(sides, name)]
        lines = list(comparison_lines(found))
        if json_out is not None:
            write_json(json_out, found)
    except (LookupError, TypeError, AttributeError, ValueError, pa.ArrowException) as error:
        text = f"{a} and {b}: a file of one of them does not hold what this version writes ({error!r:.200})"
        raise UserError(text) from error
    for line in lines:
        # Names from files must not move the cursor.
        say("".join(char if char.isprintable() else " " for char in line))
    return found


def _side(run_dir: Path) -> Side:
    recipe = read_recipe(run_dir)
    if not recipe:
        raise UserError(f"{run_dir}: no recipe.yaml, so this is not the folder of a run")
    suites = [f"eval.suite.{name}" for name in at(recipe, "evaluation", "suites") or ()]
    steps = {name: record(run_dir, name) for name in (*step_names(run_dir, recipe), *suites)}
    # Of members of ensembles, collected pairs and answers to suites only the folders say that they are there.
    for folder in (f for pattern in ("reward/*", "stage*/collected", "eval/suite/*") for f in sorted(run_dir.glob(pattern))):
        if manifest := Manifest.load(folder):
            steps[manifest.step] = StepRecord(manifest.step, folder, DONE, manifest)
    known: dict[str, bool] = {}
    for name, step in steps.items():
        if step.manifest is not None and not step.manifest.complete(step.folder):
            steps[name] = replace(step, state=DAMAGED, manifest=None)
        elif step.manifest is not None and not fresh(run_dir, name, known):
            steps[name] = replace(step, state=STALE, manifest=None)
    return Side(run_dir, recipe, steps, _hashes(run_dir))


def _hashes(run_dir: Path) -> dict[str, str]:
    """What the run remembers of outside files; a run works without, and then paths are compared, which the output says."""
    try:
        remembered = json.loads((run_dir / ".hashes.json").read_text(encoding="utf-8"))
        return {path: str(value) for path, (_, value) in remembered.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def flattened(value: Any, key: str = "") -> dict[str, Any]:
    """`{"stages[0].train.beta": 0.1, ...}` of nested sections; a list of plain values is one value."""
    if isinstance(value, Mapping) and value:
        parts = [flattened(inner, f"{key}.{name}" if key else str(name)) for name, inner in value.items()]
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        parts = [flattened(inner, f"{key}[{i}]") for i, inner in enumerate(value)]
    else:
        return {key: value}
    return {name: inner for part in parts for name, inner in part.items()}


def _recipes(a: Side, b: Side) -> dict[str, Any]:
    ours, theirs = flattened(a.recipe), flattened(b.recipe)
    return {
        "differ": {key: [ours[key], theirs[key]] for key in ours if key in theirs and ours[key] != theirs[key]},
        "only_a": {key: value for key, value in ours.items() if key not in theirs},
        "only_b": {key: value for key, value in theirs.items() if key not in ours},
    }


def _table(step: StepRecord, columns: Sequence[str]) -> pa.Table:
    """Columns of a finished step's rows.

    Raises:
        UserError: a file cannot be read.
    """
    try:
        return pa.concat_tables(
            [pq.read_table(p, columns=list(columns)) for p in sorted(step.folder.glob("data/*.parquet"))]
        )
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{step.folder}: cannot be read ({reason}); delete the folder and run again") from None


def _step(name: str, sides: Sequence[Side]) -> dict[str, Any]:
    """Rows, rejects, seconds and tokens of a step in both runs; `same` where both hold the same files."""
    entry: dict[str, Any] = {"step": name, "same": None}
    for letter, side in zip(SIDES, sides, strict=True):
        step = side.steps.get(name)
        entry[letter] = {"state": step.state if step else "not in this run"}
        if step and (manifest := step.manifest):
            tokens = manifest.metrics.get("tokens")
            if tokens is None and manifest.row_type in ("Response", "SuiteAnswer"):
                tokens = pc.sum(_table(step, ["num_tokens"])["num_tokens"]).as_py() or 0
            entry[letter] |= {
                "asked": manifest.asked, "rows": manifest.rows, "rejects": manifest.rejects, "seconds": manifest.seconds,
                "tokens": tokens,
            }  # fmt: skip
    manifests = [side.manifest(name) for side in sides]
    if manifests[0] and manifests[1]:
        entry["same"] = manifests[0].digest() == manifests[1].digest()
    return entry


def _shared(sides: Sequence[Side]) -> Iterator[dict[str, Any]]:
    """How many rows of a kind both runs have, by id; `both` is None where a run has not got that far."""
    stages = sorted({name for side in sides for name in side.steps if name.endswith(".pair")})
    kinds = [(step, what, "id") for step, what in _SHARED.items()]
    kinds += [
        (step, f"{what} of {step}", key) for step in stages for what, key in (("pairs", "id"), ("prompts", "prompt_id"))
    ]
    for step, what, key in kinds:
        stands = [side.steps.get(step) for side in sides]
        ids = [_table(s, [key])[key].unique() if s and s.manifest else None for s in stands]
        entry = {"what": what, **{letter: None if i is None else len(i) for letter, i in zip(SIDES, ids, strict=True)}}
        yield entry | {"both": None if None in ids else pc.sum(pc.is_in(ids[0], value_set=ids[1])).as_py() or 0}


def _training(sides: Sequence[Side]) -> Iterator[dict[str, Any]]:
    """Loss, accuracy and margin at the end of each training, all of the examples that were examined; of a reward model, the
    loss of its training, and the others of its held-out pairs."""
    names = dict.fromkeys(name for side in sides for name in side.steps)
    for name in names:
        reward = name.startswith("reward.") and name != "reward.data"
        if not reward and name != "sft" and not name.endswith(".train"):
            continue
        entry: dict[str, Any] = {"step": name}
        for letter, side in zip(SIDES, sides, strict=True):
            last = side.metrics(name) if reward else side.metrics(name, "examined", -1)
            keys = ("final_loss", "accuracy", "mean_margin") if reward else ("loss", "accuracy", "margin")
            entry[letter] = {shown: at(last, key) for shown, key in zip(("loss", "accuracy", "margin"), keys, strict=True)}
        yield entry


def _same(sides: Sequence[Side], describe: Callable[[Side, str, Told], Any], name: str) -> tuple[bool, bool]:
    """Whether `describe` says the same of a name in both runs, and whether by the paths of outside files, not by content."""
    unknown: list[str] = []

    def content(side: Side, path: str) -> dict[str, str] | None:
        found = side.content(path)
        unknown.extend([] if found else [path])
        return found

    found = [describe(side, name, partial(content, side)) for side in sides]
    if unknown:
        found = [describe(side, name, str) for side in sides]
    return fingerprint(found[0]) == fingerprint(found[1]), bool(unknown)


def _model(side: Side, name: str, told: Told) -> Any:
    """What tells whether a model's name means the same in two runs: its folder, or the files of its training."""
    if outside := at(side.recipe, "models", name):
        return {**outside, "path": told(outside["path"])} if outside.get("path") else outside
    stages = [at(stage, "name") for stage in at(side.recipe, "stages") or ()]
    stage = name.split("@")[0]
    step = side.manifest(f"stage{stages.index(stage) + 1}.train" if stage in stages else "sft")
    return [name, step.digest() if step else str(side.run_dir)]  # what is not there is like nothing else


def _judge(side: Side, role: str, told: Told) -> list[Any] | None:
    """What decides a reward model's scores; None where its training does not stand."""
    spec = at(side.recipe, "reward_models", role)
    parts = [(f"{role}.{i}", member) for i, member in enumerate(spec.get("members") or ())] or [(role, spec)]
    found: list[Any] = [{key: value for key, value in spec.items() if key not in ("members", *_SPEED, *_OUTSIDE)}]
    for name, part in parts:
        # A column's file has the step in its name.
        made_of: Any = [told(part[key].replace("{step}", "eval")) if part.get(key) else None for key in _OUTSIDE]
        if part.get("train"):
            if (manifest := side.manifest(f"reward.{name}")) is None:
                return None
            made_of = {file: of["sha256"] for file, of in manifest.files.items() if file.startswith("model/")}
        judge = _model(side, part["model"], told) if part.get("model") else None
        found.append([{key: value for key, value in part.items() if key not in (*_SPEED, *_OUTSIDE)}, made_of, judge])
    return found


def _reward_models(sides: Sequence[Side]) -> Iterator[dict[str, Any]]:
    """For each role whether its scores in one run compare with those in the other, why not, and what that rests on."""
    for role in (*ROLES, GOLD):
        specs = [at(side.recipe, "reward_models", role) for side in sides]
        if not any(specs):
            continue
        reason, by_path = "", False
        if not all(specs) or None in [_judge(side, role, str) for side in sides]:
            reason = "one of the runs has none, or has not trained it as its recipe says"
        else:
            same, by_path = _same(sides, _judge, role)
            if not same:
                how = " (by settings and paths, since contents are not recorded)" if by_path else ""
                reason = f"the two runs have different ones{how}, so their scores do not compare"
            elif any(spec.get("length_calibration") for spec in specs):
                reason = "its length calibration is fitted in each run anew, so scores do not compare"
        note = "taken for the same by its path; the runs do not record its content" if by_path else ""
        yield {"role": role, "same": not reason, "reason": reason, "note": note}


def _evaluation(sides: Sequence[Side], same: Mapping[str, bool]) -> Iterator[dict[str, Any]]:
    """Mean rewards of each model in both runs, and, where the judge is the same, A's model against B's, prompt by prompt."""
    rows: list[list[Any]] = []
    for side in sides:
        columns = ["prompt_id", "model", *(role for role in same if at(side.recipe, "reward_models", role))]
        read = _table(side.steps["eval"], columns).to_pylist() if side.manifest("eval") else []
        rows.append([SimpleNamespace(**row) for row in read])
    for model in dict.fromkeys(row.model for of in rows for row in of):
        mine = [[row for row in of if row.model == model] for of in rows]
        for role in same:
            scores = [per_prompt(of, role) if of and hasattr(of[0], role) else {} for of in mine]
            if not any(scores):
                continue
            means = {letter: _mean(list(s.values())) for letter, s in zip(SIDES, scores, strict=True)}
            entry = {"model": model, "by": role, **means, "difference": None, "win_rate": None}
            shared = sorted(set(scores[0]) & set(scores[1]))
            if same[role] and shared:
                ours, theirs = ({prompt: of[prompt] for prompt in shared} for of in scores)
                entry["difference"] = _mean([ours[prompt] - theirs[prompt] for prompt in shared])
                entry["win_rate"] = win_rate(compare_scores(ours, theirs, model="A", baseline="B"), seed=SEED)
            yield entry


def _mean(values: Sequence[float]) -> dict[str, Any]:
    return {**mean_with_interval(values, seed=SEED), "prompts": len(values)}


def _suite(sides: Sequence[Side], name: str) -> Iterator[dict[str, Any]]:
    """A suite's means in both runs, and the paired change over the items that are the same, with a note on what that rests
    on; where numbers do not compare there is no change, and the note says why."""
    step = f"eval.suite.{name}"
    tables = [side.metrics(step, "metrics") or {} for side in sides]
    note = _not_graded_alike(sides, name)
    rows: list[list[SuiteResult]] = [[], []]
    if all(tables) and not note:
        rows = [list(read_rows(side.steps[step].folder, SuiteResult)) for side in sides]
        note = "; ".join(_on_trust(sides, name))
    for model in dict.fromkeys(model for table in tables for of in table.values() for model in of):
        items = _same_items(sides, name, model, rows)
        # A stands last: changes are against the first.
        named = [replace(r, model=letter) for letter, of in zip(SIDES, rows, strict=True) for r in of if r.model == model]
        paired = summarize([row for row in named if row.item_id in items], ("B", "A"), seed=SEED)
        for metric in dict.fromkeys(metric for table in tables for metric in table):
            means = {letter: at(table, metric, model) for letter, table in zip(SIDES, tables, strict=True)}
            if any(means.values()):
                means = {
                    k: {key: of[key] for key in ("mean", "low", "high", "items")} if of else None for k, of in means.items()
                }
                change = at(paired, metric, "A", "change")
                difference = change if at(change, "items") else None
                yield {"suite": name, "metric": metric, "model": model, **means, "difference": difference, "note": note}


def _not_graded_alike(sides: Sequence[Side], name: str) -> str:
    """Why numbers of a suite do not compare; empty where nothing is known to differ."""
    specs = [at(side.recipe, "evaluation", "suites", name) for side in sides]
    if not all(specs):
        return "only one of the recipes has it"
    keys = ("kind", "lang", "references", "penalty", "failures", "judge", "judge_tokens", "baseline", "max_length")
    if differ := [key for key in keys if specs[0].get(key) != specs[1].get(key)]:
        return f"not graded alike ({', '.join(differ)} differ)"
    for key in ("judge", "baseline"):
        if specs[0].get(key) and not _same(sides, _model, specs[0][key])[0]:
            return f"not graded alike (the {key}s are different models of one name)"
    for what, recorded in _recorded(sides, name):
        if None not in recorded and recorded[0] != recorded[1]:
            return f"not graded alike (the {what} differs)"
    return ""


def _on_trust(sides: Sequence[Side], name: str) -> Iterator[str]:
    """What is taken to be the same in a suite although the runs do not record it."""
    spec = at(sides[0].recipe, "evaluation", "suites", name)
    for key in ("judge", "baseline"):
        if spec.get(key) and _same(sides, _model, spec[key])[1]:
            yield f"its {key} is taken for the same by its path"
    yield from (f"not recorded in both runs: the {what}" for what, of in _recorded(sides, name) if None in of)


def _recorded(sides: Sequence[Side], name: str) -> Iterator[tuple[str, list[Any]]]:
    """What a suite was graded with beside its recipe, in both runs; None where a run does not tell."""
    specs = [at(side.recipe, "evaluation", "suites", name) for side in sides]
    manifests = [side.metrics(f"eval.suite.{name}") or {} for side in sides]
    if specs[0].get("path"):
        # Without one in the manifest, what the run last read there; it may have changed after the suite was graded.
        yield (
            "suite's file",
            [
                of.get("file_sha256") or at(side.content(spec["path"]), "")
                for side, of, spec in zip(sides, manifests, specs, strict=True)
            ],
        )
    if specs[0].get("judge"):
        yield "wording of the judge's questions", [of.get("wording") for of in manifests]


def _same_items(sides: Sequence[Side], name: str, model: str, rows: Sequence[Sequence[SuiteResult]]) -> set[str]:
    """Items that are the same question in both runs: the user says the same in it, or the document has as many tokens."""
    if at(sides[0].recipe, "evaluation", "suites", name, "kind") == "perplexity":  # nobody answers
        counted = [{row.item_id: row.weight for row in of if row.model == model and not row.failure} for of in rows]
        return {item for item, tokens in counted[0].items() if counted[1].get(item) == tokens}
    answers = [side.steps.get(f"eval.suite.{name}.answer.{model}") for side in sides]
    asked = []
    for step in answers:
        held = read_rows(step.folder, SuiteAnswer) if step and step.manifest else ()
        asked.append({row.item_id: [m["content"] for m in row.messages if m["role"] == "user"] for row in held})
    # A conversation that broke off has fewer turns.
    return {i for i, said in asked[0].items() if said and (other := asked[1].get(i)) and all(map(str.__eq__, said, other))}
