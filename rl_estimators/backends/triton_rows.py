"""The triton kernel as a function of tensors; what it has no kernel for is torch's.

Numbers are fp32: a batch in fp64 goes to torch's kernels.
"""

import torch
import triton
from torch import Tensor

from rl_estimators.backends import torch_rows, triton_scan
from rl_estimators.backends.rows import Rows, Scan, as_work, work_dtype

__all__ = ["gae", "probe"]

_BLOCK = 1024  # tokens at a time
_LEAST = 128  # a program has as many threads: fewer tokens would only be copies of each other


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, last: Tensor | None, gamma: float, decay: float
) -> Scan:
    """See :func:`rl_estimators.backends.gae`."""
    if work_dtype(rewards, values, last) != torch.float32:
        return torch_rows.gae(rewards, values, mask, last, gamma, decay)
    rewards, values, mask = (
        x.detach() if x.stride(-1) == 1 else x.contiguous() for x in (rewards, values, mask)
    )
    mask = mask.view(torch.uint8) if mask.dtype == torch.bool else mask
    rows, length = rewards.shape
    advantages, targets = (torch.empty(rows, length, device=rewards.device) for _ in range(2))
    stats = torch.empty(rows, 5, dtype=torch.float64, device=rewards.device)
    end = as_work(last, rewards, torch.float32).contiguous()
    triton_scan.gae_kernel[(rows,)](
        rewards, values, mask, end, advantages, targets, stats, length,
        rewards.stride(0), values.stride(0), mask.stride(0), float(gamma), float(decay),
        BLOCK=min(_BLOCK, max(_LEAST, triton.next_power_of_2(length))),
    )  # fmt: skip
    written, number, *sums = stats.unbind(1)
    return Scan(advantages, targets, Rows(written > 0, number.long(), *sums))


def probe() -> None:
    """Compile the kernel; raises what triton raises."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, mask = torch.zeros(1, 1, device=device), torch.zeros(1, 1, dtype=torch.long, device=device)
    gae(x, x, mask, None, 1.0, 1.0)
