"""The command line: what it writes, what it prints where, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_sae import AutoSAE, __version__, load_features
from hf_sae.cli import main
from hf_sae.commands.features import sae_ids
from hf_sae.commands.steer import parse_rows
from hf_sae.errors import ConfigError, DataError
from hf_sae.models import BatchTopKSAE, CrosscoderSAE, CrossLayerSAE, JumpReLUSAE, StandardSAE, TopKSAE
from hf_sae.steering import OfMax, OfNorm, ablate, add, clamp, scale, when


VERBS = [
    "demo",
    "train",
    "eval",
    "check",
    "diff",
    "convert",
    "info",
    "features",
    "explain",
    "search",
    "steer",
    "hooks",
    "card",
    "push",
    "cache write",
    "cache info",
    "cache verify",
    "cache push",
]
SHIPPED = str(Path(__file__))  # any file
SMALL = ["--tokens-per-batch", "512", "--context-length", "32", "--d-sae", "64"]


class Run(SimpleNamespace):
    """Exit code, stdout and stderr of one command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        assert self.out.count("\n") == 1, "one line and nothing else"
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def call(*arguments: Any) -> Run:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Run(code=caught.value.code or 0, out=out, err=err)

    return call


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "sae"
    options = [
        "--total-tokens",
        "4096",
        "--k",
        "8",
        "--save-steps",
        "4",
        "--save-total-limit",
        "1",
        "--eval-tokens",
        "600",
    ]
    with pytest.raises(SystemExit) as caught:
        main(["train", *SMALL, *options, "--output-dir", str(folder)])
    assert not caught.value.code
    return folder


def test_help_is_fast_and_imports_nothing_heavy():
    code = (
        "import sys, time; t = time.perf_counter()\n"
        "from hf_sae.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = [m for m in ('torch', 'transformers', 'datasets') if m in sys.modules]\n"
        "print(heavy, time.perf_counter() - t, sep='|', file=sys.stderr)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert all(verb.split()[0] in runs[0].stdout for verb in VERBS)
    assert {r.stderr.strip().split("|")[0] for r in runs} == {"[]"}
    assert min(float(r.stderr.strip().split("|")[1]) for r in runs) < 1


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(run: Any, verb: str):
    result = run(*verb.split(), "--help")
    assert result.code == 0
    assert f"hf-sae {verb} " in result.out.split("Example:")[1]
    assert "--json" in result.out


def test_version(run: Any):
    assert run("--version").out == f"hf-sae {__version__}\n"


def test_train_leaves_model_checkpoints_statistics_report_and_card(saved: Path):
    assert sorted(path.name for path in saved.iterdir()) == [
        "README.md",
        "assets",
        "checkpoint-8",
        "config.json",
        "eval_results.json",
        "examples.json",
        "feature_stats.safetensors",
        "model.safetensors",
        "training_log.json",
    ]
    sae = AutoSAE.from_pretrained(str(saved))
    assert isinstance(sae, TopKSAE)
    assert (sae.config.d_in, sae.config.d_sae, sae.config.k, sae.config.hook_in) == (192, 64, 8, "resid_post.1")
    assert sae.config.base_model == "default_host"
    assert sae.config.provenance["training"]["total_tokens"] == 4096
    assert "8 active on each token" in (saved / "README.md").read_text()
    for path in saved.rglob("*.json"):
        assert str(saved.parent) not in path.read_text().replace(json.dumps(str(saved)), "") or path.parent != saved


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--arch", "standard", "--l1-coefficient", "0.5"], (StandardSAE, {"l1_coefficient": 0.5})),
        (["--arch", "jumprelu", "--target-l0", "6", "--set", "bandwidth=0.2"], (JumpReLUSAE, {"bandwidth": 0.2})),
        (["--arch", "mutual_choice", "--k", "2.5"], (BatchTopKSAE, {"k": 2.5, "model_type": "hf_sae_batch_topk"})),
        (
            ["--hook", "mlp_in.1", "--hook-out", "mlp_out.1", "--skip", "--set", "k_aux=4"],
            (TopKSAE, {"is_transcoder": True, "skip": True, "k_aux": 4}),
        ),
    ],
)
def test_train_every_architecture_with_its_fields(run: Any, tmp_path: Path, arguments: list[str], expected: Any):
    options = ["--total-tokens", "1024", "--eval-tokens", "0", "--output-dir", tmp_path, "--json"]
    result = run("train", *SMALL, *options, *arguments)
    assert result.json["output"] == str(tmp_path)
    sae = AutoSAE.from_pretrained(str(tmp_path))
    model_class, fields = expected
    assert type(sae) is model_class
    assert {name: getattr(sae.config, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--hook", "resid_post.0", "--hook", "resid_post.1"],
            (CrosscoderSAE, ["resid_post.0", "resid_post.1"], None),
        ),
        (["--hook-in", "resid_post.0,resid_post.1"], (CrosscoderSAE, ["resid_post.0", "resid_post.1"], None)),
        (
            ["--hook", "mlp_in.0, mlp_in.1", "--hook-out", "mlp_out.0,mlp_out.1"],
            (CrossLayerSAE, ["mlp_in.0", "mlp_in.1"], ["mlp_out.0", "mlp_out.1"]),
        ),
        (["--config", "run.yaml"], (CrosscoderSAE, ["resid_post.0", "resid_post.1"], None)),
        (["--config", "one.yaml"], (TopKSAE, "resid_post.0", None)),
    ],
)
def test_several_places_are_repeated_or_have_commas(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: Any
):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("hook: [resid_post.0, resid_post.1]\n")
    Path("one.yaml").write_text("hook_in: resid_post.0\n")
    result = run(
        "train", *SMALL, "--total-tokens", "1024", "--eval-tokens", "0", "--output-dir", "out", "--json", *arguments
    )
    assert result.code == 0, result.err
    sae = AutoSAE.from_pretrained("out")
    assert (type(sae), sae.config.hook_in, sae.config.hook_out) == expected
    assert sae.config.k == 32


def test_resuming_ends_with_the_same_bits(run: Any, tmp_path: Path):
    options = [*SMALL, "--eval-tokens", "0", "--total-tokens", "4096"]
    run("train", *options, "--output-dir", tmp_path / "whole")
    run("train", *options, "--output-dir", tmp_path / "part", "--save-steps", "3", "--save-total-limit", "5")
    (tmp_path / "part" / "model.safetensors").unlink()
    result = run("train", *options, "--output-dir", tmp_path / "part", "--resume-from-checkpoint", "last")
    assert result.code == 0, result.err
    whole, part = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "part"))
    assert all(torch.equal(whole[key], part[key]) for key in whole)


def test_a_config_file_gives_defaults_and_flags_win(run: Any, tmp_path: Path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "total_tokens: 1024\nk: 8\nd-sae: 32\nlearning_rate: 1e-3\nset: {k_aux: 3, aux_coefficient: 0}\n"
    )
    options = [
        "--eval-tokens",
        "0",
        "--tokens-per-batch",
        "512",
        "--context-length",
        "32",
        "--output-dir",
        tmp_path / "out",
    ]
    assert run("train", "--config", config, "--k", "4", *options).code == 0
    sae = AutoSAE.from_pretrained(str(tmp_path / "out")).config
    assert (sae.k, sae.d_sae, sae.k_aux, sae.aux_coefficient) == (4, 32, 3, 0)
    assert sae.provenance["training"]["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("totl_tokens: 5", "'totl_tokens', which is no option. Did you mean 'total_tokens'?"),
        ("- a", "holds no 'key: value' lines"),
        ("a: [", "cannot read --config"),
        ("k: many", "Invalid value"),
    ],
)
def test_a_wrong_config_file_is_an_error(run: Any, tmp_path: Path, text: str, message: str):
    (tmp_path / "run.yaml").write_text(text)
    result = run("train", "--config", tmp_path / "run.yaml", "--output-dir", tmp_path / "out")
    assert result.code == 2
    assert message in " ".join(result.err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--arch", "topkk"], "Did you mean 'topk'?"),
        (["train", "--arch", "mutal_choice"], "Did you mean 'mutual_choice'?"),
        (["train", "--hook", "resid_pots.1"], "resid_post.1"),
        (["train", "--layer", "9"], "4 layers"),
        (["train", "--layer", "1", "--hook", "mlp_in.1"], "give one of them"),
        (["train", "--arch", "crosscoder"], "--hook resid_post.0,resid_post.1"),
        (["train", "--arch", "cross_layer", "--hook", "mlp_in.1"], "lists have commas"),
        (["train", "--set", "kk=3"], "Did you mean 'k'?"),
        (["train", "--set", "k"], "is not key=value"),
        (["train", "--arch", "standard", "--k", "3"], "no field 'k'"),
        (["train", "--host", "nobody/nothing", "--layer", "1"], "nobody/nothing"),
        (["train", "--host", "default_host"], "no place to read"),
        (["train", "--push-to-hub"], "hub_model_id"),
        (["train", "--total-tokens", "0"], "total_tokens=0"),
        (["eval", "no/such-sae"], "no/such-sae"),
        (["info", "/nowhere"], "/nowhere"),
        (["check", "/nowhere"], "/nowhere"),
        (["check", SHIPPED, "--host", "default_host"], "it is a file, and ours are folders"),
        (["info", "safelens:user/repo"], "there is no format 'safelens'"),
        (["info", "saelens:"], "neither a release"),
        (["convert", "x", "out", "--set", "hokin=resid_post.1"], "Did you mean 'hook_in'?"),
        (["convert", "x", "out", "--set", "architectures=x"], "no such field"),
        (["convert", "saelens:no-such-release", "out"], "neither a release that is known by rule nor a folder"),
        (["hooks", "nobody/nothing"], "nobody/nothing"),
        (["steer", "no/such-sae", "--prompt", "x", "--feature", "3"], "is no edit"),
        (["card", "/nowhere"], "/nowhere"),
        (["card", "nowhere", "--preview", "card.html"], "'nowhere' is no folder here"),
        (["push", "/nowhere", "user/name"], "no config.json"),
    ],
)
def test_mistakes_end_with_one_paragraph_and_code_2(run: Any, tmp_path: Path, arguments: list[str], message: str):
    extra = ["--output-dir", tmp_path] if arguments[0] == "train" else []
    result = run(*arguments, *extra)
    assert result.code == 2
    assert message in " ".join(result.err.split())
    assert "Traceback" not in result.err
    assert "\n\n" not in result.err.strip()
    assert result.out == ""
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ConfigError):
        main(["train", "--arch", "topkk", "--debug"])


def test_an_option_that_does_not_exist_is_a_usage_error(run: Any):
    result = run("train", "--layr", "3")
    assert result.code == 2
    assert "--layer" in result.err


def test_ctrl_c_exits_with_130(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_sae.training.SAETrainer.train", interrupted)
    assert run("train", *SMALL, "--output-dir", tmp_path).code == 130


def test_eval_prints_a_table_or_one_json_object(run: Any, saved: Path, tmp_path: Path):
    result = run("eval", saved, "--n-tokens", "600", "--controls", "--output", tmp_path / "report.json")
    assert "ce_recovered" in result.out
    assert result.out.splitlines()[-1] == f"Next: hf-sae card {saved} --report {tmp_path / 'report.json'}"
    machine = run("eval", saved, "--n-tokens", "600", "--controls", "--json")
    assert machine.json == json.loads((tmp_path / "report.json").read_text())
    assert {"pca", "random"} <= machine.json["controls"].keys()
    assert "ce_recovered" in machine.err


def test_eval_draws_the_lengths_of_codes(run: Any, saved: Path, tmp_path: Path):
    found = run("eval", saved, "--n-tokens", "600", "--zf-plot", tmp_path / "new" / "zf.png", "--json")
    assert (tmp_path / "new" / "zf.png").read_bytes().startswith(b"\x89PNG")
    norms = found.json["code_norms"]
    assert norms["tokens"] == found.json["n_tokens"]
    assert norms["under_activated"] + norms["over_activated"] <= 1
    assert "of the tokens under-activated" in found.err.replace("\n", " ")


def test_features_writes_a_dataset_that_push_takes(run: Any, saved: Path, tmp_path: Path):
    options = ["--n-tokens", "600", "--top", "3", "--window", "4", "--output-dir"]
    result = run("features", saved, *options, tmp_path / "one")
    assert result.out.splitlines()[-1] == f"Next: hf-sae push {tmp_path / 'one'} user/one-dashboards"
    assert re.search(rf"^{saved.name} +64 ", result.out, re.M)
    found = load_features(tmp_path / "one")
    found.validate()
    assert (found.data["name"], found.data["split"]) == ("python-standard-library", "test")
    strongest = max(found.features, key=lambda row: row["max_act"])
    example = found.feature(saved.name, strongest["feature"]).examples[0]
    assert (example["kind"], max(example["acts"])) == ("top", strongest["max_act"])
    assert example["doc_name"].endswith(".py")
    assert len(example["tokens"]) <= 9
    again = run("features", saved, *options, tmp_path / "one")
    assert (again.code, "overwrite" in again.err) == (2, True)
    machine = run("features", saved, *options, tmp_path / "one", "--overwrite", "--json").json
    assert machine["saes"][saved.name]["latents"] == 64
    assert machine["data"]["n_tokens"] == found.data["n_tokens"]


def test_features_of_several_autoencoders_share_a_pass(run: Any, saved: Path, tmp_path: Path):
    for name in ("a/sae", "b/sae"):
        shutil.copytree(saved, tmp_path / name, ignore=shutil.ignore_patterns("checkpoint-*"))
    options = ["--n-tokens", "300", "--output-dir", tmp_path / "out", "--json"]
    both = run("features", tmp_path / "a/sae", tmp_path / "b/sae", *options).json
    assert set(both["saes"]) == {"a/sae", "b/sae"}
    assert both["saes"]["a/sae"] == both["saes"]["b/sae"]
    inside = run("features", tmp_path, "--subfolder", "a/sae", "--subfolder", "b/sae", "--overwrite", *options).json
    assert inside["saes"] == both["saes"]
    assert run("features", saved, saved, *options).code == 2


@pytest.mark.parametrize(
    ("places", "ids"),
    [
        (["user/repo"], ["repo"]),
        (["user/repo/layer_8", "user/repo/layer_9"], ["layer_8", "layer_9"]),
        (["a/repo", "b/repo", "c/other"], ["a/repo", "b/repo", "c/other"]),
    ],
)
def test_rows_of_several_autoencoders_have_the_shortest_names_that_differ(places: list[str], ids: list[str]):
    assert sae_ids(places) == ids


def test_features_of_two_hosts_are_refused(run: Any, saved: Path, tmp_path: Path):
    other = AutoSAE.from_pretrained(saved)
    other.config.base_model = "user/host"
    other.save_pretrained(tmp_path / "other")
    result = run("features", saved, tmp_path / "other", "--output-dir", tmp_path / "out")
    assert result.code == 2
    assert "one pass has one host" in " ".join(result.err.split())
    assert not (tmp_path / "out").exists()


def test_info_says_what_is_in_the_folder(run: Any, saved: Path):
    payload = run("info", saved, "--json").json
    assert (payload["architecture"], payload["k"], payload["d_sae"]) == ("TopKSAE", 8, 64)
    assert payload["parameters"] == 64 * 192 * 2 + 64 + 192
    assert payload["feature_stats"]["tokens"] >= 600
    text = run("info", saved).out
    assert re.search(r"^hook_in +resid_post\.1$", text, re.M)
    assert all(len(line) <= 80 for line in text.splitlines()[:-1])


def test_check_says_which_reading_fits_and_exits_with_1_if_it_is_another(run: Any, saved: Path, tmp_path: Path):
    result = run("check", saved, "--n-tokens", "512", "--json")
    rows = {row["name"]: row["score"] for row in result.json["readings"]}
    assert result.code == (0 if result.json["ok"] else 1)
    assert result.json["ok"] is (result.json["verdict"].startswith("It is read right"))
    sae = AutoSAE.from_pretrained(saved)
    sae.decoder.weight.data = sae.decoder.weight.data.T.contiguous().view(sae.decoder.weight.shape)
    sae.save_pretrained(tmp_path)
    broken = run("check", tmp_path, "--n-tokens", "512")
    assert broken.code == 1
    assert "decoder transposed" in broken.out
    assert rows["as loaded"] < rows["decoder transposed"]


@pytest.mark.parametrize(("option", "value"), [("--n-tokens", "0"), ("--published-l0", "-3"), ("--published-l0", "0")])
def test_check_wants_tokens_and_an_l0_that_can_be(run: Any, saved: Path, option: str, value: str):
    result = run("check", saved, option, value)
    assert result.code == 2
    assert f"{option.strip('-').replace('-', '_')}={value} must be" in result.err


def test_convert_takes_what_no_file_says(run: Any, saved: Path, tmp_path: Path):
    run("convert", saved, tmp_path / "unnamed", "--format", "sparsify")
    assert run("convert", tmp_path / "unnamed", tmp_path / "a").code == 2  # no folder is named after a module
    options = ["--hook-in", "resid_post.2", "--set", "base_model=user/host", "--json"]
    assert run("convert", tmp_path / "unnamed", tmp_path / "a", *options).json["format"] == "ours"
    config = AutoSAE.from_pretrained(tmp_path / "a").config
    assert (config.hook_in, config.base_model) == ("resid_post.2", "user/host")


def test_info_says_how_to_go_on_with_the_folder_inside(run: Any, saved: Path):
    last = run("info", saved.parent, "--subfolder", saved.name).out.splitlines()[-1]
    assert last == f"Next: hf-sae eval {saved.parent} --subfolder {saved.name}"


@pytest.mark.parametrize("form", ["saelens", "sparsify", "dictionary_learning", "ours"])
def test_convert_writes_what_loads_again_with_the_same_outputs(run: Any, saved: Path, tmp_path: Path, form: str):
    folder = tmp_path / "layers.1"
    result = run("convert", saved, folder, "--format", form)
    assert result.code == 0
    assert "Wrote TopKSAE (64 latents at resid_post.1)" in result.out
    x = torch.randn(20, 192, generator=torch.Generator().manual_seed(0)) * 3
    again, before = AutoSAE.from_pretrained(folder), AutoSAE.from_pretrained(saved)
    assert again.config.hook_in == "resid_post.1"
    with torch.no_grad():
        torch.testing.assert_close(again(x).reconstruction, before(x).reconstruction, atol=1e-4, rtol=1e-5)
    assert run("convert", saved, folder, "--format", form).code == 2
    assert run("convert", saved, folder, "--format", form, "--overwrite", "--json").json["format"] == form


def test_convert_refuses_what_a_format_cannot_say(run: Any, tmp_path: Path):
    from hf_sae import TopKConfig

    TopKSAE(TopKConfig(d_in=8, d_sae=16, k=2, hook_in="resid_post.0", input_norm="layer_norm")).save_pretrained(
        tmp_path / "a"
    )
    result = run("convert", tmp_path / "a", tmp_path / "b", "--format", "sparsify")
    assert result.code == 2
    assert "layer_norm" in result.err
    assert not (tmp_path / "b").exists()
    assert "saelens, sparsify" in run("convert", tmp_path / "a", tmp_path / "b", "--format", "safelens").err


def test_hooks_lists_places_with_widths_and_paths(run: Any):
    payload = run("hooks", "default_host", "--json").json
    found = {place["name"]: (place["width"], place["path"], place["side"]) for place in payload["places"]}
    assert found["resid_post.3"] == (192, "model.layers.3", "output")
    assert found["mlp_in.0"] == (192, "model.layers.0.mlp", "input")


def test_hooks_needs_no_weights_with_random_init(run: Any, tmp_path: Path):
    from transformers import GPT2Config

    GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50).save_pretrained(tmp_path)
    payload = run("hooks", tmp_path, "--random-init", "--json").json
    found = {place["name"]: place["width"] for place in payload["places"]}
    assert found["resid_post.1"] == 16
    assert run("hooks", tmp_path).code == 2


def test_steering_strengths():
    rows = parse_rows(["3=2x", "5 = 1.5", "7=0", "8=-1e-1X", "clamp: 9=.5n @ 4", "ablate:3", "scale:2=3"])
    assert [row.edit() for row in rows] == [
        add({3: OfMax(2)}),
        add({5: 1.5}),
        ablate([7]),
        add({8: OfMax(-0.1)}),
        when(clamp({9: OfNorm(0.5)}), 4),
        ablate(3),
        scale({2: 3.0}),
    ]
    assert [row.edit() for row in parse_rows(["7=0x"])] == [ablate([7])]
    for wrong in (
        ["3"],
        ["3=x"],
        ["a=2"],
        ["3=2", "3=1"],
        ["-1=2"],
        ["clamp:3"],
        ["explode:3=1"],
        ["3=1@x"],
        ["3=1e400"],
    ):
        with pytest.raises((ConfigError, DataError)):
            parse_rows(wrong)


def test_steer_shows_both_texts(run: Any, saved: Path):
    options = ["--prompt", "import os", "--max-new-tokens", "8", "--json"]
    strong = run("steer", saved, "--feature", "3=50x", *options).json
    assert strong["baseline"] != strong["steered"]
    sae = AutoSAE.from_pretrained(str(saved))
    tiny = run("steer", saved, "--feature", "3=1e-12", *options).json
    assert tiny["baseline"] == tiny["steered"] == strong["baseline"]
    assert run("steer", saved, "--feature", f"{sae.config.d_sae}=1", *options).code == 2
    several = run(
        "steer", saved, "--feature", "3=50x", "--sweep", "0,2", "--ablation", "--instruction", "# x", *options
    )
    names = ["Baseline", "Steered", "0×", "2×", "Ablated", "Prompt only"]
    assert [stream["name"] for stream in several.json["streams"]] == names
    assert several.json["streams"][2]["text"] == several.json["baseline"]
    assert several.json["steered"] == strong["steered"]
    assert run("steer", saved, "--prompt", "x").code == 2
    assert "no presets" in run("steer", saved, "--prompt", "x", "--preset", "sea").err
    human = run("steer", saved, "--feature", "3=2x", *options[:-1])
    assert human.out.index("Baseline") < human.out.index("Steered")
    assert "\x1b" not in human.out


def test_card_keeps_what_was_written_by_hand(run: Any, saved: Path, tmp_path: Path):
    report = tmp_path / "report.json"
    run("eval", saved, "--n-tokens", "600", "--output", report)
    assert run("card", saved, "--report", report).code == 0
    assert f"{json.loads(report.read_text())['n_tokens']:,} tokens" in (saved / "README.md").read_text()
    before = (saved / "README.md").read_text()
    (saved / "README.md").write_text("# Mine")
    said = run("card", saved)
    assert "--overwrite" in said.out
    text = (saved / "README.md").read_text()
    assert text.endswith("---\n\n# Mine\n"), "only the header is new"
    assert "library_name: hf-sae" in text
    assert run("card", saved, "--overwrite").code == 0
    assert (saved / "README.md").read_text() == before


def test_card_preview_writes_a_page_and_nothing_else(run: Any, saved: Path, tmp_path: Path):
    before = {path: path.stat().st_mtime_ns for path in saved.rglob("*")}
    result = run("card", saved, "--license", "mit", "--features", "2", "--preview", tmp_path / "card.html", "--json")
    assert result.json == {"preview": str(tmp_path / "card.html")}
    page = (tmp_path / "card.html").read_text()
    assert "license: mit" in page
    assert page.count("<strong>Feature ") <= 2
    assert page.count("data:image/png") == 1, "density; a run of one logged step has no curve"
    assert {path: path.stat().st_mtime_ns for path in saved.rglob("*")} == before


@pytest.mark.slow
def test_train_on_two_processes(tmp_path: Path):
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29631"]
    options = ["--total-tokens", "4096", "--k", "8", "--eval-tokens", "600", "--output-dir", str(tmp_path), "--json"]
    command = [*launch, "-m", "hf_sae", "train", *SMALL, *options]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert len([line for line in result.stdout.splitlines() if line.startswith("{")]) == 1
    sae = AutoSAE.from_pretrained(str(tmp_path))
    assert sae.feature_stats is not None
    assert sae.config.provenance["data"]["world_size"] == 2


def test_threads_do_not_spin_unless_asked_to():
    code = "import os, sys; from hf_sae.cli import main\ntry: main(['--version'])\nexcept SystemExit: pass\nprint(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    for asked, expected in ((None, "PASSIVE False"), ("ACTIVE", "ACTIVE False")):
        env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | (
            {"OMP_WAIT_POLICY": asked} if asked else {}
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
        assert done.stdout.splitlines()[-1] == expected


def test_a_dry_run_estimates_and_writes_nothing(run: Any, tmp_path: Path):
    folder = tmp_path / "out"
    result = run("train", *SMALL, "--dry-run", "--save-steps", "2", "--output-dir", folder, "--json")
    assert result.code == 0
    found = json.loads(result.out)
    assert {"host forward", "encoder product", "top-k", "optimiser", "evaluation"} <= {
        p["name"] for p in found["parts"]
    }
    assert found["machine"]["host"] > 0
    assert found["seconds"] > 0
    assert "of the time" in found["advice"][0]
    assert not folder.exists()
