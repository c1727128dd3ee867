"""Train a reward model from pairs: Bradley-Terry on TRL's `RewardTrainer`.

Loss per pair, with r the score: -log sigmoid(r_chosen - r_rejected - m) + c (r_chosen + r_rejected)^2. The pair's margin m
(Touvron et al. 2023, arXiv:2307.09288, eq. 2) is used only where asked for. The second term keeps scores near zero
(Eisenstein et al. 2023, arXiv:2312.09244, eq. 2, c = 0.01), which the first leaves free. The head starts at standard
deviation 1/sqrt(d + 1), d the hidden size (Stiennon et al. 2020), so that first scores are of order 1.

Pairs are encoded by `reward.encoder.Encoder` and given to TRL as ids (`chosen_ids`, `rejected_ids`), so training sees what
scoring sees; weights stay fp32, and bf16 is autocast only.
"""

from __future__ import annotations

import gc
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.core.chat import ChatError
from align.core.errors import StepError, UserError
from align.core.hashing import derive_seed
from align.core.heap import return_free_memory
from align.core.pacing import SaveByClock
from align.core.rows import Message, RewardPair
from reward.classifier import PRECISIONS, Classifier, keep_head_exact, load_classifier, score_head
from reward.encoder import Encoder
from reward.golden import golden_scores, write_golden
from reward.held_out import ScoredPair, count_tokens, held_out_metrics

GROUP = 8
OnStep = Callable[[int, int, float], None]


@dataclass(frozen=True)
class _EncodedPair:
    pair: RewardPair
    chosen_ids: list[int]
    rejected_ids: list[int]


def _encode(encoder: Encoder, pairs: Sequence[RewardPair]) -> tuple[list[_EncodedPair], list[tuple[str, str]]]:
    """Pairs as ids, and (pair id, reason) of those that cannot be rendered or whose sides are equal once cut to length."""
    encoded, left_out = [], []
    for pair in pairs:
        try:
            chosen, rejected = (
                encoder.encode(pair.prompt, side[-1]["content"]).ids for side in (pair.chosen, pair.rejected)
            )
        except ChatError:
            left_out.append((pair.id, "cannot_be_encoded"))
            continue
        if chosen == rejected:
            left_out.append((pair.id, "identical_after_truncation"))
        else:
            encoded.append(_EncodedPair(pair, chosen, rejected))
    return encoded, left_out


def _fresh_model(backbone: Path, pad_id: int, seed: int) -> Any:
    """The backbone with a new score head, in fp32."""
    import torch
    import transformers

    transformers.set_seed(seed)  # some backbones lack more than the head (a pooler, say)
    # The load report would name the new head as a problem.
    model, _ = load_classifier(backbone, torch.float32, "no backbone", num_labels=1)
    head = score_head(model)
    draw = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(head.weight, std=1 / math.sqrt(head.in_features + 1), generator=draw)
    if head.bias is not None:
        torch.nn.init.zeros_(head.bias)
    model.config.get_text_config().pad_token_id = pad_id
    keep_head_exact(model)
    return model


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps that was written whole, or None.

    `trainer_state.json` is written after everything else of a checkpoint, so one that parses vouches for the rest.
    """
    whole: list[tuple[int, Path]] = []
    for state in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            whole.append((int(json.loads(state.read_text())["global_step"]), state.parent))
        except (OSError, ValueError, KeyError):
            continue
    return max(whole)[1] if whole else None


def _step_callback(on_step: OnStep | None) -> Any:
    """A Trainer callback that reports each step's loss, and begins each step without memory that no tensor uses."""
    from transformers import TrainerCallback

    class EachStep(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            return_free_memory()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if on_step is not None and logs and "loss" in logs:
                on_step(state.global_step, state.max_steps, float(logs["loss"]))

    return EachStep()


def training_order(lengths: Sequence[int], batch_size: int, epochs: int, seed: int) -> list[int]:
    """Indices of the pairs in the order of training, all epochs one after another.

    Each epoch is a new permutation in which every `GROUP` batches in a row are sorted by length and then shuffled as
    batches: they pad little (a Korean answer can have four times the tokens of an English one), and the order depends on
    nothing but these arguments, so that a resumed run goes on exactly.

    Args:
        lengths: tokens of each pair's longer side.
    """
    order: list[int] = []
    for epoch in range(epochs):
        rng = random.Random(derive_seed(seed, "reward-order", epoch))
        indices = list(range(len(lengths)))
        rng.shuffle(indices)
        for start in range(0, len(indices), batch_size * GROUP):
            group = sorted(indices[start : start + batch_size * GROUP], key=lambda i: (lengths[i], i))
            batches = [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
            tail = [batches.pop()] if len(batches[-1]) < batch_size else []
            rng.shuffle(batches)
            order += [i for batch in batches + tail for i in batch]
    return order


def micro_batch(longest: int, batch_size: int, tokens: int) -> int:
    """Pairs that go through the model at once: the most that divide `batch_size` and stay within `tokens`, or else one.

    Args:
        longest: tokens of the longest side of any pair.
        tokens: of both sides of these pairs, padding included.
    """
    return max((n for n in range(1, batch_size + 1) if batch_size % n == 0 and 2 * n * longest <= tokens), default=1)


def _trainer(**arguments: Any) -> Any:
    """TRL's trainer, in which every pair of a step counts alike.

    transformers weighs the micro-batches of a step alike, whose last one can hold fewer pairs at the end of an epoch. A
    micro-batch with k of the step's n pairs is weighed k/n instead.
    """
    from trl import RewardTrainer

    class PairsCountAlike(RewardTrainer):
        pairs_of_step: tuple[int, ...] = ()

        def get_batch_samples(self, *given: Any, **named: Any) -> Any:
            found = super().get_batch_samples(*given, **named)
            self.pairs_of_step = tuple(len(batch["input_ids"]) // 2 for batch in found[0])
            return found

        def compute_loss(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
            mean = sum(self.pairs_of_step) / len(self.pairs_of_step)
            return super().compute_loss(model, inputs, *given, **named) * (len(inputs["input_ids"]) / 2 / mean)

    return PairsCountAlike(**arguments)


def _run(
    model: Any,
    encoder: Encoder,
    train: Sequence[_EncodedPair],
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    micro_batch_tokens: int,
    seed: int,
    precision: str,
    centering: float,
    margin: bool,
    on_step: OnStep | None,
    checkpoint_dir: Path,
    save_steps: int | None,
) -> Any:
    """Train `model` in place, from the newest whole checkpoint if there is one; the Trainer's state."""
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import RewardConfig

    lengths = [max(len(p.chosen_ids), len(p.rejected_ids)) for p in train]
    at_once = micro_batch(max(lengths), batch_size, micro_batch_tokens)
    total = math.ceil(len(train) * epochs / batch_size)
    config = RewardConfig(
        output_dir=str(checkpoint_dir),
        num_train_epochs=1,  # the rows hold every epoch
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=batch_size // at_once,
        train_sampling_strategy="sequential",  # `training_order` has shuffled
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(0.05 * total),
        weight_decay=0.001,
        center_rewards_coefficient=centering or None,
        max_length=None,  # `Encoder` has cut the pairs; TRL would drop them
        bf16=precision == "bf16",
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # the default replaces a NaN loss by an average of earlier ones
        save_strategy="no" if save_steps is None else "steps",
        save_steps=save_steps or 1,
        save_total_limit=1,  # removed only after the next one is whole
        report_to="none",
        push_to_hub=False,
        disable_tqdm=True,
    )
    if config.n_gpu > 1:
        config._n_gpu = 1  # TRL refuses DataParallel; one GPU trains, `accelerate launch` uses more
    order = training_order(lengths, batch_size, epochs, seed)
    rows: list[dict[str, Any]] = [{"chosen_ids": train[i].chosen_ids, "rejected_ids": train[i].rejected_ids} for i in order]
    if margin:  # TRL's collator and loss take the column where there is one
        for row, i in zip(rows, order, strict=True):
            row["margin"] = train[i].pair.margin
    trainer = _trainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=encoder.tokenizer,
        callbacks=[_step_callback(on_step), *([SaveByClock()] if save_steps is None else [])],
    )
    trainer.remove_callback(PrinterCallback)
    resume = newest_checkpoint(checkpoint_dir)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer.state


def _save(model: Any, encoder: Encoder, output: Path) -> None:
    """Weights, and the tokenizer with its template."""
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(output))
    encoder.tokenizer.save_pretrained(str(output))


def _write_golden(encoder: Encoder, output: Path, precision: str) -> None:
    """The golden scores that every later use is compared with: in fp32, and in `precision` too where that is another.

    Of the model read back, since accelerate has wrapped the forward pass of the trained one in autocast.
    """
    for kept in dict.fromkeys(("fp32", precision)):
        loaded = Classifier.load(output, precision=kept, max_length=encoder.max_length)
        write_golden(output, golden_scores(loaded), precision=kept)


def _scored(model: Classifier, test: Sequence[_EncodedPair]) -> list[ScoredPair]:
    """Held-out pairs with the scores that the saved model gives them; lengths are of the answers alone."""
    scores = model.score_ids([p.chosen_ids for p in test] + [p.rejected_ids for p in test])

    def length(side: list[Message]) -> int:
        return count_tokens(model.encoder.tokenizer, side[-1]["content"])

    return [
        ScoredPair(
            id=p.pair.id, prompt_id=p.pair.prompt_id, subset=p.pair.subset, lang=p.pair.lang, chosen_score=chosen,
            rejected_score=rejected, chosen_length=length(p.pair.chosen), rejected_length=length(p.pair.rejected),
        )
        for p, chosen, rejected in zip(test, scores[: len(test)], scores[len(test) :], strict=True)
    ]  # fmt: skip


def train_reward_model(
    backbone: Path,
    output: Path,
    pairs: list[RewardPair],
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    max_length: int,
    seed: int,
    precision: str,
    on_step: OnStep | None,
    checkpoint_dir: Path,
    save_steps: int | None = None,
    centering: float = 0.01,
    margin: bool = False,
    micro_batch_tokens: int = 2048,
) -> dict[str, Any]:
    """Train a reward model on the "train" pairs, save it, and measure it on the others as scoring will use it.

    A run that was stopped goes on from the newest whole checkpoint in `checkpoint_dir`, which must belong to the same
    pairs and settings (the caller's fingerprint sees to that); in fp32 on one device the result is the same.

    Args:
        backbone: a transformers folder; its head, if any, of one output is replaced.
        output: where weights (fp32 safetensors), config (num_labels 1, pad_token_id), tokenizer with template and the golden
            scores (`reward.golden`) go.
        pairs: both splits; only "train" is trained on.
        epochs: passes over the training pairs; one is customary, more overfit.
        learning_rate: peak, after 5 % linear warm-up and before a cosine decay to 0.
        batch_size: pairs per step.
        max_length: tokens per side, cut as in `reward.encoder.fit`.
        seed: of the head and of the order of pairs.
        precision: "fp32", or "bf16" for autocast around fp32 weights and for the scoring afterwards.
        on_step: called with (step, total steps, loss) after each step.
        checkpoint_dir: holds checkpoints.
        save_steps: steps between checkpoints; None is one every two minutes.
        centering: c of the loss; 0 leaves the term out.
        margin: subtract each pair's `margin` in the loss.
        micro_batch_tokens: as in `micro_batch`; the gradient of a step is that of the mean over its pairs all the same.

    Returns:
        `pairs_train`, `left_out` ((pair id, reason) of the pairs of both splits that take no part: `cannot_be_encoded`,
        `identical_after_truncation`), `pairs_left_out` (their number), `steps`, `final_loss` (mean of the last ten steps)
        and what `held_out_metrics` says of the "test" pairs.

    Raises:
        UserError: no pair to train on, no pair with a margin where margins are asked for, a negative `centering`, an unknown
            precision, or a backbone that cannot be loaded.
        StepError: the loss became NaN or infinite; nothing is saved.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r}; known are {', '.join(PRECISIONS)}")
    if not 0 <= centering < math.inf:
        raise UserError(f"centering {centering:g} is not 0 or more")
    encoder = Encoder.load(backbone, max_length=max_length)
    encoded, left_out = _encode(encoder, pairs)
    train = [p for p in encoded if p.pair.split == "train"]
    test = [p for p in encoded if p.pair.split != "train"]
    if not train:
        raise UserError(
            f"no reward pair to train on: {len(pairs)} pairs, {len(test)} of them held out, {len(left_out)} left out "
            "(cannot be encoded, or equal once cut to max_length)"
        )
    if margin and not any(p.pair.margin for p in train):
        raise UserError("margin: none of the training pairs has a margin; give the preference file a column margin")
    model = _fresh_model(backbone, encoder.pad_id, seed)
    state = _run(
        model, encoder, train, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size,
        micro_batch_tokens=micro_batch_tokens, seed=seed, precision=precision, centering=centering, margin=margin,
        on_step=on_step, checkpoint_dir=checkpoint_dir, save_steps=save_steps,
    )  # fmt: skip
    losses = [float(entry["loss"]) for entry in state.log_history if "loss" in entry]
    if not losses or not all(math.isfinite(loss) for loss in losses):
        raise StepError(
            f"the reward model's loss is not finite ({losses[-1] if losses else 'no step'}); lower learning_rate"
        )
    last = losses[-10:]
    _save(model, encoder, output)
    # The trainer, whose parts refer to each other, still holds gradients and Adam's moments.
    del model
    gc.collect()
    return_free_memory()
    _write_golden(encoder, output, precision)
    saved = Classifier.load(output, precision=precision, max_length=max_length)
    return {
        "pairs_train": len(train),
        "pairs_left_out": len(left_out),
        "left_out": left_out,
        "steps": state.global_step,
        "final_loss": round(sum(last) / len(last), 4),
        **held_out_metrics(_scored(saved, test), seed=seed),
    }
