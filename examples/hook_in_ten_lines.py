"""The cache under a plain diffusers pipeline: python hook_in_ten_lines.py FOLDER_OR_HUB_ID"""

import sys

from diffusers import StableDiffusionPipeline

import hash3d_cuda as h3d

pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1])
cache = h3d.apply_hash3d(pipe.unet, h3d.Hash3DConfig(eta=1.0, position=2, groups=2, memory_budget="1GiB"))
for azimuth in (0, 5, 90, 95):
    with cache.views(elevation=15, azimuth=azimuth, radius=2.0, condition="a teddy bear"):
        image = pipe("a teddy bear", num_inference_steps=10, guidance_scale=7.5).images[0]
    image.save(f"{azimuth:03}.png")
    print(f"azimuth {azimuth}: {cache.stats()}")
cache.remove()
