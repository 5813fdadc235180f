"""Every Python block of the README and of docs/training.md runs, in order, in one namespace; only the token counts are smaller."""

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
PAGES = {"README.md": README} | {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))
}
BLOCKS = {page: re.findall(r"^```python *(\S*)\n(.+?)^```", text, re.S | re.M) for page, text in PAGES.items()}
RUN = [code for page in ("README.md", "docs/training.md") for tag, code in BLOCKS[page] if tag != "no-run"]
_COUNT = re.compile(r"\b(total_tokens|n_tokens)=[\d_]+")
SMALL = {"total_tokens": 8192, "n_tokens": 2000}


def test_the_flows_run_verbatim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    module = ModuleType("readme_flows")  # as in a script or notebook: transformers looks annotations up in the module
    monkeypatch.setitem(sys.modules, "readme_flows", module)
    namespace = module.__dict__
    assert len(RUN) >= 8
    for number, code in enumerate(RUN):
        if number == len(RUN) - 1:
            smaller = code  # trains on random numbers, which is quick as it stands
        else:
            code = code.replace("repeat=True)", "repeat=True, ring_bytes=2**25)")  # and so is the shuffle ring
            smaller = _COUNT.sub(lambda match: f"{match[1]}={SMALL[match[1]]}", code)
        exec(compile(smaller, f"documentation block {number + 1}", "exec", dont_inherit=True), namespace)
    forget(namespace["SoftConfig"])
    printed = capsys.readouterr().out
    assert "ce_recovered" in printed
    assert "resid_pre.0" in printed
    assert (tmp_path / "my-sae" / "feature_stats.safetensors").is_file()
    assert (tmp_path / "many" / "jumprelu" / "config.json").is_file()


@pytest.mark.parametrize("page", BLOCKS)
def test_blocks_that_are_not_run_are_python(page: str):
    for _, code in BLOCKS[page]:
        compile(code, page, "exec")


def test_every_call_of_the_design_is_named():
    import hf_sae

    # names that a reader cannot guess from the ones that are shown
    derived = {"edit", "splice", "HookPoint", "StandardConfig", "StandardSAE"}
    code = " ".join(code for blocks in BLOCKS.values() for _, code in blocks)
    shown = set(re.findall(r"\w+", code)) | set(re.findall(r"`(\w+)", " ".join(PAGES.values())))
    assert set(hf_sae.__all__) - derived <= shown


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = re.findall(r"<!-- test command[^>]*-->\n```bash\n(.+?)\n```", README, re.S)
    assert command == ['pip install ".[test,quality]" && make test']
    assert "<!-- test command" in script
    assert subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=False).returncode == 0
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_links_between_documents_lead_somewhere():
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", *PAGES):
        page = ROOT / name
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{name} links to {target}"
