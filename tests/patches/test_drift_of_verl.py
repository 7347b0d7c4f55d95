"""A verl in which several functions have drifted at once, as its user meets it: the doctor, a run, a strict import."""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from doctored import doctored, tree

pytestmark = pytest.mark.verl
pytest.importorskip("verl")

METRICS, ELSEWHERE = "verl.trainer.ppo.metric_utils", "verl.trainer.ppo.rle_elsewhere"


@pytest.fixture(scope="module")
def drifted(tmp_path_factory):
    """The folder of a copy of the installed verl, which differs in four files and has one more."""
    package = Path(importlib.util.find_spec("verl").origin).parent
    metrics = (package / "trainer/ppo/metric_utils.py").read_text()

    def drift(attribute, kind):
        return functools.partial(doctored, attribute=attribute, kind=kind, elsewhere=ELSEWHERE)

    edits = {
        "trainer/ppo/ray_trainer.py": drift("compute_advantage", "signature"),
        "trainer/ppo/v1/trainer_base.py": drift("PPOTrainer._compute_advantage", "body"),
        "trainer/ppo/metric_utils.py": drift("compute_data_metrics", "moved"),
        "trainer/ppo/rle_elsewhere.py": lambda nothing: metrics,
        "utils/tracking.py": drift("Tracking.log", "gone"),
    }
    return tree(package, tmp_path_factory.mktemp("drifted"), edits)


def run(drifted, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join([str(drifted), os.environ.get("PYTHONPATH", "")]),
            **environment,
        },
        timeout=300,
        cwd=drifted,  # Hydra leaves a folder
    )


def test_the_doctor_names_each_and_its_repair(drifted):
    done = run(drifted, "-m", "rl_estimators", "doctor")
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    repairs = {
        line: lines[at + 1] for at, line in enumerate(lines[:-1]) if line.startswith("BAD") and "hook" in line
    }
    told = {
        "verl_inputs": "(expected (data, adv_estimator, gamma=1.0, ",
        "verl_greedy_baselines": "(its body has changed: reviewed ",
        "verl_metrics": f"(moved: {METRICS} has it from {ELSEWHERE}) [{METRICS}:compute_data_metrics]",
        "verl_log": "(gone: verl.utils.tracking defines no Tracking.log) [verl.utils.tracking:Tracking.log]",
    }
    assert len(repairs) == len(told), done.stdout
    for name, text in told.items():
        (line,) = (line for line in repairs if f"hook {name}:" in line)
        assert f"hook {name}: drifted: upstream does not look as reviewed {text}" in line
        assert repairs[line] == (
            "     repair: pip install 'verl>=0.9,<0.10', if that is not what is installed; "
            f"to do without: export RL_ESTIMATORS_DISABLE_PATCHES={name}"
        )


def test_a_run_that_needs_one_stops_before_ray(drifted):
    done = run(drifted, "-m", "verl.trainer.main_ppo", "algorithm.adv_estimator=rle_remax")
    assert done.returncode == 1
    assert (
        "PatchError: algorithm.adv_estimator=rle_remax needs a hook that is not in force. verl_greedy_baselines: "
        "drifted: upstream does not look as reviewed (its body has changed: reviewed "
    ) in done.stderr.replace("\n", " ")
    assert "Started a local Ray instance" not in done.stderr + done.stdout


def test_one_that_nobody_needs_is_a_warning(drifted):
    """And an import error, if that is asked for."""
    done = run(drifted, "-c", f"import {METRICS}; print('imported')")
    assert done.stdout.splitlines()[-1] == "imported"
    warning = f"verl_metrics: drifted: upstream does not look as reviewed (moved: {METRICS} has it from {ELSEWHERE})"
    assert f"rl_estimators: {warning}" in done.stderr
    done = run(drifted, "-c", f"import {METRICS}; print('imported')", RL_ESTIMATORS_STRICT="1")
    assert done.returncode == 1
    assert f"PatchError: {warning}" in done.stderr
