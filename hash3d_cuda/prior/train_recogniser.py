"""`python -m hash3d_cuda.prior.train_recogniser`: train the image encoder that goes with the shipped prior.

Needs `train.npz`, `eval.npz` and `negatives.npz` from `hash3d prepare-data --negatives 24`. Every fifth of the other
objects is held out, all its views with it, to measure how well unknown things are turned away.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hash3d_cuda.prior.augment import augment, clouds, plain, spoil
from hash3d_cuda.prior.data import Views
from hash3d_cuda.prior.ground_truth import INPUT_POSE, example_inputs
from hash3d_cuda.prior.muon import make_optimizers
from hash3d_cuda.prior.pictures import open_picture, read_picture
from hash3d_cuda.prior.recogniser import CONFIDENT, Recogniser

HELD_OUT_EVERY = 5
KNOWN, OTHER, SPOILT, SYNTHETIC = 0.60, 0.24, 0.10, 0.06  # shares of a batch
POSE_WEIGHT = 4.0


@dataclass
class RecogniserSettings:
    """Budget and optimiser; ``steps`` set means that many instead of ``minutes``."""

    minutes: float = 9.0
    steps: int | None = None
    batch: int = 128
    lr: float = 6e-3
    weight_decay: float = 0.02
    smoothing: float = 0.02
    ema: float = 0.99
    seed: int = 0


def read_negatives(path: Path) -> tuple[Tensor, Tensor]:
    """Views of other objects for training and held-out ones: uint8 [N,3,S,S] each.

    Raises:
        FileNotFoundError, ValueError: no such file, or one without ``images`` uint8 [objects,views,S,S,3].
    """
    if not path.is_file():
        raise FileNotFoundError(f"data: no file {str(path)!r}; make one with `hash3d prepare-data --negatives 24`")
    with np.load(path, allow_pickle=False) as file:
        images = file["images"] if "images" in file.files else np.empty(0)
    if images.ndim != 5 or len(images) < HELD_OUT_EVERY:
        raise ValueError(
            f"data: {str(path)!r} must hold images of {HELD_OUT_EVERY} or more objects; make it with "
            "`hash3d prepare-data --negatives 24`"
        )
    held_out = np.arange(len(images)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    parts = (torch.from_numpy(images[mask]).permute(0, 1, 4, 2, 3).flatten(0, 1) for mask in (~held_out, held_out))
    return tuple(part.contiguous() for part in parts)  # type: ignore[return-value]


def draw_batch(views: Views, others: Tensor, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """An augmented batch of known objects and of what is none of them.

    Returns:
        images float [B,3,S,S]; kinds int64 [B], ``len(views.names)`` for none; poses float [P,3] of the known, which
        come first.
    """
    known, other, spoilt = (round(batch * share) for share in (KNOWN, OTHER, SPOILT))
    rest, size, names = batch - known - other - spoilt, views.images.shape[-1], len(views.names)
    seen = views.sample(known, generator)
    whole = views.sample(spoilt, generator)
    step = torch.randint(1, max(names, 2), (spoilt,), generator=generator)
    partner = views.take((whole.index + step) % names, torch.zeros_like(step)).images
    strange = others[torch.randint(len(others), (other,), generator=generator)].float() / 255
    bad = augment(torch.cat([strange, spoil(whole.images, partner, generator)]), generator, stretch=0.2)
    made = torch.where(
        torch.rand(rest, 1, 1, 1, generator=generator) < 0.5,
        clouds(rest, size, generator),
        plain(rest, size, generator),
    )
    images = torch.cat([augment(seen.images, generator), bad, made])
    kinds = torch.cat([seen.index, torch.full((batch - known,), names)])
    return images, kinds, seen.poses


def pose_target(poses: Tensor) -> Tensor:
    """Elevation and azimuth in degrees, [P,3], to what the network says: sin, cos of azimuth and radians, [P,3]."""
    elevation, azimuth = torch.deg2rad(poses[:, 0]), torch.deg2rad(poses[:, 1])
    return torch.stack([azimuth.sin(), azimuth.cos(), elevation], -1)


def loss_of(model: Recogniser, batch: tuple[Tensor, Tensor, Tensor], smoothing: float) -> Tensor:
    """Cross-entropy over objects and "none", plus the squared error of the pose that the true object's head gives."""
    images, kinds, poses = batch
    logits, heads = model(images)
    rows = torch.arange(len(poses))
    wrong = (heads[rows, kinds[: len(poses)]] - pose_target(poses)).square().sum(-1).mean()
    return F.cross_entropy(logits, kinds, label_smoothing=smoothing) + POSE_WEIGHT * wrong


def train(views: Views, others: Tensor, settings: RecogniserSettings) -> tuple[Recogniser, int]:
    """The averaged network after the budget, and the number of steps that fitted in it."""
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    model = Recogniser(len(views.names))
    average = Recogniser(len(views.names))
    average.load_state_dict(model.state_dict())
    average.requires_grad_(False)
    optimizers = make_optimizers(model, settings.lr, settings.weight_decay)
    step, start, total = 0, time.perf_counter(), 0.0
    while True:
        passed = (time.perf_counter() - start) / (60 * settings.minutes)
        spent = passed if settings.steps is None else step / settings.steps
        if spent >= 1:
            return average.eval(), step
        rate = settings.lr * min(1.0, (step + 1) / 30) * max(1 - spent, 0.01)
        model.zero_grad(set_to_none=True)
        loss = loss_of(model, draw_batch(views, others, settings.batch, generator), settings.smoothing)
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        step += 1
        total += float(loss.detach())
        decay = min(settings.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        if step % 100 == 0:
            print(json.dumps(dict(step=step, spent=round(spent, 3), loss=round(total / 100, 4))), flush=True)
            total = 0.0


def azimuth_error(found: Tensor, true: Tensor) -> Tensor:
    """Absolute difference of angles in degrees, 0..180."""
    return ((found - true + 180) % 360 - 180).abs()


@torch.no_grad()
def see(model: Recogniser, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest object int64 [N], its probability float [N], its azimuth and elevation in degrees float [N,2]."""
    logits, heads = (torch.cat(part) for part in zip(*(model(chunk) for chunk in images.split(256))))
    probability, best = logits.softmax(-1)[:, :-1].max(-1)
    sine, cosine, elevation = heads[torch.arange(len(best)), best].unbind(-1)
    return best, probability, torch.rad2deg(torch.stack([torch.atan2(sine, cosine), elevation], -1))


def measure(model: Recogniser, held_out: Views, unknown: Tensor) -> dict[str, object]:
    """How well it recognises views never trained on and the bundled pictures, and turns held-out objects away."""
    names, per_object = held_out.names, held_out.images.shape[1]
    true = torch.arange(len(names)).repeat_interleave(per_object)
    best, probability, pose = see(model, held_out.images.flatten(0, 1).float() / 255)
    error = azimuth_error(pose[:, 0], held_out.poses.flatten(0, 1)[:, 1])
    refused = see(model, unknown.float() / 255)[1] < CONFIDENT
    figures: dict[str, object] = dict(
        eval_top1=float((best == true).float().mean()),
        eval_recognised=float(((best == true) & (probability >= CONFIDENT)).float().mean()),
        eval_azimuth_error_median=float(error.median()),
        eval_elevation_error_mean=float((pose[:, 1] - held_out.poses.flatten(0, 1)[:, 0]).abs().mean()),
        held_out_objects_refused=float(refused.float().mean()),
    )
    figures["azimuth_error_median_by_object"] = {
        name: round(float(error.view(-1, per_object)[i].median()), 1) for i, name in enumerate(names)
    }
    paths = {name: path for name, path in example_inputs().items() if name in names}
    if paths:
        pictures = torch.stack([read_picture(open_picture(path), 64)[0] for path in paths.values()])
        best, probability, pose = see(model, pictures)
        right = (best == torch.tensor([names.index(name) for name in paths])) & (probability >= CONFIDENT)
        error = azimuth_error(pose[:, 0], torch.tensor(INPUT_POSE[1]))
        figures["inputs"] = len(paths)
        figures["inputs_not_recognised"] = [name for name, good in zip(paths, right.tolist()) if not good]
        figures["inputs_azimuth_error_median"] = float(error.median())
        figures["inputs_azimuth_error"] = {name: round(float(e), 1) for name, e in zip(paths, error)}
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}


def save_recogniser(model: Recogniser, folder: Path, figures: dict[str, object]) -> None:
    """``recogniser.safetensors`` in fp16, and ``recogniser.json`` with how it was trained and what it reached."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / "recogniser.safetensors")
    (folder / "recogniser.safetensors").chmod(0o644)  # safetensors writes it for the owner alone
    (folder / "recogniser.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def build_parser() -> argparse.ArgumentParser:
    """Command line of the trainer."""
    defaults = RecogniserSettings()
    parser = argparse.ArgumentParser(
        prog="python -m hash3d_cuda.prior.train_recogniser", description="Train the prior's image encoder."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train.npz, eval.npz, negatives.npz")
    parser.add_argument("--out", type=Path, required=True, help="the prior folder that gets recogniser.safetensors")
    parser.add_argument("--negatives", type=Path, help="another file than DATA/negatives.npz")
    parser.add_argument("--minutes", type=float, default=defaults.minutes, help="(default %(default)s)")
    parser.add_argument("--steps", type=int, help="train this many steps instead of a time")
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.minutes <= 0 or options.batch < 16 or (options.steps is not None and options.steps < 1):
        parser.error("--minutes must be positive, --steps at least 1 and --batch at least 16")
    settings = RecogniserSettings(options.minutes, options.steps, options.batch, seed=options.seed)
    try:
        views, held_out = Views(options.data / "train.npz"), Views(options.data / "eval.npz")
        others, unknown = read_negatives(options.negatives or options.data / "negatives.npz")
        model, steps = train(views, others, settings)
        model.load_state_dict({key: value.half().float() for key, value in model.state_dict().items()})
        figures = measure(model, held_out, unknown)
        save_recogniser(model, options.out, dict(settings=asdict(settings) | {"steps": steps}, **figures))
    except (OSError, ValueError) as error:
        print(f"train_recogniser: {error}", file=sys.stderr)
        return 1
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
