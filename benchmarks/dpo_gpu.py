"""DPO end to end on a GPU: optimizer steps of our trainer against TRL's `DPOTrainer`, in pairs per second and MFU.

    python -m benchmarks.dpo_gpu [--layers 30] [--profile]        on a GPU, about 3 minutes; peers: see benchmarks.gpu
    python -m benchmarks.dpo_gpu --smoke                          tiny, on the CPU

A Llama of the sizes of EXAONE 3.5 2.4B with random weights, all of them trained: float32 weights and AdamW under bfloat16
autocast on both sides, reference log-probabilities given to both from a cache, random token ids, prompt and completion
lengths uniform on half to one and a half times their mean. A step is one epoch over one batch, so every step of an arm has
the same pairs. The learning rate is 0: the work is the same, every segment starts from the same weights, and the loss of the
first step has to agree between the arms before times count.

Both arms use one copy of the weights in turn: a segment builds a trainer, runs a warm-up step and timed ones, and takes it
down again with its optimizer. Each arm runs with the fastest of its settings, tried on the main mix: activations recomputed
and large micro-batches, or kept and small ones, as far as memory goes. TRL pads, so its micro-batch is a number of pairs.
TRL's tokenization and its hash of the model for the cache's name are skipped, neither of which is part of a step.

MFU is of the tokens that differ: prompts once, no padding, and no recomputation counted (arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

from align.train.data import PairExample
from align.train.options import TrainOptions, training_arguments
from align.train.trainer import AlignTrainer
from benchmarks import peers
from benchmarks.gpu import (
    Bar,
    Clock,
    Watch,
    clean,
    device_for,
    machine_rates,
    parser,
    reason_of,
    save,
    say_bars,
    show_profile,
    synchronize,
)
from benchmarks.harness import spread
from benchmarks.prefix_sharing import EXAONE_2B, TINY, Sizes, random_llama

BETA = 0.1
MAIN = "rho 2"
LOSS_TOLERANCE = 0.1  # nats; bfloat16 moves a margin of summed log-probabilities by a few hundredths
PEAK_TFLOPS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "A100": 312}  # dense bfloat16, from the data sheets
MOST_BYTES = 70e9
WARM_UP, TIMED = 1, 2  # steps of a segment


@dataclass(frozen=True)
class Mix:
    """Mean lengths of prompts and completions, and pairs of a step."""

    prompt: int
    completion: int
    pairs: int

    @property
    def longest(self) -> int:
        """Most tokens of a prompt with one completion."""
        return int(1.5 * self.prompt) + int(1.5 * self.completion)


MIXES = {MAIN: Mix(1024, 512, 16), "rho 8": Mix(2048, 256, 16), "rho 0.5": Mix(256, 512, 32)}
TINY_MIXES = {MAIN: Mix(16, 8, 4)}


@dataclass(frozen=True)
class Choice:
    """How an arm fills the memory: tokens of a micro-batch (padded ones for TRL), and whether activations are recomputed."""

    tokens: int
    recompute: bool


CHOICES = {
    "ours": (Choice(16_384, True), Choice(4096, False)),
    "trl": (Choice(16_384, True), Choice(40_960, True), Choice(4608, False)),
}
TINY_CHOICES = {"ours": (Choice(128, False),), "trl": (Choice(128, False),)}


def make_pairs(mix: Mix, vocab: int) -> list[PairExample]:
    """Pairs of random ids; chosen and rejected differ from their first token on."""
    generator = torch.Generator().manual_seed(mix.prompt)

    def ids(mean: int, first: int | None = None) -> tuple[int, ...]:
        count = int(torch.randint(max(2, mean // 2), int(1.5 * mean) + 1, (), generator=generator))
        drawn = torch.randint(4, vocab, (count,), generator=generator).tolist()
        return (*([] if first is None else [first]), *drawn[first is not None :])

    return [
        PairExample(
            id=f"{number:04d}",
            prompt_ids=ids(mix.prompt),
            chosen_ids=ids(mix.completion, 2),
            rejected_ids=ids(mix.completion, 3),
        )
        for number in range(mix.pairs)
    ]


def reference_of(pairs: Sequence[PairExample], sizes: Sizes) -> dict[str, tuple[float, float]]:
    """What a model with random weights gives on average, so that no margin is large.

    Its logits are normal with variance s = 0.02^2 d (hidden states have length sqrt(d), weights a deviation of 0.02), so a
    token's log-probability is -(log V + s / 2) on average.
    """
    nats = -(math.log(sizes.vocab) + 0.02**2 * sizes.hidden / 2)
    return {pair.id: (nats * len(pair.chosen_ids), nats * len(pair.rejected_ids)) for pair in pairs}


def model_flops(sizes: Sizes, prompt: int, chosen: int, rejected: int) -> float:
    """Operations of forward and backward of a pair whose prompt is computed once.

    6 per parameter of the body and token; attention 6hL for each ordered pair of tokens that see each other, once for scores
    and once for values (2 forward, 4 backward; a causal half is counted once for the prompt); the head 6Vd for each
    completion token (arXiv 2204.02311, appendix B, with the causal half and the completion-only head taken into account).
    """
    tokens = prompt + chosen + rejected
    seen_twice = prompt**2 + 2 * prompt * (chosen + rejected) + chosen**2 + rejected**2
    attention = 6 * sizes.attention_width * sizes.layers * seen_twice
    return 6.0 * sizes.body * tokens + attention + 6.0 * sizes.head * (chosen + rejected)


def flops_of(sizes: Sizes, pairs: Sequence[PairExample]) -> float:
    return sum(model_flops(sizes, len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)) for p in pairs)


def needed_bytes(sizes: Sizes, tokens: int, recompute: bool) -> float:
    """Estimate of the memory of a step: weights, gradient, two moments, bfloat16 copies; head; activations.

    Activations of a token and layer under autocast over float32 weights: both norms with their float32 inputs and results
    (16d), bfloat16 inputs of five products (10d), queries, keys and values before and after rotation, attention's result
    twice (10h + 8 kv), four vectors of the feed-forward layer (8 ffn). Recomputed: only a layer's input, and one layer.
    """
    parameters = sizes.body + sizes.head
    layer = 26 * sizes.hidden + 10 * sizes.attention_width + 8 * sizes.kv_heads * sizes.head_dim + 8 * sizes.ffn
    activations = sizes.layers * 4 * sizes.hidden + layer if recompute else sizes.layers * layer
    return 18.0 * parameters + 6.0 * sizes.head + 1.5e9 + tokens * activations


def pairs_at_once(choice: Choice, mix: Mix) -> int:
    """TRL's micro-batch: the largest power of two of padded pairs within the choice's tokens."""
    fitting = [2**k for k in range(mix.pairs.bit_length()) if 2**k <= mix.pairs and 2 * mix.longest * 2**k <= choice.tokens]
    return max(fitting, default=1)


def fits(arm: str, choice: Choice, mix: Mix, sizes: Sizes, limit: float) -> bool:
    """Whether a choice stays below a limit of bytes; a pair that is longer than the micro-batch goes alone."""
    longest = 2 * mix.longest if arm == "trl" else mix.longest + int(1.5 * mix.completion)
    return needed_bytes(sizes, max(choice.tokens, longest), choice.recompute) <= limit


class Stopwatch(TrainerCallback):
    """When each optimizer step was over on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        synchronize(self._device)
        self._ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of the steps after the first one, data loading included."""
        return [after - before for before, after in zip(self._ends, self._ends[1:], strict=False)]


@dataclass(frozen=True)
class Job:
    """What every segment of a mix has in common."""

    model: Any
    sizes: Sizes
    mix: Mix
    device: torch.device

    @property
    def pairs(self) -> list[PairExample]:
        return make_pairs(self.mix, self.sizes.vocab)


def our_trainer(job: Job, choice: Choice, steps: int, folder: Path, watch: Stopwatch) -> Any:
    options = TrainOptions(
        epochs=steps, learning_rate=0.0, batch_size=job.mix.pairs, micro_batch_tokens=choice.tokens, warmup_ratio=0.0,
        schedule="constant", gradient_checkpointing=choice.recompute, seed=0,
    )  # fmt: skip
    pairs = job.pairs
    return AlignTrainer(
        job.model, training_arguments(options, len(pairs), folder), examples=pairs, loss="dpo", loss_options={"beta": BETA},
        batch_size=options.batch_size, micro_batch_tokens=options.micro_batch_tokens,
        reference=reference_of(pairs, job.sizes), precision="bf16" if job.device.type == "cuda" else "fp32",
        callbacks=[watch],
    )  # fmt: skip


def small_tokenizer() -> Any:
    """A tokenizer of two words: TRL wants one, for its padding token."""
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def trl_trainer(job: Job, choice: Choice, steps: int, folder: Path, watch: Stopwatch, loaded: Any) -> Any:
    trainer_class, config_class, dataset_class = loaded

    class SameTokens(trainer_class):  # type: ignore[misc, valid-type]
        """Takes token ids and reference log-probabilities as they are."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    on_gpu, at_once, pairs = job.device.type == "cuda", pairs_at_once(choice, job.mix), job.pairs
    reference = reference_of(pairs, job.sizes)
    rows = [
        {
            "prompt_ids": list(pair.prompt_ids),
            "chosen_ids": list(pair.chosen_ids), "rejected_ids": list(pair.rejected_ids),
            "ref_chosen_logps": reference[pair.id][0], "ref_rejected_logps": reference[pair.id][1],
        }
        for pair in pairs
    ]  # fmt: skip
    arguments = config_class(
        output_dir=str(folder), num_train_epochs=steps, per_device_train_batch_size=at_once,
        gradient_accumulation_steps=job.mix.pairs // at_once, learning_rate=0.0, lr_scheduler_type="constant",
        weight_decay=0.0, max_grad_norm=1.0, optim="adamw_torch_fused", beta=BETA, bf16=on_gpu, use_cpu=not on_gpu,
        gradient_checkpointing=choice.recompute,
        gradient_checkpointing_kwargs={"use_reentrant": False} if choice.recompute else None,
        precompute_ref_log_probs=True, max_length=None, logging_steps=10, logging_first_step=True, save_strategy="no",
        report_to="none", disable_tqdm=True, seed=0,
    )  # fmt: skip
    with mock.patch.object(sys.modules[trainer_class.__module__], "hash_module", lambda module: "cached"):
        trainer = SameTokens(
            model=job.model, args=arguments, train_dataset=dataset_class.from_list(rows),
            processing_class=small_tokenizer(), callbacks=[watch],
        )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


@contextlib.contextmanager
def borrowed(model: Any, device: torch.device) -> Iterator[None]:
    """Lend the model to a trainer and give it back as it was: its own forward, plain attention, no gradients."""
    try:
        yield
    finally:
        for name in ("forward", "_original_forward", "_align_forward"):
            vars(model).pop(name, None)
        model.zero_grad(set_to_none=True)
        model.gradient_checkpointing_disable()
        model.set_attn_implementation("sdpa")
        clean(device)


def run_segment(build: Callable[[Path, Stopwatch], Any], job: Job) -> dict[str, Any]:
    """Build a trainer, train, take it down."""
    watch = Stopwatch(job.device)
    if job.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(job.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(Path(folder), watch)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found = {"seconds": watch.seconds(), "first_loss": losses[0]}
        if hasattr(trainer, "setup"):
            found["setup"] = vars(trainer.setup)
            found["computed_tokens"] = trainer.history[0]["computed_tokens"]
    if job.device.type == "cuda":
        found["peak_gb"] = torch.cuda.max_memory_allocated(job.device) / 1e9
    return found


class Bench:
    """The two arms on one model."""

    def __init__(self, model: Any, sizes: Sizes, device: torch.device, clock: Clock, smoke: bool) -> None:
        self.model, self.sizes, self.device, self.clock, self.smoke = model, sizes, device, clock, smoke
        self.choices = TINY_CHOICES if smoke else CHOICES
        self.limit = math.inf
        if device.type == "cuda":
            self.limit = min(MOST_BYTES, 0.88 * torch.cuda.get_device_properties(device).total_memory)
        self.trl = peers.trl_trainer()
        self.order = ["ours", "trl"] if self.trl.load is not None else ["ours"]
        self.best: dict[str, list[Choice]] = {}
        self.tried: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self.peak_tflops = next((rate for key, rate in PEAK_TFLOPS.items() if key in name), None)

    def segment(self, arm: str, choice: Choice, mix: Mix, steps: int) -> dict[str, Any]:
        """What `run_segment` found, or {"failed": why}."""
        job = Job(self.model, self.sizes, mix, self.device)

        def build(folder: Path, watch: Stopwatch) -> Any:
            if arm == "ours":
                return our_trainer(job, choice, steps, folder, watch)
            return trl_trainer(job, choice, steps, folder, watch, self.trl.load)

        with borrowed(self.model, self.device):
            try:
                return run_segment(build, job)
            except Exception as error:  # out of memory, a kernel that does not compile, ...: the row says so
                return {"failed": reason_of(error)}

    def choose(self, mix: Mix) -> None:
        """Try every choice of an arm on one timed step; `best` has those that work, the fastest first."""
        for arm in self.order:
            took: list[tuple[float, int, Choice]] = []
            for number, choice in enumerate(self.choices[arm]):
                row = {"arm": arm, **vars(choice)}
                if not fits(arm, choice, mix, self.sizes, self.limit):
                    row["status"] = "not tried: too large by estimate"
                else:
                    found = self.segment(arm, choice, mix, WARM_UP + 1)
                    row["status"] = f"failed: {found['failed']}" if "failed" in found else "ok"
                    if "failed" not in found:
                        row["step_seconds"], row["peak_gb"] = found["seconds"][-1], found.get("peak_gb")
                        took.append((found["seconds"][-1], number, choice))
                print(f"  {arm} {choice}: {row['status']} {row.get('step_seconds', 0):.2f} s", flush=True)
                self.tried.append(row)
            self.best[arm] = [choice for _, _, choice in sorted(took, key=lambda entry: entry[:2])]

    def measure(self, name: str, mix: Mix, turns: int) -> None:
        """Segments of both arms in turns that change direction; rows are added when all is done."""
        found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in self.order}
        failed: dict[str, str] = {}
        chosen = {
            arm: next((c for c in self.best.get(arm, []) if fits(arm, c, mix, self.sizes, self.limit)), None)
            for arm in self.order
        }
        for turn in range(turns):
            for arm in self.order if turn % 2 == 0 else self.order[::-1]:
                choice = chosen[arm]
                if arm in failed or choice is None:
                    continue
                if found[arm] and self.clock.left() < 8 + 1.5 * (WARM_UP + TIMED) * found[arm][-1]["seconds"][-1]:
                    continue
                one = self.segment(arm, choice, mix, WARM_UP + TIMED)
                if "failed" in one:
                    failed[arm] = one["failed"]
                else:
                    found[arm].append(one)
        for arm in self.order:
            self.rows.append(self._row(name, mix, arm, chosen[arm], found[arm], failed.get(arm)))
        if self.trl.load is None:
            self.rows.append({"mix": name, "arm": "trl", "status": self.trl.status})

    def _row(
        self, name: str, mix: Mix, arm: str, choice: Choice | None, found: list[dict[str, Any]], failure: str | None
    ) -> dict[str, Any]:
        row: dict[str, Any] = {"mix": name, "arm": arm, "mean_P": mix.prompt, "mean_C": mix.completion, "pairs": mix.pairs}
        if not found or choice is None:
            return row | {"status": f"failed: {failure or 'no setting of it ran'}"}
        pairs = make_pairs(mix, self.sizes.vocab)
        seconds = [each for one in found for each in one["seconds"]]
        flops = flops_of(self.sizes, pairs)
        row |= {
            "status": "ok", "segments": len(found), "steps": len(seconds), "step_seconds": spread(seconds),
            "pairs_per_s": spread([mix.pairs / each for each in seconds]), "choice": vars(choice),
            "unique_tokens": sum(len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs),
            "model_tflops_per_s": flops / spread(seconds)["median"] / 1e12,
            **{key: value for key, value in found[-1].items() if key != "seconds"},
        }  # fmt: skip
        if arm == "trl":
            row["pairs_at_once"] = pairs_at_once(choice, mix)
        if self.peak_tflops is not None:
            row |= {"mfu": row["model_tflops_per_s"] / self.peak_tflops, "mfu_of_tflops": self.peak_tflops}
        return row | ({"then_failed": failure} if failure else {})


def bars_of(rows: Sequence[dict[str, Any]]) -> list[Bar]:
    """At the main mix; NaN, and so short, where an arm is missing or their first losses differ."""
    at_main = {row["arm"]: row for row in rows if row["mix"] == MAIN and row["status"] == "ok"}
    mine, theirs = at_main.get("ours"), at_main.get("trl")
    ratio = float("nan")
    if mine and theirs and abs(mine["first_loss"] - theirs["first_loss"]) <= LOSS_TOLERANCE:
        ratio = mine["pairs_per_s"]["median"] / theirs["pairs_per_s"]["median"]
    mfu = mine.get("mfu", float("nan")) if mine else float("nan")
    return [("dpo_gpu", ratio, ">=", 2), ("dpo_gpu_mfu", mfu, ">=", 0.40)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write `results/dpo_gpu.json` after each mix, print the bars; 1 if one is short, 2 without a GPU."""
    made = parser(__doc__, budget=200.0)
    made.add_argument(
        "--layers", type=int, default=EXAONE_2B.layers, help="fewer, where memory or time is short (default 30)"
    )
    options = made.parse_args(argv)
    device = device_for(options.smoke)
    clock = Clock(3600.0 if options.smoke else options.budget)
    sizes = TINY if options.smoke else Sizes(**{**vars(EXAONE_2B), "layers": options.layers})
    mixes = TINY_MIXES if options.smoke else MIXES
    with Watch(device) as watch:
        rates = machine_rates(device, clock, smoke=options.smoke)
        clean(device)
        bench = Bench(random_llama(sizes, torch.float32, device), sizes, device, clock, options.smoke)
        print(f"trl: {bench.trl.status}, version {bench.trl.version}; memory up to {bench.limit / 1e9:.0f} GB", flush=True)
        bench.choose(mixes[MAIN])
        for name, mix in mixes.items():
            if name != MAIN and clock.left() < 30:
                bench.rows.append({"mix": name, "arm": "both", "status": "not measured: out of time"})
            else:
                bench.measure(name, mix, turns=1 if options.smoke else 5 if name == MAIN else 2)
            for row in bench.rows:
                if row["mix"] == name:
                    speed, mfu = row.get("pairs_per_s", {}).get("median", 0), row.get("mfu", float("nan"))
                    layout = row.get("setup", {}).get("layout", "padded")
                    print(
                        f"  {name} {row['arm']} ({layout}): {row['status']}, {speed:.2f} pairs/s, MFU {mfu:.2f}", flush=True
                    )
            save(
                "dpo_gpu", bench.rows, options.smoke, model=vars(sizes), tried=bench.tried, rates=rates, watch=watch.found(),
                peers={"trl": {"status": bench.trl.status, "version": bench.trl.version}},
            )  # fmt: skip
        code = say_bars(bars_of(bench.rows), options.smoke)
        if options.profile and bench.best.get("ours"):
            choice = bench.best["ours"][0]
            show_profile(lambda: bench.segment("ours", choice, mixes[MAIN], 1), device, "segments of one step, ours")
    return code


if __name__ == "__main__":
    sys.exit(main())
