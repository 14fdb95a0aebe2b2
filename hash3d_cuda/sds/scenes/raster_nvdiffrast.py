"""Meshes by nvdiffrast's CUDA kernels (Laine et al. 2020).

It has not been run: nvdiffrast needs a GPU and is not on PyPI. Tests play its documented conventions by a stand-in.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from hash3d_cuda.cameras import focal_length
from hash3d_cuda.sds.scenes.isosurface import Topology
from hash3d_cuda.sds.scenes.splat import NEAR

FAR = 100.0


@functools.cache
def nvdiffrast_context(device: torch.device) -> Any:
    """One rasteriser per device."""
    import nvdiffrast.torch as dr

    return dr.RasterizeCudaContext(device=device)


class NvdiffrastRaster:
    """See :class:`hash3d_cuda.sds.scenes.raster.Raster`.

    Args:
        local: float [B,V,3], vertices in camera axes: right, down, forward.
        topology: the mesh.
        size: pixels per side.
    """

    def __init__(self, local: Tensor, topology: Topology, size: int):
        import nvdiffrast.torch as dr

        self.dr, self.faces = dr, topology.faces.int()
        x, y, depth = local.unbind(-1)
        focal = 2 * focal_length(size) / size
        # nvdiffrast's row 0 lies at y = -1, so that y may go down as ours does
        clip_depth = ((FAR + NEAR) * depth - 2 * FAR * NEAR) / (FAR - NEAR)
        self.clip = torch.stack([focal * x, focal * y, clip_depth, depth], -1).contiguous()
        self.seen, _ = dr.rasterize(nvdiffrast_context(local.device), self.clip, self.faces, resolution=[size, size])
        self.covered = self.seen[..., 3] > 0

    def interpolate(self, values: Tensor) -> Tensor:
        """See :meth:`Raster.interpolate`."""
        return self.dr.interpolate(values[None].contiguous(), self.seen, self.faces)[0]

    def soften(self, values: Tensor) -> Tensor:
        """See :meth:`Raster.soften`."""
        return self.dr.antialias(values.contiguous(), self.seen, self.clip, self.faces)
