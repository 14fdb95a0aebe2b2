"""What the loop and the exporters need of any 3D scene."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

BOUND = 0.5
"""Objects lie inside this radius about the origin."""


@dataclass(frozen=True)
class Rendered:
    """Views of a scene, differentiable with respect to its parameters.

    Attributes:
        image: float [B,3,S,S] in 0..1, over white; of a latent scene float [B,C,S,S], unbounded, over its background.
        alpha: float [B,1,S,S] in 0..1, how much of the background is hidden.
        normal: float [B,3,S,S], unit vectors in world axes, pointing out of the object, times alpha; None unless the
            view was shaded.
    """

    image: Tensor
    alpha: Tensor
    normal: Tensor | None = None


class Scene(nn.Module, ABC):
    """Something that can be rendered from any side and pulled by gradients.

    On a CPU a scene is a deterministic function of its construction arguments and of the steps taken; on CUDA, sums in
    gradients come in any order and differ in the last bits. Its ``state_dict`` holds all it needs to go on.

    Attributes:
        channels: C, of the views.
        latent: views are latents of a prior, unbounded; see :mod:`hash3d_cuda.sds.scenes.decoded` for pictures.
    """

    channels: int = 3
    latent: bool = False

    @abstractmethod
    def render(
        self,
        elevation: Tensor,
        azimuth: Tensor,
        radius: Tensor,
        size: int,
        shading: str | None = None,
        light: Tensor | None = None,
    ) -> Rendered:
        """Views from poses, see :mod:`hash3d_cuda.cameras`.

        Args:
            elevation, azimuth, radius: float [B] each: degrees, degrees, scene units.
            size: pixels per side.
            shading: None for the object's own colours, or one of
                :data:`hash3d_cuda.sds.scenes.shading.SHADINGS`; these fill in ``Rendered.normal``.
            light: float [B,3] in world axes, from the object to the light; None: the light is at the camera.

        Raises:
            ValueError: ``shading`` is not known, or this scene is latent and cannot be shaded.
        """

    @abstractmethod
    def regularisation(self) -> Tensor:
        """What keeps the object clean: a scalar to add to the loss."""

    @abstractmethod
    def parameter_groups(self, lr_scale: float) -> list[dict[str, Any]]:
        """Groups for Adam, every learning rate multiplied by ``lr_scale``."""

    @abstractmethod
    def occupancy_grid(self, resolution: int) -> tuple[Tensor, Tensor]:
        """How solid and what colour the object is, for surfaces and point clouds.

        Returns:
            occupancy float [R,R,R] in 0..1 (about 0.5 at the surface) and colour float [R,R,R,3] in 0..1 (of a latent
            scene float [R,R,R,C]), indexed x, y, z, at points spread evenly from -``BOUND`` to ``BOUND``, ends
            included.
        """

    def on_step(self, step: int, steps: int) -> bool:
        """Called after optimizer step ``step`` of ``steps``; True when parameters were replaced, so that the
        optimizer must be made anew."""
        return False
