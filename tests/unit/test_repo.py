"""The repository itself: paths named in the documents exist, floors hold, files stay short, make lists its targets."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(p for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/**/*.md")] if p.is_file())
PACKAGES = ("align", "data_gen", "reward")
# First parts of the paths that a document may name; `make test` or `loss: dpo` in backticks are no paths.
TOP = {p.name for p in ROOT.iterdir()} - {"runs", "models"}


def without_code_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", without_code_blocks(path.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


def broken(path: Path) -> list[str]:
    """What a document links to or names in backticks and is not there."""
    text = without_code_blocks(path.read_text(encoding="utf-8"))
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name) if name else path
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            missing.append(target)
    for code in re.findall(r"`([^`\n]+)`", text):
        name = code.split("::")[0].rstrip("/")
        # A path has no spaces and begins with a file or folder of the repository.
        if re.search(r"[\s<>*{}$=()…]", name) or name.startswith("runs/") or name.split("/")[0] not in TOP:
            continue
        if not (ROOT / name).exists():
            missing.append(name)
    return missing


def test_there_are_documents() -> None:
    assert ROOT / "README.md" in DOCUMENTS


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_and_paths_exist(path: Path) -> None:
    assert broken(path) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(
        "# One\n[a](b.md) [c](#one) [d](#two) [e](https://x.org/y) `align/nowhere.py` `align/cli.py` `align run` "
        "`align/core/` `tests/unit/test_repo.py::x` `runs/x/y` `align/*.py`\n```\n[f](g.md)\n```\n"
    )
    assert broken(path) == ["b.md", "#two", "align/nowhere.py"]


def test_paths_named_in_the_code_exist() -> None:
    missing = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for name in re.findall(r"\bdocs/[\w/.-]+\.md\b", path.read_text(encoding="utf-8")):
                if not (ROOT / name).is_file():
                    missing.append(f"{path.relative_to(ROOT)}: {name}")
    assert missing == []


def test_files_are_short() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert len(lengths) > 50
    assert {name: n for name, n in lengths.items() if n > 400} == {}
    assert not [name for name in lengths if name.endswith("utils.py")]


def test_floors_hold() -> None:
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    if command is None:
        pytest.skip("import-linter is not installed")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"Contracts: \d+ kept, 0 broken", done.stdout)


def test_make_lists_its_targets() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for argv in (["make", "help"], ["make"]):
        text = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        listed = re.findall(r"^  make (\w+) +\S", text, flags=re.MULTILINE)
        assert {"help", "setup", "demo", "test", "check", "fix", "regress", "clean"} <= set(listed)


def test_every_folder_of_the_packages_is_a_package() -> None:
    for package in PACKAGES:
        for folder in {p.parent for p in (ROOT / package).rglob("*.py")}:
            assert (folder / "__init__.py").is_file(), folder


def test_tests_cannot_reach_out() -> None:
    with pytest.raises(RuntimeError, match=r"a test tried to reach 192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(RuntimeError, match="a test tried to reach example"):
        socket.getaddrinfo("example.org", 443)
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=1).close()
