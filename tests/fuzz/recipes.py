"""What a random batch is like: few words that hypothesis draws, and shrinks when a case fails.

The numbers themselves come from a seed, so that a case takes some milliseconds, and a failure is told as a recipe, of
which :class:`Builder` makes the same batch again. Sizes end at 1e6: spreads above 1e19, whose squares fp32 cannot hold,
are no part of what is promised.
"""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

MASKS = ("full", "prefix", "holes", "empty rows", "one token", "nothing")
KINDS = ("normal", "binary", "terminal", "ties", "equal", "zero")
GROUPS = ("pairs", "one", "alone", "mixed")
LAYOUTS = ("contiguous", "transposed", "every second", "inside")
FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
MASK_DTYPES = {"bool": torch.bool, "int64": torch.int64, "uint8": torch.uint8, "fp32": torch.float32}
# Numbers of such size are told apart from an offset by fp32, or become ties: both are welcome.
SCALES = (1.0, 1e-3, 1e-8, 1e-30, 1e3, 1e6)
OFFSETS = (0.0, 0.7, 1000.1, -1e6)
GARBAGE = (float("nan"), float("inf"), -float("inf"), 3e38, -7.5)


@dataclass(frozen=True)
class Recipe:
    """One batch: B ``rows`` of at most T = ``width`` tokens."""

    rows: int
    width: int
    mask: str
    kind: str
    scale: float
    offset: float
    groups: str
    dtype: str
    other_dtype: str  # of every second input
    mask_dtype: str
    layout: str
    garbage: float  # at masked positions
    seed: int


recipes = st.builds(
    Recipe,
    rows=st.integers(1, 7),
    width=st.one_of(st.integers(1, 8), st.sampled_from([33, 70])),  # more than a block of the scans
    mask=st.sampled_from(MASKS),
    kind=st.sampled_from(KINDS),
    scale=st.sampled_from(SCALES),
    offset=st.sampled_from(OFFSETS),
    groups=st.sampled_from(GROUPS),
    dtype=st.sampled_from(list(FLOATS)),
    other_dtype=st.sampled_from(list(FLOATS)),
    mask_dtype=st.sampled_from(list(MASK_DTYPES)),
    layout=st.sampled_from(LAYOUTS),
    garbage=st.sampled_from(GARBAGE),
    seed=st.integers(0, 2**32 - 1),
)


class Builder:
    """Makes the tensors of a recipe, one after the other."""

    def __init__(self, recipe):
        self.recipe, self.random = recipe, np.random.default_rng(recipe.seed)
        self.mask = self._mask()
        self._made = 0

    def _mask(self):
        rows, width = self.recipe.rows, self.recipe.width
        lengths = self.random.integers(1, width + 1, (rows, 1))
        prefix = np.arange(width) < lengths
        return {
            "full": np.ones((rows, width), bool),
            "prefix": prefix,
            "holes": self.random.random((rows, width)) < 0.6,
            "empty rows": prefix & (self.random.random((rows, 1)) < 0.6),
            "one token": np.arange(width) == lengths - 1,
            "nothing": np.zeros((rows, width), bool),
        }[self.recipe.mask]

    def response_mask(self):
        return self._laid_out(torch.from_numpy(self.mask).to(MASK_DTYPES[self.recipe.mask_dtype]))

    def numbers(self, shape):
        """Of the recipe's kind, scale and offset.

        All but the normal ones are numbers of fp32, in fp64 too: a row of them adds up without rounding, so that what
        is equal is equal in whatever order it was added. Of numbers with 53 bits that is not promised.
        """
        r = self.recipe
        drawn = self.random.normal(size=shape)
        if r.kind == "zero":
            return np.zeros(shape)
        if r.kind == "equal":
            return np.full(shape, 0.7 * r.scale + r.offset, np.float32)
        if r.kind == "binary":
            drawn = drawn > 0
        elif r.kind == "ties":
            drawn = np.round(drawn)
        elif r.kind == "terminal" and len(shape) == 2:
            drawn = drawn * (np.arange(shape[1]) == shape[1] - 1)
        numbers = drawn * r.scale + r.offset
        return numbers if r.kind == "normal" else numbers.astype(np.float32)

    def tensor(self, numbers, per="token"):
        """With garbage where nothing counts, in one of the recipe's dtypes and its layout.

        That is at masked positions, or in what is ``per="row"`` in rows without a valid token.
        """
        r = self.recipe
        self._made += 1
        counts = torch.from_numpy(self.mask if per == "token" else self.mask.any(1))
        dtype = FLOATS[r.dtype if self._made % 2 else r.other_dtype]
        x = torch.from_numpy(np.asarray(numbers, dtype=np.float64)).to(dtype)
        counts = counts.view(*counts.shape, *[1] * (x.ndim - counts.ndim))
        return self._laid_out(x.masked_fill(~counts, r.garbage))

    def _laid_out(self, x):
        """The same numbers elsewhere in memory."""
        if x.ndim < 2 or self.recipe.layout == "contiguous":
            return x
        if self.recipe.layout == "transposed":
            return x.t().contiguous().t()
        if self.recipe.layout == "every second":
            return torch.stack([x, x], dim=-1).flatten(1)[:, ::2]
        wide = torch.zeros(x.shape[0] + 2, x.shape[1] + 3, dtype=x.dtype)
        wide[1:-1, 2:-1] = x
        return wide[1:-1, 2:-1]

    def index(self):
        """Names of groups, as numpy array, list or tensor."""
        rows = self.recipe.rows
        numbers = {
            "pairs": np.arange(rows) // 2,
            "one": np.zeros(rows, int),
            "alone": np.arange(rows),
            "mixed": self.random.integers(0, 3, rows) ** 2,
        }[self.recipe.groups]
        form = self.recipe.seed % 3
        if form == 0:
            return torch.from_numpy(numbers)
        names = [f"uid-{number}" for number in numbers]
        return names if form == 1 else np.array(names, dtype=object)


def copy(value):
    """An input as it was before a call."""
    return value.clone() if isinstance(value, torch.Tensor) else np.array(value, dtype=object)


def unchanged(before, after):
    """Whether an input still is to the bit what it was."""
    if not isinstance(after, torch.Tensor):
        return (before == np.array(after, dtype=object)).all()
    return torch.equal(before.nan_to_num(1.25), after.nan_to_num(1.25)) and torch.equal(
        before.isnan(), after.isnan()
    )
