"""The command line, and what the doctor says of environments that lack something."""

import importlib.metadata
import subprocess
import sys

import pytest

from rl_estimators import cli, doctor
from rl_estimators.registry import ADV_ESTIMATORS


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


def releases(monkeypatch, **known):
    monkeypatch.setattr(doctor, "_release", lambda name: known.get(name.replace("-", "_")))


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
