"""Loading the fine-tuned version of a host: an adapter or a model, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from hf_sae import default_host
from hf_sae.assets import DEFAULT_HOST
from hf_sae.cli import main
from hf_sae.errors import CheckpointError, DataError
from hf_sae.evaluation import compare_hosts
from hf_sae.hosts.adapters import load_finetuned
from hf_sae.models import TopKConfig, TopKSAE
from tests.local_hub import LocalHub
from tests.local_hub.client import Client


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = get_peft_model(
        default_host()[0], LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "adapter"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def first_key(tensors: dict[str, torch.Tensor]) -> str:
    return min(tensors)


def test_an_adapter_runs_on_the_host_as_peft_loads_it(folder: Path):
    from peft import PeftModel

    host, tokenizer = default_host()
    inputs = tokenizer("import os", return_tensors="pt")
    plain = host(**inputs).logits
    adapted, commit = load_finetuned(host, tokenizer, str(folder))
    assert commit is None
    assert not adapted.training
    expected = PeftModel.from_pretrained(default_host()[0], str(folder))(**inputs).logits
    assert torch.equal(adapted(**inputs).logits, expected)
    assert not torch.equal(expected, plain)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "neither an adapter .* nor a model"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x"), "cannot be read"),
        (lambda f: change_config(f, peft_type="NOTHING"), "cannot be read"),
        (lambda f: change_config(f, bias="all"), "own biases"),
        (lambda f: change_config(f, megatron_config={"a": 1}, megatron_core="antigravity"), "names a module"),
        (lambda f: change_config(f, target_modules=["nowhere"]), "does not fit the host 'default_host'"),
        (lambda f: change_config(f, r=3), "does not fit the host 'default_host'.*size mismatch"),
        (lambda f: change_tensors(f, lambda t: t.pop(first_key(t))), "is missing"),
        (lambda f: change_tensors(f, lambda t: t.update({first_key(t).replace(".0.", ".9."): torch.ones(2)})), "no place"),
        (lambda f: change_tensors(f, lambda t: t[first_key(t)].fill_(torch.nan)), "NaN or infinite"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error_and_leaves_the_host_plain(folder: Path, damage: Any, message: str):
    host, tokenizer = default_host()
    inputs = tokenizer("import os", return_tensors="pt")
    plain, names = host(**inputs).logits, [name for name, _ in host.named_parameters()]
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_finetuned(host, tokenizer, str(folder))
    assert [name for name, _ in host.named_parameters()] == names
    assert torch.equal(host(**inputs).logits, plain)


def test_a_pickle_is_not_read(folder: Path):
    (folder / "adapter_model.safetensors").rename(folder / "kept")

    class Runs:
        def __reduce__(self) -> Any:
            return Path.touch, (folder / "ran",)

    torch.save({"x": Runs()}, folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin is a pickle"):
        load_finetuned(*default_host(), str(folder))
    (folder / "kept").rename(folder / "adapter_model.safetensors")
    load_finetuned(*default_host(), str(folder))  # beside safetensors it is not looked at
    assert not (folder / "ran").exists()


def test_an_adapter_of_another_host_is_an_error_that_names_both(folder: Path):
    host, tokenizer = default_host()
    host.config._name_or_path = "org/mine"
    change_config(folder, base_model_name_or_path="org/another")
    with pytest.raises(CheckpointError, match=r"'org/another', and the host is 'org/mine'"):
        load_finetuned(host, tokenizer, str(folder))
    change_config(folder, base_model_name_or_path="mirror/mine")
    load_finetuned(host, tokenizer, str(folder))
    narrow = LlamaForCausalLM(
        LlamaConfig(vocab_size=4096, hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4)
    )
    narrow.config._name_or_path = "narrow"
    with pytest.raises(CheckpointError, match=r"'mirror/mine', does not fit the host 'narrow'"):
        load_finetuned(narrow, tokenizer, str(folder))


def test_soft_prompts_are_refused(tmp_path: Path):
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(default_host()[0], config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="adds positions"):
        load_finetuned(*default_host(), str(tmp_path))


def test_a_whole_model_is_one_with_the_same_tokenizer(tmp_path: Path):
    host, tokenizer = default_host()
    with torch.no_grad():
        host.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    host.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    plain, tokenizer = default_host()
    tuned, commit = load_finetuned(plain, tokenizer, str(tmp_path / "tuned"))
    assert commit is None
    sae = TopKSAE(TopKConfig(d_in=192, d_sae=64, k=8, hook_in="resid_post.0")).eval()
    texts = [f"import os\nx = {i}\n" * 5 for i in range(12)]
    report = compare_hosts(sae, plain, tuned, tokenizer, texts, n_tokens=300, context_length=32, progress=False)
    assert report.counts["changed"] > 0
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "tuned")
    with pytest.raises(DataError, match="tokenizer vocabulary"):
        load_finetuned(*default_host(), str(tmp_path / "tuned"))


def test_the_command_says_what_is_wrong(folder: Path, tmp_path: Path, capsys: Any):
    TopKSAE(TopKConfig(d_in=64, d_sae=64, k=8, hook_in="resid_post.0")).save_pretrained(tmp_path / "narrow")
    for adapter, message in (
        (str(folder), r"192 wide"),
        (str(tmp_path / "nothing"), "nothing"),
        (str(tmp_path / "narrow"), "is an autoencoder"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["diff", DEFAULT_HOST, adapter, "--sae", str(tmp_path / "narrow"), "--n-tokens", "100"])
        assert ended.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_the_command_gives_one_json_object(folder: Path, tmp_path: Path, capsys: Any):
    TopKSAE(TopKConfig(d_in=192, d_sae=64, k=8, hook_in="resid_post.1")).save_pretrained(tmp_path / "sae")
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "diff",
                DEFAULT_HOST,
                str(folder),
                "--sae",
                str(tmp_path / "sae"),
                "--n-tokens",
                "2000",
                "--top",
                "3",
                "--json",
            ]
        )
    assert ended.value.code in (0, None)
    report = json.loads(capsys.readouterr().out)
    assert len(report["latents"]) == min(3, report["counts"]["changed"])
    assert report["dataset"]["name"] == "python-standard-library"
    assert report["finetuned"]["name"] == "adapter"
    assert str(tmp_path) not in json.dumps(report)


def test_an_adapter_in_a_folder_of_the_hub_is_read_at_one_commit_and_offline_after(folder: Path, tmp_path: Path):
    TopKSAE(TopKConfig(d_in=192, d_sae=64, k=8, hook_in="resid_post.1")).save_pretrained(tmp_path / "sae")
    push = (
        "import sys; from huggingface_hub import HfApi; api = HfApi(); api.create_repo('tester/lora')\n"
        "api.upload_folder(repo_id='tester/lora', folder_path=sys.argv[1], path_in_repo='small')\nprint('null')"
    )
    command = [
        "diff",
        DEFAULT_HOST,
        "tester/lora:small",
        "--sae",
        str(tmp_path / "sae"),
        "--n-tokens",
        "500",
        "--json",
    ]
    hub = LocalHub()
    with Client(hub, tmp_path / "home") as client:
        with hub:
            client.value(push, str(folder))
            online = client.cli(*command)
            commit = hub.repos["models/tester/lora"].branches["main"]
        offline = client.cli(*command, HF_HUB_OFFLINE="1")
    for done in (online, offline):
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["finetuned"]["name"], report["finetuned"]["revision"]) == ("tester/lora:small", commit)
