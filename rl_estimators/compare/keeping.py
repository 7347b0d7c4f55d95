"""Memory: what is kept for the page, and what a long run leaves behind."""

import ctypes
import sys
from dataclasses import dataclass, field

from rl_estimators.compare.model import Comparison

__all__ = ["Kept", "large_blocks_apart"]

_MOST = 2**29  # numbers: 2 GiB
_M_MMAP_THRESHOLD = -3  # from malloc.h


@dataclass
class Kept:
    """The first comparisons that fit.

    Attributes:
        want: Whether any are kept at all.
        comparisons: What is kept.
        left_out: How many did not fit.
    """

    want: bool
    comparisons: list[Comparison] = field(default_factory=list)
    left_out: int = 0
    _numbers: int = 0

    def offer(self, comparison: Comparison) -> None:
        """Keep it, if it fits; a first one always does."""
        if not self.want:
            return
        size = comparison.rollouts.inputs["response_mask"].numel() * (len(comparison.advantages) + 2)
        if self.comparisons and self._numbers + size > _MOST:
            self.left_out += 1
            return
        self._numbers += size
        self.comparisons.append(comparison)


def large_blocks_apart() -> None:
    """Tell glibc to give blocks of 256 KiB and more back to the system as soon as they are freed.

    It would keep them otherwise, and the small results of each batch would lie in between and break them up: 100 batches of
    1,000 responses took 1.7 GB and take 0.6 GB so. Elsewhere this does nothing.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 2**18)
