"""The options of a generation, validated once for the library and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from hash3d_cuda.checks import (
    DTYPE_NAMES,
    check_choice,
    check_device,
    check_int,
    check_positive,
    check_real,
    fail,
    parse_bytes,
)
from hash3d_cuda.config import DECIDERS, MODES
from hash3d_cuda.keys import PAPER_GRIDS, Grid
from hash3d_cuda.options import MATCHES
from hash3d_cuda.options import WEIGHTINGS as AGGREGATIONS
from hash3d_cuda.sds.compiled import as_parts

SCENES = ("voxels", "gaussians", "mesh")
SCHEDULES = ("annealed", "uniform")
WEIGHTINGS = ("x0", "dreamfusion", "uniform")
OBJECTIVES = ("sds", "refine")
SHADINGS = ("albedo", "lambert", "textureless", "normal", "random")
# Narrow in pose and open in timestep: under the annealed schedule no timestep comes twice, so the paper's cells of 10
# to 30 timesteps forget a view after some steps.
POSE_GRIDS: tuple[Grid, ...] = (Grid(5.0, 5.0, 0.5, 1000.0), Grid(7.0, 7.0, 0.5, 1000.0), Grid(10.0, 10.0, 0.5, 1000.0))
# One cell around each anchor, open in timestep.
ANCHOR_GRIDS: tuple[Grid, ...] = (Grid(5.0, 5.0, 0.1, 1000.0),)
DEFAULT_BUDGET = 256 * 2**20
NAMED_GRIDS = {"paper": PAPER_GRIDS, "pose": POSE_GRIDS, "anchor": ANCHOR_GRIDS}
SAMPLERS = ("uniform", "anchored")
PRESETS: dict[str, dict[str, Any]] = {"fast": {"sampler": "anchored", "eta": 1.0, "grids": ANCHOR_GRIDS, "position": 4}}
"""Settings by name, for ``GenerateSettings(**PRESETS[name])`` and the command line's ``--preset``."""


@dataclass(frozen=True)
class GenerateSettings:
    """How one object is made.

    Attributes:
        steps: SDS iterations.
        views_per_step: views rendered and denoised per iteration (the items of the U-Net's batch).
        scene: ``"voxels"``, ``"gaussians"`` or ``"mesh"``.
        scene_size: grid cells per side (a mesh's: of the grid it is extracted on), or number of Gaussians; None takes
            the scene's default.
        latent: voxels that hold the prior's latents instead of colours (Latent-NeRF), so that no step encodes.
        render_size: pixels per side that are rendered and then resized to what the prior takes; None: what it takes.
        shading: ``"albedo"``, plain colours; ``"lambert"``, lit; ``"textureless"``, lit and white; ``"normal"``,
            normals as colours; ``"random"``, one of the first three in each step, as DreamFusion does.
        shading_after: share of the steps that come first with albedo alone.
        geometry: False leaves the places of a mesh's vertices alone and changes its colours only.
        lr_scale: multiplies every learning rate of the scene.
        lr_end: the learning rate at the last step as a share of the first; the fall is linear.
        schedule: timesteps ``"annealed"`` from ``t_high`` to ``t_low``, or ``"uniform"`` between them.
        t_high, t_low: noise levels as shares of the diffusion schedule, 0 to 1.
        guidance_scale: classifier-free guidance; 1 is the conditioned prediction alone.
        weighting: w(t) of the gradient, see :func:`hash3d_cuda.sds.guidance.step_weight`.
        t_move: (high, low, from, until): the range of ``"uniform"`` timesteps moves to ``high`` and ``low`` between
            these shares of the run; None leaves it where it is.
        reference_weight: weight of the reference-view loss for pictures.
        sds_weight: weight of the prior's loss.
        second_weight: weight of a second prior's loss (Magic123), 0 for none; it looks at the same views.
        second_guidance_scale: its classifier-free guidance.
        objective: ``"sds"``, or ``"refine"``: the squared distance to pictures that the prior makes of the rendered
            ones by a few denoising steps (DreamGaussian's second stage), starting at the schedule's timestep.
        denoise_stride: timesteps from one denoising step to the next.
        reuse_interval: with ``"refine"``, every so many denoising steps of a view share one cell of timesteps: one runs
            in full and the others reuse its feature, as DeepCache does; ``eta`` and ``grids`` have no say then.
        cache: False leaves the U-Net alone.
        eta: probability of trying a retrieval per forward (the paper's eta).
        position: where the U-Net is cut; that many up-resnets still run on a hit.
        grids: the table's grids, finest first.
        memory_budget: bytes of the table; a string such as ``"256MiB"`` is converted. None with ``capacity``; with
            neither, 256 MiB, or with ``sampler="anchored"`` room for the anchors.
        capacity: entries of the table, in the place of ``memory_budget``.
        host_budget: bytes of host memory for a second tier behind the table, or a string such as ``"32GiB"``; None for
            none. See :mod:`hash3d_cuda.host_tier`.
        mode, match, queue_length, num_buckets, min_similarity: as in :class:`hash3d_cuda.Hash3DConfig`.
        feature_dtype: what the table stores features in, ``"float32"``, ``"float16"``, ``"bfloat16"``, ``"int8"`` or
            ``"fp8"``; None is what the U-Net computes in.
        max_age, max_change: likewise, see :mod:`hash3d_cuda.freshness`.
        target_x, target_quality, audit: likewise, see :mod:`hash3d_cuda.control`.
        sampler: ``"uniform"`` poses, or ``"anchored"``: most views return to where the table holds an entry, see
            :mod:`hash3d_cuda.sds.anchors`. It goes with ``eta=1`` and one grid, such as ``ANCHOR_GRIDS``.
        reuse: with ``"anchored"``, the share of the views that return.
        anchors: how many of the latest anchors views return to. Without ``capacity`` and ``memory_budget`` the table
            has room for these and a step's own, so that no older entry is served.
        jitter: how far in its anchor's cell a view may lie from the anchor, 0 (not at all) to 1 (anywhere).
        fresh_power: 1 spreads fresh views evenly over the run, more saves them for its end.
        first_fresh: at least so many views are all fresh at the start; None: ``anchors``, as far as there are so many.
        fresh_until: the share of the run after which no view is fresh.
        aggregation: how candidates become one feature, ``Hash3DConfig``'s ``weighting`` (here that is the gradient's).
        decide: ``"host"``, or ``"device"``: hit or miss is decided on a GPU, and each call of the U-Net is one CUDA
            graph, as :class:`hash3d_cuda.Hash3DConfig` says. Times of hits are not told apart then.
        compile: parts of a step under ``torch.compile``: names among ``"scene"`` (rendering, voxels only),
            ``"encoder"`` and ``"unet"``, as a sequence or with commas between.
        seed: everything random follows from it.
        device: where scene and prior live.
        checkpoint_every: steps between checkpoints.
        turntable_frames, turntable_size: the written animation, frames and pixels per side.
    """

    steps: int = 400
    views_per_step: int = 2
    scene: str = "voxels"
    scene_size: int | None = None
    latent: bool = False
    render_size: int | None = None
    shading: str = "albedo"
    shading_after: float = 0.0
    geometry: bool = True
    lr_scale: float = 1.0
    lr_end: float = 0.3
    schedule: str = "annealed"
    t_high: float = 0.98
    t_low: float = 0.30
    t_move: tuple[float, float, float, float] | None = None
    guidance_scale: float = 2.0
    weighting: str = "x0"
    reference_weight: float = 1.0
    sds_weight: float = 1.0
    second_weight: float = 0.0
    second_guidance_scale: float = 2.0
    objective: str = "sds"
    denoise_stride: int = 20
    reuse_interval: int = 5
    cache: bool = True
    eta: float = 0.1
    position: int = 2
    grids: tuple[Grid, ...] = PAPER_GRIDS
    memory_budget: int | None = None
    capacity: int | None = None
    host_budget: int | None = None
    mode: str = "feature"
    match: str = "cell"
    aggregation: str = "softmax"
    queue_length: int = 3
    num_buckets: int = 100_003
    min_similarity: float | None = None
    feature_dtype: str | None = None
    max_age: int | None = None
    max_change: float | None = None
    target_x: float | None = None
    target_quality: float | None = None
    audit: float | None = None
    sampler: str = "uniform"
    reuse: float = 0.85
    anchors: int = 120
    jitter: float = 1.0
    fresh_power: float = 1.5
    first_fresh: int | None = None
    fresh_until: float = 1.0
    decide: str = "host"
    compile: tuple[str, ...] = ()
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
        for name in ("lr_scale", "fresh_power"):
            self._set(name, check_positive(name, getattr(self, name)))
        self._set("anchors", check_int("anchors", self.anchors, 1, 10**7))
        if self.first_fresh is not None:
            self._set("first_fresh", check_int("first_fresh", self.first_fresh, 1, 10**7))
        for name in ("denoise_stride", "reuse_interval"):
            self._set(name, check_int(name, getattr(self, name), 1, 10**6))
        if self.render_size is not None:
            self._set("render_size", check_int("render_size", self.render_size, 8, 4096))
        for name in ("lr_end", "t_high", "t_low", "eta", "shading_after", "reuse", "jitter", "fresh_until"):
            self._set(name, check_real(name, getattr(self, name), 0.0, 1.0))
        for name in (
            "guidance_scale", "reference_weight", "sds_weight", "second_weight", "second_guidance_scale",
        ):  # fmt: skip
            self._set(name, check_real(name, getattr(self, name), 0.0))
        if self.t_low > self.t_high:
            fail(ValueError, "t_low", f"at most t_high={self.t_high}", self.t_low, "swap them")
        for name, choices in (
            ("scene", SCENES), ("schedule", SCHEDULES), ("weighting", WEIGHTINGS), ("objective", OBJECTIVES),
            ("shading", SHADINGS), ("sampler", SAMPLERS),
        ):  # fmt: skip
            check_choice(name, getattr(self, name), choices)
        for name in ("cache", "latent", "geometry"):
            if not isinstance(getattr(self, name), bool):
                fail(TypeError, name, "True or False", getattr(self, name), "pass a bool")
        self._check_stage()
        self._set("grids", as_grids(self.grids))
        self._check_cache()
        self._set("device", str(check_device("device", self.device)))
        self._set("compile", as_parts(self.compile))
        self._check_step()

    def _check_stage(self) -> None:
        """What a recipe's stages add, and what does not go together."""
        if self.t_move is not None:
            expected = "four shares (high, low, from, until), each 0 to 1"
            if isinstance(self.t_move, str) or not isinstance(self.t_move, Sequence) or len(self.t_move) != 4:
                fail(ValueError, "t_move", expected, self.t_move, "try (0.8, 0.3, 0.05, 0.2)")
            high, low, start, end = (check_real("t_move", value, 0.0, 1.0) for value in self.t_move)
            if low > high or start > end:
                fail(ValueError, "t_move", f"{expected}, low <= high and from <= until", self.t_move, "swap them")
            self._set("t_move", (high, low, start, end))
        if self.latent and self.scene != "voxels":
            fail(ValueError, "latent", 'scene="voxels" with latent=True', self.scene, "leave one of them away")
        if self.latent and (self.objective != "sds" or self.second_weight):
            fail(ValueError, "latent", "SDS with one prior", self.objective, "leave latent away")

    def _check_step(self) -> None:
        """How a step is run, and what cannot be run so."""
        check_choice("decide", self.decide, DECIDERS)
        if self.decide == "device" and self.cache and self.mode != "feature":
            fail(ValueError, "decide", f'"host" with mode={self.mode!r}', self.decide, "leave one of them away")
        if "scene" in self.compile and self.scene != "voxels":
            expected = f'no "scene" among the parts for scene={self.scene!r}, whose shapes change as it grows'
            fail(ValueError, "compile", expected, self.compile, 'take "scene" out, or scene="voxels"')
        if "encoder" in self.compile and self.latent:
            fail(ValueError, "compile", "no encoder in a latent scene's steps", self.compile, 'take "encoder" out')

    def _check_cache(self) -> None:
        """The options that go to the cache as they are."""
        if self.capacity is not None:
            if self.memory_budget is not None:
                fail(ValueError, "capacity", "no capacity beside memory_budget", self.capacity, "give one of the two")
            self._set("capacity", check_int("capacity", self.capacity, 1))
        elif self.memory_budget is not None:
            self._set("memory_budget", parse_bytes("memory_budget", self.memory_budget))
        if self.host_budget is not None:
            self._set("host_budget", parse_bytes("host_budget", self.host_budget))
            for name, free in (("decide", "host"), ("min_similarity", None)):
                if (got := getattr(self, name)) != free:
                    fail(ValueError, name, f"{free!r} with a host_budget", got, "leave one of the two out")
        check_choice("mode", self.mode, MODES)
        check_choice("match", self.match, MATCHES)
        check_choice("aggregation", self.aggregation, AGGREGATIONS)
        if self.feature_dtype is not None:
            check_choice("feature_dtype", self.feature_dtype, tuple(DTYPE_NAMES))
        self._set("queue_length", check_int("queue_length", self.queue_length, 1))
        self._set("num_buckets", check_int("num_buckets", self.num_buckets, 1))
        if self.min_similarity is not None:
            self._set("min_similarity", check_real("min_similarity", self.min_similarity, -1.0, 1.0))
        if self.max_age is not None:
            self._set("max_age", check_int("max_age", self.max_age, 1))
        if self.max_change is not None:
            self._set("max_change", check_real("max_change", self.max_change, 0.0))
        for name in ("target_x", "target_quality", "audit"):
            if getattr(self, name) is not None:
                self._set(name, check_real(name, getattr(self, name), 0.0, 1.0))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def room(self, tables: int = 1) -> dict[str, int | None]:
        """``capacity`` and ``memory_budget`` of so many tables together, one of them None: as given, or 256 MiB, or
        what the anchored sampler returns to and a step's own."""
        if self.capacity is None and self.memory_budget is None:
            if self.sampler == "uniform":
                return {"capacity": None, "memory_budget": DEFAULT_BUDGET}
            fresh = max(round((1 - self.reuse) * self.steps * self.views_per_step), 1)  # anchors that there will be
            return {"capacity": (min(self.anchors, fresh) + self.views_per_step) * tables, "memory_budget": None}
        return {"capacity": self.capacity, "memory_budget": self.memory_budget}

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
        one, two = ({**vars(settings), **settings.room()} for settings in (self, other))
        return [name for name in names if one[name] != two[name]]


def as_grids(grids: Sequence[Grid | Sequence[float]]) -> tuple[Grid, ...]:
    """One or more grids, finest first; four numbers stand for a :class:`Grid`."""
    expected = "one or more grids of four cell sizes, finest first"
    if isinstance(grids, (str, Grid)) or not isinstance(grids, Sequence):
        fail(TypeError, "grids", expected, grids, "pass a sequence such as hash3d_cuda.PAPER_GRIDS")
    remedy = "give elevation, azimuth, radius and timestep for each"
    if not grids or any(not isinstance(g, Grid) and (not isinstance(g, Sequence) or len(g) != 4) for g in grids):
        fail(ValueError, "grids", expected, grids, remedy)
    try:
        sizes = [grid.sizes if isinstance(grid, Grid) else tuple(map(float, grid)) for grid in grids]
    except (TypeError, ValueError):
        fail(ValueError, "grids", expected, grids, remedy)
    return tuple(Grid(*four) for four in sizes)


def parse_grids(text: str) -> tuple[Grid, ...]:
    """Grids from a command line: ``"paper"``, ``"pose"``, ``"anchor"``, or cell sizes such as
    ``"10,10,.1,10;30,30,.2,100"``, finest first."""
    if (name := text.strip().lower()) in NAMED_GRIDS:
        return NAMED_GRIDS[name]
    try:
        sizes = [[float(number) for number in grid.split(",")] for grid in text.strip().strip(";").split(";")]
    except ValueError:
        fail(
            ValueError,
            "grids",
            '"paper", "pose", "anchor" or four numbers per grid, ";" between grids',
            text,
            'try "30,30,.2,100"',
        )
    return as_grids(sizes)
