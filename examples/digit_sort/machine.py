"""What a measurement was taken on."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["describe"]

PACKAGES = ("torch", "triton", "numba", "transformers", "verl", "trl", "ray", "rl-estimators")


def describe() -> dict[str, str]:
    """Return the GPU, its driver, the processor and the releases; "-" stands for what is not there."""
    import torch

    found = {"gpu": "-", "driver": "-", "cuda": torch.version.cuda or "-"}
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found["gpu"] = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {gpu.multi_processor_count} SMs"
        found["driver"] = _driver()
    found["processor"] = _processor()
    found["python"] = platform.python_version()
    return found | {name: _release(name) for name in PACKAGES}


def _driver() -> str:
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "-"
    return answer.stdout.strip().partition("\n")[0] or "-"


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
