"""verl's own things stay verl's: its test files pass with the plugin in, and its numbers do not change by a bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.verl

SETTINGS = {
    "without the plugin": {"VERL_USE_EXTERNAL_PLUGINS": "none"},
    "with all hooks disabled": {"RL_ESTIMATORS_DISABLE_PATCHES": "all"},
    "with the plugin": {},
}
OWN_TESTS = (  # shipped in verl's wheel; those of the parts that we hook into
    "trainer",
    "plugin",
    "test_protocol_on_cpu.py",
    "experimental/agent_loop/test_agent_loop_extra_fields_schema_on_cpu.py",
    "experimental/agent_loop/test_call_tool_on_cpu.py",
    "experimental/agent_loop/test_tool_call_id_on_cpu.py",
)

NUMBERS = """
import hashlib, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo import core_algos, ray_trainer
from verl.trainer.ppo.metric_utils import compute_data_metrics
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

random = torch.Generator().manual_seed(0)
mask = (torch.rand(8, 12, generator=random) > 0.2).long()
tensors = {name: torch.randn(8, 12, generator=random) for name in
           ("token_level_rewards", "token_level_scores", "values", "old_log_probs", "responses", "prompts")}
tensors |= {"response_mask": mask, "attention_mask": torch.ones(8, 24), "reward_baselines": torch.randn(8, generator=random)}
config = OmegaConf.create({"gamma": 0.9, "lam": 0.9, "norm_adv_by_std_in_grpo": True})
digest = hashlib.sha256()
names = [n for n in ("gae", "grpo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax",
                     "rloo", "opo", "grpo_passk", "gpg", "rloo_vectorized") if n in core_algos.ADV_ESTIMATOR_REGISTRY]
for name in names:
    given = {k: v.clone() for k, v in tensors.items() if k != "reward_baselines" or name == "remax"}
    data = DataProto.from_dict(tensors=given,
                               non_tensors={"uid": np.array(list("aabbccdd"), dtype=object)})
    data = compute_advantage_for_multi_trajectories(
        data, [f"{u}_{i}_0" for i, u in enumerate("aabbccdd")], name, gamma=0.9, lam=0.9, config=config)
    for column in ("advantages", "returns"):
        digest.update(data.batch[column].numpy().tobytes())
    digest.update(repr(sorted(compute_data_metrics(data, use_critic=True).items())).encode())
print("DIGEST", len(names), digest.hexdigest())
"""


def run(arguments, **env):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=600, env={**os.environ, **env}
    )


def test_numbers_are_bit_identical():
    """Advantages, returns and metrics of ten of verl's estimators, through the functions that we hook."""
    digests = {}
    for name, env in SETTINGS.items():
        result = run(["-c", NUMBERS], **env)
        digests[name] = [line for line in result.stdout.splitlines() if line.startswith("DIGEST 10 ")]
        assert digests[name], result.stderr
    assert digests["with all hooks disabled"] == digests["without the plugin"]
    assert digests["with the plugin"] == digests["without the plugin"]


@pytest.mark.slow
def test_verls_own_tests_pass():
    """As many with the plugin as without it."""
    import importlib.util

    tests = Path(importlib.util.find_spec("verl").origin).parents[1] / "tests"
    if not (tests / "trainer").is_dir():
        pytest.skip("this release of verl does not ship its tests")
    plugins = ["-p", "no:cacheprovider", "-p", "no:rerunfailures"]  # its tests want pytest-asyncio
    command = ["-m", "pytest", "-q", "-W", "ignore", *plugins, "-c", os.devnull, f"--rootdir={tests}"]
    ends = {}
    for name, env in SETTINGS.items():
        result = run([*command, *(str(tests / path) for path in OWN_TESTS)], **env)
        assert result.returncode == 0, result.stdout[-3000:]
        ends[name] = result.stdout.splitlines()[-1].split(" in ")[0]
    assert len({*ends.values()}) == 1, ends
    assert int(ends["with the plugin"].split()[0]) > 200
