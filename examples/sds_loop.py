"""Score distillation by hand, with the cache: python sds_loop.py ["teddy bear"] [STEPS]

The object is a grid of 40^3 colours and densities, rendered in ten lines of torch; the shipped prior says what each
view of it should look like. Writes sds_loop.png: eight views all around.
"""

import sys

import torch
from PIL import Image
from torch.nn.functional import grid_sample, softplus

import hash3d_cuda as h3d
from hash3d_cuda.cameras import camera_rays, camera_to_world
from hash3d_cuda.prior import load_prior


def render(volume, elevation, azimuth, radius, size=64, samples=40):
    """Views float [B,3,size,size] on white of a volume [1,4,D,D,D]: colour and density along every pixel's ray."""
    origins, directions = camera_rays(camera_to_world(elevation, azimuth, radius), size)
    near, step = radius.view(-1, 1, 1, 1, 1) - 0.5, 1 / samples
    depths = near + step * (torch.arange(samples).view(-1, 1) + torch.rand(1))
    points = origins[..., None, :] + depths * directions[..., None, :]  # [B,size,size,samples,3]
    values = grid_sample(volume.expand(len(radius), -1, -1, -1, -1), 2 * points, align_corners=False)
    opacity = 1 - torch.exp(-100 * step * softplus(values[:, 3:] - 10))
    light = torch.cumprod(1 - opacity, -1)
    weight = opacity * torch.cat([torch.ones_like(light[..., :1]), light[..., :-1]], -1)
    return (weight * values[:, :3].sigmoid()).sum(-1) + light[..., -1]


name = sys.argv[1] if len(sys.argv) > 1 else "teddy bear"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 400
torch.manual_seed(0)

prior = load_prior()
subject = prior.resolve(name)
cache = h3d.apply_hash3d(prior.unet, h3d.Hash3DConfig(eta=0.5, position=2, groups=2, memory_budget="128MiB"))
volume = torch.zeros(1, 4, 40, 40, 40).index_fill_(1, torch.tensor(3), 7.0).requires_grad_()
optimizer = torch.optim.Adam([volume], lr=0.1)

for step in range(steps):
    timestep = round(980 - 680 * step / steps)
    pose = {
        "elevation": torch.empty(2).uniform_(-10, 60),
        "azimuth": torch.empty(2).uniform_(0, 360),
        "radius": torch.empty(2).uniform_(1.8, 2.2),
    }
    clean = prior.encode(render(volume, **pose))
    signal = prior.alphas_cumprod[timestep]
    noisy = signal.sqrt() * clean.detach() + (1 - signal).sqrt() * torch.randn_like(clean)
    with torch.no_grad(), cache.views(**pose, timestep=timestep):
        output = prior.unet(torch.cat([noisy] * 2), timestep, **prior.conditioning(subject, **pose)).sample
    named, unnamed = output.chunk(2)  # this prior predicts the clean latent
    target = unnamed + 2.0 * (named - unnamed)
    optimizer.zero_grad()
    (clean - target).square().mean().backward()
    optimizer.step()

with torch.no_grad():
    views = render(volume, torch.full((8,), 30.0), torch.arange(8) * 45.0, torch.full((8,), 2.0))
strip = (torch.cat(list(views), -1).clamp(0, 1) * 255).byte().permute(1, 2, 0)
Image.fromarray(strip.numpy()).save("sds_loop.png")
print(cache.stats())
