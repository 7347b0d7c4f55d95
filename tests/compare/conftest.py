"""No hosts, no threads."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a host
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums in another order are other numbers, and the machine is shared."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
