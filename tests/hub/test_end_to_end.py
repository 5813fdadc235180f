"""The whole way by commands: train, push, pull on another machine, the same bits; and every way up has our card."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
import yaml

from hf_sae.models import AutoSAE
from tests.hub.test_round_trip import X, make, pull, push
from tests.local_hub import LocalHub
from tests.local_hub.client import Client, last_line
from tests.local_hub.storage import xet_hash


TINY = ("--layer", "1", "--d-sae", "64", "--k", "4", "--total-tokens", "8192", "--tokens-per-batch", "1024")
BITS = """
import hashlib, json, sys, torch
from hf_sae import AutoSAE
sae = AutoSAE.from_pretrained(sys.argv[1], subfolder=sys.argv[2])
x = torch.linspace(-1, 1, 4 * sae.config.d_in).view(4, -1)
print(json.dumps([sae(x).reconstruction.tolist(), getattr(sae.config, "_commit_hash", None)]))
"""


def test_train_push_pull_info_ls(tmp_path: Path):
    with LocalHub(lfs=True) as hub, Client(hub, tmp_path / "one") as one, Client(hub, tmp_path / "two") as two:

        def run(client: Client, *arguments: str) -> dict:
            done = client.cli(*arguments, "--json")
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        trained = tmp_path / "trained"
        run(one, "train", *TINY, "--eval-tokens", "2048", "--output-dir", str(trained))
        run(one, "push", str(trained), "tester/saes", "--subfolder", "layer_1")
        sha = hub.repos["models/tester/saes"].branches["main"]
        files = hub.files("tester/saes")
        assert not [name for name in files if "optimizer" in name or "checkpoint" in name or name.endswith(".pt")]
        card = yaml.safe_load(files["layer_1/README.md"].decode().split("---")[1])
        assert card["library_name"] == "hf-sae"
        assert card["model-index"]
        expected, _ = one.value(BITS, str(trained), "")
        assert last_line(two.fresh(BITS, "tester/saes", "layer_1")) == [expected, sha], "a machine that has nothing"
        pulled = run(two, "pull", "tester/saes:layer_1", str(tmp_path / "pulled"))
        assert pulled["commit"] == sha
        assert two.value(BITS, str(tmp_path / "pulled"), "")[0] == expected
        assert run(two, "info", "tester/saes", "--subfolder", "layer_1")["commit"] == sha
        listed = run(two, "ls", "tester/saes")
        assert (listed["commit"], [entry["place"] for entry in listed["autoencoders"]]) == (sha, ["layer_1"])
        assert listed["autoencoders"][0]["metrics"]["fvu"] > 0
        report = run(two, "eval", "tester/saes:layer_1", "--n-tokens", "1024")
        assert report["sae"]["revision"] == sha
        assert run(two, "check", "tester/saes:layer_1", "--n-tokens", "1024")["revision"] == sha


SAVE = """
import sys
from hf_sae import AutoSAE
sae = AutoSAE.from_pretrained(sys.argv[1])
sae.push_to_hub("tester/push")
sae.push_to_hub("tester/sub", subfolder="a")
sae.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="tester/save")
sae.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="tester/save-sub", subfolder="a")
"""


def test_the_card_is_ours_on_every_way_up(plain: Client, tmp_path: Path):
    make(tmp_path / "sweep" / "a")
    done = plain.python(SAVE, str(tmp_path / "sweep" / "a"), str(tmp_path / "saved"))
    assert done.returncode == 0, done.stderr
    for folder, repo in (("sweep/a", "tester/command"), ("sweep", "tester/sweep")):
        assert plain.cli("push", str(tmp_path / folder), repo).returncode == 0
    cards = {
        name: plain.hub.files(f"tester/{name}") for name in ("push", "sub", "save", "save-sub", "command", "sweep")
    }
    for name, files in cards.items():
        assert "library_name: hf-sae" in files["README.md"].decode(), name
        assert "Model Card for Model ID" not in b"".join(files.values()).decode("latin-1"), name
    for name in ("sub", "save-sub", "sweep"):
        assert f'"tester/{name}", subfolder="a"' in cards[name]["a/README.md"].decode()


PUSH_AGAIN = """
import sys
from hf_sae import AutoSAE
AutoSAE.from_pretrained(sys.argv[1]).push_to_hub("tester/words")
"""


def test_what_readers_wrote_into_a_card_on_the_hub_stays_on_every_way_up(plain: Client, tmp_path: Path):
    make(tmp_path / "sae")
    assert plain.cli("push", str(tmp_path / "sae"), "tester/words").returncode == 0
    repo = plain.hub.repos["models/tester/words"]

    def card() -> str:
        return plain.hub.files("tester/words")["README.md"].decode()

    written = card().replace("library_name", "license: mit\nlibrary_name").replace("## Limits", "## Mangled")
    written = written.replace("<!-- hf-sae:limits:start -->", "Why I made this.\n\n<!-- hf-sae:limits:start -->")
    repo.commit("main", {**plain.hub.files("tester/words"), "README.md": written.encode()})
    ways = (
        lambda: plain.cli("push", str(tmp_path / "sae"), "tester/words"),
        lambda: plain.python(PUSH_AGAIN, str(tmp_path / "sae")),
    )
    for number, way in enumerate(ways):
        make(tmp_path / "sae", seed=number + 1, d_sae=24 + 8 * number)
        assert way().returncode == 0
        assert card().index("Why I made this.") < card().index("## Limits")
        assert "Mangled" not in card()
        assert f"{24 + 8 * number} latents" in card()
        assert yaml.safe_load(card().split("---")[1])["license"] == "mit"
    repo.commit("main", {**plain.hub.files("tester/words"), "README.md": b"# By hand\n"})
    make(tmp_path / "sae", seed=5)
    assert plain.cli("push", str(tmp_path / "sae"), "tester/words").returncode == 0
    assert card().endswith("---\n\n# By hand\n")
    assert "library_name: hf-sae" in card()


QUICKSTART_HOST = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from hf_sae import AutoSAE, TopKConfig, TopKSAE
from tests import toy_text
torch.manual_seed(0)
tokenizer = toy_text.tokenizer()
config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
LlamaForCausalLM(config).push_to_hub("tester/host")
tokenizer.push_to_hub("tester/host")
from huggingface_hub import HfApi
commit = HfApi().model_info("tester/host").sha
sae = TopKSAE(TopKConfig(d_in=8, d_sae=16, k=2, hook_in="resid_post.0", base_model="tester/host", base_revision=commit))
sae.push_to_hub("tester/card")
sae.push_to_hub("tester/many", subfolder="layer_0")
"""


def test_the_quickstarts_of_cards_on_the_hub_run_verbatim(plain: Client):
    done = plain.python(QUICKSTART_HOST)
    assert done.returncode == 0, done.stderr
    for repo, card in (("card", "README.md"), ("many", "README.md"), ("many", "layer_0/README.md")):
        (code,) = re.findall(r"```python\n(.+?)```", plain.hub.files(f"tester/{repo}")[card].decode(), re.S)
        assert f'from_pretrained("tester/{repo}"' in code
        done = plain.python(code + "\nassert sae.config.base_model == 'tester/host'\n")
        assert done.returncode == 0, done.stderr


def test_listings_fit_the_terminal(plain: Client, tmp_path: Path):
    long = "layer_12/width_1536_k32_with_a_rather_long_name_and_a_version"
    make(tmp_path / "sweep" / long / "v1")
    make(tmp_path / "sweep" / long / "v2", hook_in="mlp_in.2", hook_out="mlp_out.2", d_sae=2048)
    done = plain.cli("push", str(tmp_path / "sweep"), "tester/sweep")
    assert done.stdout.splitlines()[-1] == "Next: hf-sae ls tester/sweep"
    for columns in (80, 120):
        lines = plain.cli("ls", "tester/sweep", COLUMNS=str(columns)).stdout.splitlines()
        assert all(len(line) <= columns for line in lines[:3])
        assert lines[1].split() == [*lines[1].split()[:1], "resid_post.0", "topk", "16"]
        assert "mlp_in.2 → mlp_out.2" in lines[2]
        assert lines[2].endswith("2,048")
        assert lines[1].split()[0].endswith("v1"), "ends tell folders apart"
    push(plain, tmp_path / "sweep" / long / "v1", "tester/single")
    assert "resid_post.0" in plain.cli("ls", "tester/single").stdout
    missing = " ".join(plain.cli("pull", "tester/sweep", str(tmp_path / "x")).stderr.split())
    assert missing.startswith("Error: 'tester/sweep' is no autoencoder. 'tester/sweep' holds 'layer_12/")


def test_xet_carries_the_same_bits(tmp_path: Path):
    sae = make(tmp_path / "sae", d_sae=4096)
    hashed = xet_hash(tmp_path / "sae" / "model.safetensors")
    with LocalHub(xet=tmp_path / "storage") as hub, Client(hub, tmp_path / "home") as client:
        hub.expect(tmp_path / "sae" / "model.safetensors")
        push(client, tmp_path / "sae", "tester/xet")
        assert hashed in hub.xet_hashes.values()
        assert not any("/lfs/" in line or "/objects/" in line for line in hub.requests), "nothing went through LFS"
        before = len(hub.requests)
        assert pull(client, "tester/xet")["bits"] == sae(X).reconstruction.tolist()
        asked = hub.requests[before:]
        assert any("xet-read-token" in line for line in asked)
        assert not any(line.startswith("GET") and "safetensors" in line for line in asked), (
            "the weights came from storage"
        )
        assert torch.equal(AutoSAE.from_pretrained(tmp_path / "sae")(X).reconstruction, sae(X).reconstruction)
