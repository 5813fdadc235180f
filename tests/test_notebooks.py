"""The notebook's cells run as they stand, with the Hub's ids replaced by local folders in exactly the published layout."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from hf_sae import default_host
from tests.conversion.layouts import save, weights
from tests.hosts_zoo import GROUPED


ROOT = Path(__file__).parent.parent
NOTEBOOK = json.loads((ROOT / "notebooks" / "chat_features.ipynb").read_text(encoding="utf-8"))
D = 32
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}model: "


def cells() -> list[str]:
    return ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def save_host(folder: Path, host: Any) -> None:
    tokenizer = default_host()[1]
    tokenizer.chat_template = TEMPLATE
    host.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    names = {
        "google/gemma-3-270m-it": tmp_path / "gemma",
        "google/gemma-scope-2-270m-it": tmp_path / "gemma-scope-2-270m-it",
        "openai-community/gpt2": tmp_path / "gpt2",
        "jbloom/GPT2-Small-SAEs-Reformatted": tmp_path / "GPT2-Small-SAEs-Reformatted",
    }
    torch.manual_seed(0)
    vocabulary = len(default_host()[1])
    gemma = {**GROUPED, "vocab_size": vocabulary, "num_hidden_layers": 14, "max_position_embeddings": 256}
    save_host(names["google/gemma-3-270m-it"], hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**gemma, sliding_window=64)))
    gpt2 = hf.GPT2Config(n_embd=D, n_layer=9, n_head=4, vocab_size=vocabulary, n_positions=256)
    save_host(names["openai-community/gpt2"], hf.GPT2LMHeadModel(gpt2))

    scope = names["google/gemma-scope-2-270m-it"] / "resid_post" / "layer_12_width_16k_l0_big"
    save(scope / "params.safetensors", {key.lower(): value for key, value in weights(D, 16384).items()})
    (scope / "config.json").write_text(
        json.dumps(
            {
                "hf_hook_point_in": "model.layers.12.output",
                "hf_hook_point_out": "model.layers.12.output",
                "width": 16384,
                "model_name": "gemma-v3-270m-it",
                "architecture": "jump_relu",
                "l0": 150,
                "affine_connection": False,
                "type": "sae",
            }
        )
    )
    lens = names["jbloom/GPT2-Small-SAEs-Reformatted"] / "blocks.8.hook_resid_pre"
    w = weights(D, 96)
    save(lens / "sae_weights.safetensors", {key: w[key] for key in ("W_enc", "W_dec", "b_enc", "b_dec")})
    config = {"model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre", "d_in": D, "d_sae": 96}
    (lens / "cfg.json").write_text(json.dumps(config))
    return names


def test_every_cell_runs(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    namespace: dict[str, Any] = {}
    for number, code in enumerate(cells()):
        for name, folder in folders.items():
            code = code.replace(f'"{name}"', repr(str(folder)))
        exec(compile(code, f"cell {number}", "exec"), namespace)
        if number == 1:
            assert not torch.equal(namespace["plain"], namespace["steered"])
            again = namespace["host"].generate(**namespace["inputs"], max_new_tokens=40, do_sample=False)
            assert torch.equal(again, namespace["plain"]), "the host is as it was"
            assert namespace["sae"].config.hook_in == "resid_post.12"
    printed = capsys.readouterr().out
    assert "the sea" in "".join(namespace["table"].tokens)
    assert "steered: " in printed
    assert "the mean of each token" in printed  # GPT-2's published weights were centred, which loading undoes
    assert namespace["sae"].config.input_norm == "center"


def test_the_readme_shows_the_same_ten_lines():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = next(code for code in re.findall(r"```python no-run\n(.+?)```", readme, re.S) if "gemma-scope-2" in code)
    statements = [node for node in ast.walk(ast.parse(shown)) if isinstance(node, ast.Assign | ast.Expr | ast.With)]
    assert len(statements) <= 10
    assert 'AutoSAE.from_pretrained("google/gemma-scope-2-270m-it"' in shown
    for name in re.findall(r'"(\w[\w./-]+/[\w./-]+)"', shown):
        assert name in " ".join(cells())


def test_it_is_a_notebook_without_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 4)
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        assert cell.get("outputs", []) == []
