"""2D diffusion priors: the shipped one, and real diffusers weights."""

from __future__ import annotations

from hash3d_cuda.prior.base import Prior, Subject, UnknownSubject

__all__ = ["Prior", "Subject", "UnknownSubject"]
