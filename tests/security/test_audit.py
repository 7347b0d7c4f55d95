"""``make audit``: what it says of pip-audit's answers, of none, and of half of one."""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("pip_audit")
ROOT = Path(__file__).parents[2]
CLEAN = {"numpy": [], "torch": [], "packaging": []}
HOLE = {"id": "PYSEC-1", "fix_versions": ["3.0", "3.1"], "aliases": [], "description": ""}


@pytest.fixture
def audit(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("rle_audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "direct", lambda: (dict.fromkeys(CLEAN, "1.0"), ["verl"]))
    # pip-audit, in a process of its own, with the answer of a service
    (tmp_path / "pip_audit.py").write_text(
        "import os, sys\n"
        "given = sys.argv[1:]\n"
        "print(open(given[given.index('--requirement') + 1]).read(), file=sys.stderr)\n"
        "if os.environ['ANSWER'] == 'none': sys.exit('ERROR: the service cannot be reached')\n"
        "open(given[given.index('--output') + 1], 'w').write(os.environ['ANSWER'])\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return module


def answer(monkeypatch, found, skipped=()):
    rows = [{"name": name, "version": "1.0", "vulns": holes} for name, holes in found.items()]
    rows += [{"name": name, "skip_reason": "not found"} for name in skipped]
    monkeypatch.setenv("ANSWER", json.dumps({"dependencies": rows, "fixes": []}))


def test_nothing_is_known_against_them(audit, monkeypatch, capsys):
    answer(monkeypatch, CLEAN)
    assert audit.main() == 0
    assert capsys.readouterr().out.splitlines() == [
        "audit: verl is not installed here, so it is not looked up",
        "audit: 3 of 3 direct dependencies looked up, 0 vulnerabilities",
    ]


def test_one_is_vulnerable(audit, monkeypatch, capsys):
    answer(monkeypatch, {**CLEAN, "torch": [HOLE, {**HOLE, "id": "PYSEC-2", "fix_versions": []}]})
    assert audit.main() == 1
    out = capsys.readouterr().out
    assert "audit: torch 1.0: PYSEC-1, mended in 3.0, 3.1" in out
    assert "audit: torch 1.0: PYSEC-2, mended in no release yet" in out
    assert "3 of 3 direct dependencies looked up, 2 vulnerabilities" in out


def test_what_could_not_be_looked_up_is_no_success(audit, monkeypatch, capsys):
    """pip-audit itself says `No known vulnerabilities found` then, with the exit code 0."""
    answer(monkeypatch, {"numpy": []}, skipped=("torch", "packaging"))
    assert audit.main() == 2
    assert "audit: nothing is known of torch 1.0, packaging 1.0" in capsys.readouterr().out


def test_without_a_network(audit, monkeypatch, capsys):
    monkeypatch.setenv("ANSWER", "none")
    assert audit.main() == 2
    out = capsys.readouterr().out
    assert "the service cannot be reached" in out
    assert "audit: no answer, see above; is there a network?" in out


def test_what_is_direct(monkeypatch):
    spec = importlib.util.spec_from_file_location("rle_audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    releases, absent = module.direct()
    assert {"numpy", "packaging", "torch", "pyarrow"} <= releases.keys() | {*absent}
    assert not {"pytest", "ruff", "pip-audit"} & (releases.keys() | {*absent})
    assert all("+" not in release for release in releases.values())
