"""Activations of a host as shuffled batches of tokens: live, prefetched, or from a cache on disk or on the Hub."""

from .cache import CachedStream, Manifest, write_cache
from .interface import BatchStream, Rows
from .paired import PairedStream
from .prefetch import Prefetched
from .stream import ActivationStream


__all__ = [
    "ActivationStream",
    "BatchStream",
    "CachedStream",
    "Manifest",
    "PairedStream",
    "Prefetched",
    "Rows",
    "write_cache",
]
