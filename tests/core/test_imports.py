"""Post-import callbacks, on modules written for the purpose."""

import importlib
import sys

import pytest

from rl_estimators import imports
from rl_estimators.imports import when_imported


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of an importable module that is not imported; what the test armed is forgotten afterwards."""
    (tmp_path / "rle_waited_for.py").write_text("number = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(imports, "_callbacks", {})
    yield "rle_waited_for"
    sys.modules.pop("rle_waited_for", None)


def test_called_once_the_body_has_run(module):
    seen = []
    when_imported(module, lambda m: seen.append(m.number))
    assert seen == []
    assert module not in sys.modules
    importlib.import_module(module)
    assert seen == [1]


def test_called_at_once_if_loaded(module):
    importlib.import_module(module)
    seen = []
    when_imported(module, lambda m: seen.append(m.__name__))
    assert seen == [module]


def test_called_again_on_reload_and_for_each_callback(module):
    seen = []
    when_imported(module, lambda m: seen.append("a"))
    when_imported(module, lambda m: seen.append("b"))
    importlib.reload(importlib.import_module(module))
    assert seen == ["a", "b", "a", "b"]


def test_what_a_callback_raises_leaves_the_import_statement(module):
    def refuse(loaded):
        raise ValueError("not like this")

    when_imported(module, refuse)
    with pytest.raises(ValueError, match="not like this"):
        importlib.import_module(module)


def test_a_half_imported_module_is_refused(module, tmp_path):
    (tmp_path / "rle_waited_for.py").write_text(
        "from rl_estimators.imports import when_imported\nwhen_imported(__name__, print)\n"
    )
    with pytest.raises(
        ImportError, match="cannot wait for 'rle_waited_for': its import is already under way"
    ):
        importlib.import_module(module)


def test_a_module_that_does_not_exist_stays_missing(module):
    when_imported("rle_nowhere", print)
    with pytest.raises(ModuleNotFoundError, match="rle_nowhere"):
        importlib.import_module("rle_nowhere")


def test_source_and_loader_stay_visible(module):
    when_imported(module, lambda m: None)
    import inspect

    assert inspect.getsource(importlib.import_module(module)) == "number = 1\n"


def test_a_finder_of_the_old_kind_is_passed_over(module, monkeypatch):
    """importlib allows entries on `sys.meta_path` that cannot find specs."""
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path[:1], object(), *sys.meta_path[1:]])
    seen = []
    when_imported(module, lambda m: seen.append(m.number))
    importlib.import_module(module)
    assert seen == [1]


def test_a_loader_that_several_modules_share(tmp_path, monkeypatch):
    """All modules of a zip file have one loader; waiting for one of them must not touch the others."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        archive.writestr("rle_zipped_one.py", "")
        archive.writestr("rle_zipped_two.py", "")
    monkeypatch.syspath_prepend(tmp_path / "both.zip")
    monkeypatch.setattr(imports, "_callbacks", {})
    seen = []
    when_imported("rle_zipped_one", lambda m: seen.append(m.__name__))
    for name in ("rle_zipped_one", "rle_zipped_two"):
        importlib.import_module(name)
        monkeypatch.delitem(sys.modules, name)
    assert seen == ["rle_zipped_one"]
