"""The CPU platform in verl's registry, in processes of their own: verl decides on a platform once."""

import inspect
import os
import subprocess
import sys
import types
import warnings

import pytest

pytestmark = pytest.mark.verl

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from verl.plugin.platform import PlatformBase, PlatformRegistry

    from rl_estimators.verl import platform
    from rl_estimators.verl.platform import PlatformCPU


def run(script, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


SELECTED = """
import verl
import torch
from rl_estimators.verl.platform import PlatformCPU
from verl.plugin.platform import get_platform
from verl.utils import device
from verl.utils.flops_counter import get_device_flops
from verl.utils.memory_utils import aggressive_empty_cache
from verl.utils.profiler.performance import _get_current_mem_info

assert type(get_platform()) is PlatformCPU
print(device.get_device_name(), device.get_resource_name(), device.get_nccl_backend(), device.is_support_ipc())
print(torch.ones(1).to(device.get_device_id()).device, device.get_torch_device().is_available())
device.manual_seed(3)
first = torch.rand(1)
device.manual_seed_all(3)
print(torch.equal(first, torch.rand(1)))
device.set_expandable_segments(True)
aggressive_empty_cache()
print(_get_current_mem_info())
print(0 < get_device_flops() < float("inf"))
state = device.get_torch_device().get_rng_state()
first = torch.rand(1)
device.get_torch_device().set_rng_state(state)
print(torch.equal(first, torch.rand(1)))
with device.get_torch_device().stream(device.get_torch_device().Stream()):
    print(device.get_torch_device().max_memory_allocated())
"""


def test_selected_by_name_it_serves_what_verl_asks_of_a_device():
    assert run(SELECTED, VERL_PLATFORM="cpu") == [
        "cpu GPU gloo False",
        "cpu False",
        "True",
        "('0.00', '0.00', '0.00', '0.00')",
        "True",
        "True",
        "0",
    ]


REPORT = """
import verl
from rl_estimators import patching
from verl.plugin.platform import get_platform, PlatformRegistry
print(type(get_platform()).__module__, "cpu" in PlatformRegistry.registered_names())
import verl.utils.distributed, verl.utils.model, verl.utils.fsdp_utils
print(*[status.state.name for status in patching.report() if "_cpu_" in status.patch.name])
"""


def test_not_selected_it_changes_nothing():
    # verl's own fall-back where it finds no accelerator is "nvidia"
    assert run(REPORT, CUDA_VISIBLE_DEVICES="") == [
        "verl.plugin.platform.platform_cuda True",
        "UNNEEDED UNNEEDED",
    ]


def test_selected_its_patches_are_in_force():
    assert run(REPORT, VERL_PLATFORM="cpu") == ["rl_estimators.verl.platform True", "APPLIED APPLIED"]


def test_verl_s_detection_never_picks_it():
    assert PlatformRegistry.get("cpu") is PlatformCPU
    assert not PlatformCPU().is_platform_available()
    assert not PlatformCPU().is_platform_available(use_smi_check=True)


def test_every_method_takes_what_verl_s_base_class_says():
    for name, method in inspect.getmembers(PlatformBase, inspect.isfunction):
        ours, theirs = inspect.signature(getattr(PlatformCPU, name)), inspect.signature(method)
        assert [*ours.parameters] == [*theirs.parameters], name


def test_every_method_answers():
    cpu = PlatformCPU()
    assert (cpu.is_available(), cpu.device_count(), cpu.vendor_name) == (True, 1, "cpu")
    assert cpu.get_device_capability() == (None, None)
    assert cpu.visible_devices_envvar() == "CUDA_VISIBLE_DEVICES"
    assert (cpu.ray_noset_envvars(), cpu.rollout_env_vars(), cpu.cudart()) == ([], {}, None)
    for nothing in (cpu.synchronize, cpu.empty_cache, cpu.profiler_start, cpu.profiler_stop):
        assert nothing() is None
    cpu.set_device(0)
    with cpu.nvtx_range("range"):
        pass
    memory = cpu.device_module
    assert memory.mem_get_info() == (0, 0)
    assert memory.memory_reserved() == memory.max_memory_reserved() == 0
    assert memory.get_device_name() == "CPU"
    with pytest.raises(AttributeError, match="no_such_thing"):
        memory.no_such_thing  # noqa: B018


def test_a_platform_of_verl_s_own_is_left_in_place(caplog):
    class Registry:
        platforms = {"cpu": object}  # noqa: RUF012

        @classmethod
        def get(cls, name):
            return cls.platforms.get(name)

    platform.register(types.SimpleNamespace(PlatformRegistry=Registry))
    assert Registry.platforms == {"cpu": object}
    assert "VERL_PLATFORM=cpu means <class 'object'> in this verl; ours is not offered" in caplog.text
