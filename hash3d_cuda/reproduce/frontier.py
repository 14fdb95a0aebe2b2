"""Quality over speed-up, ours beside what others do: the paper's eta, reuse at intervals, the released indexing."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from hash3d_cuda.reproduce import studies
from hash3d_cuda.reproduce.base import Context, Unit
from hash3d_cuda.reproduce.summary import average, change, over_objects, pictures, pyplot, row, save, signed
from hash3d_cuda.reproduce.sweep import BASELINE, label

ID = "frontier"
TITLE = "Quality over speed-up"
PAPER = {"claim": "1.5 to 4 times as fast at equal quality; eta from 0.01 to 0.7, chosen 0.1"}
SIZE = {"objects": 8, "steps": 140}
"""Of a run of this experiment alone: the first eight objects are none that the sampler's settings were chosen on."""
ETAS = (0.1, 0.5, 0.9)
INTERVALS = (4, 7)
REUSE = {2: (85,), 3: (70, 85), 4: (70, 85)}
BOUND_DB, BOUND_SSIM, BOUND_X, BOUND_SPEED = 0.2, 0.01, 0.85, 2.5

Told = dict[str, Any]


def anchored(share: int, position: int) -> Told:
    """The anchored sampler's variant."""
    return {"ablation": f"anchored-{share}" + (f"-position-{position}" if position != 2 else "")}


SPREAD: Told = {"ablation": "anchored-85-spread"}

CURVES: dict[str, list[Told]] = {
    "paper: eta, its grids stretched": [{"ablation": "default", "eta": eta, "grids": "stretched"} for eta in ETAS],
    "reuse at intervals": [{"ablation": f"interval-{n}"} for n in INTERVALS],
    "released indexing": [{"ablation": "released", "eta": eta, "grids": "stretched"} for eta in (0.9,)],
    **{f"ours: anchored, position {k}": [anchored(share, k) for share in shares] for k, shares in REUSE.items()},
    "ours: anchors spread, position 2": [SPREAD],
}
CONTROL, MIDDLE, INT8, SPREAD_CONTROL = (
    {"ablation": name}
    for name in ("anchored-85-no-cache", "none-middle", "anchored-85-int8", "anchored-85-spread-no-cache")
)
OURS = {k: label(anchored(85, k)) for k in REUSE}
JUDGED = {**{run: f"position {k}" for k, run in OURS.items()}, label(SPREAD): "position 2, anchors spread"}
SHOWN = {
    BASELINE: "no cache",
    OURS[2]: "anchored, position 2",
    label(SPREAD): "anchors spread, position 2",
    OURS[3]: "anchored, position 3",
    OURS[4]: "anchored, position 4",
    label({"ablation": "interval-7"}): "every 7th step in full",
}


def units(context: Context) -> list[Unit]:
    """One sweep per object over all points of all curves."""
    told = [one for points in CURVES.values() for one in points]
    return studies.units(context, ID, [*told, CONTROL, SPREAD_CONTROL, MIDDLE, INT8])


def summarise(context: Context, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A row per point, and whether ours is above the others."""
    found = studies.of(results, ID)
    points = [(curve, label(one)) for curve, told in CURVES.items() for one in told]
    points += [
        ("control: anchored, without the cache", label(CONTROL)),
        ("control: anchors spread, without the cache", label(SPREAD_CONTROL)),
        ("control: no cache, the anchors' timesteps", label(MIDDLE)),
        ("ours: anchored, position 3, int8", label(INT8)),
    ]
    rows = [point(found, "no cache", BASELINE), *(point(found, curve, name) for curve, name in points)]
    return {
        "rows": rows,
        "findings": [
            *(accepted(found, run, name) for run, name in JUDGED.items()),
            parted(found), spread(found), eight_bits(found), *(above(rows, run) for run in JUDGED),
        ],
        "curves": {
            curve: {"speed": [r["speed-up"] for r in rows if r["method"] == curve],
                    "unet": [r["U-Net speed-up"] for r in rows if r["method"] == curve],
                    "change": [r["PSNR change, dB"] for r in rows if r["method"] == curve]}
            for curve in CURVES
        },
        "pictures": pictures(found, SHOWN),
    }  # fmt: skip


def point(found: dict[str, Any], method: str, name: str) -> dict[str, Any]:
    """The usual row and the change of SSIM."""
    first = {"method": method, "run": name}
    return {**first, **row(found, name), "SSIM change": change(found, name, "ssim")}


def accepted(found: dict[str, Any], run: str, name: str) -> str:
    """The bounds that were set beforehand, one by one."""
    ours = over_objects(found, run)
    db, ssim = change(found, run), change(found, run, "ssim")
    x, speed, bound = average(ours, "x"), average(ours, "speed_up"), average(ours, "bound_step")
    unet, unet_bound = average(ours, "unet_speed_up"), average(ours, "bound_unet")
    share = average(ours, "unet_share_of_step")
    said = [
        judged(x >= BOUND_X - 5e-4, f"x = {x:.3f} (wanted {BOUND_X})"),
        judged(db is not None and db >= -BOUND_DB, f"PSNR {signed(db)} dB (wanted -{BOUND_DB} or better)"),
        judged(ssim is not None and ssim >= -BOUND_SSIM, f"SSIM {signed(ssim, 4)} (wanted -{BOUND_SSIM} or better)"),
        judged(speed >= BOUND_SPEED, f"step {speed:.2f} times as fast (wanted {BOUND_SPEED}; bound {bound:.2f}, with "
               f"the U-Net at {share:.0%} of a step)"),
        f"U-Net {unet:.2f} times as fast (bound {unet_bound:.2f})",
    ]  # fmt: skip
    return f"Anchored sampler, {name}, {len(ours)} objects, same seed and steps: " + "; ".join(said) + "."


def judged(holds: bool, text: str) -> str:
    """``text`` with its verdict."""
    return f"{text}: {'met' if holds else 'not met'}"


def parted(found: dict[str, Any]) -> str:
    """What of the loss is the sampler's, and what the reuse's."""
    control = label(CONTROL)
    costs = ", ".join(f"{signed(change(found, run, to=control))} dB at position {k}" for k, run in OURS.items())
    return (
        f"The same views without the cache change PSNR by {signed(change(found, control))} dB, uniform views with "
        f"about the anchors' timesteps by {signed(change(found, label(MIDDLE)))} dB. Against the same views, reuse "
        f"itself costs {costs}."
    )


def spread(found: dict[str, Any]) -> str:
    """What anchors that are taken later do, with the cache and without."""
    run, control = label(SPREAD), label(SPREAD_CONTROL)
    return (
        f"Anchors spread over half of the run, views near them, position 2: {signed(change(found, run))} dB, all first "
        f"and views anywhere in their cells {signed(change(found, OURS[2]))} dB. The same views without the cache "
        f"change PSNR by {signed(change(found, control))} dB, so that reuse itself costs "
        f"{signed(change(found, run, to=control))} dB with the anchors spread."
    )


def eight_bits(found: dict[str, Any]) -> str:
    """What storing features in 8 bits does to the result."""
    int8, own = label(INT8), OURS[3]
    changes = [a["quality"]["psnr"] - b["quality"]["psnr"] for a, b in pairs(found, int8, own)]
    memory = mean(a["slots_bytes"] / b["slots_bytes"] for a, b in pairs(found, int8, own))
    return (
        f"Features stored in int8 in the place of float32, position 3: PSNR {signed(mean(changes), 3)} dB, from "
        f"{signed(min(changes), 3)} to {signed(max(changes), 3)} by object; entries take {memory:.3f} of the bytes."
    )


def pairs(found: dict[str, Any], run: str, other: str) -> list[tuple[Any, Any]]:
    """The two runs of each object."""
    return list(zip(over_objects(found, run), over_objects(found, other), strict=True))


def above(rows: list[dict[str, Any]], run: str) -> str:
    """Whether a point of another method makes the U-Net as fast as one of ours, and is better."""
    ours = next(r for r in rows if r["run"] == run)
    others = [r for r in rows if r["method"] in CURVES and not r["method"].startswith("ours")]
    fast = [r for r in others if r["U-Net speed-up"] >= 0.98 * ours["U-Net speed-up"]]
    better = [r for r in fast if (r["PSNR change, dB"] or 0.0) > (ours["PSNR change, dB"] or 0.0)]
    said = f"{run}: U-Net {ours['U-Net speed-up']:.2f} times as fast, {signed(ours['PSNR change, dB'])} dB. "
    if not fast:
        return said + "None of the other methods' points is as fast."
    if not better:
        best = max(fast, key=lambda r: r["PSNR change, dB"] or 0.0)
        return said + f"The best other that is as fast is {best['run']}, {signed(best['PSNR change, dB'])} dB."
    return said + "As fast and better: " + "; ".join(f"{r['run']}, {signed(r['PSNR change, dB'])} dB" for r in better)


def plot(summary: dict[str, Any], path: Path) -> None:
    """Change of PSNR over the speed-up, of the step and of the U-Net alone."""
    plt: Any = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(12, 3.8), sharey=True)
    for axis, kind, title in zip(axes, ("speed", "unet"), ("step", "U-Net"), strict=True):
        for name, curve in summary["curves"].items():
            axis.plot(curve[kind], curve["change"], marker="o", label=name)
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.axhline(-BOUND_DB, color="grey", linewidth=0.8, linestyle=":")
        axis.set_xlabel(f"speed-up, {title}")
    axes[0].set_ylabel("change of PSNR, dB")
    axes[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1.0))  # no point under it
    save(figure, path)
