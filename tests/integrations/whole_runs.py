"""Running other projects' own scripts by the commands of the examples' pages, in a copy of a checkout, without a GPU.

The copy is changed where the script names a device, and nowhere else; ``no_gpu`` stands for the rest of CUDA, and
``small_weights`` for what would be downloaded.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from added_lines import ADDED, with_lines
from foreign_code import ROOT, checkout

HERE = Path(__file__).resolve().parent
DEVICES = (  # of the copy's Python files
    (re.compile(r"""(["'])cuda(:0)?\1"""), r"\1cpu\1"),
    (re.compile(r"""f"cuda:\{get_rank\(\)\}\""""), '"cpu"'),
    (re.compile(r"device=get_rank\(\)"), 'device="cpu"'),
    (re.compile(r"\.to\(self\.rank\)"), '.to("cpu")'),
    (re.compile(r"\.cuda\(\)"), ".cpu()"),
    (re.compile(r'accelerator="gpu",\s*devices=devices'), 'accelerator="cpu", devices=1'),
)
NEEDED = ("omegaconf", "pytorch_lightning", "jaxtyping", "typeguard", "einops", "cv2", "imageio", "trimesh")


def fresh_copy(system: str, folder: Path) -> Path:
    """A copy of the checkout of ``system``, with the example's files and the page's lines in it; without checkout, or
    without what the systems ask for, the test is skipped."""
    root = checkout(f"HASH3D_{system.upper()}")
    for name in NEEDED:
        pytest.importorskip(name, reason="these systems need it")
    copy = copy_checkout(root, folder / system)
    for path in (ROOT / "examples" / system).glob("*.py"):
        shutil.copy(path, copy)
    for name in ADDED.get(system, ()):
        (copy / name).write_text(with_lines(copy, system, name), encoding="utf-8")
    return copy


def change(path: Path, *replaced: tuple[str, str]) -> None:
    """Puts other text in the place of some that stands in a file once."""
    text = path.read_text(encoding="utf-8")
    for old, new in replaced:
        assert text.count(old) == 1, f"{path.name} has {old!r} {text.count(old)} times"
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def copy_checkout(root: Path, folder: Path) -> Path:
    """A copy of ``root`` in which ``"cuda"`` is ``"cpu"``."""
    shutil.copytree(root, folder, ignore=shutil.ignore_patterns(".git", "outputs", "*.gif", "*.mp4", "docs", "assets"))
    for path in folder.rglob("*.py"):
        text = path.read_text(encoding="utf-8", errors="replace")
        changed = text
        for found, put in DEVICES:
            changed = found.sub(put, changed)
        if changed != text:
            path.write_text(changed, encoding="utf-8")
    return folder


def page_commands(system: str, beginning: str) -> list[str]:
    """The commands of an example's page that begin so, each on one line and without its comment."""
    page = (ROOT / "examples" / system / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```text\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [line.partition("    #")[0].strip() for line in lines if line.startswith(beginning)]
    assert found, f"examples/{system}/README.md has no command {beginning!r}"
    return found


def run(
    folder: Path,
    command: str,
    *more: str,
    without: tuple[str, ...] = (),
    beside: tuple[Path, ...] = (),
    **variables: str,
) -> str:
    """What a page's command, with ``more`` arguments behind it, printed when run in ``folder``; packages are found in
    the folders ``beside`` too."""
    words = shlex.split(command)
    if words[0] == "python":
        words[0] = sys.executable
    paths = [*beside, HERE / "no_gpu", HERE, ROOT / "tests", ROOT]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "HASH3D_REPLACED": ",".join(without),
        "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg", "WANDB_MODE": "disabled", **variables,
    }  # fmt: skip
    done = subprocess.run([*words, *more], cwd=folder, env=environment, capture_output=True, text=True)
    (folder / "run.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def forwards(text: str) -> list[int]:
    """Of the counts that a script printed."""
    return [int(number) for number in re.findall(r"(\d+) forwards: ", text)]


def prepare(folder: Path, call: str, **options: Any) -> None:
    """Runs a function of ``small_weights`` or ``small_ldm`` in the copy, where upstream's modules are to be had."""
    module = call.partition(".")[0]
    run(folder, f"python -c {shlex.quote(f'import {module}; {call}')}", **options)
