"""How alike pictures look: perceptual distances and embedding similarities, as far as their weights are here."""

from hash3d_cuda.perceptual.scores import (
    DISTANCES,
    SIMILARITIES,
    available,
    image_scores,
    protocol_views,
    similarity,
    text_similarity,
)

__all__ = [
    "DISTANCES",
    "SIMILARITIES",
    "available",
    "image_scores",
    "protocol_views",
    "similarity",
    "text_similarity",
]
