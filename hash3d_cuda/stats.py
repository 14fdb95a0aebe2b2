"""What the cache under a U-Net has done."""

from __future__ import annotations

from dataclasses import dataclass


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
        )
