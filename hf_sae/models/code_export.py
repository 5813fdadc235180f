"""Modelling code beside the weights, for `trust_remote_code=True` where hf_sae is not installed.

transformers copies the files of a class that has `_auto_class`. That is state of the whole process, so it is set for the
length of one save only; every other save drops an `auto_map` that came with a loaded config, which would point at no file.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def with_code(sae: Any) -> Generator[None]:
    """Within it, saving the SAE copies its code and writes `auto_map`."""
    model_class, config_class = type(sae), type(sae.config)
    before = model_class._auto_class, config_class._auto_class
    model_class._auto_class, config_class._auto_class = "AutoModel", "AutoConfig"
    try:
        yield
    finally:
        model_class._auto_class, config_class._auto_class = before


@contextmanager
def without_code(sae: Any) -> Generator[None]:
    """Within it, saving the SAE writes no `auto_map`."""
    if type(sae)._auto_class is None:  # code that came from the Hub is copied again by transformers itself
        vars(sae.config).pop("auto_map", None)
    yield
