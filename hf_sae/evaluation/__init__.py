"""Evaluation of sparse autoencoders and transcoders."""

from .core import evaluate
from .report import EvalReport, Metric


__all__ = ["EvalReport", "Metric", "evaluate"]
