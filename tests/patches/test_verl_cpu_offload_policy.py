"""FSDP2 with offloaded parameters, as verl builds its reference model, on the CPU platform."""

import importlib
import os
import subprocess
import sys

import pytest
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy

wrap = importlib.import_module("rl_estimators.patches.verl_cpu_offload_policy").wrap

FORWARD = """
import os
import verl
from verl.utils.distributed import initialize_global_process_group_ray
from verl.utils.fsdp_utils import CPUOffloadPolicy, apply_fsdp2, fsdp2_load_full_state_dict
import torch, transformers

initialize_global_process_group_ray()
config = transformers.Qwen2Config(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
)
model = transformers.Qwen2ForCausalLM(config).eval()
ids = torch.tensor([[1, 2, 3]])
expected = model(ids).logits
mesh = torch.distributed.init_device_mesh("cpu", (1,))
policy = CPUOffloadPolicy(pin_memory=True)
state = model.state_dict()
apply_fsdp2(model, {"mesh": mesh, "offload_policy": policy}, {})
fsdp2_load_full_state_dict(model, state, mesh, policy)
with torch.no_grad():
    torch.testing.assert_close(model(ids).logits, expected)
print("forwarded")
"""


def run(tmp_path, **environment):
    known = {
        "VERL_PLATFORM": "cpu",
        "OMP_NUM_THREADS": "1",
        "DIST_INIT_METHOD": f"file://{tmp_path}/rendezvous",
    }
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORWARD],
        capture_output=True,
        text=True,
        env={**os.environ, **known, **environment},
        timeout=300,
    )


@pytest.mark.verl
def test_an_offloaded_model_runs_and_computes_the_same(tmp_path):
    done = run(tmp_path)
    assert done.stdout.splitlines()[-1:] == ["forwarded"], done.stderr


@pytest.mark.verl
def test_without_the_patch_pinning_fails(tmp_path):
    done = run(tmp_path, RL_ESTIMATORS_DISABLE_PATCHES="verl_cpu_offload_policy")
    assert done.returncode != 0
    assert "pin" in done.stderr.splitlines()[-1].lower() or "accelerator" in done.stderr


def test_only_an_offload_to_the_cpu_is_changed_and_the_caller_s_arguments_are_not():
    seen = wrap(lambda model, fsdp_kwargs, config: (model, fsdp_kwargs, config))
    given = {"offload_policy": CPUOffloadPolicy(pin_memory=True), "mesh": "mesh"}
    model, used, config = seen("model", given, "config")
    assert (model, config) == ("model", "config")
    assert used == {"offload_policy": CPUOffloadPolicy(pin_memory=False), "mesh": "mesh"}
    assert given["offload_policy"].pin_memory
    for other in ({"offload_policy": None}, {"offload_policy": OffloadPolicy()}, {}):
        assert seen("model", other, "config")[1] is other
