"""The mix-in ``hash3d``: ``threestudio.find("NAME:hash3d")`` puts this class before the guidance NAME."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, Optional

import threestudio
from torch import Tensor, nn

from .kinds import find_kind
from .options import parse
from .poses import KEY
from .session import Session, repair_rows


@threestudio.register("hash3d")
class Hash3D:
    """A Hash3D cache under a guidance's pretrained U-Net, with options under ``system.guidance.hash3d``.

    The U-Net is served from the cache where it is called for the gradient, and nowhere else: ``guidance_eval``, VSD's
    phi, its training and multi-step previews see it as it is.
    """

    _hash3d: Session | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """The mixed class takes the guidance's options, and ``hash3d``."""
        super().__init_subclass__(**kwargs)
        option = ("hash3d", Optional[dict], dataclasses.field(default_factory=dict))  # noqa: UP045 (OmegaConf reads it)
        if hasattr(cls, "Config"):
            cls.Config = dataclasses.make_dataclass("Config", [option], bases=(cls.Config,))

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Checks the options, then loads the guidance.

        Raises:
            TypeError, ValueError: an option is wrong, or the guidance is none of those known.
        """
        options, kind = parse(self.cfg.hash3d), find_kind(type(self), less=Hash3D)
        super().configure(*args, **kwargs)
        if options.enabled:
            self._hash3d = Session(self, kind, options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kept = kwargs.pop(KEY, None)
        session = self._hash3d
        if session is None:
            return super().__call__(*args, **kwargs)
        call = super().forward if isinstance(self, nn.Module) else super().__call__
        arguments = inspect.signature(call).bind(*args, **kwargs).arguments
        with session.step(self, arguments, kept):
            output = super().__call__(*args, **kwargs)
        if isinstance(output, dict):
            output.update(session.figures())
        return output

    # Where the U-Net is called for the gradient. A guidance has some of these methods, or none.

    def compute_grad_sds(self, latents: Tensor, image: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._hash3d is None:
            return super().compute_grad_sds(latents, image, t, *args, **kwargs)
        self._hash3d.timesteps.write(t)
        with self._hash3d.within():
            return super().compute_grad_sds(latents, image, t, *args, **kwargs)

    def compute_grad_sjc(self, latents: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._hash3d is None:
            return super().compute_grad_sjc(latents, t, *args, **kwargs)
        self._hash3d.timesteps.write(t)
        with self._hash3d.within():
            return super().compute_grad_sjc(latents, t, *args, **kwargs)

    def get_eps_pretrain(self, *args: Any, **kwargs: Any) -> Any:
        if self._hash3d is None:
            return super().get_eps_pretrain(*args, **kwargs)
        with self._hash3d.within():
            return super().get_eps_pretrain(*args, **kwargs)

    def guidance_eval(self, *args: Any, **kwargs: Any) -> Any:
        if self._hash3d is None:
            return super().guidance_eval(*args, **kwargs)
        with self._hash3d.without():
            return super().guidance_eval(*args, **kwargs)

    def forward_unet(self, *args: Any, **kwargs: Any) -> Any:
        """Upstream's, with the rows of perp-neg's negative prompts put right where that was asked for."""
        if self._hash3d is not None and self._hash3d.repairs:
            *unet, latents, t = args  # the unified guidance hands its U-Net on first
            batch = len(latents) // 4
            args = (*unet, repair_rows(latents, batch), repair_rows(t, batch))
        return super().forward_unet(*args, **kwargs)

    @property
    def hash3d(self) -> Session | None:
        """The session: ``guidance.hash3d.cache`` is the cache's handle, ``guidance.hash3d.remove()`` takes it away."""
        return self._hash3d

    def hash3d_state_dict(self) -> dict[str, Any] | None:
        """What a checkpoint needs; None while switched off."""
        return None if self._hash3d is None else self._hash3d.state_dict()

    def hash3d_load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`hash3d_state_dict`."""
        if self._hash3d is not None:
            self._hash3d.load_state_dict(state)
