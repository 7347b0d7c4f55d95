"""How verl finds us, in fresh processes and in Ray workers; what a user sees when that fails."""

import os
import subprocess
import sys
import tempfile

import pytest

pytestmark = pytest.mark.verl

NAMES = """
from verl.trainer.ppo import core_algos
print("NAMES", *sorted(core_algos.ADV_ESTIMATOR_REGISTRY))
"""


def run(code, *arguments, **env):
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=300,
    )
    names = [line.split()[1:] for line in result.stdout.splitlines() if line.startswith("NAMES")]
    return result, names[0] if names else None


def test_verl_alone_brings_ours_along():
    _, names = run(NAMES)
    assert {"reinforce_pp", "rle_reinforce_pp", "rle_gae", "rle_grpo", "rle_remax", "grpo", "gae"} <= {*names}


def test_nothing_of_verls_is_imported_early():
    """After `import verl` none of the modules that we wait for has been loaded by us."""
    code = "import sys, verl; print('NAMES', *[m for m in sys.modules if m.startswith('verl.')])"
    ours, theirs = run(code)[1], run(code, VERL_USE_EXTERNAL_PLUGINS="none")[1]
    assert {*ours} == {*theirs}


def test_switched_off_it_is_stock_verl():
    result, names = run(NAMES + "import sys; print(any(m.startswith('rl_estimators') for m in sys.modules))",
                        VERL_USE_EXTERNAL_PLUGINS="none")  # fmt: skip
    assert not [name for name in names if name.startswith("rle_") or name == "reinforce_pp"]
    assert result.stdout.strip().endswith("False")


def broken(tmp_path, code):
    """A folder that makes the plugin fail in the way ``code`` says, in every process started with it."""
    (tmp_path / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(tmp_path)}


def test_a_plugin_that_cannot_load_is_reported(tmp_path):
    env = broken(tmp_path, "import sys\nsys.modules['rl_estimators.patches'] = None\n")
    result, names = run(NAMES, **env)
    assert "grpo" in names
    assert (
        "rl_estimators: NOT fully working in verl: the plugin could not be loaded: ModuleNotFoundError"
        in result.stderr
    )


def test_a_hook_that_fails_is_reported_and_verl_still_imports(tmp_path):
    env = broken(tmp_path, "import sys\nsys.modules['rl_estimators.verl.estimators'] = None\n")
    result, names = run(NAMES, **env)
    assert "grpo" in names
    assert "rle_grpo" not in names
    message = "NOT fully working in verl: rl_estimators.verl.estimators:offer failed on verl.trainer.ppo.core_algos: "
    assert message + "ModuleNotFoundError" in result.stderr
    strict, names = run(NAMES, RL_ESTIMATORS_STRICT="1", **env)
    assert strict.returncode == 1
    assert names is None


@pytest.mark.slow
def test_every_ray_worker_knows_them():
    code = """
import sys, ray
ray.init(address="local", num_cpus=1, include_dashboard=False, _temp_dir=sys.argv[1], object_store_memory=80_000_000)
@ray.remote
def names():
    from verl.trainer.ppo import core_algos
    return sorted(core_algos.ADV_ESTIMATOR_REGISTRY)
print("NAMES", *ray.get(names.remote()))
"""
    with tempfile.TemporaryDirectory(prefix="rle") as short:  # Ray's sockets allow 107 characters
        result, names = run(code, short, HOME=short, RAY_USAGE_STATS_ENABLED="0")
    assert names, result.stderr
    assert {"reinforce_pp", "rle_grpo"} <= {*names}


def test_a_hook_of_no_such_name_cannot_be_disabled():
    result, _ = run(NAMES, RL_ESTIMATORS_DISABLE_PATCHES="verl_need_critik,verl_metrics")
    assert (
        "RL_ESTIMATORS_DISABLE_PATCHES names no hook verl_need_critik; there are verl_trl_value_head"
        in result.stderr
    )
