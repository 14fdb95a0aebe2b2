"""A cache that decides on the host beside one that decides on the device."""

from __future__ import annotations

import random
from typing import Any

import torch
from unet_shapes import SHORT, build_inputs, build_unet

import hash3d_cuda as h3d
from hash3d_cuda.hook import Hash3DCache, apply_hash3d

OPTIONS: dict[str, Any] = {"eta": 1.0, "position": 3, "groups": 2, "capacity": 12, "num_buckets": 101}
SAME = dict(rtol=1e-4, atol=1e-5)


class Both:
    """The same U-Net twice, one cache deciding on the host, the other on the device; every call goes to both."""

    def __init__(
        self, name: str = "sd15", near: dict[str, float] = SAME, shape: dict[str, Any] = SHORT, **options: Any
    ) -> None:
        self.near = near
        self.unets = [build_unet(name, **shape) for _ in range(2)]
        decides = ("host", "device")
        self.caches = [
            apply_hash3d(unet, h3d.Hash3DConfig(**{**OPTIONS, **options}, decide=decide))
            for unet, decide in zip(self.unets, decides, strict=True)
        ]

    @property
    def device(self) -> Hash3DCache:
        return self.caches[1]

    @torch.no_grad()
    def call(self, inputs: dict[str, Any], **views: Any) -> tuple[str, ...]:
        """Compares outputs and decisions; returns the latter."""
        outputs = []
        for unet, cache in zip(self.unets, self.caches, strict=True):
            with cache.views(**{"elevation": 0.0, "azimuth": 0.0, "radius": 2.0, **views}):
                outputs.append(unet(**inputs).sample)
        torch.testing.assert_close(outputs[1], outputs[0], **self.near)
        host, device = (cache.last for cache in self.caches)
        assert device.kinds == host.kinds and device.kind == host.kind and device.plain is None
        return device.kinds

    def compare(self, rows_saved: bool = True) -> None:
        """Counters and tables."""
        host, device = (cache.stats() for cache in self.caches)
        names = [
            "forwards",
            "hits",
            "misses",
            "bypasses",
            "rejected",
            "nbytes",
            *(["rows_saved"] if rows_saved else []),
        ]
        assert {name: getattr(device, name) for name in names} == {name: getattr(host, name) for name in names}
        assert device.host_syncs == 0 and self.caches[1].served() == self.caches[0].served()
        mine, theirs = (cache.table._state_dict() for cache in self.caches)
        for name in ("serials", "keys", "latents", "features", "member"):
            torch.testing.assert_close(mine[name], theirs[name], **self.near)


def walk(both: Both, batch: int, steps: int, seed: int = 0, **inputs: Any) -> list[tuple[str, ...]]:
    """Random views of a few cells, a new latent each time."""
    rng, made = random.Random(seed), []
    for step in range(steps):
        given = {**build_inputs(both.unets[0], rows=2 * batch, seed=step), **inputs}
        azimuth = [90.0 * rng.randrange(4) + rng.random() for _ in range(batch)]
        made.append(both.call(given, azimuth=azimuth, timestep=500 + 200 * rng.randrange(2)))
    return made
