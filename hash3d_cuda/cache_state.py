"""A cache's state between two processes: its coin, its counters, its tables and what their entries belong to.

Within a process entries are filed under the condition id and a fingerprint of the model, which knows weights by
identity. Another process can only compare what they look like: on loading, all weights must have the names, shapes and
dtypes that they had on saving, and the same numbers at up to 64 places each. Tables of weights that had changed before
the save are left out: nothing could have found their entries any more. A loaded table waits under its condition id and
the rest of the fingerprint (classes and attributes of attention processors, scales of LoRA layers and IP-Adapters,
FreeU, which inputs there are) for a forward that has both.

As long as numbers are finite, decisions are those of a run that was not interrupted. Of an entry with a NaN in it, a
loaded cache on a GPU knows at once; the interrupted one would have heard of it a little later.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import warnings
import zlib
from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import storage
from .cached import CachedForward
from .checks import check_device, fail
from .config import POLICIES
from .control import EtaControl
from .device_forward import DeviceForward
from .fingerprint import ModelState, Same
from .options import TableOptions
from .rows import RowLayout
from .stats import HostTierStats
from .store import TableStore
from .tracked import TrackedTable

if TYPE_CHECKING:
    from .config import Hash3DConfig
    from .hook import Hash3DCache

FORMAT = 1
_ABOUT = {
    "format", "options", "weights", "coin", "counts", "rejected", "host_syncs", "signature", "relearn", "layout",
    "names",
}  # fmt: skip
_EXTRA = {"policy", "host_tier"}  # where options of hash3d_cuda.freshness and .control, or a host_budget, are used
_LEFT_OUT = (
    "hash3d: a table is left out of the saved state: its entries depend on an object, such as an attention processor, "
    "with attributes that another process cannot compare"
)
_PLACES = 64  # of each weight that are compared
_FORMATS = {str(kind): kind for kind in (torch.contiguous_format, torch.channels_last)}


def collect(cache: Hash3DCache) -> dict[str, Any]:
    """See :meth:`Hash3DCache.state_dict`. ``about`` holds JSON values, ``tables`` one dict of tensors for each of
    ``about["names"]``, the one used last at the end (:mod:`hash3d_cuda.storage` describes the tensors)."""
    with cache._hooked.lock:
        unet = _follow(cache, "state_dict")
        cached, store = cache._hooked.cached, cache._hooked.cached.store
        tables = {} if store is None else _portable_tables(store, cache._hooked.state)
        counts = cache._hooked.counted(wait=True)
        version, numbers, gauss = cached._coin.getstate()
        kept = sum(table.rejected for table in tables.values())
        about = {
            "format": FORMAT,
            "options": None if store is None else _options(cache.config, store),
            "weights": sketch(unet),
            "coin": [version, list(numbers), gauss],
            "counts": dict(counts),
            "rejected": cached.rejected - kept,  # by tables that are not among these
            "host_syncs": cache._hooked.copies.count,
            "signature": _plain("sample", cache._hooked.signature),
            "relearn": cache._hooked.relearn,
            "layout": _layout(cached),
            "names": list(tables),
            **_policy(cache, list(tables.values())),
            **_host_tier(cached),
        }
        return {"about": about, "tables": [table.state_dict() for table in tables.values()]}


def restore(
    cache: Hash3DCache, state: Mapping[str, Any], device: torch.device | str | None = None, path: str = "state_dict"
) -> None:
    """See :meth:`Hash3DCache.load_state_dict`; ``path`` is where ``state`` comes from, for messages."""
    about, tables = _check(state, path)
    with cache._hooked.lock:
        unet = _follow(cache, "load_state_dict")
        if about["names"] and about["weights"] != sketch(unet):
            raise ValueError(
                f"{path}: expected the U-Net's weights to be those that the entries were made with, got others; load "
                "the weights before the cache, or leave the cache empty"
            )
        # Without entries there is nothing that the next forward's shape must agree with.
        store = _rebuild(cache, about, tables, device, path) if about["names"] else None
        cached = cache._hooked.cached
        coin = _coin(about["coin"], path)
        policy = _resume_policy(cache, about, store, path)
        past = HostTierStats(**about.get("host_tier", {}))
        cached.forget_shapes()
        cached._coin.setstate(coin)
        cached._rejected, cached.store = about["rejected"], store
        cache._hooked.counts = Counter(about["counts"])
        cache._hooked.copies.count = about["host_syncs"]
        cache._hooked.relearn = about["relearn"]
        cache._hooked.signature = None if store is None else _tuples(about["signature"], store.device)
        if isinstance(cached, DeviceForward):
            cached._before = dict.fromkeys(cached._before, 0)
        elif about["layout"] is not None:
            dtype, form = about["layout"]
            cached._dtype, cached._format = getattr(torch, dtype), _FORMATS[form]
        if isinstance(cached, CachedForward):
            cached.forward, cached.control = policy
            cached.past_tiers = past


def save(cache: Hash3DCache, path: str | os.PathLike[str]) -> None:
    """See :meth:`Hash3DCache.save`."""
    state = collect(cache)
    tensors = {
        f"{place}.{name}": tensor.contiguous()
        for place, table in enumerate(state["tables"])
        for name, tensor in table.items()
    }
    storage.write(path, "cache", json.dumps(state["about"]), tensors)


def load(cache: Hash3DCache, path: str | os.PathLike[str], device: torch.device | str | None = None) -> None:
    """See :meth:`Hash3DCache.load`."""
    text, tensors = storage.read(path, "cache")
    about = json.loads(text)
    tables: list[dict[str, Tensor]] = [{} for _ in about["names"]]
    for name, tensor in tensors.items():
        place, _, field = name.partition(".")
        tables[int(place)][field] = tensor
    restore(cache, {"about": about, "tables": tables}, device, os.fsdecode(path))


class ResumedStore(TableStore):
    """A store with tables that were loaded. Each waits under its portable name, in its turn, for the first forward of
    its condition."""

    def __init__(self, *arguments: Any, state: ModelState, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._state = state
        self._weights = state.weights()  # a change of these ends the wait
        self._waiting = 0

    def adopt(self, name: str, tensors: dict[str, Tensor], path: str) -> None:
        """Puts a table from a file last; raises ValueError when ``tensors`` are none."""
        table = self._build()
        table.load_state_dict(path, tensors)
        self._tables[name] = table
        self._waiting += 1

    def find(self, condition: Hashable) -> TrackedTable | None:
        """The table of ``condition``; see :class:`TableStore`."""
        if self._waiting and condition not in self._tables:
            with contextlib.suppress(TypeError):  # an id that no file could have held
                name = _name(condition, self._weights)
                if name in self._tables:
                    self._tables[condition] = self._tables.pop(name)
                    self._waiting -= 1
        return super().find(condition)


def _follow(cache: Hash3DCache, name: str) -> nn.Module:
    """The U-Net, after the cache has taken note of modules exchanged since the last forward."""
    if cache._hooked.unet is None:
        raise RuntimeError(f"{name}: expected a cache under a U-Net, got one that was removed; apply_hash3d again")
    if cache._hooked.state.look():
        cache._hooked.cut_anew()
    return cache._hooked.unet


def _portable_tables(store: TableStore, state: ModelState) -> dict[str, TrackedTable]:
    """The tables whose entries can still be found, by name, the one used last at the end."""
    weights, named = state.weights(), OrderedDict[str, TrackedTable]()
    condition: Any
    for condition, table in store._tables.items():
        if isinstance(condition, str):  # it waits since the last load
            name = condition if isinstance(store, ResumedStore) and store._weights == weights else None
        else:
            _plain("condition", condition[0])  # the user's own, so that is worth an error
            try:
                name = _name(condition, weights)
            except TypeError:
                name = None
                warnings.warn(_LEFT_OUT, RuntimeWarning, stacklevel=4)
        if name is not None:
            named[name] = table
    return named


def _name(condition: Any, weights: Hashable) -> str | None:
    """What a table of ``condition`` is called in any process; None when it is of other weights than ``weights``."""
    told, fingerprint = condition
    rest = ModelState.without_weights(fingerprint, weights)
    return None if rest is None else json.dumps([_plain("condition", told), _plain("fingerprint", rest)])


def _plain(name: str, value: Any) -> Any:
    """``value`` as JSON values."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(name, part) for part in value]
    if isinstance(value, (torch.dtype, torch.device)):
        return {type(value).__name__: str(value).removeprefix("torch.")}
    if isinstance(value, dict):
        return {"items": {str(key): _plain(name, part) for key, part in value.items()}}
    if isinstance(value, Same):
        return {"object": _plain(name, value.portable())}
    expected = "an id made of strings, numbers, None and tuples of these, which another process can compare"
    fail(TypeError, name, expected, value, "pass such an id to views() in a run that is saved")


def _tuples(value: Any, device: torch.device) -> Any:
    """The reverse of ``_plain`` for tuples, dtypes and the device, which is ``device`` now."""
    if isinstance(value, dict):
        return device if "device" in value else getattr(torch, value["dtype"])
    return tuple(_tuples(part, device) for part in value) if isinstance(value, list) else value


def _options(config: Hash3DConfig, store: TableStore) -> dict[str, Any]:
    """What must be the same for the entries to be of use."""
    arguments = {**store._arguments, "device": "cpu"}
    options = TableOptions.build(store.feature_shape, store._latent_shape, **arguments)
    rows = config.rows if isinstance(config.rows, str) else _items(config)
    table = storage.options_record(options, options.resolve_capacity())
    about = {"position": config.position, "groups": config.groups, "rows": rows, "mode": config.mode, **table}
    about["host_entries"] = store.host_entries(options)
    return {**json.loads(json.dumps(about)), "device": str(store.device)}


def _items(config: Hash3DConfig) -> Any:
    """What an order of rows of the user's own does with small batches: the order in an entry's feature follows it."""
    layout, found = RowLayout(config.rows, config.groups), []
    for batch in (1, 2, 3):
        try:
            found.append(layout.items(batch))
        except ValueError:  # it is for one size of batch only
            found.append([])
    return found if any(found) or callable(config.rows) else [layout.items(len(config.rows))]


def _policy(cache: Hash3DCache, tables: list[TrackedTable]) -> dict[str, Any]:
    """What :mod:`hash3d_cuda.freshness` and :mod:`hash3d_cuda.control` keep, as JSON values; nothing where none of
    their options is used."""
    config, cached = cache.config, cache._hooked.cached
    if not isinstance(cached, CachedForward) or all(getattr(config, name) is None for name in POLICIES):
        return {}
    kept = [table.freshness.state() if table.freshness is not None else None for table in tables]
    return {"policy": {"forward": cached.forward, "control": cached.control.state(), "freshness": kept}}


def _host_tier(cached: CachedForward | DeviceForward) -> dict[str, Any]:
    """What host tiers have done, as JSON values; nothing without them."""
    done = cached.host_tier if isinstance(cached, CachedForward) else None
    return {} if done is None else {"host_tier": asdict(done.past())}


def _resume_policy(
    cache: Hash3DCache, about: dict[str, Any], store: TableStore | None, path: str
) -> tuple[int, EtaControl]:
    """The reverse: the number of the last forward, and what moves eta; what tables hold goes to them."""
    saved, control = about.get("policy"), EtaControl.of(cache.config, cache._hooked.copies)
    if saved is None:
        return 0, control
    tables = [] if store is None else store._tables.values()
    try:
        for table, state in zip(tables, saved["freshness"], strict=True):
            if table.freshness is not None and state is not None:
                table.freshness.load(state)
        control.load(saved["control"])
        return int(saved["forward"]), control
    except (TypeError, ValueError, KeyError):
        fail(ValueError, path, "the policy that Hash3DCache.state_dict() returned", saved, "save it again")


def _layout(cached: CachedForward | DeviceForward) -> list[str] | None:
    """dtype and memory format of the features as the model makes them, where the forward keeps note of them."""
    if isinstance(cached, DeviceForward):
        return None
    return [str(cached._dtype).removeprefix("torch."), str(cached._format)]


def _check(state: Mapping[str, Any], path: str) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    expected = "what Hash3DCache.state_dict() returned"
    if not isinstance(state, Mapping) or set(state) != {"about", "tables"}:
        fail(ValueError, path, expected, state, "save it again")
    about, tables = state["about"], state["tables"]
    if not isinstance(about, dict) or set(about) - _EXTRA != _ABOUT:
        fail(ValueError, path, expected, about, "save it again")
    if about.get("format") != FORMAT:
        fail(ValueError, path, f"a state of format {FORMAT}", about.get("format"), "save it with this release")
    if len(tables) != len(about["names"]) or any(set(table) - {"scales"} != set(storage.NAMES) for table in tables):
        fail(ValueError, path, f"{expected}, with its tables", [sorted(table) for table in tables], "save it again")
    return about, tables


def _coin(state: Any, path: str) -> tuple[Any, ...]:
    """The state of a random.Random from JSON values; raises ValueError when it is none."""
    try:
        version, numbers, gauss = state
        random.Random().setstate((version, tuple(numbers), gauss))
    except (TypeError, ValueError, OverflowError):
        fail(ValueError, path, "the coin that Hash3DCache.state_dict() returned", state, "save it again")
    return version, tuple(numbers), gauss


def _rebuild(
    cache: Hash3DCache, about: dict[str, Any], tables: list[dict[str, Tensor]], device: Any, path: str
) -> ResumedStore:
    """A store with the tables of a state; raises ValueError when the cache's options are others."""
    saved = about["options"]
    place = check_device("device", saved["device"] if device is None else device)
    place = torch.empty(0, device=place).device  # as tensors there name it: samples are compared with it
    store = ResumedStore(
        cache.config, saved["feature_shape"], saved["latent_shape"], getattr(torch, saved["feature_dtype"]),
        place, cache._hooked.copies,
        followed=cache._hooked.device is None, state=cache._hooked.state,
    )  # fmt: skip
    for name, mine in _options(cache.config, store).items():
        if name != "device" and mine != saved.get(name):
            remedy = "apply_hash3d with the options of the run that saved it, or leave the cache empty"
            fail(ValueError, f"{path}: {name}", repr(saved.get(name)), mine, remedy)
    if len(tables) > cache.config.max_conditions:
        expected = f"at most max_conditions ({cache.config.max_conditions}) tables"
        fail(ValueError, path, expected, len(tables), f"pass max_conditions={len(tables)} and the memory for it")
    for name, tensors in zip(about["names"], tables, strict=True):
        store.adopt(name, tensors, path)
    return store


def sketch(unet: nn.Module) -> int:
    """CRC-32 of all weights' names, shapes and dtypes, and of their numbers at evenly spaced places."""
    told, drawn = [], []
    for name, weight in (*unet.named_parameters(), *unet.named_buffers()):
        told.append(f"{name} {list(weight.shape)} {weight.dtype}")
        if not weight.is_meta and weight.numel():
            places = torch.linspace(0, weight.numel() - 1, min(_PLACES, weight.numel()), dtype=torch.float64).long()
            flat, places = weight.detach(), places.to(weight.device)
            # channels_last: without a copy, from the same places
            at = (places,) if flat.is_contiguous() else torch.unravel_index(places, flat.shape)
            flat = (flat.view(-1) if flat.is_contiguous() else flat)[at]
            drawn.append(flat.to(torch.float32))
    total = zlib.crc32("\n".join(told).encode())
    for tensor in drawn:
        total = zlib.crc32(tensor.cpu().numpy().data, total)
    return total
