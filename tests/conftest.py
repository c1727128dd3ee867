"""What all tests share: real data and built models where they are there, and no way out to the network."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from align.builtin_models import build, builtin_folder, is_built

ROOT = Path(__file__).parent.parent
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")


class NetworkDenied(RuntimeError):
    """A test tried to reach another machine."""


def _check(host: Any) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name is not None and not str(name).startswith(LOOPBACK):
        raise NetworkDenied(f"a test tried to reach {name}")


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Only loopback and Unix sockets connect, and only loopback names resolve."""
    patch = pytest.MonkeyPatch()
    resolve = socket.getaddrinfo

    def guarded(name: str) -> Any:
        original = getattr(socket.socket, name)

        def connect(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                _check(address[0])
            return original(self, address)

        return connect

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        _check(host)
        return resolve(host, *args, **kwargs)

    for name in ("connect", "connect_ex"):
        patch.setattr(socket.socket, name, guarded(name))
    patch.setattr(socket, "getaddrinfo", getaddrinfo)
    patch.setenv("HF_HUB_OFFLINE", "1")  # for the processes that tests start
    yield
    patch.undo()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test data: $ALIGN_TEST_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("ALIGN_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real test data: {folder} is not there (set ALIGN_TEST_DATA)")
    return folder.resolve()


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The embedded SmolLM2-135M-Instruct, as `make setup` builds it."""
    if not is_built("smollm2-135m-instruct"):
        pytest.skip("smollm2-135m-instruct is not built: run `make setup`")
    return builtin_folder("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    """A random 0.2M-parameter Llama over bytes, built once and kept."""
    return build("tiny-llama")


@pytest.fixture(scope="session")
def tiny_bert() -> Path:
    """A random two-layer BERT over bytes, built once and kept."""
    return build("tiny-bert")
