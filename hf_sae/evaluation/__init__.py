"""Evaluation of sparse autoencoders and transcoders."""

from .check import CheckReport, Measured, check
from .core import evaluate
from .report import EvalReport, Metric


__all__ = ["CheckReport", "EvalReport", "Measured", "Metric", "check", "evaluate"]
