"""Workers on a Ray cluster. Ray starts them and starts them anew; who works on what is said by the shared folder."""

from __future__ import annotations

import os
from collections.abc import Sequence

RESTARTS = 3  # of a worker whose process or machine ends


def run_on_ray(arguments: Sequence[str], workers: int, device: str | None) -> list[int]:
    """Runs ``hash3d ARGUMENTS`` as so many Ray tasks and waits for them.

    Args:
        arguments: paths in them must mean the same on every machine of the cluster.
        workers: how many; 0 for one per GPU of the cluster with a CUDA ``device``, else one per CPU.
        device: the jobs'; with CUDA each worker asks for one GPU.

    Returns:
        the workers' exit codes.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: ``RAY_ADDRESS`` names a cluster that cannot be reached. Without it, one is started here.
    """
    import ray

    own_cluster = not ray.is_initialized()
    if own_cluster:
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=True)
    try:
        kind = "GPU" if (device or "cpu").startswith("cuda") else "CPU"
        count = workers or max(int(ray.cluster_resources().get(kind, 1)), 1)
        needs = {"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}
        task = ray.remote(max_retries=RESTARTS, **needs)(run_worker)
        return ray.get([task.remote(list(arguments), os.getcwd(), number, count) for number in range(count)])
    finally:
        if own_cluster:
            ray.shutdown()


def run_worker(arguments: list[str], folder: str, number: int, count: int) -> int:
    """The whole life of worker ``number`` of ``count``, in ``folder``; returns its exit code."""
    from hash3d_cuda.cli.main import main

    before = dict(os.environ), os.getcwd()
    os.environ.update(RANK=str(number), WORLD_SIZE=str(count))
    os.chdir(folder)
    try:
        return main(arguments)
    finally:  # Ray keeps the process for other tasks
        os.environ.clear()
        os.environ.update(before[0])
        os.chdir(before[1])
