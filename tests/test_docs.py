"""Every python and bash block in the README and in docs/ runs, and every link leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
LINKING = sorted([*PAGES, *(ROOT / "examples").rglob("*.md")])
LANGUAGES = {"python", "bash", "text"}  # text: shown, not run
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\((?!https?:)([^)#\s]+)")
# Blocks that install are run by .ci/run. The generations that docs show are cut short here; nothing else is changed.
INSTALLS = "pip install"
# A few steps, and a small turntable: it takes longer than they do. The imports do too, so processes are forked from one
# that has them; .ci/run has the README's own command and `hash3d info` start as they are.
SHORT = """
hash3d() {
  case "$1" in
    generate | compare) set -- "$@" --steps 2 --turntable-frames 3 --turntable-size 32 ;;
  esac
  "$PYTHON" -I -S "$WARM" "$SOCKET" hash3d "$@"
}
"""
WARM = ROOT / "tests" / "warm_process.py"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(first line's number, code) of the page's blocks in one language."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(2)) + 1, m[2]) for m in FENCE.finditer(text) if m[1] == language]


def pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder in which the checkout's paths are found, as a reader's terminal would find them."""
    for name in ("examples", "benchmarks", "hash3d_cuda"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def warm(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The environment in which SHORT finds the process that its commands are forked from."""
    socket = tmp_path_factory.mktemp("warm") / "socket"
    with subprocess.Popen([sys.executable, str(WARM), str(socket)], stdin=subprocess.PIPE) as server:
        while not socket.exists():
            assert server.poll() is None, "it ended before it was asked anything"
            time.sleep(0.05)
        yield {**os.environ, "PYTHON": sys.executable, "WARM": str(WARM), "SOCKET": str(socket)}
        server.stdin.close()
    assert server.returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_fence_has_a_known_language(page):
    assert {m[1] for m in FENCE.finditer(page.read_text(encoding="utf-8"))} <= LANGUAGES


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_relative_links_lead_somewhere(page):
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_python_blocks_run(page, folder):
    """In one namespace, from top to bottom, as somebody who types them would."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks(page, "python"):
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", pages_with("bash"), ids=name_of)
def test_bash_blocks_run(page, folder, warm):
    for line, code in blocks(page, "bash"):
        if INSTALLS in code:
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{SHORT}\n{code}"],
            cwd=folder, env=warm, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{page.name}:{line}\n{code}\n{done.stdout}\n{done.stderr}"


def test_a_warm_command_is_like_one_of_its_own(folder, warm):
    """Its arguments, folder, environment, output and exit status; and the package is imported for it alone."""
    command = 'hash3d "$@"; echo "status $?" >&2'

    def run(*words: str, **environment: str) -> tuple[str, str]:
        done = subprocess.run(
            ["bash", "-c", f"{SHORT}\n{command}", "bash", *words],
            cwd=folder, env={**warm, **environment}, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout, done.stderr

    from hash3d_cuda.cli.main import version

    assert run("--version") == (f"hash3d {version()}\n", "status 0\n")
    (folder / "no picture.png").write_text("text")
    printed, errors = run("generate", "no picture.png", "--no-cache")
    assert printed == "" and "no picture.png" in errors and errors.endswith("status 1\n")
    errors = run("compare", "teddy bear", WORLD_SIZE="2")[1]
    assert "expected one process, got 2" in errors and errors.endswith("status 2\n")


def test_the_shares_in_decide_are_what_the_benchmark_prints(monkeypatch):
    """The rows of short runs; the others come from the same function."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import served_shares

    page = (ROOT / "docs" / "decide.md").read_text(encoding="utf-8").splitlines()
    short = [case for case in served_shares.CASES if case[2] == 1000]
    assert len(short) == 4 and all(served_shares.row(*case) in page for case in short)


def test_the_bounds_in_limits_are_what_the_benchmark_prints(monkeypatch):
    """The two quick columns of the table; the others come from the same function."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import step_bounds

    rows = [line.strip("| \n").split(" | ") for line in (ROOT / "docs" / "limits.md").read_text().splitlines()]
    head, *body = [row for row in rows if row[0] in ("x", *map(str, step_bounds.SERVED))]
    for name in ("SD 2.1", "Zero123"):
        cost = step_bounds.unet_cost(name)
        expected = [step_bounds.figure(step_bounds.bound(*cost, encoder=0.0, x=x)) for x in step_bounds.SERVED]
        assert [row[head.index(f"U-Net {name}")] for row in body] == expected


def test_the_tables_in_scaling_are_what_the_command_prints():
    """Those of Stable Diffusion 2.1; the sizes of other U-Nets come from the same function."""
    from hash3d_cuda.distributed import cost

    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    tables = cost.bytes_table(), cost.break_even_table(), cost.links_table(), cost.cluster_table()
    assert [table for table in (*tables, cost.entries_table(("sd21",)).splitlines()[-1]) if table not in page] == []
