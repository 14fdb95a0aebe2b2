"""The pieces of a device-side forward without graphs: the host reads what they decided, and runs them one by one."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from hash3d_cuda.device_forward import DeviceForward
from hash3d_cuda.device_runner import Pieces


class EagerRunner:
    """In place of ``GraphRunner``, on any device."""

    made = 0
    launches = 0
    bodies = 0

    def __init__(self, pieces: Pieces, unet: nn.Module) -> None:
        self.pieces, self.unet = pieces, unet
        self.weights = [weight.data_ptr() for weight in unet.parameters()]
        type(self).made += 1

    @staticmethod
    def check_machine() -> None: ...

    @staticmethod
    def check_sample(sample: Tensor) -> None: ...

    def is_stale(self) -> bool:
        return [weight.data_ptr() for weight in self.unet.parameters()] != self.weights

    def launch(self) -> None:
        with self.pieces.running():
            self.pieces.before()
            if self.pieces.need.item():
                type(self).bodies += 1
                self.pieces.body()
            self.pieces.after()
        type(self).launches += 1


@pytest.fixture
def eager_runner(monkeypatch: pytest.MonkeyPatch) -> type[EagerRunner]:
    """What device-side forwards run on within the test; its counters start from 0."""

    class Fresh(EagerRunner): ...

    monkeypatch.setattr(DeviceForward, "runner", Fresh)
    return Fresh
