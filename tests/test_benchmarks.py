"""The benchmark of the kernels runs; what it measures here means nothing."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def kernels():
    pytest.importorskip("verl")
    spec = importlib.util.spec_from_file_location("benchmarks_kernels", ROOT / "benchmarks" / "kernels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.verl
@pytest.mark.filterwarnings("ignore")
def test_every_case_is_timed(kernels, tmp_path, capsys):
    found = list(kernels.race(((4, 32),), ["torch"], quick=True))
    assert [line["case"] for line in found] == 2 * list(kernels.CASES)
    assert all(line["times_verl"]["torch"] > 0 for line in found)
    assert len(capsys.readouterr().out.splitlines()) == len(found)
    errors = kernels.accuracy(["torch"], 64)
    assert all(line["error"] < 1e-6 for line in errors)
    points = [
        {
            "axis": axis,
            "case": "gae",
            "rows": 8 * size,
            "length": size,
            "seconds": {"verl": 1.0, "torch": 0.1},
        }
        for axis in ("rows", "length", "groups")
        for size in (1, 2)
    ]
    pytest.importorskip("matplotlib")
    kernels.plot(points, ["torch"], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.verl
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "case",
    [
        "gae", "gae + carry", "reinforce_pp", "remax", "whitening", "policy loss", "gspo", "cispo", "sapo", "gpg", "reinforce",
        "kl_cov", "value loss",
    ],
)  # fmt: skip
def test_contestants_compute_the_same(kernels, case):
    """On prefix masks of finite numbers, at valid tokens; a race between different things would be none.

    Not gmpo, where verl lets each token's own advantage choose the side of its clip, nor clip_cov, which draws.
    """
    theirs, ours, _ = kernels.CASES[case]
    batch = kernels.inputs(6, 40, "prefix")
    valid = batch["mask"].bool()
    wanted = theirs(batch)
    wanted = [x.clone() for x in wanted] if isinstance(wanted, tuple) else [wanted.clone()]
    actual = ours(batch)
    actual = list(actual) if isinstance(actual, tuple) else [actual]
    for x, y in zip(actual, wanted, strict=True):
        assert (x - y)[valid].abs().max() < 1e-4
