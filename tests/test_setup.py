"""A machine that cannot run verl is told so before anything is installed."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def make_venv():
    spec = importlib.util.spec_from_file_location("make_venv", ROOT / ".ci/make_venv.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_wrong_python(make_venv, monkeypatch, tmp_path):
    monkeypatch.setattr(make_venv, "WANTED", ((3, 98), (3, 100)))
    monkeypatch.setattr(make_venv, "works", lambda name: name == "python3.11")
    with pytest.raises(
        SystemExit, match=r"and verl 0.9 needs one from 3.98 to 3.99; run: make smoke PYTHON=python3.11"
    ):
        make_venv.main(str(tmp_path / "venv"))
    monkeypatch.setattr(make_venv, "works", lambda name: False)
    with pytest.raises(SystemExit, match=r"install Python 3.10 to 3.12"):
        make_venv.main(str(tmp_path / "venv"))
    assert not (tmp_path / "venv").exists()


def test_no_venv(make_venv, monkeypatch, tmp_path):
    find = make_venv.importlib.util.find_spec
    monkeypatch.setattr(
        make_venv.importlib.util, "find_spec", lambda n: None if n == "ensurepip" else find(n)
    )
    with pytest.raises(
        SystemExit, match=r"this Python has no ensurepip; on Debian and Ubuntu: apt-get install python3-venv"
    ):
        make_venv.main(str(tmp_path / "venv"))


def test_no_room(make_venv, monkeypatch, tmp_path):
    monkeypatch.setattr(make_venv, "FREE_GB", 10**9)
    with pytest.raises(SystemExit, match="GB of disk are free, the packages need 1000000000 GB"):
        make_venv.main(str(tmp_path / "venv"))


def test_pip_is_watched(make_venv, tmp_path, capfd):
    log = tmp_path / "install.log"
    code = make_venv.watch(
        ["sh", "-c", "echo Collecting a '(from b)'; echo ERROR: none; sleep 1; exit 3"], str(log), 0.0
    )
    assert code == 3
    assert log.read_text() == "Collecting a (from b)\nERROR: none\n"
    assert " s  Collecting a\n" in capfd.readouterr().out
