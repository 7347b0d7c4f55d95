"""verl's critic takes its attention from the config where flash-attention cannot run."""

import importlib
import importlib.util
import os
import subprocess
import sys

import pytest

patch_module = importlib.import_module("rl_estimators.patches.verl_critic_attention")

LOAD = """
import sys, torch, transformers, verl
from verl.utils.model import load_valuehead_model

path = sys.argv[1]
config = transformers.Qwen2Config(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
)
transformers.Qwen2ForTokenClassification(config).save_pretrained(path)
config = transformers.AutoConfig.from_pretrained(path, attn_implementation=sys.argv[2])
critic = load_valuehead_model(path, torch.float32, config, False)
print(type(critic).__name__, critic.config._attn_implementation, critic.dtype)
"""


def run(*arguments, **environment):
    known = {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **known, **environment},
        timeout=300,
    )


@pytest.mark.verl
@pytest.mark.parametrize(("platform", "attention"), [("cpu", "eager"), ("cpu", "sdpa"), ("nvidia", "sdpa")])
def test_the_config_decides(tmp_path, platform, attention):
    """With "nvidia" as on a GPU without flash-attention; loading a model asks for no device."""
    done = run(tmp_path, attention, VERL_PLATFORM=platform)
    assert done.stdout.splitlines()[-1:] == [f"Qwen2ForTokenClassification {attention} torch.float32"], (
        done.stderr
    )


@pytest.mark.verl
def test_without_the_patch_flash_attention_is_asked_for(tmp_path):
    done = run(tmp_path, "eager", VERL_PLATFORM="cpu", RL_ESTIMATORS_DISABLE_PATCHES="verl_critic_attention")
    assert "FlashAttention2" in done.stderr


@pytest.mark.parametrize("brings", ["flash_attn", "kernels", "torch_npu"])
def test_where_something_brings_flash_attention_the_critic_is_left_alone(monkeypatch, brings):
    monkeypatch.setattr(patch_module, "on_cpu", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == brings else None)
    assert not patch_module.needed()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert patch_module.needed()
    monkeypatch.setattr(patch_module, "on_cpu", lambda: True)
    assert patch_module.needed()


class Base:
    @classmethod
    def from_pretrained(cls, path, **kwargs):
        return cls, path, kwargs


class Inherits(Base):
    pass


class Overrides(Base):
    @classmethod
    def from_pretrained(cls, path, **kwargs):
        return super().from_pretrained(path, **kwargs)


@pytest.mark.parametrize("auto_class", [Inherits, Overrides])
def test_a_model_class_drops_the_argument_for_the_duration_only(auto_class):
    before = dict(vars(auto_class))
    with patch_module._config_decides(auto_class):
        found = auto_class.from_pretrained("there", attn_implementation="flash_attention_2", dtype="x")
    assert found == (auto_class, "there", {"dtype": "x"})
    assert dict(vars(auto_class)) == before
    assert auto_class.from_pretrained("there", attn_implementation="eager")[2] == {
        "attn_implementation": "eager"
    }


@pytest.mark.parametrize("auto_class", [Inherits, Overrides])
def test_a_model_class_is_put_back_after_a_failure(auto_class):
    before = dict(vars(auto_class))
    with pytest.raises(OSError, match="no such model"), patch_module._config_decides(auto_class):
        raise OSError("no such model")
    assert dict(vars(auto_class)) == before
