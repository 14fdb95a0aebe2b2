"""The ranks that make one object together: who looks at which views, and what they add up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .group import RankLost, check_group, collective

if TYPE_CHECKING:
    from hash3d_cuda.sds.sampler import StepViews

T = TypeVar("T")


class Ranks:
    """The members of ``group``, each with its own copy of scene, optimizer and table.

    Every step's views are drawn on all ranks from one seed; rank r takes the r-th of equal parts (the first parts are
    one larger where they cannot be equal), so that a step on n ranks stores, in rank order, what it would have stored
    on one, and tosses the same one coin.

    Args:
        group: a process group with a backend for CPU tensors, and for the scene's device.
    """

    def __init__(self, group: Any) -> None:
        self.group = check_group("ranks", group)
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    @property
    def writes(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0

    def agree(self, values: Mapping[str, Any]) -> None:
        """Proves that all ranks have the same ``values`` (collective). What differed would not always be an error
        later: ranks with other learning rates, or views, would each train another object.

        Raises:
            ValueError: on all ranks, with what each has.
        """
        told: list[dict[str, str]] = [{} for _ in range(self.size)]
        with collective("the options", self.group):
            dist.all_gather_object(told, {name: repr(value) for name, value in values.items()}, group=self.group)
        names = dict.fromkeys(name for values in told for name in values)
        different = [name for name in names if len({values.get(name) for values in told}) > 1]
        if different:
            shown = "; ".join(f"{name}: {', '.join(values.get(name, '-') for values in told)}" for name in different)
            raise ValueError(
                f"ranks: expected the same on ranks 0 to {self.size - 1}, got {shown}; start all with one command line"
            )

    def check_views(self, views_per_step: int) -> None:
        """Raises ValueError where a rank would have no view."""
        if views_per_step < self.size:
            raise ValueError(
                f"views_per_step: expected at least {self.size}, one for each rank, got {views_per_step}; raise it, or "
                "start fewer ranks"
            )

    def part(self, views: StepViews) -> StepViews:
        """This rank's part of a step's views."""
        own = split(len(views.azimuth), self.size)[self.rank]
        values = {name: getattr(views, name)[own] for name in ("elevation", "azimuth", "radius", "timestep")}
        return replace(views, **values, first=own.start, whole=views)

    def sum_gradients(self, parameters: Iterable[Tensor], weight: float) -> None:
        """Replaces every parameter's gradient by the sum over ranks of ``weight`` times theirs.

        With a loss that is a mean over views, and ``weight`` this rank's share of the views, it is the gradient of the
        mean over all views. All ranks end with the same bits, so their optimizers stay in step.
        """
        wanted = [p for p in parameters if p.requires_grad]
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in wanted])
        flat *= weight
        with collective("gradients", self.group):
            dist.all_reduce(flat, group=self.group)
        for parameter, part in zip(wanted, flat.split([p.numel() for p in wanted]), strict=True):
            parameter.grad = part.view_as(parameter)

    def total(self, counts: Sequence[int]) -> list[int]:
        """Sums over ranks, number by number."""
        sums = torch.tensor(counts, dtype=torch.int64)
        with collective("counts", self.group):
            dist.all_reduce(sums, group=self.group)
        return sums.tolist()

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank: the same answer on all."""
        return self.total([int(flag)])[0] > 0

    def first(self, act: Callable[[], T]) -> T | None:
        """Calls ``act`` on rank 0 while the others wait; returns what it does there, and None elsewhere.

        Raises:
            Exception: what ``act`` raises, on rank 0; RankLost with its message on the others.
        """
        result, error = None, None
        if self.writes:
            try:
                result = act()
            except Exception as raised:
                error = raised
        told = [None if error is None else str(error)]
        with collective("the outcome of rank 0", self.group):
            dist.broadcast_object_list(told, src=dist.get_global_rank(self.group, 0), group=self.group)
        if error is not None:
            raise error
        if told[0] is not None:
            raise RankLost(f"rank 0 failed: {told[0]}")
        return result


def split(count: int, parts: int) -> list[slice]:
    """``count`` items in ``parts`` neighbouring slices, as equal as can be, the larger ones first."""
    sizes = [count // parts + (part < count % parts) for part in range(parts)]
    return [slice(sum(sizes[:part]), sum(sizes[: part + 1])) for part in range(parts)]
