"""Commands and scripts in forked processes of the tests' own: they find everything imported, which takes longer than
most of them do. They keep to one thread, so that no pool of the parent's is waited for."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONGEST = 300.0  # seconds that one may take
_context = multiprocessing.get_context("fork")


class Forked:
    """``act()`` in a process of its own that starts at once, in ``folder``, as the main program of a terminal.

    Args:
        act: returns the exit status, or None for 0, as a script's ``main`` does.
        folder: the working folder; exists.
        printed: an empty folder for what is printed.
    """

    def __init__(self, act: Callable[[], Any], folder: Path, printed: Path):
        self._files = [printed / "stdout", printed / "stderr"]
        self._process = _context.Process(target=_run, args=(act, folder, self._files), daemon=True)
        self._process.start()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.is_alive()

    def interrupt(self) -> None:
        """What Ctrl-C does."""
        os.kill(self._process.pid, signal.SIGINT)

    def end(self) -> tuple[int, str, str]:
        """Waits for the end; returns exit status, standard output and errors. Kills what takes too long."""
        self._process.join(LONGEST)
        self._process.kill()
        self._process.join()
        return (self._process.exitcode, *(path.read_text() for path in self._files))


def script(path: Path, *arguments: str) -> Callable[[], Any]:
    """For :class:`Forked`: the file as ``python PATH ARGUMENTS`` runs it."""

    def act() -> None:
        sys.argv = [str(path), *arguments]
        sys.path.insert(0, str(path.parent))
        runpy.run_path(str(path), run_name="__main__")

    return act


def _run(act: Callable[[], Any], folder: Path, files: list[Path]) -> None:
    import torch

    torch.set_num_threads(1)
    for number, path in enumerate(files, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        status = act()
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status or 0)
