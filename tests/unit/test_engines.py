"""Engines without a server and without vLLM: transformers, replay, HTTP failures, and `complete`."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from align.core.chat import Chat, ChatError
from align.core.errors import StepError, UserError
from align.core.journal import Journal
from align.engines.complete import Ask, complete
from align.engines.open import open_engine
from align.engines.openai_engine import OpenAIEngine
from align.engines.protocol import Answered, Completion, EngineInfo, Request, Sampling
from align.engines.replay import ReplayEngine
from align.engines.transformers_engine import TransformersEngine, choose

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "pattern": "^[a-z]{1,8}$"}, "ok": {"type": "boolean"}},
        "required": ["name", "ok"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small only loses by threads, and loses a lot where other tests run beside it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama over single bytes, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>", additional_special_tokens=["<|start|>"]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 6,  # padded, as real models' vocabularies are
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chat(tiny: Path) -> Chat:
    return Chat.load(tiny)


@pytest.fixture(scope="module")
def engine(tiny: Path, chat: Chat) -> TransformersEngine:
    return TransformersEngine(tiny, max_model_len=192, stop_ids=chat.stop_ids)


def request(chat: Chat, text: str, *, n: int = 1, seed: int = 1, schema: str | None = None, **how: Any) -> Request:
    ids = tuple(chat.prompt_ids([{"role": "user", "content": text}]))
    sampling = Sampling(**{"max_tokens": 24, **how})
    return Request(id=text, prompt_ids=ids, n=n, seed=seed, sampling=sampling, json_schema=schema)


def answers(engine: Any, requests: Sequence[Request]) -> dict[str, Answered]:
    return {answered.request_id: answered for answered in engine.generate(requests)}


# transformers


def test_answer_depends_on_its_request_only(engine: TransformersEngine, chat: Chat) -> None:

    def made() -> list[Request]:
        return [request(chat, text, n=3, seed=seed) for seed, text in enumerate(["a", "bb", "a longer question"])]

    together = answers(engine, made())
    assert together == answers(engine, made()[::-1])
    assert together["bb"] == answers(engine, [made()[1]])["bb"]


def test_samples_differ_and_follow_the_seed(engine: TransformersEngine, chat: Chat) -> None:
    first = answers(engine, [request(chat, "a", n=4, seed=5)])["a"]
    assert len(set(first.completions)) == 4
    other = answers(engine, [request(chat, "a", n=4, seed=6)])["a"]
    assert not set(first.completions) & set(other.completions)
    assert engine.info.deterministic


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.5])  # below 1 it draws the answer to the prompt's own tokens
def test_greedy_equals_transformers_generate(engine: TransformersEngine, tiny: Path, chat: Chat, penalty: float) -> None:
    from transformers import AutoModelForCausalLM

    asked = request(chat, "greedy", n=2, temperature=0, repetition_penalty=penalty)
    ours = answers(engine, [asked])["greedy"]
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype="float32")
    prompt = torch.tensor([asked.prompt_ids])
    theirs = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=24,
        repetition_penalty=penalty,
    )
    assert list(ours.completions[0].token_ids) == theirs[0, prompt.shape[1] :].tolist()
    assert ours.completions[0] == ours.completions[1]


def test_stop_token_is_kept_and_is_last(tiny: Path, chat: Chat) -> None:
    stops = tuple(range(40))  # many, so that a random model meets one
    engine = TransformersEngine(tiny, max_model_len=192, stop_ids=stops)
    completions = answers(engine, [request(chat, "stop", n=16, max_tokens=12)])["stop"].completions
    reasons = {completion.finish_reason for completion in completions}
    assert reasons == {"stop", "length"}
    for completion in completions:
        stopped = completion.finish_reason == "stop"
        assert [token in stops for token in completion.token_ids].count(True) == stopped
        assert (completion.token_ids[-1] in stops) == stopped
        assert stopped or len(completion.token_ids) == 12


def test_a_row_that_ended_does_not_move_the_others(tiny: Path, chat: Chat) -> None:
    """Rows leave the batch when they stop; those that stay must read their own cache."""
    asked = request(chat, "stop", n=8, max_tokens=12)
    free = TransformersEngine(tiny, max_model_len=192, stop_ids=())
    stopping = TransformersEngine(tiny, max_model_len=192, stop_ids=tuple(range(40)))
    whole = answers(free, [asked])["stop"].completions
    cut = answers(stopping, [asked])["stop"].completions
    assert any(len(completion.token_ids) < 12 for completion in cut)
    for long, short in zip(whole, cut, strict=True):
        assert long.token_ids[: len(short.token_ids)] == short.token_ids


@pytest.mark.parametrize(
    ("limits", "allowed"),
    [
        ({"top_p": 0.75}, {0, 1}),  # 0.5 does not reach 0.75, 0.5 + 0.3 does
        ({"top_p": 0.0001}, {0}),
        ({"min_p": 0.5}, {0, 1}),  # at least 0.25
        ({"min_p": 0.3, "top_p": 0.8}, {0, 1}),  # min_p leaves 0.5, 0.3, 0.15; of those 0.84 reaches 0.8
        ({}, {0, 1, 2, 3}),
    ],
)
def test_top_p_and_min_p(limits: dict[str, float], allowed: set[int]) -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(400, 1)
    generators = [torch.Generator().manual_seed(i) for i in range(400)]
    assert set(choose(logits, Sampling(**limits), generators, None)) == allowed


def test_repetition_penalty_covers_both_signs() -> None:
    seen = torch.tensor([[True, False], [True, False]])
    logits = torch.tensor([[2.0, 1.5], [-1.0, -1.5]])
    greedy = Sampling(temperature=0, repetition_penalty=2.0)
    assert choose(logits, greedy, [], seen) == [1, 1]


def test_json_schema(engine: TransformersEngine, chat: Chat) -> None:
    completions = answers(engine, [request(chat, "json", n=4, schema=SCHEMA, max_tokens=64)])["json"].completions
    for completion in completions:
        value = json.loads(chat.text(completion.token_ids))
        assert list(value) == ["name", "ok"]
        assert isinstance(value["ok"], bool)
        assert completion.finish_reason == "stop"
        assert completion.token_ids[-1] in chat.stop_ids


def test_json_schema_without_xgrammar(tiny: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TransformersEngine(tiny, max_model_len=192, stop_ids=chat.stop_ids)
    monkeypatch.setitem(__import__("sys").modules, "xgrammar", None)
    with pytest.raises(UserError, match="pip install xgrammar"):
        list(engine.generate([request(chat, "json", schema=SCHEMA)]))


def test_transformers_refuses_what_does_not_fit(engine: TransformersEngine, chat: Chat) -> None:
    answered = answers(engine, [request(chat, "x" * 100, max_tokens=128)])["x" * 100]
    assert answered.error.startswith("prompt_too_long")
    assert not answered.completions


# complete and replay, on an engine that counts its calls


class Scripted:
    """Answers with the request's seed as its tokens; `fail` names requests that get an error, `die_after` calls."""

    def __init__(self, fail: Sequence[str] = (), die_after: int = 10**6, fault: str = "http_500: out of order") -> None:
        self._fault = fault
        self.info = EngineInfo(kind="scripted", version="1", max_model_len=64, deterministic=True, flags={})
        self.asked: list[str] = []
        self._fail = fail
        self._die_after = die_after

    def generate(self, requests: Sequence[Request]) -> Iterator[Answered]:
        for count, asked in enumerate(reversed(requests)):
            if count == self._die_after:
                raise KeyboardInterrupt
            self.asked.append(asked.id)
            if asked.id in self._fail:
                yield Answered(request_id=asked.id, completions=(), error=self._fault)
            else:
                drawn = tuple(Completion(token_ids=(asked.seed, i), finish_reason="stop") for i in range(asked.n))
                yield Answered(request_id=asked.id, completions=drawn)

    def close(self) -> None:
        pass


def asks(*ids: str) -> list[Ask]:
    return [Ask(id=ask_id, messages=[{"role": "user", "content": f"tell {ask_id}"}], n=2) for ask_id in ids]


def run(engine: Any, chat: Chat, journal: Journal, which: Sequence[Ask], **changes: Any) -> dict[str, Answered]:
    how: dict[str, Any] = {"run_seed": 3, "purpose": "test", "journal": journal, "label": "answer"}
    sampling = changes.pop("sampling", Sampling(max_tokens=8))
    return complete(engine, chat, which, sampling, **{**how, **changes})


def test_complete_resumes_without_repeating_a_call(tmp_path: Path, chat: Chat) -> None:
    wanted = asks("p0", "p1", "p2", "p3")
    dying = Scripted(die_after=2)
    with pytest.raises(KeyboardInterrupt):
        run(dying, chat, Journal(tmp_path / "j"), wanted)
    again = Scripted()
    results = run(again, chat, Journal(tmp_path / "j"), wanted)
    assert sorted(dying.asked + again.asked) == ["p0", "p1", "p2", "p3"]
    assert list(results) == ["p0", "p1", "p2", "p3"]
    assert results == run(Scripted(), chat, Journal(tmp_path / "fresh"), wanted)
    third = Scripted()
    assert run(third, chat, Journal(tmp_path / "j"), wanted) == results
    assert third.asked == []


@pytest.mark.parametrize("change", [{"run_seed": 4}, {"purpose": "other"}, {"sampling": Sampling(max_tokens=9)}])
def test_complete_asks_again_when_the_question_changed(tmp_path: Path, chat: Chat, change: dict[str, Any]) -> None:
    run(Scripted(), chat, Journal(tmp_path / "j"), asks("p0"))
    engine = Scripted()
    run(engine, chat, Journal(tmp_path / "j"), asks("p0"), **change)
    assert engine.asked == ["p0"]


def test_complete_seed_is_by_id(tmp_path: Path, chat: Chat) -> None:
    many = run(Scripted(), chat, Journal(tmp_path / "a"), asks("p0", "p1", "p2"))
    one = run(Scripted(), chat, Journal(tmp_path / "b"), asks("p1"))
    assert many["p1"] == one["p1"]
    assert len({answered.completions[0].token_ids[0] for answered in many.values()}) == 3


def test_complete_rejects_before_any_call(tmp_path: Path, chat: Chat) -> None:
    long = Ask(id="long", messages=[{"role": "user", "content": "x" * 60}])
    engine = Scripted()
    results = run(engine, chat, Journal(tmp_path / "j"), [long, *asks("ok")])
    num_ids = len(chat.prompt_ids(long.messages))
    assert results["long"].error == f"prompt_too_long: {num_ids} tokens + 8 > 64"
    assert engine.asked == ["ok"]
    only = Scripted()
    assert run(only, chat, Journal(tmp_path / "j"), [long])["long"].error
    assert only.asked == []


def test_complete_turns_chat_errors_into_rejects(tmp_path: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Chat, messages: Any) -> list[int]:
        raise ChatError("double_bos")

    monkeypatch.setattr(Chat, "prompt_ids", refuse)
    assert run(Scripted(), chat, Journal(tmp_path / "j"), asks("p0"))["p0"].error == "double_bos"


def test_complete_failed_calls(tmp_path: Path, chat: Chat) -> None:
    with pytest.raises(StepError, match=r"1 of 2 calls .* failed for a passing reason \(http_500: out of order\)"):
        run(Scripted(fail=["p0"]), chat, Journal(tmp_path / "j"), asks("p0", "p1"))
    refused = run(Scripted(fail=["p0"], fault="http_400: bad prompt"), chat, Journal(tmp_path / "i"), asks("p0", "p1"))
    assert refused["p0"].error == "http_400: bad prompt"
    assert not refused["p1"].error
    retried = Scripted()
    assert not run(retried, chat, Journal(tmp_path / "j"), asks("p0", "p1"))["p0"].error
    assert retried.asked == ["p0"]
    with pytest.raises(StepError, match=r"all 2 calls .* http_500: out of order"):
        run(Scripted(fail=["p0", "p1"]), chat, Journal(tmp_path / "k"), asks("p0", "p1"))


def test_complete_refuses_duplicate_ids(tmp_path: Path, chat: Chat) -> None:
    with pytest.raises(ValueError, match="p1"):
        run(Scripted(), chat, Journal(tmp_path / "j"), asks("p1", "p2", "p1"))


def test_complete_notices_an_engine_that_answers_too_little(tmp_path: Path, chat: Chat) -> None:
    class Lazy(Scripted):
        def generate(self, requests: Sequence[Request]) -> Iterator[Answered]:
            return super().generate(requests[1:])

    with pytest.raises(StepError, match="1 unanswered, first p0"):
        run(Lazy(), chat, Journal(tmp_path / "j"), asks("p0", "p1"))


def test_replay_records_then_replays(tmp_path: Path, chat: Chat) -> None:
    requests = [request(chat, text, n=2) for text in ("a", "b")]
    recorder = Scripted(fail=["c"])
    recording = ReplayEngine(tmp_path / "r.jsonl", recorder, "model-1")
    recorded = answers(recording, requests)
    assert (recording.hits, recording.misses) == (0, 2)
    assert answers(recording, [request(chat, "c")])["c"].error
    recording.close()

    replay = ReplayEngine(tmp_path / "r.jsonl", None, "model-1")
    assert answers(replay, requests[::-1]) == recorded
    assert (replay.hits, replay.misses) == (2, 0)
    assert (replay.info.kind, replay.info.max_model_len) == ("replay", 64)
    with pytest.raises(StepError, match=r"r\.jsonl has no answer to request c "):
        answers(replay, [request(chat, "c")])  # an error is not an answer
    with pytest.raises(StepError, match="request a "):
        answers(replay, [request(chat, "a", n=2, seed=2)])


def test_replay_keeps_models_apart(tmp_path: Path, chat: Chat) -> None:
    asked = [request(chat, "a")]
    answers(ReplayEngine(tmp_path / "r.jsonl", Scripted(), "model-1"), asked)
    second = Scripted()
    answers(ReplayEngine(tmp_path / "r.jsonl", second, "model-2"), asked)
    assert second.asked == ["a"]


def test_replay_needs_its_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        ReplayEngine(tmp_path / "none.jsonl", None, "m")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="no header"):
        ReplayEngine(tmp_path / "empty.jsonl", None, "m")


# openai: failures only; what a real server answers is tested against a real server


class Server:
    """Answers each POST with the next entry of `script`: (status, JSON body) or seconds to hang. Then repeats the last."""

    def __init__(self, script: list[Any]) -> None:
        self.calls: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.calls.append(body)
                outer.headers.append(self.headers)
                step = script[min(len(outer.calls), len(script)) - 1]
                if isinstance(step, float):
                    time.sleep(step)
                    return
                status, answer = step
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def answer(*token_ids: list[int] | None, reason: str = "stop", **extra: Any) -> tuple[int, dict[str, Any]]:
    choices = [
        {"index": i, "text": "", "finish_reason": reason, "logprobs": None, **({"token_ids": ids} if ids else {}), **extra}
        for i, ids in enumerate(token_ids)
    ]
    return 200, {"id": "x", "object": "text_completion", "created": 0, "model": "m", "choices": choices[::-1]}


def client(url: str, **how: Any) -> OpenAIEngine:
    return OpenAIEngine(url, "m", **{"api_key_env": None, "max_model_len": 64, "timeout_s": 5, "max_retries": 1, **how})


def refusal(status: int, text: str) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": text}}


def test_openai_retries_429_and_sorts_the_samples(chat: Chat) -> None:
    with Server([refusal(429, "slow down"), answer([5, 2], [6, 2])]) as server:
        (answered,) = client(server.url).generate([request(chat, "a", n=2, seed=9, min_p=0.1, schema=SCHEMA)])
    assert [completion.token_ids for completion in answered.completions] == [(5, 2), (6, 2)]
    assert len(server.calls) == 2
    sent = server.calls[1]
    assert sent["prompt"] == list(request(chat, "a").prompt_ids)
    assert (sent["n"], sent["seed"], sent["min_p"], sent["return_token_ids"]) == (2, 9, 0.1, True)
    assert sent["structured_outputs"] == {"json": json.loads(SCHEMA)}


def test_openai_refusals_are_errors_of_their_request(chat: Chat) -> None:
    with Server([refusal(400, "too long"), answer([5, 2])]) as server:
        both = answers(client(server.url, max_concurrency=1), [request(chat, "a"), request(chat, "b")])
    assert len(server.calls) == 2  # a 400 is not tried again
    assert both["a"].error.startswith("http_400")
    assert "too long" in both["a"].error
    assert not both["b"].error


def test_openai_timeout(chat: Chat) -> None:
    with Server([1.5]) as server:
        begun = time.monotonic()
        (answered,) = client(server.url, timeout_s=0.2).generate([request(chat, "a")])
        assert time.monotonic() - begun < 5
    assert answered.error == "timeout: no answer within 0.2 s, 2 times"
    assert len(server.calls) == 2


def test_openai_unreachable(chat: Chat) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"  # bound but not listening: refused
        with pytest.raises(UserError, match=f"cannot reach {url}: start the server or mend engine.base_url"):
            list(client(url, max_retries=0).generate([request(chat, str(i)) for i in range(40)]))


@pytest.mark.parametrize(
    ("reply", "text"),
    [(answer(None), "returns no token ids"), (answer([5], prompt_token_ids=[1]), "changed the prompt's token ids")],
)
def test_openai_wrong_server(chat: Chat, reply: Any, text: str) -> None:
    with Server([reply]) as server, pytest.raises(UserError, match=text):
        list(client(server.url).generate([request(chat, "a")]))


def test_openai_unfinished_and_missing_samples(chat: Chat) -> None:
    with Server([answer([5], reason="content_filter"), answer([5])]) as server:
        both = answers(client(server.url, max_concurrency=1), [request(chat, "a"), request(chat, "b", n=2)])
    assert both["a"].error == "finished by content_filter"
    assert both["b"].error == "the server sent 1 completions, not 2"


def test_openai_key_comes_from_the_environment_only(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="TEST_KEY"):
        client("http://127.0.0.1:1/v1", api_key_env="TEST_KEY")
    with pytest.raises(UserError, match=r"engine\.base_url holds"):
        client("http://me:word@127.0.0.1:1/v1")
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    with Server([refusal(401, "wrong key sk-secret"), answer([5, 2])]) as server:
        engine = client(server.url, api_key_env="TEST_KEY")
        (answered,) = engine.generate([request(chat, "a")])
        list(client(server.url).generate([request(chat, "a")]))
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    assert "sk-other" not in server.headers[1]["Authorization"]  # another server's key is not sent along
    assert "sk-secret" not in answered.error + repr(vars(engine))


def test_openai_stops_when_the_caller_does(chat: Chat) -> None:
    with Server([answer([5, 2])]) as server:
        stream = client(server.url, max_concurrency=2).generate([request(chat, str(i)) for i in range(2000)])
        next(stream)
        stream.close()
        sent = len(server.calls)
        assert sent < 2000
        time.sleep(0.3)
        assert len(server.calls) <= sent + 2


# open_engine


def test_open_engine_chooses(
    tiny: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with caplog.at_level("INFO"):
        assert open_engine("auto", tiny, max_model_len=64, chat=chat).info.kind == "transformers"
    assert "engine: transformers (vllm is not installed)" in caplog.text
    with pytest.raises(UserError, match="pip install"):
        open_engine("vllm", tiny, max_model_len=64, chat=chat)
    with pytest.raises(UserError, match="none of auto"):
        open_engine("vlm", tiny, max_model_len=64, chat=chat)


def test_open_engine_checks_the_folder(tmp_path: Path, chat: Chat) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        open_engine("transformers", tmp_path / "none", max_model_len=64, chat=chat)
    with pytest.raises(UserError, match=r"no config\.json"):
        open_engine("transformers", tmp_path, max_model_len=64, chat=chat)


def test_open_engine_replay_and_openai(tiny: Path, tmp_path: Path, chat: Chat) -> None:
    path = tmp_path / "r.jsonl"
    recording = open_engine(
        "replay", tiny, max_model_len=64, chat=chat, replay_path=path, record_with="transformers", model_fingerprint="m"
    )
    asked = [request(chat, "a")]
    recorded = answers(recording, asked)
    recording.close()
    replay = open_engine("replay", None, max_model_len=64, chat=chat, replay_path=path, model_fingerprint="m")
    assert answers(replay, asked) == recorded
    with pytest.raises(UserError, match=r"engine\.base_url"):
        open_engine("openai", None, max_model_len=64, chat=chat)


def test_engines_import_without_heavy_packages() -> None:
    import subprocess
    import sys

    code = (
        "import sys, importlib\n"
        "for name in ['complete', 'open', 'openai_engine', 'replay', 'transformers_engine', 'vllm_engine']:\n"
        "    importlib.import_module('align.engines.' + name)\n"
        "print([m for m in ('torch', 'transformers', 'vllm', 'openai') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
