"""Reward models: encoding, scores that ignore their neighbours, training, resuming. Tiny random models, CPU, fp32."""

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align.core.chat import ChatError
from align.core.errors import StepError, UserError
from align.core.hashing import file_sha256
from align.core.rows import RewardPair
from reward.classifier import Classifier, keep_head_exact, score_head
from reward.encoder import PLAIN_TEMPLATE, Encoder, fit
from reward.golden import golden_scores, read_golden
from reward.train import _fresh_model, micro_batch, newest_checkpoint, train_reward_model, training_order

CHAT = (
    "{% for m in messages %}{{ '<s>' if loop.first else '' }}{{ '<' + m.role + '>' + m.content + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
ASK = [{"role": "user", "content": "why is the sky blue and the grass green"}]
TEXTS = ["yes", "the sky is blue because", "no", "grass " * 40, "blue green sky"]


def save_decoder(
    folder: Path, *, pad: str = "<end>", labels: int = 1, specials: tuple[str, ...] = ("<unk>", "<s>", "<end>")
) -> Path:
    """A Llama classifier over bytes that pads with its end-of-turn token, as many published decoders do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*specials, "<user>", "<assistant>", *letters])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    named = {"unk_token": "<unk>"} if "<unk>" in specials else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="<end>", pad_token=pad,
        additional_special_tokens=["<user>", "<assistant>"] if named else [], **named,
    )  # fmt: skip
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, num_labels=labels, initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_encoder(folder: Path) -> Path:
    """A BERT classifier over words, without a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *sorted(set((" ".join(TEXTS) + " user assistant : " + ASK[0]["content"]).split())),
    ]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=128,
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, num_labels=1, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SAVE: dict[str, Callable[[Path], Path]] = {"llama": save_decoder, "bert": save_encoder}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices spend their time waiting for other threads, all the more on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save(tmp_path_factory.mktemp(name) / "model") for name, save in SAVE.items()}


def load(folder: Path, max_length: int = 128, precision: str = "fp32") -> Classifier:
    return Classifier.load(folder, precision=precision, max_length=max_length)


def test_decoder_sequence_is_the_template_and_ends_with_the_end_of_turn(folders: dict[str, Path]) -> None:
    model = load(folders["llama"])
    ids = model.encode(ASK, "yes")
    assert model.encoder.tokenizer.decode(ids) == f"<s><user>{ASK[0]['content']}<end><assistant>yes<end>"
    assert ids.count(model.encoder.tokenizer.bos_token_id) == 1
    with pytest.raises(ChatError, match="more_than_one_stop_token"):
        model.encode(ASK, "yes<end>no")


def test_encoder_sequence_is_plain_lines_between_cls_and_sep(folders: dict[str, Path]) -> None:
    model = load(folders["bert"])
    tokenizer = model.encoder.tokenizer
    plain = f"user: {ASK[0]['content']}\nassistant: the sky is blue because\n"
    assert model.encode(ASK, "the sky is blue because") == tokenizer.encode(plain, add_special_tokens=False).__class__(
        [tokenizer.cls_token_id, *tokenizer.encode(plain, add_special_tokens=False), tokenizer.sep_token_id]
    )
    assert tokenizer.unk_token_id not in model.encode(ASK, "yes") and tokenizer.chat_template == PLAIN_TEMPLATE


def test_fit_cuts_the_prompt_from_the_left_and_then_the_end_of_the_response() -> None:
    assert fit([1], [2, 3, 4], [5, 6], [9], 7).ids == [1, 2, 3, 4, 5, 6, 9]
    cut = fit([1], [2, 3, 4], [5, 6], [9], 5)
    assert (cut.ids, cut.prompt_cut, cut.response_cut) == ([1, 4, 5, 6, 9], 2, 0)
    for length in range(2, 9):
        made = fit([1], [2, 3, 4], [5, 6], [9], length)
        assert len(made.ids) == min(length, 7) and made.ids[0] == 1 and made.ids[-1] == 9
        assert made.prompt_cut + made.response_cut == 7 - len(made.ids)
        assert made.response_cut == 0 or made.prompt_cut == 3
    assert fit([1], [2, 3, 4], [5, 6, 7], [9], 4).ids == [1, 5, 6, 9]
    assert fit([], [2], [5], [9], 9).ids == [2, 5, 9]


@pytest.mark.parametrize("name", SAVE)
def test_long_dialogues_keep_the_response(folders: dict[str, Path], name: str) -> None:
    model = load(folders[name], max_length=24)
    long_prompt = [{"role": "user", "content": "sky " * 100}]
    whole, cut = (
        load(folders[name]).encode([{"role": "user", "content": "sky"}], "blue sky"),
        model.encoder.encode(long_prompt, "blue sky"),
    )
    assert len(cut.ids) == 24 and cut.prompt_cut > 0 and cut.response_cut == 0 and cut.ids[-6:] == whole[-6:]
    assert model.encoder.encode(ASK, "grass " * 100).response_cut > 0
    assert len(model.encode(long_prompt, "grass " * 100)) == 24


@pytest.mark.parametrize("name", SAVE)
def test_scores_do_not_depend_on_neighbours(folders: dict[str, Path], name: str) -> None:
    model = load(folders[name])
    ids = [model.encode(ASK, text) for text in TEXTS]
    alone = [model.score_batch([row])[0] for row in ids]
    assert max(abs(a - b) for i, a in enumerate(alone) for b in alone[:i]) > 0.05  # the scores do differ
    assert model.score_batch(ids) == pytest.approx(alone, abs=1e-4)
    assert model.score_batch(ids[::-1]) == pytest.approx(alone[::-1], abs=1e-4)
    assert model.score_ids(ids, tokens_per_batch=130) == pytest.approx(alone, abs=1e-4)
    # The last token decides: transformers reads the score there without padding, whatever the batch.
    with torch.inference_mode():
        direct = [float(model.model(input_ids=torch.tensor([row])).logits[0, 0]) for row in ids]
    assert alone == pytest.approx(direct, abs=1e-4)


def test_the_score_is_read_at_the_end_of_turn(folders: dict[str, Path]) -> None:
    """With padding == end-of-turn, transformers would read the token before it and this difference would vanish."""
    model = load(folders["llama"])
    assert model.encoder.pad_id not in model.encoder.chat.stop_ids
    ids = model.encode(ASK, "yes")
    with torch.inference_mode():
        hidden = model.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        at = [float(score_head(model.model)(row)[0]) for row in hidden[-2:]]
    assert abs(at[0] - at[1]) > 0.01
    assert model.score_batch([ids, ids + ids[1:]])[0] == pytest.approx(at[1], abs=1e-4)


@pytest.mark.parametrize("name", SAVE)
def test_bf16_ranks_like_fp32_and_its_head_is_exact(folders: dict[str, Path], name: str) -> None:
    exact, rough = load(folders[name]), load(folders[name], precision="bf16")
    assert rough.model.dtype == torch.bfloat16 and score_head(rough.model).weight.dtype == torch.float32
    ids = [exact.encode(ASK, text) for text in TEXTS]
    first, second = exact.score_ids(ids), rough.score_ids(ids)
    assert second == pytest.approx(first, abs=0.08)
    for i in range(len(ids)):
        for j in range(i):
            if abs(first[i] - first[j]) > 0.16:
                assert (first[i] > first[j]) == (second[i] > second[j])
    assert any(float(torch.tensor(s).bfloat16()) != s for s in second)


def test_folders_that_are_no_reward_model_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    headless = shutil.copytree(folders["llama"], tmp_path / "headless")
    LlamaForCausalLM.from_pretrained(folders["llama"]).save_pretrained(headless)
    cases = [
        (lambda: load(headless), "no trained reward model"),
        (lambda: load(save_decoder(tmp_path / "two", labels=2)), "2 outputs"),
        (lambda: load(tmp_path / "nothing"), "no model that transformers can load"),
        (lambda: load(folders["bert"], max_length=129), "max_length 129"),
        (lambda: load(folders["bert"], precision="int8"), "fp32, bf16"),
        (lambda: load(save_decoder(tmp_path / "nopad", specials=("<s>", "<end>"))), "no token to pad with"),
    ]
    for call, words in cases:
        with pytest.raises(UserError, match=words):
            call()
    pickled = shutil.copytree(folders["llama"], tmp_path / "pickled")
    torch.save({}, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no reward model"):
        load(pickled)


def pairs(count: int = 24) -> list[RewardPair]:
    """Good answers say "blue sky", bad ones "green grass"; every fourth is held out."""
    return [
        RewardPair(
            id=f"x{i}", prompt_id=f"p{i}", prompt=ASK, chosen=[{"role": "assistant", "content": "blue sky " * (1 + i % 3)}],
            rejected=[{"role": "assistant", "content": "green grass " * (1 + i % 4)}],
            subset=("cut", "other")[i % 2], margin=0.0, lang="en", split="train" if i % 4 else "test",
        )
        for i in range(count)
    ]  # fmt: skip


def train(folder: Path, where: Path, **changed: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "epochs": 3, "learning_rate": 3e-3, "batch_size": 3, "max_length": 96, "seed": 5, "precision": "fp32",
        "on_step": None, "checkpoint_dir": where / "checkpoints", "save_steps": 10, **changed,
    }  # fmt: skip
    return train_reward_model(folder, where / "model", settings.pop("pairs", None) or pairs(), **settings)


@pytest.mark.parametrize("name", SAVE)
def test_training_learns_saves_and_reports(folders: dict[str, Path], tmp_path: Path, name: str, capsys: Any) -> None:
    steps: list[tuple[int, int, float]] = []
    metrics = train(folders[name], tmp_path, on_step=lambda *step: steps.append(step))
    assert [s[:2] for s in steps] == [(i, 18) for i in range(1, 19)]
    assert steps[-1][2] < 0.2 < steps[0][2]
    assert metrics["accuracy"] == 1.0 and metrics["mean_margin"] > 1
    assert metrics["accuracy_by_subset"] == {"cut": 1.0} and metrics["accuracy_by_lang"] == {"en": 1.0}
    assert metrics["tie_share"] == 0.0 and metrics["accuracy_interval"] == [round(0.025 ** (1 / 6), 4), 1.0]
    count = load(folders[name]).encoder.tokenizer
    longer = [
        len(count.tokenize(p.chosen[0]["content"])) > len(count.tokenize(p.rejected[0]["content"])) for p in pairs()[::4]
    ]
    assert metrics["longer_is_chosen"] == round(sum(longer) / 6, 4)
    assert (metrics["pairs_train"], metrics["pairs_test"], metrics["pairs_left_out"], metrics["steps"]) == (18, 6, 0, 18)
    assert "'loss'" not in capsys.readouterr().out
    out = tmp_path / "model"
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= {p.name for p in out.iterdir()}

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    golden = read_golden(out)
    assert golden is not None and golden.precision == "fp32"
    known = [score for both in golden.scores for score in both]
    assert known == pytest.approx(
        [s for both in golden_scores(load(out, max_length=96)) for s in both], abs=1e-4, nan_ok=True
    )
    assert sum(map(math.isfinite, known)) > 16
    plain, ours = AutoModelForSequenceClassification.from_pretrained(out), load(out)
    assert plain.config.num_labels == 1 and plain.config.pad_token_id == ours.encoder.pad_id and plain.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(out).pad_token_id == ours.encoder.pad_id
    before, ids = load(folders[name]), [ours.encode(ASK, text) for text in TEXTS]
    assert ids == [before.encode(ASK, text) for text in TEXTS]
    # Stock transformers with the saved config reads the same scores from a padded batch.
    batch = ours.encoder.tokenizer.pad({"input_ids": ids}, return_tensors="pt", padding_side="right")
    with torch.inference_mode():
        logits = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    assert logits.tolist() == pytest.approx(ours.score_ids(ids), abs=1e-4)


class Stop(Exception):
    """Stands for a kill."""


def test_resumed_training_equals_uninterrupted(folders: dict[str, Path], tmp_path: Path) -> None:
    whole = train(folders["llama"], tmp_path / "whole")
    seen: list[int] = []

    def stop(step: int, total: int, loss: float) -> None:
        seen.append(step)
        if step == 14 and seen.count(14) == 1:
            raise Stop

    with pytest.raises(Stop):
        train(folders["llama"], tmp_path / "cut", on_step=stop)
    for step, text in ((9, '{"global_step": 9}'), (13, '{"global_step": 1'), (14, "")):  # an older one and two torn ones
        folder = tmp_path / "cut" / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(text)
    found = newest_checkpoint(tmp_path / "cut" / "checkpoints")
    assert found is not None and found.name == "checkpoint-10"
    resumed = train(folders["llama"], tmp_path / "cut", on_step=stop)
    assert seen == [*range(1, 15), *range(11, 19)]
    assert resumed == whole
    files = [tmp_path / run / "model" / "model.safetensors" for run in ("whole", "cut")]
    assert file_sha256(files[0]) == file_sha256(files[1])


def test_bf16_training_keeps_fp32_weights_and_learns(folders: dict[str, Path], tmp_path: Path) -> None:
    metrics = train(folders["llama"], tmp_path, precision="bf16")
    assert metrics["accuracy"] == 1.0
    from safetensors import safe_open

    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float32}  # noqa: SIM118


def test_head_is_exact_under_autocast(folders: dict[str, Path]) -> None:
    model = load(folders["llama"]).model
    keep_head_exact(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=torch.tensor([[1, 5, 6, 2]])).logits
    assert logits.dtype == torch.float32


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(("centering", "margin"), [(0.01, False), (0.5, True), (0.0, True), (0.0, False)])
def test_the_loss_is_the_formula(folders: dict[str, Path], tmp_path: Path, centering: float, margin: bool) -> None:
    """-log sigmoid(r_w - r_l - m) + c (r_w + r_l)^2, before the first update, on the first batch."""
    known = [replace(p, margin=0.25 * (i % 5)) for i, p in enumerate(pairs()) if p.split == "train"]
    losses: list[float] = []
    train(
        folders["llama"], tmp_path, pairs=known, epochs=1, centering=centering, margin=margin,
        on_step=lambda step, total, loss: losses.append(loss),
    )  # fmt: skip
    encoder = Encoder.load(folders["llama"], max_length=96)
    model = _fresh_model(folders["llama"], encoder.pad_id, seed=5).eval()
    ids = [[encoder.encode(p.prompt, side[0]["content"]).ids for side in (p.chosen, p.rejected)] for p in known]
    first = training_order([max(map(len, both)) for both in ids], batch_size=3, epochs=1, seed=5)[:3]
    expected = []
    for i in first:
        with torch.inference_mode():
            chosen, rejected = (float(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in ids[i])
        difference = chosen - rejected - (known[i].margin if margin else 0.0)
        expected.append(math.log(1 + math.exp(-difference)) + centering * (chosen + rejected) ** 2)
    assert any(known[i].margin for i in first)
    assert losses[0] == pytest.approx(sum(expected) / 3, abs=1e-4)


@pytest.mark.parametrize(
    ("longest", "batch_size", "tokens", "expected"),
    [(100, 8, 1600, 8), (100, 8, 1599, 4), (100, 6, 900, 3), (100, 8, 10, 1)],
)
def test_micro_batches_divide_the_batch(longest: int, batch_size: int, tokens: int, expected: int) -> None:
    assert micro_batch(longest, batch_size, tokens) == expected


def test_micro_batches_train_as_the_whole_batch_does(folders: dict[str, Path], tmp_path: Path) -> None:
    losses: dict[int, list[float]] = {}
    for tokens in (10_000, 1):
        losses[tokens] = []
        train(
            folders["llama"], tmp_path / str(tokens), batch_size=6, learning_rate=1e-3, centering=0.5,
            micro_batch_tokens=tokens, on_step=lambda step, total, loss, kept=losses[tokens]: kept.append(loss),
        )  # fmt: skip
    assert len(losses[1]) == 9  # steps of six pairs, not of one
    assert losses[1] == pytest.approx(losses[10_000], abs=1e-4)


def test_pairs_of_a_short_last_micro_batch_count_like_the_others(folders: dict[str, Path], tmp_path: Path) -> None:
    some = [p for p in pairs() if p.split == "train"][:13]
    encoder = Encoder.load(folders["llama"], max_length=128)
    longest = max(len(encoder.encode(p.prompt, s[-1]["content"]).ids) for p in some for s in (p.chosen, p.rejected))
    weights, losses = [], []
    for tokens in (10**5, 2 * 4 * longest):  # in one piece, and in steps of 4 + 4 and of 4 + 1 pairs
        losses.append([])
        train(
            folders["llama"], tmp_path / str(tokens), pairs=some, batch_size=8, epochs=1, learning_rate=1e-3, centering=0.5,
            micro_batch_tokens=tokens, on_step=lambda step, total, loss, kept=losses[-1]: kept.append(loss),
        )  # fmt: skip
        weights.append(load_file(tmp_path / str(tokens) / "model" / "model.safetensors"))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and len(losses[0]) == 2
    for name, whole in weights[0].items():
        assert torch.allclose(whole, weights[1][name], atol=2e-5), name


def test_options_that_cannot_be_met_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    held_out_only = [replace(p, margin=1.0 if p.split == "test" else 0.0) for p in pairs()]
    with pytest.raises(UserError, match="none of the training pairs has a margin"):
        train(folders["llama"], tmp_path, pairs=held_out_only, margin=True)
    for value in (-0.01, math.inf, math.nan):
        with pytest.raises(UserError, match="centering"):
            train(folders["llama"], tmp_path, centering=value)


def test_pairs_that_teach_nothing_are_left_out_and_none_is_an_error(folders: dict[str, Path], tmp_path: Path) -> None:
    long, held_out = "blue " * 30, pairs()[0]
    extra = [
        replace(pairs()[1], id="a", chosen=answer("x<end>y")),
        replace(pairs()[1], id="b", chosen=answer(long + "sky"), rejected=answer(long + "grass")),
        replace(held_out, id="c", rejected=answer("x<end>y")),
    ]
    only = [p for p in pairs() if p.split == "train"]
    metrics = train(folders["llama"], tmp_path, pairs=[extra[0], *only, *extra[1:]], epochs=1)
    left_out = [("a", "cannot_be_encoded"), ("b", "identical_after_truncation"), ("c", "cannot_be_encoded")]
    assert metrics["left_out"] == left_out and metrics["pairs_left_out"] == 3 and metrics["pairs_train"] == len(only)
    assert metrics["pairs_test"] == 0 and metrics["accuracy"] is None and metrics["accuracy_interval"] is None
    with pytest.raises(UserError, match="no reward pair to train on: 6 pairs, 6 of them held out"):
        train(folders["llama"], tmp_path, pairs=[p for p in pairs() if p.split == "test"])
    with pytest.raises(UserError, match="2 pairs, 0 of them held out, 2 left out"):
        train(folders["llama"], tmp_path, pairs=extra[:2])
    with pytest.raises(StepError, match="not finite"):
        train(folders["llama"], tmp_path / "nan", learning_rate=1e30)
    assert not (tmp_path / "nan" / "model").exists()
