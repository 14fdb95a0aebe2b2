"""What is asked of a process group, and collectives whose failure says what it means."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..checks import dense, fail

BACKENDS = "cpu:gloo,cuda:nccl"  # of a group on GPUs: the host's numbers go over gloo, so that nothing waits for a GPU
_REMEDY = f"init_process_group({BACKENDS!r}), or 'gloo' without GPUs, and pass dist.group.WORLD"


class RankLost(RuntimeError):
    """Another rank ended, failed or stood still, so that this one cannot go on."""


def check_group(name: str, group: Any) -> Any:
    """Returns ``group`` when it is a process group of which this process is a member and that carries CPU tensors.

    Raises:
        TypeError, ValueError: naming ``name``.
    """
    if not dist.is_available():
        raise ValueError(f"{name}: expected a torch with torch.distributed, got one without; install another build")
    if not isinstance(group, dist.ProcessGroup):
        fail(TypeError, name, "a torch.distributed.ProcessGroup", group, _REMEDY)
    if "cpu:" not in dist.get_backend_config(group):
        fail(ValueError, name, "a group that carries CPU tensors too", dist.get_backend_config(group), _REMEDY)
    return group


@contextlib.contextmanager
def collective(what: str, group: Any) -> Iterator[None]:
    """Brackets an exchange of ``what``; raises RankLost where torch's collective fails or times out."""
    start = time.monotonic()
    try:
        yield
    except RuntimeError as error:  # all that torch.distributed raises is one
        if isinstance(error, RankLost):
            raise
        reason = " ".join(str(error).split())
        raise RankLost(
            f"process_group: rank {dist.get_rank(group)} of {dist.get_world_size(group)} could not exchange {what} "
            f"({time.monotonic() - start:.1f} s, {reason[:200]}); another rank ended or stood still, and its own "
            "message says why: start all ranks again"
        ) from error


def all_gather(got: Tensor, sent: Tensor, what: str, group: Any) -> None:
    """Writes what every rank sends, all of one size, into ``got``, in rank order."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13
    with collective(what, group):
        gather(got, sent, group=group)


def gather_rows(rows: Tensor, counts: list[int], what: str, group: Any) -> Tensor:
    """The rows of all ranks, in rank order.

    Args:
        rows: ``[counts[rank], ...]`` of any dtype, on a device that the group has a backend for.
        counts: every rank's number of rows.
        what: for the message of an error.
        group: the process group.

    Returns:
        ``[sum(counts), ...]``. Rows are sent as bytes, and padded to the largest count where counts differ.
    """
    shape, dtype, most = rows.shape[1:], rows.dtype, max(counts)
    if most == 0:
        return rows
    padded = dense(rows)
    if len(rows) < most:
        padded = rows.new_zeros((most, *shape))
        padded[: len(rows)] = rows
    sent = padded.view(most, -1).view(torch.uint8)
    got = torch.empty(len(counts) * most, sent.shape[1], dtype=torch.uint8, device=rows.device)
    all_gather(got, sent, what, group)
    if min(counts) < most:
        got = torch.cat([part[:count] for part, count in zip(got.split(most), counts, strict=True)])
    return got.view(dtype).view(sum(counts), *shape)
