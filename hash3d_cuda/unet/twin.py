"""A model's own forward on other blocks: the code between the blocks is the model's, not a copy of it.

The model itself is not touched, so other threads may run it meanwhile: the forward of its class is called on an object
with the same attributes, in which a list of blocks is another one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from .adapter import Adapter, Call, SplitModel, output_tensor, without_return_dict


class BlockArguments(NamedTuple):
    """What a block is given besides the running sample, for ``R`` rows."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class StandIn:
    """In the place of a block: runs ``function`` instead, and has the block's attributes."""

    def __init__(self, function: Callable[..., Any], block: Any = None) -> None:
        self._function = function
        self._block = block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_block"], name)


def recording(block: nn.Module, outputs: list[Any]) -> StandIn:
    """Runs ``block`` and keeps its outputs."""

    def run(*args: Any, **kwargs: Any) -> Any:
        outputs.append(block(*args, **kwargs))
        return outputs[-1]

    return StandIn(run, block)


def answering(value: Any, block: Any = None) -> StandIn:
    """Returns ``value``, whatever it is given."""
    return StandIn(lambda *args, **kwargs: value, block)


def stopping(block: Any = None) -> StandIn:
    """Ends the forward; :func:`run_until_stop` returns what it was given."""
    return StandIn(_stop, block)


def run_on(model: nn.Module, stand_ins: dict[str, Any], call: Call) -> Tensor:
    """The forward of ``model`` with ``stand_ins`` in the place of its attributes of that name."""
    twin = object.__new__(type(model))
    twin.__dict__.update(vars(model))
    twin.__dict__.pop("forward", None)
    twin.__dict__.update(stand_ins)  # an attribute of the object comes before a submodule of that name
    return output_tensor(type(model).forward(twin, **without_return_dict(call)))


def run_until_stop(model: nn.Module, stand_ins: dict[str, Any], call: Call) -> BlockArguments:
    """The same up to a :func:`stopping` stand-in; returns the arguments that reached it."""
    try:
        run_on(model, stand_ins, call)
    except _Stopped as stopped:
        return stopped.arguments
    raise RuntimeError(f"expected {type(model).__name__}.forward to run its blocks in order, got one that did not")


class TwinAdapter(Adapter):
    """An adapter by way of :func:`run_on`. As nothing guarantees what a forward of an unknown class does between its
    blocks, the split is compared with it once, at the first call that would be cached: if they differ, or the split
    fails, that model always runs plain."""

    _split: SplitModel | None = None
    _agreed: dict[bool, bool] = {}  # noqa: RUF012 - never written to: by whether the model was in training mode

    def split(self, position: int) -> SplitModel:
        self._split, self._agreed = self.cut(position), {}
        return self._split

    def cut(self, position: int) -> SplitModel:
        """What ``split`` returns."""
        raise NotImplementedError

    def why_plain(self, call: Call) -> str | None:
        training = self.model.training
        if self._split is not None and training not in self._agreed:
            agrees = self._agrees(call)
            if agrees is not None:
                self._agreed[training] = agrees
        return None if self._agreed.get(training, True) else "wiring"

    def _agrees(self, call: Call) -> bool | None:
        """Whether the split answers as the model does; None if nothing can be told, as no number is finite or all are 0
        (ldm's last layer starts so). The random state is left alone, and dropout is the same for both."""
        devices = [call.sample.device] if call.sample.is_cuda else []
        with torch.random.fork_rng(devices):
            expected = self.run(call).float()
        finite = expected.isfinite()
        if not expected[finite].any():
            return None
        try:
            with torch.random.fork_rng(devices):
                hidden, skips, conditioning = self._split.head(*self.inputs(call, None))
                found = self._split.tail(self._split.deep(hidden, conditioning), skips, conditioning).float()
        except Exception:  # whatever it is, the plain model does not stumble over it
            return False
        if found.shape != expected.shape or not torch.equal(found.isfinite(), finite):
            return False
        error = (found - expected)[finite].abs().max()
        return bool(error <= 1e-2 * expected[finite].abs().max())


class _Stopped(BaseException):
    """No Exception: a forward's own ``except`` must not catch it."""

    def __init__(self, arguments: BlockArguments) -> None:
        super().__init__()
        self.arguments = arguments


def _stop(*args: Any, **kwargs: Any) -> NoReturn:
    raise _Stopped(BlockArguments(args, kwargs))
