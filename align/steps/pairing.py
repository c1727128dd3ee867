"""Scores to preference pairs, with the audit of what came out and its gate."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from align.core.artifact import SHARD_SIZE, read_rows, write_json
from align.core.errors import UserError
from align.core.rows import Agreement, Preference, Reject, Response, Score, arrow_schema, to_table
from align.recipe.schema import StageSpec
from align.steps.by_prompt import ByPrompt, shard_count, shards_by_prompt
from align.steps.collected import Collected, collected_rows
from align.steps.context import Context
from align.steps.judges import REWARD_ROLES, collected_names
from data_gen.eliminators import is_refusal
from reward.audit import audit, findings, pair_of
from reward.audit_tables import Rule, points_of, text_hashes
from reward.pairs import Built, build_pairs, check_collected, take_share
from reward.selection import PairRules

log = logging.getLogger(__name__)
AGREEMENTS = "agreement"  # folder of a step pair with what the reward models said of every pair, kept or not
POINT_COLUMNS = ("id", "prompt_id", "model", "num_tokens")


def pair_rules(stage: StageSpec) -> PairRules:
    """A stage's rules; training drops pairs longer than its max_length whole, so nothing is cut before comparing."""
    spec = stage.pair
    return PairRules(
        select=spec.select, sigmas=spec.sigmas, length_tolerance=spec.length_tolerance, correct_score=spec.correct_score,
        pairs_per_prompt=spec.pairs_per_prompt, agreement=spec.agreement, top_k=spec.top_k, threshold=spec.threshold,
        null_quantile=spec.null_quantile, use=spec.use, min_margin=spec.min_margin, max_margin=spec.max_margin,
        keep_wrong_language=spec.keep_wrong_language, held_out=spec.held_out,
    )  # fmt: skip


def run_pair(ctx: Context) -> None:
    """Every prompt ends as pairs or as rejects with its numbers; the set is audited before anything trains on it."""
    k = ctx.step.stage
    stage = ctx.recipe.stages[k - 1]
    rules = pair_rules(stage)
    samples = [ByPrompt(ctx.artifact(name), Response) for name in ctx.step.inputs if ".sample." in name]
    scores = [ByPrompt(ctx.artifact(f"stage{k}.score.{role}"), Score) for role in REWARD_ROLES]
    prompts = ctx.prompts(stage.name, stage.sample.max_prompts)
    collected = collected_rows(ctx) if stage.pair.collected else []
    shards = shard_count(prompts) + bool(collected)
    ids = [prompt.id for prompt in prompts]
    for index, part, tables in shards_by_prompt(ctx, ids, [*samples, *scores], shards=shards):
        responses = pa.concat_tables(tables[:-2])
        built = build_pairs(prompts[part], responses, tables[-2], tables[-1], rules, ctx.seed)
        _write(ctx, index, built, asked=len(prompts[part]) * rules.pairs_per_prompt)
    for sample in samples:
        sample.end()
    if collected and shards - 1 in {shard.index for shard in ctx.out.pending(shards * SHARD_SIZE)}:
        tables = [stream.take([item.prompt.id for item in collected]) for stream in scores]
        built = _collected(ctx, stage, collected, tables, rules)
        _write(ctx, shards - 1, built, asked=len(collected))
    elif not collected:
        for stream in scores:
            stream.end()
    ctx.certify()
    _nothing_kept(ctx, len(prompts))
    audited = _audit(ctx, stage, rules)
    asked = Counter(prompt.topic_id for prompt in prompts for _ in range(rules.pairs_per_prompt))
    asked.update(item.prompt.topic_id for item in collected)
    ctx.finish(asked_by_topic=dict(sorted(asked.items())), **pair_metrics(ctx), **audited)


def _write(ctx: Context, index: int, built: Built, *, asked: int) -> None:
    """A shard's pairs without test items, its rejects, and what the reward models said of each."""
    pairs, contaminated = built.table, list[Reject]()
    if ctx.recipe.quality.decontaminate:
        rows, contaminated = ctx.clean_shard(
            index, built.pairs, lambda row: [m["content"] for m in (*row.prompt, *row.chosen, *row.rejected)]
        )
        pairs = to_table(Preference, rows) if contaminated else pairs
    found = {reject.id: reject.reason for reject in contaminated}
    table = built.agreements
    outcomes = [found.get(i, o) for i, o in zip(table["id"].to_pylist(), table["outcome"].to_pylist(), strict=True)]
    table = table.set_column(table.schema.get_field_index("outcome"), arrow_schema(Agreement).field("outcome"), [outcomes])
    ctx.out.write_table(f"{AGREEMENTS}/part-{index:05d}.parquet", table)
    ctx.out.write_shard(index, pairs, [*built.rejects, *contaminated], asked=asked)


def _collected(
    ctx: Context, stage: StageSpec, collected: Sequence[Collected], scores: Sequence[pa.Table], rules: PairRules
) -> Built:
    """The collected pairs that both reward models confirm, each file's cut to its share of the whole set."""
    sampled = sum(1 for _ in read_rows(ctx.out.folder, Preference))
    rest = 1 - sum(one.share for one in stage.pair.collected)
    pairs: list[pa.Table] = []
    rejects: list[Reject] = []
    tables: list[pa.Table] = []
    for name, spec in zip(collected_names(stage), stage.pair.collected, strict=True):
        items = [item for item in collected if item.pair.subset == name]
        responses = to_table(Response, [response for item in items for response in item.responses])
        wanted = pa.array([item.prompt.id for item in items], pa.string())
        first, second = (table.filter(pc.is_in(table["prompt_id"], value_set=wanted)) for table in scores)
        built = check_collected(
            [item.prompt for item in items], responses, first, second,
            {item.prompt.id: item.responses[0].id for item in items}, rules, ctx.seed, name,
        )  # fmt: skip
        # Of the whole set, in which the other files have their shares too.
        built = take_share(sampled, built, spec.share / (rest + spec.share), ctx.seed)
        pairs.append(built.table)
        rejects += built.rejects
        tables.append(built.agreements)
    return Built(pa.concat_tables(pairs), rejects, pa.concat_tables(tables))


def _nothing_kept(ctx: Context, prompts: int) -> None:
    """Raises:
    UserError: no pair was kept, or none for training.
    """
    splits = Counter(row.split for row in read_rows(ctx.out.folder, Preference))
    if splits["train"]:
        return
    reasons = Counter(row.reason for row in read_rows(ctx.out.folder, Reject, "rejects/*.parquet"))
    why = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    held = f"; {splits['test']} pairs are held out (pair.held_out)" if splits["test"] else ""
    raise UserError(
        f"{ctx.step.name}: no pair to train on from {prompts} prompts ({why or 'none dropped'}{held}). Sample more "
        f"responses (stages.{ctx.step.stage - 1}.sample.n), lower pair.threshold or pair.null_quantile, or raise max_tokens "
        f"if answers are unfinished; the rejects are in {ctx.out.folder}/rejects"
    )


def _audit(ctx: Context, stage: StageSpec, rules: PairRules) -> dict[str, Any]:
    """Audit the set, leave the numbers and a page beside it, and hold the recipe's gate.

    Raises:
        UserError: a finding is beyond its limit and the gate says fail.
    """
    from align.report.audit import write_audit_page

    folder = ctx.out.folder
    agreements = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob(f"{AGREEMENTS}/*.parquet"))])
    result = audit(
        map(pair_of, read_rows(folder, Preference)), agreements, _points(ctx), refuses=is_refusal,
        rule=Rule(rules.agreement, rules.threshold, rules.null_quantile, rules.top_k), on_policy={stage.init},
    )  # fmt: skip
    found = findings(result, stage.pair.audit.limits)
    write_json(folder / "audit.json", {"audit": result, "findings": [asdict(one) for one in found]})
    write_audit_page(folder / "audit.html", f"{ctx.recipe.name}, stage {ctx.step.stage}", result, found)
    for one in found:
        log.warning("%s: %s (%s)", ctx.step.name, one.sentence, one.name)
    failed = [one for one in found if one.severity == "fail"]
    if failed and stage.pair.audit.gate == "fail":
        raise UserError(
            f"{ctx.step.name}: {failed[0].sentence} ({', '.join(one.name for one in failed)}); see {folder}/audit.html. "
            f"Mend the reward models, or set stages.{ctx.step.stage - 1}.pair.audit.limits or its gate if you mean it"
        )
    return {"findings": {one.name: one.severity for one in found}}


def _points(ctx: Context) -> Any:
    """Every sampled response with both scores; collected pairs have no more than two each and are left out."""
    parts = []
    for name in ctx.step.inputs:
        if ".sample." in name:
            for path in sorted(ctx.artifact(name).folder.glob("data/*.parquet")):
                table = pq.read_table(path, columns=[*POINT_COLUMNS, "text"])
                parts.append(table.select(POINT_COLUMNS).append_column("text_hash", text_hashes(table["text"])))
    scores = [
        pq.read_table(ctx.artifact(f"stage{ctx.step.stage}.score.{role}").folder / "data", columns=["response_id", "score"])
        for role in REWARD_ROLES
    ]
    return points_of(pa.concat_tables(parts), *scores)


def pair_metrics(ctx: Context) -> dict[str, object]:
    """Kept share, margins, agreement, and how often the longer answer won (a length bias shows here first)."""
    rows = list(read_rows(ctx.out.folder, Preference))
    n, dropped = len(rows), sum(1 for _ in read_rows(ctx.out.folder, Reject, "rejects/*.parquet"))
    return {
        "kept_share": round(n / max(1, n + dropped), 4),
        "mean_margin": round(sum(r.selector_chosen - r.selector_rejected for r in rows) / n, 4),
        "mean_agreement": round(sum(r.agreement for r in rows) / n, 4),
        "chosen_longer_share": round(sum(len(r.chosen_token_ids) > len(r.rejected_token_ids) for r in rows) / n, 4),
        "mean_chosen_tokens": round(sum(len(r.chosen_token_ids) for r in rows) / n, 1),
        "mean_rejected_tokens": round(sum(len(r.rejected_token_ids) for r in rows) / n, 1),
        "chosen_models": dict(Counter(r.chosen_model for r in rows)),
        "rejected_models": dict(Counter(r.rejected_model for r in rows)),
        "by_split": dict(Counter(r.split for r in rows)),
        "by_source": dict(Counter(r.source for r in rows)),
    }
