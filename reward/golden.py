"""Golden pairs: 32 short texts whose scores show whether a reward model is loaded as it was trained.

A wrong template, a doubled BOS, a lost head or a backend that returns something else than the score rarely fails; it
changes scores. Training writes the scores of these texts beside the weights, and every later use compares.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from align.core.chat import ChatError
from align.core.errors import UserError
from align.core.hashing import content_id
from reward.interface import Group, RewardModel

if TYPE_CHECKING:
    from reward.classifier import Classifier

log = logging.getLogger(__name__)

# A file for each precision: in bf16 a backbone is another function. On SmolLM2-135M after a few steps scores moved by 1.4
# and changed order, in transformers itself, while two ways of computing in bf16 differ by 0.06.
FILE = "golden.json"
FILES = {"fp32": FILE, "bf16": "golden-bf16.json"}
# Largest change of a score by rounding, as a share of the distance between the highest and the lowest expected score, and
# at least so much (scores are log-odds). Measured in bf16 on a 135M decoder: 0.06 of that distance.
NOISE = {"fp32": 1e-3, "bf16": 0.1}
LEAST_NOISE = {"fp32": 1e-4, "bf16": 0.01}
MOST_TIES = 1  # of 16 pairs

# (language, prompt, a good response, a worse one)
_TEXTS = (
    ("en", "What is the capital of Australia?", "Canberra.", "Sydney, and also Melbourne, I guess."),
    ("en", "Name three primary colours.", "Red, yellow and blue.", "Colours are nice. Colours are nice. Colours are"),
    ("en", "How many minutes are in two hours?", "120 minutes, since an hour has 60.", "There are 200 minutes."),
    ("en", "Translate 'good morning' into Korean.", "좋은 아침입니다.", "Good morning is a greeting."),
    ("en", "Give one tip for saving water.", "Turn off the tap while brushing your teeth.", "Water saving tip tip the of."),
    ("en", "Is a whale a fish?", "No. Whales are mammals: they breathe air and nurse young.", "Yes, since it swims."),
    ("en", "Write the plural of 'mouse'.", "Mice.", "I cannot answer questions about animals."),
    ("en", "What is 15% of 200?", "15% of 200 is 30.", "15% of 200 is 15, because it is per cent."),
    ("ko", "물은 몇 도에서 끓나요?", "1기압에서 섭씨 100도입니다.", "물은 끓지 않습니다."),
    ("ko", "하늘이 파란 까닭은?", "공기가 파란빛을 더 많이 흩뜨리기 때문입니다.", "파란색 페인트 때문입니다."),
    ("ko", "한글을 만든 사람은?", "세종대왕입니다.", "잘 모르지만 이순신일 거예요."),
    ("ko", "'빠르다'의 반대말은?", "'느리다'입니다.", "빠르다 빠르다 빠르다 빠르다"),
    ("ko", "감기에 걸리면 어떻게 하나요?", "푹 쉬고 물을 자주 드세요.", "찬물로 오래 씻고 밤을 새우세요."),
    ("ko", "7 곱하기 8은?", "56입니다.", "54입니다."),
    ("ko", "일주일은 며칠인가요?", "7일입니다.", "A week is something in the calendar."),
    ("ko", "고맙다는 말을 공손하게 해 줘.", "정말 감사합니다.", "싫어."),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Scores of the golden texts, 16 pairs (NaN where the model did not read a text whole), and their precision."""

    scores: list[list[float]]
    precision: str


def golden_groups() -> list[Group]:
    """16 prompts, each with a good response and a worse one, in that order."""
    return [
        Group(
            id=f"golden-{number:02d}", prompt=[{"role": "user", "content": prompt}], responses=(good, worse), lang=lang,
            response_ids=(f"golden-{number:02d}-good", f"golden-{number:02d}-worse"),
        )
        for number, (lang, prompt, good, worse) in enumerate(_TEXTS, 1)
    ]  # fmt: skip


def _names() -> list[str]:
    """Of the 32 texts, in the order of the scores."""
    return [name for group in golden_groups() for name in group.response_ids]


def _read_whole(model: RewardModel) -> list[bool]:
    """Whether each of the 32 texts fits in the model's `max_length`; what has no encoder cuts nothing."""
    encoder = getattr(model, "encoder", None)
    whole = []
    for group in golden_groups():
        for text in group.responses:
            try:
                encoded = encoder and encoder.encode(group.prompt, text)
            except ChatError:  # scores NaN, which is told as such
                encoded = None
            whole.append(not encoded or not encoded.prompt_cut + encoded.response_cut)
    return whole


def golden_scores(model: RewardModel) -> list[list[float]]:
    """The model's scores of `golden_groups()`, 16 x 2; NaN where it cuts a text or cannot score it."""
    groups = golden_groups()
    found = dict(model.score(groups))
    whole = iter(_read_whole(model))
    return [[score if next(whole) else math.nan for score in found[place]] for place in range(len(groups))]


def write_golden(folder: Path, scores: list[list[float]], *, precision: str) -> None:
    """Keep `golden_scores` of a model in its folder, for uses in the same `precision` ("fp32" or "bf16")."""
    body = {
        "texts": content_id(_TEXTS),
        "precision": precision,
        "scores": [[score if math.isfinite(score) else None for score in pair] for pair in scores],
    }
    (folder / FILES[precision]).write_text(json.dumps(body, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_golden(folder: Path, precision: str = "fp32") -> Golden | None:
    """What `write_golden` kept for this precision; None, and a line in the log, where it is nothing or of other texts.

    Raises:
        UserError: the file is not what `write_golden` writes.
    """
    path = folder / FILES[precision]
    if not path.is_file():
        log.info("%s: no %s, so its scores are not compared with those of its training", folder, path.name)
        return None
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["texts"] != content_id(_TEXTS):
            log.warning("%s holds scores of other texts than this version's; they are not compared", path)
            return None
        scores = [[math.nan if score is None else float(score) for score in pair] for pair in body["scores"]]
        if [len(pair) for pair in scores] != [2] * len(_TEXTS) or body["precision"] not in NOISE:
            raise ValueError("other pairs or precision")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a file of golden scores ({error}); delete it, or train the model again") from None
    return Golden(scores=scores, precision=body["precision"])


def load_checked(folder: Path, *, precision: str, max_length: int, layout: str = "auto") -> Classifier:
    """A classifier that has passed its golden pairs.

    Raises:
        UserError: as `Classifier.load` and `check_golden`.
    """
    from reward.classifier import Classifier

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    model = Classifier.load(folder, precision=precision, max_length=max_length, layout=layout)
    check_golden(model, read_golden(folder, precision), precision=precision, folder=folder)
    return model


def check_golden(model: RewardModel, expected: Golden | None, *, precision: str, folder: Path) -> list[list[float]]:
    """Score the golden texts and refuse a model whose scores cannot be right.

    Every score must be finite; at most one of the 16 pairs may tie. Against `expected`, the order of every two texts must be
    the same whose expected scores differ by more than rounding (`NOISE` of the coarser precision); where both are fp32, no
    score may differ by more than that. Texts longer than the model's `max_length`, then or now, are left out.

    Args:
        model: the reward model.
        expected: `read_golden(folder)`.
        precision: "fp32" or "bf16", of the model.
        folder: of the model, for the message.

    Returns:
        `golden_scores(model)`.

    Raises:
        UserError: the model fails one of these.
    """
    scores = golden_scores(model)
    found = [score for pair in scores for score in pair]
    whole = _read_whole(model)
    if bad := [name for name, score, read in zip(_names(), found, whole, strict=True) if read and not math.isfinite(score)]:
        raise UserError(
            f"{folder}: {len(bad)} of {sum(whole)} golden texts have no finite score ({bad[0]} first); the likely cause is "
            f"broken weights or a chat template that does not render a user turn and its answer"
        )
    pairs = [pair for pair in scores if not math.isnan(sum(pair))]
    ties = sum(good == worse for good, worse in pairs)
    if ties > MOST_TIES or (ties and ties == len(pairs)):
        raise UserError(
            f"{folder}: scores different texts identically ({ties} of {len(pairs)} golden pairs tie); the likely cause is "
            "an untrained or constant score head, or a template that leaves the answer out"
        )
    if len(pairs) < len(scores):
        log.info("%s: %d of %d golden pairs do not fit in max_length", folder, len(scores) - len(pairs), len(scores))
    if expected is not None:
        _compare(found, expected, precision, folder)
    return scores


def _compare(found: list[float], expected: Golden, precision: str, folder: Path) -> None:
    wanted = [score for pair in expected.scores for score in pair]
    known = [i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if not math.isnan(a + b)]
    if not known:
        return
    coarser = "bf16" if "bf16" in (precision, expected.precision) else "fp32"
    spread = max(wanted[i] for i in known) - min(wanted[i] for i in known)
    noise = max(NOISE[coarser] * spread, LEAST_NOISE[coarser])
    cause = "the likely cause is another chat template, tokenizer or weights than in training, or the backend"
    names, file = _names(), FILES[expected.precision]
    for i, j in combinations(known, 2):
        if abs(wanted[i] - wanted[j]) > noise and (found[i] - found[j]) * (wanted[i] - wanted[j]) <= 0:
            raise UserError(
                f"{folder}: scores {names[i]} {found[i]:.4g} and {names[j]} {found[j]:.4g}, in {file} they are "
                f"{wanted[i]:.4g} and {wanted[j]:.4g}; {cause}"
            )
    worst = max(known, key=lambda i: abs(found[i] - wanted[i]))
    if coarser == "fp32" and abs(found[worst] - wanted[worst]) > noise:
        raise UserError(
            f"{folder}: scores {names[worst]} {found[worst]:.6g}, in {file} it is {wanted[worst]:.6g} (fp32 differs by at "
            f"most {noise:.2g}); {cause}"
        )


def check_fast_path(model: Classifier, *, precision: str, folder: Path) -> None:
    """Refuse a classifier whose `score` differs from its own plain path, one padded row per response, on the golden texts.

    Raises:
        UserError: as `check_golden`.
    """
    texts = [(group.prompt, text) for group in golden_groups() for text in group.responses]
    plain = model.score_ids([model.encode(prompt, text) for prompt, text in texts])
    expected = Golden(scores=[plain[i : i + 2] for i in range(0, len(plain), 2)], precision=precision)
    check_golden(model, expected, precision=precision, folder=folder)
