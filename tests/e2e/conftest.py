"""One finished proxy run for all end-to-end tests: it takes a minute, so it is made once per session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.regression.compare import run_proxy


@pytest.fixture(scope="session")
def proxy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of recipes/proxy.yaml. Tests must not write into it; copy it."""
    run_dir = tmp_path_factory.mktemp("proxy") / "run"
    run_proxy(run_dir)
    return run_dir
