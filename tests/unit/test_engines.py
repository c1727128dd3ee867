"""Engines without a server and without vLLM: transformers, replay, HTTP failures, and `complete`."""

from __future__ import annotations

import json
import random
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from align.core.chat import Chat, ChatError
from align.core.errors import StepError, UserError
from align.core.hashing import derive_seed
from align.core.journal import Journal
from align.engines.complete import Ask, Asking, Job, Reply, Unusable, Writer, ask_parsed
from align.engines.open import open_engine
from align.engines.openai_engine import OpenAIEngine
from align.engines.protocol import Answered, Completion, EngineInfo, Request, Sampling
from align.engines.replay import ReplayEngine, from_record, to_record
from align.engines.transformers_engine import TransformersEngine, choose
from align.engines.weights import only_weights_differ
from tests.jobs import complete, failed, run_job, said

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


def request(
    chat: Chat, text: str, *, n: int = 1, seed: int = 1, schema: str | None = None, top: int = 0, **how: Any
) -> Request:
    ids = tuple(chat.prompt_ids([{"role": "user", "content": text}]))
    sampling = Sampling(**{"max_tokens": 24, **how})
    return Request(id=text, prompt_ids=ids, n=n, seed=seed, sampling=sampling, json_schema=schema, top_logprobs=top)


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


# the likeliest first tokens


@pytest.mark.parametrize("how", [{}, {"temperature": 0.3, "top_p": 0.2, "min_p": 0.3, "repetition_penalty": 1.5}])
@pytest.mark.parametrize("top", [1, 5, 10**6])
def test_first_logprobs_are_the_models_own(
    engine: TransformersEngine, tiny: Path, chat: Chat, how: dict[str, float], top: int
) -> None:
    from transformers import AutoModelForCausalLM

    asked = request(chat, "likely", n=3, top=top, **how)
    completions = answers(engine, [asked])["likely"].completions
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype="float32")
    with torch.inference_mode():
        wanted = model(torch.tensor([asked.prompt_ids])).logits[0, -1].log_softmax(-1)
    for completion in completions:
        tokens, values = zip(*completion.first_logprobs, strict=True)
        assert len(tokens) == min(top, len(wanted)) == len(set(tokens))
        assert list(values) == pytest.approx(wanted.sort(descending=True).values[:top].tolist(), abs=1e-5)
        assert list(values) == pytest.approx(wanted[list(tokens)].tolist(), abs=1e-5)
    assert [c.token_ids for c in completions] == [
        c.token_ids for c in answers(engine, [request(chat, "likely", n=3, **how)])["likely"].completions
    ], "to be told of changes no answer"


def test_a_greedy_answer_begins_with_the_likeliest_token(engine: TransformersEngine, chat: Chat) -> None:
    (first, second) = answers(engine, [request(chat, "greedy", n=2, top=3, temperature=0)])["greedy"].completions
    assert first.token_ids[0] == first.first_logprobs[0][0] and first == second
    assert all(not c.first_logprobs for c in answers(engine, [request(chat, "greedy")])["greedy"].completions)


def test_first_logprobs_are_those_of_the_grammar(engine: TransformersEngine, chat: Chat) -> None:
    (completion,) = answers(engine, [request(chat, "json", schema=SCHEMA, top=9, max_tokens=64)])["json"].completions
    ((token, value),) = completion.first_logprobs
    assert chat.text([token]) == "{" and value == pytest.approx(0)


def test_a_request_without_logprobs_is_still_known_by_its_old_key() -> None:
    """Answers that were recorded before there were log-probabilities must be found."""
    how = Sampling(temperature=0.5, max_tokens=9)
    keys = [Request(id="a", prompt_ids=(1, 2, 3), n=2, seed=7, sampling=how, top_logprobs=k).key() for k in (0, 1, 20)]
    assert keys[0] == "80d6e338498bec3d"
    assert len(set(keys)) == 3


LIKELY = Completion(token_ids=(5, 2), finish_reason="stop", first_logprobs=((5, -0.25), (7, -1.5)))
PLAIN = Completion(token_ids=(6,), finish_reason="length")


def test_records_hold_logprobs_and_old_records_are_read() -> None:
    answered = Answered(request_id="a", completions=(LIKELY, PLAIN))
    assert from_record("a", json.loads(json.dumps(to_record(answered)))) == answered
    assert from_record("a", to_record(answered)) == answered
    assert from_record("a", [[[6], "length"]]) == Answered(request_id="a", completions=(PLAIN,))
    assert to_record(Answered(request_id="a", completions=(PLAIN,))) == [[[6], "length"]]


def test_replay_keeps_logprobs(tmp_path: Path, engine: TransformersEngine, chat: Chat) -> None:
    asked = [request(chat, "a", n=2, top=4)]
    recorded = answers(ReplayEngine(tmp_path / "r.jsonl", engine, "m"), asked)
    assert len(recorded["a"].completions[0].first_logprobs) == 4
    replay = ReplayEngine(tmp_path / "r.jsonl", None, "m")
    assert answers(replay, asked) == recorded
    with pytest.raises(StepError, match="no answer to request a "):
        answers(replay, [request(chat, "a", n=2)])


# complete and replay, on an engine that counts its calls


class Scripted:
    """Answers with the request's seed as its tokens; `fail` names requests that get an error, `die_after` calls."""

    def __init__(self, fail: Sequence[str] = (), die_after: int = 10**6, fault: str = "http_500: out of order") -> None:
        self._fault = fault
        self.info = EngineInfo(kind="scripted", version="1", max_model_len=64, deterministic=True, flags={})
        self.asked: list[str] = []
        self._fail = fail
        self._die_after = die_after

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answered]:
        stream = iter(requests)
        while batch := list(takewhile(lambda request: request is not None, stream)):
            for asked in reversed([request for request in batch if request]):
                if len(self.asked) == self._die_after:
                    raise KeyboardInterrupt
                self.asked.append(asked.id)
                if asked.id.split("/")[-1] in self._fail:
                    yield Answered(request_id=asked.id, completions=(), error=self._fault)
                else:
                    drawn = tuple(Completion(token_ids=(asked.seed % 250, i), finish_reason="stop") for i in range(asked.n))
                    yield Answered(request_id=asked.id, completions=drawn)

    def close(self) -> None:
        pass


SHORT = Sampling(max_tokens=8)


def asks(*ids: str, **changes: Any) -> list[Ask]:
    how = {"purpose": "test", "n": 2, "sampling": SHORT, **changes}
    return [Ask(id=ask_id, messages=[{"role": "user", "content": f"tell {ask_id}"}], **how) for ask_id in ids]


def run(engine: Any, chat: Chat, journal: Journal, which: Sequence[Ask], run_seed: int = 3) -> dict[str, Reply]:
    return complete(engine, chat, which, run_seed=run_seed, journal=journal, label="answer")


def test_complete_resumes_without_repeating_a_call(tmp_path: Path, chat: Chat) -> None:
    wanted = asks("p0", "p1", "p2", "p3")
    dying = Scripted(die_after=2)
    with pytest.raises(KeyboardInterrupt):
        run(dying, chat, Journal(tmp_path / "j"), wanted)
    again = Scripted()
    results = run(again, chat, Journal(tmp_path / "j"), wanted)
    assert sorted(dying.asked + again.asked) == ["test/p0", "test/p1", "test/p2", "test/p3"]
    assert list(results) == ["p0", "p1", "p2", "p3"]
    assert results == run(Scripted(), chat, Journal(tmp_path / "fresh"), wanted)
    third = Scripted()
    assert run(third, chat, Journal(tmp_path / "j"), wanted) == results
    assert third.asked == []


@pytest.mark.parametrize("change", [{"run_seed": 4}, {"purpose": "other"}, {"sampling": Sampling(max_tokens=9)}])
def test_complete_asks_again_when_the_question_changed(tmp_path: Path, chat: Chat, change: dict[str, Any]) -> None:
    run(Scripted(), chat, Journal(tmp_path / "j"), asks("p0"))
    engine = Scripted()
    seed = change.pop("run_seed", 3)
    run(engine, chat, Journal(tmp_path / "j"), asks("p0", **change), seed)
    assert len(engine.asked) == 1


def test_complete_seed_is_by_id(tmp_path: Path, chat: Chat) -> None:
    many = run(Scripted(), chat, Journal(tmp_path / "a"), asks("p0", "p1", "p2"))
    one = run(Scripted(), chat, Journal(tmp_path / "b"), asks("p1"))
    assert many["p1"] == one["p1"]
    assert len({reply.completions[0].token_ids[0] for reply in many.values()}) == 3


def test_a_reply_tells_the_likeliest_first_tokens_as_texts(tmp_path: Path, chat: Chat) -> None:
    (four,), (space,) = (chat.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("4", " "))

    class Telling(Scripted):
        def generate(self, requests: Iterable[Request | None]) -> Iterator[Answered]:
            for asked in filter(None, requests):
                self.asked.append(asked.id)
                likely = ((four, -0.5), (space, -2.0))[: asked.top_logprobs]
                drawn = (Completion(token_ids=(four,), finish_reason="stop", first_logprobs=likely), PLAIN)
                yield Answered(request_id=asked.id, completions=drawn)

    engine = Telling()
    for _ in range(2):  # from the engine, then from the journal
        found = run(engine, chat, Journal(tmp_path / "j"), asks("p", top_logprobs=2))
        assert found["p"].first_logprobs == (("4", -0.5), (" ", -2.0))
    assert engine.asked == ["test/p"]
    assert run(engine, chat, Journal(tmp_path / "j"), asks("p"))["p"].first_logprobs == ()


def test_complete_rejects_before_any_call(tmp_path: Path, chat: Chat) -> None:
    long = Ask(id="long", purpose="test", messages=[{"role": "user", "content": "x" * 60}], sampling=SHORT)
    engine = Scripted()
    results = run(engine, chat, Journal(tmp_path / "j"), [long, *asks("ok")])
    num_ids = len(chat.prompt_ids(long.messages))
    assert results["long"].error == f"prompt_too_long: {num_ids} tokens + 8 > 64"
    assert engine.asked == ["test/ok"]
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
    assert retried.asked == ["test/p0"]
    with pytest.raises(StepError, match=r"all 2 calls .* http_500: out of order"):
        run(Scripted(fail=["p0", "p1"]), chat, Journal(tmp_path / "k"), asks("p0", "p1"))


def test_complete_refuses_duplicate_ids(tmp_path: Path, chat: Chat) -> None:
    with pytest.raises(ValueError, match="p1"):
        run(Scripted(), chat, Journal(tmp_path / "j"), asks("p1", "p2", "p1"))


def test_complete_notices_an_engine_that_answers_too_little(tmp_path: Path, chat: Chat) -> None:
    class Lazy(Scripted):
        def generate(self, requests: Iterable[Request | None]) -> Iterator[Answered]:
            return super().generate(r for r in requests if r is None or not r.id.endswith("p0"))

    with pytest.raises(StepError, match="1 unanswered, first p0"):
        run(Lazy(), chat, Journal(tmp_path / "j"), asks("p0", "p1"))


# a writer: many jobs over one engine


class Pooled(Scripted):
    """Has `room` requests at work and answers them in an order of its own; `closed` once a caller has left it."""

    def __init__(self, room: int, **how: Any) -> None:
        super().__init__(**how)
        self._room = room
        self._chance = random.Random(room)
        self.closed = False
        self._streams: list[Iterator[Answered]] = []  # kept, so that none is closed by being forgotten

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answered]:
        self._streams.append(self._answers(requests))
        return self._streams[-1]

    def _answers(self, requests: Iterable[Request | None]) -> Iterator[Answered]:
        stream, more = iter(requests), True
        at_work: list[Request] = []
        try:
            while True:
                while more and len(at_work) < self._room:
                    asked = next(stream, "no more")
                    if asked is None:
                        assert at_work, "asked to wait, with no request at work"
                        break
                    more = isinstance(asked, Request)
                    at_work += [asked] if isinstance(asked, Request) else []
                if not at_work:
                    return
                yield from super().generate([at_work.pop(self._chance.randrange(len(at_work)))])
        finally:
            self.closed = True


class UnderWay:
    """Counts how many jobs have begun and not ended."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def __enter__(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)

    def __exit__(self, *error: object) -> None:
        self.now -= 1


def talk(name: str, questions: int, under_way: UnderWay | None = None) -> Asking[list[int]]:
    """A job of several questions, two conversations each; its result is the first token of each answer."""
    heard: list[int] = []
    with under_way or UnderWay():
        for number in range(questions):
            replies = yield asks(f"{name}.{number}", f"{name}.{number}b", n=1)
            assert [reply.error for reply in replies] == ["", ""]
            heard += [reply.completions[0].token_ids[0] for reply in replies]
    return heard


def heard_by(name: str, questions: int, run_seed: int = 3) -> list[int]:
    ids = [f"{name}.{number}{end}" for number in range(questions) for end in ("", "b")]
    return [derive_seed(run_seed, "test", ask_id) % 250 for ask_id in ids]


def write(writer: Writer, jobs: Iterable[Job[Any, Any]]) -> dict[Any, Any]:
    found = list(writer.run(jobs, label="answer", total=None, unit="jobs"))
    assert len(dict(found)) == len(found), "one result of each job"
    return dict(found)


def writer_of(engine: Any, chat: Chat, **how: Any) -> Writer:
    return Writer(lambda: (engine, chat), run_seed=3, **how)


SIZES = {f"j{i}": i % 5 for i in range(40)}
ENGINES: list[Callable[[], Scripted]] = [Scripted, lambda: Pooled(1), lambda: Pooled(3), lambda: Pooled(100)]


@pytest.mark.parametrize("make", ENGINES, ids=["batches", "one", "three", "hundred"])
@pytest.mark.parametrize("queue", [1, 6, 512])
def test_jobs_get_their_own_replies_whatever_the_order(chat: Chat, make: Callable[[], Scripted], queue: int) -> None:
    under_way, engine = UnderWay(), make()
    jobs = (Job(key=name, asking=talk(name, size, under_way)) for name, size in SIZES.items())
    assert write(writer_of(engine, chat, queue=queue), jobs) == {name: heard_by(name, n) for name, n in SIZES.items()}
    assert len(set(engine.asked)) == len(engine.asked) == 2 * sum(SIZES.values())
    assert under_way.most == min(queue, 32), "as many as may be, of the 32 that ask something"
    assert under_way.now == 0


def test_a_job_begins_when_another_has_ended(chat: Chat) -> None:
    begun: list[int] = []

    def jobs() -> Iterator[Job[int, list[int]]]:
        for i in range(30):
            begun.append(i)
            yield Job(key=i, asking=talk(f"j{i}", 1))

    for ended, _ in enumerate(writer_of(Pooled(2), chat, queue=4).run(jobs(), label="answer", total=30, unit="jobs"), 1):
        assert len(begun) <= ended + 4


def test_an_engine_is_opened_at_the_first_question_and_once(chat: Chat) -> None:
    opened: list[Scripted] = []

    def open_it() -> tuple[Scripted, Chat]:
        opened.append(Scripted())
        return opened[-1], chat

    writer = Writer(open_it, run_seed=3)
    assert write(writer, [Job(key=i, asking=talk(f"j{i}", 0)) for i in range(600)]) == {i: [] for i in range(600)}
    assert opened == [] and writer.engine is None
    assert write(writer, []) == {}
    for _ in range(2):
        assert len(write(writer, [Job(key=i, asking=talk(f"j{i}", 2)) for i in range(5)])) == 5
    assert len(opened) == 1 and writer.engine is opened[0]


def journalled(folder: Path, sizes: dict[str, int]) -> list[Job[str, list[int]]]:
    """Jobs of two journals, as those of two shards are."""
    journals = [Journal(folder / "even"), Journal(folder / "odd")]
    return [Job(key=name, asking=talk(name, n), journal=journals[int(name[1:]) % 2]) for name, n in sizes.items()]


@pytest.mark.parametrize("calls", [0, 1, 37, 100, 159])
def test_what_was_answered_is_not_asked_again(tmp_path: Path, chat: Chat, calls: int) -> None:
    dying = Pooled(7, die_after=calls)
    with pytest.raises(KeyboardInterrupt):
        write(writer_of(dying, chat, queue=6), journalled(tmp_path, SIZES))
    assert len(dying.asked) == calls
    again = Pooled(3)
    found = write(writer_of(again, chat), journalled(tmp_path, SIZES))
    assert found == {name: heard_by(name, n) for name, n in SIZES.items()}
    assert len(again.asked) == 160 - calls and not set(again.asked) & set(dying.asked)
    third = Scripted()
    assert write(writer_of(third, chat), journalled(tmp_path, SIZES)) == found
    assert third.asked == []


def test_a_caller_may_leave_early(tmp_path: Path, chat: Chat) -> None:
    engine = Pooled(4)
    with pytest.raises(KeyboardInterrupt):
        for number, _ in enumerate(
            writer_of(engine, chat, queue=6).run(journalled(tmp_path, SIZES), label="answer", total=40, unit="jobs")
        ):
            if number == 20:
                raise KeyboardInterrupt
    assert engine.closed, "an engine that is left must know, to stop what it has at work"
    again = Pooled(4)
    assert write(writer_of(again, chat), journalled(tmp_path, SIZES)) == {n: heard_by(n, size) for n, size in SIZES.items()}
    assert 0 < len(again.asked) < 160 and sorted(engine.asked + again.asked) == sorted(set(engine.asked + again.asked))


def test_a_passing_fault_leaves_its_job_without_a_result(tmp_path: Path, chat: Chat) -> None:
    lost = {"j1", "j14", "j38"}
    engine, found = Pooled(5, fail=["j1.0", "j14.2b", "j38.1", "j38.1b"]), {}
    with pytest.raises(StepError, match=r"answer: 4 of \d+ calls .* \(http_500: out of order\); run the same command again"):
        for key, result in writer_of(engine, chat, queue=6).run(
            journalled(tmp_path, SIZES), label="answer", total=40, unit="jobs"
        ):
            found[key] = result
    assert found == {name: heard_by(name, n) for name, n in SIZES.items() if name not in lost}, "the others are whole"
    again = Pooled(5)
    whole = write(writer_of(again, chat), journalled(tmp_path, SIZES))
    assert whole == {name: heard_by(name, n) for name, n in SIZES.items()}
    assert {"test/j1.0", "test/j14.2b", "test/j38.1", "test/j38.1b"} <= set(again.asked), "a failed call is not kept"
    assert not set(again.asked) & set(engine.asked) - {"test/j1.0", "test/j14.2b", "test/j38.1", "test/j38.1b"}


@pytest.mark.parametrize(
    "fault", ["timeout: no answer", "http_408: late", "http_409: busy", "http_429: slow", "http_503: full"]
)
def test_a_bad_hour_does_not_stop_the_jobs_after_it(chat: Chat, fault: str) -> None:
    """Other jobs begin even when all those under way are lost at once."""
    lost, found = [f"j{i}.0" for i in range(3, 9)], []
    with pytest.raises(StepError, match=r"answer: 6 of \d+ calls .* failed for a passing reason"):
        for key, _ in writer_of(Pooled(2, fail=lost, fault=fault), chat, queue=2).run(
            (Job(key=i, asking=talk(f"j{i}", 1)) for i in range(12)), label="answer", total=12, unit="jobs"
        ):
            found.append(key)
    assert sorted(found) == [0, 1, 2, 9, 10, 11]


@pytest.mark.parametrize("fault", ["http_400: bad prompt", "finished by content_filter", "vllm: refused"])
def test_other_faults_are_a_jobs_own_matter(chat: Chat, fault: str) -> None:

    def job(name: str) -> Asking[str]:
        (reply,) = yield asks(name, n=1)
        return reply.error

    engine = Scripted(fail=["j3"], fault=fault)
    found = write(writer_of(engine, chat), [Job(key=i, asking=job(f"j{i}")) for i in range(6)])
    assert found == {i: fault if i == 3 else "" for i in range(6)}


@pytest.mark.parametrize("fault", ["http_400: bad prompt", "http_401: wrong key", "http_500: out of order"])
@pytest.mark.parametrize("silent", [0, 2, 5])
def test_nothing_counts_where_every_call_fails(chat: Chat, fault: str, silent: int) -> None:
    """Even beside jobs that ask nothing, such as those of a language that no model writes."""
    names = [f"j{i}" for i in range(60)]

    def job(name: str) -> Asking[str]:
        if int(name[1:]) % 6 >= silent:
            yield asks(name, n=1)
        return name

    engine = Pooled(3, fail=names, fault=fault)
    found = []
    with pytest.raises(StepError, match=rf"answer: all \d+ calls of the scripted engine failed: {fault}"):
        for key, _ in writer_of(engine, chat, queue=8).run(
            (Job(key=n, asking=job(n)) for n in reversed(names)), label="answer", total=60, unit="jobs"
        ):
            found.append(key)
    assert 0 < len(engine.asked) <= 8, "a full queue of failures is enough"
    assert all(int(name[1:]) % 6 < silent for name in found), "of those that asked, none"


def test_a_jobs_own_error_comes_out(tmp_path: Path, chat: Chat) -> None:
    def job(name: str) -> Asking[float]:
        yield asks(name, n=1)
        return 1 / (name != "j5")

    def jobs() -> list[Job[str, float]]:
        journal = Journal(tmp_path / "j")
        return [Job(key=f"j{i}", asking=job(f"j{i}"), journal=journal) for i in range(9)]

    engine = Pooled(2)
    with pytest.raises(ZeroDivisionError):
        write(writer_of(engine, chat), jobs())
    assert engine.closed
    assert len(Journal(tmp_path / "j")) == len(engine.asked) > 0, "what was answered is kept all the same"


def test_prompts_that_are_too_long_are_found_before_anything_is_generated(chat: Chat) -> None:
    lengths = {f"p{i}": 60 + i if i in (3, 50, 99) else 5 for i in range(100)}
    told: list[str] = []

    class Waiting(Scripted):
        def generate(self, requests: Iterable[Request | None]) -> Iterator[Answered]:
            assert len(told) == 3
            return super().generate(requests)

    def job(name: str) -> Asking[Reply]:
        (reply,) = yield [
            Ask(id=name, purpose="test", messages=[{"role": "user", "content": "x" * lengths[name]}], sampling=SHORT)
        ]
        told.append(reply.error)
        return reply

    engine = Waiting()
    found = write(writer_of(engine, chat), [Job(key=name, asking=job(name)) for name in lengths])
    assert len(found) == 100 and len(engine.asked) == 97
    frame = len(chat.prompt_ids([{"role": "user", "content": ""}]))
    for name, reply in found.items():
        long = f"prompt_too_long: {frame + lengths[name]} tokens + 8 > 64"
        assert (reply.error, reply.fault) == ((long, "prompt_too_long") if lengths[name] > 5 else ("", ""))


def test_an_ask_is_named_once(chat: Chat) -> None:
    with pytest.raises(ValueError, match=r"test/same\.0 occurs more than once"):
        write(writer_of(Scripted(), chat), [Job(key=i, asking=talk("same", 1)) for i in range(2)])
    apart = [Job(key=purpose, asking=ask_parsed(asks("same", purpose=purpose, n=1)[0], len, 1)) for purpose in "ab"]
    assert len(write(writer_of(Scripted(), chat), apart)) == 2, "another purpose is another ask"


# an answer that is read


def read(*replies: str | Reply, tries: int = 3, temperature: float = 0.7) -> tuple[dict[str, int] | Unusable, list[str]]:
    """What `ask_parsed` makes of these replies in turn, and the ids it asked."""
    (ask,) = asks("q", n=1, sampling=Sampling(temperature=temperature, max_tokens=8))
    turn = iter(replies)
    found, asked = run_job(ask_parsed(ask, json.loads, tries), lambda ask: next(turn))
    return found, [ask.id for ask in asked]


def test_ask_parsed_takes_the_first_answer_that_can_be_read() -> None:
    assert read('{"a": 1}', "no") == ({"a": 1}, ["q"])
    assert read('{"a": 1', '{"a": 2}') == ({"a": 2}, ["q", "q#1"])
    assert read("Sure!", said('{"a": 9}', cut=True), '{"a": 3}') == ({"a": 3}, ["q", "q#1", "q#2"])


def test_ask_parsed_tells_why_there_is_nothing() -> None:
    assert read('{"a": 1', "Sure!", "no") == (Unusable(reason="not_json", raw="no"), ["q", "q#1", "q#2"])
    assert read("no", said('{"a"', cut=True), tries=2) == (Unusable(reason="truncated", raw='{"a"'), ["q", "q#1"])
    assert read("", tries=1) == (Unusable(reason="not_json", raw=""), ["q"])
    refused = "http_400: bad prompt"
    assert read(failed(refused), "{}") == (Unusable(reason="http_400", raw=refused), ["q"])
    assert read("no", failed(refused)) == (Unusable(reason="http_400", raw=refused), ["q", "q#1"])


def test_greedy_answers_get_one_try() -> None:
    assert read("no", "{}", temperature=0.0) == (Unusable(reason="not_json", raw="no"), ["q"])


def test_every_try_is_a_draw_of_its_own(chat: Chat) -> None:
    drawn: list[str] = []

    def refuse(text: str) -> None:
        drawn.append(text)
        raise ValueError

    engine = Scripted()
    (ask,) = asks("q", n=1)
    found = write(writer_of(engine, chat), [Job(key=0, asking=ask_parsed(ask, refuse, 4))])
    assert found[0].reason == "not_json"
    assert engine.asked == ["test/q", "test/q#1", "test/q#2", "test/q#3"]
    assert len(set(drawn)) == 4


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


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        # The drawn token comes first, then the likeliest: it may be one more than was asked for.
        (
            {"token_id:9": -4.0, "token_id:5": -0.5, "token_id:7": -1.5, "token_id:8": -1.5},
            ((5, -0.5), (7, -1.5), (8, -1.5)),
        ),
        ({"5": -0.5, " 5": -1.0}, ()),  # tokens that read alike cannot be told apart
        ({}, ()),
        (None, ()),
    ],
)
def test_openai_first_logprobs(chat: Chat, told: dict[str, float] | None, wanted: tuple[tuple[int, float], ...]) -> None:
    logprobs = {"tokens": [], "token_logprobs": [], "text_offset": [], "top_logprobs": [told, {"token_id:1": -0.1}]}
    with Server([answer([9, 2], logprobs=logprobs), answer([9, 2])]) as server:
        (with_them,) = client(server.url).generate([request(chat, "a", top=3)])
        (without,) = client(server.url).generate([request(chat, "a", top=3)])
        list(client(server.url).generate([request(chat, "a")]))
    assert with_them.completions[0].first_logprobs == wanted
    assert without.completions[0].first_logprobs == () and without.completions[0].token_ids == (9, 2)
    assert (server.calls[0]["logprobs"], server.calls[0]["return_tokens_as_token_ids"]) == (3, True)
    assert not {"logprobs", "return_tokens_as_token_ids"} & set(server.calls[2])


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


@pytest.mark.parametrize(
    ("file", "change", "same"),
    [
        ("config.json", {"transformers_version": "9", "use_cache": False, "_name_or_path": "x"}, True),
        ("generation_config.json", {"transformers_version": "9"}, True),
        ("config.json", {"rms_norm_eps": 0.5}, False),
        ("config.json", {"rope_parameters": {"rope_theta": 5.0}}, False),
        ("generation_config.json", {"eos_token_id": 1}, False),
        ("tokenizer_config.json", {"eos_token": "<pad>"}, False),
        ("tokenizer.json", {"more": 1}, False),
        ("special_tokens_map.json", {"eos_token": "<pad>"}, False),
    ],
)
def test_only_weights_differ(tiny: Path, tmp_path: Path, file: str, change: dict[str, Any], same: bool) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    path = other / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | change))
    assert only_weights_differ(tiny, other, any_dtype=True) == same


def test_other_dtypes_tensors_and_quantized_weights(tiny: Path, tmp_path: Path) -> None:
    def other(name: str, **change: Any) -> Path:
        shutil.copytree(tiny, tmp_path / name)
        config = tmp_path / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
        return tmp_path / name

    half = other("half", dtype="bfloat16")
    assert only_weights_differ(tiny, half, any_dtype=True)
    assert not only_weights_differ(tiny, half, any_dtype=False), "an engine with dtype auto computes in it"
    quantized = other("quantized", quantization_config={"bits": 4})
    assert not only_weights_differ(quantized, quantized, any_dtype=True)
    fewer = other("fewer")
    weights = load_file(fewer / "model.safetensors")
    name, tensor = sorted(weights.items())[0]
    save_file({**weights, name: tensor[:1].clone()}, fewer / "model.safetensors")
    assert not only_weights_differ(tiny, fewer, any_dtype=True)
    save_file({key: value for key, value in weights.items() if key != name}, fewer / "model.safetensors")
    assert not only_weights_differ(tiny, fewer, any_dtype=True)
