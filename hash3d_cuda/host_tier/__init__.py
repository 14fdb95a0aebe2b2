"""A second tier in pinned host memory, for more entries than a GPU has room for; off by default.

Together the table on the device and the tier behind it are one table of the tier's capacity: the serials, chains and
candidates are that table's, whichever of its entries lie where. The device has the newest entries; the host has a copy
of every entry, made in stored form by copies that nothing waits for. An entry that only the host has comes back when
:meth:`hash3d_cuda.hook.Hash3DCache.prefetch` names the views that will want it. Nothing waits for it then either: where
a copy is not over when a retrieval needs it, the device answers from what it has.

    front.py    the table on the device, with slots for what comes back, and the query over slots that the host names
    tier.py     which entry is where, appends, retrievals, saved states
    landing.py  the slots for what comes back
    copier.py   the copies: at once on a CPU; on a GPU on side streams, to and from pinned memory
    hints.py    whether a forward to come will try a retrieval

None of this is in the paper.
"""

from __future__ import annotations

from .front import FrontTable
from .tier import HostTier

__all__ = ["FrontTable", "HostTier"]
