"""Memory of outputs that is used again: only when nobody can see it any more, and never much of it."""

import gc
import pickle
import threading

import pytest
import torch

import rl_estimators
from rl_estimators.backends import memory
from rl_estimators.backends.memory import empty

CPU = torch.device("cpu")
LARGE = (1024, 2048)  # 8 MiB


@pytest.fixture(autouse=True)
def nothing_spare(monkeypatch):
    gc.collect()
    monkeypatch.setattr(memory, "_spare", [])


def output(shape=LARGE, place=0):
    return empty(shape, torch.float32, CPU, place)


def test_an_output_that_is_gone_serves_the_next_of_its_size():
    first = output()
    address = first.data_ptr()
    del first
    assert output().data_ptr() == address


@pytest.mark.parametrize("place", [0, 1, 2])
def test_outputs_start_at_their_place_in_a_page_used_before_or_not(place):
    for _ in range(2):
        assert output(place=place).data_ptr() % 4096 == 1024 * (place + 1)


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x[3:5],
        lambda x: x.detach(),
        lambda x: x.numpy(),
        lambda x: x.numpy()[1:],
        lambda x: memoryview(x.numpy()),
        lambda x: x.view(torch.int32),
        lambda x: x.untyped_storage(),
        lambda x: torch.utils.dlpack.to_dlpack(x),
        lambda x: (x.requires_grad_() * 2).sum().grad_fn,  # what autograd has saved
    ],
    ids=["rows", "detached", "array", "rows of the array", "buffer", "view", "storage", "dlpack", "graph"],
)
def test_what_somebody_still_sees_is_not_given_away(look):
    first = output().zero_()
    address, seen = first.data_ptr(), look(first)
    del first
    gc.collect()
    held = output()
    assert held.data_ptr() != address
    del seen
    gc.collect()
    assert output().data_ptr() == address


def kept():
    return sum(spare.nbytes for spare in memory._spare)


@pytest.mark.parametrize("length", [1100, 2048, 4096, 8192])
def test_no_more_than_64_mib_are_kept_and_of_one_size(length):
    most, size = 64 << 20, 1024 * length * 4
    several = [output((1024, length)) for _ in range(18)]
    others = [output((1024, length - 64)) for _ in range(2)]
    del several
    assert most - size <= kept() <= most + (16 << 10)  # a page on each side of an output
    assert len({spare.nbytes for spare in memory._spare}) == 1
    del others
    assert {spare.nbytes for spare in memory._spare} <= {1024 * (length - 64) * 4 + (8 << 10)}


def test_what_does_not_fit_is_let_go_of_first():
    several = [output() for _ in range(4)]
    del several
    assert memory._spare
    largest = output((2048, 8192))
    assert not memory._spare
    del largest
    assert len(memory._spare) == 1
    larger = output((2048, 8200))  # above 64 MiB
    del larger
    assert not memory._spare


def test_masks_and_small_outputs_are_left_alone():
    spare = output()
    del spare
    masks, small = empty((4096, 4096), torch.bool, CPU), output((16, 16))
    assert len(memory._spare) == 1
    del masks, small
    assert len(memory._spare) == 1


def test_threads_never_share():
    """Each writes its own number and finds nothing else a little later."""
    faults = []

    def work(number):
        for _ in range(30):
            mine = output().fill_(number)
            if not bool((mine == number).all()):
                faults.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert 0 < kept() <= (64 << 20) + (16 << 10)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_an_estimate_is_not_touched_by_the_next(backend):
    """Step after step, as a trainer keeps the last step's while the next is computed."""
    pytest.importorskip(backend)
    draw = torch.Generator().manual_seed(0)
    kept = []
    for _ in range(4):
        batch = {
            "token_level_rewards": torch.randn(LARGE, generator=draw),
            "values": torch.randn(LARGE, generator=draw),
            "response_mask": torch.ones(LARGE, dtype=torch.long),
        }
        found = rl_estimators.estimate("gae", **batch, lam=0.95, backend=backend)
        kept = [*kept[-1:], (found, [x.clone() for x in found])]
        for then, copies in kept:
            assert all(torch.equal(x, y) for x, y in zip(then, copies, strict=True))


def test_an_output_survives_pickling():
    first = output().fill_(3)
    again = pickle.loads(pickle.dumps(first))
    del first
    output().fill_(4)
    assert bool((again == 3).all())
