"""What a table takes for a U-Net's features, and how many entries there is room for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from hash3d_cuda.checks import DTYPE_NAMES, STORED_DTYPES, fail, parse_bytes
from hash3d_cuda.host_tier.front import divide, entry_bytes, host_bytes, host_capacity, slots_for
from hash3d_cuda.options import TableOptions
from hash3d_cuda.plan.setting import UNLIMITED, CacheSetting
from hash3d_cuda.unet.configs import UNETS
from hash3d_cuda.unet.cost import UNetCost

SHIPPED = "shipped"


@dataclass(frozen=True)
class Memory:
    """Bytes of the table.

    Attributes:
        slot: one entry.
        fixed: chains and averages.
        capacity: entries that there is room for.
        allocated: bytes from the first forward on.
        for_all: bytes that would hold every view of the run.
        host_capacity, host_allocated: the same of the host tier, which has a copy of the table's entries too; else 0.
        host_entry: bytes of one entry that are copied between the two.
        landing: slots on the device, beside ``capacity``, for entries that come back from the host.
    """

    slot: int
    fixed: int
    capacity: int
    allocated: int
    for_all: int
    host_capacity: int = 0
    host_allocated: int = 0
    host_entry: int = 0
    landing: int | None = None

    @property
    def entries(self) -> int:
        """That a retrieval may find."""
        return self.host_capacity or self.capacity

    @property
    def front(self) -> int | None:
        """How many of them the device has; None without a host tier, where it has all."""
        return self.capacity if self.host_capacity else None


def table_memory(setting: CacheSetting, cost: UNetCost, views: int, feature_dtype: torch.dtype | None) -> Memory:
    """The table's memory for a U-Net's features, ``[groups, C, H, W]`` at ``setting.position``."""
    own = torch.float32 if cost.name == SHIPPED else torch.float16
    dtype = feature_dtype or (own if setting.feature_dtype is None else DTYPE_NAMES[setting.feature_dtype])
    if dtype not in STORED_DTYPES:
        names = ", ".join(str(one) for one in STORED_DTYPES)
        fail(ValueError, "feature_dtype", f"one of {names}", dtype, "choose one of these")
    unlimited = setting.capacity is None and setting.memory_budget == UNLIMITED
    room: dict[str, Any] = {"capacity": views if unlimited else setting.capacity, "memory_budget": None}
    if room["capacity"] is None:
        room["memory_budget"] = setting.memory_budget
    channels = UNETS[cost.name].values.get("out_channels", 4)
    options = TableOptions.build(
        (setting.groups, *cost.feature_shape[setting.position]), (channels, cost.latent_size, cost.latent_size),
        grids=setting.grids, num_buckets=setting.num_buckets, queue_length=setting.queue_length, match=setting.match,
        weighting="softmax", similarity_decay=0.9, initial_similarity=1.0, min_similarity=None,
        azimuth_period=setting.azimuth_period, feature_dtype=dtype, device="cpu", **room,
    )  # fmt: skip
    slots, slot, fixed = options.resolve_capacity(), options.slot_bytes, options.fixed_bytes
    if unlimited and setting.host_budget is not None:
        slots = slots_for(options, views)  # so that what is for entries that come back takes none of the views' room
    memory = Memory(slot, fixed, slots, fixed + slots * slot, fixed + views * slot)
    return memory if setting.host_budget is None else host_memory(memory, options, setting.host_budget)


def host_memory(memory: Memory, options: TableOptions, host_budget: int | str) -> Memory:
    """The memory of both tiers from that of a table alone."""
    front, landing = divide(options, memory.capacity)
    held = host_capacity(options, front, parse_bytes("host_budget", host_budget))
    fixed, entry = host_bytes(options)
    return replace(
        memory, capacity=front, landing=landing, host_capacity=held, host_allocated=fixed + held * entry,
        host_entry=entry_bytes(options),
    )  # fmt: skip
