"""The options under ``system.guidance.hash3d``: those of ``Hash3DConfig``, and five of the add-on's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

import hash3d_cuda as h3d
from hash3d_cuda.checks import DTYPE_NAMES

_PATH = "system.guidance.hash3d"
# Not asked for, and why.
_NOT = {
    "groups": "leave it out: the guidance tells it",
    "rows": "leave it out: the guidance tells it",
    "interval": "leave it out: it is for pipelines, whose steps follow each other",
    "process_group": "leave it out: a configuration cannot name one",
}
_TAKEN = {item.name for item in fields(h3d.Hash3DConfig)} - set(_NOT)


@dataclass
class Options:
    """What a configuration file says.

    Attributes:
        enabled: False leaves the guidance as if it had no ``:hash3d``.
        host_timesteps: draw t on the host and write it over the one that the guidance drew on the GPU: from the same
            range, evenly, but other numbers under the same seed. Without it every step waits for the GPU once.
        repair_perp_neg: with perp-neg and more than one view a step, upstream gives the two negative prompts of a view
            the latents and timesteps of others, and the cache stays off; True gives them the view's own.
        checkpoint: whether ``:hash3d-system`` puts the entries into checkpoints: up to the memory budget in each.
        log_every: steps between two lines about hits in the log; 0 is none.
        cache: the rest, as :class:`hash3d_cuda.Hash3DConfig` takes it.
    """

    enabled: bool = True
    host_timesteps: bool = False
    repair_perp_neg: bool = False
    checkpoint: bool = True
    log_every: int = 500
    cache: dict[str, Any] = field(default_factory=dict)


def parse(given: Any) -> Options:
    """``system.guidance.hash3d`` (a mapping, or nothing) as options. All is checked here, before weights are loaded.

    Raises:
        TypeError, ValueError: naming the option.
    """
    if given is not None and not isinstance(given, Mapping):
        _fail(TypeError, "a mapping of options", given, "write options below it, or leave it out")
    plain = {str(name): _plain(value) for name, value in (given or {}).items()}
    own = {item.name for item in fields(Options)} - {"cache"}
    for name in plain:
        if name not in own | _TAKEN:
            expected = f"one of {', '.join(sorted(own | _TAKEN))}"
            _fail(ValueError, expected, name, _NOT.get(name, "correct the name"))
    options = Options(**{name: plain.pop(name) for name in own & set(plain)})
    for name in ("enabled", "host_timesteps", "repair_perp_neg", "checkpoint"):
        if not isinstance(getattr(options, name), bool):
            _fail(TypeError, "true or false", getattr(options, name), "correct it", name)
    if isinstance(options.log_every, bool) or not isinstance(options.log_every, int) or options.log_every < 0:
        _fail(ValueError, "a number of steps, or 0", options.log_every, "correct it", "log_every")
    if plain.get("decide", "host") != "host":
        _fail(ValueError, '"host"', plain["decide"], "leave it out: directions are told apart on the host", "decide")
    options.cache = _typed(plain)
    try:
        h3d.Hash3DConfig(**options.cache)
    except (TypeError, ValueError) as error:  # which begins with the option's name
        raise type(error)(f"{_PATH}.{error}") from None
    return options


def _typed(plain: dict[str, Any]) -> dict[str, Any]:
    """Grids and a dtype from what YAML can say."""
    if isinstance(plain.get("feature_dtype"), str):
        if plain["feature_dtype"] not in DTYPE_NAMES:
            _fail(ValueError, f"one of {', '.join(DTYPE_NAMES)}", plain["feature_dtype"], "choose one", "feature_dtype")
        plain["feature_dtype"] = DTYPE_NAMES[plain["feature_dtype"]]
    if "grids" in plain:
        try:
            plain["grids"] = tuple(h3d.Grid(*sizes) for sizes in plain["grids"])
        except TypeError:
            expected = "a list of grids, each [elevation, azimuth, radius, timestep]"
            _fail(TypeError, expected, plain["grids"], "write [[10, 10, 0.1, 10], [30, 30, 0.2, 30]]", "grids")
    return plain


def _plain(value: Any) -> Any:
    """A value without OmegaConf's containers."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _fail(kind: type[Exception], expected: str, got: Any, remedy: str, name: str = "") -> NoReturn:
    path = _PATH + (f".{name}" if name else "")
    raise kind(f"{path}: expected {expected}, got {got!r}; {remedy}")
