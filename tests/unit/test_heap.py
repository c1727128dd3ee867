"""The heap: freed memory goes back to the system."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from align.core.heap import return_free_memory


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc, which alone has malloc_trim")
def test_free_pages_between_blocks_in_use_are_returned() -> None:
    blocks = [bytearray(60_000) for _ in range(4000)]  # 240 MB, below the size that goes back by itself
    held = blocks[::100]
    full = resident()
    del blocks
    assert return_free_memory()
    assert full - resident() > 200e6 and len(held) == 40
