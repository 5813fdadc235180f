"""Activations of a host as shuffled batches of tokens."""

from .stream import ActivationStream


__all__ = ["ActivationStream"]
