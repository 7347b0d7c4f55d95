"""The example runs, with little work, and its numbers show what its pictures say."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

EXAMPLE = Path(__file__).parents[2] / "examples" / "bias_and_variance.py"


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What it prints, by table: each row's first word to its numbers; and where it drew."""
    spec = importlib.util.spec_from_file_location("bias_and_variance", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    lines, path = [], tmp_path_factory.mktemp("drawn") / "picture.png"
    example.print = lambda text: lines.extend(text.splitlines())  # shadows the built-in in the example alone
    example.main(["--samples", "60", "--out", str(path)])
    return lines, path


def rows(lines, header):
    """The rows after the line that begins with ``header``, up to an empty line."""
    start = next(i for i, line in enumerate(lines) if line.lstrip().startswith(header)) + 1
    end = next(i for i in range(start, len(lines)) if not lines[i].strip())
    return {first: numbers for first, *numbers in (line.split() for line in lines[start:end])}


def test_baselines_are_deaf_to_a_constant(printed):
    table = rows(printed[0], "estimator")
    noise = {name: (float(row[4]), float(row[5])) for name, row in table.items() if row[0] != "refuses:"}
    here, there = noise["reinforce"]
    assert there > 4 * here
    for name in ("reinforce_pp", "remax", "grpo", "rloo", "mc", "gae"):
        here, there = noise[name]
        assert here == there
        assert there < noise["reinforce"][0]


def test_every_estimator_has_a_row(printed):
    import rl_estimators

    assert list(rows(printed[0], "estimator")) == rl_estimators.list_adv_est()


def test_lambda_trades_bias_for_variance(printed):
    table = [[float(first), *map(float, rest)] for first, rest in rows(printed[0], "lambda").items()]
    lams, bias, variance, error = zip(*table, strict=True)
    assert lams == tuple(i / 10 for i in range(11))
    assert list(bias) == sorted(bias, reverse=True)
    assert bias[0] > 0.05
    assert bias[-1] == 0
    assert variance[-1] > 1.2 * variance[0]
    assert min(error) < min(error[0], error[-1])


def test_the_picture_is_drawn(printed):
    assert printed[1].read_bytes().startswith(b"\x89PNG")
    assert EXAMPLE.with_suffix(".png").stat().st_size < 150_000
