"""The cache's options that decide what is predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hash3d_cuda.checks import DTYPE_NAMES, check_choice, check_int, check_real, parse_bytes
from hash3d_cuda.config import DEFAULT_MEMORY_BUDGET
from hash3d_cuda.keys import PAPER_GRIDS, Grid

UNLIMITED = "unlimited"


@dataclass(frozen=True)
class CacheSetting:
    """The cache's options that decide what is predicted; see :class:`hash3d_cuda.Hash3DConfig`.

    ``memory_budget`` may be ``"unlimited"``, which holds every view of the run on the device, beside a host tier too;
    ``capacity``, in entries, takes its place when given. ``host_budget``: of a second tier, see
    :mod:`hash3d_cuda.host_tier`. ``feature_dtype`` is a name such as ``"int8"``; None: float16, float32 for the shipped
    prior. ``timestep_first``: see :func:`hash3d_cuda.plan.simulate.simulate`.
    """

    eta: float = 0.1
    position: int = 2
    groups: int = 2
    grids: tuple[Grid, ...] = PAPER_GRIDS
    num_buckets: int = 100_003
    queue_length: int = 3
    match: str = "cell"
    memory_budget: int | str = DEFAULT_MEMORY_BUDGET
    capacity: int | None = None
    host_budget: int | str | None = None
    feature_dtype: str | None = None
    azimuth_period: float | None = 360.0
    timestep_first: bool = False
    max_age: int | None = None
    target_x: float | None = None
    audit: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_real("eta", self.eta, 0.0, 1.0)
        check_int("position", self.position, 1)
        check_int("groups", self.groups, 1)
        check_int("seed", self.seed, 0)
        if self.feature_dtype is not None:
            check_choice("feature_dtype", self.feature_dtype, tuple(DTYPE_NAMES))
        if self.memory_budget != UNLIMITED:
            parse_bytes("memory_budget", self.memory_budget)
        if self.host_budget is not None:
            parse_bytes("host_budget", self.host_budget)
        check_policies(self.max_age, self.target_x, self.audit)

    @property
    def indexing(self) -> dict[str, Any]:
        """The keyword arguments of :func:`simulate` beside eta, capacity and seed."""
        names = (
            "grids", "num_buckets", "queue_length", "match", "azimuth_period", "timestep_first",
            "max_age", "target_x", "audit",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


def setting_of(settings: Any) -> CacheSetting:
    """The cache's options in a :class:`hash3d_cuda.sds.settings.GenerateSettings`."""
    names = (
        "position", "grids", "memory_budget", "capacity", "host_budget", "match", "queue_length", "num_buckets",
        "feature_dtype", "seed", "max_age", "target_x", "audit",
    )  # fmt: skip
    found = {**{name: getattr(settings, name, None) for name in names}, **settings.room()}
    values = {name: value for name, value in found.items() if value is not None}
    return CacheSetting(eta=settings.eta if settings.cache else 0.0, **values)


def check_policies(max_age: Any, target_x: Any, audit: Any) -> None:
    """Raises TypeError or ValueError where one is not what :class:`hash3d_cuda.Hash3DConfig` takes."""
    if max_age is not None:
        check_int("max_age", max_age, 1)
    for name, share in (("target_x", target_x), ("audit", audit)):
        if share is not None:
            check_real(name, share, 0.0, 1.0)
