"""The command line, and what the doctor says of environments that lack something."""

import importlib.metadata
import subprocess
import sys
import types
from pathlib import Path

import pytest

from rl_estimators import cli, doctor, patching
from rl_estimators.commands import train
from rl_estimators.patching import Patch
from rl_estimators.registry import ADV_ESTIMATORS

ROLLOUTS = Path(__file__).parents[1] / "examples" / "rollouts.jsonl"


def test_list_names_needs_and_sources(capsys):
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "advantage estimators",
        "  gae\n    needs    token_level_rewards, values, response_mask\n    takes    truncated, bootstrap_values\n"
        "    options  gamma=1.0, lam=1.0, whiten=True",
        "    source   https://arxiv.org/abs/2310.10505 algorithm 1",
        "policy losses",
        "    takes    rollout_is_weights",
        "value losses",
    ):
        assert line in printed


def test_list_names_what_cannot_be_used(capsys, monkeypatch):
    offer = importlib.metadata.EntryPoint("theirs", "nothing_of_that_name:f", "rl_estimators.adv_estimators")
    monkeypatch.setitem(ADV_ESTIMATORS.__dict__, "_offers", {"theirs": [offer]})
    assert cli.main(["list"]) == 1
    assert (
        "  theirs\n    CANNOT BE USED: advantage estimator 'theirs' is offered by" in capsys.readouterr().out
    )


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit):
        cli.main([])
    assert "usage: rl-estimators" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["list"], ["diagnostics"], ["compare", str(ROLLOUTS)]], ids=lambda words: words[0]
)
def test_a_reader_that_goes_away(words):
    """``| true``: nobody reads, whenever it is written."""
    words = [sys.executable, "-m", "rl_estimators", *words]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_train_without_trl_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    assert cli.main(["train", "--config", "x.yaml"]) == 2
    message = "rl-estimators train: TRL is not installed: pip install 'rl-estimators[trl]'\n"
    assert capsys.readouterr().err == message


def releases(monkeypatch, **known):
    monkeypatch.setattr(doctor, "_release", lambda name: known.get(name.replace("-", "_")))


def _upstream():
    """Stands in for a function of somebody else's."""


def lines(findings):
    return [f"{finding.level}: {finding.text} | {finding.repair}" for finding in findings]


class TestDoctor:
    def test_no_framework(self, monkeypatch):
        releases(monkeypatch, torch="2.13.0", rl_estimators="0.1.0")
        found = lines(doctor.examine())
        assert "note: verl is not installed | pip install 'rl-estimators[verl]'" in found
        assert "note: trl is not installed | pip install 'rl-estimators[trl]'" in found
        assert found[-1].startswith("bad: neither verl nor TRL is installed")

    def test_wrong_release(self, monkeypatch):
        releases(monkeypatch, torch="2.13.0", rl_estimators="0.1.0", verl="0.6.1", trl="1.16.0")
        assert (
            "bad: verl 0.6.1 is not supported, expected >=0.9,<0.10 | pip install 'rl-estimators[verl]'"
            in lines(doctor.examine())
        )

    def test_wrong_python(self, monkeypatch):
        monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.13.0")
        assert "bad: Python 3.13.0 | use a Python >=3.10,<3.13" in lines(doctor.examine())

    def test_plain_verl_lacks_what_its_trainers_import(self, monkeypatch):
        monkeypatch.setattr(doctor, "_VERL_NEEDS", ("ray", "rle_nowhere"))
        monkeypatch.setattr(doctor, "_release", lambda name: "0.9.1" if name == "verl" else "1.16.0")
        text = (
            "bad: verl's trainers cannot be imported without rle_nowhere | pip install 'rl-estimators[verl]'"
        )
        assert text in lines(doctor._verl())

    def test_no_entry_point(self, monkeypatch):
        monkeypatch.setattr(doctor, "_VERL_NEEDS", ())
        monkeypatch.setattr(doctor.importlib.metadata, "entry_points", lambda group: [])
        (found,) = lines(doctor._verl())
        assert found.startswith(
            "bad: the entry point rl_estimators of verl.plugins is not installed | pip install"
        )

    @pytest.mark.parametrize(
        ("state", "late", "found"),
        [
            ("APPLIED", (), "ok: hook mend: applied [up.stream:f] | "),
            ("DISABLED", (), "ok: hook mend: disabled [up.stream:f] | "),
            ("UNINSTALLED", (), "ok: hook mend: uninstalled [up.stream:f] | "),
            ("UNSUPPORTED", (), "bad: hook mend: unsupported release [up.stream:f] | pip install 'up>=1,<2'"),
            (
                "DRIFTED",
                (),
                "bad: hook mend: drifted: upstream does not look as reviewed [up.stream:f] | pip install 'up>=1,<2', if "
                "that is not what is installed; to do without: export RL_ESTIMATORS_DISABLE_PATCHES=mend",
            ),
            (
                "FAILED",
                (),
                "bad: hook mend: failed [up.stream:f] | this is a defect of rl-estimators: report the line above; "
                "to do without: export RL_ESTIMATORS_DISABLE_PATCHES=mend",
            ),
            (
                "APPLIED",
                ("up.user.f", "up.user.g", "__main__.f"),
                "bad: hook mend: applied (too late for up.user.f, up.user.g, __main__.f) [up.stream:f] | import up before "
                "__main__, up.user; to do without: export RL_ESTIMATORS_DISABLE_PATCHES=mend",
            ),
        ],
    )
    def test_what_repairs_a_hook(self, monkeypatch, state, late, found):
        text = dict.fromkeys(("signature", "upstream", "remove_when"), "x")
        patch = Patch(
            name="mend",
            distribution="up",
            releases=">=1,<2",
            module="up.stream",
            attribute="f",
            wrap=None,
            **text,
        )
        status = patching.Status(patch, patching.State[state], late=late)
        monkeypatch.setattr(patching, "report", lambda: [status])
        assert lines(doctor._hooks()) == [found]

    def test_a_body_that_has_changed_is_told(self, monkeypatch):
        text = dict.fromkeys(("signature", "upstream", "remove_when"), "x")
        patch = Patch(name="mend", distribution="up", releases=">=1,<2", module=__name__, attribute="_upstream",
                      wrap=None, reviewed={"1.0": "0" * 12}, **text)  # fmt: skip
        monkeypatch.setitem(
            sys.modules, __name__, sys.modules.get(__name__, types.SimpleNamespace(_upstream=_upstream))
        )
        monkeypatch.setattr(patching, "report", lambda: [patching.Status(patch, patching.State.APPLIED)])
        (found,) = lines(doctor._hooks())
        assert found.startswith(
            f"note: hook mend: applied [{__name__}:_upstream], though its body has changed: reviewed "
        )
        assert "000000000000 in 1.0, found " in found

    def test_switched_off(self, monkeypatch):
        monkeypatch.setattr(doctor, "_VERL_NEEDS", ())
        monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")
        found = lines(doctor._verl())
        assert found[-1].startswith("bad: VERL_USE_EXTERNAL_PLUGINS=none keeps the plugin out | unset")


@pytest.mark.verl
def test_doctor_in_this_environment():
    result = subprocess.run(
        [sys.executable, "-m", "rl_estimators", "doctor"], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "entry point verl.plugins: rl_estimators.verl.plugin" in result.stdout
    (known,) = (line for line in result.stdout.splitlines() if "algorithm.adv_estimator knows" in line)
    assert {"reinforce_pp", "rle_gae", "rle_grpo", "rle_remax"} <= {*known.replace(",", "").split()}
    assert "hook verl_trl_value_head: applied" in result.stdout
    assert result.stdout.endswith("\nall well\n")
