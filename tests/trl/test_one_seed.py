"""Two runs from one seed are one run: sampling, rewards, critic and updates, on the CPU and on a GPU."""

import pytest
import toy

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
pytestmark = pytest.mark.trl

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
SAME = ("critic/score/mean", "actor/reward_kl_penalty", "actor/entropy", "actor/grad_norm")


def silent(rewards):
    pass


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("estimator", ["gae", "grpo"])
def test_the_same_numbers(estimator, device, tiny, tmp_path):
    """And another seed gives others."""
    trl_run, where, sizes = (toy.digit_sort(name) for name in ("trl_run", "where", "sizes"))
    found = []
    for number, seed in enumerate((0, 0, 1)):
        (out := tmp_path / str(number)).mkdir()
        answers = 1 if estimator == "gae" else 4
        setup = where.Setup(sizes.TINY, device)
        rows = trl_run.train(estimator, 3, seed, answers, tiny, out, silent, setup)
        found.append([[row[name] for name in SAME] for row in rows])
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert all(len(row) == len(SAME) for run in found for row in run)
