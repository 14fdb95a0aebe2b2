"""Stands for nerfacc: a fixed number of samples along each ray."""

import torch

__path__ = []  # its submodules are replaced
SAMPLES = 12


class OccGridEstimator(torch.nn.Module):
    def __init__(self, roi_aabb, resolution, levels):
        super().__init__()
        self.register_buffer("occs", torch.ones(8))
        self.register_buffer("binaries", torch.ones(8, dtype=torch.bool))
        self.reach = float(roi_aabb.abs().max())

    def sampling(self, rays_o, rays_d, **options):
        middle = rays_o.norm(dim=-1, keepdim=True)
        edges = middle + torch.linspace(-self.reach, self.reach, SAMPLES + 1, device=rays_o.device)
        edges = edges.clamp_min(1e-3)
        rays = torch.arange(len(rays_o), device=rays_o.device).repeat_interleave(SAMPLES)
        return rays, edges[:, :-1].reshape(-1), edges[:, 1:].reshape(-1)

    def update_every_n_steps(self, step, occ_eval_fn, **options):
        occ_eval_fn(torch.zeros(1, 3, device=self.occs.device))


def render_weight_from_density(t_starts, t_ends, sigmas, ray_indices=None, n_rays=None):
    depth = (sigmas * (t_ends - t_starts)).reshape(n_rays, SAMPLES)
    alphas = 1 - torch.exp(-depth)
    trans = torch.exp(depth - depth.cumsum(dim=1))  # of what lies before
    return (trans * alphas).reshape(-1), trans.reshape(-1), alphas.reshape(-1)


def accumulate_along_rays(weights, values=None, ray_indices=None, n_rays=None):
    values = weights[:, None] if values is None else weights[:, None] * values
    return torch.zeros(n_rays, values.shape[1], device=values.device, dtype=values.dtype).index_add(
        0, ray_indices, values
    )
