"""Pictures of what the shipped prior does *not* know, for the image encoder to turn away.

The catalogue that holds the vocabulary's objects holds over a hundred others. Their views, rendered like the
vocabulary's, are the hardest negatives there are: same light, same white background, often the same kind of thing.
"""

from __future__ import annotations

import sys
import time
import zipfile
from pathlib import Path

import numpy as np

from hash3d_cuda.prior.furniture import CatalogueEntry, load_parts, read_catalogue, require_public_domain
from hash3d_cuda.prior.ground_truth import VIEW_SIZE
from hash3d_cuda.prior.raster import Renderer
from hash3d_cuda.prior.vocabulary import OBJECTS

LEAST_COVERAGE = 0.01
"""Share of pixels that an object must cover in its views; models that load empty are left out."""


def other_entries(archive: zipfile.ZipFile) -> list[CatalogueEntry]:
    """The library's CC0 models that are not in the vocabulary, by identifier."""
    catalogue, found = read_catalogue(archive), []
    for identifier in sorted(set(catalogue) - {thing.identifier for thing in OBJECTS}):
        try:
            require_public_domain(archive, catalogue[identifier])
        except (ValueError, KeyError):  # another licence, or none that can be read
            continue
        found.append(catalogue[identifier])
    return found


def render_negatives(library: Path, views: int, seed: int, render_size: int) -> tuple[np.ndarray, list[str]]:
    """Views of every other object that loads: uint8 [objects,views,64,64,3] over white, and identifiers."""
    from hash3d_cuda.prior.prepare import render_views, training_poses

    pictures, names, start = [], [], time.perf_counter()
    with zipfile.ZipFile(library) as archive, Renderer(render_size) as renderer:
        entries = other_entries(archive)
        for index, entry in enumerate(entries):
            try:
                renderer.load(load_parts(archive, entry))
                rendered = render_views(renderer, training_poses(views, (seed, 1, index)), VIEW_SIZE)
            except Exception as error:  # a model that cannot be read is no loss among so many
                print(f"skipped {entry.identifier}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                continue
            if (rendered.min(-1) < 250).mean() < LEAST_COVERAGE:
                print(f"skipped {entry.identifier}: hardly anything to see", file=sys.stderr, flush=True)
                continue
            pictures.append(rendered)
            names.append(entry.identifier)
            passed = time.perf_counter() - start
            print(f"other {index + 1}/{len(entries)} {entry.identifier} {passed:.0f} s", file=sys.stderr, flush=True)
    if not pictures:
        raise ValueError(
            f"furniture: {str(library)!r} has no CC0 model outside the vocabulary that can be rendered; "
            "leave --negatives away or use the whole library"
        )
    return np.stack(pictures), names
