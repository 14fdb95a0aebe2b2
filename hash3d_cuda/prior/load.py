"""``load_prior``: from a folder or a hub id to a prior, or one line saying what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hash3d_cuda.checks import check_device

if TYPE_CHECKING:
    from hash3d_cuda.prior.base import Prior

SHIPPED_FILES = (
    "prior.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "conditioner.safetensors",
)  # fmt: skip


def load_prior(source: str | Path | None = None, device: str = "cpu", encoder: str | Path | None = None) -> Prior:
    """A 2D diffusion prior with frozen weights on ``device``.

    Args:
        source: None for the package's own prior; a folder that holds such a one (``hash3d train-prior`` writes them), a
            Stable Diffusion pipeline, or a Zero123-style pipeline; or a hub id ``org/name`` of one of the latter.
        device: ``"cpu"`` or ``"cuda"``.
        encoder: a folder with a light encoder (TAESD) that takes the place of the VAE's in every step; see
            :mod:`hash3d_cuda.prior.tiny`. For pipelines; None is the pipeline's own.

    Returns:
        A :class:`Prior`. Float32 on a CPU; real pipelines' U-Nets are float16 on CUDA.

    Raises:
        ValueError: no such folder, or a folder with a missing, damaged or unsupported part; all are named.
        OSError: a hub id whose files are neither cached nor to be had.
    """
    prior = _load(source, device)
    if encoder is not None:
        use = getattr(prior, "use_encoder", None)
        if use is None:
            raise ValueError(
                f"encoder: expected none for {prior.name}, whose latents are the picture's own pixels; leave it away"
            )
        use(encoder)
    return prior


def _load(source: str | Path | None, device: str) -> Prior:
    """The prior as it is."""
    target = str(check_device("device", device))
    if source is None:
        return _load_own(_own_folder(), target)
    if not isinstance(source, (str, Path)) or not str(source).strip():
        raise ValueError(f"prior: expected a folder or a hub id such as 'org/name', got {source!r}")
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _load_folder(folder, target)
    if folder.exists():
        raise ValueError(f"prior: {str(source)!r} is a file, expected a folder that diffusers saved")
    from hash3d_cuda.prior.hub import find_snapshot, looks_like_hub_id

    if not looks_like_hub_id(str(source)):
        raise ValueError(f"prior: no folder {str(source)!r}, and it is not a hub id such as 'org/name'")
    return _load_folder(find_snapshot(str(source)), target)


def _load_folder(folder: Path, device: str) -> Prior:
    """Decides by the folder's content what kind of prior it holds."""
    if (folder / "prior.json").is_file() or (folder / "conditioner.safetensors").is_file():
        return _load_own(folder, device)
    if not (folder / "unet").is_dir():
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"prior: {str(folder)!r} lacks the part 'unet' (it holds {found}); give a folder with a Stable Diffusion "
            "or Zero123-style pipeline as diffusers saves it, or one that `hash3d train-prior` wrote"
        )
    from hash3d_cuda.prior.pipelines import read_json

    channels = read_json(folder, "unet", "config.json").get("in_channels", 4)
    if channels == 8 or ((folder / "image_encoder").is_dir() and not (folder / "text_encoder").is_dir()):
        from hash3d_cuda.prior.zero123 import ImagePrior

        return ImagePrior(folder, device)
    from hash3d_cuda.prior.text import TextPrior

    return TextPrior(folder, device)


def _own_folder() -> Path:
    from hash3d_cuda.prior.shipped import shipped_folder

    folder = shipped_folder()
    missing = [name for name in SHIPPED_FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"prior: the package's own prior is not complete, {str(folder)!r} lacks {', '.join(missing)}; reinstall "
            "the package, or give --prior a folder (`hash3d train-prior` trains one)"
        )
    return folder


def _load_own(folder: Path, device: str) -> Prior:
    """A prior of this package's own format, with every part checked first."""
    import diffusers  # noqa: F401  (before quiet(): it sets up its logging when it is first imported)
    from safetensors import SafetensorError, safe_open

    from hash3d_cuda.prior.pipelines import broken, quiet, read_json
    from hash3d_cuda.prior.shipped import ShippedPrior

    for name in SHIPPED_FILES:
        if not (folder / name).is_file():
            raise broken(folder, repr(name), "is missing")
    names = read_json(folder, "", "prior.json").get("names")
    if not isinstance(names, list) or not names:
        raise broken(folder, "'prior.json'", "names no objects")
    keys: set[str] = set()
    for name in SHIPPED_FILES[2:]:
        try:
            with safe_open(folder / name, "pt") as file:
                keys = keys or set(file.keys())  # the U-Net's come first
        except (SafetensorError, OSError) as error:
            raise broken(folder, repr(name), f"is damaged ({error})") from None
    try:
        with quiet():
            prior = ShippedPrior(folder, device)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise broken(folder, "a part", f"does not fit: {error}") from None
    absent = sorted(set(prior.unet.state_dict()) - keys)
    if absent:
        raise broken(folder, "the part 'unet'", f"has no weights for {', '.join(absent[:3])}")
    return prior
