"""A stand-in for the parts of GaussianDreamer's ``threestudio`` that the add-on meets: registry, cameras, guidance and
the prompts' output, with upstream's names, call signatures, row orders and draws, around a narrow random-weight U-Net.

It is not upstream; that is tested too when a checkout is given (``tests/integrations/test_gaussiandreamer.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import guidance_stand_ins as stand_ins
import torch
from torch import Tensor
from torch.nn.functional import interpolate


def stand_in_modules() -> dict[str, ModuleType]:
    known: dict[str, type] = {}
    modules = {
        name: ModuleType(name)
        for name in (
            "threestudio", "threestudio.data", "threestudio.data.uncond", "threestudio.models",
            "threestudio.models.guidance", "threestudio.models.guidance.stable_diffusion_guidance",
            "threestudio.models.prompt_processors", "threestudio.models.prompt_processors.base",
        )
    }  # fmt: skip
    for module in modules.values():
        module.__path__ = []
    top = modules["threestudio"]
    top.register = lambda name: lambda kind: known.setdefault(name, kind)
    top.find, top.info = known.__getitem__, lambda text: None
    modules["threestudio.data.uncond"].RandomCameraIterableDataset = type("Cameras", (Cameras,), {})
    modules["threestudio.models.guidance.stable_diffusion_guidance"].StableDiffusionGuidance = SDGuidance
    modules["threestudio.models.prompt_processors.base"].PromptProcessorOutput = Prompts
    return modules


class Cameras:
    def collate(self, batch: Any) -> dict[str, Any]:
        drawn = torch.rand(3, self.batch_size)
        return {"elevation": drawn[0] * 70 - 10, "azimuth": drawn[1] * 360 - 180, "camera_distances": drawn[2] + 1.5}


class SDGuidance:
    @dataclass
    class Config:
        half_precision_weights: bool = True
        view_dependent_prompting: bool = True
        use_sjc: bool = False

    def __init__(self, cfg: dict[str, Any]) -> None:
        self.cfg, self.device = self.Config(**cfg), torch.device("cpu")
        self.configure()

    def configure(self) -> None:
        self.unet, self.scheduler, self.min_step, self.max_step = stand_ins.tiny_unet(), stand_ins.scheduler(), 20, 980

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        pass

    def forward_unet(self, latents: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self.unet(latents, t.float(), encoder_hidden_states=encoder_hidden_states).sample

    def compute_grad_sds(self, latents, t, prompt_utils, elevation, azimuth, camera_distances):
        groups = 4 if prompt_utils.use_perp_neg else 2
        embed = prompt_utils.get_text_embeddings_perp_neg if groups == 4 else prompt_utils.get_text_embeddings
        text = embed(elevation, azimuth, camera_distances, self.cfg.view_dependent_prompting)
        with torch.no_grad():
            noisy = self.scheduler.add_noise(latents, torch.randn_like(latents), t)
            text = text[0] if groups == 4 else text
            out = self.forward_unet(torch.cat([noisy] * groups), torch.cat([t] * groups), encoder_hidden_states=text)
        rows = torch.linspace(1, 2, len(out)).view(-1, 1, 1, 1)
        return (out * rows).unflatten(0, (groups, -1)).sum(0), {"noisy": noisy, "text": text}

    compute_grad_sjc = compute_grad_sds

    def __call__(
        self,
        rgb,
        prompt_utils,
        elevation,
        azimuth,
        camera_distances,
        rgb_as_latents=False,
        guidance_eval=False,
        **kwargs,
    ):
        latents = interpolate(rgb.permute(0, 3, 1, 2), (8, 8))
        t = torch.randint(self.min_step, self.max_step + 1, [len(rgb)])
        compute = self.compute_grad_sjc if self.cfg.use_sjc else self.compute_grad_sds
        grad, used = compute(latents, t, prompt_utils, elevation, azimuth, camera_distances)
        if guidance_eval:
            for step in (400, 300):
                rows = torch.cat([used["noisy"][:1]] * (len(used["text"]) // len(rgb)))
                self.forward_unet(rows, torch.full((len(rows),), step), used["text"][:: len(rgb)])
        return {"loss_sds": grad.double().square().sum()}


class Prompts(SimpleNamespace):
    """Which wording a view has follows from ``directions``; perp-neg's negatives lie view by view."""

    def words(self, elevation: Tensor, azimuth: Tensor, distances: Tensor) -> list[int]:
        chosen = torch.zeros_like(elevation, dtype=torch.long)
        for direction in self.directions:
            chosen[direction.condition(elevation, azimuth, distances)] = self.direction2idx[direction.name]
        return chosen.tolist()

    def get_text_embeddings(self, elevation, azimuth, distances, view_dependent_prompting=True):
        if not view_dependent_prompting:
            return torch.cat(
                [each.expand(len(azimuth), -1, -1) for each in (self.text_embeddings, self.uncond_text_embeddings)]
            )
        chosen = self.words(elevation, azimuth, distances)
        return torch.cat([self.text_embeddings_vd[chosen], self.uncond_text_embeddings_vd[chosen]])

    def get_text_embeddings_perp_neg(self, elevation, azimuth, distances, view_dependent_prompting=True):
        text = self.get_text_embeddings(elevation, azimuth, distances)
        sides = [(1, 0) if abs((float(a) + 180) % 360 - 180) < 90 else (0, 1) for a in azimuth]
        return torch.cat([text, self.text_embeddings_vd[[word for pair in sides for word in pair]]]), torch.zeros(
            len(azimuth), 2
        )
