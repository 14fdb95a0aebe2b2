"""What the tests of threestudio's add-on share: the add-on itself, prompts, views and a guidance's call."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import threestudio_stand_ins as stand_ins
import torch
from torch import Tensor

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "threestudio"
ADDON = EXAMPLE / "custom" / "threestudio-hash3d"
NAMES = {
    "sd": "stable-diffusion-guidance",
    "unified": "stable-diffusion-unified-guidance",
    "zero123": "zero123-guidance",
    "stable-zero123": "stable-zero123-guidance",
    "zero123-unified": "zero123-unified-guidance",
}
TOLD_PROMPTS = ("sd", "unified")
SMALL = {"capacity": 60, "num_buckets": 101}
ALWAYS = {"eta": 1.0, **SMALL}


def load_addon(threestudio: ModuleType) -> ModuleType:
    """The add-on as ``launch.py`` imports it, under the name of its folder, for this ``threestudio``."""
    kept = {
        name: module for name, module in sys.modules.items() if name.partition(".")[0] in ("threestudio", ADDON.name)
    }
    for name in kept:
        if name.startswith(ADDON.name):
            del sys.modules[name]
    sys.modules["threestudio"] = threestudio
    try:
        spec = importlib.util.spec_from_file_location(ADDON.name, ADDON / "__init__.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[ADDON.name] = module
        spec.loader.exec_module(module)
        module.parts = SimpleNamespace(
            **{name.rpartition(".")[2]: part for name, part in sys.modules.items() if name.startswith(f"{ADDON.name}.")}
        )
        return module
    finally:
        for name in [name for name in sys.modules if name.startswith(ADDON.name)]:
            del sys.modules[name]
        sys.modules.pop("threestudio")
        sys.modules.update(kept)


class StandIn:
    """Guidances of :mod:`threestudio_stand_ins`."""

    prompt, size = stand_ins.Prompt, stand_ins.SIZE

    def __init__(self) -> None:
        self.threestudio = stand_ins.threestudio_module()
        self.addon = load_addon(self.threestudio)
        self.said = self.threestudio.said

    def make(self, kind: str, hash3d: Any = None, own_phi: bool = False, **changes: Any) -> Any:
        """A guidance of random weights, the same each time; with the add-on where there are options for it."""
        name = NAMES[kind] + ("" if hash3d is None else ":hash3d")
        changes |= {"own_phi": own_phi} | ({} if hash3d is None else {"hash3d": hash3d})
        return self.threestudio.find(name)(changes)

    def width(self, kind: str) -> int:
        return stand_ins.WIDTH[kind]


def make_prompt(source: Any, text: str = "a teddy bear", seed: int = 0, perp_neg: bool = False, width: int = 12) -> Any:
    """A prompt with random embeddings, and the four directions as upstream tells them apart."""
    random = torch.Generator().manual_seed(seed)

    def shifted(azimuth: Tensor) -> Tensor:
        return (azimuth + 180) % 360 - 180

    told = {
        "side": lambda elevation, azimuth, distance: torch.ones_like(elevation, dtype=torch.bool),
        "front": lambda elevation, azimuth, distance: shifted(azimuth).abs() < 45,
        "back": lambda elevation, azimuth, distance: shifted(azimuth).abs() > 135,
        "overhead": lambda elevation, azimuth, distance: elevation > 60,
    }
    more = dict.fromkeys(("perp_neg_f_sb", "perp_neg_f_fsb", "perp_neg_f_fs", "perp_neg_f_sf"), (1.0, 0.5, -0.606))
    names = getattr(source.prompt, "__dataclass_fields__", {})
    return source.prompt(
        text_embeddings=torch.randn(1, 7, width, generator=random),
        uncond_text_embeddings=torch.randn(1, 7, width, generator=random),
        text_embeddings_vd=torch.randn(4, 7, width, generator=random),
        uncond_text_embeddings_vd=torch.randn(4, 7, width, generator=random),
        directions=[SimpleNamespace(name=name, condition=condition) for name, condition in told.items()],
        direction2idx={name: place for place, name in enumerate(told)},
        use_perp_neg=perp_neg,
        prompt=text,
        **{name: value for name, value in {**more, "prompts_vd": []}.items() if name in names},
    )


def make_batch(size: int, azimuth: float = 5.0, apart: float = 80.0) -> dict[str, Tensor]:
    """``size`` views, as threestudio's data module hands them on."""
    places = torch.arange(size)
    return {
        "elevation": 12.0 + 0 * places,
        "azimuth": azimuth + apart * places,
        "camera_distances": 1.55 + 0.0 * places,
        "mvp_mtx": torch.eye(4).repeat(size, 1, 1),
        "c2w": torch.eye(4).repeat(size, 1, 1),
        "fovy": 1.0 + 0.0 * places,
        "height": 64,
    }


def moved(batch: dict[str, Any], view: int, azimuth: float) -> dict[str, Any]:
    """The batch with one view seen from elsewhere."""
    others = batch["azimuth"].clone()
    others[view] = azimuth
    return {**batch, "azimuth": others}


def ask(guidance: Any, kind: str, batch: dict[str, Any], prompt: Any = None, seed: int = 0, **kwargs: Any) -> Any:
    """One call of a guidance under a seed, so that t and noise are the same each time; returns its output with
    ``grad``, what it gives back to the picture."""
    torch.manual_seed(seed)
    rgb = torch.rand(len(batch["elevation"]), 64, 64, 4, requires_grad=True)
    told = [prompt] if kind in TOLD_PROMPTS else []
    output = guidance(rgb, *told, **batch, rgb_as_latents=True, **kwargs)
    loss = next(value for name, value in output.items() if name in ("loss_sds", "loss_sd"))
    output["grad"] = torch.autograd.grad(loss, rgb)[0]
    return output


def close(some: Any, other: Any) -> bool:
    """Whether two outputs give the picture the same gradient, up to rounding."""
    scale = other["grad"].abs().max()
    return bool((some["grad"] - other["grad"]).abs().max() < 1e-4 * scale)
