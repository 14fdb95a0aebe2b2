"""Prepare the prior's data: render every object of the vocabulary from all sides.

Writes ``train.npz`` and ``eval.npz`` (keys ``images`` uint8 [objects,views,64,64,3], ``poses`` float32
[objects,views,3] in the order elevation, azimuth, radius, and ``names``), a contact sheet, with ``--negatives``
views of the library's other objects (``negatives.npz``), and with ``--assets`` the small pictures and credits that the
package bundles. Needs the ``train`` extra (moderngl, trimesh, Pillow).
"""

from __future__ import annotations

import argparse
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hash3d_cuda.cli.main import Parser, one_line
from hash3d_cuda.cli.options import to_folder
from hash3d_cuda.prior.furniture import (
    CatalogueEntry,
    Part,
    find_library,
    load_parts,
    read_catalogue,
    require_public_domain,
)
from hash3d_cuda.prior.ground_truth import EVALUATION_POSES, INPUT_POSE, VIEW_SIZE
from hash3d_cuda.prior.negatives import render_negatives
from hash3d_cuda.prior.raster import Renderer, area_downsample
from hash3d_cuda.prior.vocabulary import LICENCE, OBJECTS, SOURCE, VocabularyObject

RENDER_SIZE = 256
INPUT_SIZE = 256
ELEVATIONS, RADII = (-10.0, 60.0), (1.8, 2.2)
EXCLUDED_DEGREES = 2.0
SHEET_AZIMUTHS = (0.0, 30.0, 90.0, 180.0)


def training_poses(count: int, seed: Sequence[int]) -> np.ndarray:
    """Poses float32 [count,3]: uniform azimuth, elevation (in degrees) and radius, stratified per coordinate.

    None lies within 2 degrees of an evaluation pose in both elevation and azimuth.
    """
    rng = np.random.default_rng(list(seed))
    low, high = np.array([ELEVATIONS, (0.0, 360.0), RADII]).T
    strata = np.stack([rng.permutation(count) for _ in range(3)], 1)
    poses = low + (high - low) * (strata + rng.random((count, 3))) / count
    while (bad := near_evaluation(poses)).any():
        poses[bad] = low + (high - low) * rng.random((int(bad.sum()), 3))
    return poses.astype(np.float32)


def near_evaluation(poses: np.ndarray) -> np.ndarray:
    """bool [N]: which poses [N,3] lie within ``EXCLUDED_DEGREES`` of an evaluation pose in both angles."""
    elevation = np.abs(poses[:, None, 0] - EVALUATION_POSES[None, :, 0])
    azimuth = np.abs((poses[:, None, 1] - EVALUATION_POSES[None, :, 1] + 180) % 360 - 180)
    return ((elevation <= EXCLUDED_DEGREES) & (azimuth <= EXCLUDED_DEGREES)).any(1)


def load_object(archive: zipfile.ZipFile, catalogue: dict[str, CatalogueEntry], thing: VocabularyObject) -> list[Part]:
    """The object's parts, normalised and facing +x."""
    if thing.identifier not in catalogue:
        raise KeyError(f"furniture: the library has no model {thing.identifier!r} for {thing.name!r}; use {SOURCE}")
    require_public_domain(archive, catalogue[thing.identifier])
    parts = load_parts(archive, catalogue[thing.identifier])
    angle = np.deg2rad(thing.turn)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]], np.float32)
    for part in parts:
        part.positions, part.normals = part.positions @ turn.T, part.normals @ turn.T
    return parts


def render_views(renderer: Renderer, poses: np.ndarray, size: int = VIEW_SIZE) -> np.ndarray:
    """The loaded object at poses [N,3] on white: uint8 [N,size,size,3]."""
    views = (area_downsample(renderer.render(*map(float, pose))[..., :3], size) for pose in poses)
    return np.stack([np.rint(view).astype(np.uint8) for view in views])


def render_input(renderer: Renderer, size: int = INPUT_SIZE) -> np.ndarray:
    """The loaded object at the input pose with straight alpha: uint8 [size,size,4]."""
    over_white = area_downsample(renderer.render(*INPUT_POSE), size) / 255
    alpha = over_white[..., 3:]
    colour = (over_white[..., :3] - (1 - alpha)) / np.maximum(alpha, 1e-6)
    rgba = np.concatenate([np.where(alpha > 0, colour, 0), alpha], -1)
    return np.rint(255 * rgba.clip(0, 1)).astype(np.uint8)


def write_dataset(
    library: Path, out: Path, objects: Sequence[VocabularyObject], views: int, seed: int, assets: Path | None
) -> None:
    """Render and write everything; a line of progress per object goes to stderr."""
    out.mkdir(parents=True, exist_ok=True)
    poses = np.stack([training_poses(views, (seed, index)) for index in range(len(objects))])
    train = np.empty((len(objects), views, VIEW_SIZE, VIEW_SIZE, 3), np.uint8)
    evaluation = np.empty((len(objects), len(EVALUATION_POSES), VIEW_SIZE, VIEW_SIZE, 3), np.uint8)
    sheet, inputs, start = [], [], time.perf_counter()
    with zipfile.ZipFile(library) as archive, Renderer(RENDER_SIZE) as renderer:
        catalogue = read_catalogue(archive)
        for index, thing in enumerate(objects):
            renderer.load(load_object(archive, catalogue, thing))
            train[index] = render_views(renderer, poses[index])
            evaluation[index] = render_views(renderer, EVALUATION_POSES)
            sheet.append(render_views(renderer, np.array([(20.0, a, 2.0) for a in SHEET_AZIMUTHS]), 128))
            inputs.append(render_input(renderer))
            print(
                f"{index + 1}/{len(objects)} {thing.name} {time.perf_counter() - start:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    names = np.array([thing.name for thing in objects])
    _save_npz(out / "train.npz", images=train, poses=poses, names=names)
    evaluation_poses = np.broadcast_to(EVALUATION_POSES, (len(objects), *EVALUATION_POSES.shape))
    _save_npz(out / "eval.npz", images=evaluation, poses=evaluation_poses.astype(np.float32), names=names)
    write_sheet(out / "sheet.png", objects, sheet)
    if assets is not None:
        write_assets(assets, objects, evaluation, inputs)


def write_assets(
    folder: Path, objects: Sequence[VocabularyObject], evaluation: np.ndarray, inputs: Sequence[np.ndarray]
) -> None:
    """The bundled pictures: ``views/<slug>.png`` (16 in a row), ``inputs/<slug>.png`` and ``CREDITS.md``."""
    from PIL import Image

    for name in ("views", "inputs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for thing, views, picture in zip(objects, evaluation, inputs, strict=True):
        Image.fromarray(np.concatenate(list(views), 1)).save(folder / "views" / f"{thing.slug}.png", optimize=True)
        Image.fromarray(picture).save(folder / "inputs" / f"{thing.slug}.png", optimize=True)
    rows = [f"| {t.name} | {t.creator} | {t.identifier} | {LICENCE} |" for t in objects]
    head = [
        "# Credits of the objects", "",
        f"The pictures in `views/` and `inputs/` show 3D models from {SOURCE} (Debian).",
        "Their authors published them on Blend Swap under CC0 1.0; Emmanuel Puybaret (eTeks) converted them",
        "for Sweet Home 3D.", "",
        "| Object | Creator | Model in the library | Licence |", "|---|---|---|---|",
    ]  # fmt: skip
    (folder / "CREDITS.md").write_text("\n".join(head + rows) + "\n", encoding="utf-8")


def write_sheet(path: Path, objects: Sequence[VocabularyObject], rows: Sequence[np.ndarray], columns: int = 3) -> None:
    """Contact sheet: every object at azimuth 0, 30, 90 and 180 above its name."""
    from PIL import Image, ImageDraw

    size, per_object = rows[0].shape[1], len(SHEET_AZIMUTHS)
    lines = -(-len(objects) // columns)
    sheet = Image.new("RGB", (columns * per_object * size, lines * (size + 14)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (thing, views) in enumerate(zip(objects, rows, strict=True)):
        corner = (index % columns * per_object * size, index // columns * (size + 14))
        sheet.paste(Image.fromarray(np.concatenate(list(views), 1)), corner)
        draw.text((corner[0] + 2, corner[1] + size), thing.name, fill="black")
    sheet.save(path)


def _save_npz(path: Path, **arrays: np.ndarray) -> None:
    """Whole or not at all: a trainer may be watching the path."""
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, **arrays)
    partial.replace(path)


def _select(names: Sequence[str] | None) -> Sequence[VocabularyObject]:
    if not names:
        return OBJECTS
    known = {thing.name: thing for thing in OBJECTS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"--objects: unknown {', '.join(map(repr, unknown))}; expected some of: {', '.join(known)}")
    return [known[name] for name in names]


def build_parser() -> argparse.ArgumentParser:
    """Options of ``hash3d prepare-data``."""
    parser = Parser(prog="hash3d prepare-data", description="Render the prior's training and evaluation views.")
    parser.add_argument(
        "--furniture",
        required=True,
        type=Path,
        help="an .sh3f library, or a folder with BlendSwap-CC-0.sh3f below it",
    )
    parser.add_argument("--out", required=True, type=to_folder, help="folder for train.npz, eval.npz and sheet.png")
    parser.add_argument(
        "--objects", nargs="+", metavar="NAME", help="only these objects (default: the whole vocabulary)"
    )
    parser.add_argument("--views", type=int, default=320, help="training views per object (default: 320)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--negatives",
        type=int,
        metavar="N",
        help="also render N views of each of the library's other CC0 objects, to negatives.npz (for the image encoder)",
    )
    parser.add_argument(
        "--assets",
        type=Path,
        help="also write the pictures and credits that the package bundles to this folder",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.views < 1:
        parser.error(f"argument --views: {options.views} is not a number of views; give 1 or more")
    if options.negatives is not None and options.negatives < 1:
        parser.error(f"argument --negatives: {options.negatives} is not a number of views; give 1 or more")
    if options.seed < 0:
        parser.error(f"argument --seed: {options.seed} is negative; give 0 or more")
    try:
        objects = _select(options.objects)
    except ValueError as error:
        parser.error(str(error))
    try:
        library = find_library(options.furniture)
        write_dataset(library, options.out, objects, options.views, options.seed, options.assets)
        if options.negatives is not None:
            images, names = render_negatives(library, options.negatives, options.seed, RENDER_SIZE)
            _save_npz(options.out / "negatives.npz", images=images, names=np.array(names))
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, zipfile.BadZipFile) as error:
        print(f"hash3d: error: {error.args[0] if isinstance(error, KeyError) else one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
