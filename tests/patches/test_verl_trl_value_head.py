"""In the installed verl, beside the installed TRL, which has no value-head model any more."""

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.verl, pytest.mark.trl]

LOAD = """
import importlib.metadata, torch, transformers, verl
from packaging.version import Version
from verl.models.transformers.monkey_patch import apply_monkey_patch

assert Version(importlib.metadata.version("trl")) >= Version("1.13")
config = transformers.Qwen2Config(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
)
apply_monkey_patch(transformers.Qwen2ForCausalLM(config), use_remove_padding=False)
"""


def run(script, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=300,
    )


def test_verl_can_prepare_a_model():
    done = run(LOAD)
    assert done.returncode == 0, done.stderr


def test_without_the_patch_it_cannot():
    done = run(LOAD, RL_ESTIMATORS_DISABLE_PATCHES="verl_trl_value_head")
    assert "ImportError: cannot import name 'AutoModelForCausalLMWithValueHead' from 'trl'" in done.stderr


def test_it_comes_in_time_for_every_module_that_imports_the_function_by_name():
    done = run(
        "import verl\n"
        "from rl_estimators import patching\n"
        "print(*[s for s in patching.report() if s.patch.name == 'verl_trl_value_head'])\n"
        "from verl.utils import import_utils, model\n"
        "from verl.models.transformers import monkey_patch\n"
        "print(import_utils.is_trl_available(), model.is_trl_available(), monkey_patch.is_trl_available())\n"
    )
    assert done.stdout.splitlines()[-2:] == [
        "verl_trl_value_head: applied [verl.utils.import_utils:is_trl_available]",
        "False False False",
    ]
