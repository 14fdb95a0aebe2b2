"""The guidances that are known: where their U-Net is, and when it is called for score distillation."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

NAMES = (
    "stable-diffusion-guidance, stable-diffusion-unified-guidance, zero123-guidance, stable-zero123-guidance, "
    "zero123-unified-guidance"
)


@dataclass(frozen=True)
class Kind:
    """A family of guidances.

    Attributes:
        unet: the pretrained U-Net's path in the guidance.
        methods: those within which the U-Net is called for the gradient, and for nothing else. Without any, the
            whole call is meant, less ``guidance_eval``.
        picture: the guidance's embeddings of the input picture; empty when it is told a prompt instead.
        one_timestep: whether all views of a step have the same t.
    """

    unet: str
    methods: tuple[str, ...] = ()
    picture: tuple[str, ...] = ()
    one_timestep: bool = False

    def find_unet(self, guidance: Any) -> Any:
        return attrgetter(self.unet)(guidance)


STABLE_DIFFUSION = Kind("unet", methods=("compute_grad_sds", "compute_grad_sjc"))
UNIFIED = Kind("pipe.unet", methods=("get_eps_pretrain",), one_timestep=True)
ZERO123 = Kind("model.model.diffusion_model", picture=("c_crossattn", "c_concat"))
ZERO123_UNIFIED = Kind(
    "pipe.unet", methods=("get_eps_pretrain",), picture=("clip_image_embeddings", "image_latents"), one_timestep=True
)


def find_kind(guidance: type, less: type = object) -> Kind:
    """The kind of a guidance class, by its methods, so that subclasses and renamed ones are known too. Those of
    ``less``, a class mixed into it, do not count.

    Raises:
        TypeError: it is none of the five; rows in an unknown order must not be cached.
    """
    bases = [base for base in guidance.__mro__ if base is not less]

    def has(*methods: str) -> bool:
        return all(any(name in vars(base) for base in bases) for name in methods)

    if has("get_eps_pretrain", "get_image_camera_embeddings"):
        return ZERO123_UNIFIED
    if has("get_eps_pretrain", "get_eps_phi"):
        return UNIFIED
    if has("compute_grad_sds", "compute_grad_sjc", "forward_unet"):
        return STABLE_DIFFUSION
    if has("get_cond", "get_img_embeds"):
        return ZERO123
    got = guidance.__name__.partition(".")[0]
    raise TypeError(f"system.guidance_type: expected one of {NAMES} before :hash3d, got {got!r}; leave :hash3d out")
