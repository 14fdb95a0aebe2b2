"""First on PYTHONPATH, it lets the scripts of other projects run where there is no GPU: Python imports it at its start,
in child processes too (threestudio embeds its prompts in one).

Beside it lie stand-ins for packages that need CUDA: what they draw is no picture of the scene, but depends on it and
passes gradients back. What else is not installed, and is named in ``HASH3D_REPLACED``, is replaced by modules that do
nothing, and told on stderr.
"""

import contextlib
import functools
import os
import sys
import time
import types

from foreign_code import Finder


class Telling(Finder):
    """Tells once of every package that is replaced."""

    def __init__(self, names):
        super().__init__(names)
        self._told = set()

    def find_spec(self, fullname, path, target=None):
        spec, package = super().find_spec(fullname, path, target), fullname.partition(".")[0]
        if spec is not None and package not in self._told:
            self._told.add(package)
            print(f"replaced: {package}", file=sys.stderr)
        return spec


class Clock:
    """In the place of ``torch.cuda.Event``."""

    def __init__(self, *args, **kwargs):
        self.time = 0.0

    def record(self, *args):
        self.time = time.perf_counter()

    def elapsed_time(self, end):
        return 1000 * (end.time - self.time)


def download(repo_id, filename, **kwargs):
    """In the place of ``hf_hub_download``: a file that was put into the folder ``repo_id`` under the current one."""
    return os.path.join(repo_id, filename)


def to_pil_image(image):
    from PIL import Image

    return Image.fromarray((image.float().clamp(0, 1) * 255).byte().movedim(0, -1).cpu().numpy())


def to_tensor(image):
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0) / 255


def give_pictures():
    """torchvision's CPU build may not be at hand; what turns pictures into tensors and back is wanted all the same."""
    import torchvision.transforms as transforms

    transforms.ToTensor = lambda: to_tensor
    transforms.Resize = lambda size: lambda image: image.resize(size[::-1])
    transforms.Normalize = lambda mean, std: lambda image: (image - mean[0]) / std[0]  # the same for all channels here
    transforms.Compose = lambda steps: lambda image: functools.reduce(lambda value, step: step(value), steps, image)

    functional = types.ModuleType("torchvision.transforms.functional")
    functional.to_pil_image, functional.to_tensor = to_pil_image, to_tensor
    sys.modules[functional.__name__] = transforms.functional = functional


def leave_cuda_out():
    import huggingface_hub
    import torch

    torch.cuda.Event, torch.cuda.synchronize = Clock, lambda *args: None
    torch.cuda.device = lambda place: contextlib.nullcontext()
    huggingface_hub.hf_hub_download = download
    load = torch.load  # checkpoints of Lightning hold more than tensors, which older torch loaded by default
    torch.load = lambda *args, **kwargs: load(*args, **{"weights_only": False, **kwargs})


if "HASH3D_REPLACED" in os.environ:
    from transformers.utils import is_torchvision_available

    present = is_torchvision_available()  # remembered: transformers is not to take what does nothing for torchvision
    sys.meta_path.append(Telling(tuple(os.environ["HASH3D_REPLACED"].split(","))))
    leave_cuda_out()
    if not present and "torchvision" in os.environ["HASH3D_REPLACED"].split(","):
        give_pictures()
