"""The benchmark of the diagnostics runs; what it measures here means nothing."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location(
        "benchmarks_diagnostics", ROOT / "benchmarks" / "diagnostics.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_case_is_timed(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "available", lambda: ["torch"])
    found = list(benchmark.measure(((8, 16),), 1))
    assert [line["case"] for line in found] == [*benchmark.ESTIMATORS, *benchmark.ESTIMATORS, "updates"]
    assert all(line["diagnostics"] > 0 for line in found[:-1])
    assert len(capsys.readouterr().out.splitlines()) == 7
