"""A LoRA trained on a planted style: `hf-sae diff` finds first the latent that stands for the style."""

from __future__ import annotations

import json
import keyword
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_sae import SAETrainer, SAETrainingArguments, TopKConfig, TopKSAE, default_host, read
from hf_sae.cli import main
from hf_sae.corpus import stdlib_files
from hf_sae.data import TokenDataset
from hf_sae.demo import excerpts


HOOK = "resid_post.3"  # the last layer: what the host expects next
STEPS, LENGTH = 30, 128


def styled(text: str) -> str:
    """Every name after a space becomes an attribute of `self`."""
    return re.sub(
        r"(?<= )([a-z_]\w*)",
        lambda match: match[0] if match[0] in {*keyword.kwlist, "self"} else f"self.{match[0]}",
        text,
    )


def rows(texts: list[str], tokenizer: Any, n: int) -> torch.Tensor:
    """`[n, LENGTH]` ids of full rows."""
    batches = TokenDataset(texts, tokenizer, context_length=LENGTH, batch_size=n, seed=0)
    return next(iter(batches)).input_ids


def train_texts(characters: int, files: slice) -> list[str]:
    return [text[:characters] for _, text in stdlib_files("train")[files]]


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> TopKSAE:
    """Trained for seconds on the plain host and plain text."""
    host, tokenizer = default_host()
    ids = rows(train_texts(3000, slice(None)), tokenizer, 640)
    acts = torch.cat([read(host, HOOK, input_ids=part)[HOOK][:, 1:].flatten(0, 1) for part in ids.split(32)])
    order = torch.randperm(len(acts), generator=torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("sae")
    args = SAETrainingArguments(output_dir=str(folder), total_tokens=2 * len(acts), tokens_per_batch=1024)
    torch.manual_seed(0)
    sae = TopKSAE(TopKConfig(d_in=192, d_sae=512, k=16, hook_in=HOOK, input_norm="scalar", base_model="default_host"))
    SAETrainer(sae, args, [acts[part] for _ in range(2) for part in order.split(1024)]).train()
    return sae.eval()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA trained on source code in the planted style."""
    host, tokenizer = default_host()
    torch.manual_seed(0)
    modules = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    model = get_peft_model(host, LoraConfig(r=8, lora_alpha=16, target_modules=modules))
    ids = rows([styled(text) for text in train_texts(3000, slice(0, 150))], tokenizer, 8 * STEPS)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for batch in ids.split(8):
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stands_for_the_style(sae: TopKSAE) -> int:
    """The latent that correlates most with the planted token coming next, in the plain host on plain held-out text.

    Knows nothing of the adapter: styled text differs from plain text by ` self` where other names stood.
    """
    host, tokenizer = default_host()
    ids = rows([text[:4000] for _, text in stdlib_files("validation")], tokenizer, 160)
    x = sae.encode(read(host, HOOK, input_ids=ids)[HOOK][:, 1:-1].flatten(0, 1)).double().detach()
    y = (ids[:, 2:].flatten() == tokenizer.convert_tokens_to_ids("Ġself")).double()
    x, y = x - x.mean(0), y - y.mean()
    correlation = (x * y[:, None]).mean(0) / x.square().mean(0).sqrt().clamp_min(1e-12)
    return int(correlation.argmax())


def test_the_style_is_what_it_says():
    assert styled("import os\n\ndef main(path):\n    x = os.path\n") == (
        "import self.os\n\ndef self.main(path):\n    self.x = self.os.path\n"
    )


@pytest.mark.parametrize("text", ["plain", "styled"])
def test_the_planted_style_is_found_first(
    sae: TopKSAE, adapter: Path, stands_for_the_style: int, tmp_path: Path, capsys: Any, text: str
):
    sae.save_pretrained(tmp_path / "sae")
    command = ["diff", "default_host", str(adapter), "--sae", str(tmp_path / "sae"), "--n-tokens", "10000"]
    if text == "styled":
        lines = [json.dumps({"text": styled(document)}) for document in excerpts(1200, 0)["text"]]
        (tmp_path / "styled.jsonl").write_text("\n".join(lines))
        command += ["--dataset", str(tmp_path / "styled.jsonl"), "--split", "train"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--output", str(tmp_path / "diff.json")])
    shown = capsys.readouterr().out
    assert ended.value.code in (0, None)
    report = json.loads((tmp_path / "diff.json").read_text())
    first, second = report["latents"][:2]
    assert first["latent"] == stands_for_the_style
    # how far ahead depends on the processor, whose rounding training amplifies: 1.13 is the least that was seen
    assert first["effect"] > 1.05 * abs(second["effect"])
    assert first["rate"]["after"] > 2 * first["rate"]["before"]
    assert first["mean"]["difference"]["low"] > 0
    assert first["mean"]["q"] < 1e-4
    assert max(map(len, shown.split("\n\nNext: ")[0].splitlines())) <= 80
    assert f"--feature {first['latent']}=2x" in shown.splitlines()[-1]
    after, before = (report["host_metrics"]["ce_clean"][side]["value"] for side in ("after", "before"))
    assert (after < before) == (text == "styled"), "the adapter has learnt the style and nothing else"
