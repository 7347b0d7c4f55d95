"""Where a run takes place: which model, on which device, with which rollout engine."""

from dataclasses import dataclass
from importlib.util import find_spec

from digit_sort.sizes import SMALL, TINY, Size

__all__ = ["CPU", "Setup", "best"]


@dataclass(frozen=True)
class Setup:
    """Where a run takes place.

    Attributes:
        size: of the model.
        device: "cpu", where all is float32, or "cuda", where it is bfloat16 with float32 weights for the optimizer.
        engine: verl's rollout engine, "hf" (ours, on transformers) or "vllm".
    """

    size: Size = TINY
    device: str = "cpu"
    engine: str = "hf"


CPU = Setup()


def best() -> Setup:
    """The larger model where there is CUDA, with vLLM if it is installed; the tiny one elsewhere."""
    import torch

    if not torch.cuda.is_available():
        return CPU
    return Setup(SMALL, "cuda", "vllm" if find_spec("vllm") else "hf")
