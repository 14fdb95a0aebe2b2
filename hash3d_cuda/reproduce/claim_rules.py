"""The rules by which the paper's claims are judged, each on its experiment's results.

A score of ``TOLERANCE`` dB more or less counts as equal: the shipped prior's scores differ by about that from seed to
seed. Each rule raises :class:`Missing` where its experiment was not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from hash3d_cuda.reproduce.claim_data import FAILS, HOLDS, PART, Judgement, Missing, Results, number
from hash3d_cuda.reproduce.paper_numbers import A5000_GIB, IMAGE, TEXT

TOLERANCE = 0.1
CLOSE = 30.0
"""dB: from here on a picture counts as closely matching."""
CHANGE = "PSNR change, dB"


def verdict(*parts: bool) -> str:
    """All, none or some of a claim's parts hold."""
    return HOLDS if all(parts) else PART if any(parts) else FAILS


def nearby_views(results: Results) -> Judgement:
    """Figure 2, pose."""
    summary = results.summary("figure-2")
    least, far, others = (summary.get(name, {}) for name in ("within_10", "far", "others"))
    same, own = number(least, "same noise, raw"), number(least, "own noise, raw")
    centred, wide, strange = number(least, "own noise, centred"), number(far, "raw"), number(others, "raw")
    side = number(far, "azimuth")
    measured = (
        f"at least {same:.3f} within 10 degrees under the same noise and {own:.3f} under each view's own noise "
        f"({centred:.3f} with the features' common mean removed); {wide:.3f} at {side:.0f} degrees; {strange:.3f} "
        "between different objects."
    )
    remark = f"but views {side:.0f} degrees apart are above 0.8 too" if wide > 0.8 else ""
    return Judgement(measured, verdict(same > 0.8, own > 0.8), remark)


def nearby_timesteps(results: Results) -> Judgement:
    """Figure 2, time."""
    rows = [row for row in results.rows("figure-2", along="timestep") if number(row, "offset") <= 30]
    if not rows:
        raise Missing("figure-2 has no timestep offset up to 30")
    same, own = (min(number(row, f"raw, {noise} noise") for row in rows) for noise in ("same", "own"))
    measured = f"at least {same:.3f} up to 30 timesteps away under the same noise, {own:.3f} under another noise."
    return Judgement(measured, verdict(same > 0.8, own > 0.8))


def free_views(results: Results) -> Judgement:
    """Figure 3."""
    five, twenty = (results.row("figure-3", delta=delta) for delta in (5, 20))
    close, low, wide = number(five, "PSNR, dB"), number(five, "lowest"), number(twenty, "PSNR, dB")
    measured = (
        f"at 5 degrees {close:.2f} dB against the generated view (the lowest object {low:.2f}), at 20 degrees "
        f"{wide:.2f} dB; a neighbour shown unchanged has {number(five, 'a neighbour instead, dB'):.2f} dB at 5 "
        "degrees."
    )
    return Judgement(measured, verdict(low >= CLOSE, wide < close - 3), f"close means {CLOSE:.0f} dB for every object")


def macs(results: Results) -> Judgement:
    """The counted MACs."""
    parts, right = [], []
    for model, pair in (("sd21", TEXT), ("zero123", IMAGE)):
        row = results.row("macs", model=model)
        before, after = number(row, "before_gmacs"), number(row, "after_gmacs")
        cost = f"as it really runs, a hit costs {number(row, 'r'):.3f} of a pass"
        parts.append(f"{model} {before:.2f} to {after:.2f} G ({cost})")
        right += [abs(ours - theirs) < 0.005 * theirs for ours, theirs in zip((before, after), pair, strict=True)]
    return Judgement("; ".join(parts) + ".", verdict(*right), "in its convention: attention's products uncounted")


def quality_kept(results: Results) -> Judgement:
    """Tables 1 and 2, PSNR."""
    changes = {}
    for cache in ("own settings", "strong"):
        rows = [r for r in results.rows("tables-1-2") if kind_of(r) == cache]
        if not rows:
            raise Missing(f"tables-1-2 has no runs with the {cache} cache")
        changes[cache] = (mean(number(r, CHANGE) for r in rows), mean(number(r, "x") for r in rows))
    (own, served), (strong, much) = changes["own settings"], changes["strong"]
    measured = (
        f"mean change of PSNR over the systems {own:+.2f} dB at their own settings, where {served:.1%} of the views "
        f"are served, and {strong:+.2f} dB where {much:.1%} are."
    )
    kept, better = own >= -TOLERANCE and strong >= -TOLERANCE, max(own, strong) > TOLERANCE
    if kept:
        return Judgement(measured, verdict(kept, better), "" if better else "kept, not better")
    if own >= -TOLERANCE:
        return Judgement(measured, PART, f"kept only at the recipes' own settings, x {served:.1%}")
    return Judgement(measured, FAILS)


def kind_of(row: Mapping[str, Any]) -> str:
    """Which of tables-1-2's three runs a row is."""
    cache = str(row.get("cache"))
    return "none" if cache == "no cache" else "own settings" if "own settings" in cache else "strong"


def memory(results: Results) -> Judgement:
    """Table 3."""
    full = results.summary("table-3").get("full_size", {})
    rows = results.rows("table-3")
    every = next((r for r in rows if "all features" in str(r.get("retrieval"))), None)
    hashed = next((r for r in rows if "room for every view" in str(r.get("retrieval"))), None)
    if every is None or hashed is None:
        raise Missing("table-3 has no row of storing all features, or none of hashing")
    needed, better = number(full, "all_gib"), number(hashed, CHANGE) - number(every, CHANGE)
    slower = number(every, "seconds in the table") - number(hashed, "seconds in the table")
    measured = (
        f"storing all of DreamFusion's features would need {needed:.1f} GiB (computed; the card has {A5000_GIB}); "
        f"here hashing scores {better:+.2f} dB against storing all, which takes {slower:+.2f} s longer in the table, "
        f"at x {number(hashed, 'x'):.3f} and {number(every, 'x'):.3f}."
    )
    return Judgement(measured, verdict(needed > A5000_GIB, slower > 0, better > -TOLERANCE))


def etas(results: Results) -> list[tuple[float, dict[str, float]]]:
    """Figure 9's curve: (eta, figures), rising."""
    rows = [r for r in results.rows("figure-9", grids="stretched") if isinstance(r.get("eta"), (int, float))]
    names = ("seconds", "speed-up", "bound", "x", CHANGE)
    return sorted(((number(r, "eta"), {n: number(r, n) for n in names}) for r in rows), key=lambda pair: pair[0])


def eta_time(results: Results) -> Judgement:
    """Figure 9, time."""
    curve = etas(results)
    (low, first), (high, last) = curve[0], curve[-1]
    measured = (
        f"from eta {low:g} to {high:g} the loop is {first['speed-up']:.3f} and {last['speed-up']:.3f} times as fast "
        f"as without a cache (bounds {first['bound']:.3f} and {last['bound']:.3f}; x {first['x']:.3f} and "
        f"{last['x']:.3f})."
    )
    return Judgement(measured, verdict(last["speed-up"] > first["speed-up"] + 0.01))


def eta_quality(results: Results) -> Judgement:
    """Figure 9, quality up to 0.3."""
    curve = [(eta, point[CHANGE]) for eta, point in etas(results) if eta < 0.3]
    if not curve:
        raise Missing("figure-9 has no eta below 0.3")
    best = max(change for _, change in curve)
    measured = "change of PSNR " + ", ".join(f"{change:+.2f} dB (eta {eta:g})" for eta, change in curve) + "."
    unchanged = all(abs(change) <= TOLERANCE for _, change in curve)
    return Judgement(measured, HOLDS if best > TOLERANCE else FAILS, "unchanged" if unchanged else "")


def eta_gains(results: Results) -> Judgement:
    """Figure 9, time beyond 0.3."""
    curve = dict(etas(results))
    if not {0.3, 0.7} <= set(curve):
        raise Missing("figure-9 lacks eta 0.3 or 0.7")
    low, middle, high = curve[min(curve)], curve[0.3], curve[0.7]
    rates = [
        (1 / one["speed-up"] - 1 / two["speed-up"]) / span
        for one, two, span in ((low, middle, 0.3 - min(curve)), (middle, high, 0.4))
    ]
    measured = (
        f"time saved per 0.1 of eta, as a share of the run without a cache: {rates[0] / 10:.1%} up to 0.3, "
        f"{rates[1] / 10:.1%} from 0.3 to 0.7; PSNR changes by {high[CHANGE]:+.2f} dB at 0.7."
    )
    return Judgement(measured, verdict(rates[1] < rates[0] / 2))


def noise(results: Results) -> Judgement:
    """Figure 10."""
    eta = max(number(r, "eta") for r in results.rows("figure-10") if isinstance(r.get("eta"), (int, float)))
    features, cached = (results.row("figure-10", cached=name, eta=eta) for name in ("features", "noise"))
    measured = (
        f"at eta {eta:g} PSNR changes by {number(features, CHANGE):+.2f} dB with features (x "
        f"{number(features, 'x'):.3f}) and {number(cached, CHANGE):+.2f} dB with noise (x {number(cached, 'x'):.3f}); "
        f"the loop is {number(features, 'speed-up'):.3f} and {number(cached, 'speed-up'):.3f} times as fast."
    )
    worse = number(cached, CHANGE) < number(features, CHANGE) - TOLERANCE
    return Judgement(measured, verdict(worse, number(cached, "speed-up") > number(features, "speed-up")))


def adaptive(results: Results) -> Judgement:
    """Table 4, at the stronger settings, since at the paper's hardly a view is served."""
    rows = results.rows("table-4", grids="stretched")
    chosen = next((r for r in rows if r.get("cells") == "adaptive"), None)
    constant = [r for r in rows if r is not chosen]
    if chosen is None or len(constant) < 2:
        raise Missing("table-4 has no adaptive row, or less than two constant ones")
    fine, coarse = constant[0], constant[-1]
    measured = "; ".join(f"{r['cells']}: {number(r, CHANGE):+.2f} dB at x {number(r, 'x'):.3f}" for r in rows) + "."
    best = all(number(chosen, CHANGE) >= number(r, CHANGE) - TOLERANCE for r in constant)
    worse = number(coarse, CHANGE) < number(fine, CHANGE) - TOLERANCE
    fewer = number(fine, "x") < number(coarse, "x")
    said = [("adaptive is best", best), ("larger cells are worse", worse), ("smaller cells match less", fewer)]
    wrong = [what for what, right in said if not right]
    return Judgement(measured, verdict(best, worse, fewer), f"not that {', nor that '.join(wrong)}" if wrong else "")


def two_stages(results: Results) -> Judgement:
    """Figure 12."""
    rows = results.rows("figure-12")
    named = {
        text: [r for r in rows if text in str(r.get("retrieval"))] for text in ("ours", "no key", "no aggregation")
    }
    ours, keys, aggregation = (found[0] if found else None for found in named.values())
    if keys is None or aggregation is None or ours is None:
        raise Missing("figure-12 lacks one of its three rows")
    changes = [number(row, CHANGE) for row in (ours, keys, aggregation)]
    measured = (
        f"PSNR changes by {changes[0]:+.2f} dB (complete, x {number(ours, 'x'):.3f}), {changes[1]:+.2f} dB (no key "
        f"hashing, x {number(keys, 'x'):.3f}) and {changes[2]:+.2f} dB (no aggregation, x "
        f"{number(aggregation, 'x'):.3f})."
    )
    worse = [change < changes[0] - TOLERANCE for change in changes[1:]]
    names = [name for name, bad in zip(("no key hashing", "no aggregation"), worse, strict=True) if not bad]
    return Judgement(measured, verdict(*worse), f"not worse: {', '.join(names)}" if names else "")


def position(results: Results) -> Judgement:
    """Figure 14."""
    rows = [r for r in results.rows("figure-14") if isinstance(r.get("position"), int)]
    if len(rows) < 2:
        raise Missing("figure-14 has less than two positions")
    far, near = (choose(rows, key=lambda r: r["position"]) for choose in (max, min))
    measured = (
        f"from position {far['position']} (near the input) to {near['position']} (near the output) the loop is "
        f"{number(far, 'speed-up'):.3f} and {number(near, 'speed-up'):.3f} times as fast, and PSNR changes by "
        f"{number(far, CHANGE):+.2f} and {number(near, CHANGE):+.2f} dB."
    )
    faster = number(near, "speed-up") > number(far, "speed-up") + 0.01
    return Judgement(measured, verdict(faster, number(near, CHANGE) < number(far, CHANGE)))
