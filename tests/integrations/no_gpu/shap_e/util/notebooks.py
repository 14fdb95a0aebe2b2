"""Stands for Shap-E: a few points in a small cube, whatever was asked for."""

from types import SimpleNamespace

import numpy as np
from PIL import Image


def create_pan_cameras(size, device):
    return []


def decode_latent_images(*args, **kwargs):
    return [Image.new("RGB", (8, 8))] * 2


def decode_latent_mesh(*args, **kwargs):
    random = np.random.default_rng(0)
    colours = {name: random.random(200) for name in "RGB"}
    mesh = SimpleNamespace(verts=random.random((200, 3)) * 0.1, vertex_channels=colours)
    return SimpleNamespace(tri_mesh=lambda: mesh)


gif_widget = None
