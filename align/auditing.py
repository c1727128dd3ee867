"""`align audit`: what a preference set would teach, from a stage's pairs with their scores or from a preference file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from align.core.artifact import Artifact, read_rows, write_json
from align.core.errors import UserError
from align.core.rows import Preference, Response, Score
from align.report.artifacts import ROLES, at, folder_of, read_recipe
from align.report.audit import write_audit_page
from align.report.headline import percent
from data_gen.eliminators import is_refusal
from reward.audit import AGREEMENT_COLUMNS, Finding, Pair, audit, findings, pair_of
from reward.audit_tables import Points, Rule, points_of, text_hashes
from reward.preference_file import pairs_from_file

Say = Callable[[str], None]
LISTED = 8  # topics that the table names; all are in the JSON
POINT_COLUMNS = ["id", "prompt_id", "model", "num_tokens"]


def audit_command(path: Path, say: Say, json_out: Path | None = None, page: Path | None = None) -> list[Finding]:
    """Print the audit of a preference set, findings first, and return those.

    Args:
        path: a run's finished pair step (runs/NAME/stage1/pair) or a preference file as `pairs_from_file` reads it, of which
            only texts and lengths are known.
        say: prints a line.
        json_out: write every number and the findings there too.
        page: write the page with pictures there too.

    Raises:
        UserError: `path` is neither, is damaged, or was made by a version that kept no agreement.
    """
    try:
        audited, found = audit_stage(path) if path.is_dir() else audit_file(path)
    except (KeyError, TypeError, AttributeError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: a file of the run does not hold what it should ({error!r:.200})") from error
    for line in lines(audited, found):
        # Names from files must not move the cursor.
        say("".join(char if char.isprintable() else " " for char in line))
    if json_out is not None:
        write_json(json_out, {"audit": audited, "findings": [asdict(one) for one in found]})
    if page is not None:
        write_audit_page(page, path.resolve().name if path.is_file() else _title(path), audited, found)
    return found


def _title(folder: Path) -> str:
    return " · ".join(folder.resolve().parts[-3:-1])


def audit_stage(folder: Path) -> tuple[dict[str, Any], list[Finding]]:
    """The audit of a finished pair step, with the rule and the limits of its run's recipe.

    Raises:
        UserError: see `audit_command`; or the scores and responses beside it are missing, or the recipe.
    """
    artifact = Artifact(folder)
    artifact.check(Preference)
    stage = folder.resolve().parent
    number = re.fullmatch(r"stage(\d+)", stage.name)
    spec = at(read_recipe(stage.parent), "stages", int(number.group(1)) - 1) if number else None
    if spec is None:
        raise UserError(f"{folder}: not a stage's pairs beside their run's recipe.yaml, which says what they had to satisfy")
    pair = at(spec, "pair") or {}
    rule = Rule(pair.get("agreement", "gap"), pair.get("threshold"), pair.get("null_quantile"), pair.get("top_k", 2))
    agreements = _table(folder, [*AGREEMENT_COLUMNS, rule.measure], "agreement/*.parquet")
    sampled = [stage.parent / folder_of(step) for step in artifact.manifest.inputs if ".sample." in step]
    sampled = sampled or sorted(path for path in (stage / "sample").glob("*") if path.is_dir())
    audited = audit(
        map(pair_of, read_rows(folder, Preference)), agreements, _points(stage, sampled), refuses=is_refusal, rule=rule,
        on_policy={str(at(spec, "init"))} if at(spec, "init") else (),
    )  # fmt: skip
    return audited, findings(audited, at(pair, "audit", "limits") or {})


def _table(folder: Path, columns: Sequence[str], pattern: str = "data/*.parquet") -> pa.Table:
    """Columns of all of a step's files.

    Raises:
        UserError: no such file, a damaged one, or one without these columns.
    """
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise UserError(f"{folder}: no {pattern}; run the step anew, since the audit needs it")
    try:
        return pa.concat_tables([pq.read_table(path, columns=list(columns)) for path in paths]).select(list(columns))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(f"{folder}: cannot be read ({str(error).splitlines()[0]}); run the step anew") from None


def _points(stage: Path, sampled: Sequence[Path]) -> Points:
    """Every sampled response of a stage with both scores; collected pairs, two responses each, are left out.

    In the order in which the step read them, since that decides which shuffles chance is counted over.
    """
    parts = []
    for folder in sampled:
        Artifact(folder).check(Response)
        for path in sorted(folder.glob("data/*.parquet")):
            table = pq.read_table(path, columns=[*POINT_COLUMNS, "text"])
            parts.append(table.select(POINT_COLUMNS).append_column("text_hash", text_hashes(table["text"])))
    if not parts:
        raise UserError(f"{stage / 'sample'}: no responses; the audit of a stage needs them beside its pairs")
    scores = []
    for role in ROLES:
        Artifact(stage / "score" / role).check(Score)
        scores.append(_table(stage / "score" / role, ["response_id", "score"]))
    return points_of(pa.concat_tables(parts), *scores)


def audit_file(path: Path) -> tuple[dict[str, Any], list[Finding]]:
    """The audit of a preference file: lengths in words, openings, refusals, languages and subsets; nobody scored it.

    Raises:
        UserError: the file cannot be read or holds no preference pairs.
    """
    pairs, rejects = pairs_from_file(path)
    read = (
        Pair(
            prompt_id=pair.prompt_id, chosen=pair.chosen[-1]["content"], rejected=pair.rejected[-1]["content"],
            chosen_length=len(pair.chosen[-1]["content"].split()), rejected_length=len(pair.rejected[-1]["content"].split()),
            lang=pair.lang, source=pair.subset, split=pair.split,
        )
        for pair in pairs
    )  # fmt: skip
    reasons = Counter(reject.reason for reject in rejects)
    audited = audit(read, None, None, refuses=is_refusal, length_unit="words", rejects=reasons)
    return audited, findings(audited)


def lines(audited: Mapping[str, Any], found: Sequence[Finding]) -> Iterator[str]:
    """The audit as text: findings, then a table of what is known."""
    for one in found:
        yield f"{one.severity.upper()} {one.name}: {one.sentence}"
    if not found:
        yield "No finding."
    yield ""
    for name, text in [*_set_lines(audited), *_judge_lines(audited)]:
        yield f"{name:18} {text}"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _reasons(entry: Mapping[str, Any]) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in entry["reasons"].items()) or "none"


def _set_lines(audited: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of the pairs and of what was lost."""
    kept, pairs = audited["kept"], audited["pairs"]
    length = pairs["length"]
    of = f"{kept['prompts_kept']:,} of {kept['prompts']:,} prompts" if kept["prompts"] else f"of {kept['asked']:,} rows"
    yield "pairs", f"{pairs['count']:,}; kept {of} ({percent(kept['share'], 1)}); {pairs['held_out']:,} held out"
    yield "rejected", _reasons(kept) + (f", later {kept['dropped_later']:,}" if kept["dropped_later"] else "")
    yield (
        "chosen is longer",
        f"in {percent(length['chosen_longer'])} of {length['unequal']:,} pairs (95 % interval {percent(length['low'])} to "
        f"{percent(length['high'])}); by {_number(length['mean_gap'], 1)} {audited['length_unit']} in the mean, "
        f"{_number(length['median_gap'], 1)} in the median",
    )
    for name in ("refusals", "on_policy"):
        if shares := pairs[name]:
            text = ", ".join(f"{side} {percent(value, 1)}" for side, value in shares.items() if side != "read")
            yield name.replace("_", " "), text + (f" (of {shares['read']:,} pairs read)" if "read" in shares else "")
    for side, opening in pairs["openings"].items():
        top = (
            f'; most often "{opening["top"][0]["text"]}" {percent(opening["top"][0]["share"], 1)}' if opening["top"] else ""
        )
        yield f"openings {side}", f"{percent(opening['shared'], 1)} begin like another prompt's{top}"
    yield "sources", ", ".join(f"{name} {n:,}" for name, n in pairs["by_source"].items()) or "none"
    yield "languages", ", ".join(f"{name} {n:,}" for name, n in pairs["by_lang"].items()) or "none"
    topics = sorted(kept["by_topic"].items(), key=lambda item: item[1]["kept"] / item[1]["asked"])
    groups = [("file", kept["by_file"].items()), ("language", kept["by_lang"].items()), ("topic", topics[:LISTED])]
    for kind, entries in groups:
        for key, entry in entries:
            of = f"{entry['kept']:,} of {entry['asked']:,} asked for"
            yield kind, f"{key or '(none)'}: kept {of}; rejected: {_reasons(entry)}"
    if len(topics) > LISTED:
        yield "topic", f"{len(topics) - LISTED:,} others, of which a larger share was kept"


def _judge_lines(audited: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of the reward models and of the models that wrote the responses."""
    agreement, responses = audited["agreement"], audited["responses"]
    if agreement:
        limit = "" if agreement["threshold"] is None else f" >= {agreement['threshold']:g}"
        limit = limit if agreement["null_quantile"] is None else f" beyond the {agreement['null_quantile']:g} null quantile"
        yield (
            "agreement",
            f"{agreement['measure']}{limit}: {percent(agreement['passed_share'], 1)} of {agreement['compared']:,} compared "
            f"prompts pass, {percent(agreement['chance_share'], 1)} by chance; at most "
            f"{percent(agreement['chance_among_kept'])} of the kept are chance",
        )
    if responses:
        between, of = responses["between"]["all"], responses["spearman_length"]
        yield "score and length", ", ".join(f"{role} {_number(of[role]['mean'])}" for role in ROLES) + " (Spearman)"
        yield (
            "both models",
            f"Pearson {_number(between['pearson'])}, {_number(between['pearson_without_length'])} without length; "
            f"Spearman {_number(between['spearman'])}, {_number(between['spearman_without_length'])} without length",
        )
        for role, tied in responses["tied"].items():
            yield (
                f"ties {role}",
                f"{percent(tied['pairs'], 1)} of pairs, {percent(tied['whole_prompts'], 1)} of prompts whole",
            )
    for name, counts in audited["models"].items():
        total = counts.get("responses")
        said = [f"{side} {counts[side]:,}" + (f" ({percent(counts[side] / total, 1)})" if total else "") for side in (
            "chosen", "rejected")]  # fmt: skip
        yield "model", f"{name}: " + (f"{total:,} responses, " if total else "") + ", ".join(said)
