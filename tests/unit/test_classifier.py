"""Scoring with classifiers: layouts agree, neighbours do not matter, unfit models are refused. Tiny models, CPU."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align.core.errors import StepError, UserError
from align.packing.layout import SharedRow, common_prefix, shared_rows
from benchmarks import scoring
from reward import classifier, golden
from reward.classifier import Classifier, score_head
from reward.encoded_groups import Item, encode_groups
from reward.golden import (
    Golden,
    check_fast_path,
    check_golden,
    golden_groups,
    golden_scores,
    read_golden,
    write_golden,
)
from reward.interface import Group, RewardModel
from reward.pooling import PoolingClassifier

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3,
    "num_labels": 1, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2, "max_position_embeddings": 1024,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
TEXTS = ["yes", "the sky is blue because", "no", "grass " * 20, "하늘이 파래요", "yes", ""]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices spend their time waiting for other threads, all the more on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def save(folder: Path, kind: str, tokenizer_of: Path) -> Path:
    """A random classifier over bytes."""
    import transformers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    more: dict[str, Any] = {
        "Llama": GROUPED, "Qwen2": {"num_key_value_heads": 2}, "Bert": {}, "Mistral": {**GROUPED, "sliding_window": 16},
        "Gemma2": {**GROUPED, "sliding_window": 1024, "attn_logit_softcapping": 5.0}, "GPT2": {"n_inner": 48},
    }[kind]  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), **{**SMALL, **more})
    getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_bert: Path) -> dict[str, Path]:
    return {
        kind: save(tmp_path_factory.mktemp(kind) / "model", kind, tiny_bert if kind == "Bert" else tiny_llama)
        for kind in ("Llama", "Qwen2", "GPT2", "Bert", "Mistral", "Gemma2")
    }


@pytest.fixture(scope="module")
def llama(folders: dict[str, Path]) -> Classifier:
    return load(folders["Llama"])


def load(folder: Path, *, max_length: int = 256, precision: str = "fp32", layout: str = "auto") -> Classifier:
    return Classifier.load(folder, precision=precision, max_length=max_length, layout=layout)


def group(number: int, prompt: str, texts: list[str]) -> Group:
    return Group(
        id=f"p{number}", prompt=[{"role": "user", "content": prompt}], responses=tuple(texts),
        response_ids=tuple(f"p{number}r{k}" for k in range(len(texts))),
    )  # fmt: skip


GROUPS = [group(i, "why is the sky blue? " * (1 + i % 3), TEXTS[: 1 + i % len(TEXTS)]) for i in range(9)]


def alone(model: Classifier, asked: Group) -> list[float]:
    """The scores as transformers gives them, one response at a time and nothing padded."""
    found = []
    for text in asked.responses:
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([model.encode(asked.prompt, text)])).logits
        found.append(float(logits[0, 0]))
    return found


def by_place(model: RewardModel, groups: list[Group]) -> list[list[float]]:
    """Scores in the order of the groups; every group must come exactly once."""
    found = list(model.score(groups))
    assert sorted(place for place, _ in found) == list(range(len(groups)))
    return [scores for _, scores in sorted(found)]


def flat(scores: list[list[float]]) -> list[float]:
    return [score for some in scores for score in some]


# Layouts


@pytest.mark.parametrize(
    "kind, layout",
    [("Llama", "shared"), ("Qwen2", "shared"), ("GPT2", "shared"), ("Bert", "separate"), ("Mistral", "separate"),
     ("Gemma2", "separate")],
)  # fmt: skip
def test_scores_are_those_of_plain_transformers_whatever_the_layout(
    folders: dict[str, Path], kind: str, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="reward.classifier"):
        model = load(folders[kind])
    assert model.layout == layout
    assert model.model.config._attn_implementation == ("eager" if kind == "Gemma2" else "sdpa")  # SDPA leaves the cap out
    assert len([r for r in caplog.records if "because" in r.message]) == (layout == "separate")
    expected = [alone(model, asked) for asked in GROUPS]
    assert max(flat(expected)) - min(flat(expected)) > 0.5
    assert flat(by_place(model, GROUPS)) == pytest.approx(flat(expected), abs=1e-4)
    assert flat(by_place(load(folders[kind], layout="separate"), GROUPS)) == pytest.approx(flat(expected), abs=1e-4)
    if layout == "separate":
        with pytest.raises(UserError, match=f"layout: shared is not possible with {kind}ForSequenceClassification"):
            load(folders[kind], layout="shared")


def test_unknown_layout_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="known are auto, shared, separate"):
        load(folders["Llama"], layout="packed")


def test_order_neighbours_and_batch_size_change_nothing(llama: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = by_place(llama, GROUPS)
    assert flat(by_place(llama, GROUPS[::-1])[::-1]) == pytest.approx(flat(expected), abs=1e-4)
    assert flat([by_place(llama, [asked])[0] for asked in GROUPS]) == pytest.approx(flat(expected), abs=1e-4)
    turned = [Group(id=g.id, prompt=g.prompt, response_ids=g.response_ids, responses=g.responses[::-1]) for g in GROUPS]
    assert flat([s[::-1] for s in by_place(llama, turned)]) == pytest.approx(flat(expected), abs=1e-4)
    for budget in (1, 300, 10**6):
        monkeypatch.setattr(classifier, "TOKENS_PER_BATCH", {"cpu": budget})
        assert flat(by_place(llama, GROUPS)) == pytest.approx(flat(expected), abs=1e-4)
        ids = [llama.encode(g.prompt, text) for g in GROUPS for text in g.responses]
        assert llama.score_ids(ids) == pytest.approx(flat(expected), abs=1e-4)


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_groups_within_any_length_score_as_alone(llama: Classifier, data: st.DataObject) -> None:
    """Duplicates, empty answers, cut prompts and cut answers, groups of one."""
    text = st.text(st.sampled_from("ab 가"), max_size=30)
    drawn = data.draw(st.lists(st.tuples(text, st.lists(text, min_size=1, max_size=5)), min_size=1, max_size=4))
    encoder = llama.encoder.__class__(
        llama.encoder.tokenizer, llama.encoder.chat, llama.encoder.pad_id, data.draw(st.integers(8, 90))
    )
    model = Classifier(llama.model, encoder, "shared")
    groups = [group(i, prompt, texts) for i, (prompt, texts) in enumerate(drawn)]
    assert flat(by_place(model, groups)) == pytest.approx(flat([alone(model, g) for g in groups]), abs=1e-4)


def test_bf16_ranks_as_fp32_beyond_its_rounding(folders: dict[str, Path]) -> None:
    for kind in ("Llama", "Bert"):
        exact, rough = (flat(by_place(load(folders[kind], precision=p), GROUPS)) for p in ("fp32", "bf16"))
        noise = 0.04 * (max(exact) - min(exact))
        compared = [(i, j) for i, j in combinations(range(len(exact)), 2) if abs(exact[i] - exact[j]) > noise]
        assert len(compared) > 100
        assert all((exact[i] > exact[j]) == (rough[i] > rough[j]) for i, j in compared)
        assert any(float(torch.tensor(score).bfloat16()) != score for score in rough)  # the head is fp32


@pytest.mark.model
def test_a_real_model_scores_the_same_in_both_layouts(smollm2_path: Path, tmp_path: Path) -> None:
    from reward.encoder import Encoder
    from reward.train import _fresh_model

    encoder = Encoder.load(smollm2_path, max_length=256)
    _fresh_model(smollm2_path, encoder.pad_id, seed=1).save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.layout == "shared"
    groups = golden_groups()
    expected = by_place(load(tmp_path, layout="separate"), groups)
    assert flat(by_place(model, groups)) == pytest.approx(flat(expected), abs=1e-4)
    check_golden(
        load(tmp_path, precision="bf16"), Golden(scores=expected, precision="fp32"), precision="bf16", folder=tmp_path
    )


def test_a_model_that_reads_shared_rows_otherwise_is_computed_separately(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def other_positions(*args: Any, **kwargs: Any) -> SharedRow:
        row = shared_rows(*args, **kwargs)
        return SharedRow(
            input_ids=row.input_ids, position_ids=row.position_ids + torch.arange(row.position_ids.shape[1]) % 3,
            trees=row.trees, last_S=row.last_S,
        )  # fmt: skip

    monkeypatch.setattr(classifier, "shared_rows", other_positions)
    with caplog.at_level(logging.INFO, logger="reward.classifier"):
        assert load(folders["Llama"]).layout == "separate"
    assert "its scores there differ by" in caplog.text
    with pytest.raises(UserError, match="differ by"):
        load(folders["Llama"], layout="shared")


# Batches


_sequence = st.lists(st.integers(3, 4), min_size=1, max_size=5)


@given(st.lists(st.lists(_sequence, min_size=1, max_size=4), min_size=1, max_size=4), st.sampled_from([1, 16]))
@settings(max_examples=100, deadline=None)
def test_shared_rows_hold_groups_of_any_size(groups: list[list[list[int]]], multiple: int) -> None:
    row = shared_rows(groups, multiple=multiple)
    assert row.input_ids.shape == row.position_ids.shape and row.input_ids.numel() % multiple == 0
    last = iter(row.last_S.tolist())
    for tree, sequences in zip(row.trees, groups, strict=True):
        assert tree.prefix == common_prefix(sequences)
        assert tree.stop - tree.start == tree.prefix + sum(len(s) - tree.prefix for s in sequences)
        first = tree.start + tree.prefix
        for sequence, length in zip(sequences, tree.branches, strict=True):
            where = [*range(tree.start, tree.start + tree.prefix), *range(first, first + length)]
            assert row.input_ids[0, where].tolist() == sequence
            assert row.position_ids[0, where].tolist() == list(range(len(sequence)))
            assert next(last) == where[-1]
            first += length
    assert next(last, None) is None


@pytest.mark.parametrize("groups", [[], [[]], [[[1], []]]])
def test_shared_rows_refuse_what_is_empty(groups: list[list[list[int]]]) -> None:
    with pytest.raises(ValueError, match="not empty"):
        shared_rows(groups)


def test_a_group_too_large_for_a_batch_is_parted(llama: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    item = Item(0, tuple([*range(10), 100 + k, k] for k in range(9)), tuple((k,) for k in range(9)))
    parts = item.split(10 + 3 * 2)
    limit = 4 * item.longest  # repeating the prompt more often than every fourth response would cost too much
    assert [len(part.sequences) for part in parts] == [9] and item.shared_length == 28 <= limit
    long = Item(0, tuple([1, *([k] * 10)] for k in range(2, 11)), tuple((k,) for k in range(9)))
    parts = long.split(1)
    assert [part.shared_length for part in parts] == [41, 41, 11] and all(p.shared_length <= 44 for p in parts)
    assert [s for part in parts for s in part.sequences] == list(long.sequences)
    assert [r for part in parts for r in part.responses] == list(long.responses)
    many = group(0, "why", [f"{k} answer {'x' * 20}" for k in range(40)])
    assert len(encode_groups(llama.encoder, [many])[0].split(1)) > 3
    monkeypatch.setattr(classifier, "TOKENS_PER_BATCH", {"cpu": 1})
    rows = count_rows(monkeypatch)
    assert by_place(llama, [many])[0] == pytest.approx(alone(llama, many), abs=1e-4)
    assert len(rows) > 3


def count_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that will hold the tokens of every shared row."""
    tokens: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> SharedRow:
        row = shared_rows(*args, **kwargs)
        tokens.append(row.input_ids.numel())
        return row

    monkeypatch.setattr(classifier, "shared_rows", counted)
    return tokens


def test_a_response_that_cuts_the_prompt_leaves_the_others_theirs(llama: Classifier) -> None:
    asked = group(0, "why " * 30, ["yes", "x" * 130, "no"])
    cut, whole = sorted(encode_groups(llama.encoder, [asked]), key=lambda item: len(item.sequences))
    assert cut.responses == ((1,),) and whole.responses == ((0,), (2,)) and common_prefix(whole.sequences) > 120


def test_equal_responses_and_the_prompt_are_computed_once(llama: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = count_rows(monkeypatch)
    asked = group(0, "why is the sky blue?", ["yes", "no, it is", "yes", "yes"])
    (scores,) = by_place(llama, [asked])
    prompt, one, two = (
        len(llama.encoder.chat.prompt_ids(asked.prompt)),  # type: ignore[union-attr]
        *(len(llama.encode(asked.prompt, text)) for text in ("yes", "no, it is")),
    )
    assert tokens == [prompt + (one - prompt) + (two - prompt)]
    assert scores[0] == scores[2] == scores[3] != scores[1]


def test_what_cannot_be_encoded_is_nan_and_counted(llama: Classifier, caplog: pytest.LogCaptureFixture) -> None:
    bad = "a<|im_end|>b"
    groups = [group(0, "why", ["yes", bad, "no"]), group(1, "why", [bad, bad]), group(2, "why", ["x" * 400, "yes"])]
    groups.append(group(3, "why " * 80, ["yes"]))  # loses the beginning of its prompt only
    scores = by_place(llama, groups)
    assert math.isnan(scores[0][1]) and all(map(math.isnan, scores[1]))
    expected = alone(llama, group(0, "why", ["yes", "no"]))
    assert [scores[0][0], scores[0][2]] == pytest.approx(expected, abs=1e-4) and scores[2][1] == pytest.approx(expected[0])
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert told == [
        "3 of 8 responses cannot be encoded and score NaN: 3 more_than_one_stop_token",
        "1 of 8 responses are longer than 256 tokens; their ends are not scored",
    ]
    assert by_place(llama, []) == [] and by_place(llama, groups[1:2]) == [pytest.approx([math.nan] * 2, nan_ok=True)]


# Golden pairs


class Fixed:
    """A reward model with scores that are given."""

    def __init__(self, scores: list[list[float]]) -> None:
        self.scores = scores

    def score(self, groups: Any) -> Iterator[tuple[int, list[float]]]:
        assert [g.id for g in groups] == [g.id for g in golden_groups()]
        yield from reversed(list(enumerate(self.scores)))


LINE = [[float(2 * i), float(2 * i + 1)] for i in range(16)]  # spread 31


def check(
    scores: list[list[float]], expected: list[list[float]] | None = None, *, now: str = "fp32", then: str = "fp32"
) -> Any:
    known = Golden(scores=expected, precision=then) if expected else None
    return check_golden(Fixed(scores), known, precision=now, folder=Path("some/model"))


def changed(place: int, number: int, score: float) -> list[list[float]]:
    return [[score if (i, k) == (place, number) else s for k, s in enumerate(pair)] for i, pair in enumerate(LINE)]


def test_golden_texts_are_16_different_pairs_in_two_languages() -> None:
    groups = golden_groups()
    texts = [(g.prompt[0]["content"], text) for g in groups for text in g.responses]
    assert len(groups) == 16 and len(set(texts)) == 32 and all(len(g.responses) == 2 for g in groups)
    assert [g.lang for g in groups] == ["en"] * 8 + ["ko"] * 8


def test_golden_scores_are_kept_beside_the_weights(tmp_path: Path, llama: Classifier) -> None:
    assert read_golden(tmp_path) is None
    scores = golden_scores(llama)
    write_golden(tmp_path, scores, precision="fp32")
    known = read_golden(tmp_path)
    assert known == Golden(scores=scores, precision="fp32")
    assert check_golden(llama, known, precision="fp32", folder=tmp_path) == scores


def test_golden_files_of_others_are_not_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_golden(tmp_path, LINE, precision="fp32")
    file = tmp_path / golden.FILE
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({**whole, "texts": "0"}))
    assert read_golden(tmp_path) is None and "other texts" in caplog.text
    for broken in ("{", "[]", json.dumps({**whole, "scores": LINE[:3]}), json.dumps({**whole, "precision": "int8"})):
        file.write_text(broken)
        with pytest.raises(UserError, match=r"golden\.json: not a file of golden scores"):
            read_golden(tmp_path)


def test_scores_that_cannot_be_right_are_refused() -> None:
    assert check(LINE) == LINE
    for bad in (math.nan, math.inf):
        with pytest.raises(UserError, match=r"some/model: 1 of 32 golden texts have no finite score \(golden-04-worse"):
            check(changed(3, 1, bad))
    check(changed(0, 1, 0.0))  # one tie may be chance
    with pytest.raises(UserError, match="scores different texts identically \\(2 of 16 golden pairs tie"):
        check([[1.0, 1.0], [3.0, 3.0], *LINE[2:]])


def test_scores_must_have_the_order_of_training() -> None:
    noise = 0.1 * 31
    assert check(changed(4, 0, 6.5), LINE, now="bf16")  # 8 became 6.5: within rounding
    for now, then in (("bf16", "fp32"), ("fp32", "bf16")):
        with pytest.raises(UserError, match=r"some/model: scores .* in golden(-bf16)?\.json they are"):
            check(changed(4, 0, 8 - 2 * noise), LINE, now=now, then=then)
    with pytest.raises(UserError, match="they are"):
        check([pair[::-1] for pair in LINE], LINE)
    shifted = [[a + 0.2, b + 0.2] for a, b in LINE]  # same order
    assert check(shifted, LINE, now="bf16") and check(shifted, LINE, then="bf16")
    with pytest.raises(UserError, match=r"fp32 differs by at most 0\.031"):
        check(shifted, LINE)
    assert check([[a + 0.02, b + 0.02] for a, b in LINE], LINE)


def test_another_template_or_head_is_noticed(folders: dict[str, Path], llama: Classifier, tmp_path: Path) -> None:
    known = Golden(scores=golden_scores(llama), precision="fp32")
    other = load(folders["Llama"])
    other.encoder.tokenizer.chat_template = other.encoder.tokenizer.chat_template.replace("'\\n' + message", "message")
    with pytest.raises(UserError, match="chat template"):
        check_golden(other, known, precision="fp32", folder=folders["Llama"])
    constant = load(folders["Llama"])
    torch.nn.init.zeros_(score_head(constant.model).weight)
    with pytest.raises(UserError, match="identically"):
        check_golden(constant, None, precision="fp32", folder=folders["Llama"])


def test_texts_that_are_cut_are_left_out(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    whole, short = load(folders["Llama"]), load(folders["Llama"], max_length=100)
    scores = golden_scores(short)
    assert 0 < sum(map(math.isnan, flat(scores))) < 32
    known = Golden(scores=golden_scores(whole), precision="fp32")
    with caplog.at_level(logging.INFO, logger="reward.golden"):
        check_golden(short, known, precision="fp32", folder=folders["Llama"])
    assert "do not fit in max_length" in caplog.text
    check_golden(whole, Golden(scores=scores, precision="fp32"), precision="fp32", folder=folders["Llama"])


def test_the_fast_path_is_checked_against_the_plain_one(
    folders: dict[str, Path], llama: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_fast_path(llama, precision="fp32", folder=folders["Llama"])
    real = llama._score_shared
    monkeypatch.setattr(llama, "_score_shared", lambda groups: [scores[::-1] for scores in real(groups)])
    with pytest.raises(UserError, match="golden-"):
        check_fast_path(llama, precision="fp32", folder=folders["Llama"])


# The benchmark's gate


def test_the_benchmark_sees_swapped_responses_and_compares_with_the_best() -> None:
    oracle = [[0.0, 1.0, 1.05], [0.5, 0.2, 0.9]]
    assert scoring.disagreement(oracle, oracle, "fp32") == (0.0, 0)
    near = [[0.0, 1.06, 1.0], *oracle[1:]]  # closer than bf16 rounding
    assert scoring.disagreement(near, oracle, "bf16") == (pytest.approx(0.06), 0)
    assert scoring.disagreement(near, oracle, "fp32")[1] == 1
    assert scoring.disagreement([oracle[0], [0.5, 0.95, 0.9]], oracle, "bf16") == (pytest.approx(0.75), 2)
    speed = {"ours_bf16": 6.0, "ours_fp32": 3.0, "transformers_bf16": 2.0, "transformers_fp32": 1.5}
    values = {name: value for name, value, _, _ in scoring.bars_of(speed)}
    assert values["scoring"] == 3.0 and values["scoring_fp32"] == 2.0 and math.isnan(values["scoring_vllm"])
    assert scoring.bars_of({**speed, "vllm_bf16": 4.0})[2][1] == 1.5


# vLLM, without vLLM


class FakeVllm:
    """Answers with `width` numbers per prompt, the first of them its length."""

    def __init__(self, width: int) -> None:
        self.width, self.calls = width, [0]

    def encode(self, prompts: list[Any], *, pooling_task: str, use_tqdm: bool) -> list[Any]:
        assert pooling_task == "classify"
        self.calls.append(len(prompts))
        lengths = [float(len(prompt["prompt_token_ids"])) for prompt in prompts]
        return [SimpleNamespace(outputs=SimpleNamespace(data=torch.tensor([n] * self.width))) for n in lengths]


def test_pooled_scores_go_to_their_responses(llama: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward.pooling.WINDOW", 5)
    fake = FakeVllm(1)
    groups = [*GROUPS, group(9, "why", ["a<|im_end|>b"])]
    scores = by_place(PoolingClassifier(fake, llama.encoder, Path("m")), groups)
    assert scores[:-1] == [[float(len(llama.encode(g.prompt, text))) for text in g.responses] for g in GROUPS]
    assert math.isnan(scores[-1][0]) and len(fake.calls) > 3
    assert sum(fake.calls) == sum(len(set(g.responses)) for g in GROUPS)  # equal responses once


def test_a_vector_is_no_score(llama: Classifier) -> None:
    with pytest.raises(UserError, match="answers with 8 numbers where a reward model has one"):
        by_place(PoolingClassifier(FakeVllm(8), llama.encoder, Path("m")), GROUPS)


def test_a_failure_of_vllm_is_told_in_one_line(llama: Classifier) -> None:
    class Broken:
        def encode(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("no kernel\nfor this")

    with pytest.raises(StepError, match=r"m: vLLM fails to score \(no kernel\); use backend transformers"):
        by_place(PoolingClassifier(Broken(), llama.encoder, Path("m")), GROUPS)
