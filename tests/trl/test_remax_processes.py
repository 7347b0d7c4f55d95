"""ReMax on two processes: the baselines of one, on every process that holds a prompt's samples."""

from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import remax_ranks  # noqa: E402
import torch  # noqa: E402
import toy  # noqa: E402
from test_processes import run_on_two  # noqa: E402

from rl_estimators.trl import greedy  # noqa: E402

CASES = pytest.mark.parametrize(("size", "together"), remax_ranks.CASES)


@pytest.mark.parametrize(("rank", "rows"), [(0, [0, 3]), (1, [2, 0]), (2, [1, 0])])
def test_who_decodes_what_on_three_processes(rank, rows):
    """Four completions each, groups of three.

    Prompts begin at completions 0 and 3 (first process), 6 (second one, its row 2) and 9 (third one, its row 1). Two
    are decoded by each, so that those read are 0 and 1, 2, and 4 of the six.
    """
    trainer = SimpleNamespace(
        num_generations=3,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(num_processes=3, process_index=rank),
    )
    plan = greedy._plan(trainer, 4)
    assert plan.rows == rows
    assert plan.prompts == [0, 1, 2, 4]
    assert plan.completions == [0, 0, 0, 1, 1, 1, 2, 2, 2, 4, 4, 4]


@pytest.fixture(scope="module")
def two(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    run_on_two(Path(remax_ranks.__file__), tiny, folder)
    found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert [one["world"] for one in found] == [2, 2]
    return [one["found"] for one in found]


@pytest.fixture(scope="module")
def one(tiny, tmp_path_factory):
    return remax_ranks.everything(tiny, tmp_path_factory.mktemp("one"))


@CASES
def test_the_baselines_are_those_of_one_process(one, two, size, together):
    """In training and in evaluation, on both processes, for all completions."""
    wanted = one[size, together]["baselines"]
    assert len(wanted) == 2
    assert torch.cat(wanted).unique().numel() > 1 or size == "one_group"
    for found in two:
        for batch, expected in zip(found[size, together]["baselines"], wanted, strict=True):
            assert torch.equal(batch, expected)


@CASES
def test_a_prompt_is_decoded_once(two, size, together):
    """The process with its first completion decodes it; one with fewer prompts of its own fills up."""
    total, generations = remax_ranks.SIZES[size]
    firsts = [
        [row % (total // 2) for row in range(0, total, generations) if row // (total // 2) == rank]
        for rank in (0, 1)
    ]
    most = max(map(len, firsts))
    for found, own in zip(two, firsts, strict=True):
        samples, greedily, *_ = found[size, together]["asked"]
        assert len(samples) == total // 2
        assert len(greedily) == most
        assert greedily[: len(own)] == [samples[row] for row in own]


@CASES
def test_the_advantages_follow(two, size, together):
    """Each completion's reward minus its prompt's baseline, for the evaluation logged last and the batch before."""
    for found in two:
        case = found[size, together]
        rewards = toy.reward(case["prompts"], case["completions"])
        baselines = torch.cat(case["baselines"])[-len(rewards) :].tolist()
        expected = [reward - baseline for reward, baseline in zip(rewards, baselines, strict=True)]
        assert case["advantages"] == pytest.approx(expected, abs=1e-6)
