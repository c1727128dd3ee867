"""Log-probabilities of a batch's completions: the one path of training, reference and KL.

    log pi(y_t | x, y_<t) = log softmax(head(h_{t-1}))[y_t]        (nats)

`prepare` looks at a causal LM, decides layout and head, and gives its forward a second way in: called with
`scoring=Scoring(...)` it runs the decoder, picks the hidden states that predict completion tokens and hands them to the
fused head. It happens inside the model's own forward, so DDP, FSDP2, PEFT and gradient checkpointing see an ordinary call
and the head's weight is whole when it is used.

Shapes: R x T = rows and columns, N = scored tokens, d = hidden size, V = vocabulary, E = examples, K = completions of each.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from align.core.errors import UserError
from align.packing.attention import FLEX_ATTENTION, FLEX_BLOCK, attention_for, block_mask, why_not_shared
from align.packing.layout import Item, PackedBatch, separate_layout, shared_layout, shared_length
from align.train.kernels.head import HeadFeatures, LossOf, choose_impl, fused_loss, linear_logprobs
from align.train.precision import autocast

log = logging.getLogger(__name__)
LAYOUTS = ("auto", "shared", "separate")
HEADS = ("auto", "triton", "chunked", "reference", "plain")
PROBE_TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-3}  # nats per token
COARSE_TOLERANCE = 0.2  # the same in coarser dtypes
_KNOWN_LOGIT_KEYS = {
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "attn_logit_softcapping",  # of attention scores, see `plain_attention`
    "output_logits",
    "logits_to_keep",
}


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What a prepared model is asked: the batch and, for training, the loss of a range of its examples."""

    batch: PackedBatch
    loss_of: LossOf | None = None


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What `prepare` decided.

    Attributes:
        layout: shared or separate.
        head: triton, chunked, reference or plain.
        attention: name of the attention implementation in use.
    """

    layout: str
    head: str
    attention: str

    def build(self, items: list[Item]) -> PackedBatch:
        """A micro-batch in this layout."""
        if self.layout == "separate":
            return separate_layout(items)
        return shared_layout(items, multiple=FLEX_BLOCK if self.attention == FLEX_ATTENTION else 1)

    def size(self, item: Item) -> int:
        """Tokens that an example brings to a micro-batch; in the separate layout, of its rectangle."""
        if self.layout == "separate":
            return len(item[1]) * (len(item[0]) + max(map(len, item[1])))
        return shared_length(item)


def plain_attention(core: Any) -> str:
    """The attention of plain rows: SDPA, or eager where the model has none or caps its scores, which SDPA leaves out."""
    capped = getattr(core.config.get_text_config(), "attn_logit_softcapping", None)
    return "sdpa" if core._supports_sdpa and capped is None else "eager"


def core_model(model: Any) -> Any:
    """The causal LM inside wrappers (DDP, PEFT)."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _head_features(config: Any) -> HeadFeatures | None:
    """Soft-cap and scale of a model's logits as its config writes them, or None where it names one that is not known."""
    named = {key for key, value in config.to_dict().items() if "logit" in key and value not in (None, False)}
    if named - _KNOWN_LOGIT_KEYS:
        return None
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return HeadFeatures(softcap=getattr(config, "final_logit_softcapping", None), scale=scale)


def _inputs(batch: PackedBatch, attention: str) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.trees is None:  # right-padded, so positions are those that every model counts itself
        return inputs | {"attention_mask": batch.attention_mask}
    inputs["position_ids"] = batch.position_ids
    if attention == FLEX_ATTENTION:
        return inputs | {"attention_mask": block_mask(batch)}
    return inputs | {"attention_mask": None, "trees": batch.trees}


def plain_logprobs(forward: Callable[..., Any], batch: PackedBatch, attention: str = "sdpa") -> Tensor:
    """Log-probabilities of the scored tokens from the model's own logits; the oracle of the fused head.

    Args:
        forward: of a causal LM, its output has `logits`.
        batch: in either layout, on the model's device.
        attention: the attention implementation that the model is set to.

    Returns:
        (N,) float32 (float64 for a float64 model), nats.
    """
    rows, columns = batch.input_ids.shape
    inputs, kept = _inputs(batch, attention), torch.arange(columns, device=batch.input_ids.device)
    if "logits_to_keep" in inspect.signature(forward).parameters:
        kept = (batch.predict_N % columns).unique()
        inputs["logits_to_keep"] = kept
    place = torch.empty(columns, dtype=torch.long, device=kept.device)
    place[kept] = torch.arange(len(kept), device=kept.device)
    logits_RKV = forward(**inputs).logits
    assert logits_RKV.shape[:2] == (rows, len(kept))
    logits_NV = logits_RKV[batch.predict_N // columns, place[batch.predict_N % columns]]
    exact = torch.promote_types(logits_NV.dtype, torch.float32)
    return -F.cross_entropy(logits_NV.to(exact), batch.target_N, reduction="none")


def _install(core: Any, setup: Setup, features: HeadFeatures) -> None:
    """Give `core.forward` its second way in. Installing again replaces the first."""
    original = getattr(core, "_align_forward", core.forward)
    core._align_forward = original

    def forward(*args: Any, scoring: Scoring | None = None, **kwargs: Any) -> Any:
        if scoring is None:
            return original(*args, **kwargs)
        batch, loss_of = scoring.batch, scoring.loss_of
        if setup.head == "plain":
            logps_N = plain_logprobs(original, batch, setup.attention)
            if loss_of is None:
                return logps_N
            with torch.autocast(logps_N.device.type, enabled=False):
                return loss_of(logps_N, 0, len(batch.bounds) - 1), logps_N.detach()
        hidden = core.base_model(**_inputs(batch, setup.attention)).last_hidden_state
        return head(hidden.reshape(-1, hidden.shape[-1])[batch.predict_N], scoring=scoring)

    # Called as a module, so that FSDP2 gathers its weight also where it is sharded by itself.
    head = core.get_output_embeddings()
    plain_head = getattr(head, "_align_forward", head.forward)

    def head_forward(hidden: Tensor, *, scoring: Scoring | None = None) -> Any:
        if scoring is None:
            return plain_head(hidden)
        options: dict[str, Any] = {"bias_V": head.bias, "features": features, "impl": setup.head}
        if scoring.loss_of is None:
            return linear_logprobs(hidden, head.weight, scoring.batch.target_N, **options)
        return fused_loss(hidden, head.weight, scoring.batch.target_N, scoring.batch.bounds, scoring.loss_of, **options)

    core.forward = forward
    if setup.head != "plain":
        head._align_forward, head.forward = plain_head, head_forward


@contextmanager
def _quiet(core: Any, precision: str) -> Iterator[None]:
    """Eval mode, no gradients; on CUDA in the precision of training, so that no kernel is compiled for the check alone."""
    was_training = core.training
    device = core.get_output_embeddings().weight.device
    core.eval()
    try:
        with torch.no_grad(), autocast(device, precision if device.type == "cuda" else "fp32"):
            yield
    finally:
        core.train(was_training)


def _probe_items(config: Any) -> list[Item]:
    """Two small examples with a shared first completion token, of ids spread over the vocabulary."""
    vocabulary = int(config.get_text_config().vocab_size)
    ids = torch.randint(vocabulary, (26,), generator=torch.Generator().manual_seed(0)).tolist()
    return [(ids[:7], [ids[7:11], [ids[7], *ids[11:17]]]), (ids[17:19], [ids[19:24], ids[24:26]])]


def _differs(
    core: Any, setup: Setup, features: HeadFeatures, expected: Tensor, items: list[Item], precision: str
) -> str | None:
    """Whether a set-up gives other sequence log-probabilities than the plain one; None where it does not."""
    weight = core.get_output_embeddings().weight
    core.set_attn_implementation(setup.attention)
    _install(core, setup, features)
    batch = setup.build(items).to(weight.device)
    try:
        with _quiet(core, precision):
            found = batch.sums(core(scoring=Scoring(batch=batch)), 0, len(items))
    except Exception as error:  # compilers and models raise types of their own; the reason is logged or raised
        return f"it fails there ({' '.join(str(error).split())[:200]})"
    worst = float(((found - expected).abs() / batch.tokens_EK).max())
    rounded = weight.device.type == "cuda" and precision == "bf16"
    if worst <= (COARSE_TOLERANCE if rounded else PROBE_TOLERANCE.get(weight.dtype, COARSE_TOLERANCE)):
        return None
    return f"its log-probabilities there differ by {worst:.3g} nats per token from the plain ones"


def prepare(
    model: Any,
    *,
    layout: str = "auto",
    head: str = "auto",
    longest: int,
    precision: str = "fp32",
    device: torch.device | None = None,
) -> Setup:
    """Decide how a model's batches are laid out and scored, check the choice on the model, and install it.

    The check runs two short examples through the plain path and through the chosen one; a model whose layers mix branches,
    or whose head does more than its config says, shows there. Call it before the model is wrapped or sharded.

    Args:
        model: a causal LM, or a PEFT model around one.
        layout: shared, separate, or auto for shared where the model can.
        head: triton, chunked or reference (see `align.train.kernels`), plain for the model's own logits, or auto for
            the fastest that the device and the model allow.
        longest: tokens of the longest sequence to come.
        precision: bf16 or fp32, of the training or scoring to come.
        device: where the model will run; None for where it is. A model that FSDP2 will spread over GPUs is still on the
            CPU and may fit on none of them whole: it is checked there, with the CPU's attention and head.

    Raises:
        UserError: an unknown word, or a layout or head that was asked for by name and the model cannot have.
    """
    if layout not in LAYOUTS or head not in HEADS:
        raise UserError(f"layout {layout!r}, head {head!r}: choose from {', '.join(LAYOUTS)} and {', '.join(HEADS)}")
    core = core_model(model)
    here = core.get_output_embeddings().weight.device
    there = device or here
    name, items = type(core).__name__, _probe_items(core.config)
    simple = plain_attention(core)
    core.set_attn_implementation(simple)
    plain = Setup(layout="separate", head="plain", attention=simple)
    _install(core, plain, HeadFeatures())
    rows = plain.build(items).to(here)
    with _quiet(core, precision):
        expected = rows.sums(core(scoring=Scoring(batch=rows)), 0, len(items))

    def refuse(what: str, wanted: str, reason: str) -> None:
        if wanted != "auto":
            raise UserError(f"{what}: {wanted} is not possible with {name}: {reason}")
        log.info("%s: %s falls back because %s", name, what, reason)

    features = _head_features(core.config) or HeadFeatures()
    chosen = checked = "plain"
    if head != "plain":
        reason = None
        if type(core.get_output_embeddings()) is not nn.Linear:
            reason = "its LM head is not a plain linear layer"
        elif _head_features(core.config) is None:
            reason = "its config changes logits in a way that the fused head does not know"
        else:
            try:
                chosen = choose_impl(head, there)
                checked = chosen if here.type == there.type else choose_impl("auto", here)
            except ValueError as error:
                raise UserError(f"head: {error}") from None
            reason = _differs(
                core, Setup(layout="separate", head=checked, attention=simple), features, expected, items, precision
            )
        if reason is not None:
            refuse("head", head, reason)
            chosen = checked = "plain"
    attention, rows_of = simple, "separate"
    if layout != "separate":
        wished = attention_for(there)
        shared = Setup(layout="shared", head=checked, attention=attention_for(here))
        reason = why_not_shared(core, longest, wished) or _differs(core, shared, features, expected, items, precision)
        if reason is None:
            attention, rows_of = wished, "shared"
        else:
            refuse("layout", layout, reason)
    setup = Setup(layout=rows_of, head=chosen, attention=attention)
    core.set_attn_implementation(attention)
    _install(core, setup, features)
    log.info("%s: layout %s, head %s, attention %s", name, setup.layout, setup.head, setup.attention)
    return setup


def restore(model: Any) -> None:
    """Take the second way in out again and set plain attention, so that the model can be used and saved."""
    core = core_model(model)
    for module in (core, core.get_output_embeddings()):
        if "_align_forward" in vars(module):
            del module._align_forward
            del module.forward
    core.set_attn_implementation(plain_attention(core))
