"""What several estimators make of a batch, without its padding."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from rl_estimators.backends.rows import blocks
from rl_estimators.masked import as_mask

__all__ = ["BLOCK", "Packed"]

BLOCK = 2**22  # numbers that are looked at together


class Packed(Mapping[str, Tensor]):
    """``(B, T)`` numbers by name, of which valid tokens' are kept; whoever asks finds 0 elsewhere.

    A long response among many short ones makes a batch that is padding above all.

    Args:
        mask: ``(B, T)``, nonzero on valid tokens.
    """

    def __init__(self, mask: Tensor) -> None:
        self._mask = as_mask(mask)
        self._ends = [0, *self._mask.sum(-1).cumsum(0).tolist()]
        self._kept: dict[str, Tensor] = {}

    def keep(self, name: str, numbers: Tensor) -> None:
        """Take one estimator's, ``(B, T)``."""
        parts = [numbers[rows][self._mask[rows]] for rows in blocks(tuple(self._mask.shape), BLOCK)]
        self._kept[name] = torch.cat(parts) if parts else numbers.new_zeros(0)

    def row(self, name: str, at: int) -> Tensor:
        """``(T,)`` one response's."""
        on, kept = self._mask[at], self._kept[name]
        return kept.new_zeros(len(on)).masked_scatter(on, kept[self._ends[at] : self._ends[at + 1]])

    def __getitem__(self, name: str) -> Tensor:
        kept = self._kept[name]
        whole = kept.new_zeros(self._mask.shape)
        for rows in blocks(tuple(whole.shape), BLOCK):
            part = kept[self._ends[rows.start] : self._ends[rows.stop]]
            whole[rows].masked_scatter_(self._mask[rows], part)
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)
