"""Plain transformers: the engine that runs everywhere and repeats its answers exactly.

One request at a time, its n samples as one batch that shares the prompt: no padding and no neighbours, so an answer depends
on nothing but its request. That is slower than vLLM and is why it is the reference.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.core.errors import UserError
from align.core.hashing import derive_seed
from align.engines.protocol import Answered, Completion, EngineInfo, Request, Sampling, most_likely

if TYPE_CHECKING:
    import torch


class TransformersEngine:
    """`AutoModelForCausalLM` with a key-value cache and its own sampling loop; CUDA where there is one, else CPU.

    Args:
        model: folder with config.json and safetensors weights (and the tokenizer, where JSON schemas are asked for).
        dtype: a torch type by name, or "auto" for the weights' own. Only float32 is declared deterministic.
        max_model_len: tokens of prompt and completion together.
        stop_ids: tokens that end a completion; each counts as its last token.
    """

    def __init__(self, model: Path, *, dtype: str = "float32", max_model_len: int, stop_ids: tuple[int, ...]) -> None:
        import torch
        import transformers

        self._folder = model
        self._stop_ids = stop_ids
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(model),
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
        self._model = loaded.to(self._device).eval()
        self._last_only: dict[str, int] = (
            {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(loaded.forward).parameters else {}
        )
        self._grammars: _Grammars | None = None
        self.info = EngineInfo(
            kind="transformers",
            version=transformers.__version__,
            max_model_len=max_model_len,
            deterministic=loaded.dtype == torch.float32,
            flags={"dtype": str(loaded.dtype).removeprefix("torch."), "device": self._device.type},
        )

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answered]:
        """Yield each request's answers, in the order of the requests.

        Raises:
            UserError: a JSON schema is asked for and xgrammar is not installed.
        """
        for request in requests:
            if request is None:
                raise RuntimeError("asked to wait, with no request at work")
            length = len(request.prompt_ids) + request.sampling.max_tokens
            if length > self.info.max_model_len:
                error = f"prompt_too_long: {length} tokens with the answer > {self.info.max_model_len}"
                yield Answered(request_id=request.id, completions=(), error=error)
                continue
            # Greedy answers are all the same: one stands for all n.
            count = 1 if request.sampling.temperature == 0 else request.n
            drawn = self._sample(request, count)
            yield Answered(request_id=request.id, completions=drawn * (request.n // count))

    def close(self) -> None:
        """Give back the model's memory. The engine answers nothing afterwards."""
        import torch

        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _sample(self, request: Request, count: int) -> tuple[Completion, ...]:
        """`count` completions of one prompt. A row leaves the batch, and the cache, when it ends."""
        import torch

        generators = [torch.Generator(self._device).manual_seed(derive_seed(request.seed, index)) for index in range(count)]
        matchers = self._matchers(request.json_schema, count) if request.json_schema else None
        answers: list[list[int]] = [[] for _ in range(count)]
        rows = list(range(count))  # samples still being written, in batch order
        seen = None
        likely: tuple[tuple[int, float], ...] = ()
        with torch.inference_mode():
            logits, cache = self._forward([list(request.prompt_ids)], None)
            cache.reorder_cache(torch.zeros(count, dtype=torch.long, device=self._device))
            logits = logits.expand(count, -1)
            if request.sampling.repetition_penalty != 1.0:
                seen = torch.zeros_like(logits, dtype=torch.bool)
                seen[:, list(request.prompt_ids)] = True
            while True:
                # As in vLLM the grammar comes first, so that no filter can leave only tokens it forbids.
                if matchers is not None:
                    logits = matchers.mask(logits, rows)
                likely = likely or first_logprobs(logits[0], request.top_logprobs)
                tokens = choose(logits, request.sampling, [generators[row] for row in rows], seen)
                for row, token in zip(rows, tokens, strict=True):
                    answers[row].append(token)
                    if matchers is not None:
                        matchers.accept(row, token)
                going = [
                    place
                    for place, row in enumerate(rows)
                    if answers[row][-1] not in self._stop_ids and len(answers[row]) < request.sampling.max_tokens
                ]
                if not going:
                    break
                if seen is not None:
                    seen[range(len(rows)), tokens] = True
                    seen = seen[going]
                if len(going) < len(rows):
                    cache.reorder_cache(torch.tensor(going, device=self._device))
                    rows = [rows[place] for place in going]
                logits, cache = self._forward([[answers[row][-1]] for row in rows], cache)
        return tuple(
            Completion(
                token_ids=tuple(ids),
                finish_reason="stop" if ids[-1] in self._stop_ids else "length",
                first_logprobs=likely,
            )
            for ids in answers
        )

    def _forward(self, input_ids: list[list[int]], cache: Any) -> tuple[torch.Tensor, Any]:
        """(float32 logits of the last position (rows, vocabulary), the cache with these tokens in it)."""
        import torch

        ids = torch.tensor(input_ids, device=self._device)
        output = self._model(input_ids=ids, past_key_values=cache, use_cache=True, **self._last_only)
        return output.logits[:, -1].float(), output.past_key_values

    def _matchers(self, json_schema: str, count: int) -> _Matchers:
        if self._grammars is None:
            self._grammars = _Grammars(self._folder, self._model.config.get_text_config().vocab_size, self._stop_ids)
        return _Matchers(self._grammars, json_schema, count)


def first_logprobs(logits: torch.Tensor, count: int) -> tuple[tuple[int, float], ...]:
    """`Completion.first_logprobs` from the first token's `logits` (vocabulary)."""
    import torch

    if not count:
        return ()
    values, tokens = torch.log_softmax(logits, dim=-1).topk(min(count, len(logits)))
    return most_likely(zip(tokens.tolist(), values.tolist(), strict=True), count)


def choose(
    logits: torch.Tensor,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    seen: torch.Tensor | None,
) -> list[int]:
    """The next token of each row of `logits` (rows, vocabulary), each drawn by its own generator.

    vLLM's definitions in vLLM's order: repetition penalty on the tokens in `seen` (rows, vocabulary, bool; prompt and
    answer), temperature, `min_p`, then `top_p` as the smallest set of tokens whose probability reaches it.
    """
    import torch

    if seen is not None:
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.temperature == 0:
        return [int(token) for token in logits.argmax(-1)]
    probs = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.min_p > 0:
        probs = probs.masked_fill(probs < sampling.min_p * probs.amax(-1, keepdim=True), 0.0)
        probs = probs / probs.sum(-1, keepdim=True)
    if sampling.top_p < 1:
        ordered, places = probs.sort(dim=-1, descending=True)
        # A token stays when those before it do not yet reach top_p; the most likely one always does.
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= sampling.top_p, 0.0)
        probs = torch.zeros_like(probs).scatter(-1, places, ordered)
    return [int(torch.multinomial(row, 1, generator=g)) for row, g in zip(probs, generators, strict=True)]


class _Grammars:
    """xgrammar's compiler for one model's vocabulary; it caches what it compiled by schema."""

    def __init__(self, folder: Path, vocab_size: int, stop_ids: tuple[int, ...]) -> None:
        try:
            import xgrammar
        except ImportError:
            raise UserError("answers in a JSON schema need xgrammar: pip install xgrammar") from None
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        tokens = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size, stop_token_ids=list(stop_ids))
        self.compiler = xgrammar.GrammarCompiler(tokens)
        self.vocab_size = vocab_size


class _Matchers:
    """Where each sample of one request stands in the JSON grammar."""

    def __init__(self, grammars: _Grammars, json_schema: str, count: int) -> None:
        import xgrammar

        # No free whitespace: small models otherwise write blanks until max_tokens. Separators as in the vLLM engine.
        grammar = grammars.compiler.compile_json_schema(json_schema, any_whitespace=False, separators=(",", ":"))
        self._matchers = [xgrammar.GrammarMatcher(grammar) for _ in range(count)]
        self._vocab_size = grammars.vocab_size

    def mask(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """A copy of `logits` (rows, vocabulary) with -inf where the grammar allows no token."""
        import xgrammar

        allowed = xgrammar.allocate_token_bitmask(len(rows), self._vocab_size)
        for place, row in enumerate(rows):
            self._matchers[row].fill_next_token_bitmask(allowed, place)
        masked = logits.clone()
        xgrammar.apply_token_bitmask_inplace(masked, allowed.to(logits.device))
        return masked

    def accept(self, row: int, token: int) -> None:
        """Move sample `row` on by one token."""
        self._matchers[row].accept_token(token)
