"""Views as PNG files, turntables as animated WebP and, where ffmpeg is at hand, as MP4."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from torch import Tensor

FRAMES_PER_SECOND = 16


def write_views(views: Tensor, folder: Path) -> list[Path]:
    """Writes float [N,3,H,W] in 0..1 as ``view_00.png`` and so on into ``folder``, made if missing; raises OSError."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    digits = max(2, len(str(len(views) - 1)))
    paths = [folder / f"view_{index:0{digits}d}.png" for index in range(len(views))]
    for pixels, path in zip(to_bytes(views), paths, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def write_turntable(frames: Tensor, path: Path) -> list[Path]:
    """Writes an endless animation, and an ``.mp4`` of the same name beside it when imageio-ffmpeg is installed.

    Args:
        frames: float [F,3,H,W] in 0..1.
        path: ends in ``.webp``.

    Returns:
        the files written.

    Raises:
        OSError: a file cannot be written.
    """
    from PIL import Image

    if frames.dim() != 4 or len(frames) == 0:
        raise ValueError(
            f"frames: expected float [F,3,H,W] with F of at least 1, got {list(frames.shape)}; pass frames"
        )
    pixels = to_bytes(frames)
    pictures = [Image.fromarray(frame) for frame in pixels]
    # minimize_size off: an animation is shown frame by frame, and frames that look alike must not be merged
    pictures[0].save(
        path, "WEBP", save_all=True, append_images=pictures[1:], duration=round(1000 / FRAMES_PER_SECOND), loop=0,
        quality=90, method=4,
    )  # fmt: skip
    ffmpeg = find_ffmpeg()
    if ffmpeg is None:
        return [path]
    write_mp4(pixels, path.with_suffix(".mp4"), ffmpeg)
    return [path, path.with_suffix(".mp4")]


def to_bytes(views: Tensor) -> np.ndarray:
    """float [N,3,H,W] in 0..1 to uint8 [N,H,W,3]."""
    scaled = (views.detach().clamp(0, 1) * 255).round().byte()
    return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).cpu().numpy())


def find_ffmpeg() -> str | None:
    """The program that imageio-ffmpeg knows, or None."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return None


def write_mp4(frames: np.ndarray, path: Path, ffmpeg: str) -> None:
    """H.264 in yuv420p, which every player takes; odd sizes get one row or column more.

    Args:
        frames: uint8 [F,H,W,3].
        path: ends in ``.mp4``.
        ffmpeg: the program.

    Raises:
        OSError: ffmpeg failed, with the last line of what it said.
    """
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    size = f"{width + width % 2}x{height + height % 2}"
    command = [
        ffmpeg, "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(FRAMES_PER_SECOND),
        "-i", "-", "-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "18", "-movflags", "+faststart", str(path),
    ]  # fmt: skip
    with tempfile.TemporaryFile() as errors:
        # a session of its own: Ctrl-C is for the caller, who writes what there is and then stops
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=errors, stderr=errors, start_new_session=True)
        with contextlib.suppress(BrokenPipeError):  # its exit status says why
            for frame in frames:
                process.stdin.write(frame.tobytes())
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        status = process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    if status != 0:
        raise OSError(
            f"cannot write {str(path)!r}: ffmpeg ended with status {status}: {said[-1] if said else 'no message'}"
        )
