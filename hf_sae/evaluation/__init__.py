"""Evaluation of sparse autoencoders and transcoders."""

from .check import CheckReport, Measured, check
from .code_norms import CodeNorms, code_norms, norms_of
from .core import evaluate
from .diff import compare_hosts
from .diff_report import Change, DiffReport, LatentChange
from .report import EvalReport, Metric


__all__ = [
    "Change",
    "CheckReport",
    "CodeNorms",
    "DiffReport",
    "EvalReport",
    "LatentChange",
    "Measured",
    "Metric",
    "check",
    "code_norms",
    "compare_hosts",
    "evaluate",
    "norms_of",
]
