"""Densification by gsplat's own strategy (Kerbl et al. 2023, as ``gsplat.DefaultStrategy``), on CUDA.

gsplat draws on CUDA only, so the tests run its strategy, or a stand-in with its signatures where gsplat is not
installed, on views drawn in torch; with gsplat's kernels it has not been run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hash3d_cuda.checks import check_choice, fail
from hash3d_cuda.sds.scenes.base import BOUND
from hash3d_cuda.sds.scenes.splat import has_gsplat

CHOICES = ("move", "gsplat", "auto")
NAMES = {"mean": "means", "log_scale": "scales", "quaternion": "quats", "opacity": "opacities", "colour": "colors"}
"""Our names and those that the strategy knows."""
FROM, UNTIL, TIMES = 0.05, 0.7, 12
"""Shares of the run between which the strategy refines, and how often it does: its own numbers are for 30,000 steps."""


def make_strategy(densify: str, device: torch.device) -> GsplatStrategy | None:
    """gsplat's strategy, or None where Gaussians are moved instead; raises ValueError when it cannot be had."""
    check_choice("densify", densify, CHOICES)
    possible = torch.device(device).type == "cuda" and has_gsplat()
    if densify == "gsplat" and not possible:
        remedy = "pip install 'hash3d-cuda[gsplat]' on a machine with a CUDA GPU, or pass densify=\"move\""
        fail(ValueError, "densify", "'move' where gsplat cannot draw", densify, remedy)
    return GsplatStrategy() if densify != "move" and possible else None


class GsplatStrategy:
    """Between a scene, whose optimizer is one for all, and a strategy that replaces parameters.

    The strategy is handed optimizers without a state; the scene's is then made anew, which loses Adam's means at each
    refinement. Its statistics are not part of a checkpoint: a resumed run gathers them from there on. Its thresholds
    are the attributes of ``strategy``; where it splits, it draws from torch's global generator.
    """

    def __init__(self) -> None:
        from gsplat import DefaultStrategy

        self.strategy = DefaultStrategy()
        self.state = self.strategy.initialize_state(scene_scale=BOUND)
        self.info: dict[str, Any] = {}

    def new_info(self) -> dict[str, Any]:
        """Where the next view's ``info`` goes; the last view drawn before a step counts."""
        info: dict[str, Any] = {}
        if torch.is_grad_enabled():
            self.info = info
        return info

    def before_backward(self) -> None:
        """Keeps the gradient of the projected means."""
        means = self.info.get(self.strategy.key_for_gradient)
        if means is not None and means.requires_grad:
            means.retain_grad()

    def after_step(self, scene: nn.Module, step: int, steps: int) -> bool:
        """Lets the strategy look at the gradients, and takes over what it changed; True when it changed anything."""
        self.set_times(steps)
        means = self.info.get(self.strategy.key_for_gradient)
        if means is None or means.grad is None:
            return False
        before = {name: getattr(scene, name) for name in NAMES}
        params = nn.ParameterDict({NAMES[name]: value for name, value in before.items()})
        optimizers = {name: torch.optim.SGD([value], lr=0.0) for name, value in params.items()}
        self.strategy.step_post_backward(params, optimizers, self.state, step, self.info, packed=False)
        self.info = {}
        for name, value in before.items():
            if params[NAMES[name]] is not value:
                setattr(scene, name, params[NAMES[name]])
        return any(getattr(scene, name) is not value for name, value in before.items())

    def set_times(self, steps: int) -> None:
        """Spreads the refinements over a run of ``steps``; from half-way on, Gaussians that are too large go."""
        strategy = self.strategy
        strategy.refine_start_iter, strategy.refine_stop_iter = round(FROM * steps), round(UNTIL * steps)
        strategy.refine_every = max(round((UNTIL - FROM) * steps / TIMES), 1)
        strategy.reset_every = max(steps // 2, 1)
