r"""Discounted sums in plain torch, as products with a triangular matrix.

The recursion :math:`y_t = x_t + d \, y_{t+1}` is, written out, :math:`y_t = \sum_{j \ge t} d^{j-t} x_j`: a product of
x with the triangular matrix :math:`M_{jt} = d^{j-t}`. For a whole row that matrix would be too large, so a row is cut
into chunks of C tokens. What lies right of a chunk enters it through one number only, the y of the next chunk's first
token, which joins the chunk's last token, :math:`x_C + d \, y_\mathrm{next}`. These first y are found beforehand: they are
themselves a discounted sum, with discount :math:`d^C`, of what each chunk has by itself at its first token,
:math:`\sum_j d^{j} x_j`. So the same function is called again on a row that is C times shorter, and then one product
gives all y.

The powers run from 0 to C and are at most 1: nothing overflows, and d = 1 needs no case of its own. (The closed
form with :math:`d^{-t}` and a cumulative sum fails from some hundred tokens on.) There is no loop over tokens: one
product of matrices does C steps of all rows and chunks, and processors do nothing faster.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CHUNK", "padded", "reverse_scan"]

CHUNK = 16  # 1024 x 8192 takes 3.4 ms in products; with 32 it is 6.1, with 8 the products are too small and it is 8
_INNER = 64  # for what is left to be scanned: a 16th of the numbers, but as many calls


def padded(length: int, chunk: int = CHUNK) -> int:
    """The next length that :func:`reverse_scan` takes."""
    return length if length <= chunk else -(-length // chunk) * chunk


def reverse_scan(
    x: Tensor, discount: float | Tensor, out: Tensor | None = None, chunk: int = CHUNK
) -> Tensor:
    """``(R, L)`` discounted sums over each row of ``x``, in its dtype; ``x`` is used up.

    Args:
        x: ``(R, L)`` contiguous; L at most C, or a multiple of it.
        discount: In [0, 1]; an ``(R,)`` tensor in the dtype of ``x`` where rows differ.
        out: ``(R, L)`` contiguous, where to write; None for a new tensor.
        chunk: C.
    """
    out = torch.empty_like(x) if out is None else out
    if x.numel():
        _scan(x, discount, out, chunk, torch.matmul if _exact(x) else _product_in_double)
    return out


def _scan(
    x: Tensor, discount: float | Tensor, out: Tensor, chunk: int, product: Callable[..., Tensor]
) -> None:
    rows, length = x.shape
    size = min(length, chunk)
    chunks = length // size
    matrix, column = _powers(discount, size, x.dtype, x.device)
    # where all rows have one matrix it is one product: a batch of them is slower
    cut = x.view(-1, size) if matrix.ndim == 2 else x.view(rows, chunks, size)
    if chunks > 1:
        first = product(cut, column).view(rows, chunks)
        wide = padded(chunks, _INNER)
        if wide > chunks:
            first = torch.cat((first, first.new_zeros(rows, wide - chunks)), 1)
        after = torch.empty_like(first)
        _scan(first, discount**size, after, _INNER, product)
        last, after = x.view(rows, chunks, size)[:, :-1, -1], after[:, 1:chunks]
        if isinstance(discount, Tensor):
            last.addcmul_(discount[:, None], after)
        else:
            last.add_(after, alpha=discount)
    product(cut, matrix, out=out.view(cut.shape))


def _powers(
    discount: float | Tensor, size: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """M, ``(C, C)``, and its first column, ``(C,)``; ``(R, C, C)`` and ``(R, C, 1)`` where rows differ."""
    if not isinstance(discount, Tensor):
        return _cached_powers(float(discount), size, dtype, device)
    steps = torch.arange(size, device=device)
    apart = steps[:, None] - steps
    matrix = torch.where(apart >= 0, discount.to(device)[:, None, None] ** apart.clamp(min=0), 0)
    return matrix, matrix[..., :1].contiguous()


@functools.lru_cache(maxsize=64)
def _cached_powers(
    discount: float, size: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    base = torch.full((1,), discount, dtype=torch.float64)
    matrix, column = _powers(base, size, torch.float64, torch.device("cpu"))
    return matrix[0].to(device, dtype), column[0, :, 0].to(device, dtype)


def _exact(x: Tensor) -> bool:
    """Whether products are computed with all of the dtype's digits.

    With ``set_float32_matmul_precision("medium")`` or autocast they are done in bf16, with TF32 on a GPU in
    10 bits: fine for a network's layers, and an error of 1e-3 here.
    """
    if x.dtype == torch.float64:
        return True
    if not x.is_cpu or torch.is_autocast_enabled(x.device.type):
        return False
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set through torch's older and newer interface at once
        return False


def _product_in_double(x: Tensor, matrix: Tensor, out: Tensor | None = None) -> Tensor:
    """``x @ matrix``, whatever the user has allowed for products in fp32."""
    with torch.autocast(x.device.type, enabled=False):
        found = (x.double() @ matrix.double()).to(x.dtype)
    return found if out is None else out.copy_(found)
