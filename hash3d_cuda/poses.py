"""Poses, timesteps and condition ids of a forward, on the host."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import fail
from .keys import KEY_ORDER, make_keys

TIMESTEP = KEY_ORDER.index("timestep")


class HostCopies:
    """Copies values from a GPU to the host, and counts; under ``strict`` it refuses."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.count = 0

    def fetch(self, name: str, value: Any) -> Any:
        """Returns ``value``, on the host when it is a tensor."""
        if not isinstance(value, Tensor) or value.device.type == "cpu":
            return value
        if self.strict:
            expected = "a host value, because strict=True forbids waiting for the device"
            fail(ValueError, name, expected, value, "pass numbers or a CPU tensor, or strict=False")
        self.count += 1
        return value.detach().cpu()

    def send(self, name: str, value: Tensor) -> Later:
        """Begins to copy a number to the host. Whoever reads it before it has arrived waits, which is his to count."""
        if self.strict and value.device.type != "cpu":
            expected = "None, because strict=True forbids waiting for the device"
            fail(ValueError, name, expected, value, "leave it out, or pass strict=False")
        return Later(value)


class Later:
    """A number on its way to the host; from a CPU it is there at once."""

    def __init__(self, value: Tensor) -> None:
        self._value, self._event = value.detach(), None
        if value.is_cuda:
            copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value = copy.copy_(self._value, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(value.device))

    @property
    def arrived(self) -> bool:
        """Whether reading would not wait."""
        return self._event is None or self._event.query()

    def read(self) -> float:
        """The number."""
        if not self.arrived:
            assert self._event is not None
            self._event.synchronize()
        return float(self._value)


class Views:
    """What ``cache.views(...)`` was told, for B items or one that stands for all."""

    def __init__(
        self, elevation: Any, azimuth: Any, radius: Any, timestep: Any, condition: Any, copies: HostCopies
    ) -> None:
        pose = {"elevation": elevation, "azimuth": azimuth, "radius": radius}
        pose = {name: copies.fetch(name, value) for name, value in pose.items()}
        self.has_timestep = timestep is not None
        host_timestep = copies.fetch("timestep", timestep) if self.has_timestep else 0
        self._keys = make_keys(**pose, timestep=host_timestep, device="cpu")
        self._conditions = check_conditions(condition)
        self._copies = copies

    def keys(self, timestep: Any, firsts: Sequence[int], rows: int) -> Tensor:
        """Keys of the items whose first rows are ``firsts``: float32 ``[B, 4]`` on the CPU. ``timestep`` is the
        forward's, for all ``rows`` rows or one value; it is read only when ``views`` was given none."""
        batch = len(firsts)
        self._check_length("elevation, azimuth, radius, timestep", len(self._keys), batch)
        keys = self._keys.expand(batch, -1)
        if self.has_timestep:
            return keys
        steps = torch.as_tensor(self._copies.fetch("timestep", timestep)).reshape(-1)
        if len(steps) == rows:
            steps = steps[list(firsts)]
        keys = keys.clone()
        keys[:, TIMESTEP] = steps.to(torch.float32)
        return keys

    def hints(self) -> tuple[Tensor, list[Hashable]]:
        """Keys and conditions of a forward to come: as many items as were named."""
        if not self.has_timestep:
            expected = "the timesteps of the forward to come"
            fail(TypeError, "timestep", expected, None, "pass them: there is no call yet to take them from")
        batch = max(len(self._keys), len(self._conditions))
        return self.keys(None, range(batch), batch), self.conditions(batch)

    def conditions(self, batch: int) -> list[Hashable]:
        """The condition id of each of ``batch`` items."""
        self._check_length("condition", len(self._conditions), batch)
        return self._conditions * batch if len(self._conditions) == 1 else self._conditions

    @staticmethod
    def _check_length(name: str, length: int, batch: int) -> None:
        if length not in (1, batch):
            raise ValueError(
                f"views: {name}: expected 1 or {batch} values (rows of the batch / groups), got {length}; pass one per "
                "item, or check Hash3DConfig.groups"
            )


def check_conditions(condition: Any) -> list[Hashable]:
    """Returns the condition ids as a list: a list is one per item, anything else hashable stands for all."""
    conditions = condition if isinstance(condition, list) else [condition]
    for value in conditions:
        expected = "a hashable id such as a prompt or a file name, or a list of them"
        if isinstance(value, Tensor):  # hashable, but by identity: its content may change under the same id
            fail(TypeError, "condition", expected, value, "pass an id of what it stands for")
        try:
            hash(value)
        except TypeError:
            fail(TypeError, "condition", expected, value, "pass a tuple or a string")
    return conditions
