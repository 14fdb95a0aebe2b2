"""How the pieces of a device-side forward are run: captured, joined by a conditional node, launched as one graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from . import _C

HOST = 'pass decide="host"'


class Pieces(Protocol):
    """A forward in three pieces on memory that stays in place; see :class:`.device_pieces.DevicePieces`."""

    need: Tensor  # int32 [1] on the device: whether ``body`` is wanted

    def running(self) -> contextlib.AbstractContextManager[Any]:
        """What surrounds the pieces."""

    def keep_for(self, stream: torch.cuda.Stream) -> None:
        """Sees to it that the memory is not given away before work on ``stream`` is done with it."""

    def before(self) -> None: ...
    def body(self) -> None: ...
    def after(self) -> None: ...


class Runner(Protocol):
    """Runs ``before``, ``body`` if ``need`` is not 0 by then, ``after``. It is made once the pieces have run eagerly,
    and serves them until it is stale."""

    def __init__(self, pieces: Pieces, unet: nn.Module) -> None: ...
    def is_stale(self) -> bool: ...
    def launch(self) -> None: ...

    @staticmethod
    def check_machine() -> None:
        """Raises RuntimeError when this build or machine cannot run any pieces."""

    @staticmethod
    def check_sample(sample: Tensor) -> None:
        """Raises ValueError or RuntimeError when pieces cannot run on, or be captured for, this sample."""


class GraphRunner:
    """One CUDA graph for the three pieces.

    Making it waits for the device, as torch does before every capture; launching it does not. The graph holds the
    addresses of the weights, so it is stale when one has moved.
    """

    def __init__(self, pieces: Pieces, unet: nn.Module) -> None:
        self._weights = [*unet.parameters(), *unet.buffers()]
        self._addresses = _addresses(self._weights)
        self._pieces = pieces
        self._device = pieces.need.device
        self._streams: set[int] = set()
        if any(isinstance(module, _DropoutNd) and module.training and module.p > 0 for module in unet.modules()):
            raise RuntimeError(
                f"decide: a graph would repeat its dropout's random numbers; call unet.eval(), or {HOST}"
            )
        if any(map(_is_offloaded, unet.modules())):
            raise RuntimeError(f"decide: the weights are offloaded, and a graph needs them in one place; {HOST}")
        try:
            # torch's graphs keep the memory that their nodes work on; they are never instantiated or replayed.
            with torch.cuda.device(self._device):
                stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
                self._captured = [
                    _capture(piece, pieces, stream, pool) for piece in (pieces.before, pieces.body, pieces.after)
                ]
            before, body, after = (graph.raw_cuda_graph() for graph in self._captured)
            self._joined = _C.JoinedGraph(self._device.index, before, body, after, pieces.need.data_ptr())
        except RuntimeError as error:
            raise RuntimeError(f"decide: this U-Net's forward cannot become a CUDA graph; {HOST}: {error}") from error

    @staticmethod
    def check_machine() -> None:
        if not hasattr(torch.cuda.CUDAGraph, "raw_cuda_graph"):
            _refuse("a torch whose captured CUDA graphs can be kept (2.8 or later)", f"torch {torch.__version__}")
        if not torch.cuda.is_available():
            _refuse("a CUDA device", "none that torch can use")
        missing = _C.missing_for_joins()
        if missing:
            _refuse("conditional nodes in CUDA graphs", missing)

    @staticmethod
    def check_sample(sample: Tensor) -> None:
        if sample.device.type != "cuda":
            raise ValueError(f'decide: with "device", expected a sample on a CUDA device, got {sample.device}; {HOST}')
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "decide: the forward is a CUDA graph of its own and cannot be captured in another; capture none around "
                f"it, or {HOST}"
            )

    def is_stale(self) -> bool:
        return _addresses(self._weights) != self._addresses

    def launch(self) -> None:
        stream = torch.cuda.current_stream(self._device)
        if stream.cuda_stream not in self._streams:
            self._streams.add(stream.cuda_stream)
            self._pieces.keep_for(stream)
        self._joined.launch(stream.cuda_stream)


def _capture(piece: Any, pieces: Pieces, stream: Any, pool: Any) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with (
        pieces.running(),
        _no_autocast_cache(),
        torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
    ):
        piece()
    return graph


@contextlib.contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Weights that autocast has converted are its own to free: a graph must convert them itself."""
    before = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate brings the module's weights for each call, as other tensors."""
    hook = vars(module).get("_hf_hook")
    return any(getattr(one, "offload", False) for one in (hook, *getattr(hook, "hooks", ())))


def _addresses(weights: list[Tensor]) -> list[int]:
    return [weight.data_ptr() for weight in weights]


def _refuse(expected: str, got: str) -> NoReturn:
    raise RuntimeError(f'decide: with "device", expected {expected}, got: {got}; {HOST}')
