"""threestudio's own source, imported on a machine that has neither a GPU nor most of what it asks for.

Third-party packages that are not installed and have nothing to do with the U-Net's call (tinycudann, nerfacc, cv2, ...)
are replaced by empty shells; omegaconf, jaxtyping, typeguard, pytorch_lightning and einops must be real. Guidances run
their own ``configure``, with pipelines of small random-weight models in the place of downloads.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from threestudio_cases import ADDON, NAMES, SMALL, make_batch, make_prompt
from torch import nn
from unet_shapes import CROSS_DOWN, CROSS_UP, PLAIN_DOWN, PLAIN_UP, build_unet

SHELLS = {
    "tinycudann", "nerfacc", "nvdiffrast", "cv2", "igl", "xatlas", "envlight", "controlnet_aux", "torchvision",
    "kornia", "taming", "clip", "mcubes", "pysdf", "wandb", "lpips", "IPython", "ipywidgets",
}  # fmt: skip
# Latents are 64 x 64 here whatever the models, so attention is left to the lower level.
COARSE = {
    "block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1,
    "down_block_types": (PLAIN_DOWN, CROSS_DOWN), "up_block_types": (CROSS_UP, PLAIN_UP),
}  # fmt: skip


class Upstream:
    """Guidances of the checkout ``root``; ``folder`` is for small models' files."""

    def __init__(self, root: str, folder: Path) -> None:
        for name in ("omegaconf", "jaxtyping", "typeguard", "pytorch_lightning", "einops"):
            pytest.importorskip(name, reason="threestudio needs it")
        self.root, self.folder, self.said = Path(root).resolve(), folder, []
        sys.path.insert(0, str(self.root))
        sys.meta_path.append(ShellFinder())
        import threestudio
        from threestudio.models.prompt_processors.base import PromptProcessorOutput
        from threestudio.utils import base

        base.get_device = lambda: torch.device("cpu")  # it says cuda:0 whatever there is
        self.threestudio, self.prompt = threestudio, PromptProcessorOutput
        threestudio.info = threestudio.warn = self.said.append
        self.addon = self.load("custom/threestudio-hash3d")

    def load(self, name: str) -> ModuleType:
        """The add-on, by threestudio's own loader."""
        spec = importlib.util.spec_from_file_location("launch", self.root / "launch.py")
        launch = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(launch)
        assert launch.load_custom_module(str(ADDON))
        return sys.modules[ADDON.name]

    def make(self, kind: str, hash3d: Any = None, own_phi: bool = False, **changes: Any) -> Any:
        """A guidance that its own ``configure`` made; with the add-on where there are options for it."""
        from omegaconf import OmegaConf

        name = NAMES[kind] + ("" if hash3d is None else ":hash3d")
        cfg: dict[str, Any] = {"half_precision_weights": False, "guidance_scale": 5.0, **changes}
        if hash3d is not None:
            cfg["hash3d"] = hash3d
        if kind in ("sd", "unified"):
            cfg["pretrained_model_name_or_path"] = "small"
        if "unified" in kind:
            cfg |= {"vsd_use_camera_condition": False}  # its embedding has 1280 channels, whatever the U-Net
            cfg |= {"use_img_loss": False} if kind == "unified" else {}
            cfg |= {"vsd_phi_model_name_or_path": "phi"} if own_phi else {}
        if kind in ("zero123", "stable-zero123"):
            cfg["pretrained_config"] = str(self._write_config())
        with pytest.MonkeyPatch.context() as patch:
            self._stand_for_downloads(patch, kind)
            guidance = self.threestudio.find(name)(OmegaConf.create(cfg))
        guidance.min_step, guidance.max_step = 20, 980
        return guidance

    def width(self, kind: str) -> int:
        return 12

    def _write_config(self) -> Path:
        path = self.folder / "zero123.yaml"
        path.write_text("model: {params: {timesteps: 1000, linear_start: 0.00085, linear_end: 0.0120}}\n")
        return path

    def _stand_for_downloads(self, patch: pytest.MonkeyPatch, kind: str) -> None:
        """Puts small models where a guidance would load large ones, and no picture where it would read one."""
        module = sys.modules[self.threestudio.find(NAMES[kind]).__module__]
        if kind in ("zero123", "stable-zero123"):
            patch.setattr(module, "load_model_from_config", lambda *args, **kwargs: build_latent_diffusion())
            patch.setattr(self.threestudio.find(NAMES[kind]), "prepare_embeddings", give_ldm_embeddings)
        elif kind == "zero123-unified":
            load = lambda *args, **kwargs: Zero123Parts(module.AutoencoderKL)  # noqa: E731
            patch.setattr(module.Zero123Pipeline, "from_pretrained", load)
            patch.setattr(self.threestudio.find(NAMES[kind]), "prepare_image_embeddings", give_embeddings)
        else:
            patch.setattr(module.StableDiffusionPipeline, "from_pretrained", small_pipeline)
            patch.setattr(module, "LoRAAttnProcessor", Adapter19, raising=False)
            for name in ("DDIMScheduler", "DDPMScheduler"):
                scheduler = getattr(module, name, None)
                if scheduler is not None:
                    patch.setattr(scheduler, "from_pretrained", lambda *args, made=scheduler, **kwargs: made())


class Shell:
    """Stands for anything in a package that is not there: a class, a function, a decorator."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Shell()


class ShellModule(ModuleType):
    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Shell,), {})


class ShellFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Asked last, for what no other finder has found."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        known = fullname.partition(".")[0] in SHELLS
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if known else None

    def create_module(self, spec: Any) -> ModuleType:
        return ShellModule(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


class Adapter19(nn.Module):
    """As diffusers' ``LoRAAttnProcessor`` was when threestudio was written: later ones take no arguments."""

    def __init__(self, hidden_size: int, cross_attention_dim: int | None = None) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(hidden_size, 4, bias=False), nn.Linear(4, hidden_size, bias=False)

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, scale: float = 1.0, **_: Any):
        from diffusers.models.attention_processor import AttnProcessor2_0

        plain = AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states)
        return plain + scale * self.up(self.down(hidden_states))


class Zero123Parts:
    """The parts of ``Zero123Pipeline`` that its guidance uses."""

    def __init__(self, autoencoder: Any) -> None:
        from diffusers import DDIMScheduler

        self.unet, self.vae = build_unet("zero123", **COARSE), small_vae(autoencoder)
        self.image_encoder, self.clip_camera_projection = nn.Identity(), nn.Linear(12 + 4, 12)
        self.scheduler = DDIMScheduler()
        torch.nn.init.normal_(self.clip_camera_projection.weight, generator=torch.Generator().manual_seed(0))

    def to(self, device: Any) -> Zero123Parts:
        return self

    def set_progress_bar_config(self, **kwargs: Any) -> None: ...


def small_vae(autoencoder: Any) -> Any:
    torch.manual_seed(0)
    return autoencoder(block_out_channels=(4,), norm_num_groups=2, mid_block_add_attention=False)


def small_pipeline(name: str, **kwargs: Any) -> Any:
    """What ``StableDiffusionPipeline.from_pretrained`` would load, made in memory; prompts come as embeddings."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=small_vae(AutoencoderKL), text_encoder=None, tokenizer=None, scheduler=DDIMScheduler(),
        unet=build_unet("sd15", seed=int(name == "phi"), **COARSE), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def build_latent_diffusion() -> nn.Module:
    """Upstream's ldm U-Net and its wrappers, small."""
    from extern.ldm_zero123.models.diffusion.ddpm import DiffusionWrapper, LatentDiffusion

    params = dict(
        image_size=32, in_channels=8, out_channels=4, model_channels=32, num_res_blocks=1, attention_resolutions=[2],
        channel_mult=[1, 1], num_heads=2, use_spatial_transformer=True, context_dim=12, legacy=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = nn.Module()
    target = "extern.ldm_zero123.modules.diffusionmodules.openaimodel.UNetModel"
    model.model = DiffusionWrapper({"target": target, "params": params}, "hybrid")
    for weight in model.parameters():  # those of the last layers begin as zeros
        nn.init.normal_(weight, std=0.1)
    model.cc_projection = nn.Linear(12 + 4, 12)
    model.apply_model = LatentDiffusion.apply_model.__get__(model)
    model.decode_first_stage = lambda latents: torch.nn.functional.interpolate(latents[:, :3], scale_factor=8)
    return model.eval()


def give_ldm_embeddings(guidance: Any, path: str) -> None:
    random = torch.Generator().manual_seed(0)
    guidance.c_crossattn = torch.randn(1, 1, 12, generator=random)
    guidance.c_concat = torch.randn(1, 4, 32, 32, generator=random)


def give_embeddings(guidance: Any) -> None:
    random = torch.Generator().manual_seed(0)
    guidance.clip_image_embeddings = torch.randn(1, 1, 12, generator=random)
    guidance.image_latents = torch.randn(1, 4, 32, 32, generator=random)


def train_small(upstream: Upstream, folder: Path, steps: int, resume: Any = None) -> SimpleNamespace:
    """Trains a picture by an upstream system's hooks under a real Lightning trainer, on the CPU; saves at the end."""
    import pytorch_lightning as lightning
    from threestudio.systems.base import BaseSystem

    class Picture(BaseSystem):
        def on_fit_start(self) -> None:
            self.guidance = upstream.make("sd", {**SMALL, "eta": 0.5, "host_timesteps": True})
            self.guidance.min_step = self.guidance.max_step = 500

        def configure(self) -> None:
            self.rgb = nn.Parameter(torch.full((1, 64, 64, 4), 0.5))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([self.rgb], lr=1e-3)

        def update_step(self, *args: Any, **kwargs: Any) -> None: ...

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.kept = "hash3d_poses" in batch
            out = self.guidance(self.rgb, make_prompt(upstream), **batch, rgb_as_latents=True)
            self.log("train/hash3d_served", out["hash3d_served"])
            self.syncs = out["hash3d_host_syncs"]
            return out["loss_sds"]

    upstream.threestudio.__modules__["picture-system"] = Picture
    system = upstream.threestudio.find("picture-system:hash3d-system")({})
    views = torch.utils.data.DataLoader([make_batch(1)] * steps, batch_size=None)
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, logger=False, enable_checkpointing=False)
    torch.manual_seed(0)
    trainer = lightning.Trainer(accelerator="cpu", max_steps=steps, default_root_dir=folder, **quiet)
    trainer.fit(system, views, ckpt_path=resume)
    trainer.save_checkpoint(folder / "last.ckpt")
    stats = str(system.guidance.hash3d.cache.stats())
    return SimpleNamespace(stats=stats, syncs=system.syncs, kept=system.kept, checkpoint=str(folder / "last.ckpt"))
