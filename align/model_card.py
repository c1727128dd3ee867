"""Model cards: a `README.md` beside each model that a run trained, written from what the run's manifests say of it.

A number that was not measured is left out and named under the card's limits. No step's record holds the card, and a model's
identity does not count it, so writing one makes nothing stale.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from align.core.artifact import Manifest, write_text
from align.core.errors import UserError
from align.core.hashing import file_sha256
from align.core.rows import LOWER_IS_BETTER
from align.evaluating import divergence_name
from align.report.artifacts import GOLD, ROLES, at, columns_of, read_recipe, record, stands
from align.report.estimates import compared_items
from align.report.glossary import LOSS_NAMES

Say = Callable[[str], None]
CARD = "README.md"
MARK = "<!-- Written by align from the run's manifests. Take this line away, and align leaves the file alone. -->"
UNKNOWN = ("", "unknown", "other", "none")  # what stands where nobody named a licence
MOST = 12  # entries of a list of counts that are written out
_MARKDOWN = re.compile(r"([\\`*_\[\]|~#$])")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model that a run trained.

    Attributes:
        name: M0, or a stage's.
        stage: 0 for SFT, 1, 2, ...
        step: that trained it; `data` is the one whose rows it was trained on.
        init: what it was trained from: a model of the run, a snapshot of one (M1@1), or a name under models.
        reference: what its loss measures against; empty where it needs nothing.
        options: the recipe's section of its training.
        folder, manifest: of the step.
    """

    name: str
    stage: int
    step: str
    data: str
    init: str
    reference: str
    options: Mapping[str, Any]
    folder: Path
    manifest: Manifest

    @property
    def loss(self) -> str:
        """sft, dpo, ..."""
        return str(self.options.get("loss") or "sft")

    @property
    def loss_name(self) -> str:
        """SFT, DPO, SimPO, ..."""
        return LOSS_NAMES.get(self.loss, self.loss)


def write_model_cards(run_dir: Path, say: Say | None = None) -> list[Path]:
    """Write the card of every finished model of a run, beside its weights, and return the files.

    No card is written for a model whose own step or data have been made anew since, nor over a README.md without `MARK`,
    which is somebody's own text. Whether the steps are still those of the recipe is for the caller to know.

    Args:
        run_dir: of the run.
        say: prints a line about each model: its card, or why it has none.

    Raises:
        UserError: no recipe there, or one of the run's files cannot be read.
    """
    recipe = read_recipe(run_dir)
    if not recipe:
        raise UserError(f"{run_dir}: no recipe.yaml, so this is not the folder of a run")
    written = []
    try:
        for name, lineage in lineages(run_dir, recipe).items():
            reason = _no_card(run_dir, lineage)
            if not reason:
                written.append(lineage[-1].folder / "model" / CARD)
                write_text(written[-1], card(run_dir, recipe, lineage))
            if say:
                say(_printable(f"{name}: " + (f"no model card, since {reason}" if reason else str(written[-1]))))
    except (LookupError, TypeError, AttributeError, ValueError, pa.ArrowException, TemplateError) as error:
        text = f"{run_dir}: no model card, since a file there does not hold what this version writes ({error!r:.200})"
        raise UserError(text) from error
    return written


def lineages(run_dir: Path, recipe: Mapping[str, Any]) -> dict[str, list[Trained]]:
    """Each model of the recipe after those it was trained from; nothing where the step of one of them is not finished."""
    specs = [("M0", "sft", "sft.data", at(recipe, "sft") or {}, at(recipe, "sft", "init"), None)]
    for k, stage in enumerate(at(recipe, "stages") or (), 1):
        spec = (
            str(stage["name"]),
            f"stage{k}.train",
            f"stage{k}.pair",
            stage["train"],
            stage["init"],
            stage.get("reference"),
        )
        specs.append(spec)
    found: dict[str, list[Trained]] = {}
    for number, (name, step, data, options, init, reference) in enumerate(specs):
        done = record(run_dir, step)
        parent = str(init or "base").split("@")[0]
        found[name] = []
        if done.manifest is not None and found.get(parent, True):
            mine = Trained(
                name=name, stage=number, step=step, data=data, init=str(init or "base"), reference=str(reference or ""),
                options=options, folder=done.folder, manifest=done.manifest,
            )  # fmt: skip
            found[name] = [*found.get(parent, ()), mine]
    return found


def _no_card(run_dir: Path, lineage: Sequence[Trained]) -> str:
    """Why a model gets no card; empty where it gets one."""
    if not lineage:
        return "it is not trained yet, or a model that it comes from is not"
    for model in lineage:
        if not stands(run_dir, model.step) or not stands(run_dir, model.data):
            return f"{model.name} or what it was trained on is damaged or has been made anew since; run `align run` first"
    path = lineage[-1].folder / "model" / CARD
    if f"model/{CARD}" in lineage[-1].manifest.files or (path.is_file() and MARK not in path.read_text("utf-8", "replace")):
        return f"{path} is somebody's own text, which stays"
    return "" if path.parent.is_dir() else f"{path.parent} is not there"


def card(run_dir: Path, recipe: Mapping[str, Any], lineage: Sequence[Trained]) -> str:
    """The text of the card of the last model of `lineage`."""
    model, missing = lineage[-1], list[str]()
    data = _data(run_dir, lineage)
    base = at(recipe, "models", lineage[0].init) or {}
    base_license = _license_of(base)
    front = {
        "language": sorted(data["languages"]),
        "license": _license(base_license, data["licenses"]),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": _base_name(base, lineage[0].init),
        "tags": list(dict.fromkeys(["align", *(one.loss for one in lineage)])),
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, finalize=escaped, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"interval": interval, "counts": _counts}
    evaluated = _evaluation(run_dir, recipe, model, missing)
    suites = _suites(run_dir, recipe, model, missing)
    given = {key: value for key, value in front.items() if value}
    return environment.get_template("model_card.md.j2").render(
        front=Markup(yaml.safe_dump(given, sort_keys=False, allow_unicode=True)), mark=Markup(MARK), model=model,
        lineage=lineage, recipe=recipe.get("name", "unnamed"), stages=len(at(recipe, "stages") or ()), data=data,
        base=front["base_model"], base_license=base_license or "not known", license=front["license"],
        options=_options(lineage), judges=_judges(run_dir, recipe), size=_size(model), evaluated=evaluated, suites=suites,
        unsearched=_unsearched(recipe, data, suites), missing=missing, weights=_weights(model),
        recipe_hash=file_sha256(run_dir / "recipe.yaml"),
    )  # fmt: skip


def _data(run_dir: Path, lineage: Sequence[Trained]) -> dict[str, Any]:
    """What the models were trained on.

    Returns:
        Manifests of `corpus`, `pool` and `sft` (None where there is none), `pairs` of each stage, `searched` (the
        certificates of the search for test items) and `not_searched` (steps without), `languages` and `licenses`.
    """
    corpus, pool = (record(run_dir, step).manifest for step in ("corpus", "evolve"))
    languages, licenses = set[str](), set((corpus.metrics if corpus else {}).get("by_license", {"unknown": 0}))
    sft, pairs, searched, not_searched = None, [], [], []
    for model in lineage:
        rows = record(run_dir, model.data)
        assert rows.manifest is not None  # `_no_card` has looked
        if model.stage == 0:
            sft = rows.manifest
            licenses |= set(sft.metrics.get("by_license", {"unknown": 0}))
            languages |= set(sft.metrics.get("by_language", {}))
            continue
        by = {name: Counter(of) for name, of in columns_of(rows.folder, ("lang", "source", "split")).items()}
        pairs.append({"model": model.name, "manifest": rows.manifest, "findings": _findings(rows.folder), **by})
        languages |= set(by["lang"])
        # Preference files that were collected elsewhere name no licence.
        licenses |= {"unknown"} if set(by["source"]) - {"sampled"} else set()
    for step in (*(["evolve"] if pool else ()), *(model.data for model in lineage)):
        path = record(run_dir, step).folder / "decontamination.json"
        if path.is_file():
            searched.append({"step": step, **json.loads(path.read_text("utf-8"))})
        else:
            not_searched.append(step)
    return {
        "corpus": corpus, "pool": pool, "sft": sft, "pairs": pairs, "searched": searched, "not_searched": not_searched,
        "languages": languages - {""}, "licenses": licenses,
    }  # fmt: skip


def _findings(folder: Path) -> list[dict[str, Any]] | None:
    """What the audit of a stage's pairs found; None where there was none."""
    path = folder / "audit.json"
    return list(json.loads(path.read_text("utf-8"))["findings"]) if path.is_file() else None


def _evaluation(run_dir: Path, recipe: Mapping[str, Any], model: Trained, missing: list[str]) -> dict[str, Any]:
    """The model's line of the evaluation, `wins`, `kl`, and the `meter` with the model's `point`; what lacks is named."""
    manifest = record(run_dir, "eval").manifest
    metrics = manifest.metrics if manifest and stands(run_dir, "eval") else {}
    line = next((row for row in metrics.get("table", ()) if row["model"] == model.name), None)
    meter: Mapping[str, Any] | None = metrics.get("meter")
    kl = [entry for entry in metrics.get("kl", ()) if entry["model"] == model.name]
    wins = []
    for role in _roles(recipe) if line and model.name != metrics["baseline"] else ():
        if at(line, f"{role}_win_rate", "mean") is None:
            missing.append(f"win rate by {role}")
            continue
        found = [won for won in metrics.get("wins", ()) if (won["by"], won["model"]) == (role, model.name)]
        length = at(found, 0, "length")
        if at(length, "length_controlled", "mean") is None:
            missing.append(f"win rate by {role} at equal length")
        raw, compared = at(line, f"{role}_win_rate"), at(line, f"{role}_compared")
        wins.append({"by": role, "raw": raw, "compared": compared, "length": length})
    missing += [] if line else ["win rates: no evaluation of this model as it is now"]
    divergence = divergence_name(recipe)
    missing += [] if kl else [f"{divergence} to other models"]
    if meter is None:
        missing.append("over-optimization: the meter was not run on this model as it is now")
    elif meter.get("reason"):
        missing.append(f"over-optimization: {meter['reason']}")
    elif meter["choice"] is None:
        missing.append("over-optimization: no gold reward model that took no part in choosing pairs")
    points = meter["points"] if meter else ()
    point = next((one for one in points if one["name"] == model.name), None)
    told = {key: metrics.get(key) for key in ("prompts", "baseline")}
    return {"line": line, "wins": wins, "kl": kl, "divergence": divergence, "meter": meter, "point": point, **told}


def _roles(recipe: Mapping[str, Any]) -> list[str]:
    return [role for role in (*ROLES, GOLD) if at(recipe, "reward_models", role)]


def _suites(run_dir: Path, recipe: Mapping[str, Any], model: Trained, missing: list[str]) -> dict[str, Any]:
    """The model's numbers in each suite as `rows`, those `worse` than the first model's beyond the interval among the
    `compared`, and the `names` of the suites that were measured; what lacks is named."""
    rows, worse, compared, measured, kinds = [], [], 0, [], set()
    names = list(at(recipe, "evaluation", "suites") or ())
    for name in names:
        manifest = record(run_dir, f"eval.suite.{name}").manifest
        metrics = manifest.metrics["metrics"] if manifest and stands(run_dir, f"eval.suite.{name}") else {}
        found = {metric: (next(iter(of)), of.get(model.name)) for metric, of in metrics.items()}
        measured += [name] if any(own for _, own in found.values()) else []
        missing += [] if measured[-1:] == [name] else [f"suite {name}"]
        kinds |= {manifest.metrics["kind"]} if manifest and measured[-1:] == [name] else set()
        for metric, (first, own) in found.items():
            if own is None or own["mean"] is None:
                missing += [f"{metric} of suite {name}"] if measured[-1:] == [name] else []
                continue
            row = {"suite": name, "metric": metric, "first": first, "change": own["change"], "of": own}
            row["compared"] = compared_items(own, metrics[metric][first])
            rows.append(row)
            edge = at(own["change"], "low" if metric in LOWER_IS_BETTER else "high")
            compared += edge is not None
            if edge is not None and (edge > 0 if metric in LOWER_IS_BETTER else edge < 0):
                worse.append(row)
    missing += [] if "safety" in kinds else ["safety"]
    return {"rows": rows, "worse": worse, "compared": compared, "names": measured}


def _unsearched(recipe: Mapping[str, Any], data: Mapping[str, Any], suites: Mapping[str, Any]) -> list[str]:
    """Measured suites whose file is not, by name, among those that every search looked for."""
    looked_for = [{one["name"] for one in found["benchmarks"]} for found in data["searched"]]
    paths = {name: at(recipe, "evaluation", "suites", name, "path") for name in suites["names"]}
    return [name for name, path in paths.items() if path and not all(Path(path).stem in names for names in looked_for)]


def _judges(run_dir: Path, recipe: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each reward model of the recipe, what it is, and the numbers of its training where it was trained here."""
    for role in _roles(recipe):
        spec = recipe["reward_models"][role]
        made_of = at(spec, "train", "backbone") or spec
        what = at(made_of, "builtin") or Path(str(at(made_of, "path") or "")).name or at(spec, "model") or ""
        trained = record(run_dir, f"reward.{role}").manifest if at(spec, "train") else None
        kind = f"{at(spec, 'kind') or 'classifier'} {what}".strip()
        yield {"role": role, "what": kind, "metrics": trained.metrics if trained else {}}


def _size(model: Trained) -> dict[str, Any]:
    """Numbers in the weights, and their types; tied weights are stored, and counted, once."""
    from safetensors import SafetensorError, safe_open

    numbers, types = 0, set[str]()
    for path in sorted((model.folder / "model").glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    part = file.get_slice(name)
                    numbers += math.prod(part.get_shape())
                    types.add(part.get_dtype())
        except SafetensorError as error:
            raise UserError(f"{path}: cannot be read ({error}); delete its step's folder and run again") from None
    return {"numbers": numbers, "types": ", ".join(sorted(types))}


def _options(lineage: Sequence[Trained]) -> Iterator[tuple[str, list[Any]]]:
    """Each hyper-parameter with its value for every model, empty for one that has no such thing."""
    flat = [{**one.options, **{f"lora.{k}": v for k, v in (one.options.get("lora") or {}).items()}} for one in lineage]
    for key in dict.fromkeys(key for of in flat for key in of if key not in ("init", "loss", "lora")):
        if any(of.get(key) is not None for of in flat):
            yield key, ["" if of.get(key) is None else of[key] for of in flat]


def _weights(model: Trained) -> list[tuple[str, str]]:
    files = model.manifest.files.items()
    return [(Path(name).name, entry["sha256"]) for name, entry in files if re.fullmatch(r"model/[^/]+\.safetensors", name)]


def _base_name(base: Mapping[str, Any], name: str) -> str:
    """The last part of the path, or the builtin's name; a run's own folders are all called model, so theirs goes on top."""
    path = Path(str(base.get("path") or base.get("builtin") or name))
    return _printable("-".join(path.parts[-4:-1]) if path.name == "model" and len(path.parts) > 3 else path.name)


def _license_of(base: Mapping[str, Any]) -> str:
    """The licence that a model's own card names; empty where there is no card or no name."""
    try:
        text = (Path(str(base["path"])) / CARD).read_text("utf-8") if base.get("path") else ""
        front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        named = at(yaml.safe_load(front[1]), "license") if front else None
    except (OSError, ValueError, yaml.YAMLError):
        return ""
    return named if isinstance(named, str) and named.lower() not in UNKNOWN else ""


def _license(base: str, data: set[str]) -> str:
    """The one licence that the base model and all data are under; other where all are known, else unknown."""
    names = {name.strip().lower() for name in (base, *data)}
    if names & set(UNKNOWN):
        return "unknown"
    return base.lower() if len(names) == 1 else "other"


def _counts(counts: Mapping[str, int]) -> str:
    """`en 27, ko 13`, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    said = [f"{name or 'none'} {n:,}" for name, n in ordered[:MOST]]
    return ", ".join([*said, f"{sum(n for _, n in ordered[MOST:]):,} of others"] if ordered[MOST:] else said)


def interval(value: Mapping[str, Any] | None, scale: float = 1) -> str:
    """`0.62 (0.55 to 0.69)` in three digits; empty where there is no mean."""
    if at(value, "mean") is None:
        return ""
    mean, low, high = (at(value, key) for key in ("mean", "low", "high"))
    span = f"{scale * low:.3g} to {scale * high:.3g}" if low is not None and high is not None else "no interval"
    return f"{scale * mean:.3g} ({span})"


def _printable(text: object) -> str:
    """One line without control characters, which could hide text or turn it round."""
    return " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())


def escaped(value: object) -> object:
    """Text that Markdown and HTML show as it is: one line, no mark-up, no link."""
    if isinstance(value, Markup):
        return value
    text = _MARKDOWN.sub(r"\\\1", _printable(value))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("://", ":&#47;/").replace("www.", "www&#46;")
