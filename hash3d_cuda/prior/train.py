"""`hash3d train-prior`: train the small camera-conditioned prior on rendered views.

Training is budgeted in minutes, since that is what people have: the learning rate follows the share of the budget
that is spent, and a stopped run goes on where it was. Several processes (`torchrun --nproc-per-node 2 -m
hash3d_cuda.prior.train ...`) share each step's batch; on a CPU two one-thread processes beat one of two threads.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from hash3d_cuda.checks import check_device
from hash3d_cuda.cli.main import Parser
from hash3d_cuda.cli.options import to_folder
from hash3d_cuda.prior.data import Batch, Views
from hash3d_cuda.prior.load import load_prior
from hash3d_cuda.prior.muon import make_optimizers
from hash3d_cuda.prior.objective import Model, noise_schedule, sample_grid, training_loss, validate
from hash3d_cuda.prior.shipped import save_prior


@dataclass
class TrainSettings:
    """Budget and optimiser of a training run."""

    minutes: float = 100.0
    batch: int = 32
    lr: float = 4e-3
    weight_decay: float = 0.01
    ema: float = 0.9995
    warmup: float = 0.01  # share of the budget
    decay_from: float = 0.5  # share of the budget after which the rate falls linearly to (almost) zero
    seed: int = 0
    log_minutes: float = 1.0
    save_minutes: float = 5.0


def learning_rate(settings: TrainSettings, spent: float) -> float:
    """Warm-up, plateau, linear decay, over the share of the budget ``spent`` (0..1)."""
    if spent < settings.warmup:
        return settings.lr * max(spent / settings.warmup, 0.02)
    fall = (1 - spent) / (1 - settings.decay_from)
    return settings.lr * max(min(1.0, fall), 0.01)


class Trainer:
    """One training run in one folder: step, log, save, go on after a stop.

    Args:
        views: the training views; validation and samples come from ``held_out`` when given.
        out: folder for ``checkpoint.pt``, ``log.jsonl``, ``samples/`` and the exported prior.
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, views: Views, held_out: Views, out: Path, settings: TrainSettings, device: str = "cpu"):
        self.views, self.held_out, self.out, self.settings = views, held_out, out, settings
        self.device = torch.device(device)
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        torch.manual_seed(settings.seed)
        self.model = Model(len(views.names)).to(self.device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizers = make_optimizers(self.model, settings.lr, settings.weight_decay)
        self.alphas = noise_schedule().to(self.device)
        self.step, self.samples, self.seconds = 0, 0, 0.0
        self.before = 0  # views that the weights it started from had seen
        self.stopping = False

    @property
    def spent(self) -> float:
        """Share of the budget used up, 0..1."""
        return min(1.0, self.seconds / (60 * self.settings.minutes))

    def run(self) -> None:
        """Train until the budget is spent or a stop is asked for; always ends with a checkpoint and an export."""
        self.generator = torch.Generator().manual_seed(self.settings.seed + 1000 * self.step + self.rank)
        logged = saved = self.seconds
        losses: list[float] = []
        last = time.perf_counter()
        while self.spent < 1 and not self._anyone_stopping():
            losses.append(self.train_step())
            now = time.perf_counter()
            self.seconds, last = self._agree(self.seconds + now - last), now
            if self.seconds - logged > 60 * self.settings.log_minutes:
                self.log(loss=sum(losses) / len(losses))
                logged, losses = self.seconds, []
            if self.seconds - saved > 60 * self.settings.save_minutes:
                self.save()
                saved, last = self.seconds, time.perf_counter()
        self.save()

    def train_step(self) -> float:
        """One optimiser step on one batch of every rank; returns this rank's loss."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.settings, self.spent)
        batch = Batch(*(part.to(self.device) for part in self.views.sample(self.settings.batch, self.generator)))
        loss = training_loss(self.model, batch, self.alphas, self.generator)
        loss.backward()
        self._share_gradients()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self.samples += self.settings.batch * self.world
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        return float(loss.detach())

    def _share_gradients(self) -> None:
        if self.world == 1:
            return
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, (flat / self.world).split([g.numel() for g in gradients])):
            gradient.copy_(part.view_as(gradient))

    def _agree(self, seconds: float) -> float:
        if self.world == 1:
            return seconds
        shared = torch.tensor([seconds], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)

    def _anyone_stopping(self) -> bool:
        if self.world == 1:
            return self.stopping
        flag = torch.tensor([float(self.stopping)])
        dist.all_reduce(flag)
        return bool(flag > 0)

    def log(self, **figures: float) -> None:
        """Append one line to ``log.jsonl`` and print it."""
        if self.rank:
            return
        line = dict(
            step=self.step,
            samples=self.samples,
            minutes=round(self.seconds / 60, 2),
            samples_per_second=round(self.samples / self.seconds, 1),
            **{k: round(v, 5) for k, v in figures.items()},
        )
        with open(self.out / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def save(self) -> None:
        """Validate, draw a sample grid, write the checkpoint atomically and export the averaged weights."""
        if self.rank:
            return
        self.log(**validate(self.average, self.held_out, self.alphas, self.device))
        folder = self.out / "samples"
        folder.mkdir(exist_ok=True)
        sample_grid(self.average, self.held_out, self.alphas, self.device, folder / f"step{self.step:07d}.png")
        state = dict(
            model=self.model.state_dict(),
            average=self.average.state_dict(),
            optimizers=[o.state_dict() for o in self.optimizers],
            step=self.step,
            samples=self.samples,
            before=self.before,
            seconds=self.seconds,
            names=self.views.names,
        )
        torch.save(state, self.out / "checkpoint.tmp")
        os.replace(self.out / "checkpoint.tmp", self.out / "checkpoint.pt")
        save_prior(
            self.average,
            self.views.names,
            self.out / "prior",
            trained=asdict(self.settings) | {"samples": self.before + self.samples},
        )

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of the same vocabulary."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["names"] != self.views.names:
            raise ValueError(
                f"checkpoint: {str(path)!r} knows {len(state['names'])} names, the data has {len(self.views.names)} "
                "or others; use the data it was trained on, or another --out"
            )
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        self.step, self.samples, self.seconds = state["step"], state["samples"], state["seconds"]
        self.before = state["before"]

    def start_from(self, folder: Path) -> None:
        """Begin with the weights of a trained prior instead of random ones; optimisers and budget start afresh.

        Args:
            folder: as :func:`hash3d_cuda.prior.shipped.save_prior` writes it, of the same vocabulary.
        """
        prior = load_prior(folder)
        if prior.vocabulary != self.views.names:
            raise ValueError(
                f"start: {str(folder)!r} knows {len(prior.vocabulary)} names, the data has {len(self.views.names)} or "
                "others; give a prior that was trained on this data's objects"
            )
        for model in (self.model, self.average):
            model.unet.load_state_dict(prior.unet.state_dict())
            model.conditioner.load_state_dict(prior.conditioner.state_dict())
        self.before = prior.about["trained"].get("samples", 0)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Command line of `hash3d train-prior`."""
    parser = Parser(prog="hash3d train-prior", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder or train.npz made by `hash3d prepare-data`")
    parser.add_argument("--out", type=to_folder, required=True, help="run folder; an existing run there goes on")
    parser.add_argument("--start", type=Path, metavar="PRIOR", help="begin with the weights of this prior folder")
    parser.add_argument("--device", default="cpu")
    defaults = TrainSettings()
    parser.add_argument("--minutes", type=float, default=defaults.minutes, help="whole budget (default %(default)s)")
    parser.add_argument("--batch", type=int, default=defaults.batch, help="views a step and process")
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--save-minutes", type=float, default=defaults.save_minutes)
    args = parser.parse_args(argv)
    for name in ("minutes", "batch", "lr", "save_minutes"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"argument --{name.replace('_', '-')}: expected more than 0, got {getattr(args, name)}")
    try:
        check_device("device", args.device)
    except ValueError as error:
        parser.error(str(error))
    return args


def main(argv: list[str] | None = None) -> int:
    """Entry point; SIGINT and SIGTERM end the run after the step in progress, with everything saved."""
    args = parse(argv)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if args.device.startswith("cuda") else "gloo")
    path = args.data / "train.npz" if args.data.is_dir() else args.data
    held_out = path.with_name("eval.npz")
    settings = TrainSettings(
        minutes=args.minutes, batch=args.batch, lr=args.lr, seed=args.seed, save_minutes=args.save_minutes
    )
    views = Views(path)
    args.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(views, Views(held_out) if held_out.is_file() else views, args.out, settings, args.device)
    if (args.out / "checkpoint.pt").is_file():
        trainer.resume(args.out / "checkpoint.pt")
        print(
            f"resuming at step {trainer.step}, {trainer.seconds / 60:.1f} of {args.minutes:g} minutes spent", flush=True
        )
    elif args.start is not None:
        trainer.start_from(args.start)
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: setattr(trainer, "stopping", True))
    trainer.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
