"""Generation killed at twenty random points ends with the same bytes as a run in peace, and asks nothing twice.

The model is a server of this test's own that writes like a model, good and bad, as a fixed function of prompt and seed: what
matters here is who is asked what how often, and that has to be counted over processes that die.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.builtin_models import build
from align.core.chat import Chat
from align.core.language import detect, sentences
from align.core.rows import Instruction, SftExample
from tests.regression.compare import ENVIRONMENT, ROOT

KILLS = 20
TEXT = {
    "en": {
        "table": "{subject}, and what does the table below show?",
        "code": "{subject}, and what does the code below do?",
        "follow": "Why is that so, and does it hold in case {number}?",
        "more": "{subject}, and how did it differ in the year {number}?",
        "say": "One can say {number} things of {subject}.",
    },
    "ko": {
        "table": "{subject}, 아래 표에서 무엇이 보이나요?",
        "code": "{subject}, 아래 코드는 무엇을 하나요?",
        "follow": "그것은 왜 그런가요, {number}번의 경우에도?",
        "more": "{subject}, 그리고 {number}년에는 어떻게 달랐나요?",
        "say": "{subject}에 대해 {number}가지를 말할 수 있습니다.",
    },
}
CONCURRENCY = 4


class Author:
    """What the server's model writes: mostly well, and one time in eight broken in some way."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    def answer(self, body: dict[str, Any]) -> tuple[list[int], str]:
        """(token ids, finish reason) for one sample of a call."""
        text = self.chat.tokenizer.decode(body["prompt"])
        turns = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", text, re.DOTALL)
        draw = random.Random(hashlib.sha256(json.dumps([body["prompt"], body["seed"]]).encode()).digest())
        schema = body.get("structured_outputs", {}).get("json")
        written = self._json(schema, turns, draw) if schema else self._line(turns, draw)
        fault = draw.randrange(40)
        # White space means nothing to the reader, and tells the test which call this was.
        mark = "".join(draw.choices(" \n\t", k=14))
        if fault == 0:
            written = ""
        elif fault == 1:
            written = "Sure! Here is what you asked for: " + written
        elif fault == 2:
            return self._ids(written[: len(written) // 2] + mark)[:-1], "length"
        elif fault == 3:
            written = written.replace('"', "").replace("?", ".")
        return self._ids(written + mark), "stop"

    def _ids(self, text: str) -> list[int]:
        return [*self.chat.tokenizer.encode(text, add_special_tokens=False), self.chat.stop_ids[0]]

    def _json(self, schema: dict[str, Any], turns: list[tuple[str, str]], draw: random.Random) -> str:
        fields = schema["properties"]
        asked = turns[-1][1]
        if "facts" in fields:
            found = [s for s in sentences(asked.partition(":")[2]) if 30 <= len(s) <= 200]
            return json.dumps({"facts": (found * 3)[: fields["facts"]["minItems"]]}, ensure_ascii=False)
        if "topic" in fields:
            return json.dumps({"topic": draw.choice(fields["topic"]["enum"])})
        subject = asked.splitlines()[-1].partition(":")[2].strip().rstrip("?.")
        text = TEXT["ko" if detect(asked) == "ko" else "en"]
        if "rows" in fields:
            rows = [["1", str(draw.randrange(9))], ["2", "3"]]
            return json.dumps({"request": text["table"].format(subject=subject), "columns": ["a", "b"], "rows": rows})
        if "code" in fields:
            return json.dumps(
                {"request": text["code"].format(subject=subject), "code": f"x = {draw.randrange(99)}\nprint(x)"}
            )
        return json.dumps({name: draw.randint(1, 10) for name in fields})

    def _line(self, turns: list[tuple[str, str]], draw: random.Random) -> str:
        asked = turns[-1][1]
        text = TEXT["ko" if detect(asked) == "ko" else "en"]
        system = next((words for role, words in turns if role == "system"), "")
        subject = asked.splitlines()[0].partition(":")[2].strip() or asked.splitlines()[-1]
        words = subject.rstrip("?.").split()
        subject = " ".join(draw.sample(words, min(len(words), 7)))
        kind = "more" if len(turns) > 3 or "rewrite" in system.lower() else "say"
        if asked.startswith(("Question", "질문")) and "\n" in asked:
            kind = "follow"
        return text[kind].format(subject=subject, number=draw.randrange(10**6))


class Server:
    """Counts what it is asked; `on_call` hears of every call."""

    def __init__(self, author: Author) -> None:
        self.asked: list[tuple[int, ...]] = []  # the answers sent, which name their calls
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                drawn = [author.answer({**body, "seed": body["seed"] + 1000 * i}) for i in range(body["n"])]
                outer.asked.append(tuple(token for ids, _ in drawn for token in ids))
                choices = [
                    {"index": i, "text": "", "finish_reason": reason, "logprobs": None, "token_ids": ids}
                    for i, (ids, reason) in enumerate(drawn)
                ]
                data = json.dumps({"id": "x", "object": "text_completion", "created": 0, "model": "m", "choices": choices})
                time.sleep(0.02)  # so that a kill finds calls under way
                try:
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data.encode())))
                    self.end_headers()
                    self.wfile.write(data.encode())
                except OSError:
                    pass  # the client was killed

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"


@pytest.fixture(scope="module")
def server() -> Server:
    return Server(Author(Chat.load(build("tiny-llama"))))


def recipe(folder: Path, url: str) -> Path:
    """The proxy with every generating option on, answered by the server."""
    data = yaml.safe_load((ROOT / "recipes/proxy.yaml").read_text("utf-8"))
    data["engine"] = {
        "kind": "openai",
        "base_url": url,
        "max_model_len": 4096,
        "max_concurrency": CONCURRENCY,
        "max_retries": 0,
    }
    data["corpus"] |= {"paths": [str(ROOT / "recipes/data/corpus/*.jsonl")], "limit": 12}
    data["quality"]["decontaminate"]["benchmarks"] = [str(ROOT / "recipes/data/benchmarks/*.jsonl")]
    data["taxonomy"] = {"units_per_document": 2, "extraction": {"en": "model", "ko": "model"}, "placement": "choice"}
    data["instructions"] = {"per_unit": {"en": 3, "ko": 3}, "writer": {"en": "model", "ko": "model"}, "multi_turn": 0.5}
    data["evolution"] = {
        "rounds": 2, "share": 0.8, "operators": ["constrain", "deepen", "complicate_input", "auto", "breadth"],
        "auto": {"rounds": 1, "candidates": 1, "dev": 4},
    }  # fmt: skip
    data["answers"] = {"writer": {"en": "model", "ko": "model"}, "candidates": 2, "best_by": "judge"}
    data["splits"] = {"sft": 0.6, "stages": 0.3, "heldout": 0.1}
    del data["evaluation"]["suites"]  # their files lie beside the recipe that this one is made from
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    return path


SMALL_SHARDS = """
from align.core.artifact import StepFolder
StepFolder.pending.__defaults__ = (8,)
"""


def start(path: Path, run_dir: Path, log: Path) -> subprocess.Popen[bytes]:
    """All steps up to the SFT set, as a user's shell script would run them, in shards of 8 so that each step has several."""
    (path.parent / "sitecustomize.py").write_text(SMALL_SHARDS)
    align = f"{shlex.quote(sys.executable)} -m align.cli"
    options = f"--recipe {shlex.quote(str(path))} --run-dir {shlex.quote(str(run_dir))}"
    script = " && ".join(f"{align} {verb} {options}" for verb in ("taxonomy", "instruct", "evolve", "respond"))
    with log.open("w") as out:
        return subprocess.Popen(
            ["sh", "-c", script],
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": f"{path.parent}:{ROOT}"},
            stdout=out,
            stderr=out,
            cwd=ROOT,
            start_new_session=True,
        )


def journaled(run_dir: Path) -> set[tuple[int, ...]]:
    """The answers that unfinished steps keep, as the server names them."""
    found = set()
    for path in run_dir.rglob("_work/*.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:
            _, record = json.loads(line)
            found.add(tuple(token for ids, _ in record for token in ids))
    return found


def content(run_dir: Path) -> dict[str, bytes]:
    """Every file of rows, and what stands beside them, by its place."""
    return {
        str(path.relative_to(run_dir)): path.read_bytes()
        for path in sorted(run_dir.rglob("*"))
        if path.is_file() and (path.suffix == ".parquet" or path.name.startswith(("decontamination", "method-")))
    }


@pytest.mark.timeout(1500)
def test_twenty_kills_change_nothing_and_repeat_no_call(server: Server, tmp_path: Path) -> None:
    path = recipe(tmp_path, server.url)
    peaceful = tmp_path / "peaceful"
    assert start(path, peaceful, tmp_path / "log").wait() == 0, (tmp_path / "log").read_text()
    wanted = list(server.asked)
    assert len(set(wanted)) == len(wanted), "each call can be told by its answer"
    expected = content(peaceful)
    everything_is_used(peaceful)

    server.asked.clear()
    killed = tmp_path / "killed"
    draw = random.Random(5)
    kills, known, repeated = 0, set[tuple[int, ...]](), []
    for _ in range(200):
        before = len(server.asked)
        run = start(path, killed, tmp_path / "log")
        left = len(wanted) - before
        stop_at = before + draw.randint(1, max(1, 2 * left // max(1, KILLS - kills)))
        while run.poll() is None and (kills == KILLS or len(server.asked) < stop_at):
            time.sleep(0.002)
        if run.poll() is None:
            time.sleep(draw.random() * 0.05)
            os.killpg(run.pid, signal.SIGKILL)
            kills += 1
        run.wait()
        repeated += [call for call in server.asked[before:] if call in known]
        known |= journaled(killed)
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert kills == KILLS, f"only {kills} kills found the run at work"
    assert repeated == [], "calls whose answers had been kept were made again"
    assert set(server.asked) == set(wanted)
    # A call under way when the process died is lost; nothing else is asked twice.
    assert len(server.asked) <= len(wanted) + KILLS * CONCURRENCY
    found = content(killed)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def everything_is_used(run_dir: Path) -> None:
    """The run in peace met what the kills are meant to hit."""
    assert all(len(list((run_dir / step / "data").glob("*"))) > 2 for step in ("instruct", "evolve", "respond"))
    from align.core.artifact import Artifact

    pool = Artifact(run_dir / "evolve").rows(Instruction)
    assert {row.lang for row in pool} == {"en", "ko"}
    assert {0, 1, 2} <= {row.generation for row in pool}
    assert any(row.operator == "follow_up" for row in pool)
    assert any(row.operator == "complicate_input" for row in pool)
    assert any(row.operator == "auto" for row in pool)
    assert any(row.judged_difficulty for row in pool)
    assert Artifact(run_dir / "sft/data").rows(SftExample)
    rejects = {r.reason for step in ("instruct", "evolve", "respond_score") for r in Artifact(run_dir / step).rejects()}
    assert {"not_json", "truncated"} <= rejects
