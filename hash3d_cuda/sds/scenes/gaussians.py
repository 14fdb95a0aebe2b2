"""Gaussians with one colour each, splatted (Kerbl et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hash3d_cuda.sds.scenes.base import BOUND, Rendered, Scene
from hash3d_cuda.sds.scenes.splat import EXTENT, Gaussians, rotation_matrices, splat

FIRST_RADIUS, FIRST_SCALE, FIRST_OPACITY = 0.35, 0.02, 0.1
MIN_SCALE, MAX_SCALE = 0.002, 0.12
MOVE_EVERY = 25
MOVE_FROM, MOVE_UNTIL = 0.1, 0.7  # shares of the run
MOVED_SHARE = 0.05
FAINT = 0.03
BLOCK = 16  # points per side of the blocks in which occupancy is summed


class GaussianScene(Scene):
    """A fixed number of Gaussians; faint ones are moved to where more are needed.

    Args:
        size: how many.
        seed: of the first places and colours.
        device: where they live.
    """

    def __init__(self, size: int, seed: int, device: torch.device):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        way = F.normalize(torch.randn(size, 3, generator=generator), dim=-1)
        mean = way * FIRST_RADIUS * torch.rand(size, 1, generator=generator).pow(1 / 3)
        colour = 0.1 * torch.randn(size, 3, generator=generator)
        unit = torch.zeros(size, 4)
        unit[:, 0] = 1
        self.mean = nn.Parameter(mean.to(device))
        self.log_scale = nn.Parameter(torch.full((size, 3), FIRST_SCALE).log().to(device))
        self.quaternion = nn.Parameter(unit.to(device))
        self.opacity = nn.Parameter(torch.logit(torch.full((size,), FIRST_OPACITY)).to(device))
        self.colour = nn.Parameter(colour.to(device))

    def gaussians(self) -> Gaussians:
        """The Gaussians in scene units."""
        scale = self.log_scale.exp().clamp(MIN_SCALE, MAX_SCALE)
        quaternion = F.normalize(self.quaternion, dim=-1)
        return Gaussians(self.mean, scale, quaternion, self.opacity.sigmoid(), self.colour.sigmoid())

    def render(self, elevation: Tensor, azimuth: Tensor, radius: Tensor, size: int) -> Rendered:
        """See :meth:`Scene.render`."""
        return splat(self.gaussians(), elevation, azimuth, radius, size)

    def regularisation(self) -> Tensor:
        """A small price on opacity, and a wall around the sphere of radius ``BOUND``."""
        outside = (self.mean.square().sum(-1) - BOUND**2).clamp_min(0)
        return 1e-3 * self.opacity.sigmoid().mean() + outside.mean()

    def parameter_groups(self, lr_scale: float) -> list[dict[str, Any]]:
        """See :meth:`Scene.parameter_groups`."""
        rates = {"mean": 0.006, "log_scale": 0.03, "quaternion": 0.02, "opacity": 0.06, "colour": 0.06}
        return [{"params": [getattr(self, name)], "lr": lr * lr_scale} for name, lr in rates.items()]

    @torch.no_grad()
    def on_step(self, step: int, steps: int) -> bool:
        """Now and then splits the largest solid Gaussians in two, where faint ones can be had for it.

        How many are looked at is fixed and which are taken is decided on the device, so nothing waits. The
        parameters stay the same tensors, so the optimizer goes on.
        """
        progress = (step + 1) / steps
        share = round(len(self.mean) * MOVED_SHARE)
        if (step + 1) % MOVE_EVERY or not MOVE_FROM <= progress <= MOVE_UNTIL or share == 0:
            return False
        opacity, size = self.opacity.sigmoid(), self.log_scale.amax(-1).exp()
        taken = opacity.topk(share, largest=False)
        split = (opacity * size).topk(share).indices
        needed = (taken.values < FAINT)[:, None]
        g = self.gaussians()
        longest = g.scale[split].argmax(-1, keepdim=True)
        axis = rotation_matrices(g.quaternion[split]).gather(2, longest[:, None].expand(-1, 3, -1))[..., 0]
        shift = 0.7 * g.scale[split].gather(1, longest) * axis
        halves = torch.zeros_like(self.log_scale[split]).scatter_(1, longest, -0.5)
        parents = {name: value[split].clone() for name, value in self.named_parameters()}
        parents["log_scale"] += halves
        for places, sign in ((split, -1.0), (taken.indices, 1.0)):
            for name, value in self.named_parameters():
                new = parents[name] + sign * shift if name == "mean" else parents[name]
                mask = needed if new.dim() == 2 else needed[:, 0]
                value[places] = torch.where(mask, new, value[places])
        return False

    @torch.no_grad()
    def occupancy_grid(self, resolution: int) -> tuple[Tensor, Tensor]:
        """See :meth:`Scene.occupancy_grid`; block by block, so that each looks at few Gaussians."""
        g = self.gaussians()
        axes = rotation_matrices(g.quaternion) * g.scale[:, None]
        reach = EXTENT * axes.norm(dim=-1)
        precise = rotation_matrices(g.quaternion) / g.scale[:, None]
        line = torch.linspace(-BOUND, BOUND, resolution, device=g.mean.device)
        occupancy = line.new_zeros((resolution,) * 3)
        colour = line.new_ones(*occupancy.shape, 3)
        starts = range(0, resolution, BLOCK)
        for x, y, z in ((x, y, z) for x in starts for y in starts for z in starts):
            where = tuple(slice(s, s + BLOCK) for s in (x, y, z))
            points = torch.stack(torch.meshgrid(*(line[s] for s in where), indexing="ij"), -1).flatten(0, 2)
            near = ((g.mean + reach > points[0]) & (g.mean - reach < points[-1])).all(-1).nonzero()[:, 0]
            if len(near) == 0:
                continue
            local = torch.einsum("pnj,njk->pnk", points[:, None] - g.mean[near], precise[near])
            alpha = g.opacity[near] * torch.exp(-0.5 * local.square().sum(-1))
            shape = occupancy[where].shape
            occupancy[where] = (1 - torch.log1p(-alpha.clamp_max(0.999)).sum(-1).exp()).view(shape)
            blend = alpha @ g.colour[near] / alpha.sum(-1, keepdim=True).clamp_min(1e-6)
            colour[where] = blend.view(*shape, 3)
        return occupancy, colour

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Takes over another number of Gaussians, too."""
        for name, value in list(self.named_parameters()):
            saved = state.get(prefix + name)
            if saved is not None and saved.shape != value.shape and saved.shape[1:] == value.shape[1:]:
                setattr(self, name, nn.Parameter(value.new_empty(saved.shape)))
        super()._load_from_state_dict(state, prefix, *args, **kwargs)
