"""The package in examples/own_estimator: built, installed into a folder, and used by name from there."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest
from docblocks import DATA, MODEL, ROOT

import rl_estimators
from rl_estimators.registry import ADV_ESTIMATORS

PACKAGE = ROOT / "examples" / "own_estimator"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which the example package has been installed: built as a wheel, without a network."""
    source, out = tmp_path_factory.mktemp("source") / "own_estimator", tmp_path_factory.mktemp("dist")
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("__pycache__"))
    build = ["build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    target = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", *build], check=True, capture_output=True, timeout=300)
    (wheel,) = out.glob("*.whl")
    install = ["pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, "-m", *install], check=True, capture_output=True, timeout=300)
    return target


def run(installed, *words, **variables):
    """A command in a process that sees what is installed."""
    result = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_it_is_listed(installed):
    listed = run(installed, "-m", "rl_estimators", "list")
    entry = listed.partition("  shrunk_mean\n")[2].splitlines()
    assert entry[:3] == [
        "    needs    token_level_rewards, response_mask, index",
        "    options  strength=4.0",
        "    source   examples/own_estimator of rl-estimators",
    ]
    assert "shrunk_mean" not in rl_estimators.list_adv_est(), "only where the package is installed"


def test_its_own_tests_pass(installed, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setattr(ADV_ESTIMATORS, "_specs", dict(ADV_ESTIMATORS._specs))
    spec = importlib.util.spec_from_file_location("own_tests", PACKAGE / "tests" / "test_shrunk_mean.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delitem(sys.modules, "my_estimators")
    tests = [function for name, function in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 4
    for test in tests:
        test()


@pytest.mark.verl
def test_verl_computes_with_it_by_name(installed):
    """Through verl's own advantage step, without Ray; nothing is imported but verl."""
    pytest.importorskip("verl")
    code = """
import json
import numpy as np, torch, verl
from omegaconf import OmegaConf
from verl.trainer.ppo.ray_trainer import compute_advantage
batch = verl.DataProto.from_single_dict({
    "token_level_rewards": torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]),
    "response_mask": torch.ones(4, 2),
    "uid": np.array(["solved", "solved", "hopeless", "hopeless"], dtype=object),
})
config = OmegaConf.create({"adv_estimator": "shrunk_mean", "adv_estimator_kwargs": {"strength": 2.0}})
done = compute_advantage(batch, "shrunk_mean", config=config)
print(json.dumps(done.batch["advantages"][:, 0].tolist()))
"""
    assert json.loads(run(installed, "-c", code).splitlines()[-1]) == [0.625, -0.375, -0.125, -0.125]


@pytest.mark.trl
def test_trl_trains_with_it_by_name(installed, hub, tmp_path):
    """The command, in a process of its own: one real step on the tiny model."""
    pytest.importorskip("trl")
    (tmp_path / "reward.py").write_text(
        "def first_digit(completions, solution, **columns):\n"
        "    return [float(c[0]['content'][:1] == s[:1]) for c, s in zip(completions, solution)]\n"
    )
    settings = {
        "adv_estimator": "shrunk_mean",
        "adv_estimator_kwargs": '{"strength": 8.0}',
        "model_name_or_path": hub / MODEL,
        "dataset_name": hub / DATA,
        "reward_funcs": f"{tmp_path / 'reward.py'}:first_digit",
        "output_dir": tmp_path / "out",
        "num_generations": 4,
        "max_steps": 1,
        "max_completion_length": 6,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": "true",
        "bf16": "false",
        "save_steps": 1,
    }
    words = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    cache = {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    assert "saved:" in run(installed, "-m", "rl_estimators", "train", *words, **cache)
    state = json.loads((tmp_path / "out/checkpoint-1/trainer_state.json").read_text())
    assert state["global_step"] == 1
    assert "reward" in state["log_history"][0]


def test_the_page_has_its_entry_point():
    """What docs/your-own-estimator.md shows is what the package has."""
    shown = (ROOT / "docs/your-own-estimator.md").read_text().partition("```toml\n")[2].partition("```")[0]
    assert shown in (PACKAGE / "pyproject.toml").read_text()
