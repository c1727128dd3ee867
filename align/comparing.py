"""`align compare`: two runs side by side, from recipes and data to what their models answered to the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from align.core.artifact import Manifest, read_rows, write_json
from align.core.errors import UserError
from align.core.hashing import fingerprint
from align.core.rows import SuiteAnswer, SuiteResult
from align.evaluate.metrics import mean_with_interval
from align.evaluate.suite import summarize
from align.evaluate.table import per_prompt
from align.evaluate.win_rates import compare_scores, win_rate
from align.report.artifacts import DONE, GOLD, ROLES, StepRecord, at, read_recipe, record, step_names

Say = Callable[[str], None]
SIDES = ("A", "B")
SEED = 17  # of the bootstraps
CUT = 60  # characters of a value of a recipe that are shown
DAMAGED, ABSENT = "damaged", "(not there)"
_SHARED = {"corpus": "documents", "evolve": "prompts", "sft.data": "SFT examples", "reward.data": "reward pairs"}
_SPEED = ("layout", "backend", "train", "path")  # of a reward model's section: not what it says, or told by its weights


@dataclass(frozen=True)
class Side:
    """A run that is compared; a step of which files are missing has no manifest either."""

    run_dir: Path
    recipe: dict[str, Any]
    steps: dict[str, StepRecord]

    def manifest(self, step: str) -> Manifest | None:
        """Of a finished step."""
        found = self.steps.get(step)
        return found.manifest if found else None

    def metrics(self, step: str, *keys: str | int) -> Any:
        """What a finished step's metrics hold under these keys, or None."""
        manifest = self.manifest(step)
        return at(manifest.metrics, *keys) if manifest else None


def compare_runs(a: Path, b: Path, say: Say, json_out: Path | None = None) -> dict[str, Any]:
    """Print two runs side by side, and return all that was found.

    Steps that are not finished, or of which files are missing, are said to be so and compared no further. Differences are
    A less B; their intervals are 95 % bootstraps over the prompts, or the items, that both runs have.

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
        lines = list(_lines(found))
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
    for name, step in steps.items():
        if step.manifest is not None and not step.manifest.complete(step.folder):
            steps[name] = replace(step, state=DAMAGED, manifest=None)
    return Side(run_dir, recipe, steps)


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
    """Loss, accuracy and margin at the end of each training: of pairs that were examined, or of a reward model's test."""
    names = dict.fromkeys(name for side in sides for name in side.steps)
    for name in names:
        reward = name.startswith("reward.") and name != "reward.data"
        if not reward and name != "sft" and not name.endswith(".train"):
            continue
        entry: dict[str, Any] = {"step": name}
        for letter, side in zip(SIDES, sides, strict=True):
            last = side.metrics(name) if reward else side.metrics(name, "examined", -1)
            keys = ("final_loss", "accuracy", "mean_margin") if reward else ("loss", "accuracy", "margin")
            values = (at(last, keys[0]) if reward else side.metrics(name, "loss"), *(at(last, key) for key in keys[1:]))
            entry[letter] = dict(zip(("loss", "accuracy", "margin"), values, strict=True))
        yield entry


def _model(side: Side, name: str) -> Any:
    """What tells whether a model's name means the same in two runs: its section, or the files of its training."""
    if outside := at(side.recipe, "models", name):
        return outside
    stages = [at(stage, "name") for stage in at(side.recipe, "stages") or ()]
    stage = name.split("@")[0]
    step = side.manifest(f"stage{stages.index(stage) + 1}.train" if stage in stages else "sft")
    return [name, step.digest() if step else str(side.run_dir)]  # what is not there is like nothing else


def _judge(side: Side, role: str) -> list[Any] | None:
    """What decides a reward model's scores, as far as the run folder knows; None where it is not trained yet."""
    spec = at(side.recipe, "reward_models", role)
    parts = [(f"{role}.{i}", member) for i, member in enumerate(spec.get("members") or ())] or [(role, spec)]
    found: list[Any] = [{key: value for key, value in spec.items() if key not in ("members", *_SPEED)}]
    for name, part in parts:
        made_of: Any = part.get("path")
        if part.get("train"):
            if (manifest := side.manifest(f"reward.{name}")) is None:
                return None
            made_of = {file: of["sha256"] for file, of in manifest.files.items() if file.startswith("model/")}
        judge = _model(side, part["model"]) if part.get("model") else None
        found.append([{key: value for key, value in part.items() if key not in _SPEED}, made_of, judge])
    return found


def _reward_models(sides: Sequence[Side]) -> Iterator[dict[str, Any]]:
    """For each role whether its scores in one run compare with those in the other, and why not."""
    for role in (*ROLES, GOLD):
        specs = [at(side.recipe, "reward_models", role) for side in sides]
        if not any(specs):
            continue
        judges = [_judge(side, role) if spec else None for side, spec in zip(sides, specs, strict=True)]
        reason = ""
        if None in judges:
            reason = "one of the runs has none, or has not trained it yet"
        elif fingerprint(judges[0]) != fingerprint(judges[1]):
            reason = "the two runs have different ones, so their scores do not compare"
        elif any(spec.get("length_calibration") for spec in specs):
            reason = "its length calibration is fitted in each run anew, so scores do not compare"
        yield {"role": role, "same": not reason, "reason": reason}


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
    """A suite's means in both runs, and the paired change over the items that are the same, unless a note says why not."""
    step = f"eval.suite.{name}"
    tables = [side.metrics(step, "metrics") or {} for side in sides]
    note = _not_graded_alike(sides, name)
    rows: list[list[SuiteResult]] = [[], []]
    if all(tables) and not note:
        rows = [list(read_rows(side.steps[step].folder, SuiteResult)) for side in sides]
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
    """Why numbers of a suite do not compare; empty where they do."""
    specs = [at(side.recipe, "evaluation", "suites", name) or {} for side in sides]
    keys = ("kind", "lang", "references", "penalty", "failures", "judge", "judge_tokens", "baseline", "max_length")
    if differ := [key for key in keys if specs[0].get(key) != specs[1].get(key)]:
        return f"not graded alike ({', '.join(differ)} differ)" if all(specs) else ""
    for key, what in (("judge", "judges"), ("baseline", "baselines")):
        if specs[0].get(key) and fingerprint(_model(sides[0], specs[0][key])) != fingerprint(
            _model(sides[1], specs[1][key])
        ):
            return f"not graded alike (the {what} are different models of one name)"
    return ""


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


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    """All of it as text."""
    for letter, run in zip(SIDES, found["runs"], strict=True):
        yield f"{letter}: {run['name']}, {run['folder']}"
    recipe = found["recipe"]
    values = [(key, *map(_cut, of)) for key, of in recipe["differ"].items()]
    values += [(key, _cut(value), ABSENT) for key, value in recipe["only_a"].items()]
    values += [(key, ABSENT, _cut(value)) for key, value in recipe["only_b"].items()]
    yield from _grid("recipe, where it differs", ("", *SIDES), values)
    yield from _step_lines(found["steps"])
    shared = [(of["what"], *(_count(of[key]) for key in (*SIDES, "both"))) for of in found["shared"]]
    yield from _grid("rows, by id", ("", *SIDES, "in both"), shared)
    numbers = [(name, letter) for name in ("loss", "accuracy", "margin") for letter in SIDES]
    trained = [(of["step"], *(_number(of[letter][name]) for name, letter in numbers)) for of in found["training"]]
    yield from _grid("training, at its end", ("", *(f"{name} {letter}" for name, letter in numbers)), trained)
    yield ""
    yield from (f"{of['role']}: {of['reason']}" for of in found["reward_models"] if not of["same"])
    heads = ("mean A", "mean B", "A less B")
    judged = [
        (of["model"], of["by"], *_means(of, "prompts"), _interval(of["win_rate"], "win_rate")) for of in found["evaluation"]
    ]
    yield from _grid("held-out prompts", ("", "by", *heads, "prompts", "A wins"), judged)
    graded = [(of["suite"], of["metric"], of["model"], *_means(of, "items")) for of in found["suites"]]
    yield from _grid("suites", ("", "metric", "model", *heads, "items"), graded)
    yield from dict.fromkeys(f"{of['suite']}: {of['note']}" for of in found["suites"] if of["note"])


def _means(of: Mapping[str, Any], unit: str) -> list[str]:
    return [*(_interval(of[key]) for key in (*SIDES, "difference")), _count(at(of["difference"], unit))]


def _step_lines(steps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    keys = ("rows", "rejected", "seconds", "tokens")
    rows = []
    for step in steps:
        cells = {
            letter: (
                _count(of["rows"]), _count(sum(of["rejects"].values())), f"{of['seconds']:,.0f}", _count(of["tokens"])
            ) if "rows" in of else (of["state"], "", "", "")
            for letter, of in ((letter, step[letter]) for letter in SIDES)
        }  # fmt: skip
        same = {True: "the same", False: "differ", None: ""}[step["same"]]
        rows.append((step["step"], *(cells[letter][i] for i in range(len(keys)) for letter in SIDES), same))
    yield from _grid("steps", ("", *(f"{key} {letter}" for key in keys for letter in SIDES), "files"), rows)
    for step in steps:
        ours, theirs = (step[letter].get("rejects") for letter in SIDES)
        if ours is not None and theirs is not None and ours != theirs:
            reasons = [f"{name} {ours.get(name, 0):,} | {theirs.get(name, 0):,}" for name in sorted({*ours, *theirs})]
            yield f"{step['step']} rejected: {', '.join(reasons)}"


def _grid(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table with its title in the first head; the first column to the left, the others to the right."""
    lines = [(title, *heads[1:]), *rows] if rows else [(f"{title}: nothing",)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    yield ""
    for line in lines:
        yield "  ".join(f"{c:>{w}}" if i else f"{c:{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True))).rstrip()


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) <= CUT else f"{text[:CUT]}… (+{len(text) - CUT})"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _interval(value: Mapping[str, Any] | None, key: str = "mean") -> str:
    """Mean and interval, - where there is none."""
    if at(value, key) is None:
        return "-"
    low, high = (_number(at(value, end)) or "?" for end in ("low", "high"))
    return f"{_number(at(value, key))} ({low} to {high})"
