"""`hf-sae demo`: a sparse autoencoder from nothing to steering."""

from .run import DemoResult, DemoSettings, excerpts, run_demo


__all__ = ["DemoResult", "DemoSettings", "excerpts", "run_demo"]
