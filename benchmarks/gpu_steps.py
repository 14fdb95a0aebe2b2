"""The U-Net's part of :mod:`gpu`: full and hit, by themselves and in steps of score distillation."""

from __future__ import annotations

from typing import Any

import torch
from gpu_clock import Clock
from gpu_rows import Row, row
from torch import Tensor

import hash3d_cuda as h3d


def step_rows(clock: Clock, device: str, side: int, **config: Any) -> list[Row]:
    """A U-Net step at SD 1.5's width: full, hit and bare head and tail."""
    from sd_unet import POSE, TIMESTEP, Bare, Hooked, make_call, make_unet

    unet = make_unet(device, **config)
    call = make_call(unet, side)
    bare, hooked = Bare(unet), Hooked(unet, eta=1.0)
    feature = bare.feature(call)
    hooked.run(call)
    full = clock.events(lambda: call.run(unet))
    shallow = clock.events(lambda: bare.head_and_tail(call, feature))
    hit = clock.events(lambda: hooked.run(call))
    hooked.expect("hit")
    host = clock.host(lambda: hooked.run(call)) - clock.host(lambda: bare.head_and_tail(call, feature))
    table = hooked.cache.table
    key = h3d.make_keys(**POSE, timestep=TIMESTEP).to(device)
    latent, room = call.sample[:1].float(), torch.empty_like(feature)[None]

    def hit_by_hand() -> Tensor:
        table.query(key, latent, out=room)
        return bare.head_and_tail(call, room[0])

    rows = [
        row(f"full U-Net, {side}x{side}", full),
        row("bare head and tail", shallow),
        row("hit through the hook", hit, rival=shallow, goal="<= 1.03"),
        row("full over hit; bound: full over bare head and tail", full / hit),
        row("host time that the hook adds to a hit", host, goal="<= 50 us"),
    ]
    rows[3].update(seconds=None, ratio=full / hit, note=f"bound {full / shallow:.2f}")
    graphs = [("full U-Net", lambda: call.run(unet)), ("head, query and tail", hit_by_hand)]
    rows += [row(f"{name} as a graph", clock.calls([function])) for name, function in graphs]
    return rows + sds_rows(clock, device, side, full - shallow, **config)


def sds_rows(clock: Clock, device: str, side: int, saved: float, **config: Any) -> list[Row]:
    """Whole SDS steps: full and hit, against the bound that the ``saved`` seconds of the U-Net allow."""
    from sds_step import sds_step

    seconds = {}
    ways = {"full": None, "hit": "host"} | ({"hit, decided in a graph": "device"} if device == "cuda" else {})
    for name, decide in ways.items():
        with sds_step(device, side, decide, **config) as step:
            seconds[name] = clock.events(step)
    full = seconds.pop("full")
    rows = [row("full SDS step, no VAE", full)]
    for name, hit in seconds.items():
        found = row(f"SDS step, {name}", hit) | {"ratio": full / hit}
        bound = full / max(full - saved, 1e-9)
        rows.append(found | {"note": f"ratio: full over this; bound {bound:.2f}"})
    return rows
