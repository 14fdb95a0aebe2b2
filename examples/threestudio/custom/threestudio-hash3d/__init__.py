"""Hash3D as an add-on of threestudio: put this folder into threestudio's ``custom/``; ``launch.py`` imports it.

    system.guidance_type: "stable-diffusion-guidance:hash3d"     # the cache, under one of five guidances
    system.system_type:   "dreamfusion-system:hash3d-system"     # optional: poses from the host, checkpoints

See the README two folders up. Needs the package hash3d-cuda and diffusers 0.35 or later.
"""

from .guidance import Hash3D
from .system import Hash3DSystem

__all__ = ["Hash3D", "Hash3DSystem"]
