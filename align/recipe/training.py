"""The recipe's sections on training: what SFT and preference training share, and one section per preference loss."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from align.recipe.base import BASE_MODEL, Count, Number, Positive, Share, Strict


class LoraSpec(Strict):
    """Low-rank adapters on every linear layer but the LM head (arXiv 2106.09685)."""

    rank: Count = 16
    alpha: Count = Field(32, description="The update is scaled by alpha / rank.")
    dropout: Annotated[float, Number, Field(ge=0, lt=1)] = 0.0


class TrainSpec(Strict):
    """What SFT and preference training share."""

    epochs: Count = 1
    batch_size: Count = Field(16, description="Dialogues or pairs per optimizer step, over all devices.")
    micro_batch_tokens: Count = Field(
        2048, description="Most tokens that go through the model at once; changes speed and memory, not results."
    )
    layout: Literal["auto", "shared", "separate"] = Field(
        "auto", description="shared: prompts once, packed; separate: plain padded rows; auto: shared where the model can."
    )
    head: Literal["auto", "triton", "chunked", "reference", "plain"] = Field(
        "auto", description="The LM head with its loss; plain: the model's own logits. auto: the fastest there is."
    )
    lora: LoraSpec | None = Field(None, description="Train low-rank adapters and merge them; null trains all weights.")
    processes: Count = Field(1, description="Processes to train with, one per GPU.")
    parallel: Literal["ddp", "fsdp2"] = Field("ddp", description="With several processes: copies, or one sharded model.")
    snapshots: Annotated[int, Number, Field(ge=0)] = Field(0, description="Models saved inside the run, evenly spaced.")
    warmup_ratio: Share = 0.1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: Annotated[float, Number, Field(ge=0)] = 0.0
    max_grad_norm: Positive = 1.0
    max_length: Count = Field(1024, description="Longer examples are dropped and counted, never cut.")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="bf16: float32 weights under bfloat16 autocast; auto: bf16 where the device has it."
    )
    gradient_checkpointing: bool = False
    save_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of the saved weights; auto: the init model's. bfloat16 rounds small updates of short runs away."
    )
    save_steps: Annotated[int, Number, Field(ge=0)] = Field(0, description="Between checkpoints; 0: two minutes.")


class SftSpec(TrainSpec):
    """SFT of M0, on assistant tokens only."""

    init: str = Field(BASE_MODEL, description="The model to start from.")
    learning_rate: Positive = 2.0e-5


# Whether a loss of `align.train.losses` reads a reference model; a test holds the two tables together.
NEEDS_REFERENCE = {"dpo": True, "ipo": True, "dpo_norm": True, "simpo": False, "simper": False, "orpo": False}
NotNegative = Annotated[float, Number, Field(ge=0)]


class PreferenceTrainSpec(TrainSpec):
    """What the preference losses share; their formulas are in docs/training.md."""

    learning_rate: Positive = Field(5.0e-7, description="Published runs lie between 3e-7 and 1e-6.")
    batch_size: Count = Field(128, description="Pairs per optimizer step; published runs use 128.")
    allow_high_learning_rate: bool = Field(
        False, description="Needed above 2e-6, where SimPO is known to collapse into repetition on large models."
    )
    nll_weight: NotNegative = Field(0.0, description="Adds this times -lp_w/|w|: IRPO uses 1.0, RPO 0.005.")

    @model_validator(mode="after")
    def _rate(self) -> PreferenceTrainSpec:
        if self.learning_rate > 2e-6 and not self.allow_high_learning_rate:
            raise ValueError(
                f"learning_rate {self.learning_rate:g} is above 2e-6; write allow_high_learning_rate: true if you mean it"
            )
        return self


class NoisyLabelsSpec(PreferenceTrainSpec):
    """What the losses share that allow for labels that are wrong at a known rate."""

    label_smoothing: Annotated[float, Number, Field(ge=0, lt=0.5)] = Field(0.0, description="That rate, e.")
    robust: bool = Field(False, description="false: cDPO's loss for this rate; true: the unbiased one (arXiv 2403.00409).")

    @model_validator(mode="after")
    def _flips(self) -> NoisyLabelsSpec:
        if self.robust and not self.label_smoothing:
            raise ValueError("robust: true changes nothing without label_smoothing; give the rate of wrong labels")
        return self


class DpoSpec(NoisyLabelsSpec):
    """DPO (arXiv 2305.18290)."""

    loss: Literal["dpo"]
    beta: Positive = 0.1


class IpoSpec(PreferenceTrainSpec):
    """IPO on log-ratios averaged over tokens (arXiv 2310.12036)."""

    loss: Literal["ipo"]
    tau: Positive = Field(0.1, description="The margin aimed at is 1/(2 tau) nats per token.")


class DpoNormSpec(NoisyLabelsSpec):
    """DPO on log-ratios per token (Tulu 3, arXiv 2411.15124)."""

    loss: Literal["dpo_norm"]
    beta: Positive = Field(5.0, description="Per token; Tulu 3 uses 5.")


class SimpoSpec(PreferenceTrainSpec):
    """SimPO (arXiv 2405.14734)."""

    loss: Literal["simpo"]
    beta: Positive = 2.5
    gamma_absolute: NotNegative | None = Field(None, description="The margin gamma of the paper's equation.")
    gamma_over_beta: NotNegative | None = Field(None, description="Or gamma/beta, as in SimPO's code; 0.5 if both are null.")

    @model_validator(mode="before")
    @classmethod
    def _one_margin(cls, data: Any) -> Any:
        keys = ("gamma_absolute", "gamma_over_beta") if isinstance(data, dict) else ()
        given = [key for key in keys if data.get(key) is not None]
        if len(given) > 1:
            raise ValueError("give gamma_absolute or gamma_over_beta, not both (null takes one back)")
        # Filled in here and not left to the loss: a resolved recipe says what was trained with.
        return {**data, "gamma_over_beta": 0.5} if keys and not given else data


class SimperSpec(PreferenceTrainSpec):
    """SimPER, which has no options of its own (arXiv 2502.00883)."""

    loss: Literal["simper"]


class OrpoSpec(PreferenceTrainSpec):
    """ORPO (arXiv 2403.07691), an NLL loss with an odds ratio term."""

    loss: Literal["orpo"]
    odds_ratio_weight: NotNegative = Field(0.1, description="lambda of the paper, TRL's beta.")
