"""What generation costs beyond the engine: one step's work through jobs, against bare vLLM on the same prompts.

    python -m benchmarks.generation_overhead          about 10 minutes on two cores

The work is that of the `instruct` step: three instructions of each knowledge unit of the quickstart's English documents, by
SmolLM2-135M-Instruct. Arm `ours` is everything that a step does: prompts rendered and tokenised, the bounded queue, the
journal on disk, texts decoded, every check. Arm `bare` is `vllm.LLM.generate` on the prompts and sampling options that ours
sent, all at once, with nothing done to the answers. Both use one engine in one process, in turns, after a warm-up. The share
is median(ours) / median(bare) - 1; what the engine waits for us cannot be more. The first turn of ours meets an empty prefix
cache and is slower; the median is not its.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from align.builtin_models import build
from align.core.chat import Chat
from align.core.journal import Journal
from align.core.rows import Knowledge
from align.engines.complete import Job, Writer
from align.engines.protocol import Answered, Request, Sampling
from align.engines.vllm_engine import VllmEngine, _sampling_params
from benchmarks import harness
from data_gen.instruct import Subject, WritingRules, instruction_job
from data_gen.knowledge import central_sentences
from data_gen.prompts import Prompts
from data_gen.tasks import Wish
from data_gen.taxonomy import load_taxonomy

CORPUS = Path("recipes/data/corpus/en.jsonl")
TASKS = ("question", "explain", "list")
SAMPLING = Sampling(temperature=0.7, min_p=0.05, max_tokens=48)


class Watched(VllmEngine):
    """vLLM that keeps the requests it was sent."""

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answered]:
        self.sent: list[Request] = []

        def noted() -> Iterator[Request | None]:
            for request in requests:
                if request is not None:
                    self.sent.append(request)
                yield request

        yield from super().generate(noted())

    def forget(self) -> None:
        """Empty the prefix cache."""
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache")


def subjects() -> list[Subject]:
    """Units of the quickstart's documents: their most central sentences."""
    topic = load_taxonomy(None).leaves[0]
    found = []
    for line in CORPUS.read_text("utf-8").splitlines():
        document = json.loads(line)
        for sentence in central_sentences(document["text"], 2, "en"):
            unit = Knowledge(
                id=f"{document['id']}/{len(found)}", topic_id=topic.id, document_id=document["id"], statement=sentence,
                quote=sentence, lang="en", similarity=1.0, license="", pii="",
            )  # fmt: skip
            found.append(Subject(unit=unit, topic=topic, passage=sentence, split="sft"))
    return found


def ours(engine: Watched, chat: Chat, work: list[Subject], seed: int) -> tuple[float, int]:
    """(seconds, rows kept) of a step's whole work."""
    prompts, rules = Prompts(), WritingRules(writer={"en": "model"}, sampling=SAMPLING)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        journal = Journal(Path(folder) / "calls.jsonl")
        writer = Writer(lambda: (engine, chat), run_seed=seed)
        jobs = (
            Job(
                key=subject.unit.id,
                asking=instruction_job(
                    subject, [Wish(unit=subject.unit, task_type=task, number=0) for task in TASKS], prompts, rules, seed
                ),
                journal=journal,
            )
            for subject in work
        )
        kept = sum(len(made.rows) for _, made in writer.run(jobs, label="ours", total=len(work), unit="units"))
        journal.close()
        return time.perf_counter() - begun, kept


def bare(engine: Watched, requests: list[Request]) -> float:
    """Seconds of `LLM.generate` on the same requests."""
    prompts: list[Any] = [{"prompt_token_ids": list(request.prompt_ids)} for request in requests]
    params = [_sampling_params(request) for request in requests]
    begun = time.perf_counter()
    engine._llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - begun


def main() -> int:
    """Warm up, take turns, print."""
    options = harness.arguments(__doc__ or "", repeats=5).parse_args()
    folder = build("smollm2-135m-instruct")
    chat, engine = Chat.load(folder), Watched(folder, dtype="bfloat16", max_model_len=768)
    work = subjects()
    ours(engine, chat, work[:40], 0)
    rows = []
    for repeat in range(options.repeats):
        if repeat % 2:
            slow = bare(engine, engine.sent)
        seconds, kept = ours(engine, chat, work, 1)  # one seed, so that every turn is the same work
        if repeat % 2 == 0:
            slow = bare(engine, engine.sent)
        rows.append({"ours": seconds, "bare": slow, "prompts": len(engine.sent), "kept": kept})
        print(f"  ours {seconds:.2f} s, bare {slow:.2f} s, {len(engine.sent)} prompts, {kept} kept")
    engine.close()
    medians = {arm: harness.spread([row[arm] for row in rows])["median"] for arm in ("ours", "bare")}
    harness.write_result("generation_overhead", rows, medians=medians)
    return 0 if harness.bar("generation_overhead", medians["ours"] / medians["bare"] - 1, "<=", 0.05) else 1


if __name__ == "__main__":
    sys.exit(main())
