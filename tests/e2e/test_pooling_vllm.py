"""A classifier served by vLLM scores as it does in transformers, decoders and encoders alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from align.builtin_models import build, is_built

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")]

# In a child process: vLLM binds threads and keeps memory for as long as its process lives.
CHILD = """
import json, sys
from pathlib import Path
from reward.golden import check_golden, golden_scores, read_golden
from reward.pooling import PoolingClassifier

folder, precision = Path(sys.argv[1]), sys.argv[2]
model = PoolingClassifier.load(folder, precision=precision, max_length=256)
scores = check_golden(model, read_golden(folder), precision=precision, folder=folder)
again = golden_scores(model)
model.close()
print("SCORES " + json.dumps([scores, again]))
"""


@pytest.mark.parametrize(
    "name, precision", [("tiny-llama", "fp32"), ("tiny-llama", "bf16"), ("all-minilm-l6-v2", "fp32")]
)  # vLLM on a CPU has no attention for the tiny BERT's head size of 16
def test_vllm_scores_as_transformers(name: str, precision: str, tmp_path: Path) -> None:
    from reward.classifier import Classifier
    from reward.encoder import Encoder
    from reward.golden import golden_scores, write_golden
    from reward.train import _fresh_model

    if name == "all-minilm-l6-v2" and not is_built(name):
        pytest.skip(f"{name} is not built: run `make setup`")
    source = build(name)
    encoder = Encoder.load(source, max_length=256)
    _fresh_model(source, encoder.pad_id, seed=1).save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    expected = golden_scores(Classifier.load(tmp_path, precision="fp32", max_length=256))
    write_golden(tmp_path, expected, precision="fp32")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), precision],
        capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=500, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    line = next(x for x in child.stdout.splitlines() if x.startswith("SCORES "))
    scores, again = json.loads(line.removeprefix("SCORES "))
    flat = [score for pair in expected for score in pair]
    tolerance = 1e-4 if precision == "fp32" else 0.1 * (max(flat) - min(flat))
    assert [s for pair in scores for s in pair] == pytest.approx(flat, abs=tolerance)
    assert [s for pair in again for s in pair] == pytest.approx([s for pair in scores for s in pair], abs=tolerance)
