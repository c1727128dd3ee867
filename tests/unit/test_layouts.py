"""Shared, packed and separate rows give the same log-probabilities, losses and gradients, and unfit models are refused."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)  # fmt: skip

from align.core.errors import UserError
from align.packing.attention import FLEX_ATTENTION, FLEX_BLOCK, block_mask, sees, tree_attention, why_not_shared
from align.packing.bins import plan_bins
from align.packing.layout import Item, common_prefix, separate_layout, shared_layout, shared_length
from align.train.kernels.head import choose_impl
from align.train.losses import LOSSES, PairLogprobs
from align.train.scoring import Scoring, Setup, prepare, restore

VOCAB = 61
SMALL = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class ExactNorm(torch.nn.Module):
    """RMSNorm in its input's dtype: transformers' own rounds to float32, which would hide errors of 1e-7 in float64."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps)


def llama(dtype: torch.dtype = torch.float64, **changes) -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(**{**SMALL, "tie_word_embeddings": True, **changes})
    model = LlamaForCausalLM(config).to(dtype)
    for layer in model.model.layers:
        layer.input_layernorm, layer.post_attention_layernorm = map(
            ExactNorm, (layer.input_layernorm, layer.post_attention_layernorm)
        )
    model.model.norm = ExactNorm(model.model.norm)
    return model


def make_items(count: int, seed: int = 0, completions: int = 2) -> list[Item]:
    draw = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(3, VOCAB) for _ in range(draw.randint(low, high))]

    items: list[Item] = [(ids(1, 12), [[*ids(0, 9), 2] for _ in range(completions)]) for _ in range(count)]
    if completions == 2:
        start = ids(3, 3)
        items.append((ids(2, 5), [[*start, *ids(1, 4), 2], [*start, 2]]))  # shared leading completion tokens
        items.append((ids(4, 4), [[7, 8, 2], [7, 8, 2]]))  # identical completions
        items.append((ids(2, 2), [[9, *ids(60, 60), 2], [5, 2]]))  # one ten times longer
    return items


def pair_loss(name: str, logps_EK: torch.Tensor, tokens_EK: torch.Tensor) -> torch.Tensor:
    loss = LOSSES[name]
    if not loss.paired:
        return loss.bind({})(logps_EK[:, 0], tokens_EK[:, 0])[0].sum()
    references = {"reference_chosen": logps_EK[:, 0].detach() - 1.5, "reference_rejected": logps_EK[:, 1].detach() + 0.5}
    pairs = PairLogprobs(
        chosen=logps_EK[:, 0], rejected=logps_EK[:, 1], chosen_tokens=tokens_EK[:, 0], rejected_tokens=tokens_EK[:, 1],
        **(references if loss.needs_reference else {}),
    )  # fmt: skip
    return loss.bind({})(pairs)[0].sum()


def train_once(model, layout: str, head: str, items: Sequence[Item], loss: str, bins: list[list[int]]):
    """(logps of all sequences, loss, gradients) after one step over `bins`."""
    setup = prepare(model, layout=layout, head=head, longest=100)
    assert (setup.layout, setup.head) == (layout, head)
    model.zero_grad()
    total, found = 0.0, torch.zeros(len(items), len(items[0][1]), dtype=torch.float64)
    for members in bins:
        batch = setup.build([items[i] for i in members])

        def loss_of(logps, first, last, batch=batch):
            return pair_loss(loss, batch.sums(logps, first, last), batch.tokens_EK[first:last])

        value, logps_N = model(scoring=Scoring(batch=batch, loss_of=loss_of))
        value.backward()
        total += value.item()
        found[members] = batch.sums(logps_N, 0, len(members)).double()
    return found, total, {name: p.grad.clone() for name, p in model.named_parameters()}


LAYOUTS = [("shared", "chunked"), ("shared", "plain"), ("separate", "chunked"), ("shared", "reference")]


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("layout, head", LAYOUTS)
def test_layouts_and_heads_agree_in_float64(layout: str, head: str, loss: str) -> None:
    """Log-probs, loss and every parameter's gradient, packed together and alone, against plain separate rows."""
    items = make_items(5, completions=1 if loss == "nll" else 2)
    model = llama()
    everything = [list(range(len(items)))]
    plain = train_once(model, "separate", "plain", items, loss, everything)
    # float64 sums in another order: 1e-10 is a thousand times their rounding.
    for bins in (everything, [[i] for i in range(len(items))], [[2, 0], [1, *range(3, len(items))]]):
        logps, total, gradients = train_once(model, layout, head, items, loss, bins)
        torch.testing.assert_close(logps, plain[0], atol=1e-10, rtol=1e-10)
        assert total == pytest.approx(plain[1], abs=1e-9)
        for name, gradient in plain[2].items():
            assert gradient.abs().max() > 1e-6
            torch.testing.assert_close(gradients[name], gradient, atol=1e-9, rtol=1e-9, msg=name)


def test_layouts_agree_in_float32_with_checkpointing() -> None:
    items, model = make_items(4), llama(torch.float32)
    bins = [list(range(len(items)))]
    plain = train_once(model, "separate", "plain", items, "dpo", bins)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    logps, _, gradients = train_once(model, "shared", "chunked", items, "dpo", bins)
    torch.testing.assert_close(logps, plain[0], atol=2e-4, rtol=1e-5)  # sums of up to 62 tokens of ~4 nats in float32
    for name, gradient in plain[2].items():
        torch.testing.assert_close(gradients[name], gradient, atol=2e-5, rtol=2e-4, msg=name)


def make(kind: str):
    torch.manual_seed(3)
    small = {k: v for k, v in SMALL.items() if k != "initializer_range"}
    if kind == "gpt2":  # learned absolute positions
        return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2))
    if kind == "gemma2":  # soft-capped logits and attention scores, sliding windows on every other layer
        return Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=3.0, sliding_window=128))
    if kind == "granite":
        return GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0))
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**SMALL))
    if kind == "mistral_short_window":
        return MistralForCausalLM(MistralConfig(**SMALL, head_dim=8, sliding_window=16))
    if kind == "gpt_oss":
        experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
        return GptOssForCausalLM(GptOssConfig(**small, **experts, head_dim=8, sliding_window=128))
    assert kind == "mamba"
    return MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4))


@pytest.mark.parametrize("kind, layout, head", [
    ("gpt2", "shared", "chunked"), ("granite", "shared", "chunked"), ("qwen2", "shared", "chunked"),
    ("gemma2", "separate", "chunked"), ("mistral_short_window", "separate", "chunked"), ("gpt_oss", "separate", "chunked"),
    ("mamba", "separate", "chunked"),
])  # fmt: skip
def test_models_that_cannot_share_fall_back_with_one_line(kind: str, layout: str, head: str, caplog) -> None:
    model = make(kind).eval()
    items = make_items(3)
    plain = prepare(model, layout="separate", head="plain", longest=100)
    rows = plain.build(items)
    expected = rows.sums(model(scoring=Scoring(batch=rows)), 0, len(items))
    with caplog.at_level("INFO", logger="align.train.scoring"):
        caplog.clear()
        setup = prepare(model, longest=100)
    assert (setup.layout, setup.head) == (layout, head)
    assert len([r for r in caplog.records if "falls back" in r.message]) == (layout == "separate") + (head == "plain")
    batch = setup.build(items)
    found = batch.sums(model(scoring=Scoring(batch=batch)), 0, len(items))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)  # float32 sums of up to 62 tokens
    if layout == "separate":
        with pytest.raises(UserError, match=f"layout: shared is not possible with {type(model).__name__}"):
            prepare(model, layout="shared", longest=100)


def test_flex_attention_is_not_used_with_dropout() -> None:
    model = llama(attention_dropout=0.1)
    assert why_not_shared(model, 10, "align_trees") is None
    assert "dropout" in str(why_not_shared(model, 10, FLEX_ATTENTION))


def test_unknown_words_are_refused() -> None:
    with pytest.raises(UserError, match="choose from auto, shared, separate"):
        prepare(llama(), layout="packed", longest=10)
    with pytest.raises(UserError, match="choose from"):
        prepare(llama(), head="liger", longest=10)


def test_a_model_still_on_the_cpu_is_set_up_for_the_device_it_will_run_on() -> None:
    """FSDP2 moves the shards after the set-up; the check itself runs where the weights are."""
    model = llama(torch.float32)
    there = torch.device("cuda")
    setup = prepare(model, longest=10, device=there)
    assert setup == Setup(layout="shared", head=choose_impl("auto", there), attention=FLEX_ATTENTION)
    assert setup.build([([3, 4], [[5], [6, 7]])]).input_ids.shape[1] == FLEX_BLOCK
    assert prepare(model, longest=10) == Setup(layout="shared", head="chunked", attention="align_trees")


def test_restore_leaves_the_model_as_it_came() -> None:
    model = llama(torch.float32).eval()
    ids = torch.arange(3, 12)[None]
    before = model(input_ids=ids).logits
    prepare(model, layout="shared", longest=10)
    with pytest.raises(ValueError, match="needs the trees of a shared batch"):
        model(input_ids=ids)
    restore(model)
    assert torch.equal(model(input_ids=ids).logits, before) and "forward" not in vars(model)


# Layout


_ids = st.lists(st.integers(3, 4), max_size=4)  # two values, so that completions often begin alike


@given(st.lists(st.tuples(st.lists(st.integers(3, 5), min_size=1, max_size=4), _ids, _ids), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_shared_rows_hold_every_sequence(drawn) -> None:
    """What the last token of a branch sees is its sequence; each completion token is scored once, from what precedes it."""
    items: list[Item] = [(prompt, [[*one, 2], [*other, 2]]) for prompt, one, other in drawn]
    batch = shared_layout(items)
    visible, ids, positions = sees(batch), batch.input_ids[0], batch.position_ids[0]
    assert batch.num_tokens == sum(shared_length(item) for item in items)
    width = 3
    for e, (prompt, completions) in enumerate(items):
        tree = batch.trees[e]
        assert tree.prefix == common_prefix([[*prompt, *c] for c in completions])
        for k, completion in enumerate(completions):
            last = (
                tree.start + tree.prefix + sum(tree.branches[: k + 1]) - 1
                if tree.branches[k]
                else tree.start + tree.prefix - 1
            )
            seen = visible[last].nonzero()[:, 0]
            assert ids[seen].tolist() == [*prompt, *completion]
            assert positions[seen].tolist() == list(range(len(seen)))
            mine = [
                n for n in range(batch.bounds[e], batch.bounds[e + 1]) if batch.slot_N[n] in (e * width, e * width + k + 1)
            ]
            assert batch.target_N[mine].tolist() == completion
            for n in mine:  # the predicting state sees exactly what comes before its target
                before = ids[visible[batch.predict_N[n]].nonzero()[:, 0]].tolist()
                assert before == [*prompt, *completion][: len(before)] and (
                    [*prompt, *completion][len(before)] == batch.target_N[n]
                )
        assert batch.tokens_EK[e].tolist() == [len(c) for c in completions]


def test_layouts_refuse_what_they_cannot_hold() -> None:
    for layout in (shared_layout, separate_layout):
        for bad in ([], [([], [[1], [2]])], [([1], [[2], []])], [([1], [])], [([1], [[2]]), ([1], [[2], [3]])]):
            with pytest.raises(ValueError):
                layout(bad)


def test_filling_and_pad_id_change_nothing() -> None:
    model, items = llama(torch.float32).eval(), make_items(3)
    prepare(model, layout="shared", head="chunked", longest=100)
    with torch.no_grad():
        found = [
            model(scoring=Scoring(batch=b)) for b in (shared_layout(items), shared_layout(items, multiple=128, pad_id=2))
        ]
    assert torch.equal(*found)


def test_order_of_completions_does_not_matter() -> None:
    model, items = llama(torch.float64).eval(), make_items(4)
    prepare(model, layout="shared", head="chunked", longest=100)
    swapped = [(prompt, completions[::-1]) for prompt, completions in items]
    with torch.no_grad():
        one, other = (b.sums(model(scoring=Scoring(batch=b)), 0, len(items)) for b in map(shared_layout, (items, swapped)))
    torch.testing.assert_close(one, other.flip(1), atol=1e-10, rtol=1e-10)


# Attention


@pytest.mark.parametrize("rows", [5, 1024])
@pytest.mark.parametrize("groups", [1, 2])
def test_tree_attention_is_dense_attention_under_the_mask(groups: int, rows: int, monkeypatch) -> None:
    monkeypatch.setattr("align.packing.attention.MASK_ROWS", rows)
    torch.manual_seed(0)
    batch = shared_layout(make_items(3), multiple=16)
    length = batch.num_tokens
    q, k, v = (
        torch.randn(1, heads, length, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 4 // groups, 4 // groups)
    )
    visible = sees(batch)
    scores = q @ k.repeat_interleave(groups, 1).transpose(2, 3) * 0.3
    dense = scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v.repeat_interleave(groups, 1)
    found, _ = tree_attention(torch.nn.Module(), q, k, v, None, scaling=0.3, trees=batch.trees)
    real = batch.trees[-1].stop
    torch.testing.assert_close(found.transpose(1, 2)[:, :, :real], dense[:, :, :real], atol=1e-12, rtol=1e-12)
    upstream = torch.randn_like(dense)[:, :, :real]
    wanted = torch.autograd.grad((dense[:, :, :real] * upstream).sum(), (q, k, v))
    got = torch.autograd.grad((found.transpose(1, 2)[:, :, :real] * upstream).sum(), (q, k, v))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_block_mask_is_that_of_the_dense_matrix() -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    draw = random.Random(4)
    lengths = [[draw.randint(1, most) for most in (600, 150, 300)] for _ in range(5)]
    items: list[Item] = [([3] * p, [[4] * c, [5] * r]) for p, c, r in lengths]
    batch = shared_layout(items, multiple=128)
    dense, found = sees(batch), block_mask(batch)
    made = create_block_mask(lambda b, h, q, kv: dense[q, kv], None, None, *dense.shape, device="cpu", BLOCK_SIZE=128)
    assert torch.equal(found.to_dense(), made.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(found, name), getattr(made, name)), name
    assert found.full_kv_num_blocks.sum() > 0 and found.shape == made.shape


def test_flex_attention_forward_agrees() -> None:
    """FlexAttention runs forward on a CPU; its backward needs CUDA and is checked by `make bench-gpu`."""
    model, items = llama(torch.float32, head_dim=16, hidden_size=64).eval(), make_items(3)
    prepare(model, layout="shared", head="chunked", longest=100)
    with torch.no_grad():
        batch = shared_layout(items, multiple=128)
        expected = model(scoring=Scoring(batch=batch))
        restore(model)
        model.set_attn_implementation(FLEX_ATTENTION)
        output = model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=block_mask(batch), use_cache=False
        )
        logps = output.logits[0].log_softmax(-1)[batch.predict_N, batch.target_N]
    torch.testing.assert_close(logps, expected, atol=1e-3, rtol=1e-3)  # design.md measured 8e-5 in logits


# Bins


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 60), st.integers(1, 5), st.booleans())
@settings(max_examples=300, deadline=None)
def test_bins_hold_everything_once_and_keep_step(sizes: list[int], budget: int, processes: int, padded: bool) -> None:
    planned = plan_bins(sizes, budget, processes=processes, padded=padded)
    assert len(planned) == processes and len({len(part) for part in planned}) == 1
    real = [b for part in planned for b in part if b.real]
    assert sorted(itertools.chain.from_iterable(b.members for b in real)) == list(range(len(sizes)))
    for members in (b.members for b in real):
        cost = max(sizes[i] for i in members) * len(members) if padded else sum(sizes[i] for i in members)
        assert cost <= budget or len(members) == 1
    if len(sizes) >= processes * len(planned[0]):
        assert len(real) == processes * len(planned[0])
    for refused in ([], budget, processes), (sizes, 0, processes), (sizes, budget, 0):
        with pytest.raises(ValueError):
            plan_bins(refused[0], refused[1], processes=refused[2])


def test_bins_are_even() -> None:
    sizes = [random.Random(1).randint(50, 400) for _ in range(64)]
    loads = [[sum(sizes[i] for i in b.members) for b in part] for part in plan_bins(sizes, 2048, processes=2)]
    assert max(map(max, loads)) / min(map(min, loads)) < 1.1
