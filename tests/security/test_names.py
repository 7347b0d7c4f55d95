"""No code runs from a value in a configuration, but by registered names and the import paths that are documented."""

import sys

import pytest

from rl_estimators.compare.choices import read_choices
from rl_estimators.errors import InputError, UnknownNameError
from rl_estimators.registry import ADV_ESTIMATORS, POLICY_LOSSES, VALUE_LOSSES

MODULE = "rle_never_imported"


@pytest.fixture
def bait(tmp_path, monkeypatch):
    """A module that could be imported, and a file that it leaves if it is."""
    (tmp_path / f"{MODULE}.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\ndef reward(completions, **kwargs): return [0.0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop(MODULE, None)


NAMES = (
    MODULE,
    f"{MODULE}.reward",
    f"{MODULE}:reward",
    f"{MODULE}.py:reward",
    "os.system",
    "builtins.exec",
    f"__import__('{MODULE}')",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("registry", [ADV_ESTIMATORS, POLICY_LOSSES, VALUE_LOSSES], ids=lambda r: r.kind)
def test_names_of_estimators_and_losses_are_looked_up_only(bait, registry, name):
    with pytest.raises(UnknownNameError, match=r"^no .* is named "):
        registry.spec(name)
    assert not (bait / "ran").exists()


@pytest.mark.parametrize(
    "value", [f"__import__('{MODULE}')", f"(lambda: __import__('{MODULE}'))()", "open('x','w')"]
)
def test_options_of_compare_are_values(bait, value):
    """What is no literal is a word, and the word is no value that the option takes."""
    try:
        (choice,) = read_choices([f"grpo:norm_by_std={value}"])
    except InputError:
        pass
    else:
        assert isinstance(choice.options["norm_by_std"], str)
    assert not (bait / "ran").exists()
    assert not (bait / "x").exists()


@pytest.mark.trl
class TestTrain:
    """`rl-estimators train` imports what `reward_funcs`, `token_reward_funcs` and `external_modules` name; docs/trl.md."""

    @pytest.fixture(autouse=True)
    def functions(self):
        pytest.importorskip("trl")
        from rl_estimators.trl import functions

        self.functions = functions

    def test_an_import_path_imports(self, bait):
        assert self.functions.find(f"{MODULE}.reward", "reward_funcs")([]) == [0.0]
        assert (bait / "ran").exists()

    @pytest.mark.parametrize(
        "options",
        [
            f"x=__import__('{MODULE}')",
            f"**__import__('{MODULE}')",
            f"__import__('{MODULE}')",
            "x=open('x','w')",
        ],
    )
    def test_options_are_literals(self, bait, options):
        with pytest.raises(InputError, match=r"expected name\(option=value, \.\.\.\) with plain values"):
            self.functions.find(f"get_soft_overlong_punishment({options})", "reward_funcs", {})
        assert not (bait / "ran").exists()
        assert not (bait / "x").exists()

    def test_a_name_alone_imports_nothing(self, bait):
        with pytest.raises(InputError, match="is unknown; expected one of"):
            self.functions.find(MODULE, "reward_funcs", self.functions.builtin_rewards())
        assert not (bait / "ran").exists()

    @pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir [ran]", f"!!python/module:{MODULE}"])
    def test_a_yaml_file_makes_no_objects(self, bait, tag):
        from rl_estimators.trl import arguments

        (bait / "settings.yaml").write_text(f"learning_rate: {tag}\n")
        with pytest.raises(
            InputError, match=r"settings\.yaml is not YAML: could not determine a constructor"
        ):
            arguments._read("settings.yaml")
        assert not (bait / "ran").exists()
