"""Stand-ins for the guidance classes of DreamGaussian and stable-dreamfusion: the call signatures, row orders and draws
of the originals around narrow U-Nets with random weights. The loss is the sum of squares of the guided prediction.

They are not the originals; those are tested too when a checkout is given (``tests/integrations``).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from ldm_shapes import LatentDiffusion, build
from torch import Tensor, nn
from torch.nn.functional import interpolate

WIDTH = 6  # of the context tokens


def tiny_unet(in_channels: int = 4) -> UNet2DConditionModel:
    """A diffusers U-Net, with attention in the lower level only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            in_channels=in_channels, out_channels=4, block_out_channels=(8, 16), layers_per_block=2, norm_num_groups=4,
            cross_attention_dim=WIDTH, attention_head_dim=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
    return unet.eval().requires_grad_(False)


def tokens(number: int, rows: int = 1) -> Tensor:
    """Text or picture embeddings ``[rows, 3, 6]`` that differ by number."""
    return torch.randn(rows, 3, WIDTH, generator=torch.Generator().manual_seed(number))


def pictures(batch: int, size: int = 8, seed: int = 0) -> Tensor:
    """Renderings in the form of latents: what ``as_latent=True`` takes."""
    return torch.rand(batch, 4, size, size, generator=torch.Generator().manual_seed(seed))


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)


class Guidance(nn.Module):
    """What the originals share."""

    def __init__(self) -> None:
        super().__init__()
        self.device, self.dtype, self.scheduler = torch.device("cpu"), torch.float32, scheduler()
        self.num_train_timesteps, self.min_step, self.max_step = 1000, 20, 980
        self.embeddings: Any = None

    def draw(self, step_ratio: float | None, batch: int) -> Tensor:
        if step_ratio is None:
            return torch.randint(self.min_step, self.max_step + 1, (batch,), dtype=torch.long)
        steps = min(max(round((1 - step_ratio) * self.num_train_timesteps), self.min_step), self.max_step)
        return torch.full((batch,), steps, dtype=torch.long)

    def noisy(self, images: Tensor, t: Tensor, size: int = 8) -> Tensor:
        latents = interpolate(images, (size, size)) * 2 - 1
        return self.scheduler.add_noise(latents, torch.randn_like(latents), t)

    def embed(self, name: int) -> None:
        """A new prompt or picture."""
        self.embeddings = {"pos": tokens(name), "neg": tokens(-1)}


class DreamSD(Guidance):
    """[positive, negative]."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = tiny_unet()
        self.embed(0)

    def train_step(self, pred_rgb, step_ratio=None, guidance_scale=100, as_latent=False, vers=None, hors=None):
        batch = len(pred_rgb)
        t = self.draw(step_ratio, batch)
        with torch.no_grad():
            text = torch.cat([self.embeddings[kind].expand(batch, -1, -1) for kind in ("pos", "neg")])
            x = self.noisy(pred_rgb, t)
            out = self.unet(torch.cat([x] * 2), torch.cat([t] * 2), encoder_hidden_states=text).sample
        return guided(*out.chunk(2))

    @torch.no_grad()
    def refine(self, pred_rgb, guidance_scale=100, steps=50, strength=0.8):
        self.scheduler.set_timesteps(steps)
        first = int(steps * strength)
        x = self.noisy(pred_rgb, self.scheduler.timesteps[first].reshape(1))
        text = torch.cat([self.embeddings[kind].expand(len(x), -1, -1) for kind in ("pos", "neg")])
        for t in self.scheduler.timesteps[first:]:
            out = self.unet(torch.cat([x] * 2), t, encoder_hidden_states=text).sample
            x = self.scheduler.step(out.chunk(2)[0], t, x).prev_sample
        return x


class DreamZero123(Guidance):
    """[conditioned, unconditioned]; the picture's latent behind the noisy one, the camera in the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = tiny_unet(8)
        self.embed(0)

    def embed(self, name: int) -> None:
        self.embeddings = [tokens(name)[:, :1], torch.full((1, 4, 8, 8), float(name))]

    def train_step(
        self, pred_rgb, elevation, azimuth, radius, step_ratio=None, guidance_scale=5, as_latent=False,
        default_elevation=0,
    ):  # fmt: skip
        batch = len(pred_rgb)
        t = self.draw(step_ratio, batch)
        with torch.no_grad():
            x = torch.cat([self.noisy(pred_rgb, t)] * 2)
            camera = torch.tensor(azimuth, dtype=torch.float32).view(-1, 1, 1) / 360
            text = self.embeddings[0].expand(batch, -1, -1) + camera
            image = self.embeddings[1].expand(batch, -1, -1, -1)
            x = torch.cat([x, torch.cat([image, torch.zeros_like(image)])], dim=1)
            text = torch.cat([text, torch.zeros_like(text)])
            out = self.unet(x, torch.cat([t] * 2), encoder_hidden_states=text).sample
        return guided(*out.chunk(2))

    refine = None


class DreamMultiView(Guidance):
    """MVDream, and ImageDream with its fifth frame: [negative, positive] x items x frames."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.model, self.frames = LatentDiffusion(build(kind)), 5 if kind == "imagedream" else 4
        self.model.apply_model = self.model.model.diffusion_model.__call__
        self.image_embeddings: dict[str, Tensor] = {}
        self.embed(0)

    def embed(self, name: int) -> None:
        self.embeddings = {
            kind: tokens(number).repeat(self.frames, 1, 1) for kind, number in (("pos", name), ("neg", -1))
        }
        if self.frames == 5:
            image = torch.full((5, 2, 5), float(name))
            self.image_embeddings = {"pos": image, "neg": torch.zeros_like(image), "ip_img": torch.ones(1, 4, 8, 8)}

    def train_step(self, pred_rgb, camera, step_ratio=None, guidance_scale=100, as_latent=False):
        batch, items = len(pred_rgb), len(pred_rgb) // 4
        t = self.draw(step_ratio, items).repeat(4) if step_ratio is None else self.draw(step_ratio, batch)
        with torch.no_grad():
            x = self.noisy(pred_rgb, t)
            call: dict[str, Any] = {"num_frames": self.frames, "camera": camera.reshape(batch, 16).float()}
            if self.frames == 5:  # the extra view
                t, x, call["camera"] = (with_fifth(value, items) for value in (t, x, call["camera"]))
                call["ip"] = torch.cat([self.image_embeddings[kind].repeat(items, 1, 1) for kind in ("neg", "pos")])
                call["ip_img"] = self.image_embeddings["ip_img"].repeat(2 * items, 1, 1, 1)
            call["camera"] = call["camera"].repeat(2, 1)
            text = torch.cat([self.embeddings[kind].repeat(items, 1, 1) for kind in ("neg", "pos")])
            out = self.model.apply_model(torch.cat([x] * 2), torch.cat([t] * 2), context=text, **call)
        return guided(*out.chunk(2))


class FusionSD(Guidance):
    """stable-dreamfusion's: [uncond, positive], and with perp-neg [uncond B, 3 B]."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = tiny_unet()

    def train_step(
        self, text_embeddings, pred_rgb, guidance_scale=100, as_latent=False, grad_scale=1, save_guidance_path=None
    ):
        return guided(*self.predict(text_embeddings, pred_rgb, 2))

    def train_step_perpneg(
        self, text_embeddings, weights, pred_rgb, guidance_scale=100, as_latent=False, grad_scale=1,
        save_guidance_path=None,
    ):  # fmt: skip
        return guided(*self.predict(text_embeddings, pred_rgb, len(text_embeddings) // len(pred_rgb)))

    def predict(self, text: Tensor, images: Tensor, groups: int) -> tuple[Tensor, ...]:
        t = self.draw(None, len(images))
        with torch.no_grad():
            x = self.noisy(images, t)
            out = self.unet(torch.cat([x] * groups), torch.cat([t] * groups), encoder_hidden_states=text).sample
        return out.chunk(groups)


class FusionZero123(Guidance):
    """stable-dreamfusion's, of ldm: [uncond, cond], once for each reference picture."""

    def __init__(self) -> None:
        super().__init__()
        self.model = LatentDiffusion(build("ldm"))

    def train_step(
        self, embeddings, pred_rgb, polar, azimuth, radius, guidance_scale=3, as_latent=False, grad_scale=1,
        save_guidance_path=None,
    ):  # fmt: skip
        t, loss = self.draw(None, len(pred_rgb)), torch.zeros(())
        with torch.no_grad():
            x = torch.cat([self.noisy(pred_rgb, t)] * 2)
            for text, image in zip(embeddings["c_crossattn"], embeddings["c_concat"], strict=True):
                text, image = text + azimuth.view(-1, 1, 1) / 360, image.repeat(len(pred_rgb), 1, 1, 1)
                given = {"c_crossattn": [torch.cat([torch.zeros_like(text), text])]}
                given["c_concat"] = [torch.cat([torch.zeros_like(image), image])]
                loss = loss + guided(*self.model.apply_model(x, torch.cat([t] * 2), given).chunk(2))
        return loss


class Trainer:
    """stable-dreamfusion's, as far as guidance is concerned: the pose goes into the choice of prompts, not to SD."""

    def __init__(self, opt: SimpleNamespace, guidance: dict[str, Guidance], embeddings: dict[str, Any]) -> None:
        self.opt, self.guidance, self.embeddings = opt, guidance, embeddings

    def train_step(self, data, save_guidance_path=None):
        images, loss = data["images"], torch.zeros(())
        if "SD" in self.guidance:
            words = self.embeddings["SD"]
            text = [words["uncond"]] * len(images)
            if self.opt.perpneg:
                sides = [("front", "side") if -90 <= azimuth < 90 else ("side", "front") for azimuth in data["azimuth"]]
                text += [words["side"]] * len(images)
                text += [words[side[place]] for place in (0, 1) for side in sides]
                loss = loss + self.guidance["SD"].train_step_perpneg(torch.cat(text), None, images, as_latent=True)
            else:
                text += [words["front" if -90 <= azimuth < 90 else "back"] for azimuth in data["azimuth"]]
                loss = loss + self.guidance["SD"].train_step(torch.cat(text), images, as_latent=True)
        if "zero123" in self.guidance:
            pose = (data["polar"], data["azimuth"], data["radius"])
            known = self.embeddings["zero123"]["default"]
            loss = loss + self.guidance["zero123"].train_step(known, images, *pose, as_latent=True)
        return None, None, loss


def guided(*predictions: Tensor) -> Tensor:
    """One number in which every row has a weight of its own, so that rows that change places show."""
    rows = torch.cat(predictions).flatten(1).double()
    weights = torch.linspace(1, 2, rows.numel(), dtype=torch.float64, device=rows.device).view_as(rows)
    return (rows * weights).sum()


def with_fifth(value: Tensor, items: int) -> Tensor:
    frames = value.unflatten(0, (items, 4))
    return torch.cat([frames, torch.zeros_like(frames[:, :1]) if value.dim() > 1 else frames[:, :1]], dim=1).flatten(
        0, 1
    )
