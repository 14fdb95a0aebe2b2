"""Stands for the Gaussian rasterisers of DreamGaussian and GaussianDreamer: up to 200 round blots of one
size, added up.

``HASH3D_RASTER=4`` returns an alpha too, as DreamGaussian's does.
"""

import os
from types import SimpleNamespace

import torch

COARSE = 24


def GaussianRasterizationSettings(**settings):
    return SimpleNamespace(**settings)


class GaussianRasterizer:
    def __init__(self, raster_settings):
        self.settings = raster_settings

    def __call__(self, means3D, means2D, opacities, shs=None, scales=None, **rest):
        settings, chosen = self.settings, slice(0, 200)
        points = torch.nn.functional.pad(means3D[chosen], (0, 1), value=1.0) @ settings.projmatrix.float()
        places = points[:, :2] / points[:, 3:].clamp_min(1e-3)
        axis = torch.linspace(-1, 1, COARSE)
        apart = (axis[:, None] - places[:, 1, None, None]) ** 2 + (axis[None] - places[:, 0, None, None]) ** 2
        blots = opacities[chosen, :, None] * scales[chosen].mean() * torch.exp(-40 * apart)  # [N, h, w]
        colours = shs[chosen, 0] * 0.28209 + 0.5
        alpha = 1 - torch.exp(-blots.sum(0, keepdim=True))
        image = torch.einsum("nhw,nc->chw", blots, colours) / blots.sum(0).clamp_min(1e-6)
        image = alpha * image + (1 - alpha) * settings.bg[:, None, None] + 0 * means2D.sum()
        drawn = [self._grown(each) for each in (image, alpha, alpha * settings.campos.norm())]
        radii = torch.ones(len(means3D))
        if os.environ.get("HASH3D_RASTER") == "4":
            return drawn[0], radii, drawn[2], drawn[1]
        return drawn[0], radii, drawn[2]

    def _grown(self, image):
        size = self.settings.image_height, self.settings.image_width
        return torch.nn.functional.interpolate(image[None], size, mode="bilinear")[0]
