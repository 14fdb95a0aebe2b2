"""Stand-ins for threestudio: the names, call signatures and row orders that the add-on meets, and little else.

They are not threestudio: what a guidance does around its U-Net is cut to what a gradient needs. The same tests run
against the real source when ``HASH3D_THREESTUDIO`` names a checkout (:mod:`threestudio_upstream`).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from ldm_shapes import LatentDiffusion
from ldm_shapes import build as build_ldm
from torch import Tensor, nn
from unet_shapes import CROSS_DOWN, CROSS_UP, PLAIN_DOWN, PLAIN_UP, build_unet

SIZE = 8  # of latents
WIDTH = {"sd": 12, "unified": 12, "zero123": 6, "zero123-unified": 12}  # of an embedding
SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": (CROSS_DOWN, PLAIN_DOWN),
    "up_block_types": (PLAIN_UP, CROSS_UP),
    "layers_per_block": 1,
}


def threestudio_module() -> ModuleType:
    """A module ``threestudio`` with the registry and the mixing by ``:`` that the real one has, and these guidances."""
    module, known, said = ModuleType("threestudio"), {}, []

    def register(name: str) -> Any:
        return lambda cls: known.setdefault(name, cls)

    def find(name: str) -> type:
        main, _, mixed = name.partition(":")
        if not mixed:
            return known[main]
        return type(f"{main}.{mixed}", tuple(known[part] for part in [*mixed.split(","), main]), {})

    module.register, module.find, module.said = register, find, said
    module.info = module.warn = said.append
    known |= {"stable-diffusion-guidance": StableDiffusion, "stable-diffusion-unified-guidance": Unified}
    known |= {"zero123-guidance": Zero123, "stable-zero123-guidance": StableZero123, "other-guidance": Other}
    known |= {"zero123-unified-guidance": Zero123Unified, "a-system": System}
    return module


@dataclass
class Prompt:
    """As upstream's ``PromptProcessorOutput``: embeddings in the orders [text, uncond] and, with perp-neg,
    [text B, uncond B, negatives of view 0, of view 1, ...]."""

    text_embeddings: Tensor
    uncond_text_embeddings: Tensor
    text_embeddings_vd: Tensor
    uncond_text_embeddings_vd: Tensor
    directions: list[Any]
    direction2idx: dict[str, int]
    use_perp_neg: bool
    prompt: str

    def get_text_embeddings(self, elevation: Tensor, azimuth: Any, distances: Any, directed: bool = True) -> Tensor:
        if not directed:
            both = (self.text_embeddings, self.uncond_text_embeddings)
            return torch.cat([embedding.expand(len(elevation), -1, -1) for embedding in both])
        places = torch.zeros_like(elevation, dtype=torch.long)
        for direction in self.directions:
            places[direction.condition(elevation, azimuth, distances)] = self.direction2idx[direction.name]
        return torch.cat([self.text_embeddings_vd[places], self.uncond_text_embeddings_vd[places]])

    def get_text_embeddings_perp_neg(self, *poses: Any) -> tuple[Tensor, Tensor]:
        both, batch = self.get_text_embeddings(*poses), len(poses[0])
        return torch.cat([both, self.text_embeddings_vd[:2].repeat(batch, 1, 1)]), torch.full((batch, 2), -0.5)


class BaseObject:
    @dataclass
    class Config:
        guidance_scale: float = 5.0
        view_dependent_prompting: bool = True
        use_sjc: bool = False
        guidance_type: str = "sds"
        vsd_use_lora: bool = True
        own_phi: bool = False
        cond_elevation_deg: float = 0.0
        cond_azimuth_deg: float = 0.0
        cond_camera_distance: float = 1.2

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        self.cfg, self.device = self.Config(**cfg), torch.device("cpu")
        self.scheduler, self.min_step, self.max_step = DDPMScheduler(), 20, 980
        self.configure()

    def configure(self) -> None: ...

    def draw(self, batch: int) -> Tensor:
        return torch.randint(self.min_step, self.max_step + 1, [batch], dtype=torch.long, device=self.device)

    def combine(self, rows: Tensor, batch: int, weights: Tensor | None = None) -> Tensor:
        text, uncond = rows[:batch], rows[batch : 2 * batch]
        more = 0 if weights is None else sum(weights[0, i] * (rows[2 * batch :][i::2] - uncond) for i in (0, 1))
        return uncond + self.cfg.guidance_scale * (text - uncond + more)

    def loss(self, latents: Tensor, grad: Tensor) -> dict[str, Any]:
        target = (latents - grad).detach()
        return {"loss_sds": 0.5 * F.mse_loss(latents, target, reduction="sum") / len(latents), "max_step": 980}


class BaseModule(BaseObject, nn.Module):
    """A guidance that is a module, so that its trainable parts are found."""


def to_latents(rgb: Tensor) -> Tensor:
    return F.interpolate(rgb.permute(0, 3, 1, 2), (SIZE, SIZE), mode="bilinear", align_corners=False)


class StableDiffusion(BaseObject):
    def configure(self) -> None:
        self.unet = build_unet("sd15", **SMALL)

    def forward_unet(self, latents: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self.unet(latents, t.to(latents.dtype), encoder_hidden_states=encoder_hidden_states).sample

    def predict(self, noisy: Tensor, t: Tensor, prompt: Prompt, *poses: Tensor) -> Tensor:
        if prompt.use_perp_neg:
            text, weights = prompt.get_text_embeddings_perp_neg(*poses, self.cfg.view_dependent_prompting)
        else:
            text, weights = prompt.get_text_embeddings(*poses, self.cfg.view_dependent_prompting), None
        times = len(text) // len(noisy)
        with torch.no_grad():
            rows = self.forward_unet(torch.cat([noisy] * times), torch.cat([t] * times), encoder_hidden_states=text)
        return self.combine(rows, len(noisy), weights)

    def compute_grad_sds(self, latents, image, t, prompt_utils, elevation, azimuth, camera_distances):
        noise = torch.randn_like(latents)
        noisy = self.scheduler.add_noise(latents, noise, t)
        grad = self.predict(noisy, t, prompt_utils, elevation, azimuth, camera_distances) - noise
        return grad, None, {"noisy": noisy, "t": t, "prompt": prompt_utils}

    def compute_grad_sjc(self, latents, t, prompt_utils, elevation, azimuth, camera_distances):
        noise = torch.randn_like(latents)
        noisy = latents + t.view(-1, 1, 1, 1) * noise
        return self.predict(noisy, t, prompt_utils, elevation, azimuth, camera_distances) - noise, {}

    def __call__(self, rgb, prompt_utils, elevation, azimuth, camera_distances, rgb_as_latents=False,
                 guidance_eval=False, **kwargs):  # fmt: skip
        latents, t, poses = to_latents(rgb), self.draw(len(rgb)), (elevation, azimuth, camera_distances)
        if self.cfg.use_sjc:
            grad, shown = self.compute_grad_sjc(latents, t, prompt_utils, *poses)
        else:
            grad, _, shown = self.compute_grad_sds(latents, rgb, t, prompt_utils, *poses)
        if guidance_eval:
            self.guidance_eval(**shown)
        return self.loss(latents, grad)

    def guidance_eval(self, noisy, t, prompt):
        return self.predict(noisy[:1], t[:1], prompt, *torch.zeros(3, 1))


class Unified(BaseModule):
    config = "sd15"

    def configure(self) -> None:
        self.vsd_share_model = self.cfg.guidance_type == "vsd" and not self.cfg.own_phi
        self.pipe = self.pipe_phi = SimpleNamespace(unet=build_unet(self.config, **SMALL))
        if self.cfg.own_phi:
            self.pipe_phi = SimpleNamespace(unet=build_unet(self.config, seed=1, **SMALL))

    @contextmanager
    def disable_unet_class_embedding(self, unet):
        kept, unet.class_embedding = unet.class_embedding, None
        try:
            yield unet
        finally:
            unet.class_embedding = kept

    def forward_unet(self, unet, latents, t, encoder_hidden_states):
        return unet(latents, t.to(latents.dtype), encoder_hidden_states=encoder_hidden_states).sample

    def get_eps_pretrain(self, latents_noisy, t, prompt_utils, *poses):
        call, directed = prompt_utils, self.cfg.view_dependent_prompting
        pair = call.get_text_embeddings_perp_neg(*poses, directed) if call.use_perp_neg else None
        text, weights = pair or (call.get_text_embeddings(*poses, directed), None)
        times = len(text) // len(t)
        with torch.no_grad(), self.disable_unet_class_embedding(self.pipe.unet) as unet:
            rows = (torch.cat([latents_noisy] * times), torch.cat([t] * times))
            return self.combine(self.forward_unet(unet, *rows, encoder_hidden_states=text), len(t), weights)

    def get_eps_phi(self, latents_noisy, t, prompt_utils, *poses):
        text = prompt_utils.get_text_embeddings(*poses, False)
        with torch.no_grad():
            rows = (torch.cat([latents_noisy] * 2), torch.cat([t] * 2))
            return self.forward_unet(self.pipe_phi.unet, *rows, encoder_hidden_states=text).chunk(2)[0]

    def train_phi(self, latents, prompt_utils, *poses):
        text, _ = prompt_utils.get_text_embeddings(*poses, False).chunk(2)
        return self.forward_unet(
            self.pipe_phi.unet, latents.detach(), self.draw(len(text)), encoder_hidden_states=text
        ).mean()

    def forward(self, rgb, prompt_utils, elevation, azimuth, camera_distances, mvp_mtx, c2w, rgb_as_latents=False,
                **kwargs):  # fmt: skip
        latents, t, told = to_latents(rgb), self.draw(1).repeat(len(rgb)), (elevation, azimuth, camera_distances)
        noise = torch.randn_like(latents)
        noisy = self.scheduler.add_noise(latents, noise, t)
        grad = self.get_eps_pretrain(noisy, t, prompt_utils, *told)
        if self.cfg.guidance_type == "vsd":
            grad = grad - self.get_eps_phi(noisy, t, prompt_utils, *told)
            return {**self.loss(latents, grad), "loss_phi": self.train_phi(latents, prompt_utils, *told)}
        return self.loss(latents, grad - noise)


class Pictured:
    """How Zero123's kin make their conditions: an embedding of picture and view, and the picture's latents."""

    def get_img_embeds(self, seed: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(seed)
        return torch.randn(1, 1, self.width, generator=random), torch.randn(1, 4, SIZE, SIZE, generator=random)

    def embed(self, picture: Tensor, elevation: Tensor, azimuth: Tensor, distances: Tensor) -> Tensor:
        view = torch.stack([elevation / 90, (azimuth / 60).sin(), (azimuth / 60).cos(), distances])
        return picture + view.mean(0)[:, None, None]


class Zero123(Pictured, BaseObject):
    width = 6

    def configure(self) -> None:
        self.model = LatentDiffusion(build_ldm("ldm"))
        self.c_crossattn, self.c_concat = self.get_img_embeds(0)

    def get_cond(self, *poses: Tensor) -> dict[str, list[Tensor]]:
        embedding, picture = self.embed(self.c_crossattn, *poses), self.c_concat.repeat(len(poses[0]), 1, 1, 1)
        rows = (torch.cat([torch.zeros_like(part), part]) for part in (embedding, picture))  # [uncond, cond]
        return {name: [part] for name, part in zip(("c_crossattn", "c_concat"), rows, strict=True)}

    def __call__(self, rgb, elevation, azimuth, camera_distances, rgb_as_latents=False, guidance_eval=False, **kwargs):
        latents, cond, t = to_latents(rgb), self.get_cond(elevation, azimuth, camera_distances), self.draw(len(rgb))
        with torch.no_grad():
            noise = torch.randn_like(latents)
            noisy = self.scheduler.add_noise(latents, noise, t)
            uncond, wanted = self.model.apply_model(torch.cat([noisy] * 2), torch.cat([t] * 2), cond).chunk(2)
        if guidance_eval:
            self.guidance_eval(cond, t, noisy, wanted)
        return self.loss(latents, uncond + self.cfg.guidance_scale * (wanted - uncond) - noise)

    def guidance_eval(self, cond, t_orig, latents_noisy, noise_pred):
        return self.model.apply_model(torch.cat([latents_noisy] * 2), torch.cat([t_orig] * 2), cond)


class StableZero123(Zero123):
    pass


class Zero123Unified(Pictured, Unified):
    config, width = "zero123", 12

    def configure(self) -> None:
        super().configure()
        self.clip_image_embeddings, self.image_latents = self.get_img_embeds(0)

    def get_image_camera_embeddings(self, *poses: Tensor) -> Tensor:
        return self.embed(self.clip_image_embeddings, *poses)

    def get_eps_pretrain(self, latents_noisy, t, image_camera_embeddings, *poses):
        pictures = self.image_latents.repeat(len(t), 1, 1, 1)
        rows = torch.cat([latents_noisy] * 2), torch.cat([pictures, torch.zeros_like(pictures)])  # [cond, uncond]
        text = torch.cat([image_camera_embeddings, torch.zeros_like(image_camera_embeddings)])
        with torch.no_grad(), self.disable_unet_class_embedding(self.pipe.unet) as unet:
            found = self.forward_unet(unet, torch.cat(rows, dim=1), torch.cat([t] * 2), encoder_hidden_states=text)
        return self.combine(found, len(t))

    def forward(self, rgb, elevation, azimuth, camera_distances, mvp_mtx, c2w, rgb_as_latents=False, **kwargs):
        told = (elevation, azimuth, camera_distances)
        latents, t = to_latents(rgb), self.draw(1).repeat(len(rgb))
        noise = torch.randn_like(latents)
        noisy = self.scheduler.add_noise(latents, noise, t)
        return self.loss(
            latents, self.get_eps_pretrain(noisy, t, self.get_image_camera_embeddings(*told), *told) - noise
        )


class Other(BaseObject):
    """A guidance that the add-on does not know."""


class System(nn.Module):
    """The hooks of a Lightning module that the add-on's system mixes into."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch

    def on_fit_start(self) -> None:
        self.guidance = self.make_guidance()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None: ...

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None: ...
