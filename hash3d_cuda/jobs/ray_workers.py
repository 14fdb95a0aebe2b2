"""Workers on a Ray cluster. Ray starts them and starts them anew; who works on what is said by the shared folder."""

from __future__ import annotations

import math
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hash3d_cuda.jobs.claims import create, read
from hash3d_cuda.jobs.processes import is_alive, own_process, place
from hash3d_cuda.torchrun import DRIVEN

MARK = ".folder-"  # files in the state's folder, one per driver at work; no job is called so
RESTARTS = 3  # of a worker whose process or machine ends
LOOK = 1.0  # seconds between two looks at workers and jobs
UNSEEN = 10.0  # seconds that a network's file system may take to show a new file


@dataclass(frozen=True)
class Order:
    """What is asked of the cluster.

    Attributes:
        arguments: ``hash3d ARGUMENTS`` is what each worker runs; paths must mean the same on every machine.
        state: a folder that every machine must see.
        workers: how many; 0 for as many as there is room for, and ``most`` at most.
        cpus, gpus: what Ray sets aside for each. It lets a worker see its own GPUs only.
    """

    arguments: Sequence[str]
    state: Path
    workers: int
    most: int
    cpus: float
    gpus: float

    @property
    def needs(self) -> dict[str, float]:
        """As Ray names them."""
        return {"CPU": self.cpus, "GPU": self.gpus}


def run_on_ray(
    order: Order,
    interrupt: Callable[[], AbstractContextManager[Any]],
    look: Callable[[], None],
    say: Callable[[str], None],
) -> list[str]:
    """Runs the workers as Ray tasks and waits for them.

    Args:
        order: what they are.
        interrupt: makes what is entered while they run; ``requested`` says whether an end was asked for. Then each
            worker is asked to end after its step, with a checkpoint.
        look: called every second.
        say: told, in one line, what the caller should know.

    Returns:
        what kept workers from working, a line for each.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: ``RAY_ADDRESS`` names a cluster that cannot be reached. Without it, the cluster that ``ray
            start`` left on this machine is used, and where there is none, one is started for the time of the run.
        ValueError: workers are as many as there is room for, and there is room for none.
    """
    import ray

    own = not ray.is_initialized()
    if own:
        ray.init(log_to_driver=True)
    try:
        count = count_workers(order, ray.cluster_resources(), say)
        task = ray.remote(max_retries=RESTARTS, num_cpus=order.cpus, num_gpus=order.gpus)(run_worker)
        with marked(order.state) as mark:
            told = list(order.arguments), os.getcwd(), str(order.state), mark
            tasks = [task.remote(*told, number, count) for number in range(count)]
            with interrupt() as asked:  # after ray.init, which sets a handler of its own
                return watch(tasks, asked, look)
    finally:
        if own:
            ray.shutdown()


def count_workers(order: Order, resources: dict[str, float], say: Callable[[str], None]) -> int:
    """How many workers to start on a cluster with these resources."""
    room = min(math.floor(resources.get(kind, 0) / need + 1e-9) for kind, need in order.needs.items() if need)
    if order.workers == 0 and room == 0:
        there = ", ".join(f"{resources.get(kind, 0):g} {kind}" for kind in order.needs)
        wanted = ", ".join(f"{need:g} {kind}" for kind, need in order.needs.items())
        raise ValueError(
            f"ray: expected a cluster with room for a worker ({wanted}), got one with {there}; give --ray-cpus or "
            "--ray-gpus, or --ray N where machines are still to come"
        )
    if order.workers > room:
        say(f"{order.workers} workers, and room for {room} by now; the others begin when there is room")
    return order.workers or min(room, order.most)


def watch(tasks: Sequence[Any], asked: Any, look: Callable[[], None]) -> list[str]:
    """Waits for all tasks; returns what went wrong with them, whatever became of the others."""
    import ray

    problems, pending, cancelled = [], {task: number for number, task in enumerate(tasks)}, False
    while pending:
        if asked.requested and not cancelled:
            cancelled = True
            for task in pending:
                ray.cancel(task)
        ended, _ = ray.wait(list(pending), num_returns=1, timeout=LOOK)
        for task in ended:
            problem = outcome(task)
            number = pending.pop(task)
            if problem and not cancelled:
                problems.append(f"ray: worker {number}: {problem}")
        look()
    return problems


def outcome(task: Any) -> str:
    """What an ended task has to say, in one line; empty where all is well."""
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.WorkerCrashedError:
        return f"its process ended without a word, {RESTARTS + 1} times"
    except ray.exceptions.RayError as error:
        last = str(error).strip().splitlines() or [type(error).__name__]
        return f"{last[-1]} ({type(error).__name__})"


@contextmanager
def marked(state: Path) -> Iterator[str]:
    """While this driver works, a file tells the folder ``state`` from others of its name, and from copies: gives its
    mark. Files of drivers that were killed here are removed; whether one of another machine lives cannot be known."""
    for path in state.glob(f"{MARK}*"):
        last = read(path) or {}
        if last.get("place") == place() and not is_alive(last.get("process")):
            path.unlink(missing_ok=True)
    mark = uuid.uuid4().hex
    path = state / (MARK + mark)
    create(path, {"place": place(), "process": own_process()})
    try:
        yield mark
    finally:
        path.unlink(missing_ok=True)


def sees(state: Path, mark: str) -> bool:
    """Whether this machine sees the folder that is marked so."""
    return (state / (MARK + mark)).exists()


def run_worker(arguments: list[str], folder: str, state: str, mark: str, number: int, count: int) -> str:
    """The whole life of worker ``number`` of ``count``, in ``folder``; returns what kept it from working, or "".

    Args:
        state: the folder of the claims.
        mark: that of :func:`marked`, as the driver made it there: where this machine sees something else, this worker
            would do all the jobs by itself, into a folder of its own.
    """
    from hash3d_cuda.cli.main import dispatch, one_line, own_warnings

    here = f"on {platform.node()}"
    seen = os.path.isdir(folder)
    if not (seen and soon(lambda: sees(Path(state), mark))):
        missing = state if seen else folder
        return f"{here}, {missing!r} is not the driver's; --out, and the folder to start in, must be on shared storage"
    before = dict(os.environ), os.getcwd()
    os.environ.update({"RANK": str(number), "WORLD_SIZE": str(count), DRIVEN: "1"})
    os.chdir(folder)
    try:
        with own_warnings():
            refused = dispatch(arguments) == 2
        return f"{here}, it refuses the jobs; what it printed says why" if refused else ""
    except Exception as error:
        return f"{here}: {one_line(error)}"
    finally:  # Ray keeps the process for other tasks
        os.environ.clear()
        os.environ.update(before[0])
        os.chdir(before[1])


def soon(look: Callable[[], Any]) -> Any:
    """What ``look`` finds, now or soon: the first that is true, else the last."""
    end = time.monotonic() + UNSEEN
    while not (found := look()) and time.monotonic() <= end:
        time.sleep(0.5)
    return found
