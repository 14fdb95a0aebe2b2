"""Runs experiments: units in worker processes of one thread, results kept as they come, tables written at the end."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from hash3d_cuda.reproduce.base import Context, Unit, experiment_units
from hash3d_cuda.sds.outputs import write_json

UNITS = "units"


@dataclass(frozen=True)
class Failure:
    """What raised, a unit or an experiment's summary, and the error in one line."""

    unit: str
    error: str


def reproduce(
    modules: Sequence[ModuleType],
    context: Context,
    jobs: int = 1,
    written: Callable[[ModuleType, dict[str, dict[str, Any]]], None] = lambda module, results: None,
    quiet: bool = False,
) -> list[Failure]:
    """Runs what of the experiments' units has no result in ``context.out`` yet.

    Args:
        modules: the experiments.
        context: folder, objects, seed.
        jobs: worker processes; with 1 the units run in this one.
        written: called once per experiment, as soon as all of its results are there.
        quiet: no progress bar.

    Returns:
        the units that failed; the experiments they belong to are not handed to ``written``.
    """
    units = {module: experiment_units(module, context) for module in modules}
    (context.out / UNITS).mkdir(parents=True, exist_ok=True)
    waiting = list(modules)

    def hand_over() -> None:
        for module in list(waiting):
            results = {unit.key: stored(context, unit) for unit in units[module]}
            if all(result is not None for result in results.values()):
                waiting.remove(module)
                try:
                    written(module, results)  # type: ignore[arg-type]
                except Exception as error:  # the other experiments' hours are not lost for it
                    failures.append(Failure(module.ID, told(error)))

    failures: list[Failure] = []
    hand_over()
    left = {unit.file_name(context): unit for module in waiting for unit in units[module]}
    left = {name: unit for name, unit in left.items() if stored(context, unit) is None}
    with progress_bar(sum(unit.weight for unit in left.values()), quiet) as advance:
        for unit, error in run_units(list(left.values()), context, jobs):
            advance(unit)
            if error is None:
                hand_over()
            else:
                failures.append(Failure(unit.key, told(error)))
    return failures


def told(error: Exception) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def run_units(units: Sequence[Unit], context: Context, jobs: int) -> Iterator[tuple[Unit, Exception | None]]:
    """Runs and files the units, the longest first; yields each as it ends, with what it raised."""
    units = sorted(units, key=lambda unit: -unit.weight)
    if jobs == 1:
        for unit in units:
            try:
                run_unit(context, unit)
            except Exception as error:
                yield unit, error
            else:
                yield unit, None
        return
    with one_thread_each():
        pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_start_worker)
        try:
            ongoing: dict[Future[None], Unit] = {pool.submit(run_unit, context, unit): unit for unit in units}
            while ongoing:
                for future in wait(ongoing, return_when=FIRST_COMPLETED).done:
                    error = future.exception()
                    if error is not None and not isinstance(error, Exception):
                        raise error
                    yield ongoing.pop(future), error
        except BaseException:  # interrupted: what the workers are at is lost, and nothing else
            for child in multiprocessing.active_children():
                child.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def run_unit(context: Context, unit: Unit) -> None:
    """Runs one unit and files its result in one go: a file that is there is whole."""
    start, worked = time.perf_counter(), time.process_time()
    result = unit.run(context)
    path = context.out / UNITS / unit.file_name(context)
    filed = {
        "key": unit.key, "function": unit.function.__name__, "arguments": dict(unit.arguments),
        "seconds": round(time.perf_counter() - start, 2), "cpu_seconds": round(time.process_time() - worked, 2),
        "result": result,
    }  # fmt: skip
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        write_json(filed, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def stored(context: Context, unit: Unit) -> dict[str, Any] | None:
    """The result that an earlier run filed, or None."""
    try:
        filed: Mapping[str, Any] = json.loads((context.out / UNITS / unit.file_name(context)).read_text("utf-8"))
        return dict(filed["result"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def progress_bar(total: float, quiet: bool) -> Iterator[Callable[[Unit], None]]:
    """A bar on stderr whose time left follows from the units' weights."""
    if quiet or total == 0:
        yield lambda unit: None
        return
    from tqdm import tqdm

    interval = 0.5 if sys.stderr.isatty() else 30.0
    form = "{percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left{postfix}"
    with tqdm(total=total, desc="reproduce", bar_format="{desc} " + form, mininterval=interval) as bar:

        def advance(unit: Unit) -> None:
            bar.set_postfix_str(f"done: {unit.key}", refresh=False)
            bar.update(unit.weight)

        yield advance


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """While entered, processes that start read in their environment that they have one thread."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start_worker() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C goes to the workers too: no traceback of each
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, and they would go on for hours for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
