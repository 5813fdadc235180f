"""Checkpoints of other libraries as models of ours, and back: one file per format."""

from .files import Files, open_files
from .registry import FORMATS, ElsewhereError, identify, load_foreign, members, read
from .writing import WRITERS, write


__all__ = [
    "FORMATS",
    "WRITERS",
    "ElsewhereError",
    "Files",
    "identify",
    "load_foreign",
    "members",
    "open_files",
    "read",
    "write",
]
