"""``generate``: from a prior and a subject to a folder with a 3D object in it."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hash3d_cuda.cache_state import sketch
from hash3d_cuda.prior.base import Prior, Subject
from hash3d_cuda.sds.checkpoint import find_checkpoint, read_about, remove_checkpoint
from hash3d_cuda.sds.finite import require_finite_weights
from hash3d_cuda.sds.interrupt import Interrupt
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.settings import GenerateSettings

if TYPE_CHECKING:
    from hash3d_cuda.distributed import Ranks


@dataclass(frozen=True)
class Progress:
    """What a progress display needs after each step; ``x`` is the share of all views served from the
    cache."""

    step: int
    total: int
    hits: int
    misses: int
    bypasses: int

    @property
    def hit_rate(self) -> float:
        """hits / (hits + misses), 0 before the first retrieval."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 0.0

    @property
    def x(self) -> float:
        """hits / all views."""
        items = self.hits + self.misses + self.bypasses
        return self.hits / items if items else 0.0


@dataclass(frozen=True)
class Result:
    """What :func:`generate` hands back.

    Attributes:
        folder: where everything lies.
        scene: the scene, on the run's device.
        views: float [16,3,S,S] in 0..1 on the CPU, the evaluation views.
        turntable: float [F,3,S,S] in 0..1 on the CPU, the frames of the written animation.
        metrics: the content of ``metrics.json``.
        interrupted: the run was ended early and can be resumed.
    """

    folder: Path
    scene: Any
    views: Tensor
    turntable: Tensor
    metrics: dict[str, Any]
    interrupted: bool


def generate(
    prior: Prior,
    subject: Subject,
    settings: GenerateSettings,
    out: str | Path,
    *,
    progress: Callable[[Progress], None] | None = None,
    resume: bool = False,
    force: bool = False,
    note: Mapping[str, Any] | None = None,
    previous: Any = None,
    second: tuple[Prior, Subject] | None = None,
    interrupt: Interrupt | None = None,
    keep: bool = False,
    ranks: Ranks | None = None,
) -> Result:
    """Makes a 3D object by score distillation, with the prior's U-Net behind the cache.

    A finished earlier run in ``out`` is replaced once the new one is complete. Other files there are left alone; one
    that a result would have to take the place of is refused, and with ``force`` kept as ``NAME.kept``.

    Args:
        prior: the 2D diffusion prior.
        subject: from ``prior.resolve``.
        settings: the options.
        out: folder, made if missing.
        progress: called after every step, never with anything that waits for the device.
        resume: go on from the unfinished run in ``out``, with the very decisions it would have taken.
        force: start over although ``out`` holds an unfinished run.
        note: JSON values kept in the checkpoint for the caller (the command line keeps what it was asked
            for). Its ``"recipe"``, if any, is named in the metrics.
        previous, second: as for :class:`SdsRun`.
        interrupt: an entered one, where this run is one of several that a Ctrl-C ends.
        keep: leave the checkpoint of a run that is complete: the next stage starts from it.
        ranks: processes that each call this with the same arguments and share every step's views. Rank 0 writes; on the
            others the result has no views, turntable or metrics. All must see ``out`` to resume.

    Raises:
        ValueError: ``resume`` without a matching unfinished run, or an unfinished run without ``resume`` or
            ``force``; ranks that were started with other arguments than the first one.
        OSError: ``out`` cannot be written; the last checkpoint stays.
        NonFinite: NaN in the prior's weights or in the loss; the last checkpoint stays.
        RankLost: another rank ended, failed or stood still; the last checkpoint stays.
    """
    folder = Path(out)
    if ranks is None:
        prepare_folder(folder, resume, force)
    else:
        ranks.agree(what_decides(prior, subject, settings))
        ranks.first(lambda: prepare_folder(folder, resume, force))
    require_finite_weights("the U-Net", prior.unet)
    asked = Interrupt() if interrupt is None else contextlib.nullcontext(interrupt)
    with (
        asked as requests,
        SdsRun(prior, subject, settings, note, previous=previous, second=second, ranks=ranks) as run,
    ):
        if resume:
            run.restore(folder)
        if ranks is not None:
            ranks.agree({"step to go on from": run.step})
        iterate([Track(run, folder, progress)], requests)
        return finish(run, folder, keep)


def what_decides(prior: Prior, subject: Subject, settings: GenerateSettings) -> dict[str, Any]:
    """By name, what must be the same on all ranks for them to make one object."""
    picture = None if subject.image is None else zlib.crc32(subject.image.cpu().numpy().tobytes())
    asked = {"subject": subject.label, "picture": picture, "prior": prior.name, "weights": sketch(prior.unet)}
    return {name: value for name, value in settings.as_dict().items() if name != "device"} | asked


def prepare_folder(folder: Path, resume: bool, force: bool) -> Path:
    """Makes the folder, proves that it can be written, and protects what others and an unfinished run left in it."""
    from hash3d_cuda.sds.replace import finish_swap, foreign_checkpoints, foreign_names

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".hash3d-"):
            pass
        finish_swap(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"out: cannot write to {str(folder)!r} ({reason}); choose another folder") from None
    if names := foreign_checkpoints(folder):
        raise ValueError(
            f"out: {str(folder)!r} holds {', '.join(names)}, where checkpoints go, with something else in it; choose "
            "another folder or move that away"
        )
    if (names := foreign_names(folder)) and not resume and not force:
        raise ValueError(
            f"out: {str(folder)!r} holds {', '.join(names)}, which hash3d did not write; choose another folder or move "
            "that away (generate --force goes on and renames it to NAME.kept)"
        )
    checkpoint = find_checkpoint(folder)
    if resume and checkpoint is None:
        raise ValueError(f"resume: no unfinished run in {str(folder)!r}; leave --resume away to start one")
    if checkpoint is not None and not resume and not force:
        about = read_about(checkpoint)
        raise ValueError(
            f"out: {str(folder)!r} holds an unfinished run ({about['subject']}, step {about['step']} of "
            f"{about['settings']['steps']}); give --resume to go on or --force to start over"
        )
    if checkpoint is not None and not resume:
        remove_checkpoint(folder)
    return folder


@dataclass(frozen=True)
class Track:
    """A run under way, the folder of its checkpoints, and its progress display."""

    run: SdsRun
    folder: Path
    progress: Callable[[Progress], None] | None = None

    @property
    def left(self) -> bool:
        """Whether steps are left."""
        return self.run.step < self.run.settings.steps

    def advance(self) -> None:
        """One step, and a checkpoint when it is time for one."""
        run = self.run
        run.train_step()
        if self.progress is not None:
            self.progress(Progress(run.step, run.settings.steps, **run.served))
        if run.step % run.settings.checkpoint_every == 0 and self.left:
            save_or_warn(run, self.folder)


def iterate(tracks: Sequence[Track], interrupt: Interrupt) -> None:
    """Steps until the end or an interrupt, with a checkpoint now and then and always one at the end.

    Several runs take turns step by step, and who goes first changes each time: a machine that grows slower or faster
    does so for all of them.
    """
    forwards = True
    while any(track.left for track in tracks) and not wants_end(tracks[0].run.ranks, interrupt):
        for track in tracks if forwards else reversed(tracks):
            if track.left:
                track.advance()
        forwards = not forwards
    for track in tracks:
        track.run.settle()
        save_or_warn(track.run, track.folder)


def wants_end(ranks: Ranks | None, interrupt: Interrupt) -> bool:
    """Whether this process, or any of the ranks, was asked to end: all end after the same step."""
    return interrupt.requested if ranks is None else ranks.any(interrupt.requested)


def save_or_warn(run: SdsRun, folder: Path) -> None:
    """A checkpoint that cannot be written does not end a run that goes well: one warning, then other tries."""
    if run.ranks is not None and not run.ranks.writes:
        return
    try:
        run.save(folder, with_cache=run.step < run.settings.steps)
        run.warned = False
    except OSError as error:
        if not run.warned:
            text = f"no checkpoint at step {run.step}, the run goes on and tries again later: {error}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        run.warned = True


def finish(run: SdsRun, folder: Path, keep: bool = False) -> Result:
    """Writes the results of a run that is complete or was interrupted; with ``keep`` its checkpoint stays."""
    from hash3d_cuda.sds.outputs import write_outputs

    interrupted = run.step < run.settings.steps
    if run.ranks is not None and not run.ranks.writes:
        return Result(folder, run.scene, torch.empty(0), torch.empty(0), {}, interrupted)
    views, turntable, metrics = write_outputs(run, folder, interrupted)
    if not interrupted and not keep:
        remove_checkpoint(folder)
    return Result(folder, run.scene, views, turntable, metrics, interrupted)
