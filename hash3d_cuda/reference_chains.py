"""What the oracle holds: chains and running averages, rules 3 to 8 of :mod:`hash3d_cuda.reference`."""

from __future__ import annotations

from . import reference_rules as rules
from .options import TableOptions
from .reference_rules import Entry, Place


class Chains:
    """The entries of a table, those in one slot after the other.

    Attributes:
        chains: for each grid, bucket -> entries, oldest first.
        means: for each grid, bucket -> running average (Eq. 9), where there is one.
        slots: slot -> entry.
    """

    def __init__(self, options: TableOptions, capacity: int) -> None:
        self._options, self._capacity = options, capacity
        self.chains: list[dict[int, list[Entry]]] = [{} for _ in options.grids]
        self.means: list[dict[int, float]] = [{} for _ in options.grids]
        self.slots: dict[int, Entry] = {}

    def leave(self, slot: int) -> None:
        """Rule 5: whatever lies in ``slot`` leaves all its chains. The paper leaves open when; here it is before the
        similarity of the entry that takes the slot is computed, and for a rejected entry as well."""
        entry = self.slots.pop(slot, None)
        if entry is None:
            return
        for grid, place in enumerate(entry.places):
            chain = self.chains[grid].get(place.bucket, [])
            if entry in chain:
                chain.remove(entry)

    def join(self, entry: Entry) -> None:
        """Rules 3, 4 and 7."""
        self.slots[entry.serial % self._capacity] = entry
        candidates = [self.candidates(grid, place) for grid, place in enumerate(entry.places)]
        cosines = rules.cosines(entry, {other.serial: other for others in candidates for other in others})
        for grid, (place, others) in enumerate(zip(entry.places, candidates, strict=True)):
            if others:
                mean = sum(cosines[other.serial] for other in others) / len(others)
                old = self.means[grid].get(place.bucket)
                decay = self._options.similarity_decay
                self.means[grid][place.bucket] = rules.running_average(old, mean, decay)
            chain = self.chains[grid].setdefault(place.bucket, [])
            chain.append(entry)
            if len(chain) > self._options.queue_length:
                chain.pop(0)

    def candidates(self, grid: int, place: Place) -> list[Entry]:
        """Rule 6, newest first."""
        chain = self.chains[grid].get(place.bucket, [])
        if self._options.match == "cell":
            chain = [entry for entry in chain if entry.places[grid].cell == place.cell]
        return chain[::-1]

    def similarity(self, grid: int, bucket: int) -> float:
        """The running average of a bucket."""
        return self.means[grid].get(bucket, rules.float32(self._options.initial_similarity))

    def choose(self, places: list[Place]) -> int | None:
        """Rule 8: the grid to use, or None for a miss."""
        best, chosen = 0.0, None
        for grid, place in enumerate(places):
            score = self.similarity(grid, place.bucket)
            if self.candidates(grid, place) and (chosen is None or score > best):
                best, chosen = score, grid
        limit = self._options.min_similarity
        if chosen is None or (limit is not None and best < rules.float32(limit)):
            return None
        return chosen

    def live(self) -> dict[int, Entry]:
        """Entries in at least one chain, by serial."""
        chains = [chain for by_bucket in self.chains for chain in by_bucket.values()]
        return {entry.serial: entry for chain in chains for entry in chain}
