"""Types that the recipe's sections share, and the sections every step needs: models, engine, sampling."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):  # pydantic would read `epochs: true` as 1
        raise ValueError("a number goes here, not true or false")
    return value


Number = BeforeValidator(_no_switch)
Language = Literal["en", "ko"]
Positive = Annotated[float, Number, Field(gt=0)]
Share = Annotated[float, Number, Field(ge=0, le=1)]
Count = Annotated[int, Number, Field(ge=1)]


def distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    """No value twice."""
    if twice := [v for i, v in enumerate(values) if v in values[:i]]:
        raise ValueError(f"{twice[0]} is listed twice")
    return values


Listed = (Field(min_length=1), AfterValidator(distinct))
Names = Annotated[tuple[str, ...], *Listed]

BASE_MODEL = "base"
SFT_MODEL = "M0"
RESERVED = ("sft", "heldout")  # the other names of prompt sets, beside the stages'


class Strict(BaseModel):
    """Base of every section: unknown keys are errors and a loaded recipe never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def changed(self, *names: str) -> list[str]:
        """Fields that differ from their default; a resolved recipe writes defaults out, so being written says nothing."""
        fields = type(self).model_fields
        return [n for n in names if getattr(self, n) != fields[n].get_default(call_default_factory=True)]


class ModelSpec(Strict):
    """A model: a local folder (`path`) or one that align builds from an installed package (`builtin`)."""

    path: str | None = Field(None, description="Folder with safetensors, tokenizer and chat template.")
    builtin: str | None = Field(None, description="smollm2-135m-instruct, all-minilm-l6-v2, tiny-llama or tiny-bert.")

    @model_validator(mode="after")
    def _one_of(self) -> ModelSpec:
        if (self.path is None) == (self.builtin is None):
            raise ValueError("give either path or builtin")
        return self


class EngineSpec(Strict):
    """What generates text. Options that an engine cannot use are errors."""

    kind: Literal["auto", "vllm", "transformers", "openai", "replay"] = Field(
        "auto", description="auto: vLLM where it is installed, else transformers; the choice is logged."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="auto: the weights' own.")
    max_model_len: Count = Field(1024, description="Tokens of prompt and completion; longer prompts are rejected.")
    max_num_seqs: Count = Field(128, description="vLLM: sequences decoded together.")
    gpu_memory_utilization: Annotated[float, Number, Field(gt=0, lt=1)] = Field(0.9, description="vLLM on a GPU.")
    base_url: str | None = Field(None, description="openai: such as http://localhost:8000/v1.")
    model_names: dict[str, str] = Field(default_factory=dict, description="openai: our model name to the server's.")
    api_key_env: str | None = Field(None, description="openai: environment variable that holds the key.")
    max_concurrency: Count = Field(16, description="openai: requests in flight.")
    timeout_s: Positive = Field(120.0, description="openai: per call.")
    max_retries: Annotated[int, Number, Field(ge=0)] = Field(4, description="openai: with exponential back-off.")
    replay_path: str | None = Field(None, description="replay: the file of recorded answers.")
    record_with: Literal["vllm", "transformers"] | None = Field(
        None, description="replay: who answers what the file lacks; without it a missing answer is an error."
    )

    @model_validator(mode="after")
    def _used(self) -> EngineSpec:
        parts = urlsplit(self.base_url or "")
        if "@" in parts.netloc or parts.query:
            raise ValueError("base_url holds a user name, a password or a key; put the key in a variable (api_key_env)")
        if (self.kind == "openai") != (self.base_url is not None):
            raise ValueError("base_url goes with kind: openai, and kind: openai needs it")
        if (self.kind == "replay") != (self.replay_path is not None):
            raise ValueError("replay_path goes with kind: replay, and kind: replay needs it")
        if self.record_with and self.kind != "replay":
            raise ValueError("record_with goes with kind: replay")
        only_openai = ("api_key_env", "max_concurrency", "max_retries", "model_names", "timeout_s")
        if self.kind != "openai" and (unused := self.changed(*only_openai)):
            raise ValueError(f"{', '.join(unused)} go with kind: openai")
        return self


class SamplingSpec(Strict):
    """How completions are drawn."""

    temperature: Annotated[float, Number, Field(ge=0)] = 0.9
    top_p: Annotated[float, Number, Field(gt=0, le=1)] = 1.0
    min_p: Share = Field(0.0, description="Keep tokens this likely relative to the best; cheaper than top_p on CPU.")
    max_tokens: Count = 256
    repetition_penalty: Positive = 1.0
