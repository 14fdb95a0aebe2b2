"""Stands for CLIP where a picture is embedded: 768 numbers of it."""

import torch


class Clip(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = None

    def encode_image(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 16).flatten(1)


def load(name, device="cpu", jit=False, download_root=None):
    return Clip(), None
