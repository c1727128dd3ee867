"""Any OpenAI-compatible server that takes and returns token ids, such as `vllm serve`."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from align.core.errors import UserError
from align.engines.protocol import Answered, Completion, EngineInfo, Request, most_likely

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_DONE = object()
IDLE_S = 0.01  # until a worker looks again whether there is a request


class OpenAIEngine:
    """The completions endpoint of a server, token ids in and out, n samples in one call.

    What no call can set, the server's start must: `--generation-config vllm` (else the model's generation_config.json may
    add its own penalties) and, for JSON schemas, `--structured-outputs-config '{"backend": "xgrammar",
    "disable_any_whitespace": true}'` (else small models write blanks between the fields until max_tokens).

    Args:
        base_url: such as http://localhost:8000/v1.
        model_name: the model's name on the server.
        api_key_env: environment variable that holds the key. The key is read for each `generate` and kept nowhere.
        max_model_len: tokens of prompt and completion together; the server's own limit must be no smaller.
        max_concurrency: calls in flight.
        timeout_s: of one call.
        max_retries: after time-outs, lost connections and status 408, 409, 429 and 5xx, with exponential back-off.

    Raises:
        UserError: `api_key_env` is not set, or `base_url` holds a password.
    """

    def __init__(
        self,
        base_url: str,
        model_name: str,
        *,
        api_key_env: str | None,
        max_model_len: int,
        max_concurrency: int = 16,
        timeout_s: float = 120,
        max_retries: int = 4,
    ) -> None:
        import openai

        if "@" in urlsplit(base_url).netloc:
            raise UserError("engine.base_url holds a user name or password; put the key in a variable (engine.api_key_env)")
        if api_key_env and not os.environ.get(api_key_env):
            raise UserError(f"environment variable {api_key_env} (engine.api_key_env) is not set")
        self._base_url = base_url
        self._model_name = model_name
        self._api_key_env = api_key_env
        self._max_concurrency = max_concurrency
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self.info = EngineInfo(
            kind="openai",
            version=openai.__version__,
            max_model_len=max_model_len,
            deterministic=False,
            flags={"base_url": base_url, "model_name": model_name},
        )

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answered]:
        """Yield each request's answers as it finishes; a call that failed for good comes back with its `error`.

        Raises:
            UserError: the server cannot be reached, returns no token ids or changes the prompt's ids.
        """
        # A thread with its own event loop: calls go on while the caller writes, and it works where a loop already runs.
        results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(requests, results, stop), daemon=True)
        thread.start()
        try:
            while (result := results.get()) is not _DONE:
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            stop.set()
            thread.join()

    def close(self) -> None:
        """Nothing is held between calls."""

    def _run(self, requests: Iterable[Request | None], results: queue.SimpleQueue[Any], stop: threading.Event) -> None:
        try:
            asyncio.run(self._answer_all(requests, results, stop))
        except BaseException as error:
            results.put(error)
        else:
            results.put(_DONE)

    async def _answer_all(
        self, requests: Iterable[Request | None], results: queue.SimpleQueue[Any], stop: threading.Event
    ) -> None:
        """`max_concurrency` workers take requests from one iterator until it is empty, one fails or `stop` is set.

        The iterator is drawn from in this thread while the caller works in its own.
        """
        from openai import AsyncOpenAI

        # Never None: the client would then send OPENAI_API_KEY, whosever server this is.
        key = os.environ.get(self._api_key_env, "") if self._api_key_env else "none"
        pending = iter(requests)
        turn = asyncio.Lock()  # one worker looks for the next request, the others need not wake for it

        async def work(client: AsyncOpenAI) -> None:
            while True:
                async with turn:
                    while (request := next(pending, _DONE)) is None:
                        await asyncio.sleep(IDLE_S)
                if not isinstance(request, Request):
                    return
                results.put(await self._answer(client, request, key))

        async with AsyncOpenAI(
            base_url=self._base_url, api_key=key, timeout=self._timeout_s, max_retries=self._max_retries
        ) as client:
            everyone = {asyncio.create_task(work(client)) for _ in range(self._max_concurrency)}
            tasks = everyone
            try:
                while tasks and not stop.is_set():
                    done, tasks = await asyncio.wait(tasks, timeout=0.2, return_when=asyncio.FIRST_EXCEPTION)
                    for task in done:
                        task.result()
            finally:
                for task in tasks:
                    task.cancel()
                # All of them: several may have failed, and each error must be looked at.
                await asyncio.gather(*everyone, return_exceptions=True)

    async def _answer(self, client: AsyncOpenAI, request: Request, key: str) -> Answered:
        import openai

        sampling = request.sampling
        count = 1 if sampling.temperature == 0 else request.n  # servers refuse n > 1 greedy answers: they are all one
        try:
            response = await client.completions.create(
                model=self._model_name,
                prompt=list(request.prompt_ids),
                n=count,
                seed=request.seed,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                extra_body=_extra_body(request),
            )
        except openai.APITimeoutError:
            return _failed(request, f"timeout: no answer within {self._timeout_s:g} s, {self._max_retries + 1} times")
        except openai.APIConnectionError:
            raise UserError(f"cannot reach {self._base_url}: start the server or mend engine.base_url") from None
        except openai.APIStatusError as error:
            return _failed(request, f"http_{error.status_code}: {error.message.replace(key, '***')}")
        return self._parsed(request, response, request.n // count)

    def _parsed(self, request: Request, response: Any, repeats: int) -> Answered:
        """The choices of one response in sample order, `repeats` times."""
        drawn = []
        for choice in sorted(response.choices, key=lambda choice: choice.index):
            token_ids = getattr(choice, "token_ids", None)
            if token_ids is None:
                raise UserError(
                    f"{self._base_url} returns no token ids; engine.kind: openai needs a server that does (vllm serve)"
                )
            if tuple(getattr(choice, "prompt_token_ids", None) or request.prompt_ids) != request.prompt_ids:
                raise UserError(f"{self._base_url} changed the prompt's token ids; does it serve this recipe's model?")
            if choice.finish_reason not in ("stop", "length"):
                return _failed(request, f"finished by {choice.finish_reason}")
            likely = _first_logprobs(choice, request.top_logprobs)
            drawn.append(Completion(token_ids=tuple(token_ids), finish_reason=choice.finish_reason, first_logprobs=likely))
        if len(drawn) * repeats != request.n:
            return _failed(request, f"the server sent {len(drawn)} completions, not {request.n // repeats}")
        return Answered(request_id=request.id, completions=tuple(drawn) * repeats)


def _extra_body(request: Request) -> dict[str, Any]:
    """What vLLM takes beyond OpenAI's parameters."""
    body: dict[str, Any] = {
        "return_token_ids": True,
        "min_p": request.sampling.min_p,
        "repetition_penalty": request.sampling.repetition_penalty,
    }
    if request.top_logprobs:
        # By id, since tokens that read alike ("5" with and without a space before it) would overwrite each other.
        body |= {"logprobs": request.top_logprobs, "return_tokens_as_token_ids": True}
    if request.json_schema:
        body["structured_outputs"] = {"json": json.loads(request.json_schema)}
    return body


def _first_logprobs(choice: Any, count: int) -> tuple[tuple[int, float], ...]:
    """`Completion.first_logprobs`, or () from a server that tells none, or none by token id."""
    told = getattr(getattr(choice, "logprobs", None), "top_logprobs", None)
    if not count or not told or not told[0]:
        return ()
    found = [(name.removeprefix("token_id:"), value) for name, value in told[0].items() if name.startswith("token_id:")]
    return most_likely(((int(token), value) for token, value in found), count)


def _failed(request: Request, error: str) -> Answered:
    return Answered(request_id=request.id, completions=(), error=error)
