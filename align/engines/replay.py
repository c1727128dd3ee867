"""Recorded answers: a file that stands in for a model in tests, demonstrations and reruns.

One JSON line an answer, by the content of its request and the model's fingerprint, so that neither order nor names matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from align.core.errors import StepError, UserError
from align.core.hashing import content_id
from align.core.journal import Journal
from align.engines.protocol import Answered, Completion, Engine, EngineInfo, Request

HEADER = "header"


def to_record(answered: Answered) -> list[Any]:
    """An answer's completions as JSON: [[token ids, finish reason], ...]; third come `first_logprobs`, if any."""
    return [
        [list(completion.token_ids), completion.finish_reason, *filter(None, [completion.first_logprobs])]
        for completion in answered.completions
    ]


def from_record(request_id: str, record: list[Any]) -> Answered:
    """The inverse of `to_record`, under the name the caller now gives the request."""
    completions = tuple(
        Completion(
            token_ids=tuple(ids),
            finish_reason=reason,
            first_logprobs=tuple((token, value) for pairs in logprobs for token, value in pairs),
        )
        for ids, reason, *logprobs in record
    )
    return Answered(request_id=request_id, completions=completions)


class ReplayEngine:
    """Answers from `path`; what the file lacks is asked of `recorder` and added, or is an error without one.

    Attributes:
        hits: requests answered from the file.
        misses: requests that the file lacked.

    Raises:
        UserError: no recorder, and `path` does not exist or has no header of its own.
    """

    def __init__(self, path: Path, recorder: Engine | None, model_fingerprint: str) -> None:
        if recorder is None and not path.is_file():
            raise UserError(f"{path}: no such file of recorded answers; give engine.record_with to make it")
        self._journal = Journal(path)
        self._recorder = recorder
        self._model_fingerprint = model_fingerprint
        self.hits = 0
        self.misses = 0
        if HEADER not in self._journal:
            if recorder is None:
                raise UserError(f"{path}: not a file of recorded answers (it has no header line)")
            self._journal.put(HEADER, {"max_model_len": recorder.info.max_model_len, "recorded_with": recorder.info.kind})
        header = self._journal.get(HEADER)
        self.info = EngineInfo(
            kind="replay",
            version="1",
            max_model_len=recorder.info.max_model_len if recorder else header["max_model_len"],
            deterministic=True,
            flags={"recorded_with": header["recorded_with"]},
        )

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answered]:
        """Yield recorded answers at once, the recorder's as they come. An answer with an error is not recorded.

        Raises:
            StepError: an answer is missing and there is no recorder; names the request and the file.
        """
        missing: dict[str, Request] = {}
        for request in requests:
            if request is None:
                yield from self._record(missing)
                missing = {}
                continue
            key = self._key(request)
            if key in self._journal:
                self.hits += 1
                yield from_record(request.id, self._journal.get(key))
            else:
                self.misses += 1
                missing[request.id] = request
        yield from self._record(missing)

    def _record(self, missing: dict[str, Request]) -> Iterator[Answered]:
        if not missing:
            return
        if self._recorder is None:
            first = next(iter(missing))
            raise StepError(
                f"{self._journal.path} has no answer to request {first} (and {len(missing) - 1} more): "
                "the model, the prompt or the sampling is not what was recorded"
            )
        for answered in self._recorder.generate(missing.values()):
            if answered.error:
                yield answered
                continue
            key = self._key(missing[answered.request_id])
            if key not in self._journal:  # two requests of the same content get the same answer, now and in every replay
                self._journal.put(key, to_record(answered))
            yield from_record(answered.request_id, self._journal.get(key))

    def close(self) -> None:
        """Close the file and the recorder."""
        self._journal.close()
        if self._recorder is not None:
            self._recorder.close()

    def _key(self, request: Request) -> str:
        return content_id(self._model_fingerprint, request.key())
