"""A "cpu" platform for verl, so that smoke runs and debugging need no accelerator.

Registered in verl's own `PlatformRegistry` and used only with ``VERL_PLATFORM=cpu``: automatic detection
never picks it. verl offers its FSDP engine for ``cuda`` and ``npu`` only, so a CPU run also needs verl's own
switch ``VERL_ENGINE_DEVICE=cuda``, which names the engine and moves nothing to a GPU.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform import PlatformBase

__all__ = ["NAME", "PlatformCPU", "register"]

NAME = "cpu"

logger = logging.getLogger(__name__)


def register(module: ModuleType) -> None:
    """Enter the platform into the registry of ``module``, unless verl has a platform of that name.

    Args:
        module: ``verl.plugin.platform``.
    """
    taken = module.PlatformRegistry.get(NAME)
    if taken is None:
        module.PlatformRegistry.register(platform=NAME)(PlatformCPU)
    elif taken is not PlatformCPU:
        logger.warning(
            "rl_estimators: VERL_PLATFORM=%s means %r in this verl; ours is not offered", NAME, taken
        )


class CPUDeviceModule(ModuleType):
    """`torch.cpu`, and the parts of `torch.cuda` that verl also asks a device module for.

    `is_available` is false: verl takes it as "there is device memory to watch and to empty".
    """

    get_rng_state = staticmethod(torch.get_rng_state)
    set_rng_state = staticmethod(torch.set_rng_state)
    manual_seed = manual_seed_all = staticmethod(torch.manual_seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    @staticmethod
    def is_available() -> bool:
        return False

    @staticmethod
    def get_device_name(device: object = None) -> str:
        return "CPU"  # the key of verl's table of peak FLOP/s

    @staticmethod
    def _no_bytes(device: object = None) -> int:
        return 0

    memory_allocated = memory_reserved = _no_bytes
    max_memory_allocated = max_memory_reserved = _no_bytes

    @staticmethod
    def mem_get_info(device: object = None) -> tuple[int, int]:
        return 0, 0

    @staticmethod
    def _nothing_to_do(*args: object) -> None:
        pass

    empty_cache = ipc_collect = reset_peak_memory_stats = reset_max_memory_allocated = _nothing_to_do


class PlatformCPU(PlatformBase):
    """The host as a device, with "GPU" as the name of a purely logical Ray resource.

    verl asks Ray for that resource, so start Ray with as many as there are to be workers
    (``+ray_kwargs.ray_init.num_gpus=N``).
    """

    _device_module = CPUDeviceModule("torch.cpu")

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        return self._device_module

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return False  # what verl's detection asks: every host has a CPU, so only an explicit wish counts

    def current_device(self) -> torch.device:
        return torch.device("cpu")  # an integer would mean a CUDA device to `Tensor.to`

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None
