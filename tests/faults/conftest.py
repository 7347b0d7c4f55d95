"""The tiny model of the tests for TRL, and their quiet surroundings."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a host
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a tiny model that has begun to sort digits, and of its tokenizer."""
    import toy

    folder = tmp_path_factory.mktemp("tiny")
    toy.build(folder)
    return folder


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums in another order are other numbers, and the machine is shared."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
