"""Every Python block of the README runs, in order, in one namespace; only the token counts are smaller here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.models.battery import forget


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python *(\S*)\n(.+?)^```", README, re.S | re.M)
_COUNT = re.compile(r"\b(total_tokens|n_tokens)=[\d_]+")
SMALL = {"total_tokens": 8192, "n_tokens": 2000}


def test_the_flows_run_verbatim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    module = ModuleType("readme_flows")  # as in a script or notebook: transformers looks annotations up in the module
    monkeypatch.setitem(sys.modules, "readme_flows", module)
    namespace = module.__dict__
    blocks = [code for tag, code in BLOCKS if tag != "no-run"]
    assert len(blocks) >= 6
    for number, code in enumerate(blocks):
        if number == len(blocks) - 1:
            smaller = code  # trains on random numbers, which is quick as it stands
        else:
            code = code.replace("repeat=True)", "repeat=True, ring_bytes=2**25)")  # and so is the shuffle ring
            smaller = _COUNT.sub(lambda match: f"{match[1]}={SMALL[match[1]]}", code)
        exec(compile(smaller, f"README.md block {number + 1}", "exec", dont_inherit=True), namespace)
    forget(namespace["SoftConfig"])
    printed = capsys.readouterr().out
    assert "ce_recovered" in printed
    assert "resid_pre.0" in printed
    assert (tmp_path / "my-sae" / "feature_stats.safetensors").is_file()
    assert (tmp_path / "many" / "jumprelu" / "config.json").is_file()


@pytest.mark.parametrize("code", [code for tag, code in BLOCKS if tag == "no-run"])
def test_blocks_that_need_the_hub_are_python(code: str):
    compile(code, "README.md", "exec")


def test_every_call_of_the_design_is_named():
    import hf_sae

    # names that a reader cannot guess from the ones that are shown
    derived = {"edit", "splice", "HookPoint", "StandardConfig", "StandardSAE"}
    shown = set(re.findall(r"\w+", " ".join(code for _, code in BLOCKS))) | set(re.findall(r"`(\w+)", README))
    assert set(hf_sae.__all__) - derived <= shown


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = re.findall(r"<!-- test command[^>]*-->\n```bash\n(.+?)\n```", README, re.S)
    assert command == ['pip install ".[test,quality]" && make test']
    assert "<!-- test command" in script
    assert subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=False).returncode == 0
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_links_between_documents_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / target).exists(), f"{name} links to {target}"
