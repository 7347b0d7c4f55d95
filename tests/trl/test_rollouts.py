"""A checkpoint in the middle of a generation batch: the batch is in it, or the run that resumes says what follows."""

import shutil

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import torch  # noqa: E402
import toy  # noqa: E402

from rl_estimators.errors import InputError  # noqa: E402
from rl_estimators.trl import EstimatorConfig, EstimatorTrainer  # noqa: E402

# a generation batch lasts 4 optimizer steps, and the checkpoint is after 2
SETTINGS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "num_iterations": 4}
FILE = "generation_batch_0.pt"


def make(folder, tiny, **fields):
    return toy.make(EstimatorTrainer, EstimatorConfig(**toy.settings(folder, **(SETTINGS | fields))), tiny)


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    trainer = make(folder, tiny)
    trainer.train()
    return folder, trainer


@pytest.fixture
def between(saved, tmp_path):
    """A copy of the checkpoint in the middle."""
    return shutil.copytree(saved[0] / "checkpoint-2", tmp_path / "checkpoint-2")


def test_without_a_critic_it_resumes_exactly(saved, tiny, tmp_path):
    folder, whole = saved
    resumed = make(tmp_path, tiny)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert resumed._step == whole._step == 6
    for name, tensor in toy.weights(whole).items():
        assert torch.equal(toy.weights(resumed)[name], tensor), name
    assert toy.logged(resumed)[:6] == toy.logged(whole)[:6]


def test_a_batch_that_is_used_up_is_not_saved(saved):
    state = torch.load(saved[0] / "checkpoint-4" / FILE, weights_only=True)
    assert (state["step"], state["inputs"]) == (4, None)
    state = torch.load(saved[0] / "checkpoint-2" / FILE, weights_only=True)
    assert (state["step"], len(state["inputs"])) == (2, 1)


def test_a_checkpoint_without_the_batch(between, tiny, tmp_path):
    (between / FILE).unlink()
    trainer = make(tmp_path / "run", tiny)
    with pytest.warns(UserWarning, match=rf"checkpoint-2: it has no {FILE}; the run goes on with new comp"):
        trainer.train(resume_from_checkpoint=str(between))
    assert trainer._step == 4


def test_nothing_is_missed_where_a_batch_begins(saved, tiny, tmp_path):
    checkpoint = shutil.copytree(saved[0] / "checkpoint-4", tmp_path / "checkpoint-4")
    (checkpoint / FILE).unlink()
    make(tmp_path / "run", tiny).train(resume_from_checkpoint=str(checkpoint))  # a warning would be an error


def test_a_batch_of_other_settings(between, tiny, tmp_path):
    trainer = make(tmp_path / "run", tiny, num_iterations=3, policy_loss="gspo")
    with pytest.warns(
        UserWarning, match="num_iterations was 4 and is 3, policy_loss was trl and is gspo; the run goes on"
    ):
        trainer.train(resume_from_checkpoint=str(between))
    assert trainer._step == 4


def test_a_damaged_batch(between, tiny, tmp_path):
    data = (between / FILE).read_bytes()
    (between / FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=rf"{FILE} cannot be loaded \(.+\): it is damaged; .* or delete it"):
        make(tmp_path / "run", tiny).train(resume_from_checkpoint=str(between))
