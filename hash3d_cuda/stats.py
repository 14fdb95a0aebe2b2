"""What the cache under a U-Net has done."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace


@dataclass(frozen=True)
class Decision:
    """What became of the items of one forward.

    Attributes:
        kinds: per item ``"hit"``, ``"miss"`` or ``"bypass"``. Empty when the cache stayed out of it.
        plain: why the U-Net ran as if there were no cache (``"outside views"``, ``"gradients"``, ...), else None.
    """

    kinds: tuple[str, ...] = ()
    plain: str | None = None

    @property
    def kind(self) -> str:
        """``"hit"`` when every item hit (only the shallow part ran), ``"partial"`` when some did, ``"miss"`` or
        ``"bypass"`` when all ran in full, ``"plain"`` when the cache stayed out of it."""
        if self.plain is not None:
            return "plain"
        return self.kinds[0] if len(set(self.kinds)) == 1 else "partial"


@dataclass(frozen=True)
class HostTierStats:
    """What a host tier (:mod:`hash3d_cuda.host_tier`) holds and has done.

    Attributes:
        entries: held on the host now, those that the device has too included.
        capacity: entries that there is room for.
        nbytes: bytes of host memory.
        hits: items served with an entry that had left the device.
        late: items with such an entry that was not there in time. The device alone answered: from other entries, or
            with a miss.
        bytes_down, bytes_up: copied to the host and to the device.
    """

    entries: int = 0
    capacity: int = 0
    nbytes: int = 0
    hits: int = 0
    late: int = 0
    bytes_down: int = 0
    bytes_up: int = 0

    def __add__(self, other: HostTierStats) -> HostTierStats:
        return HostTierStats(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def past(self) -> HostTierStats:
        """The same without what is held: of a tier that is gone."""
        return replace(self, entries=0, capacity=0, nbytes=0)

    def __str__(self) -> str:
        return (
            f"host tier: {self.entries} of {self.capacity} entries ({self.nbytes / 2**20:.1f} MiB), {self.hits} hits, "
            f"{self.late} late, {self.bytes_down / 2**20:.1f} MiB down, {self.bytes_up / 2**20:.1f} MiB up"
        )


@dataclass(frozen=True)
class CacheStats:
    """Counters since ``apply_hash3d``; ``clear()`` does not reset them.

    Attributes:
        forwards: U-Net calls inside ``views``.
        hits, misses: items whose retrieval did, or did not, find a candidate.
        bypasses: items for which none was tried: by the coin, or because the call could not be cached (gradients,
            another shape, ...).
        rejected: items not stored because something in them was not finite. A GPU is waited for to know it.
        rows_saved: rows of the batch that skipped the deep part.
        nbytes: bytes of the tables.
        host_syncs: copies from a GPU to the host that a decision waited for.
        audits: items of audits that would have been served (:mod:`hash3d_cuda.control`). They were computed, and so
            count as misses, or as bypasses where the coin said so.
        audited_error: the mean relative error that serving these would have made, 0 to 1; None without any. A GPU is
            waited for to know it.
        host_tier: a :class:`HostTierStats` for all tables together; None without ``host_budget``.
    """

    forwards: int
    hits: int
    misses: int
    bypasses: int
    rejected: int
    rows_saved: int
    nbytes: int
    host_syncs: int
    audits: int = 0
    audited_error: float | None = None
    host_tier: HostTierStats | None = None

    @property
    def hit_rate(self) -> float:
        """``hits / (hits + misses)``; 0.0 before the first retrieval."""
        tried = self.hits + self.misses
        return self.hits / tried if tried else 0.0

    def __str__(self) -> str:
        audits = f", {self.audits} audited (error {self.audited_error:.1%})" if self.audited_error is not None else ""
        return (
            f"{self.forwards} forwards: {self.hits} hits, {self.misses} misses, {self.bypasses} bypasses "
            f"(hit rate {self.hit_rate:.1%}), {self.rows_saved} rows saved, {self.rejected} rejected, "
            f"{self.nbytes / 2**20:.1f} MiB, {self.host_syncs} host syncs{audits}"
            + ("" if self.host_tier is None else f"; {self.host_tier}")
        )
