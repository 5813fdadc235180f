"""Datasets of text, conversations or token ids as batches of tokens."""

from ..corpus import stdlib_corpus
from .batch import TokenBatch
from .repeats import WithoutRepeats
from .tokens import Positions, TokenDataset


__all__ = ["Positions", "TokenBatch", "TokenDataset", "WithoutRepeats", "stdlib_corpus"]
