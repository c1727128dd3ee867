"""A made-up finished run, written with the project's own artifact classes; the report, the notebook and tests read it.

No model is involved. Rows are joined by id as in a real run; scores and curves come from a seeded generator. Some texts are
hostile on purpose (mark-up, very long lines, emoji) and must come out as text.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from synthetic_evaluation import MODELS, best_of_n, evaluation, examined, suites

from align.core.artifact import Manifest, StepFolder
from align.core.hashing import content_id
from align.core.rows import (
    Document,
    Instruction,
    Knowledge,
    Preference,
    Reject,
    Response,
    RewardPair,
    Score,
    SftExample,
    Topic,
    TrainedExample,
    to_table,
)
from data_gen.coverage import entropy, histogram
from data_gen.taxonomy import load_taxonomy
from reward.pairs import PairRules, build_pairs

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'text' 🙂"
LONG = "verylongword" * 60
ENGLISH = (
    "Tides rise and fall because the Moon pulls on the ocean",
    "A transistor switches a large current with a small one",
    "Markets clear where supply meets demand",
    "Vaccines teach the immune system to recognise a pathogen",
    "A haiku has three lines and seventeen syllables",
)
KOREAN = (
    "밀물과 썰물은 달이 바닷물을 끌어당겨 생긴다",
    "트랜지스터는 작은 전류로 큰 전류를 다룬다",
    "수요와 공급이 만나는 곳에서 가격이 정해진다",
    "백신은 면역계가 병원체를 알아보도록 가르친다",
)
TASK_TYPES = ("question", "explain", "list", "compare")
OPERATORS = ("constrain", "deepen", "concretize", "reason", "breadth")
SEED = 17


def by_topic(rows: Sequence[Any], rejects: Sequence[Reject]) -> dict[str, int]:
    """What a step was asked for of each topic."""
    return dict(sorted(Counter(row.topic_id for row in (*rows, *rejects)).items()))


class Builder:
    """Writes one run; the order of the methods is the order of the steps."""

    def __init__(self, run_dir: Path, *, documents: int, prompts: int, steps: int, judge: bool) -> None:
        self.run_dir, self.num_documents, self.num_prompts, self.num_steps = run_dir, documents, prompts, steps
        self.judge, self.seed = judge, SEED
        self.random = random.Random(SEED)
        self.marks = random.Random(SEED)  # of its own, so that a run without a judge has the same answers and scores

    def write(
        self,
        name: str,
        folder: str,
        row_type: type,
        rows: Sequence[Any],
        rejects: Sequence[Reject] = (),
        tables: Mapping[str, Any] | None = None,
        **metrics: Any,
    ) -> Manifest:
        """One finished step; `tables` are its other Parquet files."""
        out = StepFolder(
            self.run_dir / folder, step=name, fingerprint=content_id(name), inputs={}, row_type=row_type, seed=SEED
        )
        for path, table in (tables or {}).items():
            out.write_table(path, table)
        out.write_all(list(rows), list(rejects), asked=len(rows) + len(rejects))
        return out.finish(metrics)

    def rejects(self, step: str, topics: Sequence[str] = ("",), **counts: int) -> list[Reject]:
        """That many rejects of each reason, of these topics in turn; the first of each is hostile."""
        return [
            Reject(
                id=content_id(step, reason, i), reason=reason, topic_id=topics[i % len(topics)],
                raw=f"{HOSTILE} {LONG}" if not i else f"{step} text {i}",
            )
            for reason, n in counts.items()
            for i in range(n)
        ]  # fmt: skip

    def sentence(self, lang: str, number: int) -> str:
        """A sentence that no other number has."""
        pool = KOREAN if lang == "ko" else ENGLISH
        tail = f" ({number}번)." if lang == "ko" else f" (case {number})."
        return pool[number % len(pool)] + tail

    def data(self) -> None:
        """corpus, taxonomy, instruct, evolve."""
        langs = ["ko" if i % 3 == 2 else "en" for i in range(self.num_documents)]
        self.documents = [
            Document(
                id=f"doc-{i}", text=" ".join(self.sentence(lang, 10 * i + j) for j in range(8)) + (HOSTILE if i < 2 else ""),
                lang=lang, source="synthetic", license="CC0-1.0", pii="",
            )
            for i, lang in enumerate(langs)
        ]  # fmt: skip
        self.write(
            "corpus", "corpus", Document, self.documents, self.rejects("corpus", too_short=4, duplicate_text=2), cut=1
        )
        tree = load_taxonomy(None)
        leaves = [leaf for leaf in tree.leaves if self.random.random() < 0.6]
        self.units = [
            Knowledge(
                id=f"unit-{i}-{j}", topic_id=self.random.choice(leaves).id, document_id=f"doc-{i}",
                statement=self.sentence(lang, 100 * i + j) + (HOSTILE if not i else ""), lang=lang, quote="",
                similarity=round(self.random.uniform(0.1, 0.6), 4), license="CC0-1.0", pii="",
            )
            for i, lang in enumerate(langs) for j in range(2)
        ]  # fmt: skip
        counts = Counter(unit.topic_id for unit in self.units)
        folder = self.run_dir / "taxonomy"
        out = StepFolder(folder, step="taxonomy", fingerprint="t", inputs={}, row_type=Knowledge, seed=SEED)
        rejects = self.rejects("taxonomy", not_grounded=9, truncated=3, off_language=1)
        out.write_all(self.units, rejects, asked=len(self.units) + len(rejects))
        pq.write_table(to_table(Topic, tree.topic_rows(counts)), folder / "topics.parquet")
        out.finish({"topics": len(tree.leaves), "topics_filled": len(counts), "entropy": entropy(counts.values())})
        splits = ["sft", "sft", "M1", "M2", "heldout"]
        first = [self.first(i, unit, splits[i % 5]) for i, unit in enumerate(self.units)]
        dialogues = [self.follow_up(row) for i, row in enumerate(first) if i % 6 == 0]
        topics = [unit.topic_id for unit in self.units]
        scale = max(1, self.num_documents // 15)
        self.instructions(
            "instruct", [*first, *dialogues],
            self.rejects("instruct", topics, not_a_request=6 * scale, duplicate=5 * scale, follow_up_stands_alone=2),
        )  # fmt: skip
        children = [self.child(row, OPERATORS[i % len(OPERATORS)]) for i, row in enumerate(first) if i % 2]
        grandchildren = [
            self.child(row, OPERATORS[(i + 1) % len(OPERATORS)]) for i, row in enumerate(children) if i % 3 == 0
        ]
        self.pool = [self.judged(row) for row in (*first, *dialogues, *children, *grandchildren)]
        self.instructions(
            "evolve", self.pool, self.rejects("evolve", topics[::2], lost_subject=7 * scale, length_blow_up=4 * scale)
        )

    def instructions(self, name: str, rows: Sequence[Instruction], rejects: Sequence[Reject]) -> None:
        """instruct or evolve, with the metrics of such a step."""
        marks = ("difficulty", "judged_difficulty", "judged_quality")
        generations: dict[str, Any] = {}
        for number in sorted({row.generation for row in rows}):
            of = [row for row in rows if row.generation == number]
            # A judge's 0 is no mark.
            lists = {mark: [v for row in of if (v := getattr(row, mark)) or mark == "difficulty"] for mark in marks}
            generations[str(number)] = {"count": len(of), **{mark: histogram(mark, lists[mark]) for mark in marks}}
        self.write(
            name, name, Instruction, rows, rejects, asked_by_topic=by_topic(rows, rejects), generations=generations,
            **{f"by_{c}": dict(Counter(getattr(r, c) for r in rows)) for c in ("task_type", "operator", "lang", "split")},
            by_turns=dict(Counter(str(sum(m["role"] == "user" for m in row.messages)) for row in rows)),
            with_system_prompt=sum(row.messages[0]["role"] == "system" for row in rows),
            with_persona=sum(bool(row.persona) for row in rows),
        )  # fmt: skip

    def first(self, i: int, unit: Knowledge, split: str) -> Instruction:
        """A generation-0 instruction: some have a system message, a persona, or an input below an empty line."""
        text = self.sentence(unit.lang, 1000 + i) + "?"
        given = f"\n\n{self.sentence(unit.lang, 2000 + i)}\n{HOSTILE}" if i % 8 == 4 else ""
        system = [{"role": "system", "content": f"You answer briefly. {HOSTILE}"}] if i % 5 == 0 else []
        return Instruction(
            id=f"inst-{i}", parent_id=unit.id, topic_id=unit.topic_id, knowledge_id=unit.id,
            messages=[*system, {"role": "user", "content": text + given}], generation=0, operator="generate",
            task_type="summarize" if given else TASK_TYPES[i % len(TASK_TYPES)], persona="a nurse" if i % 4 == 0 else "",
            level=("", "easy", "hard")[i % 3], difficulty=round(self.marks.betavariate(2, 7), 4), judged_difficulty=0.0,
            judged_quality=0.0, lang=unit.lang, answer_lang="ko" if i == 7 else unit.lang, split=split, license="CC0-1.0",
            pii="",
        )  # fmt: skip

    def follow_up(self, row: Instruction) -> Instruction:
        """A dialogue of two user turns that continues an instruction."""
        said = {"role": "assistant", "content": f"An answer to it. {HOSTILE}"}
        asked = {"role": "user", "content": "And why is that so? " + row.id}
        messages = [*row.messages, said, asked]
        return replace(row, id=f"{row.id}-2", parent_id=row.id, messages=messages, operator="follow_up")

    def child(self, row: Instruction, operator: str) -> Instruction:
        """A rewritten instruction of the next generation."""
        text = f"{row.messages[-1]['content']} {HOSTILE} Give one example and explain each step."
        messages = [*row.messages[:-1], {"role": "user", "content": text}]
        return replace(
            row, id=f"{row.id}-{operator}", parent_id=row.id, messages=messages, generation=row.generation + 1,
            operator=operator, difficulty=round(self.marks.betavariate(4 + 2 * row.generation, 5), 4),
        )  # fmt: skip

    def judged(self, row: Instruction) -> Instruction:
        """With a judge's marks where the run has a judge; of some it could not read any."""
        if not self.judge or self.marks.random() < 0.05:
            return row
        hard, good = (min(10, max(1, round(self.marks.gauss(mean, 1.6)))) for mean in (4 + 1.5 * row.generation, 7))
        return replace(row, judged_difficulty=float(hard), judged_quality=float(good))

    def response(self, prompt: Instruction, model: str, number: int) -> Response:
        text = f"{model} says: {self.sentence(prompt.lang, number)} " * self.random.randint(1, 5)
        text = text + HOSTILE if number % 4 == 0 else LONG + text if number % 7 == 3 else text
        ids = list(text.encode())[: 20 + self.random.randrange(90)]
        return Response(
            id=content_id("response", prompt.id, model, number), prompt_id=prompt.id, model=model, sample_index=number,
            token_ids=[5 + b for b in ids] + [2], text=text, num_tokens=len(ids) + 1,
            finish_reason="stop" if self.random.random() < 0.85 else "length",
        )  # fmt: skip

    def supervised(self) -> None:
        """respond, sft.data, sft, reward.data, reward.selector, reward.validator."""
        asked = [row for row in self.pool if row.split == "sft"]
        answers = [self.response(row, "base", i) for i, row in enumerate(asked)]
        self.write("respond", "respond", Response, answers, self.rejects("respond", engine_error=1))
        rows = [
            SftExample(
                id=f"sft-{i}", parent_id=row.id, topic_id=row.topic_id, lang=row.lang, generation=row.generation,
                messages=[*row.messages, {"role": "assistant", "content": answer.text}], task_type=row.task_type,
                license="CC0-1.0", pii="",
            )
            for i, (row, answer) in enumerate(zip(asked, answers, strict=True))
        ]  # fmt: skip
        by_language = dict(Counter(row.lang for row in rows))
        dropped = self.rejects("sft.data", [row.topic_id for row in rows[1:]], unfinished=5, repetitive=3)
        self.write(
            "sft.data", "sft/data", SftExample, rows, dropped, by_language=by_language,
            asked_by_topic=by_topic(rows, dropped),
        )  # fmt: skip
        used = [TrainedExample(id=row.id, num_tokens=80) for row in rows]
        history = [{"step": i + 1, "loss": 2.4 * math.exp(-i / 25) + 0.4, "tokens": 640.0} for i in range(self.num_steps)]
        self.write(
            "sft", "sft/train", TrainedExample, used, self.rejects("sft", too_long=1), **self.trained(history, {"loss": 2.9})
        )
        kinds = ("cut", "repeat", "shuffle", "other", "language")
        pairs = [
            RewardPair(
                id=f"pair-{i}", prompt_id=row.id, prompt=row.messages[:-1], chosen=row.messages[-1:],
                rejected=[{"role": "assistant", "content": "worse"}], subset=kinds[i % 5], margin=0.0, lang=row.lang,
                split="test" if i % 7 == 0 else "train",
            )
            for i, row in enumerate(rows)
        ]  # fmt: skip
        self.write(
            "reward.data", "reward/data", RewardPair, pairs, self.rejects("reward.data", cannot_degrade=2),
            by_split=dict(Counter(p.split for p in pairs)), by_subset=dict(Counter(p.subset for p in pairs)),
        )  # fmt: skip
        train = [TrainedExample(id=p.id, num_tokens=0) for p in pairs if p.split == "train"]
        for role, accuracy in (("selector", 0.9167), ("validator", 0.7833)):
            self.write(
                f"reward.{role}", f"reward/{role}", TrainedExample, train, pairs_train=len(train), pairs_left_out=0,
                steps=40, final_loss=0.2911, pairs_test=len(pairs) - len(train), accuracy=accuracy, longer_is_chosen=0.5417,
                accuracy_by_subset={k: round(accuracy - 0.05 * i, 4) for i, k in enumerate(kinds)},
                accuracy_by_lang={"en": accuracy, "ko": accuracy - 0.1}, mean_margin=1.8731,
            )  # fmt: skip

    def trained(self, history: list[dict[str, Any]], step0: Mapping[str, float], **more: Any) -> dict[str, Any]:
        return {
            "loss": history[-1]["loss"], "step0": dict(step0), "steps": len(history), "tokens": 640 * len(history),
            "examples": 40, "precision": "fp32", "logit_difference": 0.0, "history": history, **more,
        }  # fmt: skip

    def sampled(self, part: str, prompts: Sequence[Instruction], models: Sequence[str], n: int) -> list[Response]:
        """sample and score of a stage."""
        rows: list[Response] = []
        for model in models:
            mine = [self.response(p, model, 100 * i + j) for i, p in enumerate(prompts) for j in range(n)]
            finished = round(sum(r.finish_reason == "stop" for r in mine) / len(mine), 4)
            self.write(
                f"{part}.sample.{model}", f"{part}/sample/{model}", Response, mine, prompts=len(prompts),
                finished_share=finished, distinct_share=1.0,
                engine={"kind": "transformers", "version": "5.19.0", "flags": {}},
            )  # fmt: skip
            rows += mine
        self.scores = {}
        quality = {r.id: self.random.gauss(0.4 * MODELS.index(r.model), 1.0) for r in rows}
        for role, noise in (("selector", 0.4), ("validator", 0.8)):
            self.scores[role] = [
                Score(
                    id=content_id("score", role, r.id), response_id=r.id, prompt_id=r.prompt_id, reward_model=role,
                    score=quality[r.id] + self.random.gauss(0, noise),
                )
                for r in rows
            ]  # fmt: skip
            self.write(f"{part}.score.{role}", f"{part}/score/{role}", Score, self.scores[role])
        return rows

    def stage(self, k: int, loss: str, models: Sequence[str]) -> None:
        """One stage up to its trained model."""
        prompts = (self.pool * 3)[k :: max(1, len(self.pool) // self.num_prompts)][: self.num_prompts]
        prompts = list({p.id: p for p in prompts}.values())
        responses = self.sampled(f"stage{k}", prompts, models, 4)
        rules = PairRules(agreement="gap", threshold=0.4, min_margin=0.6)
        tables = [to_table(Response, responses), *(to_table(Score, self.scores[role]) for role in ("selector", "validator"))]
        built = build_pairs(prompts, *tables, rules, SEED)
        rows, rejects = built.pairs, built.rejects
        n = len(rows)
        self.write(
            f"stage{k}.pair", f"stage{k}/pair", Preference, rows, rejects,
            {"agreement/part-00000.parquet": built.agreements},
            asked_by_topic=dict(Counter(prompt.topic_id for prompt in prompts)), kept_share=round(n / (n + len(rejects)), 4),
            mean_margin=round(sum(r.selector_chosen - r.selector_rejected for r in rows) / n, 4),
            mean_agreement=round(sum(r.agreement for r in rows) / n, 4),
            chosen_longer_share=round(sum(len(r.chosen_token_ids) > len(r.rejected_token_ids) for r in rows) / n, 4),
            mean_chosen_tokens=61.5, mean_rejected_tokens=58.2,
            chosen_models=dict(Counter(r.chosen_model for r in rows)),
            rejected_models=dict(Counter(r.rejected_model for r in rows)),
        )  # fmt: skip
        best_of_n(self, k, responses, self.scores)
        history = [self.pair_step(i, loss) for i in range(self.num_steps)]
        step0 = {"loss": 0.693147, "margin": 0.0, "largest_margin": 0.0} if loss == "dpo" else {"loss": 1.61, "margin": -0.1}
        used = [TrainedExample(id=r.id, num_tokens=150) for r in rows]
        more = {"same_weights": loss == "dpo", "examined": examined(len(history))}
        metrics = self.trained(history, {"largest_margin": 0.9, **step0}, **more)
        self.write(f"stage{k}.train", f"stage{k}/train", TrainedExample, used, **metrics)

    def pair_step(self, i: int, loss: str) -> dict[str, float]:
        margin = i / self.num_steps * 1.5 + self.random.gauss(0, 0.1)
        return {
            "step": i + 1, "loss": math.log1p(math.exp(-margin)) if loss == "dpo" else 1.6 - margin / 2, "margin": margin,
            "chosen_reward": margin / 3, "rejected_reward": -2 * margin / 3, "accuracy": min(1.0, 0.5 + margin / 4),
            "chosen_logps": -80 - 4 * margin, "rejected_logps": -85 - 20 * margin, "tokens": 900.0,
            "learning_rate": 1e-5, "grad_norm": 3.0, "epoch": i / 30,
        }  # fmt: skip


RECIPE = {
    "name": "synthetic",
    "reward_models": {
        "selector": {"train": {"epochs": 1}},
        "validator": {"train": {"epochs": 1}},
        "gold": {"kind": "rules"},
    },
    "stages": [
        {
            "name": "M1",
            "sample": {"models": ["M0", "base"]},
            "pair": {"agreement": "gap", "threshold": 0.4},
            "train": {"loss": "dpo", "beta": 0.1, "learning_rate": 5e-7, "epochs": 1, "batch_size": 8},
        },
        {
            "name": "M2",
            "sample": {"models": ["M1", "M0"]},
            "pair": {"agreement": "gap", "threshold": 0.4},
            "train": {"loss": "simpo", "beta": 2.5, "gamma_absolute": 1.25, "learning_rate": 5e-7, "epochs": 1},
        },
    ],
    "evaluation": {"models": list(MODELS), "suites": {n: {} for n in ("ifeval", "math", "ppl", "needle", "chat")}},
}


def write_recipe(run_dir: Path) -> None:
    """The resolved recipe beside the artifacts."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))


def build_run(
    run_dir: Path, *, documents: int = 15, prompts: int = 16, steps: int = 12, until: str = "evaluation", judge: bool = True
) -> Path:
    """Write a run folder up to and with one part: data, supervised, stage1, stage2 or evaluation."""
    builder = Builder(run_dir, documents=documents, prompts=prompts, steps=steps, judge=judge)
    write_recipe(run_dir)
    parts = {
        "data": builder.data,
        "supervised": builder.supervised,
        "stage1": lambda: builder.stage(1, "dpo", ("M0", "base")),
        "stage2": lambda: builder.stage(2, "simpo", ("M1", "M0")),
        "evaluation": lambda: (evaluation(builder), suites(builder)),
    }
    for name, part in parts.items():
        part()
        if name == until:
            break
    return run_dir


def manifest(run_dir: Path, folder: str) -> dict[str, Any]:
    """A step's manifest as JSON."""
    return dict(json.loads((run_dir / folder / "manifest.json").read_text()))
