"""In-process vLLM: the default engine, one process and no server."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from align.core.errors import StepError
from align.engines.protocol import Answered, Completion, EngineInfo, Request, most_likely
from align.engines.weights import only_weights_differ

# Read by vLLM when it is imported. In-process, because a second process would outlive a killed step and keep its memory.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout carries progress
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB; only vLLM's CPU backend reads it
}
WHOLE_PREFILL_TOKENS = 8192


def _cpu_options(max_model_len: int) -> dict[str, Any]:
    """What the CPU backend needs on top of vLLM's defaults.

    Eager, since compiling its graphs takes longer than most steps. Prompts are never prefilled in chunks: after a chunk
    vLLM rewinds a seeded request's generator, which CPU generators cannot do ("CPU Generator does not use offset").
    """
    return {
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(WHOLE_PREFILL_TOKENS, max_model_len),
    }


def stop(llm: Any) -> None:
    """End a `vllm.LLM` in this process and give back its memory."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()


def _pack_heads(model: Any) -> None:
    """Pack heads: vLLM's CPU backend multiplies by a copy, and that of a head tied to the embedding stays the old."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding):
            module.quant_method.process_weights_after_loading(module)


class VllmEngine:
    """vLLM behind the engine protocol.

    Sample i of a request is drawn with seed + i, by vLLM itself. Stop ids are those of the model's generation_config.json
    and its tokenizer. Batches are formed by load, so a token can differ between runs where two were almost equally likely.
    """

    def __init__(
        self,
        model: Path,
        *,
        dtype: str = "auto",
        max_model_len: int,
        max_num_seqs: int = 128,
        gpu_memory_utilization: float = 0.9,
        seed: int = 0,
    ) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import vllm
        from vllm.platforms import current_platform

        options: dict[str, Any] = {
            "dtype": dtype,
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
            "gpu_memory_utilization": gpu_memory_utilization,
            "seed": seed,
            "load_format": "safetensors",  # "auto" falls back to pickled weights
            # Ours decide: "auto" would let the model's generation_config.json change temperature and penalties.
            "generation_config": "vllm",
            "logprobs_mode": "raw_logprobs",  # before penalties and temperature
            # Small models asked for JSON otherwise write blanks until max_tokens.
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        }
        self._max_num_seqs = max_num_seqs
        self._folder = model
        on_cpu = current_platform.is_cpu()
        if on_cpu:
            options |= _cpu_options(max_model_len)
        self._llm: Any = vllm.LLM(str(model), trust_remote_code=False, **options)
        self.info = EngineInfo(
            kind="vllm",
            version=vllm.__version__,
            max_model_len=max_model_len,
            deterministic=False,
            flags={**options, "device": "cpu" if on_cpu else current_platform.get_device_name()},
        )

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answered]:
        """Yield each request's answers as it finishes; a request that vLLM refuses comes back with its `error`.

        Twice as many requests as vLLM runs at once are handed to it, so that it never waits for the next one.

        Raises:
            StepError: vLLM sampled from other prompt ids than it was given.
        """
        from vllm.exceptions import VLLMClientError

        engine = self._llm.llm_engine
        waiting, more = iter(requests), True
        running: dict[str, Request] = {}
        internal_ids: dict[str, str] = {}
        number = 0
        try:
            while True:
                while more and len(running) < 2 * self._max_num_seqs:
                    try:
                        request = next(waiting)
                    except StopIteration:
                        more = False
                        break
                    if request is None:
                        break
                    number += 1
                    try:
                        (prompt,) = self._llm.renderer.render_cmpl([{"prompt_token_ids": list(request.prompt_ids)}])
                        internal_ids[str(number)] = engine.add_request(str(number), prompt, _sampling_params(request))
                    except VLLMClientError as error:
                        reason = f"vllm: {' '.join(str(error).split())}"
                        yield Answered(request_id=request.id, completions=(), error=reason)
                    else:
                        running[str(number)] = request
                if running:
                    for output in engine.step():
                        if output.finished:
                            del internal_ids[output.request_id]
                            yield _answered(running.pop(output.request_id), output)
                else:  # no request, and no answer is under way that could bring one
                    return
        finally:
            if running:  # the caller stopped early: leave nothing in the engine for the next call to meet
                engine.abort_request(list(internal_ids.values()), internal=True)

    def take_weights(self, model: Path) -> bool:
        """Go on with another model's weights, where nothing else differs: a second in place of an engine's start.

        Returns:
            Whether it was done. Where not, the engine serves the model that it had.

        Raises:
            StepError: answers of the old weights stay cached.
        """
        if not only_weights_differ(self._folder, model, any_dtype=self.info.flags["dtype"] != "auto"):
            return False
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(model)})
        if self.info.flags["device"] == "cpu":
            self._llm.apply_model(_pack_heads)
        if not self._llm.reset_prefix_cache():
            raise StepError(f"vLLM kept keys and values of {self._folder} for {model}")
        self._folder = model
        return True

    def close(self) -> None:
        """Stop the engine and give back its memory. The engine answers nothing afterwards."""
        if self._llm is None:
            return
        stop(self._llm)
        self._llm = None


def _num_drawn(request: Request) -> int:
    """vLLM refuses n > 1 where temperature is 0; one greedy answer then stands for all n."""
    return 1 if request.sampling.temperature == 0 else request.n


def _sampling_params(request: Request) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    sampling = request.sampling
    return SamplingParams(
        n=_num_drawn(request),
        seed=request.seed,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        max_tokens=sampling.max_tokens,
        repetition_penalty=sampling.repetition_penalty,
        detokenize=False,
        logprobs=request.top_logprobs or None,
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=StructuredOutputsParams(json=request.json_schema) if request.json_schema else None,
    )


def _first_logprobs(sample: Any, count: int) -> tuple[tuple[int, float], ...]:
    """`Completion.first_logprobs`; vLLM adds the drawn token to the likeliest where it is none of them."""
    told = sample.logprobs[0].items() if count else ()
    return most_likely(((token, one.logprob) for token, one in told), count)


def _answered(request: Request, output: Any) -> Answered:
    if tuple(output.prompt_token_ids) != request.prompt_ids:
        raise StepError(f"vLLM changed the prompt ids of request {request.id}")
    reasons = {sample.finish_reason for sample in output.outputs}
    if unknown := reasons - {"stop", "length"}:
        return Answered(request_id=request.id, completions=(), error=f"vllm: finished by {', '.join(map(str, unknown))}")
    drawn = tuple(
        Completion(
            token_ids=tuple(sample.token_ids),
            finish_reason=sample.finish_reason,
            first_logprobs=_first_logprobs(sample, request.top_logprobs),
        )
        for sample in output.outputs
    )
    return Answered(request_id=request.id, completions=drawn * (request.n // len(drawn)))
