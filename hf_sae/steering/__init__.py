"""Steering: edits of latents as differences, per row, position and place."""

from .context import steer
from .edits import Edit, OfMax, OfNorm, Strength, ablate, add, clamp, scale


__all__ = ["Edit", "OfMax", "OfNorm", "Strength", "ablate", "add", "clamp", "scale", "steer"]
