"""A GPU that is not there: tensors that say they lie on ``cuda:0`` and compute on the CPU, and a guard that raises
wherever a real GPU would make the host wait.

What counts as waiting, as on a real GPU:

* reading a number (``item``, ``tolist``, ``bool``, ``numpy``, ``cpu``, ``equal``) and every operation whose result's
  size depends on numbers (``nonzero``, ``masked_select``, indexing by a mask, ``unique``);
* a copy to the host, unless it goes to pinned memory with ``non_blocking=True``;
* a copy to the GPU, unless it is ``non_blocking=True`` and either from pinned memory or of at most 64 KiB, which the
  driver takes along with the command. So ``torch.tensor(..., device="cuda")`` waits: it cannot be told not to;
* an index that lies on the host: ``x[[0, 2]]``, ``x[cpu_tensor]``;
* ``torch.cuda.synchronize``, ``Event.synchronize``.

Numbers flow as they would, so that hits, misses and losses are real. Kernels are the CPU's; C++ code that looks at the
device sees a CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

import hash3d_cuda as h3d
from hash3d_cuda import operators

CUDA = torch.device("cuda", 0)
SMALL_COPY = 64 * 1024  # bytes
READS = {"item", "tolist", "numpy", "__array__", "__bool__", "__float__", "__int__", "__index__", "cpu"}
WAITS = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "nonzero_numpy", "argwhere", "masked_select", "_unique",
    "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave.Tensor",
}  # fmt: skip
MAKES_FROM_HOST = {torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor}


class HostWaits(AssertionError):
    """A real GPU would have made the host wait here."""


class GpuTensor(Tensor):
    """Numbers in ``inner``, a CPU tensor, that pretend to lie on a GPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> GpuTensor:
        layout = dict(strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype)
        return Tensor._make_wrapper_subclass(cls, inner.shape, **layout, device="cpu")

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    record_stream = lambda self, stream: None  # noqa: E731
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)

    def __repr__(self) -> str:
        return f"GpuTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        guard = SimulatedCuda.active
        if func.namespace == "hash3d":
            return tree_map(on_gpu, guard.call_table(func, tree_map(off_gpu, args)))
        guard.check(func, args, kwargs)
        result = func(*tree_map(off_gpu, args), **tree_map(off_gpu, kwargs))
        if func is torch.ops.aten.copy_.default and not isinstance(args[0], GpuTensor):
            return args[0]
        return return_and_correct_aliasing(func, args, kwargs, tree_map(on_gpu, result))


def on_gpu(value: Any) -> Any:
    """A CPU tensor as one on the GPU; anything else as it is."""
    return GpuTensor(value) if isinstance(value, Tensor) and not isinstance(value, GpuTensor) else value


def off_gpu(value: Any) -> Any:
    """The numbers of a GPU tensor; anything else as it is."""
    return value.inner if isinstance(value, GpuTensor) else value


class SimulatedCuda(TorchFunctionMode):
    """Within it there is a GPU. It raises :class:`HostWaits` while ``watching``, and counts what it let pass."""

    active: SimulatedCuda

    def __init__(self) -> None:
        super().__init__()
        self.watching = False
        self.copies = {"to device": 0, "to host": 0}
        self._pinned = WeakTensorKeyDictionary()
        self.registered: set[int] = set()  # addresses of memory that was pinned as it lay
        self._twins: dict[int, h3d.HashTable] = {}

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Inside the block nothing may wait."""
        self.watching = True
        try:
            yield
        finally:
            self.watching = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func in (Tensor.to, Tensor.cuda, Tensor.pin_memory) or name in READS:
            return self._move(func, name, args, kwargs)
        if name == "__setitem__" and isinstance(args[0], GpuTensor) and isinstance(args[2], (int, float)):
            args = (args[0], args[1], GpuTensor(torch.tensor(args[2], dtype=args[0].dtype)))  # a kernel's argument
        if kwargs.pop("pin_memory", False):
            result = func(*args, **kwargs)
            self._pinned[result] = True
            return result
        if not is_cuda(kwargs.get("device")):
            return func(*args, **kwargs)
        if func in MAKES_FROM_HOST:
            self._wait(f"torch.{name}(..., device='cuda')")
        kwargs["device"] = "cpu"
        return on_gpu(func(*tree_map(off_gpu, args), **tree_map(off_gpu, kwargs)))

    def check(self, func: Any, args: Any, kwargs: Any) -> None:
        """Raises when the operation would wait, or mixes devices as torch does not allow."""
        name = func._schema.name.removeprefix("aten::")
        full = f"{name}.{func._overloadname}"
        if name in WAITS or full in WAITS:
            self._wait(full)
        if name == "copy_":
            self._copy(args[1], args[0], kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
            return
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            self._index(full, args[0], args[1])
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        mixed = [value for value in tensors if not isinstance(value, GpuTensor) and value.dim() > 0]
        if mixed and not name.startswith("index"):
            raise RuntimeError(
                f"{full}: expected all tensors on cuda:0, got one of shape {list(mixed[0].shape)} on cpu"
            )

    def call_table(self, func: Any, args: Any) -> Any:
        """What the table would answer: a table on the CPU does the work."""
        handle, *rest = args
        if handle not in self._twins:
            table = operators.find(handle)
            options = {name: getattr(table.options, name) for name in table.options.__dataclass_fields__}
            options |= {"device": "cpu", "capacity": table.capacity, "memory_budget": None}
            self._twins[handle] = h3d.HashTable(options.pop("feature_shape"), options.pop("latent_shape"), **options)
        twin = self._twins[handle]
        name = f"{func._schema.name.removeprefix('hash3d::')}.{func._overloadname}"
        if name == "append.default":
            return twin.append(*rest[:3], *rest[5:])
        if name == "query.out":
            result = twin.query(*rest[:2], out=rest[-1])
            return result.hit, result.grid, result.serials, result.weights
        raise NotImplementedError(name)

    def _move(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        value, *rest = args
        gpu = isinstance(value, GpuTensor)
        if name == "pin_memory":
            result = value.clone()
            self._pinned[result] = True
            return result
        if name in READS:
            if not gpu:
                return func(*args, **kwargs)
            self._wait(name)
            return func(value.inner, *rest, **kwargs)
        if name == "cuda":
            rest = [CUDA]
        other = next((item for item in rest if isinstance(item, Tensor)), None)
        if other is not None:
            rest = [other.device, other.dtype, *(item for item in rest if item is not other)]
        place = kwargs.pop("device", None) or next((r for r in rest if isinstance(r, (str, torch.device))), None)
        rest = [item for item in rest if item is not place]
        kind = kwargs.pop("dtype", None) or next((item for item in rest if isinstance(item, torch.dtype)), None)
        flags = [item for item in rest if isinstance(item, bool)]
        non_blocking = kwargs.pop("non_blocking", flags[0] if flags else False)
        crosses = place is not None and is_cuda(place) != gpu
        moved = value if kind is None else Tensor.to(value, dtype=kind)
        if kwargs:
            moved = Tensor.to(moved, **kwargs)  # copy=, memory_format=
        if not crosses:
            return moved
        self._copy(moved, None, non_blocking)
        return Moved.apply(moved)

    def _copy(self, source: Tensor, target: Tensor | None, non_blocking: bool) -> None:
        """A copy from ``source`` to the other side, into ``target`` or new memory."""
        to_host = isinstance(source, GpuTensor)
        if target is not None and isinstance(target, GpuTensor) == to_host:
            return
        host = target if to_host else source
        quick = source.nbytes <= SMALL_COPY and not to_host
        if not (non_blocking and (quick or (host is not None and self._is_pinned(host)))):
            self._wait(f"a copy of {source.nbytes} bytes {'to the host' if to_host else 'to the device'}")
        self.copies["to host" if to_host else "to device"] += 1

    def _is_pinned(self, host: Tensor) -> bool:
        return host in self._pinned or host.untyped_storage().data_ptr() in self.registered

    def _index(self, name: str, value: Tensor, indices: Any) -> None:
        for index in indices:
            if index is None:
                continue
            if not isinstance(index, GpuTensor) and isinstance(value, GpuTensor):
                self._wait(f"{name} by an index on the host")
            if index.dtype in (torch.bool, torch.uint8):
                self._wait(f"{name} by a mask")

    def _wait(self, what: str) -> None:
        if self.watching:
            raise HostWaits(f"the host would wait for the GPU: {what}")


class Moved(torch.autograd.Function):
    """A tensor on the other side; gradients go back."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.inner.clone() if isinstance(value, GpuTensor) else GpuTensor(value.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise NotImplementedError("no gradient crosses between host and device here")


def is_cuda(device: Any) -> bool:
    """Whether a device, or its name, is a GPU's."""
    return device is not None and torch.device(device).type == "cuda"


class Event:
    """A CUDA event that is reached at once, unless a test says otherwise; waiting for one is not allowed."""

    reached = True

    def __init__(self, enable_timing: bool = False) -> None: ...
    def record(self, stream: Any = None) -> None: ...
    def query(self) -> bool:
        return self.reached

    def elapsed_time(self, end: Event) -> float:
        return 1.0

    def synchronize(self) -> None:
        SimulatedCuda.active._wait("Event.synchronize")


class Stream:
    """A CUDA stream on which everything happens at once."""

    cuda_stream = 0

    def __init__(self, device: Any = None) -> None: ...
    def wait_event(self, event: Event) -> None: ...
    def synchronize(self) -> None:
        SimulatedCuda.active._wait("Stream.synchronize")


class Generator(torch.Generator):
    """Any device's generator is the CPU's."""

    def __new__(cls, device: Any = None) -> Generator:
        return super().__new__(cls)


@contextlib.contextmanager
def simulated_cuda() -> Iterator[SimulatedCuda]:
    """Makes torch and the package believe in a GPU within the block."""
    guard = SimulatedCuda.active = SimulatedCuda()
    calls = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "current_stream": Stream,
        "Stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "cudart": lambda: SimpleNamespace(
            cudaHostRegister=lambda address, size, flags: guard.registered.add(address) or 0,
            cudaHostUnregister=guard.registered.discard,
        ),
        "synchronize": lambda device=None: guard._wait("torch.cuda.synchronize"),
        "Event": Event,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in calls.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(h3d.HashTable, "supports", staticmethod(lambda device_type: True))
        with guard:
            yield guard


def module_to_gpu(module: torch.nn.Module) -> torch.nn.Module:
    """Puts parameters and buffers on the GPU, in place."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = torch.nn.Parameter(on_gpu(value.detach()), value.requires_grad)
        for name, value in part._buffers.items():
            part._buffers[name] = on_gpu(value)
    return module
