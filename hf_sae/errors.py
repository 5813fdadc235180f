"""Every error a user of hf_sae can cause."""

from .models.errors import CheckpointError, ConfigError


class HookPointError(ValueError):
    """A place that does not exist in the host, is ambiguous there, or does not fit the autoencoder."""


class ConversionError(CheckpointError):
    """A foreign checkpoint that is of no known format, damaged, or means something that cannot be expressed here."""


class DataError(ValueError):
    """A dataset that is empty, too short, of an unknown layout, or gives activations that are not finite."""


class DistributedError(RuntimeError):
    """A process of the same run has ended or cannot be reached: the others cannot go on without it."""


class EngineBusyError(RuntimeError):
    """A steering engine whose queue is full: it may have room in a moment."""


__all__ = [
    "CheckpointError",
    "ConfigError",
    "ConversionError",
    "DataError",
    "DistributedError",
    "EngineBusyError",
    "HookPointError",
]
