"""Imports run one way: each layer may import itself and those below it, and the core imports no framework."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rl_estimators

PACKAGE = Path(rl_estimators.__file__).parent
# Bottom to top; what stands in one line may not import each other.
LAYERS = (
    {"errors", "hints", "metrics"},
    {"fields", "files", "imports", "modules"},
    {"compat", "registry", "patching"},
    {"backends"},
    {"masked", "scan"},
    {"carry"},
    {"calls", "trial"},
    {"aggregation", "shaping", "steps", "whitening"},
    {"estimators", "policy_losses", "value_losses"},
    {"diagnostics"},
    {"compare", "doctor", "lab", "plot", "trl", "verl"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
FRAMEWORKS = {"verl", "trl", "ray", "transformers", "hydra", "omegaconf", "accelerate"}
TOKENIZER = PACKAGE / "compare" / "tokens.py"  # splits text with transformers, if that is installed
FILES = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def imported(path):
    """Every module that a file imports anywhere, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(name):
    return next(level for level, names in enumerate(LAYERS) if name in names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for name in imported(path):
        top, _, rest = name.partition(".")
        knows = own in ("verl", "trl") or (path == TOKENIZER and top == "transformers")
        assert knows or top not in FRAMEWORKS, f"{path} knows the framework {top}"
        if top != "rl_estimators" or not rest:
            continue
        other = rest.split(".")[0]
        assert other != "patches", f"{path} imports patches"
        if other in set().union(*LAYERS) and other != own:
            assert layer(other) < layer(own), f"{path}: {own} imports {other}"


def test_every_module_has_a_layer():
    assert {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in FILES} <= set().union(*LAYERS)


def test_importing_the_package_imports_no_framework():
    code = f"import sys, rl_estimators, rl_estimators.cli; print(sorted({FRAMEWORKS!r} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
