"""``hash3d bench``: runs the repository's benchmarks with pytest-benchmark."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

from hash3d_cuda.cli.main import UsageError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Fills the subcommand's parser."""
    parser.add_argument("--folder", type=Path, help="the benchmarks (default: ./benchmarks, else beside the package)")
    parser.add_argument(
        "-k", dest="pattern", metavar="WORDS", help="only benchmarks whose name matches, as in pytest -k"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write pytest-benchmark's JSON")


def run(options: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    for package in ("pytest", "pytest_benchmark"):
        if importlib.util.find_spec(package) is None:
            raise RuntimeError(f"the package {package!r} is missing; install it with: pip install 'hash3d-cuda[bench]'")
    command = [sys.executable, "-m", "pytest", str(find_folder(options.folder)), "-q", "-s"]
    command += ["-k", options.pattern] if options.pattern else []
    command += [f"--benchmark-json={options.json}"] if options.json else []
    code = subprocess.run(command, check=False, stderr=subprocess.STDOUT).returncode
    if code == 5:
        name = f"matches -k {options.pattern!r}" if options.pattern else "was found"
        raise ValueError(f"bench: no benchmark {name}; the files are in {str(find_folder(options.folder))!r}")
    if code == 4:
        raise UsageError("bench: pytest does not take these options; it says why above")
    if code:
        raise RuntimeError(f"bench: pytest ended with exit code {code}; it says why above")
    return 0


def find_folder(given: Path | None) -> Path:
    """The folder with the benchmarks; raises ValueError when there is none."""
    beside = Path(__file__).resolve().parents[2] / "benchmarks"
    candidates = [given] if given is not None else [Path("benchmarks"), beside]
    for folder in candidates:
        if any(folder.glob("test_*.py")) or any(folder.glob("bench_*.py")):
            return folder
    raise ValueError(
        f"bench: no benchmarks in {', '.join(repr(str(path)) for path in candidates)}; run it in a clone "
        "of the repository or give --folder"
    )
