"""What the kernels in torch need for a block of rows: memory in between, and its mask in the forms they take."""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "BITS",
    "Scratch",
    "as_bool",
    "block_elements",
    "compare",
    "cut",
    "keep",
    "mask_bits",
    "valid_number",
]

BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


class Scratch:
    """Memory for what one block needs in between, used again by the next.

    Tensors of a MiB that come and go are handed back to the system, which then provides and clears the same pages over and
    over: a third of the time of ``gae`` at 1024 x 8192.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of that shape that holds anything; the same memory for the same name and dtype."""
        kept = self._kept.get((name, dtype))
        if kept is not None and kept.shape == shape:
            return kept
        size = math.prod(shape)
        if kept is None or kept.numel() < size:  # what a later block needs is hardly ever larger
            kept = self._kept[name, dtype] = torch.empty(shape, dtype=dtype, device=self._device)
            return kept
        return kept.view(-1)[:size].view(shape)


def block_elements(x: Tensor) -> int:
    """Numbers in a block: about what the second-level cache holds, more where threads share it, all on a device."""
    if not x.is_cpu:
        return max(x.numel(), 1)
    return 1 << (18 if torch.get_num_threads() == 1 else 19)


def as_bool(mask: Tensor, scratch: Scratch) -> Tensor:
    """A mask of any dtype as bool."""
    return mask if mask.dtype == torch.bool else scratch("mask", mask.shape, torch.bool).copy_(mask)


def mask_bits(
    mask: Tensor, dtype: torch.dtype, scratch: Scratch | None = None, out: Tensor | None = None
) -> Tensor:
    """All bits set where ``mask``, which is bool, is true: for :func:`keep`; in memory of that dtype, if there is any."""
    if scratch is None:
        return mask.to(BITS[dtype]).neg_()
    # -1, all bits, is made of the ones while they are bytes: a quarter of the memory
    signs = torch.neg(mask.view(torch.int8), out=scratch("signs", mask.shape, torch.int8))
    bits = scratch("bits", mask.shape, BITS[dtype]) if out is None else out.view(BITS[dtype])
    return bits.copy_(signs)


def keep(x: Tensor, bits: Tensor, out: Tensor | None = None) -> Tensor:
    """``x`` where the mask is true and 0 elsewhere: a choice, as ``where`` is, and no product that NaN survives.

    On masks with holes ``where`` takes 14 ms for 1024 x 8192, a branch for each token, and this 1.
    """
    if out is None:
        return x.view(bits.dtype).bitwise_and(bits).view(x.dtype)
    if out is x:
        x.view(bits.dtype).bitwise_and_(bits)
    else:
        torch.bitwise_and(x.view(bits.dtype), bits, out=out.view(bits.dtype))
    return out


def cut(x: Tensor, bits: Tensor, out: Tensor | None = None) -> Tensor:
    """:func:`keep` for an ``x`` of any floating dtype, in the dtype that the bits are for; never in memory of ``x``."""
    if out is None:
        return keep(x.to(torch.float32 if bits.dtype == torch.int32 else torch.float64), bits)
    return keep(x if x.dtype == out.dtype else out.copy_(x), bits, out)


def compare(
    how: Literal["greater", "greater_equal", "less", "less_equal", "not_equal"], x: Tensor, y: Tensor | float
) -> Tensor:
    """What torch's function of that name says, as bool; on the CPU numpy's takes a fifth of the time, in fp32 and fp64."""
    if not x.is_cpu or x.dtype not in BITS:
        found: Tensor = getattr(torch, how)(x, y)
        return found
    return torch.from_numpy(getattr(np, how)(x.numpy(), y.numpy() if isinstance(y, Tensor) else y))


def valid_number(bits: Tensor) -> Tensor:
    """``(R,)`` how many tokens are valid: a quarter of the time that the sum of a bool mask takes."""
    return bits.sum(-1, dtype=bits.dtype).neg_().long()
