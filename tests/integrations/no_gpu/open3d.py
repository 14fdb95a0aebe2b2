"""Stands for open3d: point clouds without colours that anybody looks at."""

from types import SimpleNamespace

import numpy as np


class PointCloud:
    points = colors = None

    def get_axis_aligned_bounding_box(self):
        return SimpleNamespace(min_bound=self.points.min(0), max_bound=self.points.max(0))


class KDTreeFlann:
    def __init__(self, cloud):
        self._points = cloud.points

    def search_knn_vector_3d(self, point, count):
        return count, [int(((self._points - point) ** 2).sum(1).argmin())], None


geometry = SimpleNamespace(PointCloud=PointCloud, KDTreeFlann=KDTreeFlann)
utility = SimpleNamespace(Vector3dVector=np.asarray)
io = SimpleNamespace(write_point_cloud=lambda path, cloud: None)
