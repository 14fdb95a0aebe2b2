"""Under torchrun: the processes that it started, as ranks."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator

import torch

from ..torchrun import world_size
from .group import BACKENDS
from .ranks import Ranks

TIMEOUT = 300.0
"""Seconds after which a rank that waits for another gives up. gloo's own default is half an hour."""


@contextlib.contextmanager
def joined(device: str, timeout: float = TIMEOUT) -> Iterator[Ranks | None]:
    """While entered, torchrun's processes are a group: gloo between hosts and, on CUDA, NCCL between GPUs.

    Args:
        device: where this process works, from :func:`hash3d_cuda.torchrun.own_device`.
        timeout: seconds.

    Yields:
        the ranks; None for a process that is alone.

    Raises:
        RuntimeError: the others did not come.
    """
    if world_size() == 1:
        yield None
        return
    import torch.distributed as dist

    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    backend = BACKENDS if place.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout))
    try:
        yield Ranks(dist.group.WORLD)
    finally:  # after an error too: it closes the connections, which is how the others hear of it
        dist.destroy_process_group()
