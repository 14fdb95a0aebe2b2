"""Which entries a host tier brings back to the device during a simulated run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hash3d_cuda.host_tier.landing import Landing


class ComingBack:
    """Counts copies as :class:`hash3d_cuda.host_tier.HostTier` makes them, with its book of the slots for what comes
    back: an entry stays in one until another needs the room, and is not copied again before that.

    Args:
        front: entries on the device, the newest ones.
        landing: slots there for those that come back.
    """

    def __init__(self, front: int, landing: int) -> None:
        self._front, self._landing = front, Landing(range(landing))
        self.copied = 0

    def serve(self, found: np.ndarray, hits: np.ndarray, stored: int, hinted: bool) -> int:
        """Follows a look-up.

        Args:
            found: int64 ``[B, M, Q]``, the candidates' serials, -1 for none.
            hits: bool ``[B]``, the items that are served.
            stored: entries so far.
            hinted: whether the tier was told of the items beforehand; it then brings back what any of them wants,
                served or not, as far as there is room for all together.

        Returns:
            how many of the items that are served need an entry that only the host has.
        """
        away = (found >= 0) & (found < stored - self._front)
        if not away.any():
            return 0
        wanted = [sorted(set(row[mask].tolist())) for row, mask in zip(found, away, strict=True)]
        keep: set[int] = set()
        for serials in wanted if hinted else ():
            if self._bring(serials, keep):
                keep.update(serials)
        served = [serials for serials, hit in zip(wanted, hits, strict=True) if hit and serials]
        for serials in served:
            self._bring(serials, set())
        return len(served)

    def _bring(self, serials: Sequence[int], keep: set[int]) -> bool:
        """Copies what is not there yet; False where there is no room."""
        places = self._landing.take(serials, keep)
        self.copied += len(places or ())
        return places is not None
