"""Reading a user's picture: any common file to a square RGB tensor over white, or one clear line why not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SMALLEST_SIDE = 16
LARGEST_PIXELS = 64_000_000


def open_picture(path: str | Path) -> Any:
    """Open a picture file as ``PIL.Image`` in RGB or RGBA.

    Raises:
        ValueError: missing, not a picture, truncated, too large or too small; the message names the file.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"image: no file {str(path)!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(path)
            if picture.width * picture.height > LARGEST_PIXELS:
                raise ValueError(
                    f"image: {str(path)!r} has {picture.width}x{picture.height} pixels, at most {LARGEST_PIXELS:,} are "
                    "read; scale it down first"
                )
            picture.load()
    except UnidentifiedImageError:
        raise ValueError(
            f"image: {str(path)!r} is not a picture that Pillow can read; give a PNG, JPEG or WebP"
        ) from None
    except Image.DecompressionBombError:
        raise ValueError(f"image: {str(path)!r} is too large; scale it down first") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"image: {str(path)!r} is damaged ({error}); export it again") from None
    if min(picture.size) < SMALLEST_SIDE:
        raise ValueError(
            f"image: {str(path)!r} is {picture.width}x{picture.height} pixels, "
            f"at least {SMALLEST_SIDE}x{SMALLEST_SIDE} are needed"
        )
    has_alpha = "A" in picture.getbands() or "transparency" in picture.info
    return picture.convert("RGBA" if has_alpha else "RGB")


def read_picture(picture: Any, size: int) -> tuple[Tensor, Tensor | None]:
    """A ``PIL.Image`` to float [3,size,size] in 0..1 over white, and its alpha float [1,size,size] or None.

    A picture that is not square is padded with white; scaling down averages areas.
    """
    from PIL import Image

    side = max(picture.size)
    rgba = picture.convert("RGBA")
    canvas = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    canvas.paste(rgba, ((side - rgba.width) // 2, (side - rgba.height) // 2))
    pixels = np.asarray(canvas, dtype=np.float32) / 255
    premultiplied = np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], -1)
    planes = [
        np.asarray(Image.fromarray(premultiplied[..., c], mode="F").resize((size, size), Image.Resampling.BOX))
        for c in range(4)
    ]
    colour, alpha = torch.from_numpy(np.stack(planes[:3])), torch.from_numpy(planes[3].copy())[None]
    image = (colour + 1 - alpha).clamp(0, 1)
    return image, alpha.clamp(0, 1) if picture.mode == "RGBA" else None
