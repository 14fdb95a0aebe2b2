"""What the table costs on a GPU, against device-to-device copies of the same bytes in the same run.

python benchmarks/gpu.py --json results.json      prints a page of Markdown

Calls are captured in CUDA graphs and timed with events, so no host time is in the figures. One graph works on so many
different entries that none is in the L2 cache when its turn comes, and so do the copies. ``--device cpu`` times plain
calls with a clock: that rehearses the script, its figures mean nothing. Where diffusers is installed, SD 1.5's U-Net
(random weights, float16, two rows of guidance) follows: full, hit, bare head and tail, as calls and as graphs, and then
whole steps of score distillation around it.

F = bytes of a feature, L = bytes of a latent in float32, Q = 3 candidates of one cell, M = 3 grids:

    query, one candidate            2 F + 2 L               a copy of F moves 2 F
    append, new cell                2 F + 2 L
    append, cell of Q               (Q + 2) F + 2 L
    look-up                         16 + M (8 + 16 Q) a key, and 16 for each entry found
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from axes import SD, TINY, ZERO123, Size, machine
from torch import Tensor

import hash3d_cuda as h3d

SDXL = Size("SDXL", (2, 320, 128, 128), (4, 128, 128))
COLD = 256 << 20  # bytes of entries that one graph goes through: five times the L2 cache of an H100
QUEUE = 3
Row = dict[str, Any]


class Clock:
    """Times functions on one device, per call."""

    def __init__(self, device: str, rounds: int):
        self.cuda, self.rounds = device == "cuda", rounds

    def calls(self, functions: list[Callable[[], Any]]) -> float:
        """Median seconds of one of the functions when all run in turn, in a graph on a GPU."""
        for function in functions:
            function()
        if not self.cuda:
            return statistics.median(self._seconds(functions) for _ in range(self.rounds)) / len(functions)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for function in functions:
                function()
        return self.events(graph.replay) / len(functions)

    def events(self, function: Callable[[], Any]) -> float:
        """Median seconds on the device of one call."""
        if not self.cuda:
            return statistics.median(self._seconds([function]) for _ in range(self.rounds))
        times = []
        for _ in range(self.rounds + 2):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            function()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        return statistics.median(times[2:])

    def host(self, function: Callable[[], Any]) -> float:
        """Median seconds until one call returns, whatever the device still has to do."""
        times = []
        for _ in range(self.rounds):
            if self.cuda:
                torch.cuda.synchronize()
            times.append(self._seconds([function]))
        return statistics.median(times)

    @staticmethod
    def _seconds(functions: list[Callable[[], Any]]) -> float:
        start = time.perf_counter()
        for function in functions:
            function()
        return time.perf_counter() - start


class Case:
    """A table of one size whose entries lie in cells of their own, and calls that go through all of them."""

    def __init__(self, size: Size, dtype: torch.dtype, batch: int, device: str, cold: int):
        self.size, self.dtype, self.batch, self.device = size, dtype, batch, device
        self.bytes = size.feature_bytes(dtype)
        self.groups = max(cold // (self.bytes * batch), 2)
        count = self.groups * batch
        azimuths, radii = [30.0 * (i % 12) + 5 for i in range(count)], [2.0 + i // 12 for i in range(count)]
        self.keys = h3d.make_keys(15.0, azimuths, radii, 500.0).to(device)
        self.latents = torch.randn(count, *size.latent, device=device)
        self.features = torch.randn(count, *size.feature, device=device, dtype=dtype)
        self.out = torch.zeros_like(self.features)
        self.table = h3d.HashTable(size.feature, size.latent, capacity=count, feature_dtype=dtype, device=device)

    def part(self, group: int) -> slice:
        """The items of one call."""
        return slice(group * self.batch, (group + 1) * self.batch)

    def each(self, call: Callable[[slice], Any]) -> list[Callable[[], Any]]:
        """One function per group of items."""
        return [functools.partial(call, self.part(group)) for group in range(self.groups)]

    def copies(self) -> list[Callable[[], Any]]:
        """What the bytes alone cost: each group's features to its outputs."""
        return self.each(lambda part: self.out[part].copy_(self.features[part]))

    def queries(self) -> list[Callable[[], Any]]:
        """One candidate an item, into the outputs."""
        return self.each(lambda part: self.table.query(self.keys[part], self.latents[part], out=self.out[part]))

    def appends(self, full: bool) -> list[Callable[[], Any]]:
        """Into cells that hold no other entry, or Q of them."""
        keys = self.keys[:1].expand_as(self.keys).contiguous() if full else self.keys
        return self.each(lambda part: self.table.append(keys[part], self.latents[part], self.features[part]))

    def check(self) -> None:
        """The outputs are the features, as they were appended."""
        self.table.append(self.keys, self.latents, self.features)
        for query in self.queries():
            query()
        assert torch.equal(self.out, self.features), "a query did not give back what was appended"


def table_rows(case: Case, clock: Clock) -> list[Row]:
    """Query and append of one size, dtype and batch."""
    case.check()
    copy = clock.calls(case.copies())
    name = f"{case.size.name} {str(case.dtype).removeprefix('torch.')} B={case.batch}"
    query = clock.calls(case.queries())
    new = clock.calls(case.appends(full=False))
    full = clock.calls(case.appends(full=True))
    feature, latent = case.batch * case.bytes, case.batch * case.size.latent_bytes
    goal = "<= 1.25" if (case.size.name, case.dtype, case.batch) == ("SD", torch.float16, 1) else ""
    return [
        row(f"copy of a feature, {name}", copy, 2 * feature),
        row(f"query, {name}", query, 2 * (feature + latent), copy, goal),
        row(f"append to a new cell, {name}", new, 2 * (feature + latent), copy),
        row(f"append to a cell of {QUEUE}, {name}", full, (QUEUE + 2) * feature + 2 * latent, copy),
    ]


def rival_rows(case: Case, clock: Clock) -> list[Row]:
    """The released code's deques and eager torch, which wait for the GPU; the engine's plain calls beside them."""
    from stored import fill

    stored = fill(case.size, case.dtype, case.device, "one")
    other = torch.zeros_like(stored.out)
    mine = clock.events(lambda: stored.engine.query(stored.key, stored.latent, out=stored.out))
    deques = clock.events(lambda: stored.deques.query(stored.key, stored.latent))
    eager = clock.events(lambda: stored.eager.query(stored.key, stored.latent, other))
    moved = 2 * case.bytes + (QUEUE + 1) * case.size.latent_bytes
    return [
        row(f"query as a plain call, {case.size.name}", mine, moved),
        row("the same of Python deques", deques, moved, mine),
        row("the same in eager torch", eager, moved, mine),
    ]


def lookup_rows(clock: Clock, device: str, counts: list[int]) -> list[Row]:
    """Bare look-ups of many keys with the three grids of the paper."""
    from test_lookup import ENTRIES, moved, poses

    table = h3d.HashTable((1,), (1,), capacity=ENTRIES, device=device)
    table.append(poses(ENTRIES, seed=1).to(device), torch.zeros(ENTRIES, 1, device=device),
                 torch.ones(ENTRIES, 1, device=device))  # fmt: skip
    rows = []
    for count in counts:
        keys = poses(count, seed=2).to(device)
        seconds = clock.calls([lambda keys=keys: table.lookup(keys)])
        found = row(f"look-up of {count:,} keys", seconds, moved(table.lookup(keys)))
        found["per_second"] = count / seconds
        found["goal"] = ">= 2000 M" if count == counts[-1] else ""
        rows.append(found)
    return rows


def step_rows(clock: Clock, device: str, side: int, **config: Any) -> list[Row]:
    """A U-Net step at SD 1.5's width: full, hit and bare head and tail."""
    from sd_unet import POSE, TIMESTEP, Bare, Hooked, make_call, make_unet

    unet = make_unet(device, **config)
    call = make_call(unet, side)
    bare, hooked = Bare(unet), Hooked(unet, eta=1.0)
    feature = bare.feature(call)
    hooked.run(call)
    full = clock.events(lambda: call.run(unet))
    shallow = clock.events(lambda: bare.head_and_tail(call, feature))
    hit = clock.events(lambda: hooked.run(call))
    hooked.expect("hit")
    host = clock.host(lambda: hooked.run(call)) - clock.host(lambda: bare.head_and_tail(call, feature))
    table = hooked.cache.table
    key = h3d.make_keys(**POSE, timestep=TIMESTEP).to(device)
    latent, room = call.sample[:1].float(), torch.empty_like(feature)[None]

    def hit_by_hand() -> Tensor:
        table.query(key, latent, out=room)
        return bare.head_and_tail(call, room[0])

    rows = [
        row(f"full U-Net, {side}x{side}", full),
        row("bare head and tail", shallow),
        row("hit through the hook", hit, rival=shallow, goal="<= 1.03"),
        row("full over hit; bound: full over bare head and tail", full / hit),
        row("host time that the hook adds to a hit", host, goal="<= 50 us"),
    ]
    rows[3].update(seconds=None, ratio=full / hit, note=f"bound {full / shallow:.2f}")
    graphs = [("full U-Net", lambda: call.run(unet)), ("head, query and tail", hit_by_hand)]
    rows += [row(f"{name} as a graph", clock.calls([function])) for name, function in graphs]
    return rows + sds_rows(clock, device, side, full - shallow, **config)


def sds_rows(clock: Clock, device: str, side: int, saved: float, **config: Any) -> list[Row]:
    """Whole SDS steps: full and hit, against the bound that the ``saved`` seconds of the U-Net allow."""
    from sds_step import sds_step

    seconds = {}
    ways = {"full": None, "hit": "host"} | ({"hit, decided in a graph": "device"} if device == "cuda" else {})
    for name, decide in ways.items():
        with sds_step(device, side, decide, **config) as step:
            seconds[name] = clock.events(step)
    full = seconds.pop("full")
    rows = [row("full SDS step, no VAE", full)]
    for name, hit in seconds.items():
        found = row(f"SDS step, {name}", hit) | {"ratio": full / hit}
        bound = full / max(full - saved, 1e-9)
        rows.append(found | {"note": f"ratio: full over this; bound {bound:.2f}"})
    return rows


def row(name: str, seconds: float, moved: int | None = None, rival: float | None = None, goal: str = "") -> Row:
    """One line of the result; ``moved`` bytes, ``rival`` seconds of what it is held against."""
    speed = None if moved is None else moved / seconds / 1e9
    ratio = None if rival is None else seconds / rival
    return {"name": name, "seconds": seconds, "gb_per_s": speed, "ratio": ratio, "goal": goal, "note": ""}


def document(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [", ".join(f"{name} {value}" for name, value in result["machine"].items()), ""]
    lines += ["| | us | GB/s | ratio | goal | |", "|---|--:|--:|--:|---|---|"]
    for found in result["rows"]:
        time_, speed, ratio = found["seconds"], found["gb_per_s"], found["ratio"]
        cells = [
            found["name"],
            "" if time_ is None else f"{time_ * 1e6:.2f}",
            "" if speed is None else f"{speed:.0f}",
            "" if ratio is None else f"{ratio:.3f}",
            found["goal"],
            f"{found['per_second'] / 1e6:.0f} M/s" if "per_second" in found else found["note"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(f"\nFAILED {part}" for part in result.get("failed", ()))])


def parts(device: str) -> list[tuple[str, Callable[[], list[Row]]]]:
    """What is measured, by name, what matters most first. Each part lets go of its memory when it is over."""
    if device == "cpu":  # a rehearsal
        clock, cold = Clock(device, rounds=2), 1 << 10
        cases = [(TINY, torch.float16, 1), (TINY, torch.float32, 2)]
        side, counts, small = 8, [100, 1000], {"block_out_channels": (32, 32, 32, 32), "cross_attention_dim": 8}
    else:
        clock, cold = Clock(device, rounds=30), COLD
        cases = [(SD, torch.float16, 1), (SD, torch.float32, 1), (SD, torch.bfloat16, 1)]
        cases += [(SD, torch.float16, batch) for batch in (2, 4, 8)]
        cases += [(size, torch.float16, batch) for size in (ZERO123, SDXL) for batch in (1, 2, 4, 8)]
        side, counts, small = 64, [10_000, 1_000_000, 10_000_000], {}

    def table(case: tuple[Size, torch.dtype, int]) -> tuple[str, Callable[[], list[Row]]]:
        return f"table, {case}", lambda: table_rows(Case(*case, device, cold), clock)

    first, *others = cases
    found = [
        table(first),
        ("look-ups", lambda: lookup_rows(clock, device, counts)),
        ("rivals", lambda: rival_rows(Case(*first, device, cold), clock)),
    ]
    if importlib.util.find_spec("diffusers") is not None:
        found.append(("U-Net", lambda: step_rows(clock, device, side, **small)))
    return found + [table(case) for case in others]


def measure(device: str, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All rows; a part that fails is named, and the others go on. ``save`` is called with the result after each."""
    result: dict[str, Any] = {"machine": machine() | {"device": device}, "rows": [], "failed": []}
    for name, part in parts(device):
        try:
            result["rows"] += part()
        except Exception as error:
            traceback.print_exc()
            result["failed"].append(f"{name}: {type(error).__name__}: {error}")
        save(result)
    return result


def main() -> None:
    """Command-line entry."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="where the figures go, after each part of them")
    parser.add_argument("--markdown", type=Path, help="where the page goes that is printed in the end, likewise")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not (torch.cuda.is_available() and h3d.HashTable.supports("cuda")):
        sys.exit("no CUDA device, or a build without its kernels; --device cpu rehearses the script")

    def save(result: dict[str, Any]) -> None:
        if options.json is not None:
            options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
        if options.markdown is not None:
            options.markdown.write_text(document(result) + "\n", encoding="utf-8")

    result = measure(options.device, save)
    print(document(result))
    sys.exit(f"{len(result['failed'])} part(s) failed" if result["failed"] else 0)


if __name__ == "__main__":
    main()
