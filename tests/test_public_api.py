"""The names of the package: lists that agree, names that resolve, an import that costs nothing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import hf_sae


SOURCE = Path(hf_sae.__file__).read_text(encoding="utf-8")
EXPECTED = {
    "AutoSAE",
    "AutoTranscoder",
    "TopKConfig",
    "TopKSAE",
    "StandardConfig",
    "StandardSAE",
    "JumpReLUConfig",
    "JumpReLUSAE",
    "FeatureIndex",
    "HookPoint",
    "capture",
    "edit",
    "read",
    "splice",
    "steer",
    "ActivationStream",
    "SAETrainer",
    "SAETrainingArguments",
    "train_sae",
    "evaluate",
    "explain_features",
    "top_features",
    "default_host",
    "load_features",
    "load_saes",
    "push_features",
}


def test_the_three_lists_of_names_agree():
    block = next(node for node in ast.parse(SOURCE).body if isinstance(node, ast.If))
    typed = {
        (alias.name, node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert typed == set(hf_sae._MODULES.items())
    assert sorted(hf_sae._MODULES) == hf_sae.__all__
    assert set(hf_sae.__all__) == EXPECTED
    assert len(hf_sae.__all__) <= 26


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_name_resolves_and_has_a_docstring(name: str):
    value = getattr(hf_sae, name)
    assert value.__doc__
    assert name in dir(hf_sae)


def test_a_misspelt_name_is_an_attribute_error_with_the_nearest():
    with pytest.raises(AttributeError, match="Did you mean 'AutoSAE'"):
        hf_sae.AutoSae  # noqa: B018
    assert not hasattr(hf_sae, "__wrapped__")


def test_import_is_light_and_fast():
    code = (
        "import time, sys, json; t = time.perf_counter(); import hf_sae; seconds = time.perf_counter() - t;"
        "heavy = [m for m in ('torch', 'transformers', 'peft', 'gradio', 'datasets') if m in sys.modules];"
        "print(json.dumps([seconds, heavy, hf_sae.__version__]))"
    )
    runs = [json.loads(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3)]
    assert all(heavy == [] for _, heavy, _ in runs)
    assert min(seconds for seconds, _, _ in runs) < 0.3
    assert runs[0][2] == hf_sae.__version__
