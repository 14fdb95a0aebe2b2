"""Stands for tiny-cuda-nn: encodings and networks of the right widths, of sines."""

import torch


class Encoding(torch.nn.Module):
    def __init__(self, n_input_dims, config, dtype=torch.float32):
        super().__init__()
        levels = config.get("n_levels", 4) * config.get("n_features_per_level", 2)
        self.n_input_dims, self.n_output_dims = n_input_dims, config.get("degree", 0) ** 2 or levels
        self.linear = torch.nn.Linear(n_input_dims, self.n_output_dims)

    def forward(self, x):
        return torch.sin(4 * self.linear(x.float()))


def free_temporary_memory():
    pass
