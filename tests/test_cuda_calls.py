"""What the CUDA backend asks of the CUDA runtime, read from its sources: nothing that waits, nothing that allocates."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[1] / "csrc" / "cuda").glob("*.cu*"))
ALLOWED = {
    "cudaDeviceGetAttribute",
    "cudaFuncGetAttributes",
    "cudaFuncSetAttribute",
    "cudaGetDevice",
    "cudaGetDeviceCount",
    "cudaGetErrorString",
    "cudaGetLastError",
    "cudaLaunchCooperativeKernel",
    "cudaLaunchKernelEx",
    "cudaMemcpyAsync",
    "cudaMemsetAsync",
    "cudaOccupancyMaxActiveBlocksPerMultiprocessor",
    "cudaPeekAtLastError",
    "cudaSetDevice",
}
# What puts captured pieces together, launches them and takes them apart; in conditional.cu alone. None of it waits.
ASSEMBLY = {
    "cudaDriverGetVersion",
    "cudaGraphAddChildGraphNode",
    "cudaGraphAddKernelNode",
    "cudaGraphAddNode",
    "cudaGraphConditionalHandleCreate",
    "cudaGraphCreate",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
    "cudaGraphInstantiate",
    "cudaGraphLaunch",
    "cudaGraphSetConditional",  # on the device
}
CALL = re.compile(r"\b(cu(?:da)?[A-Z]\w*)\s*\(")  # the runtime's, and the driver's
COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)


def refused(source: str, allowed: set[str] = ALLOWED) -> list[str]:
    """What must not be called, in order."""
    text = COMMENT_OR_STRING.sub('""', source)
    found = [name for name in CALL.findall(text) if name not in allowed]
    found += re.findall(r"\bcudaMemcpy(?:Async)?\s*\([^;]*(cudaMemcpy(?:DeviceToHost|HostToDevice|Default))", text)
    return found + re.findall(r"\bthrust::\w+|\bmalloc\s*\(|\bnew\s+\w", text)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_call_waits_or_allocates(path):
    allowed = ALLOWED | ASSEMBLY if path.name == "conditional.cu" else ALLOWED
    assert not refused(path.read_text(), allowed), "calls are queued on the caller's stream, in the caller's memory"


def test_there_are_sources():
    assert SOURCES
    assembly = next(path for path in SOURCES if path.name == "conditional.cu").read_text()
    assert all(name in assembly for name in ASSEMBLY), "none is allowed for nothing"


@pytest.mark.parametrize(
    "line",
    [
        "cudaDeviceSynchronize();",
        "check(cudaStreamSynchronize(stream), what);",
        "cudaEventSynchronize(event);",
        "cudaMalloc(&pointer, bytes);",
        "cudaMallocAsync(&pointer, bytes, stream);",
        "cudaFree (pointer);",
        "cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToDevice);",
        "cudaMemcpyAsync(&count, counters, 8,\n  cudaMemcpyDeviceToHost, stream);",
        "cuCtxSynchronize();",
        "thrust::sort(first, last);",
        "cudaGraphLaunch(graph, stream);",  # but in conditional.cu
    ],
)
def test_the_scan_sees_it(line):
    assert refused(line)
    assert not refused(f"// {line.splitlines()[0]}")


@pytest.mark.parametrize(
    "line",
    [
        "check(cudaGetLastError(), what);",
        "cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream);",
        "kernel<<<blocks, threads, 0, stream>>>(table);",
        'throw std::runtime_error("cudaMalloc(");',
    ],
)
def test_the_scan_lets_it_pass(line):
    assert not refused(line)
