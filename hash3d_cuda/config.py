"""Options of the cache under a diffusers U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .checks import check_choice, check_int, check_real, fail, parse_bytes
from .keys import PAPER_GRIDS, Grid
from .options import TableOptions
from .rows import Rows, check_rows

MODES = ("feature", "noise")
DECIDERS = ("host", "device")
DEFAULT_MEMORY_BUDGET = "2GiB"
DEFAULT_AUDIT = 0.05
POLICIES = ("max_age", "max_change", "target_x", "target_quality", "audit")
"""Options that say what of the table is served, and how often; all None by default."""
# Handed to the table as they are.
_TABLE_OPTIONS = (
    "grids",
    "num_buckets",
    "queue_length",
    "match",
    "weighting",
    "similarity_decay",
    "initial_similarity",
    "min_similarity",
    "azimuth_period",
)


def _sampling_options(interval: int) -> dict[str, Any]:
    """What ``interval`` demands: no coin, no threshold, the batch as one item, and steps 0 to ``interval`` - 1 in one
    cell, ``interval`` to 2 ``interval`` - 1 in the next."""
    grids = (Grid(1.0, 1.0, 1.0, interval),)
    kept = dict.fromkeys(("min_similarity", "host_budget", *POLICIES))
    fixed = {**kept, "eta": 1.0, "groups": 1, "decide": "host", "match": "cell"}
    return {**fixed, "grids": grids}


@dataclass
class Hash3DConfig:
    """What :func:`hash3d_cuda.apply_hash3d` is told. Everything has a default; all is validated at once.

    Attributes:
        eta: probability, per forward, that a retrieval is tried (the paper's section 3.2). The paper and its released
            code use 0.1 to 0.5; time saved grows with it.
        position: k, the number of up-resnets that still run on a hit, 1 to 12 for SD and Zero123, 1 to 9 for SDXL.
            2 is the paper's cut. Smaller is faster, and reuses more.
        groups: rows of the batch that belong to one item (view): 2 under classifier-free guidance, 4 with perp-neg.
        rows: how the rows lie. ``"group-major"``: ``cat([x] * groups)``; ``"item-major"``: an item's rows are
            neighbours; ``"perp-neg"``: text B, uncond B, then the negatives of item 0, of item 1, ... Or a callable
            ``(B, groups) -> [B, groups]`` row numbers, or such a matrix for one fixed B.
        mode: ``"feature"`` caches the activation at the cut; ``"noise"`` the U-Net's output (the paper's ablation).
        capacity: entries, or ``memory_budget``: bytes or a string such as ``"2GiB"``. At most one of the two; with
            neither, the budget is 2 GiB. It is allocated at the first forward and never grows.
        host_budget: bytes of host memory (a string such as ``"32GiB"``) for a second tier, from which entries that left
            the GPU come back; see :mod:`hash3d_cuda.host_tier` and :meth:`Hash3DCache.prefetch`. None: no such tier.
        max_conditions: how many condition ids are remembered side by side; each gets an equal share of the memory.
            With more in turn than that, the one not used for longest is forgotten. 1: a change forgets everything.
        max_age: forwards; an entry is served in so many forwards after the one that stored it, and then computed anew.
            None: until it leaves the table. See :mod:`hash3d_cuda.freshness`, also for the next one.
        max_change: an item is served only where the head's output, averaged over space, changed by at most this share
            since the entry was stored (as FirstBlockCache measures it). None: whatever it did. On a GPU the decision
            is waited for, and counted in ``stats().host_syncs``.
        target_x: share of the items to be served, 0 to 1: ``eta`` is where it starts, and then follows what was served.
            None: ``eta`` stays.
        target_quality: 1 less the relative error of the U-Net's output that is allowed on average over all items:
            ``eta`` is moved until audits find that, see :mod:`hash3d_cuda.control`. Not beside ``target_x``.
        audit: share of the forwards that are audited: looked up, computed all the same, and the two outputs compared.
            None: 0.05 with ``target_quality``, else none.
        seed: of the coin, which is the cache's own: global random states are neither read nor changed.
        decide: ``"host"``: hit or miss is decided on the host, from poses it knows. ``"device"``: on a GPU, from poses
            and timesteps that may lie there, in one CUDA graph per forward; see "Decisions on the device" in the docs.
        strict: refuse poses and timesteps that lie on a GPU, instead of copying them (``stats().host_syncs``).
        compile: compile head, deep and tail with ``torch.compile(fullgraph=True)``; a dict is handed to it.
        process_group: a ``torch.distributed`` group whose ranks call the U-Net in step, each with its own views: what
            one of them computes is stored by all, so that their tables stay the same; see "Several GPUs and machines"
            in the docs. None: this process keeps to itself.
        feature_dtype: of the stored features; None keeps the feature's own, which makes a repeat exact. int8 and
            float8_e4m3fn take half of float16's memory, see :class:`hash3d_cuda.HashTable`.
        interval: for a sampler's runs instead of views: every ``interval``-th step is computed in full. Set by
            :meth:`every`, which sets what must go with it.
        grids: as in :class:`hash3d_cuda.HashTable`, like num_buckets, queue_length, match, weighting, similarity_decay,
            initial_similarity, min_similarity and azimuth_period.

    Raises:
        TypeError, ValueError: naming the option, what was expected, what came, and the remedy.
    """

    eta: float = 0.1
    position: int = 2
    groups: int = 2
    rows: Rows = "group-major"
    mode: str = "feature"
    memory_budget: int | str | None = None
    capacity: int | None = None
    host_budget: int | str | None = None
    max_conditions: int = 1
    max_age: int | None = None
    max_change: float | None = None
    target_x: float | None = None
    target_quality: float | None = None
    audit: float | None = None
    seed: int = 0
    decide: str = "host"
    strict: bool = False
    compile: bool | dict[str, Any] = False
    grids: Sequence[Grid] = PAPER_GRIDS
    num_buckets: int = 100_003
    queue_length: int = 3
    match: str = "cell"
    weighting: str = "softmax"
    similarity_decay: float = 0.9
    initial_similarity: float = 1.0
    min_similarity: float | None = None
    azimuth_period: float | None = 360.0
    feature_dtype: torch.dtype | None = None
    process_group: Any = None
    interval: int | None = None

    @classmethod
    def every(cls, interval: int, position: int = 2, **options: Any) -> Hash3DConfig:
        """For ``with cache.sampling():`` around a diffusers pipeline: of a run's steps 0, ``interval``, 2 ``interval``,
        ... are computed in full, those between reuse the feature of the last full one. This is DeepCache (Ma et al.
        2024) with uniform steps; its branch b is ``position`` b + 1. The table is one cell of ``interval`` steps.

        Args:
            interval: 1 or more; 1 reuses nothing.
            position: k, see above.
            **options: those that do not say what is reused: mode, max_conditions, capacity or memory_budget, compile,
                feature_dtype, strict and the like.

        Raises:
            TypeError, ValueError: naming the option.
        """
        interval = check_int("interval", interval, 1)
        if options.get("capacity") is None and options.get("memory_budget") is None:
            options["capacity"] = options.get("max_conditions", 1)  # one entry each: the last full step's
        preset = {**_sampling_options(interval), "num_buckets": 1, "queue_length": 1}
        return cls(interval=interval, position=position, **{**preset, **options})

    def __post_init__(self) -> None:
        self.eta = check_real("eta", self.eta, 0.0, 1.0)
        self.position = check_int("position", self.position, 1)
        self.groups = check_int("groups", self.groups, 1)
        self.max_conditions = check_int("max_conditions", self.max_conditions, 1)
        self.seed = check_int("seed", self.seed, 0)
        self._check_freshness()
        check_choice("mode", self.mode, MODES)
        check_choice("decide", self.decide, DECIDERS)
        for name, kinds in (("strict", bool), ("compile", (bool, dict))):
            if not isinstance(getattr(self, name), kinds):
                fail(TypeError, name, "True or False", getattr(self, name), f"pass {name}=True or leave it out")
        if self.decide == "device":
            self._check_device_options()
        if self.process_group is not None:
            self._check_process_group()
        check_rows(self.rows, self.groups)
        if isinstance(self.rows, str) and self.rows == "perp-neg" and self.groups < 3:
            fail(ValueError, "groups", 'at least 3 with rows="perp-neg"', self.groups, "pass groups=4")
        if self.memory_budget is None and self.capacity is None:
            self.memory_budget = DEFAULT_MEMORY_BUDGET
        if self.capacity is not None and check_int("capacity", self.capacity, 1) < self.max_conditions:
            expected = f"at least max_conditions ({self.max_conditions}), which share it"
            fail(ValueError, "capacity", expected, self.capacity, "raise it, or lower max_conditions")
        self._check_host_budget()
        arguments = self.table_arguments(torch.float32, torch.device("cpu"))
        self.grids = TableOptions.build((1,), (1,), **arguments).grids
        if self.interval is not None:
            self.interval = check_int("interval", self.interval, 1)
            self._check_sampling_options(self.interval)

    def _check_sampling_options(self, interval: int) -> None:
        """What would have other steps computed than each ``interval``-th."""
        for name, wanted in _sampling_options(interval).items():
            if getattr(self, name) != wanted:
                remedy = f"use Hash3DConfig.every({interval}, ...) and leave {name} out"
                fail(ValueError, name, f"{wanted!r} with interval={interval}", getattr(self, name), remedy)

    def _check_process_group(self) -> None:
        from .distributed.group import check_group

        check_group("process_group", self.process_group)
        if self.decide == "device":
            expected = '"host" with a process_group: how much there is to exchange must be known to the host'
            fail(ValueError, "decide", expected, self.decide, 'pass decide="host"')
        for name in ("max_change", "target_x", "target_quality", "audit", "interval"):
            if getattr(self, name) is not None:
                expected = "None with a process_group: ranks see other inputs, and would decide differently"
                fail(ValueError, name, expected, getattr(self, name), "leave it out")

    def _check_freshness(self) -> None:
        """What says when an entry may be served, and how often it is tried."""
        if self.max_age is not None:
            self.max_age = check_int("max_age", self.max_age, 1)
        if self.max_change is not None:
            self.max_change = check_real("max_change", self.max_change, 0.0)
            if self.mode != "feature":
                expected = f"None with mode={self.mode!r}, where no head runs"
                fail(ValueError, "max_change", expected, self.max_change, 'leave it out, or pass mode="feature"')
        for name in ("target_x", "target_quality", "audit"):
            if getattr(self, name) is not None:
                setattr(self, name, check_real(name, getattr(self, name), 0.0, 1.0))
        if self.target_quality is not None:
            self._check_target_quality(self.target_quality)

    def _check_target_quality(self, target: float) -> None:
        """What ``target_quality`` cannot go with."""
        if target == 1.0:
            fail(ValueError, "target_quality", "less than 1, which nothing that is served has", target, "try 0.95")
        if self.target_x is not None:
            expected = "None beside target_x: both move eta"
            fail(ValueError, "target_quality", expected, target, "leave one of them out")
        if self.audit == 0.0:
            fail(ValueError, "audit", "more than 0 with target_quality", self.audit, "leave it out: it is 0.05 then")

    @property
    def audit_share(self) -> float | None:
        """``audit``, or its default where one is needed."""
        return DEFAULT_AUDIT if self.audit is None and self.target_quality is not None else self.audit

    def _check_host_budget(self) -> None:
        if self.host_budget is None:
            return
        parse_bytes("host_budget", self.host_budget)
        if self.min_similarity is not None:
            expected = "None with a host_budget: whether an item hits would depend on features on the device"
            fail(ValueError, "min_similarity", expected, self.min_similarity, "leave one of the two out")
        if self.process_group is not None:
            expected = "None with a process_group, under which the tier has not been tried"
            fail(ValueError, "host_budget", expected, self.host_budget, "leave one of the two out")

    def host_share(self) -> int | None:
        """Bytes of host memory behind one condition's table; None without ``host_budget``."""
        return None if self.host_budget is None else parse_bytes("host_budget", self.host_budget) // self.max_conditions

    def _check_device_options(self) -> None:
        """What cannot go into one graph with a decision in it."""
        for name in ("host_budget", *POLICIES):
            if getattr(self, name) is not None:
                expected = 'None with decide="device", where the host does not know what is served'
                fail(ValueError, name, expected, getattr(self, name), 'leave it out, or pass decide="host"')
        if self.mode != "feature":
            fail(ValueError, "decide", '"host" with mode="noise"', self.decide, 'pass decide="host" or mode="feature"')
        mode = self.compile.get("mode") if isinstance(self.compile, dict) else None
        if mode in ("reduce-overhead", "max-autotune"):
            expected = f'"host" with compile mode {mode!r}, which makes CUDA graphs of its own'
            fail(ValueError, "decide", expected, self.decide, 'pass decide="host" or another compile mode')

    def table_arguments(self, feature_dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        """The keyword arguments of one condition's :class:`hash3d_cuda.HashTable`, its share of the memory included.
        ``feature_dtype`` is the feature's own."""
        share: dict[str, int | None] = {"capacity": None, "memory_budget": None}
        if self.memory_budget is not None:
            share["memory_budget"] = parse_bytes("memory_budget", self.memory_budget) // self.max_conditions
        if self.capacity is not None:
            share["capacity"] = check_int("capacity", self.capacity, 1) // self.max_conditions
        return {
            **{name: getattr(self, name) for name in _TABLE_OPTIONS},
            **share,
            "feature_dtype": feature_dtype if self.feature_dtype is None else self.feature_dtype,
            "device": device,
        }
