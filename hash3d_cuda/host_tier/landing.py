"""The slots in which entries from the host land: which entry is where, and whether it is there yet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class Place:
    """Where an entry lands.

    Attributes:
        slot: of the device's table.
        copied: the ticket of its copy, see :mod:`.copier`.
        there: whether the copy is known to be over.
    """

    slot: int
    copied: Any = None
    there: bool = False


class Landing:
    """Slots and the entries in them. A new entry takes the place of the one not asked for for longest."""

    def __init__(self, slots: Sequence[int]) -> None:
        self._slots = slots
        self._read: dict[int, Any] = {}  # by slot: when it was read last; it outlives the entry
        self.clear()

    def clear(self) -> None:
        """Forgets all entries. What is still being copied or read stays in order: tickets of reads are kept."""
        self._free = list(self._slots)[::-1]
        self._places: OrderedDict[int, Place] = OrderedDict()

    def poll(self, arrived: Callable[[Any], bool]) -> None:
        """Looks which copies are over by now."""
        for place in self._places.values():
            place.there = place.there or arrived(place.copied)

    def holds(self, serials: Iterable[int]) -> bool:
        """Whether all these entries are there."""
        places = [self._places.get(serial) for serial in serials]
        return all(place is not None and place.there for place in places)

    def slot(self, serial: int) -> int:
        """Where an entry is that :meth:`holds` knows."""
        return self._places[serial].slot

    def take(self, serials: Collection[int], keep: Collection[int]) -> dict[int, Place] | None:
        """New places for those of ``serials`` that have none; no entry of ``keep`` leaves for them. None: there is not
        that much room."""
        for serial in serials:
            if serial in self._places:
                self._places.move_to_end(serial)
        new = [serial for serial in serials if serial not in self._places]
        leaving = [serial for serial in self._places if serial not in keep and serial not in serials]
        if len(new) > len(self._free) + len(leaving):
            return None
        for serial in leaving[: max(len(new) - len(self._free), 0)]:
            self._free.append(self._places.pop(serial).slot)
        taken = {serial: Place(self._free.pop()) for serial in new}
        self._places.update(taken)
        return taken

    def last_read(self, places: Iterable[Place]) -> list[Any]:
        """The tickets of the last reads of these slots."""
        return [self._read[place.slot] for place in places if place.slot in self._read]

    def note_read(self, serials: Iterable[int], ticket: Any) -> None:
        """Files that the slots of ``serials`` were read."""
        for serial in serials:
            self._read[self._places[serial].slot] = ticket
