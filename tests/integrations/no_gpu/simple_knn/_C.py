"""Stands for simple-knn: every point's neighbours lie equally near."""

import torch


def distCUDA2(points):
    return torch.full((len(points),), 1e-3)
