"""Read 3D models from a Sweet Home 3D furniture library (an ``.sh3f`` zip) into renderable meshes.

Debian's package ``sweethome3d-furniture`` holds such libraries; the shipped prior's objects come from its
``BlendSwap-CC-0.sh3f``. In the catalogue's OBJ files y is up and the front faces +z; here z is up
and the front faces +x.
"""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LIBRARY_NAME = "BlendSwap-CC-0.sh3f"
BOUNDING_RADIUS = 0.5
# Catalogue (x right, y up, z front) to world (x front, y right, z up): a cyclic shift, so no mirroring.
CATALOGUE_TO_WORLD = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


@dataclass
class CatalogueEntry:
    """A line of the catalogue: ``model`` is the OBJ's path in the zip, ``rotation`` a 3x3 matrix or None."""

    identifier: str
    name: str
    creator: str
    model: str
    rotation: np.ndarray | None


@dataclass
class Part:
    """Triangles that share one texture.

    float32 positions and normals [V,3], uv [V,2], rgba colours [V,4] in 0..1; int32 faces [F,3].
    ``texture`` is uint8 [h,w,4], top row first, or None; ``translucent`` parts are blended after all others.
    """

    positions: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    colours: np.ndarray
    faces: np.ndarray
    texture: np.ndarray | None
    translucent: bool


def find_library(path: str | Path) -> Path:
    """The ``.sh3f`` file at ``path``, or ``BlendSwap-CC-0.sh3f`` somewhere below the folder ``path``."""
    path = Path(path)
    if path.is_file():
        return path
    found = sorted(path.rglob(LIBRARY_NAME)) if path.is_dir() else []
    if not found:
        raise FileNotFoundError(
            f"furniture: no {LIBRARY_NAME} at {path}; unpack Debian's sweethome3d-furniture package "
            "(apt-get download sweethome3d-furniture; dpkg-deb -x *.deb DIR) and pass DIR"
        )
    return found[0]


def read_catalogue(archive: zipfile.ZipFile) -> dict[str, CatalogueEntry]:
    """Entries by their short identifier, e.g. ``"teddyBear"``."""
    text = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
    rows: dict[int, dict[str, str]] = {}
    for key, number, value in re.findall(r"^(\w+)#(\d+)=(.*)$", text, re.MULTILINE):
        rows.setdefault(int(number), {})[key] = value.strip()
    entries = {}
    for row in rows.values():
        rotation = np.array(row["modelRotation"].split(), float).reshape(3, 3) if "modelRotation" in row else None
        identifier = row["id"].split("#")[-1]
        entries[identifier] = CatalogueEntry(
            identifier, row["name"], row.get("creator", "unknown"), row["model"].lstrip("/"), rotation
        )
    return entries


def require_public_domain(archive: zipfile.ZipFile, entry: CatalogueEntry) -> None:
    """Refuse a model whose own licence file, or else the library's, is not CC0: some libraries mix licences.

    Raises:
        ValueError: naming the model and the file that was read.
    """
    folder = posixpath.dirname(entry.model) + "/"
    own = [name for name in archive.namelist() if name.startswith(folder) and "license" in name.lower()]
    for name in own or ["LICENSE.TXT"]:
        text = archive.read(name).decode("latin-1")
        if not re.search(r"Creative Commons Zero|CC-?0|CC-Zero", text) or re.search(r"Commons Attribution", text):
            raise ValueError(f"furniture: {name!r} does not put {entry.identifier!r} under CC0; choose another model")


def load_parts(archive: zipfile.ZipFile, entry: CatalogueEntry) -> list[Part]:
    """Load, orient and normalise one model; opaque parts first."""
    import trimesh

    data = archive.read(entry.model)
    folder = posixpath.dirname(entry.model) + "/"
    files = {
        n[len(folder) :]: io.BytesIO(archive.read(n))
        for n in archive.namelist()
        if n.startswith(folder) and n != folder
    }
    scene = trimesh.load(
        io.BytesIO(data),
        file_type="obj",
        force="scene",
        process=False,
        resolver=trimesh.resolvers.ZipResolver(files),
    )
    smooth = b"\nvn " in data
    meshes = [m for m in scene.geometry.values() if isinstance(m, trimesh.Trimesh) and len(m.faces)]
    groups: dict[tuple[int, bool], list[tuple]] = {}
    textures: dict[int, np.ndarray | None] = {}
    for mesh in meshes:
        colour, image = _material(mesh)
        key = (id(image) if image is not None else 0, colour[3] < 0.99)
        textures[key[0]] = None if image is None else _texture(image)
        groups.setdefault(key, []).append(_arrays(mesh, colour, smooth))
    parts = [_merge(arrays, textures[key[0]], key[1]) for key, arrays in groups.items()]
    _normalise(parts, CATALOGUE_TO_WORLD if entry.rotation is None else CATALOGUE_TO_WORLD @ entry.rotation)
    return sorted(parts, key=lambda part: part.translucent)


def normalising_transform(vertices: np.ndarray, radius: float = BOUNDING_RADIUS) -> tuple[np.ndarray, float]:
    """Centre [3] of the box around ``vertices`` [V,3]; the scale that takes the farthest to ``radius``."""
    centre = (vertices.min(0) + vertices.max(0)) / 2
    reach = float(np.linalg.norm(vertices - centre, axis=1).max())
    if not reach > 0:
        raise ValueError("vertices: all points coincide, so the object has no size; check the model file")
    return centre, radius / reach


def _normalise(parts: list[Part], rotation: np.ndarray) -> None:
    used = np.concatenate([part.positions[np.unique(part.faces)] for part in parts]) @ rotation.T
    centre, scale = normalising_transform(used)
    for part in parts:
        part.positions = ((part.positions @ rotation.T - centre) * scale).astype(np.float32)
        part.normals = (part.normals @ rotation.T).astype(np.float32)


def _material(mesh: Any) -> tuple[np.ndarray, Any]:
    """Diffuse colour with opacity, float [4] in 0..1, and the texture image or None."""
    material = getattr(mesh.visual, "material", None)
    if material is None:
        return np.array([0.8, 0.8, 0.8, 1.0]), None
    colour = np.asarray(material.diffuse, float) / 255
    extra = {k.lower(): v for k, v in getattr(material, "kwargs", {}).items()}
    for name, opacity in (("d", lambda v: v), ("tr", lambda v: 1 - v)):
        value = np.asarray(extra.get(name, []), float).ravel()
        if value.size:
            colour[3] = float(np.clip(opacity(value[-1]), 0, 1))
            break
    image = material.image if getattr(mesh.visual, "uv", None) is not None else None
    if image is not None:
        colour[:3] = 1.0
    return colour, image


def _texture(image: Any, limit: int = 512) -> np.ndarray:
    image = image.convert("RGBA")
    image.thumbnail((limit, limit))
    return np.asarray(image)


def _arrays(mesh: Any, colour: np.ndarray, smooth: bool) -> tuple:
    uv = getattr(mesh.visual, "uv", None)
    if not smooth:  # no normals in the file: one per face, so corners must not be shared
        uv = None if uv is None else uv[mesh.faces.ravel()]
        positions, normals = mesh.vertices[mesh.faces.ravel()], np.repeat(mesh.face_normals, 3, 0)
        faces = np.arange(len(positions)).reshape(-1, 3)
    else:
        positions, normals, faces = mesh.vertices, mesh.vertex_normals, mesh.faces
    uv = np.zeros((len(positions), 2)) if uv is None else uv
    return (
        np.asarray(positions),
        np.asarray(normals),
        uv,
        np.tile(colour, (len(positions), 1)),
        np.asarray(faces),
    )


def _merge(arrays: list[tuple], texture: np.ndarray | None, translucent: bool) -> Part:
    offsets = np.cumsum([0] + [len(a[0]) for a in arrays[:-1]])
    faces = np.concatenate([a[4] + o for a, o in zip(arrays, offsets, strict=True)]).astype(np.int32)
    joined = [np.concatenate([a[i] for a in arrays]).astype(np.float32) for i in range(4)]
    return Part(*joined, faces, texture, translucent)
