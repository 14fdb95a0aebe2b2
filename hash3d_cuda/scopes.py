"""Which blocks of a cache a thread is in."""

from __future__ import annotations

import threading

from .poses import Views
from .sampling import Sampling


class Scopes(threading.local):
    """The ``views`` and ``bypass`` blocks that the current thread is in."""

    def __init__(self) -> None:
        self.views: list[Views | Sampling] = []
        self.bypasses = 0

    @property
    def current(self) -> Views | Sampling | None:
        """What the innermost ``views`` was told; None outside, and inside ``bypass``."""
        return self.views[-1] if self.views and not self.bypasses else None
