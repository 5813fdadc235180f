"""Datasets of text, conversations or token ids as batches of tokens."""

from ..corpus import stdlib_corpus
from .repeats import WithoutRepeats
from .tokens import Positions, TokenBatch, TokenDataset


__all__ = ["Positions", "TokenBatch", "TokenDataset", "WithoutRepeats", "stdlib_corpus"]
