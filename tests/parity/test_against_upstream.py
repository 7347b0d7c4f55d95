"""The committed table: its rows for the installed releases are reproduced, and nobody with a preset is missing from it."""

import importlib.metadata
import importlib.util
import math
import typing
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")

from reference import cases  # noqa: E402

from rl_estimators.registry import ADV_ESTIMATORS  # noqa: E402

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "benchmarks/results/against_upstream.md"
# Seconds instead of half a minute; what is left out are the long responses and most of the drawn ones.
FEW = tuple(
    cases.BY_NAME[name]
    for name in (
        *(
            "ragged_prefix",
            "holes",
            "all_masked_rows",
            "one_valid_token",
            "outcome_01",
            "tie_1000.1",
            "singletons",
        ),
        *(
            "nan_at_masked",
            "nan_score",
            "inf_score",
            "nan_score_leaves_one",
            "leading_zero_uids",
            "large_scale",
        ),
    )
)


@pytest.fixture(scope="module")
def command():
    spec = importlib.util.spec_from_file_location("against_upstream", ROOT / ".ci/against_upstream.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tables(library):
    """The rows of both tables of a library, as dicts by the names of the columns."""
    title = {"verl": "## verl\n", "trl": "## TRL\n"}[library]
    part = TABLE.read_text().split(title)[1].split("\n## ")[0]
    blocks, names = [], None
    for line in part.splitlines():
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")] if line.startswith("|") else None
        if cells is None:
            names = None
        elif names is None:
            names = cells
            blocks.append([])
        elif set(line) - {"|", "-"}:
            blocks[-1].append(dict(zip(names, cells, strict=True)))
    agreement, apart = blocks
    return agreement, apart


def with_preset(library):
    """Estimators whose option ``compat`` offers the library."""
    for name in ADV_ESTIMATORS.names():
        spec = ADV_ESTIMATORS.spec(name)
        if spec.is_ours and "compat" in spec.options:
            offered = spec.function.__signature__.parameters["compat"].annotation
            if library in [word for part in typing.get_args(offered) for word in typing.get_args(part)]:
                yield name


@pytest.mark.parametrize("library", ["verl", "trl"])
def test_every_preset_has_a_row_with_every_release(command, library):
    agreement, _ = tables(library)
    assert sorted(row["estimator"] for row in agreement) == sorted(with_preset(library))
    releases = [one.split("==")[1] for one in command.RELEASES if one.startswith(library)]
    for row in agreement:
        for release in releases:
            difference, agreed, of, everything = row[release].replace("(", "").replace(")", "").split()
            assert 0 <= float(difference) <= command.TOLERANCE
            assert of == "of"
            assert 0 < int(agreed) <= int(everything)


@pytest.mark.parametrize("library", ["verl", "trl"])
def test_every_difference_has_its_reason(command, library):
    agreement, apart = tables(library)
    assert {row[""] for row in apart} == set(command.TRAPS[library])
    assert {row["estimator"] for row in apart} == {row["estimator"] for row in agreement}


def reproduced(command, library, rows):
    """Compare what has just been measured on a few cases with the committed tables."""
    agreement, apart = tables(library)
    committed = {(row[""], row["estimator"]): row for row in apart}
    release = importlib.metadata.version(library)
    for row in agreement:
        own = [one for one in rows if one["estimator"] == row["estimator"] and not one.get("probe")]
        agreed = [one["difference"] for one in own if one.get("difference", math.inf) <= command.TOLERANCE]
        # another processor's sums round otherwise
        assert agreed
        assert max(agreed) <= max(4 * float(row[release].split()[0]), 1e-6)
    for row in rows:
        if row["trap"] is None:
            continue
        said = committed[row["trap"], row["estimator"]]
        assert said["releases"] == "all" or release in said["releases"]
        if said["furthest in"] == row["case"]:
            _same(said, row)
    return {row["trap"] for row in rows}


def _same(said, row):
    if "error" in row:
        assert said["upstream"] == row["error"]
        return
    for key, number in row["numbers"].items():
        # a rounding error divided by itself is of order 1, whichever it is
        slack = 1.0 if row["trap"] == "rounding" and key in ("upstream", "compat") else 1e-3
        wanted = float(said[key])
        same = (math.isnan(wanted) and math.isnan(number)) or abs(number - wanted) <= slack * max(
            1, abs(wanted)
        )
        assert same, (row["estimator"], row["case"], key, number, wanted)


@pytest.mark.verl
def test_the_installed_verl(command):
    pytest.importorskip("verl")
    from parity import against_verl

    release = importlib.metadata.version("verl")
    if f"verl=={release}" not in command.RELEASES:
        pytest.skip(f"the table has no verl {release}")
    traps = reproduced(command, "verl", against_verl.measure(FEW))
    assert traps == {None, *command.TRAPS["verl"]} - {"reset"}  # that was 0.8.0


@pytest.mark.trl
def test_the_installed_trl(command, model):
    pytest.importorskip("trl")
    from parity import against_trl

    release = importlib.metadata.version("trl")
    if f"trl=={release}" not in command.RELEASES:
        pytest.skip(f"the table has no TRL {release}")
    traps = reproduced(command, "trl", against_trl.measure(model, FEW))
    assert {None, "score", "component", "rounding"} == traps


def test_the_tolerance_is_one(command):
    from parity import comparing

    assert command.TOLERANCE == comparing.TOLERANCE


def row(difference, trap=None, **more):
    numbers = {"upstream": 1.0, "definition": 0.0, "ours": 0.0, "compat": 1.0}
    found = {
        "estimator": "grpo",
        "case": "c",
        "difference": difference,
        "from_definition": 1.0,
        "numbers": numbers,
    }
    return {**found, "trap": trap, **more}


def test_a_difference_that_nobody_explains_fails_the_command(command, capsys):
    assert not command.unexplained({"verl": {"1.0": [row(0.0), row(0.5, "empty")]}, "trl": {}})
    assert command.unexplained({"verl": {"1.0": [row(0.5, "unexplained")]}, "trl": {}})
    assert "unexplained: verl 1.0 {'estimator': 'grpo'" in capsys.readouterr().out


def test_an_unknown_difference_is_unexplained():
    """One that fits no reason; and an error of upstream's that nobody has seen."""
    pytest.importorskip("torch")
    from parity import against_verl

    case = cases.BY_NAME["full"]
    found = {"difference": 0.5, "from_definition": 0.5}
    for name in ("gae", "grpo", "reinforce_pp"):
        assert against_verl.trap(name, case, True, found, 0) == "unexplained"
        assert (
            against_verl.trap(name, case, True, {**found, "difference": 0.0, "from_definition": 0.0}, 0)
            is None
        )

    class Broken:
        def get_adv_estimator_fn(self, name):
            raise RuntimeError("nobody has seen this")

    assert against_verl.compared(Broken(), "gae", case, True)["trap"] == "unexplained"


def test_the_page_of_made_up_rows(command):
    rows = [row(2e-7), row(0.5, "empty", case="d"), {**row(0.0, "few"), "error": "ValueError"}]
    lines = [
        *command.agreement("verl", {"1.0": rows}),
        *command.apart("verl", {"1.0": rows, "2.0": rows[:1]}),
    ]
    assert "| `grpo` | grpo | 2.0e-07 (2 of 3) | c |" in lines
    assert "| empty | `grpo` | 1.0 | 1 | d | 1 | 0 | 0 | 1 |" in lines
    assert "| few | `grpo` | 1.0 | 1 | c | ValueError | | |  |" in lines
