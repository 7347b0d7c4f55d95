"""What a user reads when a critic cannot be loaded."""

import importlib
import importlib.metadata
import os
import pickle
import re
import subprocess
import sys

import pytest

from rl_estimators.errors import InputError

wrap = importlib.import_module("rl_estimators.patches.verl_value_head_error").wrap


def upstream(message, cause):
    """verl's function, when its first attempt fails and TRL seems to be missing."""

    def load_valuehead_model(local_path, torch_dtype, model_config, trust_remote_code):
        try:
            raise cause
        except BaseException as error:
            raise RuntimeError(message) from error

    return load_valuehead_model


def test_the_reason_and_both_ways_out_are_named(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", {"trl": "1.16.0"}.__getitem__)
    cause = ImportError("FlashAttention2 is not installed")
    message = "model(there) is not a value head model, please install trl to make it valid"
    with pytest.raises(InputError) as raised:
        wrap(upstream(message, cause))("there", None, None, False)
    assert str(raised.value) == (
        "cannot load the critic: as a token-classification model it failed with ImportError: FlashAttention2 is "
        "not installed. verl's other way, TRL's AutoModelForCausalLMWithValueHead, ended with TRL 1.12 and 1.16.0 "
        "is installed. Mend the failure named above, or, if the checkpoint was saved with such a value head, "
        "install 'trl<1.13'."
    )
    assert raised.value.__cause__ is cause
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_other_failures_and_results_pass_through():
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        wrap(upstream("out of memory", ValueError()))("there", None, None, False)
    assert wrap(lambda *arguments: arguments)(1, 2, 3, 4) == (1, 2, 3, 4)


LOAD = """
import sys, transformers, verl
from verl.utils.model import load_valuehead_model
load_valuehead_model(sys.argv[1], None, transformers.Qwen2Config(), False)
"""


@pytest.mark.verl
@pytest.mark.trl
@pytest.mark.parametrize(
    ("disabled", "message"),
    [
        ("", r"InputError: cannot load the critic: as a token-classification model it failed with \w+: "),
        ("verl_value_head_error", "RuntimeError: model.* is not a value head model, please install trl"),
    ],
)
def test_it_is_what_verl_says_beside_the_installed_trl(tmp_path, disabled, message):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, str(tmp_path)],  # a folder without a model
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RL_ESTIMATORS_DISABLE_PATCHES": disabled},
        timeout=300,
    )
    assert re.search(message, done.stderr.splitlines()[-1]), done.stderr
