"""NaN and infinity, noticed cheaply: prior weights once, the loss as the run goes."""

from __future__ import annotations

import torch
from torch import Tensor


class NonFinite(RuntimeError):
    """A number that should be finite is not; the message says which and what to do."""


def require_finite_weights(name: str, module: torch.nn.Module) -> None:
    """Raises NonFinite when a parameter or buffer of ``module`` holds NaN or infinity; synchronises once."""
    sums = {key: value.float().sum() for key, value in module.state_dict().items() if value.is_floating_point()}
    if not sums or torch.stack(list(sums.values())).isfinite().all():
        return
    for key in sums:
        if not module.state_dict()[key].isfinite().all():
            raise NonFinite(
                f"prior: {name} has NaN or infinite weights in {key!r}; the files are damaged, "
                "download or train them again"
            )


class LossWatch:
    """Says when a loss was not finite, without making the host wait.

    On the CPU every loss is looked at as it comes. On CUDA a flag on the device collects them and is copied
    to the host in the background; the answer arrives a few steps late.
    """

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        if self.cuda:
            self._bad = torch.zeros((), dtype=torch.bool, device=device)
            self._host = torch.zeros((), dtype=torch.bool, pin_memory=True)
            self._copied: torch.cuda.Event | None = None

    def check(self, loss: Tensor, step: int) -> None:
        """Raises NonFinite when this loss, or on CUDA an earlier one, was NaN or infinite."""
        if not self.cuda:
            bad = not bool(loss.detach().isfinite())
        else:
            self._bad.logical_or_(~loss.detach().isfinite())
            bad = self._poll()
        if bad:
            raise NonFinite(
                f"loss: NaN or infinity at step {step}; lower --guidance-scale or the learning rate, "
                "or check the prior's weights"
            )

    def _poll(self) -> bool:
        if self._copied is not None and not self._copied.query():
            return False
        bad = self._copied is not None and bool(self._host)
        self._host.copy_(self._bad, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record(torch.cuda.current_stream(self._bad.device))
        return bad
