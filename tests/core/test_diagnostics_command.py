"""``rl-estimators diagnostics``."""

from rl_estimators import cli
from rl_estimators.diagnostics import DIAGNOSTICS


def test_all_of_them(capsys):
    assert cli.main(["diagnostics"]) == 0
    printed = capsys.readouterr().out
    for name, entry in DIAGNOSTICS.items():
        assert f"rl_estimators/{name}\n" in printed
        for text in (entry.what, entry.bad, entry.remedy, entry.needs):
            assert text in " ".join(printed.split())
    assert max(map(len, printed.splitlines())) <= 110


def test_some_of_them_as_they_stand_in_a_log(capsys):
    assert cli.main(["diagnostics", "rl_estimators/ratio_max", "policy_kl"]) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rl_estimators/")]
    assert heads == ["rl_estimators/ratio_max", "rl_estimators/policy_kl"]


def test_an_unknown_one(capsys):
    assert cli.main(["diagnostics", "ratio_mx"]) == 2
    error = capsys.readouterr().err
    assert "rl-estimators diagnostics: no diagnostic is named 'ratio_mx'. Did you mean 'ratio_max'?" in error
