"""The registered operators: what they declare, what they return for fake tensors, and that compiled code which calls a
table does what eager code does."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import hash3d_cuda as h3d

OPS = torch.ops.hash3d
MEMORY = (
    "_chains", "_similarity", "_keys", "_cells", "_norms", "_joined", "_latents", "_features", "_scales", "_counters",
)  # fmt: skip
SHAPE = (2, 3, 5)


def make(dtype: torch.dtype = torch.float16, **options: Any) -> h3d.HashTable:
    return h3d.HashTable(SHAPE, (4,), **{"capacity": 8, "num_buckets": 101, "feature_dtype": dtype, **options})


def items(batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys = h3d.make_keys(0.0, [90.0 * (i // 2) for i in range(batch)], 2.0, 500.0)
    return keys, torch.randn(batch, 4, generator=generator), torch.randn(batch, *SHAPE, generator=generator)


def filled(**options: Any) -> h3d.HashTable:
    table = make(**options)
    table.append(*items())
    return table


def state(table: h3d.HashTable) -> list[Tensor]:
    """Everything a table holds, with zeros where nothing was written yet."""
    live = table._joined > 0
    rows = [getattr(table, name)[live] for name in MEMORY[2:-1]]
    return [table._chains, table._similarity.nan_to_num(-7), *rows, live, table._counters]


def bits(tensor: Tensor) -> Tensor:
    """Bytes: equal where the tensors are, NaN and float8 included."""
    return tensor.contiguous().view(torch.uint8)


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def call(name: str, table: h3d.HashTable) -> tuple[Any, tuple[Any, ...]]:
    """An operator and arguments for it."""
    keys, latents, features = items()
    memory = table._content, table._written
    out = torch.zeros(2, *SHAPE, dtype=table.options.answer_dtype)
    return {
        "append": (OPS.append.default, (table._handle, keys, latents, features, *memory)),
        "query": (OPS.query.default, (table._handle, keys, latents, *memory)),
        "query.out": (OPS.query.out, (table._handle, keys, latents, *memory, out)),
        "lookup": (OPS.lookup.default, (table._handle, keys, *memory)),
        "similarity": (OPS.similarity.default, (table._handle, keys, *memory)),
    }[name]


NAMES = ("append", "query", "query.out", "lookup", "similarity")
WRITES = {
    "append": MEMORY,
    "query": ("_counters",),
    "query.out": ("_counters",),
    "lookup": (),
    "similarity": (),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name, dtype):
    table = filled(dtype=dtype)
    opcheck(*call(name, table))


@pytest.mark.parametrize("name", NAMES)
def test_opcheck_where_torch_cannot_compare_what_is_stored(name):
    """torch has no arithmetic for float8: what an operator writes is held against its schema below."""
    table = filled(dtype=torch.float8_e4m3fn)
    utilities = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    opcheck(*call(name, table), test_utils=utilities)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", NAMES)
def test_the_schema_names_all_that_is_written(name, dtype):
    """Held against the memory itself: what changes is declared, and nothing else is."""
    table = filled(dtype=dtype)
    operator, arguments = call(name, table)
    before = {name: getattr(table, name).clone() for name in MEMORY}
    operator(*arguments)
    changed = {name for name in MEMORY if not torch.equal(bits(before[name]), bits(getattr(table, name)))}
    assert changed <= set(WRITES[name]) and ("_counters" in changed) == bool(WRITES[name])
    declared = {a.name for a in operator._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    expected = {"content", "written"} if name == "append" else {"written"} if WRITES[name] else set()
    assert declared - {"out"} == expected and ("out" in declared) == (name == "query.out")


@pytest.mark.parametrize("name", NAMES)
def test_an_operator_works_on_the_memory_it_is_given(name):
    """Compilers hand in copies; the table's own memory then stays as it is."""
    table, same = filled(), filled()
    operator, arguments = call(name, table)
    content = next(place for place, value in enumerate(arguments) if value is table._content)
    copies = [[tensor.clone() for tensor in value] if isinstance(value, tuple) else value for value in arguments]
    before = [tensor.clone() for tensor in state(table)]
    answers = operator(*copies)
    assert_same(state(table), before)
    expected_operator, expected_arguments = call(name, same)
    expected = expected_operator(*expected_arguments)
    assert_same(*([value] if isinstance(value, Tensor) else value for value in (answers, expected)))
    for attribute, tensor in zip(MEMORY, (*copies[content], *copies[content + 1]), strict=True):
        setattr(table, attribute, tensor)
    assert_same(state(table), state(same))


@pytest.mark.parametrize("marks", [(False, True), (True, True)])
def test_append_with_a_mask(marks):
    """Checked as an operator, compiled, and seen by dispatch modes as in plain code."""
    checked = filled()
    operator, arguments = call("append", checked)
    opcheck(operator, (*arguments, torch.tensor(marks)))
    torch._dynamo.reset()
    plain, table = filled(), filled()
    batch = items(seed=3)
    run = lambda table, skip: table.append(*batch, skip=skip)  # noqa: E731
    expected = run(plain, torch.tensor(marks))
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(table, torch.tensor(marks)), expected)
    assert expected.tolist() == [-1 if mark else 2 + place for place, mark in enumerate(marks)]
    assert_same(state(plain), state(table))
    with Listener() as listener:
        run(table, torch.tensor(marks))
    assert "hash3d.append.default" in listener.names


def test_foreign_memory_is_refused():
    table, larger = filled(), filled(capacity=16)
    keys, latents, _ = items()
    with pytest.raises(ValueError, match="content, written"):
        OPS.query(table._handle, keys, latents, larger._content, larger._written)
    with pytest.raises(ValueError, match="content, written"):
        OPS.lookup(table._handle, keys, table._content[:3], table._written)


def test_a_dead_handle_is_named():
    table = filled()
    handle, content, written = table._handle, table._content, table._written
    del table
    gc.collect()
    with pytest.raises(RuntimeError, match=f"handle of a living HashTable, got {handle}; keep a reference"):
        OPS.lookup(handle, items()[0], content, written)


@pytest.mark.parametrize("name", NAMES)
def test_operators_check_their_arguments(name):
    table = filled()
    operator, (handle, keys, *rest) = call(name, table)
    with pytest.raises(ValueError, match=r"keys: expected a float32 tensor of shape \[N, 4\]"):
        operator(handle, keys[:, :3], *rest)


def step(table: h3d.HashTable, keys: Tensor, latents: Tensor, features: Tensor, out: Tensor) -> tuple[Tensor, ...]:
    """All of a table's calls, in an order that matters."""
    before = table.query(keys, latents)
    serials = table.append(keys, latents, features * 2)
    after = table.query(keys, latents, out=out)
    again = table.append(keys + 0.25, latents, features)
    last = table.query(keys, latents)
    looked = table.lookup(keys), table.similarity(keys)
    answers = (
        getattr(q, name) for q in (before, after, last) for name in ("features", "hit", "grid", "serials", "weights")
    )
    return (serials, again, *looked, *answers, out + 1)


def assert_compiles(backend: str, function: Callable[..., Any] = step) -> None:
    torch._dynamo.reset()
    plain, table = make(), make()
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    for seed in range(5):
        batch = 2 if seed < 3 else 3
        one, other = (torch.zeros(batch, *SHAPE, dtype=torch.float16) for _ in range(2))
        expected = function(plain, *items(batch, seed), one)
        for a, b in zip(expected, compiled(table, *items(batch, seed), other), strict=True):
            assert torch.equal(a, b) or torch.equal(a.isnan(), b.isnan())
        assert torch.equal(one, other)
        assert_same(state(plain), state(table))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_code_does_what_eager_code_does(backend):
    """Without a graph break: equal answers, an equal table, the calls in their order."""
    assert_compiles(backend)


def test_inductor_hands_over_the_tables_own_memory(monkeypatch):
    """The pool is not copied, which for a cache of gigabytes would be the end of it."""

    def only_calls(table, keys, latents, features, out):
        serials = table.append(keys, latents, features)
        table.query(keys, latents, out=out)
        again, found = table.append(keys, latents, features), table.query(keys, latents)
        return serials, again, found.features, found.hit, found.grid, found.serials, found.weights, out

    engines = []
    build = h3d.HashTable._make_engine
    monkeypatch.setattr(h3d.HashTable, "_make_engine", lambda *a: engines.append(a) or build(*a))
    assert_compiles("inductor", only_calls)
    assert len(engines) == 2, "the two tables'"


def test_two_tables_in_one_compiled_function():
    torch._dynamo.reset()
    compiled = torch.compile(lambda table, keys: table.lookup(keys), backend="eager", fullgraph=True)
    tables = [filled(), filled(queue_length=2), make()]
    keys = items()[0]
    for table in tables * 2:
        assert torch.equal(compiled(table, keys), table.lookup(keys))


def test_compiling_finds_wrong_arguments():
    torch._dynamo.reset()
    table = filled()
    compiled = torch.compile(lambda keys: table.lookup(keys), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=r"keys: expected a float32 tensor of shape \[N, 4\] on cpu, got"):
        compiled(torch.zeros(2, 3))


def test_inputs_that_want_gradients_are_detached_in_compiled_code_too():
    torch._dynamo.reset()
    table = make()
    keys, latents, features = items()
    scale = torch.ones((), requires_grad=True)

    def run(scale):
        table.append(keys, latents * scale, features * scale)
        found = table.query(keys, latents * scale)
        return (found.features.float() * scale).sum()

    loss = torch.compile(run, backend="aot_eager", fullgraph=True)(scale)
    loss.backward()
    assert scale.grad == pytest.approx(loss.item(), rel=1e-3)


def test_autograd_notices_that_out_was_overwritten():
    table = filled(dtype=torch.float32)
    keys, latents, _ = items()
    weight = torch.ones((), requires_grad=True)
    out = torch.zeros(2, *SHAPE)
    product = (out * weight).sum()
    table.query(keys, latents, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_memory_is_kept_for_every_stream_that_used_it(monkeypatch):
    table, kept = filled(), []
    streams = [SimpleNamespace(cuda_stream=number) for number in (0, 7, 0, 7, 9)]
    table.device = torch.device("cuda", 0)
    table._content, table._written = (SimpleNamespace(record_stream=kept.append),), ()
    for stream in streams:
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device, stream=stream: stream)
        assert table._stream() == stream.cuda_stream
    assert [stream.cuda_stream for stream in kept] == [0, 7, 9]


class Listener(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_dispatch_modes_see_the_calls():
    table = make()
    keys, latents, features = items()
    out = torch.zeros(2, *SHAPE, dtype=torch.float16)
    with Listener() as listener:
        table.append(keys, latents, features)
        table.query(keys, latents)
        table.query(keys, latents, out=out)
        table.lookup(keys)
        table.similarity(keys)
    seen = [name for name in listener.names if name.startswith("hash3d")]
    ends = ("append.default", "query.default", "query.out", "lookup.default", "similarity.default")
    assert seen == [f"hash3d.{end}" for end in ends]


@pytest.fixture
def pretended_gpu(monkeypatch):
    """As far as arguments are checked, there is one."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(h3d.HashTable, "supports", staticmethod(lambda kind: True))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fake_tensors_go_through(pretended_gpu, device):
    """Shapes, types and devices of every answer, without memory or a GPU."""
    with FakeTensorMode():
        table = make(torch.bfloat16, capacity=10**6, device=device)
        keys, latents = torch.empty(5, 4, device=device), torch.empty(5, 4, device=device)
        features, out = (torch.empty(5, *SHAPE, device=device, dtype=torch.bfloat16) for _ in range(2))
        serials = table.append(keys, latents, features)
        new, given = table.query(keys, latents), table.query(keys, latents, out=out)
        looked, averages = table.lookup(keys), table.similarity(keys)
        table.clear()
        with pytest.raises(ValueError, match="latents"):
            table.query(keys, torch.empty(5, 3, device=device))
    assert given.features is out and new.features.shape == out.shape and new.features.dtype == torch.bfloat16
    for tensor, shape, dtype in [
        (serials, (5,), torch.int64),
        (looked, (5, 3, 3), torch.int64),
        (averages, (5, 3), torch.float32),
        *((q.hit, (5,), torch.bool) for q in (new, given)),
        *((q.grid, (5,), torch.int32) for q in (new, given)),
        *((q.serials, (5, 3), torch.int64) for q in (new, given)),
        *((q.weights, (5, 3), torch.float32) for q in (new, given)),
    ]:
        assert (tuple(tensor.shape), tensor.dtype, tensor.device.type) == (shape, dtype, device)


def test_fakes_say_what_the_engine_returns():
    real = filled()
    mode = FakeTensorMode()
    for name in NAMES:
        operator, arguments = call(name, real)
        convert = lambda value: mode.from_tensor(value) if isinstance(value, Tensor) else value  # noqa: E731
        with mode:
            fakes = operator(*torch.utils._pytree.tree_map(convert, arguments))
        results = operator(*arguments)
        pairs = zip([fakes], [results]) if isinstance(results, Tensor) else zip(fakes, results)
        for fake, result in pairs:
            assert (fake.shape, fake.dtype, fake.stride()) == (result.shape, result.dtype, result.stride())


@pytest.mark.parametrize("layout", ["contiguous", "batch stride", "channels last", "flipped dims"])
def test_out_of_any_layout(layout):
    """Rows that hit are written, wherever their numbers lie; the others are left alone."""
    table = filled()
    keys, latents, _ = items()
    keys = torch.cat([keys[:1], torch.full((1, 4), math.nan), keys[1:]])
    latents = torch.cat([latents[:1], latents])
    shape = (3, *SHAPE)
    out = {
        "contiguous": lambda: torch.full(shape, 7.0),
        "batch stride": lambda: torch.full((6, *SHAPE), 7.0)[::2],
        "channels last": lambda: torch.full(shape, 7.0).to(memory_format=torch.channels_last),
        "flipped dims": lambda: torch.full(shape[::-1], 7.0).permute(3, 2, 1, 0),
    }[layout]().half()
    found, given = table.query(keys, latents), table.query(keys, latents, out=out)
    assert given.hit.tolist() == [True, False, True]
    assert torch.equal(out[given.hit], found.features[found.hit]) and (out[1] == 7).all()
