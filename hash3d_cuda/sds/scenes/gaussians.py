"""Gaussians with one colour each, splatted (Kerbl et al. 2023)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hash3d_cuda.cameras import camera_rays, camera_to_world
from hash3d_cuda.sds.scenes.base import BOUND, Rendered, Scene
from hash3d_cuda.sds.scenes.densify import make_strategy
from hash3d_cuda.sds.scenes.points import Points
from hash3d_cuda.sds.scenes.shading import check_shading, light_or_camera, shade
from hash3d_cuda.sds.scenes.splat import EXTENT, Gaussians, rotation_matrices, splat

FIRST_RADIUS, FIRST_SCALE, FIRST_OPACITY = 0.35, 0.02, 0.1
MIN_SCALE, MAX_SCALE = 0.002, 0.12
MOVE_EVERY = 25
MOVE_FROM, MOVE_UNTIL = 0.1, 0.7  # shares of the run
MOVED_SHARE = 0.05
FAINT = 0.03
PER_GAUSSIAN = ("mean", "log_scale", "quaternion", "opacity", "colour")
COLOUR_RIM = 0.02  # given colours keep this far from 0 and 1, where the sigmoid would hold them for ever
SEEN = 0.1  # alpha below which a pixel's mean depth says nothing
BLOCK = 16  # points per side of the blocks in which occupancy is summed


class GaussianScene(Scene):
    """Gaussians that go where they are needed.

    Args:
        size: how many; the number of ``points`` where these are given.
        seed: of the first places and colours.
        device: where they live.
        channels: colours per Gaussian, 3 unless ``latent``.
        latent: the colours are a prior's latents: unbounded, over a background of C values that starts at zero and is
            learnt.
        points: where they start; None: spread in a ball.
        densify: ``"move"``: the number is fixed and faint ones are moved; ``"gsplat"``: gsplat's strategy
            (:mod:`hash3d_cuda.sds.scenes.densify`), on CUDA only; ``"auto"``: that where it can be had.

    Raises:
        ValueError: ``densify`` is not known, or gsplat's strategy cannot be had here.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        device: torch.device,
        channels: int = 3,
        latent: bool = False,
        points: Points | None = None,
        densify: str = "move",
    ):
        super().__init__()
        self.channels, self.latent = channels, latent
        generator = torch.Generator().manual_seed(seed)
        way = F.normalize(torch.randn(size, 3, generator=generator), dim=-1)
        mean = way * FIRST_RADIUS * torch.rand(size, 1, generator=generator).pow(1 / 3)
        scale = torch.full((size, 3), FIRST_SCALE)
        if points is not None:
            mean = points.places.detach().float().cpu().clone()
            scale = spacing(mean).clamp(MIN_SCALE, MAX_SCALE)[:, None].repeat(1, 3)
        colour = 0.1 * torch.randn(len(mean), channels, generator=generator)
        if points is not None and points.colours is not None and not latent:
            colour = torch.logit(points.colours.detach().float().cpu(), eps=COLOUR_RIM)
        unit = torch.zeros(len(mean), 4)
        unit[:, 0] = 1
        self.mean = nn.Parameter(mean.to(device))
        self.log_scale = nn.Parameter(scale.log().to(device))
        self.quaternion = nn.Parameter(unit.to(device))
        self.opacity = nn.Parameter(torch.logit(torch.full((len(mean),), FIRST_OPACITY)).to(device))
        self.colour = nn.Parameter(colour.to(device))
        self.background = nn.Parameter(torch.zeros(channels, device=device)) if latent else None
        self.strategy = make_strategy(densify, device)

    def gaussians(self) -> Gaussians:
        """The Gaussians in scene units."""
        scale = self.log_scale.exp().clamp(MIN_SCALE, MAX_SCALE)
        quaternion = F.normalize(self.quaternion, dim=-1)
        colour = self.colour if self.latent else self.colour.sigmoid()
        return Gaussians(self.mean, scale, quaternion, self.opacity.sigmoid(), colour)

    def render(
        self,
        elevation: Tensor,
        azimuth: Tensor,
        radius: Tensor,
        size: int,
        shading: str | None = None,
        light: Tensor | None = None,
    ) -> Rendered:
        """See :meth:`Scene.render`; the normal is that of the surface which the mean depth of each pixel spans."""
        shading = check_shading(shading, self.latent)
        g, pose = self.gaussians(), (elevation, azimuth, radius)
        info = None if self.strategy is None else self.strategy.new_info()
        if shading is None:
            view = splat(g, *pose, size, self.background, info)
        else:
            both = replace(g, colour=torch.cat([g.colour, g.mean], 1))
            flat = splat(both, *pose, size, both.colour.new_zeros(6), info)
            normal = normals_of_depth(flat.image[:, 3:], flat.alpha, camera_to_world(*pose))
            view = shade(flat.image[:, :3], flat.alpha, normal, shading, light_or_camera(light, *pose))
        if self.strategy is not None:
            self.strategy.before_backward()
        return view

    def regularisation(self) -> Tensor:
        """A small price on opacity, and a wall around the sphere of radius ``BOUND``."""
        outside = (self.mean.square().sum(-1) - BOUND**2).clamp_min(0)
        return 1e-3 * self.opacity.sigmoid().mean() + outside.mean()

    def parameter_groups(self, lr_scale: float) -> list[dict[str, Any]]:
        """See :meth:`Scene.parameter_groups`."""
        rates = {"mean": 0.006, "log_scale": 0.03, "quaternion": 0.02, "opacity": 0.06, "colour": 0.06}
        if self.background is not None:
            rates["background"] = 0.06
        return [{"params": [getattr(self, name)], "lr": lr * lr_scale} for name, lr in rates.items()]

    @torch.no_grad()
    def on_step(self, step: int, steps: int) -> bool:
        """Now and then splits the largest solid Gaussians in two, where faint ones can be had for it.

        How many are looked at is fixed and which are taken is decided on the device, so nothing waits. The
        parameters stay the same tensors, so the optimizer goes on.
        """
        if self.strategy is not None:
            return self.strategy.after_step(self, step, steps)
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
        each = {name: getattr(self, name) for name in PER_GAUSSIAN}
        parents = {name: value[split].clone() for name, value in each.items()}
        parents["log_scale"] += halves
        for places, sign in ((split, -1.0), (taken.indices, 1.0)):
            for name, value in each.items():
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
        colour = line.new_ones(*occupancy.shape, self.channels)
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
            colour[where] = blend.view(*shape, -1)
        return occupancy, colour

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Takes over another number of Gaussians, too."""
        for name in PER_GAUSSIAN:
            value = getattr(self, name)
            saved = state.get(prefix + name)
            if saved is not None and saved.shape != value.shape and saved.shape[1:] == value.shape[1:]:
                setattr(self, name, nn.Parameter(value.new_empty(saved.shape)))
        super()._load_from_state_dict(state, prefix, *args, **kwargs)


def spacing(places: Tensor) -> Tensor:
    """Distance from each of float [N,3] to its nearest neighbour, float [N]; ``FIRST_SCALE`` for a single point."""
    from scipy.spatial import cKDTree

    if len(places) == 1:
        return torch.full((1,), FIRST_SCALE)
    near, _ = cKDTree(places.numpy()).query(places.numpy(), k=2)
    return torch.from_numpy(near[:, 1]).float()


def normals_of_depth(place: Tensor, alpha: Tensor, pose: Tensor) -> Tensor:
    """Normals of the surface at the mean depth of what each pixel sees, from differences between neighbours.

    The Gaussians' own shortest axes would say nothing while they are round.

    Args:
        place: float [B,3,S,S], the Gaussians' places times alpha.
        alpha: float [B,1,S,S].
        pose: float [B,3,4], of the camera.

    Returns:
        float [B,3,S,S], towards the camera, of any length; zero where there is nothing.
    """
    origins, directions = (v.permute(0, 3, 1, 2) for v in camera_rays(pose, alpha.shape[-1]))
    forward = -pose[:, :, 2, None, None]
    depth = ((place / alpha.clamp_min(1e-4) - origins) * forward).sum(1, keepdim=True)
    surface = origins + directions * (depth / (directions * forward).sum(1, keepdim=True))
    seen = (alpha.detach() > SEEN).to(alpha)
    down, right = (slope(surface, seen, dim) for dim in (2, 3))
    return torch.linalg.cross(down, right, dim=1) * seen


def slope(values: Tensor, seen: Tensor, dim: int) -> Tensor:
    """Differences along ``dim`` to those neighbours that are ``seen`` (0 or 1), summed over both sides."""
    steps = values.diff(dim=dim) * seen.narrow(dim, 1, seen.shape[dim] - 1)
    steps = steps * seen.narrow(dim, 0, seen.shape[dim] - 1)
    nothing = torch.zeros_like(values.narrow(dim, 0, 1))
    return torch.cat([steps, nothing], dim) + torch.cat([nothing, steps], dim)
