"""Files from scenes and views: pictures, animations, point clouds, meshes."""

from hash3d_cuda.sds.export.animation import write_turntable, write_views
from hash3d_cuda.sds.export.mesh import write_glb
from hash3d_cuda.sds.export.points import write_ply

__all__ = ["write_glb", "write_ply", "write_turntable", "write_views"]
