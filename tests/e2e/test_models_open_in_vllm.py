"""M0, M1 and M2 of a run open in vLLM and answer, token ids in and out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")]

# In a child process: vLLM binds threads and keeps memory for as long as its process lives.
CHILD = """
import json, sys
from pathlib import Path
from align.core.chat import Chat
from align.engines.protocol import Request, Sampling
from align.engines.vllm_engine import VllmEngine

found = {}
for folder in map(Path, sys.argv[1:]):
    chat = Chat.load(folder)
    engine = VllmEngine(folder, max_model_len=256, max_num_seqs=4)
    ids = tuple(chat.prompt_ids([{"role": "user", "content": "What is light?"}]))
    request = Request(id="a", prompt_ids=ids, n=2, seed=1, sampling=Sampling(max_tokens=12))
    (answer,) = engine.generate([request])
    found[str(folder)] = [len(c.token_ids) for c in answer.completions]
    engine.close()
print("ANSWERS " + json.dumps(found))
"""


def test_trained_models_open_in_vllm(proxy_run: Path) -> None:
    folders = [str(proxy_run / step / "train/model") for step in ("sft", "stage1", "stage2")]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *folders],
        capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=500, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    line = next(x for x in child.stdout.splitlines() if x.startswith("ANSWERS "))
    found = json.loads(line.removeprefix("ANSWERS "))
    assert set(found) == set(folders)
    assert all(1 <= n <= 12 for lengths in found.values() for n in lengths)
