"""Whether a forward that a hint speaks of will try a retrieval."""

from __future__ import annotations

import random


class Hints:
    """Looks at a cache's coin ahead of its tosses, so that nothing is copied for a forward that will not ask.

    The first hint after a forward is for the next forward, the second for the one after that, and so on.
    """

    def __init__(self, coin: random.Random) -> None:
        self._coin = coin
        self._ahead = 0

    def tries(self, eta: float) -> bool:
        """Takes in a hint; whether its forward tries a retrieval, if eta stays."""
        self._ahead += 1
        coin = random.Random()
        coin.setstate(self._coin.getstate())
        for _ in range(self._ahead - 1):
            coin.random()
        return coin.random() < eta

    def forward(self) -> None:
        """A forward has begun."""
        self._ahead = max(self._ahead - 1, 0)
