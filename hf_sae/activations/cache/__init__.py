"""Activation caches: written once from a stream, read by any number of runs, on disk or from the Hub."""

from .manifest import Manifest
from .reader import CachedStream
from .sources import open_shards
from .writer import write_cache


__all__ = ["CachedStream", "Manifest", "open_shards", "write_cache"]
