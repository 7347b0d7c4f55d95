"""A tiny model that nobody asks: TRL's trainer wants one."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a host
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of an untrained model and its tokenizer."""
    pytest.importorskip("trl")
    import toy

    folder = tmp_path_factory.mktemp("untrained")
    build = toy.digit_sort("model")
    tokenizer = build.build_tokenizer()
    build.build_model(tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums in another order are other numbers, and the machine is shared."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
