"""What the cache needs to know of a model, and which models are known: the protocol of an adapter.

A split model is three steps, called for every forward inside ``views``:

    hidden, skips, conditioning = head(*inputs)        all rows, hit or miss
    feature = deep(hidden, conditioning)               rows that miss; the feature is what is cached
    output = tail(feature, skips, conditioning)        all rows

For R rows: ``hidden`` is a tensor ``[R, ...]``; ``feature`` is ``[R, *feature_shape]``, of any shape that is the same
for every call of one sample shape; ``output`` is the model's ``[R, out_channels, ...]``. ``skips`` and ``conditioning``
are whatever the steps hand on. Tensors in ``conditioning`` (in nested tuples, lists and dicts) either have the rows
first, or are shared by all of them: of the former, ``deep`` may be given a subset of rows.
"""

from __future__ import annotations

import contextlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor, nn

from ..checks import fail
from .bound_call import BoundCall, is_taken_whole
from .call import UNetCall

Call = UNetCall | BoundCall


class SplitModel(Protocol):
    """A model cut at one position; see this module's text. ``cut_blocks`` are blocks of which only a part may run."""

    cut_blocks: Sequence[nn.Module]

    def head(self, *inputs: Any) -> tuple[Tensor, Any, Any]: ...
    def deep(self, hidden: Tensor, conditioning: Any) -> Tensor: ...
    def tail(self, feature: Tensor, skips: Any, conditioning: Any) -> Tensor: ...


class Adapter(ABC):
    """A kind of model that can be split. Subclass it for a model that nobody foresaw, and see
    :func:`register_adapter`.

    Three methods must be written: ``fits``, ``count_positions`` and ``split``. The rest has defaults for a model whose
    forward takes the noisy sample first, takes the timestep as ``timestep``, ``timesteps`` or ``t``, and returns a
    tensor, a tuple that starts with it, or an object with a ``sample``.

    Attributes:
        looked_for: what ``fits`` looks for, in words, for the error when no adapter fits.
        compiles: whether the three steps can be given to ``torch.compile(fullgraph=True)``.
    """

    looked_for: ClassVar[str]
    compiles: ClassVar[bool] = False

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @classmethod
    @abstractmethod
    def fits(cls, model: nn.Module) -> bool:
        """Whether this adapter is for ``model``: by its structure, or by its class."""

    @abstractmethod
    def count_positions(self) -> int:
        """The number of positions: k runs from 1, of which a hit costs least, to this.

        Raises:
            TypeError: the model cannot be cut after all, naming what is in the way.
        """

    @abstractmethod
    def split(self, position: int) -> SplitModel:
        """The model cut at ``position``; asked for again when its modules were exchanged."""

    @property
    def forward(self) -> Callable[..., Any]:
        """The function that the split stands for; what was patched over it is not the model's own."""
        return type(self.model).forward

    @property
    def latent_channels(self) -> int:
        """How many of the sample's first channels are noisy: those of the output."""
        config = getattr(self.model, "config", None)
        channels = getattr(self.model, "out_channels", getattr(config, "out_channels", None))
        if not isinstance(channels, int):
            remedy = "override latent_channels in the adapter"
            fail(TypeError, "model", "an attribute out_channels", type(self.model).__name__, remedy)
        return channels

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """A call of the model's forward, by the names of its arguments.

        Raises:
            TypeError: there are arguments that do not fit.
        """
        return BoundCall.bind(self.forward, args, kwargs)

    def sample_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The sample of a call that perhaps cannot be bound; None if there is none."""
        if args:
            return args[0]
        return kwargs.get(next(iter(list(inspect.signature(self.forward).parameters)[1:]), ""))

    def why_plain(self, call: Call) -> str | None:
        """Why this call must go to the plain model (a key of the hook's reasons, such as "arguments"), or None."""
        return None

    def rows_at_once(self, call: Call) -> int:
        """How many neighbouring rows must stay together: frames that attend to each other."""
        return 1

    def takes_rows(self, call: Call, conditioning: Any) -> bool:
        """Whether ``deep`` may be given some rows only; else it runs for all, and its result is taken apart."""
        return is_taken_whole(conditioning, len(call.sample))

    def during(self, call: Call) -> contextlib.AbstractContextManager[Any]:
        """What surrounds the three steps of a call; its value goes to ``inputs``."""
        return contextlib.nullcontext()

    def inputs(self, call: Call, entered: Any) -> tuple[Any, ...]:
        """The arguments of ``head``: the call."""
        return (call,)

    @property
    def keeps_made(self) -> bool:
        """Whether ``head`` takes, after its inputs, a dict of what it made of conditions that do not change in a run:
        empty at the first step, to be filled."""
        return False

    def run(self, call: Call) -> Tensor:
        """The model's own forward."""
        return output_tensor(self.forward(self.model, **without_return_dict(call)))

    def wrap(self, output: Tensor, call: Call) -> Any:
        """``output`` as the model's forward returns it."""
        return output


Kind = TypeVar("Kind", bound=type[Adapter])
_adapters: list[type[Adapter]] = []


def register_adapter(kind: Kind) -> Kind:
    """Makes ``apply_hash3d`` know another kind of model; usable as a decorator. The one registered last is asked first.

    Raises:
        TypeError: ``kind`` is not a subclass of :class:`Adapter` with all that is abstract written.
    """
    if not (isinstance(kind, type) and issubclass(kind, Adapter)) or inspect.isabstract(kind):
        remedy = "derive from hash3d_cuda.unet.Adapter and write fits, count_positions and split"
        fail(TypeError, "kind", "a subclass of Adapter with its abstract methods written", kind, remedy)
    if not isinstance(getattr(kind, "looked_for", None), str):
        remedy = 'say what fits() looks for: looked_for = "a module with ..."'
        fail(TypeError, "kind", "an Adapter with the text looked_for", kind, remedy)
    _adapters.insert(0, kind)
    return kind


def find_adapter(model: Any) -> Adapter:
    """The adapter for ``model``.

    Raises:
        TypeError: none fits; the message says what was looked for.
    """
    compiled = isinstance(model, nn.Module) and "_orig_mod" in model._modules  # it has all attributes of the inner one
    if isinstance(model, nn.Module) and not compiled:
        for kind in _adapters:
            if kind.fits(model):
                return kind(model)
    inner = _find_inner(model)
    remedy = (
        f"pass {inner}, which an adapter fits"
        if inner
        else "pass the plain model (pipe.unet; unwrap a compiled one with ._orig_mod), or register an adapter for it"
    )
    fail(TypeError, "unet", "; or ".join(kind.looked_for for kind in _adapters), type(model).__name__, remedy)


def output_tensor(output: Any) -> Tensor:
    """The tensor in what a forward returned."""
    if isinstance(output, Tensor):
        return output
    return output[0] if isinstance(output, tuple) else output.sample


def without_return_dict(call: Call) -> dict[str, Any]:
    """The arguments of a call whose output is to be a plain one."""
    kwargs = call.as_kwargs()
    return {**kwargs, "return_dict": False} if "return_dict" in kwargs else kwargs


def _find_inner(model: Any) -> str:
    """Where in a wrapper (a pipeline, ldm's LatentDiffusion) lies a model that an adapter fits, as an expression."""
    for path in ("unet", "transformer", "_orig_mod", "module", "diffusion_model", "model.diffusion_model"):
        inner = model
        for name in path.split("."):
            inner = getattr(inner, name, None)
        if isinstance(inner, nn.Module) and any(kind.fits(inner) for kind in _adapters):
            return f"its .{path}"
    return ""
