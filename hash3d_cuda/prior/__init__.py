"""2D diffusion priors: the shipped one, and real diffusers weights. Importing this imports no diffusers."""

from __future__ import annotations

from hash3d_cuda.prior.base import Prior, Subject, UnknownSubject
from hash3d_cuda.prior.load import load_prior

__all__ = ["Prior", "Subject", "UnknownSubject", "load_prior"]
