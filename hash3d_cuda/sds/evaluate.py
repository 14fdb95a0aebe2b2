"""How good the whole path is: score distillation against the true objects, beside controls and the cache's
effect.

``python -m hash3d_cuda.sds.evaluate --out DIR`` goes through the objects with bundled true views, one JSON
file each, so that a stopped evaluation goes on where it was, and sums them up in ``quality.json`` and
``quality.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from torch import Tensor

from hash3d_cuda.bounds import step_bound
from hash3d_cuda.prior.base import Prior, Subject, UnknownSubject
from hash3d_cuda.prior.ground_truth import example_inputs, ground_truth_names, ground_truth_views
from hash3d_cuda.sds import controls
from hash3d_cuda.sds.metrics import cache_metrics, image_quality, time_metrics
from hash3d_cuda.sds.outputs import tile, to_picture, write_json
from hash3d_cuda.sds.settings import GenerateSettings, parse_grids

COLUMNS = {
    "sds": "SDS",
    "sds_cache": "SDS, cache",
    "mean_image": "mean image",
    "mean_sds": "SDS to the mean",
    "own_mean": "own mean (oracle)",
    "picture": "SDS from picture",
    "copy": "copied picture",
    "fit": "fitted picture",
}


def evaluate(
    prior: Prior, settings: GenerateSettings, out: Path, names: Sequence[str], pictures: bool = True
) -> dict[str, Any]:
    """Evaluates the named objects.

    Args:
        prior: knows the names.
        settings: of all runs; ``eta`` is the cached run's.
        out: folder; ``objects/*.json`` found there are kept if they were made with the same settings.
        names: objects with bundled true views.
        pictures: also start from the bundled input pictures.

    Returns:
        the content of ``quality.json``: one row per object, and means.
    """
    (out / "objects").mkdir(parents=True, exist_ok=True)
    means = controls.mean_views(ground_truth_names())
    mean_scene: Tensor | None = None
    rows = []
    for name in names:
        path = out / "objects" / f"{name.replace(' ', '-')}.json"
        row = _recorded(path, settings, pictures)
        if row is None:
            if mean_scene is None:
                mean_scene = controls.mean_view_scene(prior, settings, means)
            row = evaluate_object(prior, name, settings, means, mean_scene, out / "objects", pictures)
            write_json(row, path)
        rows.append(row)
        print(
            f"{name}: " + ", ".join(f"{COLUMNS[k]} {v:.2f}" for k, v in row["psnr"].items()),
            file=sys.stderr,
            flush=True,
        )
    result = {"prior": prior.name, "settings": settings.as_dict(), "objects": rows, "means": means_of(rows)}
    write_json(result, out / "quality.json")
    (out / "quality.md").write_text(markdown(result), encoding="utf-8")
    return result


def evaluate_object(
    prior: Prior,
    name: str,
    settings: GenerateSettings,
    means: Tensor,
    mean_scene: Tensor,
    folder: Path,
    pictures: bool,
) -> dict[str, Any]:
    """All runs of one object; also writes a contact sheet: truth, without and with the cache, from the
    picture."""
    truth = ground_truth_views(name)[0]
    subject = prior.resolve(name)
    plain = controls.distil(prior, subject, replace(settings, cache=False))
    cached = controls.distil(prior, subject, replace(settings, cache=True))
    psnr = {
        "sds": image_quality(plain["views"], truth)["psnr"],
        "sds_cache": image_quality(cached["views"], truth)["psnr"],
        "mean_image": image_quality(means, truth)["psnr"],
        "mean_sds": image_quality(mean_scene, truth)["psnr"],
        "own_mean": controls.own_mean_score(truth),
    }
    shown = [truth, plain["views"], cached["views"]]
    if pictures:
        scores, views = _from_picture(prior, name, settings, truth)
        psnr |= scores
        shown += views
    to_picture(tile(_rows(shown), len(truth))).save(folder / f"{name.replace(' ', '-')}.png")
    return {
        "name": name,
        "settings": settings.as_dict(),
        "pictures": pictures,
        "psnr": psnr,
        "ssim": {
            "sds": image_quality(plain["views"], truth)["ssim"],
            "sds_cache": image_quality(cached["views"], truth)["ssim"],
        },
        "agreement_psnr": image_quality(cached["views"], plain["views"])["psnr"],
        "cache": cache_figures(plain["run"], cached["run"]),
    }


def cache_figures(plain: Any, cached: Any) -> dict[str, Any]:
    """Seconds of both runs, what the cache served, and the bound on the speed-up at that share."""
    before, after = time_metrics(plain.log)[0], time_metrics(cached.log)[0]
    served, r = cache_metrics(cached.served), after["hit_cost_r"]
    share = before["split_s"]["unet_full"] / before["total_s"]
    return {
        "seconds": {"without": before["total_s"], "with": after["total_s"]},
        "speed_up": before["total_s"] / after["total_s"],
        "hit_rate": served["hit_rate"],
        "x": served["x"],
        "hit_cost_r": r,
        "unet_share_of_step": share,
        "bound_step": None if r is None else step_bound(served["x"], r, share),
    }


def means_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean PSNR of each column, in dB, over the objects that have it."""
    return {
        key: mean(row["psnr"][key] for row in rows if key in row["psnr"])
        for key in COLUMNS
        if any(key in r["psnr"] for r in rows)
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The table for people."""
    keys = list(result["means"])
    head = ["object", *(COLUMNS[key] for key in keys), "hit rate", "x", "speed-up", "bound"]
    lines = [
        "PSNR in dB, 16 views at 30 degrees elevation.",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
    ]
    for row in result["objects"]:
        cache, scores = (
            row["cache"],
            (f"{row['psnr'][key]:.2f}" if key in row["psnr"] else "" for key in keys),
        )
        bound = "" if cache["bound_step"] is None else f"{cache['bound_step']:.2f}x"
        own = [f"{cache['hit_rate']:.1%}", f"{cache['x']:.1%}", f"{cache['speed_up']:.2f}x", bound]
        lines.append("| " + " | ".join([row["name"], *scores, *own]) + " |")
    lines.append("| **mean** | " + " | ".join(f"**{result['means'][key]:.2f}**" for key in keys) + " | | | | |")
    return "\n".join(lines) + "\n"


def _from_picture(
    prior: Prior, name: str, settings: GenerateSettings, truth: Tensor
) -> tuple[dict[str, float], list[Tensor]]:
    """Scores and views from the object's bundled picture; a picture that is not recognised has no SDS
    score."""
    from hash3d_cuda.prior.pictures import open_picture

    try:
        subject: Subject = prior.resolve(open_picture(example_inputs()[name]))
    except UnknownSubject as error:
        print(f"{name}: {error}", file=sys.stderr)
        return {}, []
    views = controls.distil(prior, subject, replace(settings, cache=False))["views"]
    fitted = controls.reference_only_scene(prior, subject, settings)
    scores = {
        "picture": image_quality(views, truth)["psnr"],
        "copy": controls.copy_score(subject.image, truth),
        "fit": image_quality(fitted, truth)["psnr"],
    }
    return scores, [views, fitted]


def _rows(images: list[Tensor]) -> Tensor:
    from torch import cat

    return cat([image.clamp(0, 1) for image in images])


def _recorded(path: Path, settings: GenerateSettings, pictures: bool) -> dict[str, Any] | None:
    """The row of an earlier evaluation with these settings, or None."""
    if not path.is_file():
        return None
    row = json.loads(path.read_text())
    same = not GenerateSettings.from_dict(row["settings"]).differences(settings)
    return row if same and (row["pictures"] or not pictures) else None


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry."""
    from hash3d_cuda.prior import load_prior

    parser = argparse.ArgumentParser(prog="python -m hash3d_cuda.sds.evaluate", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prior", help="default: the shipped one")
    parser.add_argument("--objects", nargs="+", metavar="NAME", help="default: all with bundled true views")
    parser.add_argument("--steps", type=int, default=GenerateSettings.steps)
    parser.add_argument("--eta", type=float, default=0.5)
    parser.add_argument(
        "--grids", type=parse_grids, default=GenerateSettings.grids, help='"paper", "pose" or cell sizes'
    )
    parser.add_argument("--scene", default=GenerateSettings.scene)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-pictures", action="store_true")
    options = parser.parse_args(argv)
    chosen = {key: getattr(options, key) for key in ("steps", "eta", "grids", "scene", "seed", "device")}
    prior = load_prior(options.prior, device=options.device)
    names = options.objects or [name for name in ground_truth_names() if name in (prior.vocabulary or [])]
    result = evaluate(prior, GenerateSettings(**chosen), options.out, names, not options.no_pictures)
    print(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
