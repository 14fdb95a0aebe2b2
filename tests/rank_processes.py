"""Ranks of a gloo group as processes of their own, for tests: forked, because importing torch and diffusers anew takes
longer than most of these tests. They keep to one thread, so that no pool of the parent's is waited for."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

LONGEST = 240.0  # seconds a test's ranks may take together
_context = multiprocessing.get_context("fork")


def start_ranks(size: int, act: Callable[..., Any], *args: Any, timeout: float = 20.0) -> list[tuple[Any, Any]]:
    """Starts ``act(*args)`` on ``size`` ranks of a default group with this timeout in seconds.

    Returns:
        per rank its process, and the pipe that :func:`outcome` reads.
    """
    rendezvous = os.path.join(tempfile.mkdtemp(), "store")
    ranks = []
    for rank in range(size):
        receiver, sender = _context.Pipe(duplex=False)
        process = _context.Process(target=_run, args=(sender, rendezvous, rank, size, timeout, act, args), daemon=True)
        process.start()
        sender.close()
        ranks.append((process, receiver))
    return ranks


def outcome(process: Any, receiver: Any, longest: float = LONGEST) -> Any:
    """What a rank's ``act`` returned, or the exception's ``(name, message)``; None when it was killed."""
    if not receiver.poll(longest):
        process.kill()
        raise AssertionError(f"a rank hung for {longest} s")
    try:
        told = pickle.loads(receiver.recv_bytes())
    except EOFError:
        told = None
    process.join(longest)
    return told


def run_ranks(size: int, act: Callable[..., Any], *args: Any, timeout: float = 20.0) -> list[Any]:
    """The outcome of every rank."""
    ranks = start_ranks(size, act, *args, timeout=timeout)
    end = time.monotonic() + LONGEST
    return [outcome(*rank, longest=max(end - time.monotonic(), 0.1)) for rank in ranks]


def _run(sender: Any, rendezvous: str, rank: int, size: int, timeout: float, act: Any, args: tuple[Any, ...]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size,
        timeout=datetime.timedelta(seconds=timeout),
    )  # fmt: skip
    try:
        told = act(*args)
    except Exception as error:
        traceback.print_exc()
        told = type(error).__name__, str(error)
    sender.send_bytes(pickle.dumps(told))  # by value: tensors that are shared would go with this process
    sender.close()
    os._exit(0)  # closes the connections, and waits for nobody
