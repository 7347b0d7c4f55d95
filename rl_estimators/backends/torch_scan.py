r"""Discounted sums in plain torch, as products with a triangular matrix.

The recursion :math:`y_t = x_t + d \, y_{t+1}` is, written out, :math:`y_t = \sum_{j \ge t} d^{j-t} x_j`: a product of
x with the triangular matrix :math:`M_{jt} = d^{j-t}`. For a whole row that matrix would be too large, so a row is cut
into chunks of C tokens. What lies right of a chunk enters it through one number only, the y of the next chunk's first
token:

.. math:: y_t = \mathrm{local}_t + d^{C - t} \, y_\mathrm{next}, \qquad \mathrm{local} = x M

and these first y are themselves a discounted sum over the chunks' first ``local``, with discount :math:`d^C`. So the
same function is called again on a row that is C times shorter.

The powers run from 0 to C and are at most 1: nothing overflows, and d = 1 needs no case of its own. (The closed
form with :math:`d^{-t}` and a cumulative sum fails from some hundred tokens on.) There is no loop over tokens: one
product of matrices does C steps of all rows and chunks, and processors do nothing faster.
"""

import functools

import torch
from torch import Tensor

__all__ = ["CHUNK", "padded", "reverse_scan"]

CHUNK = 32


def padded(length: int) -> int:
    """The next length that :func:`reverse_scan` takes."""
    return length if length <= CHUNK else -(-length // CHUNK) * CHUNK


def reverse_scan(x: Tensor, discount: float | Tensor) -> Tensor:
    """``(R, L)`` discounted sums over each row of ``x``, in its dtype.

    Args:
        x: ``(R, L)`` contiguous; L at most :data:`CHUNK`, or a multiple of it.
        discount: In [0, 1]; an ``(R,)`` tensor in the dtype of ``x`` where rows differ.
    """
    rows, length = x.shape
    size = min(length, CHUNK)
    matrix, to_next = _powers(discount, size, x.dtype, x.device)
    chunks = length // max(size, 1)
    local = _product(x.view(rows, chunks, size) if chunks else x.view(rows, 0, 0), matrix)
    if chunks > 1:
        first = local.new_zeros(rows, padded(chunks))
        first[:, :chunks] = local[:, :, 0]
        after = reverse_scan(first, discount**size)[:, 1:chunks, None]
        local[:, :-1].addcmul_(after, to_next)
    return local.view(rows, length)


def _powers(
    discount: float | Tensor, size: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """M, ``(C, C)``, and the weights of the next chunk, ``(C,)``; with a leading ``(R, 1)`` where rows differ."""
    if not isinstance(discount, Tensor):
        return _cached_powers(float(discount), size, dtype, device)
    steps = torch.arange(size, device=device)
    apart = steps[:, None] - steps
    base = discount.to(device)[:, None, None]
    return torch.where(apart >= 0, base ** apart.clamp(min=0), 0), base ** (size - steps)


@functools.lru_cache(maxsize=64)
def _cached_powers(
    discount: float, size: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    base = torch.full((1,), discount, dtype=torch.float64)
    matrix, to_next = _powers(base, size, torch.float64, torch.device("cpu"))
    return matrix[0].to(device, dtype), to_next[0, 0].to(device, dtype)


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    """``x @ matrix`` with all of the dtype's digits, whatever the user has allowed for matrix products."""
    if _exact(x):
        return x @ matrix
    with torch.autocast(x.device.type, enabled=False):
        return (x.double() @ matrix.double()).to(x.dtype)


def _exact(x: Tensor) -> bool:
    """Whether products are computed in full.

    With ``set_float32_matmul_precision("medium")`` or autocast they are done in bf16, with TF32 on a GPU in
    10 bits: fine for a network's layers, and an error of 1e-3 here.
    """
    if x.dtype == torch.float64:
        return True
    if x.device.type != "cpu" or torch.is_autocast_enabled(x.device.type):
        return False
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set through torch's older and newer interface at once
        return False
