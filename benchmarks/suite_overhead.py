"""What a judged suite costs beyond the engine: MT-Bench conversations and judgements, against bare vLLM, same prompts.

    python -m benchmarks.suite_overhead          about 10 minutes on two cores; needs the test data

SmolLM2-135M-Instruct answers both turns of the questions and then judges every turn; as a judge it is no use, so most
judgements are asked for again, which is work too. Arm `ours` is what the suite's steps do: conversations turn by turn, the
bounded queue, journals on disk, judge prompts rendered and tokenised, texts decoded and read, averages. Arm `bare` is
`vllm.LLM.generate` on the prompts and sampling options that ours sent, with nothing done to the answers, in as many calls as
the protocol needs by itself: first turns, second turns, judgements, and each further try. Both use one engine in one
process, in turns, after a warm-up, each from an empty prefix cache. The share is median(ours) / median(bare) - 1.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from align.builtin_models import build
from align.core.chat import Chat
from align.core.journal import Journal
from align.engines.complete import Job, Writer
from align.engines.protocol import Request, Sampling
from align.evaluate.conversations import Held, hold_conversation
from align.evaluate.judged import MT_BENCH, averages, judge_conversations
from align.evaluate.judged_files import read_mt_bench
from align.evaluate.suite import Item
from benchmarks import harness
from benchmarks.generation_overhead import Watched, bare

ANSWER = Sampling(temperature=0.0, max_tokens=96)
JUDGE = Sampling(temperature=0.0, max_tokens=64)


def waves(held: list[Request], judged: list[Request]) -> list[list[Request]]:
    """The requests in the order of the calls that must follow one another: by turn, then by try."""
    by_wave: dict[tuple[int, int], list[Request]] = {}
    for request in held:
        by_wave.setdefault((0, int(request.id.rpartition("/")[2])), []).append(request)
    for request in judged:
        by_wave.setdefault((1, int(request.id.partition("#")[2] or 0)), []).append(request)
    return [by_wave[wave] for wave in sorted(by_wave)]


def ours(engine: Watched, chat: Chat, items: list[Item], seed: int) -> tuple[float, list[list[Request]], int]:
    """(seconds, the requests of both halves, judgements with a mark) of the suite's whole work."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        answers = Journal(Path(folder) / "answers.jsonl")
        writer = Writer(lambda: (engine, chat), run_seed=seed)
        jobs = (Job(key=item.id, asking=hold_conversation(item, ANSWER), journal=answers) for item in items)
        held: dict[str, Held] = dict(writer.run(jobs, label="answers", total=len(items), unit="questions"))
        sent = [engine.sent]
        verdicts = Journal(Path(folder) / "verdicts.jsonl")
        found = judge_conversations(
            writer, MT_BENCH, [(item, held[item.id]) for item in items], sampling=JUDGE, journal=verdicts
        )  # fmt: skip
        averages(found, seed=seed)
        answers.close()
        verdicts.close()
        return time.perf_counter() - begun, [*sent, engine.sent], sum(not one.failure for one in found)


def main() -> int:
    """Warm up, take turns, print."""
    options = harness.arguments(__doc__ or "", repeats=5).parse_args()
    if (data := harness.test_data()) is None:
        return 2
    items = read_mt_bench(data / "benchmarks/mt_bench.jsonl", "en", "optional")
    folder = build("smollm2-135m-instruct")
    chat, engine = Chat.load(folder), Watched(folder, dtype="bfloat16", max_model_len=2048)
    ours(engine, chat, items[:8], 0)
    rows = []
    requests: list[list[Request]] = []

    def bare_waves() -> float:
        engine.forget()
        return sum(bare(engine, wave) for wave in waves(*requests))

    for repeat in range(options.repeats):
        first = bare_waves() if repeat % 2 else 0.0
        engine.forget()
        seconds, requests, marks = ours(engine, chat, items, 1)  # one seed, so that every turn is the same work
        slow = first or bare_waves()
        prompts = [len(part) for part in requests]
        rows.append({"ours": seconds, "bare": slow, "answers": prompts[0], "judgements": prompts[1], "marks": marks})
        print(f"  ours {seconds:.2f} s, bare {slow:.2f} s, {prompts[0]} answers, {prompts[1]} judgements, {marks} marks")
    engine.close()
    medians = {arm: harness.spread([row[arm] for row in rows])["median"] for arm in ("ours", "bare")}
    harness.write_result("suite_overhead", rows, medians=medians)
    return 0 if harness.bar("suite_overhead", medians["ours"] / medians["bare"] - 1, "<=", 0.05) else 1


if __name__ == "__main__":
    sys.exit(main())
