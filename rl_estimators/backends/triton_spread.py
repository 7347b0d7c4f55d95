# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Numbers written to every token on a CUDA device: one program per block of a row, in one reading.

The mask of a row whose valid tokens all stand first is not read again: their number says it.
"""

import triton
import triton.language as tl

__all__ = ["spread_kernel", "standardise_kernel"]


@triton.jit
def _counted(mask, number, extent, at, inside):
    """Which tokens of a row count."""
    read = tl.load(mask + at, mask=inside & (number != extent), other=0) != 0
    return inside & (number > 0) & tl.where(number == extent, at < number, read)


@triton.jit
def standardise_kernel(
    x, mask, number, extent, pivot, shift, scale, out,
    length, x_stride, mask_stride, out_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    """``(x - pivot - shift) * scale`` on tokens that count, 0 elsewhere; ``out`` may be ``x``."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < length
    on = _counted(mask + row * mask_stride, tl.load(number + row), tl.load(extent + row), at, inside)
    y = tl.load(x + row * x_stride + at, mask=on, other=0.0)
    y = y - tl.load(pivot).to(tl.float32) - tl.load(shift).to(tl.float32)
    tl.store(out + row * out_stride + at, tl.where(on, y * tl.load(scale).to(tl.float32), 0.0), mask=inside)


@triton.jit
def spread_kernel(x, mask, number, extent, out, length, mask_stride, BLOCK: tl.constexpr):
    """A row's number on its valid tokens, 0 elsewhere; without ``number`` and ``extent`` the mask says which."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < length
    if number is None:
        on = tl.load(mask + row * mask_stride + at, mask=inside, other=0) != 0
    else:
        on = _counted(mask + row * mask_stride, tl.load(number + row), tl.load(extent + row), at, inside)
    tl.store(out + row * length + at, tl.where(on, tl.load(x + row), 0.0), mask=inside)
