"""Other people's packages that are broken or in each other's way, in fresh processes of verl's."""

import os
import subprocess
import sys
import tempfile

import pytest

pytestmark = pytest.mark.verl
pytest.importorskip("verl")

from faults import installed  # noqa: E402

TRAINER = """
import verl
from verl.trainer.ppo import core_algos
from hydra import compose, initialize_config_module
from verl.trainer.ppo.utils import need_critic

print("KNOWN", *sorted(core_algos.ADV_ESTIMATOR_REGISTRY))
with initialize_config_module("verl.trainer.config", version_base=None):
    for name in ("rle_reinforce_pp", *{names}):
        try:
            need_critic(compose("ppo_trainer", ["algorithm.adv_estimator=" + name]))
            print("STARTS", name)
        except Exception as error:
            print("REFUSED", name, type(error).__name__, " ".join(str(error).split()))
"""


def run(code, path, **env):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", **env},
        timeout=600,
    )


def lines(result, word):
    return [line.removeprefix(f"{word} ") for line in result.stdout.splitlines() if line.startswith(word)]


def test_a_module_of_the_users_that_raises_at_import(tmp_path):
    """verl's VERL_USE_EXTERNAL_MODULES: the error itself ends the process, before anything has started."""
    (tmp_path / "my_estimator.py").write_text("import rl_estimators\nraise RuntimeError('no licence here')\n")
    result = run("import verl; print('GOES ON')", tmp_path, VERL_USE_EXTERNAL_MODULES="my_estimator")
    assert result.returncode == 1
    assert "my_estimator.py" in result.stderr
    assert "RuntimeError: no licence here" in result.stderr
    assert not lines(result, "GOES ON")


def test_broken_offers_and_rivals_are_named_by_those_who_ask_for_them_alone(tmp_path):
    """One entry point that cannot be imported, one name of two packages: ours and everybody else's go on."""
    group = "rl_estimators__adv_estimators"
    installed.package(
        tmp_path, "broken_one", "import nothing_of_that_name\n", **{group: "gone = broken_one:est"}
    )
    for name in ("rival_a", "rival_b"):
        installed.package(tmp_path, name, installed.ESTIMATOR, **{group: f"contested = {name}:est"})
    installed.package(tmp_path, "sound_one", installed.ESTIMATOR, **{group: "sound = sound_one:est"})
    names = ("rle_sound", "rle_gone", "rle_contested")
    result = run(TRAINER.replace("{names}", repr(names)), tmp_path)
    assert result.returncode == 0, result.stderr
    assert {"rle_grpo", "rle_sound", "sound"} <= {*lines(result, "KNOWN")[0].split()}
    assert lines(result, "STARTS") == ["rle_reinforce_pp", "rle_sound"]
    gone, contested = lines(result, "REFUSED")
    assert gone.startswith(
        "rle_gone EntryPointError advantage estimator 'gone' is offered by distribution 'broken_one' as 'broken_one:est'"
    )
    assert "which cannot be imported: ModuleNotFoundError: No module named 'nothing_of_that_name'" in gone
    assert contested.startswith("rle_contested DuplicateNameError")
    for owner in ("rival_a", "rival_b"):
        assert f"{owner}:est" in contested

    listed = run("import sys; from rl_estimators.cli import main; sys.exit(main(['list']))", tmp_path)
    assert listed.returncode == 1, listed.stderr  # something cannot be used
    cannot = [line for line in listed.stdout.splitlines() if "CANNOT BE USED" in line]
    assert len(cannot) == 2
    assert any("sound" in line for line in listed.stdout.splitlines())


def test_a_plugin_of_somebody_elses_that_raises(tmp_path):
    """verl hides what it raises; ours is loaded all the same."""
    installed.package(tmp_path, "bad_plugin", "raise RuntimeError('bad')\n", verl__plugins="bad = bad_plugin")
    result = run(TRAINER.replace("{names}", "()"), tmp_path)
    assert lines(result, "STARTS") == ["rle_reinforce_pp"], result.stderr


WORKER = """
import sys, ray
ray.init(address="local", num_cpus=1, include_dashboard=False, _temp_dir=sys.argv[1], object_store_memory=80_000_000)

@ray.remote(runtime_env={"env_vars": {"PYTHONPATH": sys.argv[2]}})
class Elsewhere:
    def estimator(self):
        from verl.trainer.ppo import core_algos
        return core_algos.get_adv_estimator_fn("rle_grpo")

    def policy_loss(self):
        from verl.trainer.ppo import core_algos
        return core_algos.get_policy_loss_fn("rle_gspo")

    def call(self, function):
        return function

def what(reference):
    try:
        ray.get(reference)
        return "nothing"
    except Exception as error:
        return " ".join(str(error).split())

import verl
from rl_estimators.verl import value_loss
worker = Elsewhere.remote()
print("ESTIMATOR", what(worker.estimator.remote()))
print("POLICY", what(worker.policy_loss.remote()))
print("VALUE", what(worker.call.remote(value_loss.value_loss)))
"""


@pytest.mark.slow
def test_a_ray_worker_whose_environment_lacks_the_package(tmp_path):
    """The driver has it, and its check at start passes; the worker's first look for a name of ours fails by that name."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Lacking:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'rl_estimators':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Lacking())\n"
    )
    with tempfile.TemporaryDirectory(prefix="rle") as short:  # Ray's sockets allow 107 characters
        result = subprocess.run(
            [sys.executable, "-c", WORKER, short, str(tmp_path)],
            capture_output=True,
            text=True,
            env={**os.environ, "HOME": short, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"},
            timeout=900,
        )
    [estimator], [policy], [value] = (lines(result, word) for word in ("ESTIMATOR", "POLICY", "VALUE"))
    assert "Unknown advantage estimator simply: rle_grpo" in estimator
    assert "rle_gspo" in policy
    assert "Unsupported loss mode" in policy
    assert "No module named 'rl_estimators'" in value
