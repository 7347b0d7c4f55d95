"""Numbers of a batch without its padding: they come back as they were, 0 elsewhere, and take the room of what is valid."""

import pytest
import torch

from rl_estimators.compare import packed
from rl_estimators.compare.packed import Packed

MASK = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]])


@pytest.mark.parametrize("block", [1, 8, 2**22], ids=["row_by_row", "two_rows", "at_once"])
def test_what_comes_back(monkeypatch, block):
    monkeypatch.setattr(packed, "BLOCK", block)
    numbers = torch.arange(1.0, 13).view(3, 4)
    both = Packed(MASK)
    both.keep("first", numbers)
    both.keep("second", torch.where(MASK > 0, -numbers, torch.nan))
    expected = torch.tensor([[1.0, 0, 3, 4], [0, 0, 0, 0], [9, 10, 0, 0]])
    assert list(both) == ["first", "second"]
    for name, sign in (("first", 1), ("second", -1)):
        assert torch.equal(both[name], sign * expected)
        assert [torch.equal(both.row(name, b), sign * expected[b]) for b in range(3)] == [True] * 3


def test_nothing(monkeypatch):
    for shape in ((0, 3), (2, 0)):
        none = Packed(torch.zeros(shape))
        none.keep("one", torch.zeros(shape))
        assert none["one"].shape == shape


def test_padding_takes_no_room():
    mask = torch.zeros(1000, 1000)
    mask[:, 0] = mask[0] = 1
    one = Packed(mask)
    one.keep("one", torch.ones(1000, 1000))
    assert one._kept["one"].untyped_storage().nbytes() == 4 * 1999
