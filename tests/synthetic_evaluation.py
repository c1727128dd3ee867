"""The evaluation of the made-up run: gold rises and falls again while the proxy rises, and the suites pay for it.

Numbers are computed from made-up rows by the project's own functions, so their shapes are those of a real run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from align.core.hashing import content_id
from align.core.rows import BestOfN, EvalResult, Instruction, Response, Score, SuiteAnswer, SuiteResult
from align.evaluate.best_of_n import best_of_n_curve
from align.evaluate.judged import Judgment, averages
from align.evaluate.meter import Place, meter
from align.evaluate.needle import heat_map
from align.evaluate.suite import Item, summarize
from align.evaluate.table import eval_results, model_table, win_rates

if TYPE_CHECKING:
    from synthetic_run import Builder

HOSTILE_NOTE = "a note with <script>alert(2)</script> & 'quotes'"
MODELS = ("base", "M0", "M1", "M2")
DISTANCES = {"base": math.nan, "M0": 0.0, "M1@1": 0.9, "M1": 1.6, "M2@1": 2.5, "M2": 3.3}
TOKENS = {"base": 90, "M0": 60, "M1@1": 64, "M1": 70, "M2@1": 92, "M2": 118}
# What a suite's model is right in, of 1; ifeval gains from alignment, math pays for it.
RIGHT = {
    "ifeval": {"base": 0.22, "M0": 0.45, "M1": 0.6, "M2": 0.42},
    "math": {"base": 0.5, "M0": 0.48, "M1": 0.42, "M2": 0.2},
}
NATS = {"base": 2.62, "M0": 2.71, "M1": 2.74, "M2": 3.05}
MARKS = {"base": 3.1, "M0": 5.6, "M1": 6.4, "M2": 6.0}


def gain(model: str, role: str) -> float:
    """How much better a checkpoint is than M0: gold by d (a - b d) with its peak at 1.6, the proxies without a peak."""
    d = DISTANCES[model]
    if math.isnan(d):
        return -0.8
    return {"selector": 0.6 * d, "validator": 0.9 * d - 0.12 * d * d, "gold": d * (1.25 - 0.39 * d)}[role]


def examined(steps: int) -> list[dict[str, float]]:
    """A stage's pairs before training, at its snapshot and at its end: both log-probabilities fall."""
    return [
        {"step": round(share * steps), "chosen_logps": -80 - 9 * share, "rejected_logps": -85 - 26 * share**2}
        for share in (0, 0.5, 1)
    ]


def evaluation(builder: Builder) -> None:
    """The held-out answers of all models and snapshots, their scores, the table, win rates and the meter."""
    rng, seed = random.Random(builder.seed), builder.seed
    prompts = [p for p in builder.pool if p.split == "heldout"]
    answers = [_answer(builder, rng, p, model, i) for model in DISTANCES for i, p in enumerate(prompts)]
    for model in DISTANCES:
        mine = [r for r in answers if r.model == model]
        engine = {"kind": "transformers", "version": "5.19.0", "flags": {}}
        builder.write(
            f"eval.sample.{model}", f"eval/sample/{model}", Response, mine, prompts=len(prompts), engine=engine,
            finished_share=1.0, distinct_share=1.0,
        )  # fmt: skip
    scores = {role: _scores(rng, role, answers) for role in ("selector", "validator", "gold")}
    for role, rows in scores.items():
        builder.write(f"eval.score.{role}", f"eval/score/{role}", Score, rows)
    ratios = {r.id: rng.gauss(DISTANCES[r.model] ** 2, 0.4) for r in answers if r.model != "base"}
    ratios |= {r.id: 0.0 for r in answers if r.model == "M0"}
    rows = eval_results({p.id: p for p in prompts}, answers, scores, {"start": ratios, "previous": ratios})
    looks = examined(builder.num_steps)[1:]
    places = [Place(name="M0", stage=0)]
    places += [
        Place(name=name, stage=k, step=int(look["step"]), steps=builder.num_steps, drift=look)
        for k, names in ((1, ("M1@1", "M1")), (2, ("M2@1", "M2")))
        for name, look in zip(names, looks, strict=True)
    ]
    kl = {"kl": 1.2345, "standard_error": 0.1111, "nats_per_token": 0.0219, "responses": len(prompts), "tokens": 2400}
    with patch("align.evaluate.win_rates.REFITS", 100):  # enough to have intervals
        wins = win_rates(rows, MODELS, "M0", seed=seed)
    builder.write(
        "eval", "eval/result", EvalResult, rows, table=model_table(rows, MODELS, "M0", seed=seed), prompts=len(prompts),
        baseline="M0", wins=wins, meter=meter(rows, places, seed=seed),
        kl=[{"model": "M1", "to": "M0", **kl}, {"model": "M2@1", "to": "M1", **kl}],
    )  # fmt: skip


def _answer(builder: Builder, rng: random.Random, prompt: Instruction, model: str, i: int) -> Response:
    tokens = max(4, round(rng.gauss(TOKENS[model], 25)))
    text = f"{model} says: " + builder.sentence(prompt.lang, i)
    return Response(
        id=content_id("response", prompt.id, model, i), prompt_id=prompt.id, model=model, sample_index=0,
        token_ids=[5] * (tokens - 1) + [2], text=text, num_tokens=tokens, finish_reason="stop",
    )  # fmt: skip


def _scores(rng: random.Random, role: str, answers: Sequence[Response]) -> list[Score]:
    """A prompt's own level, the checkpoint's gain and some noise; the units differ between reward models."""
    unit = {"selector": 1.0, "validator": 0.1, "gold": 2.0}[role]
    level = {r.prompt_id: rng.gauss(0, 1) for r in answers}
    return [
        Score(
            id=content_id("score", role, r.id), response_id=r.id, prompt_id=r.prompt_id, reward_model=role,
            score=unit * (level[r.prompt_id] + gain(r.model, role) + rng.gauss(0, 0.6)),
        )
        for r in answers
    ]  # fmt: skip


def best_of_n(builder: Builder, k: int, responses: Sequence[Response], scores: Mapping[str, Sequence[Score]]) -> None:
    """Gold of a stage's responses, which likes a high selector score only up to a point, and the curves over n."""
    rng = random.Random(builder.seed + k)
    liked = {s.response_id: s.score for s in scores["selector"]}
    gold = [
        Score(
            id=content_id("score", "gold", r.id), response_id=r.id, prompt_id=r.prompt_id, reward_model="gold",
            score=0.9 * liked[r.id] - 0.45 * liked[r.id] ** 2 + rng.gauss(0, 0.2),
        )
        for r in responses
    ]  # fmt: skip
    builder.write(f"stage{k}.score.gold", f"stage{k}/score/gold", Score, gold)
    by_prompt: dict[str, list[str]] = {}
    for r in responses:
        by_prompt.setdefault(r.prompt_id, []).append(r.id)
    wide = max(map(len, by_prompt.values()))
    grids = {}
    for role, rows in {**scores, "gold": gold}.items():
        value = {s.response_id: s.score for s in rows}
        grids[role] = np.array([[value[i] for i in ids] + [np.nan] * (wide - len(ids)) for ids in by_prompt.values()])
    rows = [
        BestOfN(
            id=content_id("best-of-n", role, p["n"]), proxy=role, n=p["n"], prompts=p["prompts"], kl=p["kl"],
            proxy_reward=p["proxy"]["mean"], gold=p["gold"]["mean"], gain=p["gain"]["mean"], gain_low=p["gain"]["low"],
            gain_high=p["gain"]["high"],
        )
        for role in ("selector", "validator")
        for p in best_of_n_curve(grids[role], grids["gold"], seed=builder.seed)
    ]  # fmt: skip
    builder.write(f"stage{k}.best_of_n", f"stage{k}/best_of_n", BestOfN, rows)


def suites(builder: Builder) -> None:
    """ifeval, math, perplexity, needle and a judged suite."""
    for name, right in RIGHT.items():
        _suite(builder, name, "ifeval" if name == "ifeval" else "exact_answer", _answered(builder, name, right), ())
    rng = random.Random(builder.seed)
    texts = [(f"doc-{i}", rng.gauss(0, 0.2), float(rng.randrange(100, 500))) for i in range(24)]
    nats = [
        _result(m, Item(id=i, turns=()), "nats_per_token", NATS[m] + base + rng.gauss(0, 0.02), weight=w)
        for m in MODELS
        for i, base, w in texts
    ]
    _suite(builder, "ppl", "perplexity", nats, ())
    items = [
        Item(id=f"{lang}-{n}-{length}-{depth}", turns=(), lang=lang, data={"length": length, "depth": depth})
        for lang in ("en", "ko") for length in (256, 1024, 4096, 16384) for depth in (0, 0.25, 0.5, 0.75, 1.0)
        for n in range(3)
    ]  # fmt: skip
    found = [_needle(rng, model, item) for model in MODELS for item in items]
    by_id = {item.id: item for item in items}
    maps = {
        m: {lg: heat_map([(by_id[r.item_id], r) for r in found if r.model == m and r.lang == lg]) for lg in ("en", "ko")}
        for m in MODELS
    }
    _suite(builder, "needle", "needle", found, (), heat_maps=maps)
    _judged(builder, rng)


def _suite(builder: Builder, name: str, kind: str, rows: Sequence[SuiteResult], notes: Sequence[str], **extra: Any) -> None:
    if notes:
        extra["notes"] = list(notes)
    builder.write(
        f"eval.suite.{name}", f"eval/suite/{name}", SuiteResult, rows, kind=kind, items=len({r.item_id for r in rows}),
        models=list(MODELS), metrics=summarize(rows, MODELS, seed=builder.seed), **extra,
    )  # fmt: skip


def _result(
    model: str, item: Item, metric: str, value: float, *, weight: float = 1.0, failure: str = "", turn: int = 1
) -> SuiteResult:
    return SuiteResult(
        id=content_id("suite-result", model, item.id, metric, turn), item_id=item.id, model=model, category=item.category,
        lang=item.lang, metric=metric, key=str(turn), value=math.nan if failure else value, weight=weight, failure=failure,
        raw="",
    )  # fmt: skip


def _answered(builder: Builder, name: str, right: Mapping[str, float]) -> list[SuiteResult]:
    """Each item is as hard for every model, so models differ by less than chance would have it."""
    rng = random.Random(f"{builder.seed} {name}")
    items = [(Item(id=f"{name}-{i}", turns=()), rng.random(), rng.random()) for i in range(80)]
    metrics = ("prompt_strict", "prompt_loose") if name == "ifeval" else ("exact_answer",)
    rows = []
    for model in MODELS:
        answers = [
            SuiteAnswer(
                id=content_id("suite-answer", model, item.id), item_id=item.id, model=model, num_tokens=2, failure="",
                finish_reason="stop", messages=[{"role": "user", "content": "?"}, {"role": "assistant", "content": "42"}],
            )
            for item, _, _ in items
        ]  # fmt: skip
        builder.write(f"eval.suite.{name}.answer.{model}", f"eval/suite/{name}.answer.{model}", SuiteAnswer, answers)
        for n, (item, hard, other) in enumerate(items):
            failure = "too_long" if n < 3 and model == "M2" else ""
            for i, metric in enumerate(metrics):
                value = float(0.8 * hard + 0.2 * other < right[model] + 0.05 * i)
                rows.append(_result(model, item, metric, value, failure=failure))
    return rows


def _needle(rng: random.Random, model: str, item: Item) -> SuiteResult:
    """The longer the text, the less is found; at the beginning and at the end more."""
    far = abs(item.data["depth"] - 0.5)
    lost = math.log2(item.data["length"] / 256) * (0.1 if model != "M2" else 0.2) * (1.2 - far)
    failure = "prompt_too_long" if item.data["length"] == 16384 and model == "base" and rng.random() < 0.3 else ""
    return _result(model, item, "retrieval", float(rng.random() > lost), failure=failure)


def _judged(builder: Builder, rng: random.Random) -> None:
    """Two-turn marks by a judge, some of which cannot be read."""
    rows, notes = [], {}
    for model in MODELS:
        found = []
        for i in range(20):
            hard = random.Random(i).gauss(0, 1)
            for turn in (1, 2):
                mark = float(min(10, max(1, round(MARKS[model] + hard + rng.gauss(0, 0.6) - 0.5 * turn))))
                failure = "no_score" if i == 7 and turn == 2 else ""
                item = Item(id=f"chat-{i}", turns=(), category=("writing", "reasoning")[i % 2], lang="ko")
                mark = math.nan if failure else mark
                found.append(
                    Judgment(
                        item_id=item.id, category=item.category, turn=turn, raw=mark, score=mark, failure=failure,
                        attempts=1, without_reference=i % 2 == 1, penalised=False,
                    )
                )  # fmt: skip
                rows.append(_result(model, item, "score", mark, failure=failure, turn=turn))
        notes[model] = averages(found, seed=builder.seed)
    _suite(builder, "chat", "mt_bench", rows, (HOSTILE_NOTE,), averages=notes)
