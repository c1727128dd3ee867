"""Train a reward model from pairs: Bradley-Terry on TRL's `RewardTrainer`.

Loss per pair, with r the score: -log sigmoid(r_chosen - r_rejected) + c (r_chosen + r_rejected)^2. The second term keeps
scores near zero (Eisenstein et al. 2023, arXiv:2312.09244, eq. 2, c = 0.01), which the first leaves free. The head starts
at standard deviation 1/sqrt(d + 1), d the hidden size (Stiennon et al. 2020), so that first scores are of order 1.

Pairs are encoded by `reward.encoder.Encoder` and given to TRL as ids (`chosen_ids`, `rejected_ids`), so training sees what
scoring sees; weights stay fp32, and bf16 is autocast only.
"""

from __future__ import annotations

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
from align.core.pacing import SaveByClock
from align.core.rows import RewardPair
from reward.classifier import PRECISIONS, Classifier, keep_head_exact, score_head
from reward.encoder import Encoder

CENTERING = 0.01
GROUP = 8
OnStep = Callable[[int, int, float], None]


@dataclass(frozen=True)
class _EncodedPair:
    pair: RewardPair
    chosen_ids: list[int]
    rejected_ids: list[int]


def _encode(encoder: Encoder, pairs: Sequence[RewardPair]) -> list[_EncodedPair]:
    """Pairs as ids; left out are those that cannot be rendered and those whose sides are equal once cut to length."""
    encoded = []
    for pair in pairs:
        try:
            chosen, rejected = (
                encoder.encode(pair.prompt, side[-1]["content"]).ids for side in (pair.chosen, pair.rejected)
            )
        except ChatError:
            continue
        if chosen != rejected:
            encoded.append(_EncodedPair(pair, chosen, rejected))
    return encoded


def _fresh_model(backbone: Path, pad_id: int, seed: int) -> Any:
    """The backbone with a new score head, in fp32."""
    import torch
    import transformers
    from transformers import AutoModelForSequenceClassification

    transformers.set_seed(seed)  # some backbones lack more than the head (a pooler, say)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # the load report would name the new head as a problem
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            str(backbone),
            num_labels=1,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as error:
        raise UserError(f"{backbone}: no backbone that transformers can load ({str(error).splitlines()[0]})") from None
    finally:
        transformers.logging.set_verbosity(verbosity)
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


def _progress_callback(on_step: OnStep | None) -> Any:
    """A Trainer callback that reports each step's loss."""
    from transformers import TrainerCallback

    class ReportStep(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if on_step is not None and logs and "loss" in logs:
                on_step(state.global_step, state.max_steps, float(logs["loss"]))

    return ReportStep()


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


def _run(
    model: Any,
    encoder: Encoder,
    train: Sequence[_EncodedPair],
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    precision: str,
    on_step: OnStep | None,
    checkpoint_dir: Path,
    save_steps: int | None,
) -> Any:
    """Train `model` in place, from the newest whole checkpoint if there is one; the Trainer's state."""
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import RewardConfig, RewardTrainer

    total = math.ceil(len(train) * epochs / batch_size)
    config = RewardConfig(
        output_dir=str(checkpoint_dir),
        num_train_epochs=1,  # the rows hold every epoch
        per_device_train_batch_size=batch_size,
        train_sampling_strategy="sequential",  # `training_order` has shuffled
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(0.05 * total),
        weight_decay=0.001,
        center_rewards_coefficient=CENTERING,
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
    lengths = [max(len(p.chosen_ids), len(p.rejected_ids)) for p in train]
    order = training_order(lengths, batch_size, epochs, seed)
    rows = [{"chosen_ids": train[i].chosen_ids, "rejected_ids": train[i].rejected_ids} for i in order]
    trainer = RewardTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=encoder.tokenizer,
        callbacks=[_progress_callback(on_step), *([SaveByClock()] if save_steps is None else [])],
    )
    trainer.remove_callback(PrinterCallback)
    resume = newest_checkpoint(checkpoint_dir)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer.state


def _accuracy(margins: Sequence[float]) -> float | None:
    """The share of margins above zero; a tie or a NaN is a miss. None for no pairs."""
    return round(sum(m > 0 for m in margins) / len(margins), 4) if margins else None


def held_out_metrics(model: Classifier, test: Sequence[_EncodedPair]) -> dict[str, Any]:
    """Accuracy overall, by degradation and by language, and the mean score difference, on held-out pairs.

    `longer_is_chosen` is what a model that only prefers more tokens would reach: accuracy should be read against it.
    """
    scores = model.score_ids([p.chosen_ids for p in test] + [p.rejected_ids for p in test])
    margins = [a - b for a, b in zip(scores[: len(test)], scores[len(test) :], strict=True)]
    mean = sum(margins) / len(margins) if margins else math.nan

    def by(key: Callable[[RewardPair], str]) -> dict[str, float | None]:
        groups: dict[str, list[float]] = {}
        for encoded, margin in zip(test, margins, strict=True):
            groups.setdefault(key(encoded.pair), []).append(margin)
        return {name: _accuracy(values) for name, values in sorted(groups.items())}

    return {
        "pairs_test": len(test),
        "accuracy": _accuracy(margins),
        "accuracy_by_subset": by(lambda p: p.subset),
        "accuracy_by_lang": by(lambda p: p.lang),
        "longer_is_chosen": _accuracy([float(len(p.chosen_ids) - len(p.rejected_ids)) for p in test]),
        "mean_margin": round(mean, 4) if math.isfinite(mean) else None,
    }


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
) -> dict[str, Any]:
    """Train a reward model on the "train" pairs, save it, and measure it on the others as scoring will use it.

    A run that was stopped goes on from the newest whole checkpoint in `checkpoint_dir`, which must belong to the same
    pairs and settings (the caller's fingerprint sees to that); in fp32 on one device the result is the same.

    Args:
        backbone: a transformers folder; its head, if any, of one output is replaced.
        output: where weights (fp32 safetensors), config (num_labels 1, pad_token_id) and tokenizer with template go.
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

    Returns:
        `pairs_train`, `pairs_test`, `pairs_left_out` (cannot be encoded, or equal once cut), `steps`, `final_loss` (mean of
        the last ten steps), `accuracy`, `accuracy_by_subset`, `accuracy_by_lang`, `longer_is_chosen`, `mean_margin`
        (None where nothing is held out).

    Raises:
        UserError: no pair to train on, an unknown precision, or a backbone that cannot be loaded.
        StepError: the loss became NaN or infinite; nothing is saved.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r}; known are {', '.join(PRECISIONS)}")
    encoder = Encoder.load(backbone, max_length=max_length)
    encoded = _encode(encoder, pairs)
    train = [p for p in encoded if p.pair.split == "train"]
    test = [p for p in encoded if p.pair.split != "train"]
    if not train:
        raise UserError(f"no reward pair to train on: {len(pairs)} pairs, {len(test)} of them held out")
    model = _fresh_model(backbone, encoder.pad_id, seed)
    state = _run(
        model,
        encoder,
        train,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        seed=seed,
        precision=precision,
        on_step=on_step,
        checkpoint_dir=checkpoint_dir,
        save_steps=save_steps,
    )
    losses = [float(entry["loss"]) for entry in state.log_history if "loss" in entry]
    if not losses or not all(math.isfinite(loss) for loss in losses):
        raise StepError(
            f"the reward model's loss is not finite ({losses[-1] if losses else 'no step'}); lower learning_rate"
        )
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(output))
    encoder.tokenizer.save_pretrained(str(output))
    last = losses[-10:]
    return {
        "pairs_train": len(train),
        "pairs_left_out": len(pairs) - len(encoded),
        "steps": state.global_step,
        "final_loss": round(sum(last) / len(last), 4),
        **held_out_metrics(Classifier.load(output, precision=precision, max_length=max_length), test),
    }
