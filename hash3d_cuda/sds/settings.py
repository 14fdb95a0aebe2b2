"""The options of a generation, validated once for the library and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from hash3d_cuda.checks import (
    check_choice,
    check_device,
    check_int,
    check_positive,
    check_real,
    fail,
    parse_bytes,
)
from hash3d_cuda.config import MODES
from hash3d_cuda.keys import PAPER_GRIDS, Grid
from hash3d_cuda.options import MATCHES
from hash3d_cuda.options import WEIGHTINGS as AGGREGATIONS

SCENES = ("voxels", "gaussians")
SCHEDULES = ("annealed", "uniform")
WEIGHTINGS = ("x0", "dreamfusion", "uniform")
# Narrow in pose and open in timestep: under the annealed schedule no timestep comes twice, so the paper's cells of 10
# to 30 timesteps forget a view after some steps.
POSE_GRIDS = (Grid(5.0, 5.0, 0.5, 1000.0), Grid(7.0, 7.0, 0.5, 1000.0), Grid(10.0, 10.0, 0.5, 1000.0))
DEFAULT_BUDGET = 256 * 2**20
NAMED_GRIDS = {"paper": PAPER_GRIDS, "pose": POSE_GRIDS}


@dataclass(frozen=True)
class GenerateSettings:
    """How one object is made.

    Attributes:
        steps: SDS iterations.
        views_per_step: views rendered and denoised per iteration (the items of the U-Net's batch).
        scene: ``"voxels"`` or ``"gaussians"``.
        scene_size: grid cells per side, or number of Gaussians; None takes the scene's default.
        lr_scale: multiplies every learning rate of the scene.
        lr_end: the learning rate at the last step as a share of the first; the fall is linear.
        schedule: timesteps ``"annealed"`` from ``t_high`` to ``t_low``, or ``"uniform"`` between them.
        t_high, t_low: noise levels as shares of the diffusion schedule, 0 to 1.
        guidance_scale: classifier-free guidance; 1 is the conditioned prediction alone.
        weighting: w(t) of the gradient, see :func:`hash3d_cuda.sds.guidance.step_weight`.
        reference_weight: weight of the reference-view loss for pictures.
        cache: False leaves the U-Net alone.
        eta: probability of trying a retrieval per forward (the paper's eta).
        position: where the U-Net is cut; that many up-resnets still run on a hit.
        grids: the table's grids, finest first.
        memory_budget: bytes of the table; a string such as ``"256MiB"`` is converted. None with ``capacity``; with
            neither, 256 MiB.
        capacity: entries of the table, in the place of ``memory_budget``.
        mode, match, queue_length, num_buckets, min_similarity: as in :class:`hash3d_cuda.Hash3DConfig`.
        aggregation: how candidates become one feature, ``Hash3DConfig``'s ``weighting`` (here that is the gradient's).
        seed: everything random follows from it.
        device: where scene and prior live.
        checkpoint_every: steps between checkpoints.
        turntable_frames, turntable_size: the written animation, frames and pixels per side.
    """

    steps: int = 400
    views_per_step: int = 2
    scene: str = "voxels"
    scene_size: int | None = None
    lr_scale: float = 1.0
    lr_end: float = 0.3
    schedule: str = "annealed"
    t_high: float = 0.98
    t_low: float = 0.30
    guidance_scale: float = 2.0
    weighting: str = "x0"
    reference_weight: float = 1.0
    cache: bool = True
    eta: float = 0.1
    position: int = 2
    grids: tuple[Grid, ...] = PAPER_GRIDS
    memory_budget: int | None = None
    capacity: int | None = None
    mode: str = "feature"
    match: str = "cell"
    aggregation: str = "softmax"
    queue_length: int = 3
    num_buckets: int = 100_003
    min_similarity: float | None = None
    seed: int = 0
    device: str = "cpu"
    checkpoint_every: int = 100
    turntable_frames: int = 48
    turntable_size: int = 192

    def __post_init__(self) -> None:
        """Validates every field; raises ValueError or TypeError naming the one that is wrong."""
        for name in ("steps", "views_per_step", "checkpoint_every", "turntable_frames"):
            self._set(name, check_int(name, getattr(self, name), 1, 10**7))
        self._set("turntable_size", check_int("turntable_size", self.turntable_size, 16, 4096))
        if self.scene_size is not None:
            self._set("scene_size", check_int("scene_size", self.scene_size, 4, 10**7))
        self._set("position", check_int("position", self.position, 1, 64))
        self._set("seed", check_int("seed", self.seed, 0, 2**63 - 1))
        self._set("lr_scale", check_positive("lr_scale", self.lr_scale))
        for name in ("lr_end", "t_high", "t_low", "eta"):
            self._set(name, check_real(name, getattr(self, name), 0.0, 1.0))
        for name in ("guidance_scale", "reference_weight"):
            self._set(name, check_real(name, getattr(self, name), 0.0))
        if self.t_low > self.t_high:
            fail(ValueError, "t_low", f"at most t_high={self.t_high}", self.t_low, "swap them")
        for name, choices in (("scene", SCENES), ("schedule", SCHEDULES), ("weighting", WEIGHTINGS)):
            check_choice(name, getattr(self, name), choices)
        if not isinstance(self.cache, bool):
            fail(TypeError, "cache", "True or False", self.cache, "pass a bool")
        self._set("grids", as_grids(self.grids))
        self._check_cache()
        self._set("device", str(check_device("device", self.device)))

    def _check_cache(self) -> None:
        """The options that go to the cache as they are."""
        if self.capacity is not None:
            if self.memory_budget is not None:
                fail(ValueError, "capacity", "no capacity beside memory_budget", self.capacity, "give one of the two")
            self._set("capacity", check_int("capacity", self.capacity, 1))
        else:
            budget = DEFAULT_BUDGET if self.memory_budget is None else self.memory_budget
            self._set("memory_budget", parse_bytes("memory_budget", budget))
        check_choice("mode", self.mode, MODES)
        check_choice("match", self.match, MATCHES)
        check_choice("aggregation", self.aggregation, AGGREGATIONS)
        self._set("queue_length", check_int("queue_length", self.queue_length, 1))
        self._set("num_buckets", check_int("num_buckets", self.num_buckets, 1))
        if self.min_similarity is not None:
            self._set("min_similarity", check_real("min_similarity", self.min_similarity, -1.0, 1.0))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; :meth:`from_dict` reads them back."""
        return asdict(self) | {"grids": [list(grid.sizes) for grid in self.grids]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerateSettings:
        """Settings from :meth:`as_dict`; raises ValueError for a field this version does not know."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"settings: unknown {', '.join(unknown)}; they were written by another version")
        return cls(**values)

    def differences(self, other: GenerateSettings) -> list[str]:
        """Names of the fields in which ``other`` differs and that change the result."""
        harmless = {"device", "checkpoint_every", "turntable_frames", "turntable_size"}
        names = [field.name for field in fields(self) if field.name not in harmless]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def as_grids(grids: Sequence[Grid | Sequence[float]]) -> tuple[Grid, ...]:
    """One or more grids, finest first; four numbers stand for a :class:`Grid`."""
    expected = "one or more grids of four cell sizes, finest first"
    if isinstance(grids, (str, Grid)) or not isinstance(grids, Sequence):
        fail(TypeError, "grids", expected, grids, "pass a sequence such as hash3d_cuda.PAPER_GRIDS")
    if not grids or any(not isinstance(g, Grid) and len(g) != 4 for g in grids):
        fail(ValueError, "grids", expected, grids, "give elevation, azimuth, radius and timestep for each")
    return tuple(grid if isinstance(grid, Grid) else Grid(*map(float, grid)) for grid in grids)


def parse_grids(text: str) -> tuple[Grid, ...]:
    """Grids from a command line: ``"paper"``, ``"pose"``, or cell sizes such as ``"10,10,.1,10;30,30,.2,100"``, finest
    first."""
    if (name := text.strip().lower()) in NAMED_GRIDS:
        return NAMED_GRIDS[name]
    try:
        sizes = [[float(number) for number in grid.split(",")] for grid in text.strip().strip(";").split(";")]
    except ValueError:
        fail(
            ValueError,
            "grids",
            '"paper", "pose" or four numbers per grid, ";" between grids',
            text,
            'try "30,30,.2,100"',
        )
    return as_grids(sizes)
