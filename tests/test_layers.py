"""Arrows between modules point down only, and files stay small enough to read."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import hf_sae


ROOT = Path(hf_sae.__file__).parent
# from the ground up; a module may import its own layer and those below
LAYERS = (
    {"errors", "models"},
    {
        "access",
        "assets",
        "calls",
        "corpus",
        "data",
        "hooks",
        "hosts",
        "metrics",
        "plain_yaml",
        "shades",
        "terminal",
        "versions",
        "views",
    },
    {"activations", "conversion"},
    {"analysis", "evaluation", "features", "hub", "steering", "training"},
    {"__main__", "cli", "commands", "demo", "space"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODELS_MAY_IMPORT = {"torch", "transformers", "huggingface_hub", "safetensors", "triton"} | sys.stdlib_module_names
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
PRINTS = {"assets/train_default_host.py"}  # a script
MAX_LINES, MAX_FUNCTION = 400, 60
TARGET_LINES, TARGET_FUNCTION = 300, 40


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _unit(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path) -> list[tuple[ast.stmt, str]]:
    """Absolute dotted names of what a file imports, type-checking blocks included."""
    package = ["hf_sae", *path.relative_to(ROOT).parts[:-1]]
    found: list[tuple[ast.stmt, str]] = []
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found += [(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = [*base, *(node.module.split(".") if node.module else [])]
            found += [(node, ".".join([*stem, alias.name])) for alias in node.names]
    return found


def _own(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "hf_sae" and len(parts) > 1 else None


def test_every_module_has_a_layer():
    units = {_unit(path) for path in FILES} - {"__init__"}
    assert units <= LEVEL.keys(), f"give these a layer in {Path(__file__).name}: {sorted(units - LEVEL.keys())}"


def test_arrows_point_down():
    wrong = []
    for path in FILES:
        unit = _unit(path)
        if unit in ("__init__", "models"):
            continue
        for node, dotted in _imports(path):
            target = _own(dotted)
            if target in LEVEL and LEVEL[target] > LEVEL[unit]:
                wrong.append(f"{_name(path)}:{node.lineno} imports {target}")
    assert wrong == []


def test_models_can_travel_to_the_hub():
    wrong = []
    for path in FILES:
        if _unit(path) != "models":
            continue
        guarded = _deferred_and_guarded(TREES[path])
        for node, dotted in _imports(path):
            relative = isinstance(node, ast.ImportFrom) and node.level == 1 and "." not in (node.module or "")
            allowed = dotted.split(".")[0] in MODELS_MAY_IMPORT or relative or node in guarded
            if not allowed:
                wrong.append(f"{_name(path)}:{node.lineno} imports {dotted}")
    assert wrong == []


def _deferred_and_guarded(tree: ast.Module) -> set[ast.stmt]:
    """Imports inside a function within `try/except ImportError`: the two upward edges that the design names."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    tries = [node for function in functions for node in ast.walk(function) if isinstance(node, ast.Try)]
    return {
        node
        for block in tries
        if any(isinstance(h.type, ast.Name) and h.type.id == "ImportError" for h in block.handlers)
        for statement in block.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }


@pytest.mark.parametrize("optional", ["peft", "datasets", "gradio", "matplotlib", "jinja2", "yaml"])
def test_optional_and_slow_packages_are_imported_inside_functions(optional: str):
    wrong = []
    for path in FILES:
        if _name(path) in PRINTS:
            continue
        for node in TREES[path].body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            wrong += [_name(path) for name in names if name.split(".")[0] == optional]
    assert wrong == []


def test_no_assert_print_bare_except_or_stub_in_the_library():
    wrong = []
    for path in FILES:
        if _name(path) in PRINTS:
            continue
        for node in ast.walk(TREES[path]):
            bad = isinstance(node, ast.Assert) or (isinstance(node, ast.ExceptHandler) and node.type is None)
            bad |= isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
            bad |= isinstance(node, ast.Raise) and "NotImplemented" in ast.unparse(node)
            if bad:
                wrong.append(f"{_name(path)}:{node.lineno} {ast.unparse(node)[:40]}")
        wrong += [
            f"{_name(path)} TODO" for word in ("TODO", "FIXME", "XXX") if word in path.read_text(encoding="utf-8")
        ]
    assert wrong == []


def test_every_module_starts_with_a_docstring():
    assert [_name(path) for path in FILES if ast.get_docstring(TREES[path]) is None] == []


def test_files_and_functions_are_short(record_property):
    lines = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    functions = {
        f"{_name(path)}:{node.name}": _length(node)
        for path in FILES
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    long = {name: n for name, n in lines.items() if n > TARGET_LINES}
    long |= {name: n for name, n in functions.items() if n > TARGET_FUNCTION}
    record_property("longer_than_the_target", long)
    assert {name: n for name, n in lines.items() if n > MAX_LINES} == {}
    assert {name: n for name, n in functions.items() if n > MAX_FUNCTION} == {}


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines without the docstring: what is documented at length is no longer for it."""
    body = function.body
    documented = ast.get_docstring(function) is not None
    doc = (body[0].end_lineno or 0) - body[0].lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - doc
