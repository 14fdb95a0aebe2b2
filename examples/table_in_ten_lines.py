"""The bare table in ten lines: file features under camera pose and timestep, get them back from nearby."""

import torch

import hash3d_cuda as h3d

table = h3d.HashTable(feature_shape=(320, 32, 32), latent_shape=(4, 32, 32), memory_budget="64MiB")
latents, features = torch.randn(4, 4, 32, 32), torch.randn(4, 320, 32, 32)
seen = h3d.make_keys(elevation=15, azimuth=[0, 90, 180, 270], radius=2.0, timestep=500)
table.append(seen, latents, features)

nearby = h3d.make_keys(elevation=17, azimuth=[3, 45, 188, -85], radius=2.05, timestep=507)
found = table.query(nearby, latents)
print("hit    ", found.hit.tolist())  # 45 degrees was not seen, and no grid is that coarse
print("grid   ", found.grid.tolist())  # 0 is the finest: cells of 10 degrees, 0.1 units, 10 timesteps
print("weights", found.weights.tolist())
print(table.stats())
