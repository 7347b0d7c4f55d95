"""What a measurement was taken on."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["describe"]

PACKAGES = ("torch", "triton", "numba", "transformers", "verl", "trl", "ray", "rl-estimators")


def describe() -> dict[str, str]:
    """Return the GPU, its driver, the processor and the releases; "-" stands for what is not there.

    The driver's own tool is asked for the GPU: to ask through CUDA would take memory on it.
    """
    import torch

    gpu, memory, driver = _gpu()
    found = {
        "gpu": f"{gpu}, {memory}" if memory else "-",
        "driver": driver,
        "cuda": torch.version.cuda or "-",
    }
    found |= {"processor": _processor(), "python": platform.python_version()}
    return found | {name: _release(name) for name in PACKAGES}


def _gpu() -> tuple[str, str, str]:
    """Name, memory and driver of the first GPU."""
    ask = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "-", "", "-"
    first = answer.stdout.partition("\n")[0].split(", ")
    return (first[0], first[1], first[2]) if answer.returncode == 0 and len(first) == 3 else ("-", "", "-")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} threads" if names else platform.machine()


def _release(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"
