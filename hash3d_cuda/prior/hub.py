"""Pipelines named by their id on the model hub: the local cache when there is one, a quick answer when there is not."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SECONDS = 3.0
"""How long the hub may take to answer at all; name resolution counts too."""
PARTS = (
    "unet", "vae", "text_encoder", "tokenizer", "scheduler", "image_encoder", "feature_extractor",
    "clip_camera_projection", "cc_projection",
)  # fmt: skip
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHTS = re.compile(r"(diffusion_pytorch_model|pytorch_model|model)(-\d+-of-\d+)?\.(safetensors|bin)")


def looks_like_hub_id(source: str) -> bool:
    """Whether ``source`` has the form ``org/name``."""
    return _HUB_ID.fullmatch(source) is not None


def wanted_files(names: Iterable[str]) -> list[str]:
    """Of a repository's files those that a prior reads: configurations, tokenizers, and one set of weights a part.

    Weights in safetensors are preferred; variants (``.fp16.``, ``.ema.``) are left out.
    """
    names = [
        name for name in names if name == "model_index.json" or (name.split("/")[0] in PARTS and name.count("/") == 1)
    ]
    weights = [name for name in names if _WEIGHTS.fullmatch(name.split("/")[-1])]
    safe = {name.split("/")[0] for name in weights if name.endswith(".safetensors")}
    chosen = [name for name in weights if name.endswith(".safetensors") or name.split("/")[0] not in safe]
    return sorted(chosen + [name for name in names if name.endswith((".json", ".txt"))])


def find_snapshot(hub_id: str) -> Path:
    """The folder with the pipeline's files: downloaded or brought up to date when the hub answers, else the cached one.

    Raises:
        OSError: the hub cannot be reached (or HF_HUB_OFFLINE is set) and nothing is cached, the download failed, or the
            hub has no such pipeline.
    """
    from huggingface_hub import HfApi, snapshot_download

    api = HfApi()  # made here: importing it should not count as the hub's time
    reason = "HF_HUB_OFFLINE is set" if offline() else None
    if reason is None:
        try:
            files = within(SECONDS, lambda: list_files(hub_id, api))
        except Exception as error:
            if missing(error):
                raise OSError(
                    f"prior: there is no folder {hub_id!r} here, and the model hub has no such model, or not without "
                    "a login; check the name"
                ) from None
            reason = f"the model hub cannot be reached ({type(error).__name__})"
        else:
            try:
                return Path(snapshot_download(hub_id, allow_patterns=wanted_files(files)))
            except Exception as error:
                text = " ".join(str(error).split())[:160]
                raise OSError(
                    f"prior: downloading {hub_id!r} failed ({text}); try again, it goes on from there"
                ) from None
    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except Exception:
        raise OSError(
            f"prior: there is no folder {hub_id!r} here, nothing of that name is cached, and {reason}; give a local "
            "diffusers folder"
        ) from None


def offline() -> bool:
    """Whether the user or the library's own settings forbid the network."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def list_files(hub_id: str, api: Any) -> list[str]:
    """Names of the repository's files, from the hub."""
    return [item.rfilename for item in api.model_info(hub_id, timeout=SECONDS).siblings or []]


def missing(error: Exception) -> bool:
    """Whether the hub answered that there is no such repository, or none that may be read."""
    from huggingface_hub.errors import RepositoryNotFoundError

    return isinstance(error, RepositoryNotFoundError)


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """``call()`` in a thread that is left behind after ``seconds``: no client's own timeout covers name resolution.

    Raises:
        TimeoutError: no result in time; or whatever ``call`` raised.
    """
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["value"] = call()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in outcome:
        raise outcome["error"]
    if "value" not in outcome:
        raise TimeoutError(f"no answer in {seconds:g} seconds")
    return outcome["value"]
