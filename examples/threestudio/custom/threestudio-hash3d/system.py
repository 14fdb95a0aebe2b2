"""The mix-in ``hash3d-system`` for systems: poses are kept on the host, and checkpoints hold the caches."""

from __future__ import annotations

from typing import Any

import threestudio

from .guidance import Hash3D
from .poses import keep_poses

_KEY = "hash3d"  # in a checkpoint


@threestudio.register("hash3d-system")
class Hash3DSystem:
    """Optional beside ``:hash3d``: without it, poses are copied from the GPU, and a resumed run starts with an empty
    table."""

    _hash3d_loaded: dict[str, Any] | None = None

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Lightning's last look at a batch on the host."""
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        return keep_poses(batch) if self.training else batch

    def on_fit_start(self) -> None:
        """Most systems make their guidance here, after the checkpoint was read."""
        super().on_fit_start()
        for name, state in (self._hash3d_loaded or {}).items():
            guidance = getattr(self, name, None)
            if isinstance(guidance, Hash3D):
                guidance.hash3d_load_state_dict(state)
        self._hash3d_loaded = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        states = {name: guidance.hash3d_state_dict() for name, guidance in self._hash3d_guidances().items()}
        checkpoint[_KEY] = {name: state for name, state in states.items() if state is not None}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._hash3d_loaded = checkpoint.get(_KEY)

    def _hash3d_guidances(self) -> dict[str, Hash3D]:
        """Some guidances are modules, which torch keeps apart from other attributes."""
        members = {**vars(self), **self._modules}
        return {name: value for name, value in members.items() if isinstance(value, Hash3D)}
