"""The loops over a batch's tokens, as fast as the machine allows.

Each backend has the same functions; those below take the one that :mod:`rl_estimators.backends.choose` names:

- ``torch_rows`` (any device): blocks of rows (``torch_blocks``), the recursion as products with a triangular matrix
  (``torch_scan``).
- ``numba_rows`` (CPU): compiled loops over rows, the recursion as it is written (``numba_scan``).
- ``triton_rows`` (CUDA): one program per row, the recursion as an associative scan (``triton_scan``).

The latter two have sums over rows and numbers written to every token beside it (``*_sums``, ``*_spread``); how numba's reach
memory is in ``numba_memory``.

They take a batch as a framework passes it, and hold to the rules of :mod:`rl_estimators.masked`: what stands at a masked
position is not read, and a response with a number that is not finite, or whose sum is not, gets the advantage 0. What
they return is a weight or a target: no gradient goes through.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rl_estimators.backends import torch_rows
from rl_estimators.backends.choose import backend_for, use_backend
from rl_estimators.backends.memory import empty
from rl_estimators.backends.rows import Number, Rows, Scan, widest, work_dtype
from rl_estimators.errors import InputError
from rl_estimators.metrics import count

__all__ = [
    "Rows",
    "Scan",
    "discounted_sum",
    "gae",
    "moments",
    "packed",
    "pooled",
    "returns",
    "scores",
    "spread",
    "standardise",
    "strays",
    "use_backend",
    "work_dtype",
]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_MOST = 24 << 20  # tokens of a mask that is packed


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, last: Tensor | None, gamma: float, decay: float
) -> Scan:
    r"""TD errors and their discounted sums, in one reading of the batch.

    .. math:: A_k = r_k + \gamma V_{k+1} - V_k + d A_{k+1}, \qquad R_k = A_k + V_k

    over the valid tokens k = 1 ... n of each row. In an excluded response A is 0 and R is V, where finite.

    Args:
        rewards: ``(B, T)`` in any floating dtype.
        values: ``(B, T)``, likewise.
        mask: ``(B, T)`` in any dtype, nonzero on valid tokens.
        last: ``(B,)`` :math:`V_{n+1}`; None: 0.
        gamma: In [0, 1].
        decay: :math:`d = \gamma \lambda`.

    Returns:
        A, R and A's statistics, in fp32 (fp64 if an input is).
    """
    _check_shapes(rewards.shape, values, mask)
    _check_shapes(rewards.shape[:1], last)
    if not rewards.numel():
        return _nothing(rewards, values)
    gamma, decay = _number(gamma), _number(decay)
    return _reported(_kernel("gae", rewards)(rewards.detach(), values.detach(), mask, last, gamma, decay))


def returns(rewards: Tensor, mask: Tensor, discount: float | Tensor, baselines: Tensor | None = None) -> Scan:
    """Discounted sums of raw rewards.

    Args:
        rewards: ``(B, T)`` in any floating dtype.
        mask: ``(B, T)`` in any dtype, nonzero on valid tokens.
        discount: In [0, 1]; a ``(B,)`` tensor where rows differ.
        baselines: ``(B,)`` what is subtracted from a row's sums; a response with one that is not finite is excluded.

    Returns:
        The sums less the baselines, the sums (the same tensor without baselines), and the sums' statistics; with
        baselines only which rows count, and how many of their tokens.
    """
    discount = _number(discount)
    _check_shapes(rewards.shape, mask)
    _check_shapes(rewards.shape[:1], baselines, discount)
    if not rewards.numel():
        return _nothing(rewards, baselines)
    return _reported(_kernel("returns", rewards)(rewards.detach(), mask, discount, baselines))


def discounted_sum(x: Tensor, mask: Tensor, discount: float | Tensor) -> Tensor:
    """As :func:`rl_estimators.scan.discounted_sum`."""
    discount = _number(discount)
    _check_shapes(x.shape, mask)
    _check_shapes(x.shape[:1], discount)
    if not x.numel():
        return torch.zeros_like(x)
    if x.dtype not in (torch.float32, torch.float64):
        return discounted_sum(x.float(), mask, discount).to(x.dtype)
    found: Tensor = _kernel("discounted_sum", x)(x.detach(), mask, discount)
    return found


def scores(rewards: Tensor, mask: Tensor) -> Rows:
    """Each response's sum over its valid tokens, added up in fp64, as ``total``."""
    _check_shapes(rewards.shape, mask)
    if not rewards.numel():
        return _nothing(rewards).rows
    rows: Rows = _kernel("scores", rewards)(rewards.detach(), mask)
    _count_excluded(rows)
    return rows


def moments(x: Tensor, mask: Tensor) -> Rows:
    """Statistics of each row's valid numbers, which are finite."""
    _check_shapes(x.shape, mask)
    if not x.numel():
        return _nothing(x).rows
    rows: Rows = _kernel("moments", x)(x.detach(), mask)
    return rows


def packed(mask: Any) -> Any:
    """A mask checked and made bool in one reading, so that no kernel has to read its 8 bytes a token again.

    Args:
        mask: ``(B, T)``.

    Returns:
        ``(B, T)`` bool, where an integer mask on the CPU holds 0 and 1 only. Anything else comes back as it is, for
        :func:`rl_estimators.fields.check` to look at, and so does a mask of more than 24 Mi tokens: beyond its outputs no
        kernel takes more than 32 MiB.
    """
    known = isinstance(mask, Tensor) and mask.dtype in _INTEGERS and mask.ndim == 2
    if not known or not mask.is_cpu or not 0 < mask.numel() <= _MOST:
        return mask
    found = _kernel("pack", mask)(mask)
    return mask if found is None else found


def pooled(
    rows: Rows, by_row: bool, ddof: float, eps: float = 0.0, eps_in: str = "variance"
) -> tuple[Number, Number, Number]:
    r"""What :func:`standardise` takes: mean and scale of all rows together, from each row's statistics.

    A row has n numbers, their sum s and sum of squares q less its pivot p. With all rows' pivots less one of them,
    :math:`a = p - p_0`,

    .. math:: \bar x - p_0 = \frac{1}{W} \sum w (s + n a), \qquad
        s^2 = \frac{1}{W - \mathrm{ddof}} \sum w (q + 2 b s + n b^2), \qquad b = p - \bar x

    in fp64; the scale is :math:`1 / \sqrt{s^2 + \epsilon}`. Where no number differs from the pivot, the mean is it and
    the variance 0, both exactly.

    Args:
        rows: Of at least one row.
        by_row: A row's numbers weigh w = 1 / n and W is the number of rows; else w = 1 and W is that of all numbers.
        ddof: In [0, 1].
        eps: :math:`\epsilon`, at least 0.
        eps_in: ``"variance"``; with ``"std"`` the scale is :math:`1 / (s + \epsilon)`.

    Returns:
        :math:`p_0`, the mean less it, and the scale, 0 where it would be infinite; 0-dim in fp64, or floats.
    """
    found: tuple[Number, Number, Number] = _kernel("pooled", rows.pivot)(rows, by_row, ddof, eps, eps_in)
    return found


def standardise(
    x: Tensor,
    mask: Tensor,
    rows: Rows,
    pivot: Number,
    shift: Number,
    scale: Number,
    out: Tensor | None = None,
) -> Tensor:
    """``(x - pivot - shift) * scale`` on the valid tokens of rows that count, 0 elsewhere, written to ``out``.

    Args:
        x: ``(B, T)``.
        mask: ``(B, T)`` in any dtype.
        rows: From the function that looked at ``x`` first.
        pivot: One of the numbers: near ones are subtracted without a rounding error.
        shift: The mean less the pivot.
        scale: One over the standard deviation.
        out: May be ``x``; None for a new tensor.
    """
    _check_shapes(x.shape, mask)
    out = empty(x.shape, x.dtype, x.device, 1) if out is None else out
    if not x.numel():
        return out
    _kernel("standardise", x)(x.detach(), mask, rows, pivot, shift, scale, out)
    return out


def spread(x: Tensor, mask: Tensor, rows: Rows | None = None) -> Tensor:
    """``(B, T)``, each row's number of ``(B,)`` on its valid tokens, 0 elsewhere.

    Args:
        x: ``(B,)``, 0 in a response that is excluded.
        mask: ``(B, T)`` in any dtype.
        rows: From the function that looked at the mask first, so that it need not be read again.
    """
    _check_shapes(mask.shape[:1], x)
    if not mask.numel():
        return x.new_zeros(mask.shape)
    found: Tensor = _kernel("spread", x)(x.detach(), mask, rows)
    return found


def strays(rewards: Tensor, mask: Tensor) -> Tensor:
    """``(B,)`` bool: a masked token of the response has a reward, NaN included."""
    _check_shapes(rewards.shape, mask)
    if not rewards.numel():
        return torch.zeros(len(rewards), dtype=torch.bool, device=rewards.device)
    found: Tensor = _kernel("strays", rewards)(rewards.detach(), mask)
    return found


def _check_shapes(shape: Sequence[int], *given: Tensor | float | None) -> None:
    """For who calls an estimator's function itself: compiled kernels would read what lies beside a smaller tensor.

    Raises:
        InputError: a tensor has another shape.
    """
    for x in given:
        if isinstance(x, Tensor) and x.shape != shape:
            raise InputError(
                f"a tensor has shape {tuple(x.shape)}, where its batch has {tuple(shape)}; rl_estimators.estimate says "
                "which it is"
            )


def _number(x: Any) -> Any:
    """An option may be a 0-dim tensor, which compiled kernels do not take."""
    return x.item() if isinstance(x, Tensor) and x.ndim == 0 else x


def _reported(scan: Scan) -> Scan:
    _count_excluded(scan.rows)
    return scan


def _count_excluded(rows: Rows) -> None:
    count("excluded_responses", lambda: rows.excluded.sum())


def _kernel(name: str, x: Tensor) -> Callable[..., Any]:
    """The function of the chosen backend, or torch's where it has none of that name."""
    kernel: Callable[..., Any] = getattr(backend_for(x), name, None) or getattr(torch_rows, name)
    return kernel


def _nothing(x: Tensor, *others: Tensor | None) -> Scan:
    """The answer where there are no rows, or no tokens in them."""
    zeros = x.new_zeros(x.shape, dtype=work_dtype(x, *others))
    row = x.new_zeros(len(x), dtype=widest(x.device))
    number = torch.zeros_like(row, dtype=torch.long)
    return Scan(zeros, zeros, Rows(number > 0, number, row, row, row, number))
