"""Commands of processes that find other people's packages imported: that takes longer than a short command does.

    python tests/warm_process.py SOCKET                   serves until its standard input is closed
    python -I -S tests/warm_process.py SOCKET hash3d ...  a command like the installed one, of a child of the server

The child has the caller's arguments, folder, environment, standard input and outputs, and imports ``hash3d_cuda`` anew,
as a command of its own would; the caller ends with its exit status. Not for signals: those reach the caller alone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys

# What the commands import sooner or later, of other people's.
PACKAGES = (
    "torch", "diffusers.models.unets.unet_2d_condition", "diffusers.schedulers.scheduling_ddpm",
    "diffusers.models.autoencoders.autoencoder_kl", "diffusers.models.autoencoders.autoencoder_tiny",
    "transformers.models.clip.modeling_clip", "matplotlib.figure", "matplotlib.backends.backend_agg", "PIL.Image",
    "scipy.spatial", "scipy.ndimage", "scipy.stats", "skimage.measure", "torchmetrics.functional.image",
    "trimesh", "tqdm",
)  # fmt: skip
OWN = "hash3d_cuda"
LOST = 70  # the exit status where there is none to pass on


def serve(path: str) -> list[str] | None:
    """Answers requests; returns None at the end, and a request's command in the child that is to run it."""
    import gc
    import importlib

    gc.disable()
    for name in PACKAGES:
        importlib.import_module(name)
    gc.enable()
    gc.freeze()  # what stays for ever; looking through it, a child would also make copies of its memory
    assert not any(name.split(".")[0] == OWN for name in sys.modules)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a guardian ended
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path + ".new")
        listening.listen()
        os.rename(path + ".new", path)  # from now on it may be asked
        while True:
            ready, _, _ = select.select([listening, sys.stdin], [], [])
            if sys.stdin in ready:
                return None
            asking, _ = listening.accept()
            with asking:
                if os.fork() == 0:
                    listening.close()
                    return guard(asking)


def guard(asking: socket.socket) -> list[str]:
    """Forks the command's process, which returns the command; this one passes its exit status on and ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    command = os.fork()
    if command != 0:
        _, status = os.waitpid(command, 0)
        code = os.waitstatus_to_exitcode(status)
        asking.sendall(bytes([code if code >= 0 else 128 - code]))
        os._exit(0)
    _, files, _, _ = socket.recv_fds(asking, 1, 3)
    with asking.makefile("r", encoding="utf-8") as lines:
        request = json.load(lines)
    asking.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    return request["command"]


def run(command: list[str]) -> int:
    """What the installed script of that name does."""
    if command[0] != "hash3d":
        raise ValueError(f"expected hash3d, got {command[0]!r}")
    sys.argv = command
    sys.path.pop(0)  # this folder
    from hash3d_cuda.cli.main import main

    return main()


def ask(path: str, command: list[str]) -> int:
    """Has the server run the command; returns its exit status."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [b"-"], [0, 1, 2])
        request = {"command": command, "folder": os.getcwd(), "environment": dict(os.environ)}
        server.sendall(json.dumps(request).encode())
        server.shutdown(socket.SHUT_WR)
        answer = server.recv(1)
    return answer[0] if answer else LOST


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
    asked = serve(sys.argv[1])
    sys.exit(0 if asked is None else run(asked))
