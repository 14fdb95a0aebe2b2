"""One forward through the cache: coin -> (bypass | look-up) -> head -> deep of what misses -> append -> tail."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checks import QUANTISED_DTYPES, fail
from .config import Hash3DConfig
from .control import EtaControl, relative_errors
from .freshness import sketch_items
from .host_tier.hints import Hints
from .parts import Parts
from .poses import HostCopies
from .rows import RowLayout, memory_format_of, places_by
from .stats import Decision, HostTierStats
from .store import TableStore
from .unet.adapter import Call
from .unet.call import take_rows

if TYPE_CHECKING:
    from .distributed.exchange import Exchange

_Found = list[Tensor | None]  # per item its feature [G, ...], or None where the full U-Net must run


class CachedForward:
    """Runs calls through ``parts`` and the tables, which it builds when the first feature shows its shape.

    All calls must be of one shape per item until ``forget_shapes()``; the caller sees to that. With ``exchange``, every
    rank's call is one exchange: what any of them computed is appended by all, in rank order.
    """

    def __init__(
        self,
        config: Hash3DConfig,
        layout: RowLayout,
        parts: Parts,
        latent_channels: int,
        copies: HostCopies,
        exchange: Exchange | None = None,
    ) -> None:
        self.store: TableStore | None = None
        self._config = config
        self.layout = layout
        self._parts = parts
        self._copies = copies
        self._exchange = exchange
        self._latent_channels = latent_channels
        self._coin = random.Random(config.seed)  # its own: nobody's random state is touched
        self._hints = Hints(self._coin)
        self.control = EtaControl.of(config, copies)
        self.forward = 0  # how many there were: what entries' ages are counted in
        self._room: Tensor | None = None  # [B, G, ...] of the table's answers, what retrievals write into
        self._dtype = torch.float32  # of the features as the model makes them; so is the format
        self._format = torch.contiguous_format
        self._rejected = 0  # by stores since dropped
        self.past_tiers = HostTierStats()  # likewise, what their tiers did

    def __call__(self, call: Call, keys: Tensor, conditions: Sequence[Hashable]) -> tuple[Tensor, Decision]:
        """Returns the U-Net's output ``[rows, out_channels, H, W]``, and what became of the items.

        Args:
            call: the U-Net's arguments.
            keys: float32 ``[B, 4]`` on the host.
            conditions: per item, what its entries are filed under.
        """
        items = self.layout.items(len(keys))
        latents = self._latents(call.sample, [rows[0] for rows in items])
        self._hints.forward()
        self.forward += 1
        audited = self.control.begin(self.forward)
        tried = self._coin.random() < self.control.eta
        with self._parts.during(call) as entered:
            state, sketch = None, None
            if self._config.max_change is not None:  # what the head says decides
                state = self._parts.prepare(call, entered)
                sketch = self._copies.fetch("max_change", sketch_items(state[0], items))
            found = self._retrieve(keys, latents, conditions, sketch) if tried or audited else [None] * len(items)
            if self._config.max_change is None:
                state = self._parts.prepare(call, entered)
            retrieved: _Found = []
            if audited:  # all are computed
                found, retrieved = [None] * len(items), found
            missing = [item for item, entry in enumerate(found) if entry is None]
            feature = None
            if missing:
                rows = [row for item in missing for row in items[item]]
                feature = self._parts.compute(call, state, rows if len(missing) < len(items) else None)
                # When all rows ran, they came in the batch's order.
                own = take_rows(feature, rows, len(feature)) if len(missing) == len(items) else feature
                self._dtype, self._format = feature.dtype, memory_format_of(own)
                entries = own.unflatten(0, (len(missing), self.layout.groups))
            if self._exchange is not None:
                self._append_all(keys, latents, conditions, missing, entries if missing else None, tried)
            elif missing:
                self._append(keys, latents, conditions, missing, entries, sketch)
            # What comes before: under FreeU the tail scales the feature in place.
            served = self._audit(state, retrieved, entries) if audited else None
            output = self._parts.finish(state, self._merge(found, missing, feature))
            if audited:
                errors = None if served is None else relative_errors(served, output, items)
                self.control.note(self.forward, errors, [entry is not None for entry in retrieved])
        self.control.observe(len(items) - len(missing), len(items))
        fallback = "miss" if tried else "bypass"
        return output, Decision(tuple(fallback if entry is None else "hit" for entry in found))

    @property
    def rejected(self) -> int:
        """Items that were not stored because something in them was not finite."""
        return self._rejected + (0 if self.store is None else self.store.rejected)

    @property
    def host_tier(self) -> HostTierStats | None:
        """What the host tiers hold and did; None without ``host_budget``."""
        if self._config.host_budget is None:
            return None
        now = None if self.store is None else self.store.host_tier
        return self.past_tiers if now is None else self.past_tiers + now

    def prefetch(self, keys: Tensor, conditions: Sequence[Hashable]) -> None:
        """Has host tiers prepare for a forward to come with ``keys`` ``[B, 4]``, on the host, and the user's own
        ``conditions``, one per item."""
        if self._hints.tries(self.control.eta) and self.store is not None:
            for condition, members in places_by(conditions).items():
                self.store.prefetch(condition, keys[members])

    def forget_shapes(self) -> None:
        """Drops tables and buffers, so that the next forward may have another shape."""
        self._rejected = self.rejected
        self.past_tiers = (self.host_tier or HostTierStats()).past()
        self.store = self._room = None

    def sit_out(self) -> None:
        """Follows a forward that went to the plain U-Net here, while another rank tossed its coin and counted."""
        self._coin.random()
        self.forward += 1

    def take_as_one(self, rows: int) -> None:
        """Makes a batch of ``rows`` rows one item. Entries of another number of rows are dropped."""
        stored = rows if self.store is None else self.store.feature_shape[0]
        if stored != rows:
            self.forget_shapes()
        if self.layout.groups != rows:
            self.layout = RowLayout("group-major", rows)
            self._room = None

    def release(self) -> None:
        """Lets go of the model; no call may follow."""
        del self._parts

    def _latents(self, sample: Tensor, firsts: Sequence[int]) -> Tensor:
        """The noisy part of every item's first row, ``[B, out_channels, H, W]``."""
        return take_rows(sample, firsts, len(sample))[:, : self._latent_channels]

    def _retrieve(self, keys: Tensor, latents: Tensor, conditions: Sequence[Hashable], sketch: Tensor | None) -> _Found:
        """Queries the table of every condition for its items. What comes back lives in ``_room`` until the next
        call."""
        found: _Found = [None] * len(keys)
        if self.store is None:
            return found
        start = 0
        for condition, members in places_by(conditions).items():
            table = self.store.find(condition)
            if table is None:
                continue
            asked = take_rows((keys, latents), members, len(keys))
            room = self._make_room(len(keys))[start : start + len(members)]
            start += len(members)
            told = self.forward, None if sketch is None else sketch[members]
            hits = table.query(*asked, room, *told)
            for item, hit, feature in zip(members, hits, room, strict=True):
                found[item] = feature if hit else None
        return found

    def _append(
        self,
        keys: Tensor,
        latents: Tensor,
        conditions: Sequence[Hashable],
        missing: Sequence[int],
        entries: Tensor,
        sketch: Tensor | None,
    ) -> None:
        """Stores what was computed for the ``missing`` items: ``entries`` ``[len(missing), G, ...]``."""
        store = self._make_store(latents, entries)
        for condition, places in places_by([conditions[item] for item in missing]).items():
            members = [missing[place] for place in places]
            store.get(condition).append(
                *take_rows((keys, latents), members, len(keys)),
                take_rows(entries, places, len(entries)),
                self.forward,
                None if sketch is None else sketch[members],
            )

    def _append_all(
        self,
        keys: Tensor,
        latents: Tensor,
        conditions: Sequence[Hashable],
        missing: Sequence[int],
        entries: Tensor | None,
        tried: bool,
    ) -> None:
        """Stores what all ranks computed; this one ``entries`` for the ``missing`` items, None where all hit."""
        assert self._exchange is not None
        if len(set(conditions)) > 1:
            expected = "one condition per forward with a process_group"
            fail(ValueError, "condition", expected, sorted({str(told) for told in conditions}), "call once for each")
        condition: Any = conditions[0]
        table = None if self.store is None else self.store.find(condition)
        if entries is None:  # all hit, so there is a store
            entries = torch.empty(0, *self.store.feature_shape, dtype=self._dtype, device=self.store.device)
        stored = torch.float16 if self._config.feature_dtype in QUANTISED_DTYPES else self._config.feature_dtype
        if stored is not None and stored.itemsize < entries.dtype.itemsize:
            entries = entries.to(stored)  # as the tables do it, so that no bytes are sent in vain
        entries = entries.contiguous()
        mine = take_rows(latents, missing, len(latents)) if missing else latents[:0]
        serial = 0 if table is None else table.appended
        gathered = self._exchange.gather(
            keys[list(missing)],
            mine.contiguous(),
            entries,
            serial,
            tried,
            condition[0],  # [1] is this process's own
        )
        if gathered is None:
            return
        *items, counts = gathered
        if sum(counts):
            self._make_store(latents, entries).get(condition).append(*items, self.forward)

    def _audit(self, state: Any, retrieved: _Found, entries: Tensor) -> Tensor | None:
        """The output as it would be with what was ``retrieved`` in the place of what was computed, ``entries`` [B, G,
        ...]; None where nothing was."""
        if all(entry is None for entry in retrieved):
            return None
        pairs = zip(retrieved, entries, strict=True)
        mixed = [own if entry is None else entry.to(self._dtype) for entry, own in pairs]
        return self._parts.finish(state, self.layout.assemble(mixed).contiguous(memory_format=self._format))

    def _make_store(self, latents: Tensor, entries: Tensor) -> TableStore:
        """The store, built when the first entries show their shape."""
        if self.store is None:
            shapes = entries.shape[1:], latents.shape[1:]
            self.store = TableStore(self._config, *shapes, self._dtype, entries.device, self._copies)
        return self.store

    def _merge(self, found: _Found, missing: Sequence[int], feature: Tensor | None) -> Tensor:
        """The features of all rows, in the batch's order: those retrieved and those computed."""
        if feature is not None and len(missing) == len(found):
            return feature
        entries = [entry if entry is None else entry.to(self._dtype) for entry in found]
        for place, item in enumerate(missing):
            entries[item] = feature.unflatten(0, (len(missing), self.layout.groups))[place]
        return self.layout.assemble(entries).contiguous(memory_format=self._format)

    def _make_room(self, batch: int) -> Tensor:
        """A buffer ``[batch, G, ...]`` that retrievals share."""
        if self._room is None or len(self._room) < batch:
            store = self.store
            with torch.inference_mode(False):  # or it could not be written to outside inference mode
                shape = (batch, *store.feature_shape)
                self._room = torch.empty(shape, dtype=store.answer_dtype, device=store.device)
        return self._room[:batch]
