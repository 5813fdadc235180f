"""Evaluation of sparse autoencoders and transcoders."""

from .check import CheckReport, Measured, check
from .core import evaluate
from .diff import compare_hosts
from .diff_report import Change, DiffReport, LatentChange
from .report import EvalReport, Metric


__all__ = [
    "Change",
    "CheckReport",
    "DiffReport",
    "EvalReport",
    "LatentChange",
    "Measured",
    "Metric",
    "check",
    "compare_hosts",
    "evaluate",
]
