"""The loss head forward and backward, ours and the peers': milliseconds, useful TF/s, peak memory over the inputs.

    python -m benchmarks.loss_head [--profile]        on a GPU, about 3 minutes; with peers from wheels, see benchmarks.gpu
    python -m benchmarks.loss_head --smoke            tiny, on the CPU

Question: eight pairs of a DPO micro-batch with cached reference, N scored rows in all, V = 102,400, bfloat16: what does it
cost to get from hidden states to the loss and its gradients? Every arm is given the same completion rows and the same loss.

    train        loss, dX and dW                 6NVd useful operations
    frozen       loss and dX, as under LoRA      4NVd
    reference    log-probabilities alone         2NVd

Hidden states are made so that the targets are probable, since kernels that skip what is improbable would look too good on
random ones: h = a w_t / |w_t|^2 + n with normal noise n orthogonal to the target's row w_t, and a such that p(target) is
about uniform on (0.1, 0.99). The noise gives the other logits a standard deviation of 2.5, so a few hundred of them have a
probability that matters; what p(target) came out as is in the result file.

Before anything is timed an arm has to give the loss, dX and dW of the float64 reference on a small shape (full V, 512 rows)
within GATE. Rounding logits and their gradients to bfloat16, as all arms do, is an error of 1 % by norm and of 6 % in the
worst row of dX; the small shape has few tiles, so what rounding sums of dW over tiles does is not seen there.

N = rows, V = vocabulary, d = hidden size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from align.train.kernels.head import linear_logprobs
from align.train.kernels.plan import CPU_BUDGET_BYTES, CUDA_BUDGET_BYTES, plan_groups
from benchmarks import peers
from benchmarks.gpu import (
    Bar,
    Call,
    Clock,
    Turns,
    Watch,
    clean,
    device_for,
    machine_rates,
    parser,
    peak_bytes,
    reason_of,
    save,
    say_bars,
    seconds_per_call,
    show_profile,
    take_turns,
)
from benchmarks.loss_head_arms import (
    GATE,
    Case,
    Make,
    errors_of,
    exact,
    liger_dpo,
    liger_scaled,
    logprobs_of,
    ours,
    passes,
    peaked_case,
    plain,
    reference_call,
    trl,
)

VOCAB = 102_400
PAIRS = 8
MAIN = (8192, 4096)  # N, d: the shape of the bars
SHAPES = (
    MAIN, (32_768, 4096), (2048, 4096),
    (8192, 2560), (8192, 5120),
    (32_768, 2560), (32_768, 5120), (2048, 2560), (2048, 5120),
)  # fmt: skip
GATE_ROWS, GATE_HIDDEN = 512, 512
TRL_TILES = (16_384, 32_768, 65_536, VOCAB)
LIGER_CHUNKS = (1, 2, 4)  # pairs at a time; 1 is its default
OPERATIONS = {"train": 6, "frozen": 4, "reference": 2}
PLAIN_BYTES = 16  # per logit: bfloat16, float32 log-softmax, two float32 gradients, a bfloat16 one
MOST_BYTES = 60e9


class Bench:
    """The arms that are there, and the rows found so far."""

    def __init__(self, device: torch.device, clock: Clock, smoke: bool) -> None:
        self.device, self.clock, self.smoke = device, clock, smoke
        self.impl = "chunked" if smoke else "triton"
        self.dtype = torch.float32 if smoke else torch.bfloat16
        self.vocab = 512 if smoke else VOCAB
        self.rows: list[dict[str, Any]] = []
        self.found = {
            "trl": peers.trl_head(alone=smoke),  # the package takes seconds to import
            "liger_scaled_ce": peers.liger_scaled_ce(device),
            "liger_dpo": peers.liger_dpo(),
        }
        self.errors: dict[str, dict[str, float]] = {}
        self.refused: dict[str, str] = {}
        self.gate_case, self.expected = self._gate()

    def case(self, rows: int, hidden: int) -> Case:
        return peaked_case(rows, hidden, self.vocab, PAIRS, self.device, self.dtype, seed=rows + hidden)

    def _gate(self) -> tuple[Case, tuple[Tensor, ...]]:
        rows, hidden = (64, 32) if self.smoke else (GATE_ROWS, GATE_HIDDEN)
        case = self.case(rows, hidden)
        return case, exact(case)

    def admit(self, name: str, make: Make, *, no_reference: bool = False) -> bool:
        """Whether an arm gives the reference's loss and gradients; looked at once for each name."""
        if name in self.errors or name in self.refused:
            return name in self.errors
        case, expected = self.gate_case, self.expected
        if no_reference:
            case = replace(case, reference_B2=torch.zeros_like(case.reference_B2))
            expected = exact(case)
        try:
            errors = errors_of(make(case)(), expected)
        except Exception as error:  # a peer may fail in any way; its row says so
            self.refused[name] = f"failed: {reason_of(error)}"
        else:
            if passes(errors):
                self.errors[name] = errors
            else:
                self.refused[name] = f"wrong: differs from the float64 reference by {errors}"
        if name in self.refused:
            print(f"  gate: {name} {self.refused[name]}", flush=True)
        clean(self.device)
        return name in self.errors

    # Arms of a shape

    def ours(self, case: Case) -> dict[str, Make]:
        """The default, and both routes by force: all logits kept at once, all formed twice."""
        height = min(case.rows // 2, self._default_rows(case))
        return {
            "ours": partial(ours, impl=self.impl),
            "ours, all kept": partial(ours, impl=self.impl, rows=case.rows),
            "ours, recomputed": partial(ours, impl=self.impl, rows=height, one_unit=True),
        }

    def _default_rows(self, case: Case) -> int:
        return self._budget // (self.vocab * case.hidden_Nd.dtype.itemsize)

    @property
    def _budget(self) -> int:
        return CUDA_BUDGET_BYTES if self.device.type == "cuda" else CPU_BUDGET_BYTES

    def groups(self, case: Case) -> list[str]:
        """Route and rows of each group that our default takes."""
        bounds = range(0, case.rows + 1, case.rows_of_pair)
        planned = plan_groups(bounds, self.vocab, case.hidden_Nd.dtype.itemsize, self._budget)
        return [f"{group.route} {bounds[group.stop_unit] - bounds[group.start_unit]}" for group in planned]

    def admit_ours(self) -> None:
        """Gate our arms with budgets that cut the small shape as the default cuts the large ones."""
        rows = self.gate_case.rows
        self.admit("ours", partial(ours, impl=self.impl, rows=rows // 3))  # three groups
        self.admit("ours, all kept", partial(ours, impl=self.impl, rows=rows))
        self.admit("ours, recomputed", partial(ours, impl=self.impl, rows=rows // 5, one_unit=True))
        self.admit("ours, chunked", partial(ours, impl="chunked", rows=rows // 3))

    def trl_sweep(self, case: Case) -> tuple[int, dict[str, float]]:
        """The fastest width of TRL's tiles, and what all of them took, ms."""
        function, took = self.found["trl"].load, {}
        for tile in (128, 256, 512) if self.smoke else TRL_TILES:
            call = trl(case, function=function, tile=tile)
            try:
                seconds_per_call(call, 1, self.device)
                took[tile] = seconds_per_call(call, 1 if self.smoke else 3, self.device) * 1e3
            except Exception as error:
                print(f"  trl, tile {tile}: {reason_of(error)}", flush=True)
        best = min(took, key=lambda tile: took[tile], default=peers.TRL_TILE)
        return best, {str(tile): ms for tile, ms in took.items()}

    def arms(self, case: Case, *, every: bool) -> tuple[dict[str, Make], dict[str, Any]]:
        """Admitted arms of a shape, and what to note about them. `every`: also those that are only of interest once."""
        notes: dict[str, Any] = {"our_groups": self.groups(case)}
        made: dict[str, Make] = {}
        mine = self.ours(case)
        made.update({name: make for name, make in mine.items() if name in self.errors and (every or name == "ours")})
        if every and "ours, chunked" in self.errors:
            made["ours, chunked"] = partial(ours, impl="chunked")
        if self.found["trl"].load is not None:
            function = self.found["trl"].load
            shipped = partial(trl, function=function, tile=peers.TRL_TILE, outputs=peers.TRL_DPO_OUTPUTS)
            if self.admit("trl, as its DPO trainer calls it", shipped):
                made["trl, as its DPO trainer calls it"] = shipped
            tile, notes["trl_tiles_ms"] = self.trl_sweep(case)
            best = partial(trl, function=function, tile=tile)
            name = f"trl, log-probs only, tile {tile}"
            if self.admit(name, best):
                made[name] = best
        if self.admit("plain torch", plain):
            needed = PLAIN_BYTES * case.rows * self.vocab
            if needed < MOST_BYTES:
                made["plain torch"] = plain
            else:
                notes["plain torch"] = f"not run: its logits need {needed / 1e9:.0f} GB"
        if self.found["liger_scaled_ce"].load is not None:
            scaled = partial(liger_scaled, function=self.found["liger_scaled_ce"].load)
            if self.admit("liger scaled CE", scaled):
                made["liger scaled CE"] = scaled
        return made, notes

    def liger_dpo_arms(self, case: Case, notes: dict[str, Any]) -> dict[str, Make]:
        """Liger's DPO without torch.compile at its best number of pairs at a time."""
        loss_class, took = self.found["liger_dpo"].load, {}
        for chunk in LIGER_CHUNKS:
            call = liger_dpo(case, loss_class=loss_class, chunk=chunk, compiled=False)
            try:
                seconds_per_call(call, 1, self.device)
                took[chunk] = seconds_per_call(call, 1, self.device) * 1e3
            except Exception as error:
                print(f"  liger DPO, chunk {chunk}: {reason_of(error)}", flush=True)
            del call
        notes["liger_dpo_chunks_ms"] = {str(chunk): ms for chunk, ms in took.items()}
        best = min(took, key=lambda chunk: took[chunk], default=1)
        name = f"liger DPO, not compiled, chunk {best}"
        make = partial(liger_dpo, loss_class=loss_class, chunk=best, compiled=False)
        return {name: make} if self.admit(name, make, no_reference=True) else {}

    # Measuring

    def measure(self, rows: int, hidden: int, *, every: bool, reserve: float) -> None:
        """All arms of a shape: forward and backward."""
        case = self.case(rows, hidden)
        probable = logprobs_of(case).exp().quantile(torch.tensor([0.05, 0.5, 0.95], device=self.device)).tolist()
        made, notes = self.arms(case, every=every)
        calls = {name: make(case) for name, make in made.items()}
        turns = take_turns(calls, self.device, self.clock, reserve=reserve, **self._effort())
        shape = {"what": "train", **self._shape(case), "p_target_5_50_95": [round(p, 3) for p in probable]}
        for name, call in calls.items():
            more = {"notes": notes} if name == "ours" else {}
            self._add(shape, turns, name, call, gate=self.errors[name], **more)
        self._add_absent(shape)

    def measure_liger_dpo(self, rows: int, hidden: int, *, compiled: bool) -> None:
        """Liger's DPO beside ours; as it comes, it is compiled, which takes a while."""
        if self.found["liger_dpo"].load is None:
            return  # its row says that it is missing
        case = self.case(rows, hidden)
        notes: dict[str, Any] = {}
        if compiled:
            make = partial(liger_dpo, loss_class=self.found["liger_dpo"].load, chunk=1, compiled=True)
            made: dict[str, Make] = {"liger DPO": make} if self.admit("liger DPO", make, no_reference=True) else {}
        else:
            made = self.liger_dpo_arms(case, notes)
        shape = {"what": "train", **self._shape(case)}
        calls = {name: make(case) for name, make in made.items()}
        turns = take_turns({"ours": ours(case, impl=self.impl), **calls}, self.device, self.clock, **self._effort())
        for name, call in calls.items():
            self._add(shape, turns, name, call, gate=self.errors[name], beside_ours_ms=turns.median_ms("ours"), notes=notes)
        self.rows.extend({**shape, "arm": n, "status": s} for n, s in self.refused.items() if n.startswith("liger DPO"))

    def measure_rest(self, rows: int, hidden: int, reserve: float) -> None:
        """The frozen head and the reference's forward pass."""
        case = self.case(rows, hidden)
        shape = self._shape(case)
        frozen, arguments = case.frozen(), (case.hidden_Nd, case.weight_Vd, case.targets_N)
        locked: dict[str, Call] = {}
        scored: dict[str, Call] = {}
        if "ours" in self.errors:
            locked["ours"] = ours(frozen, impl=self.impl)
            scored["ours"] = reference_call(case, partial(linear_logprobs, *arguments, impl=self.impl))
        function = self.found["trl"].load
        if function is not None:
            tile, _ = self.trl_sweep(case)
            name = f"trl, log-probs only, tile {tile}"
            if self.admit(name, partial(trl, function=function, tile=tile)):
                locked[name] = trl(frozen, function=function, tile=tile)
                scored[name] = reference_call(case, partial(peers.trl_logprobs, function, *arguments, tile=tile, outputs=()))
        scaled = self.found["liger_scaled_ce"].load
        if scaled is not None and self.admit("liger scaled CE", partial(liger_scaled, function=scaled)):
            locked["liger scaled CE"] = liger_scaled(frozen, function=scaled)
            scored["liger scaled CE"] = reference_call(case, partial(scaled.apply, *arguments))
        for what, calls in (("frozen", locked), ("reference", scored)):
            turns = take_turns(calls, self.device, self.clock, reserve=reserve, **self._effort())
            for name, call in calls.items():
                self._add({"what": what, **shape}, turns, name, call)

    def _shape(self, case: Case) -> dict[str, Any]:
        return {"N": case.rows, "V": self.vocab, "d": case.hidden_Nd.shape[1], "pairs": PAIRS}

    def _effort(self) -> dict[str, Any]:
        if self.smoke:
            return {"seconds": 0.02, "repeats": 2}
        return {"seconds": 2.0 if self.clock.left() > 90 else 1.0, "repeats": 5}

    def _add(self, shape: dict[str, Any], turns: Turns, name: str, call: Call, **more: Any) -> None:
        row = {**shape, **turns.row(name), **more}
        if turns.is_timed(name):
            useful = OPERATIONS[shape["what"]] * shape["N"] * shape["V"] * shape["d"]
            row["useful_tflops"] = useful / row["ms"]["median"] / 1e9
            try:
                peak = peak_bytes(call, self.device)
            except Exception as error:
                row["status"] = f"failed: {reason_of(error)}"
            else:
                row["peak_gb"] = None if peak is None else peak / 1e9
                print(f"  {shape['what']} N={shape['N']} d={shape['d']} {name}: {row['ms']['median']:.2f} ms", flush=True)
        self.rows.append(row)

    def _add_absent(self, shape: dict[str, Any]) -> None:
        """Rows of what is missing or was refused, once for each shape: nothing is left out in silence."""
        for name, peer in self.found.items():
            if peer.load is None:
                self.rows.append({**shape, "arm": name, "status": peer.status})
        self.rows.extend({**shape, "arm": name, "status": status} for name, status in self.refused.items())


def bars_of(rows: Sequence[dict[str, Any]], main: tuple[int, int] = MAIN) -> list[Bar]:
    """Ours against TRL's fastest and against TRL's smallest at the main shape; NaN, and so short, where one is not there."""
    timed = [row for row in rows if (row["what"], row["N"], row["d"], row["status"]) == ("train", *main, "ok")]
    mine = [row for row in timed if row["arm"] == "ours"]
    theirs = [row for row in timed if row["arm"].startswith("trl")]

    def least(found: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]) -> float:
        return min((number for row in found if (number := value(row)) is not None), default=float("nan"))

    def ms(found: Sequence[dict[str, Any]]) -> float:
        return least(found, lambda row: row["ms"]["median"])

    def peak(found: Sequence[dict[str, Any]]) -> float:
        return least(found, lambda row: row["peak_gb"])

    return [
        ("loss_head", ms(theirs) / ms(mine), ">=", 1.35),
        ("loss_head_ms", ms(mine), "<=", 33),
        ("loss_head_memory", peak(mine) - peak(theirs), "<=", 1),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write `results/loss_head.json` after each shape, print the bars; 1 if one is short, 2 without a GPU."""
    options = parser(__doc__, budget=180.0).parse_args(argv)
    device = device_for(options.smoke)
    clock = Clock(3600.0 if options.smoke else options.budget)
    shapes: Sequence[tuple[int, int]] = ((64, 32), (128, 32)) if options.smoke else SHAPES
    main_shape = shapes[0]
    with Watch(device) as watch:
        rates = machine_rates(device, clock, smoke=options.smoke)
        clean(device)
        print(", ".join(f"{name} {value:.0f}" for name, value in rates.items()), flush=True)
        bench = Bench(device, clock, options.smoke)
        found = {name: {"status": peer.status, "version": peer.version} for name, peer in bench.found.items()}
        for name, about in found.items():
            print(f"{name}: {about['status']}, version {about['version']}", flush=True)

        def done() -> None:
            clean(device)
            save("loss_head", bench.rows, options.smoke, rates=rates, gate=GATE, watch=watch.found(), peers=found)

        bench.admit_ours()
        for index, (rows, hidden) in enumerate(shapes):
            # From the second shape on: what its arms may take, on a GPU of 400 TF/s.
            if index and clock.left() < 10 + rows * hidden / 1e7:
                print(f"no time for N={rows} d={hidden}", flush=True)
                continue
            bench.measure(rows, hidden, every=index == 0, reserve=8)
            done()
            if index == 0:
                bench.measure_liger_dpo(rows, hidden, compiled=False)
                done()
            if rows == main_shape[0]:
                bench.measure_rest(rows, hidden, reserve=8)
                done()
        code = say_bars(bars_of(bench.rows, main_shape), options.smoke)
        if options.profile:
            show_profile(ours(bench.case(*main_shape), impl=bench.impl), device, f"our loss head at N, d = {main_shape}")
        if clock.left() > 50 and not options.smoke:  # compiling is slow, so it comes when all else is safe
            bench.measure_liger_dpo(*main_shape, compiled=True)
            done()
        elif bench.found["liger_dpo"].load is not None:
            bench.rows.append({"what": "train", "arm": "liger DPO", "status": "not timed: no time to compile it"})
            done()
    return code


if __name__ == "__main__":
    sys.exit(main())
