"""The trainer: accumulation, order, resume, the step-0 check, the guard against NaN, and what is saved."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from align.core.errors import StepError, UserError
from align.core.hashing import file_sha256
from align.core.journal import Journal
from align.train.checkpoints import newest_whole
from align.train.data import DialogueExample, PairExample, keep_within
from align.train.examining import check_step0
from align.train.kl import sample_kl
from align.train.models import load_model, weights_digest
from align.train.options import TrainOptions, training_arguments
from align.train.reference import check_joined, reference_logprobs
from align.train.run import train_preference, train_sft
from align.train.trainer import AlignTrainer

VOCAB, STOP = 48, 2
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} </s>{% endfor %}"


def make_model(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, dropout: float = 0.0, tied: bool = True
) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, attention_dropout=dropout, bos_token_id=1, eos_token_id=STOP,
        pad_token_id=STOP, tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype)
    model.generation_config.temperature = 0.7
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": STOP} | {f"w{i}": i for i in range(3, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small spend their time waiting for a second thread, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"))


def make_pairs(count: int, seed: int = 5) -> list[PairExample]:
    draw = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, VOCAB) for _ in range(draw.randint(low, high)))

    return [
        PairExample(id=f"p{i}", prompt_ids=ids(1, 9), chosen_ids=(*ids(1, 14), STOP), rejected_ids=(*ids(1, 14), STOP))
        for i in range(count)
    ]


def make_dialogues(count: int) -> list[DialogueExample]:
    return [DialogueExample(id=p.id, prompt_ids=p.prompt_ids, completion_ids=p.chosen_ids) for p in make_pairs(count)]


def options(**changes) -> TrainOptions:
    plain = {"learning_rate": 1e-3, "batch_size": 4, "micro_batch_tokens": 40, "precision": "fp32", "seed": 7}
    return TrainOptions(**{**plain, **changes})


def prefer(base: Path, folder: Path, pairs: list[PairExample], settings: TrainOptions, **changes) -> dict:
    given = {
        "model": base, "reference": base, "output": folder / "model", "examples": pairs, "loss": "dpo",
        "loss_options": {"beta": 0.1}, "options": settings, "checkpoint_dir": folder / "checkpoints", "journal": None,
        "label": "test",
    }  # fmt: skip
    return train_preference(**{**given, **changes})


class Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters()})


@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize("loss", ["nll", "dpo", "simpo", "orpo"])
def test_micro_batches_do_not_change_gradients(loss: str, layout: str, base: Path, tmp_path: Path) -> None:
    """8x1, about 4x2 and 1x8 agree on every step of two epochs of 13 weighted examples, whose second step has 5."""
    examples = make_dialogues(13) if loss == "nll" else [replace(p, weight=0.2 + i) for i, p in enumerate(make_pairs(13))]
    assert len({len(e.completions[0]) for e in examples}) > 4
    reference = {e.id: (-40.0 - i, -45.0 + i) for i, e in enumerate(examples)} if loss == "dpo" else None
    seen, losses, forwards = {}, {}, {}
    for budget in (10_000, 90, 1):
        gradients = Gradients()
        settings = options(batch_size=8, epochs=2, learning_rate=1e-4, max_grad_norm=0.0, save_steps=99)
        trainer = AlignTrainer(
            load_model(base), training_arguments(settings, 13, tmp_path / f"{budget}"), examples=examples, loss=loss,
            loss_options={}, reference=reference, precision="fp32", callbacks=[gradients], batch_size=8,
            micro_batch_tokens=budget, layout=layout,
        )  # fmt: skip
        forwards[budget] = 0
        real = trainer._loss

        def counted(*args, real=real, budget=budget):
            forwards[budget] += 1
            return real(*args)

        trainer._loss = counted
        trainer.train()
        seen[budget], losses[budget] = gradients.steps, [entry["loss"] for entry in trainer.history]
        assert len(gradients.steps) == len(losses[budget]) == 4
        assert [entry["examples"] for entry in trainer.history] == [8, 5, 8, 5]
    assert forwards[10_000] == 4 < forwards[90] < forwards[1] == 26
    for budget in (90, 1):
        assert losses[budget] == pytest.approx(losses[10_000], abs=2e-6)
        for step in range(4):
            for name, gradient in seen[10_000][step].items():
                assert gradient.abs().max() > 1e-4
                torch.testing.assert_close(seen[budget][step][name], gradient, atol=1e-6, rtol=1e-4, msg=f"{step} {name}")


def test_step_loss_is_the_weighted_mean_of_its_pairs(base: Path, tmp_path: Path) -> None:
    """Against SimPO's formula written out on the model's own logits."""
    pairs = [replace(p, weight=w) for p, w in zip(make_pairs(4), (1.0, 0.5, 0.25, 3.0), strict=True)]
    found = prefer(base, tmp_path, pairs, options(), reference=None, loss="simpo", loss_options={"beta": 2.0})
    model, total = load_model(base).eval(), 0.0
    for pair in pairs:
        means = []
        for ids in pair.completions:
            logits = model(input_ids=torch.tensor([pair.prompt_ids + ids])).logits[0].log_softmax(-1)
            steps = range(len(pair.prompt_ids) - 1, len(pair.prompt_ids) + len(ids) - 1)
            means.append(sum(logits[t, token].item() for t, token in zip(steps, ids, strict=True)) / len(ids))
        total += pair.weight * math.log1p(math.exp(-(2.0 * (means[0] - means[1]) - 1.0)))
    assert found["history"][0]["loss"] == pytest.approx(total / 4.75, rel=1e-5)
    how = {"reference": None, "loss": "simpo", "loss_options": {}}
    part = prefer(base, tmp_path / "part", [replace(pairs[0], weight=0.0), *pairs[1:]], options(), **how)
    assert part["dropped"] == [("p0", "weight 0")]


def test_flip_rates_are_per_pair_label_smoothing(base: Path, tmp_path: Path) -> None:
    pairs = make_pairs(4)
    longer = options(epochs=3)
    rated = prefer(base, tmp_path / "a", [replace(p, flip_rate=0.2) for p in pairs], longer)
    smooth = {"beta": 0.1, "label_smoothing": 0.2}
    smoothed = prefer(base, tmp_path / "b", pairs, longer, loss_options=smooth)
    assert [e["loss"] for e in rated["history"]] == pytest.approx([e["loss"] for e in smoothed["history"]], abs=1e-7)
    assert rated["history"][-1]["loss"] != pytest.approx(prefer(base, tmp_path / "c", pairs, longer)["loss"], abs=1e-5)
    with pytest.raises(ValueError, match="1 of 4 pairs have a flip rate"):
        prefer(base, tmp_path / "d", [replace(pairs[0], flip_rate=0.2), *pairs[1:]], longer)
    with pytest.raises(ValueError, match="simpo does not use flip rates"):
        prefer(base, tmp_path / "d", [replace(p, flip_rate=0.2) for p in pairs], options(), reference=None, loss="simpo",
               loss_options={})  # fmt: skip


def test_step_loss_is_the_token_mean(base: Path, tmp_path: Path) -> None:
    dialogues = make_dialogues(4)
    found = train_sft(
        base,
        tmp_path / "model",
        dialogues,
        options(micro_batch_tokens=1),
        checkpoint_dir=tmp_path / "checkpoints",
        label="sft",
    )
    model, total, tokens = load_model(base).eval(), 0.0, 0
    for d in dialogues:
        logits = model(input_ids=torch.tensor([d.prompt_ids + d.completion_ids])).logits[0].log_softmax(-1)
        for offset, token in enumerate(d.completion_ids):
            total, tokens = total - logits[len(d.prompt_ids) + offset - 1, token].item(), tokens + 1
    assert found["history"][0]["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert found["tokens"] == tokens
    assert found["step0"]["loss"] == pytest.approx(total / tokens, rel=1e-5)


class Killed(Exception):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """End the process's training right after the optimizer's step `step`, before anything of it is saved."""
    original = AlignTrainer.log

    def log(self, logs, start_time=None):
        original(self, logs, start_time)
        if self.state.global_step == step:
            raise Killed

    monkeypatch.setattr(AlignTrainer, "log", log)


@pytest.mark.parametrize("killed_at", [4, 6, 8], ids=["middle of epoch 1", "middle of epoch 2", "last step of epoch 2"])
def test_resume_is_a_continuation(killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout: same order, same losses, same weights, bit for bit. 14 pairs in fours: 4 steps an epoch."""
    base = make_model(tmp_path / "base", dropout=0.3)
    pairs, settings = make_pairs(14), options(epochs=3, save_steps=1)
    whole = prefer(base, tmp_path / "whole", pairs, settings)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, killed_at)
        prefer(base, tmp_path / "cut", pairs, settings)
    kept = newest_whole(tmp_path / "cut" / "checkpoints")
    assert kept is not None and kept.name == f"checkpoint-{killed_at - 1}"
    resumed = prefer(base, tmp_path / "cut", pairs, settings)
    assert [e["step"] for e in resumed["history"]] == list(range(1, 13))
    for key in ("loss", "margin", "grad_norm", "learning_rate", "chosen_logps", "tokens"):
        assert [e[key] for e in resumed["history"]] == [e[key] for e in whole["history"]], key
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "cut")]
    assert file_sha256(weights[0]) == file_sha256(weights[1])
    assert len({e["loss"] for e in whole["history"]}) == 12


@pytest.mark.parametrize("damage", ["no_state", "torn_weights", "no_seal", "torn_optimizer"])
def test_half_written_checkpoint_is_ignored(damage: str, base: Path, tmp_path: Path) -> None:
    pairs, settings = make_pairs(8), options(epochs=2, save_steps=2)
    whole = prefer(base, tmp_path / "run", pairs, settings)
    folder = tmp_path / "run" / "checkpoints"
    assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-4"]
    shutil.copytree(folder / "checkpoint-4", folder / "checkpoint-6")
    torn = folder / "checkpoint-6"
    if damage == "no_state":
        (torn / "trainer_state.json").unlink()
    elif damage == "no_seal":
        (torn / "complete.json").unlink()
    else:
        path = torn / ("model.safetensors" if damage == "torn_weights" else "optimizer.pt")
        path.write_bytes(path.read_bytes()[:-100])
    assert newest_whole(folder) == folder / "checkpoint-4"
    assert not torn.exists()
    again = prefer(base, tmp_path / "run", pairs, settings)
    assert again["history"] == whole["history"]


def test_step0_is_ln2_even_with_dropout(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", dropout=0.5)
    found = prefer(
        base, tmp_path, make_pairs(12), options(micro_batch_tokens=1), reference=shutil.copytree(base, tmp_path / "copy")
    )
    assert found["same_weights"]
    assert found["step0"]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert found["step0"]["largest_margin"] < 1e-5
    assert found["step0"]["tolerance"] == 1e-5
    # With dropout the first training step itself is off: the check must have run without it.
    assert abs(found["history"][0]["margin"]) > 1e-3


def test_another_reference_is_recorded_not_refused(base: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", seed=1)
    before = weights_digest(other)
    found = prefer(base, tmp_path, make_pairs(6), options(), reference=other)
    assert not found["same_weights"]
    assert found["step0"]["largest_margin"] > 0.01
    assert weights_digest(other) == before


@pytest.mark.parametrize("loss", ["dpo", "ipo", "dpo_norm"])
def test_wrong_reference_values_stop_training(loss: str, base: Path, tmp_path: Path, monkeypatch) -> None:
    """Another pair's values under the same weights' name."""
    pairs = make_pairs(4)
    right = reference_logprobs(base, pairs, micro_batch_tokens=40, precision="fp32", journal=None, key="", label="right")
    shifted = dict(zip([p.id for p in pairs], list(right.values())[::-1], strict=True))
    prefer(base, tmp_path, pairs, options(), loss=loss, loss_options={})
    monkeypatch.setattr("align.train.run.reference_logprobs", lambda *args, **kwargs: shifted)
    with pytest.raises(StepError, match="training refuses to start"):
        prefer(base, tmp_path / "wrong", pairs, options(), loss=loss, loss_options={})
    assert not (tmp_path / "wrong" / "model").exists()
    with pytest.raises(StepError, match="refuses to start"):
        check_step0({"loss": math.log(2), "margin": 0.0, "largest_margin": 2e-5}, math.log(2), 1e-5)


def test_reference_is_journaled_and_joined_by_id(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = make_pairs(5)
    how = {"micro_batch_tokens": 40, "precision": "fp32", "key": "k", "label": "reference"}
    first = Journal(tmp_path / "journal.jsonl")
    found = reference_logprobs(base, pairs, journal=first, **how)
    assert set(found) == {p.id for p in pairs}
    alone = reference_logprobs(base, pairs[3:4], journal=None, **how)
    assert alone["p3"] == pytest.approx(found["p3"], abs=1e-4)
    monkeypatch.setattr("align.train.reference.load_model", lambda folder: pytest.fail("the model was opened again"))
    again = reference_logprobs(base, pairs[::-1], journal=Journal(tmp_path / "journal.jsonl"), **how)
    assert again == found
    with pytest.raises(StepError, match="1 pairs have no reference log-probabilities, p9"):
        check_joined(found, [*found, "p9"])
    with pytest.raises(StepError, match="belong to no pair"):
        check_joined(found, [p.id for p in pairs[1:]])
    with pytest.raises(StepError, match="p0 appears 2 times"):
        reference_logprobs(base, [pairs[0], pairs[0]], journal=None, **how)


def test_loss_that_is_not_finite_leaves_its_batch_behind(base: Path, tmp_path: Path, monkeypatch) -> None:
    pairs = make_pairs(8)
    real = AlignTrainer._measure

    def poisoned(self, batch, logps, first, last):
        losses, metrics = real(self, batch, logps, first, last)
        bad = torch.tensor([math.nan if i == "p6" and self.model.training else 1.0 for i in batch.ids[first:last]])
        return losses * bad, metrics

    monkeypatch.setattr(AlignTrainer, "_measure", poisoned)
    with pytest.raises(
        StepError, match=r"the loss is not finite; its examples are in .*not_finite_step_00000[12]\.json"
    ) as error:
        prefer(base, tmp_path, pairs, options(layout="separate"))
    record = json.loads(Path(str(error.value).rsplit(" in ", 1)[1]).read_text())
    assert len(record["batches"]) == 1
    batch = record["batches"][0]
    place = batch["ids"].index("p6")
    whole = list(pairs[6].prompt_ids + pairs[6].chosen_ids)
    assert batch["input_ids"][2 * place][: len(whole)] == whole
    assert batch["completion_tokens"][place] == [len(ids) for ids in pairs[6].completions]
    assert not (tmp_path / "model").exists()


def test_metrics_of_every_step_are_logged_where_few_steps_are(base: Path, tmp_path: Path, monkeypatch) -> None:
    """On a GPU metrics are read every few steps: none is lost, and they are read before a checkpoint and at the end."""
    monkeypatch.setattr("align.train.options.LOG_EVERY_ON_GPU", 3)
    monkeypatch.setattr("align.train.options.LOG_EVERY_ON_CPU", 3)
    often = prefer(base, tmp_path, make_pairs(20), options(save_steps=4))
    assert [entry["step"] for entry in often["history"]] == [1, 3, 4, 5]
    assert sum(entry["examples"] for entry in often["history"]) == 20 and often["steps"] == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_saved_folder_is_complete(dtype: torch.dtype, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", dtype=dtype)
    found = train_sft(
        base, tmp_path / "out", make_dialogues(8), options(epochs=2), checkpoint_dir=tmp_path / "checkpoints", label="sft"
    )
    out = tmp_path / "out"
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.dtype == dtype and json.loads((out / "config.json").read_text())["dtype"] == str(dtype).split(".")[1]
    assert model.config.use_cache, "the trainer's own setting"
    assert model.generation_config.temperature == 0.7
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    assert weights_digest(out) != weights_digest(base)
    assert found["logit_difference"]["reload"] <= 1e-3
    assert (found["logit_difference"]["rounding"] == 0) == (dtype == torch.float32)
    assert not list(tmp_path.glob(".*partial")) and not list(out.glob("*.bin"))
    assert found["history"][-1]["loss"] < found["history"][0]["loss"]
    json.dumps(found, allow_nan=False)


def test_left_out_examples_are_named_with_reasons(base: Path, tmp_path: Path) -> None:
    def pair(name: str, chosen: tuple[int, ...]) -> PairExample:
        return PairExample(id=name, prompt_ids=(3, 4), chosen_ids=chosen, rejected_ids=(5, STOP))

    bad = [
        pair("long", (*[6] * 29, STOP)), pair("empty", ()), pair("open", (6, 7)), pair("inside", (6, STOP, 7, STOP)),
        pair("fits", (*[6] * 27, STOP)),
    ]  # fmt: skip
    expected = [
        ("long", "longer than max_length: 32 > 30 tokens"), ("empty", "empty completion"),
        ("open", "completion does not end with a stop token"), ("inside", "stop token inside the completion"),
    ]  # fmt: skip
    kept, dropped = keep_within(bad, 30, [STOP])
    assert [p.id for p in kept] == ["fits"] and list(map(tuple, dropped)) == expected
    found = prefer(base, tmp_path, [*bad, *make_pairs(3)], options(max_length=30))
    assert found["dropped"] == expected and found["examples"] == 4
    with pytest.raises(UserError, match="none of 4 examples can be trained on"):
        prefer(base, tmp_path, bad[:4], options(max_length=30))


def test_kl_of_a_model_with_itself_is_zero_and_by_hand_otherwise(base: Path, tmp_path: Path) -> None:
    other, dialogues = make_model(tmp_path / "other", seed=1), make_dialogues(5)
    assert sample_kl(base, base, dialogues, precision="fp32", label="kl")["kl"] == 0.0
    found = sample_kl(base, other, dialogues, precision="fp32", label="kl", micro_batch_tokens=40)
    sums = {}
    for name, folder in (("ours", base), ("theirs", other)):
        model = load_model(folder).eval()
        for d in dialogues:
            logps = model(input_ids=torch.tensor([d.prompt_ids + d.completion_ids])).logits[0].log_softmax(-1)
            start = len(d.prompt_ids) - 1
            sums[name, d.id] = sum(logps[start + i, token].item() for i, token in enumerate(d.completion_ids))
    ratios = torch.tensor([sums["ours", d.id] - sums["theirs", d.id] for d in dialogues], dtype=torch.float64)
    assert found["kl"] == pytest.approx(ratios.mean().item(), abs=1e-4)
    assert found["standard_error"] == pytest.approx(ratios.std().item() / math.sqrt(5), abs=1e-4)
    assert found["nats_per_token"] == pytest.approx(ratios.sum().item() / found["tokens"], abs=1e-5)


def test_settings_that_do_not_fit_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="schedule 'cosin' is not cosine, linear"):
        prefer(base, tmp_path, make_pairs(3), options(schedule="cosin"))
    with pytest.raises(UserError, match="choose from auto, shared, separate"):
        prefer(base, tmp_path, make_pairs(3), options(layout="padded"))
    with pytest.raises(ValueError, match="dpo is with a reference"):
        prefer(base, tmp_path, make_pairs(3), options(), reference=None)
    with pytest.raises(ValueError, match="simpo is without a reference"):
        prefer(base, tmp_path, make_pairs(3), options(), loss="simpo", loss_options={})
    with pytest.raises(ValueError, match="simpo does not use label_smoothing"):
        prefer(base, tmp_path, make_pairs(3), options(), reference=None, loss="simpo", loss_options={"label_smoothing": 0.1})


def test_order_changes_with_epoch_and_seed_only(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def orders(name: str, **changes) -> Iterator[tuple[str, ...]]:
        seen: list[str] = []
        real = AlignTrainer.training_step

        def spy(self, model, inputs, *args, **kwargs):
            seen.extend(self.train_dataset[i].id for i in inputs["members"])
            return real(self, model, inputs, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(AlignTrainer, "training_step", spy)
            prefer(
                base,
                tmp_path / name,
                make_pairs(6),
                options(epochs=2, **changes),
                reference=None,
                loss="simpo",
                loss_options={},
            )
        return (tuple(seen[i : i + 6]) for i in (0, 6))

    first, second = orders("a", micro_batch_tokens=40)
    assert sorted(first) == sorted(second) == [f"p{i}" for i in range(6)]
    assert first != second
    assert (first, second) == tuple(orders("b", micro_batch_tokens=1))
    assert (first, second) != tuple(orders("c", seed=8))
