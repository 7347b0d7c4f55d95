"""A run that was interrupted goes on as if it had not been; a checkpoint that cannot do that says so."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import critics  # noqa: E402
import killed  # noqa: E402
import torch  # noqa: E402
import toy  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from rl_estimators.errors import InputError  # noqa: E402
from rl_estimators.trl.critic import checkpoint  # noqa: E402

SAVING = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "linear"}
CASES = {
    "separate": {},
    "shared": {"critic": "shared"},
    "warming_up": {"critic_warmup_steps": 3, "kl_in_reward": True, "beta": 0.05},
    # 8 micro-batches a generation, 2 an optimizer step: a new one each 4 steps
    "several_passes": {
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": 2,
        "max_steps": 8,
        "save_steps": 4,
    },
    "between_two_generations": {
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": 2,
        "max_steps": 8,
        "save_steps": 3,
    },
    "ppos_four_passes": {"num_iterations": 4, "max_steps": 9},
}


def make(folder, tiny, **fields):
    return toy.make(critics.PPOTrainer, critics.config(folder, **(SAVING | fields)), tiny)


def everything(trainer):
    """Weights, optimizers and schedules of policy and critic, and the log."""
    updates = trainer.critic.updates
    return {
        "policy": toy.weights(trainer),
        "policy's optimizer": trainer.optimizer.state_dict(),
        "critic": trainer.critic.module.state_dict(),
        "optimizer": updates.optimizer.state_dict(),
        "schedule": updates.scheduler.state_dict(),
        "log": [row for row in toy.logged(trainer) if "critic/lr" in row],
    }


def equal(one, other, where=""):
    """Assert equality to the bit, all the way down."""
    if isinstance(other, dict):
        assert one.keys() == other.keys(), where
        for name in other:
            equal(one[name], other[name], f"{where}/{name}")
    elif isinstance(other, list):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            equal(a, b, f"{where}/{number}")
    elif isinstance(other, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """A folder with the checkpoints of an uninterrupted run, and what that run came to."""
    folder = tmp_path_factory.mktemp("saved")
    trainer = make(folder, tiny)
    trainer.train()
    return folder, everything(trainer)


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_resumed_equals_uninterrupted(tiny, tmp_path, fields):
    whole = make(tmp_path, tiny, **fields)
    whole.train()
    first = tmp_path / f"checkpoint-{whole.args.save_steps}"
    critic_then = load_file(first / "critic" / "model.safetensors")
    resumed = make(tmp_path / "resumed", tiny, **fields)
    resumed.train(resume_from_checkpoint=str(first))
    equal(everything(resumed), everything(whole))
    # Else the comparison would say nothing: both went on from there.
    now = whole.critic.module.state_dict()
    assert any(not torch.equal(now[name], critic_then[name]) for name in critic_then)


# ------------------------------------------------------------------------------------------------- outside checkpoints


@pytest.mark.parametrize("fields", [{}, {"critic": "shared"}], ids=["separate", "shared"])
def test_the_best_policy_has_its_critic(tiny, tmp_path, fields):
    """By a metric that grows with each step, and should not, the first step is the best."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_step", "eval_strategy": "steps"}
    best |= {"eval_steps": 1, "save_steps": 1, "max_steps": 3, "greater_is_better": False}

    trainer = make(tmp_path, tiny, **best, **fields)
    trainer.evaluate = lambda *_, **__: {"eval_step": trainer.state.global_step}
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    first, last = (load_file(tmp_path / f"checkpoint-{n}" / "critic" / "model.safetensors") for n in (1, 3))
    equal(dict(trainer.critic.module.state_dict()), first)
    assert any(not torch.equal(first[name], last[name]) for name in first)


def test_save_model_writes_the_critic(saved, tiny, tmp_path):
    """Beside the policy's weights, not in place of what is in the folder; and a new critic starts from it."""
    trainer = make(tmp_path, tiny, max_steps=1, save_strategy="no")
    trainer.train()
    (tmp_path / "critic").mkdir()
    (tmp_path / "critic" / "notes").touch()
    trainer.save_model()
    names = {"model.safetensors", "config.json", "notes"}
    assert {file.name for file in (tmp_path / "critic").iterdir()} == names
    assert (tmp_path / "model.safetensors").is_file()
    equal(load_file(tmp_path / "critic" / "model.safetensors"), dict(trainer.critic.module.state_dict()))
    again = make(tmp_path / "again", tiny, critic_model_name_or_path=str(tmp_path / "critic"))
    assert trainer.critic.module.v_head.weight.any()
    equal(dict(again.critic.module.state_dict()), dict(trainer.critic.module.state_dict()))
    again.save_model(tmp_path / "other")
    assert (tmp_path / "other" / "critic" / "model.safetensors").is_file()


def test_what_a_checkpoint_holds(saved, tiny):
    folder, end = saved
    critic = folder / "checkpoint-4" / "critic"
    assert {file.name for file in critic.iterdir()} == {
        "model.safetensors",
        "config.json",
        "optimizer.pt",
        "scheduler.pt",
    }
    equal(load_file(critic / "model.safetensors"), dict(end["critic"]))
    assert {name.split(".")[0] for name in end["critic"]} == {"model", "v_head"}
    assert not list(folder.glob("checkpoint-*/critic.unfinished"))


def test_weights_without_optimizer(tiny, tmp_path):
    trainer = make(tmp_path, tiny, max_steps=2, save_only_model=True)
    trainer.train()
    critic = tmp_path / "checkpoint-2" / "critic"
    assert {file.name for file in critic.iterdir()} == {"model.safetensors", "config.json"}
    with pytest.raises(
        InputError, match=r"checkpoint-2/critic has weights but no optimizer, as save_only_model=True"
    ):
        make(tmp_path, tiny).train(resume_from_checkpoint=str(critic.parent))


def test_a_user_model_with_tied_weights(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(2, 2)
            self.b = torch.nn.Linear(2, 2)
            self.b.weight = self.a.weight

    first, second = Tied(), Tied()
    checkpoint.write(tmp_path / "critic", first, {"optimizer.pt": {}, "scheduler.pt": {}})
    checkpoint.read(tmp_path / "critic", second, lambda states: None)
    equal(dict(second.state_dict()), dict(first.state_dict()))
    assert second.b.weight is second.a.weight


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.fixture
def copied(saved, tmp_path):
    """Checkpoints 2 and 4, to be damaged."""
    for step in (2, 4):
        shutil.copytree(saved[0] / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    return tmp_path


def refused(folder, tiny, message, resume=True, **fields):
    trainer = make(folder, tiny, **fields)
    with pytest.raises(InputError, match=message):
        trainer.train(resume_from_checkpoint=resume)


def test_a_checkpoint_of_a_run_without_a_critic(copied, tiny):
    shutil.rmtree(copied / "checkpoint-4" / "critic")
    refused(
        copied,
        tiny,
        r"checkpoint-4 cannot be resumed from: it has no critic folder.*; resume from .*checkpoint-2$",
    )
    shutil.rmtree(copied / "checkpoint-2")
    refused(
        copied,
        tiny,
        r"no critic folder, so it is of a run without a critic; .* start anew, with model='.*-4' if",
    )


def test_an_unfinished_checkpoint(copied, tiny):
    (copied / "checkpoint-4" / "trainer_state.json").unlink()
    refused(
        copied, tiny, r"checkpoint-4 .*: it has no trainer_state.json, so the run was stopped .*checkpoint-2$"
    )


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt"])
def test_a_missing_and_a_damaged_file(copied, tiny, name):
    file = copied / "checkpoint-4" / "critic" / name
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    refused(
        copied,
        tiny,
        rf"critic/{name} cannot be loaded \(.+\): it is damaged, or of a run with another critic",
    )
    file.unlink()
    refused(copied, tiny, rf"critic has no {name}; resume from .*checkpoint-2$")


def test_a_checkpoint_of_another_critic(copied, tiny):
    refused(
        copied,
        tiny,
        r"model.safetensors cannot be loaded .*: it is damaged, or of a run with",
        critic="shared",
    )


def test_a_file_that_vanished_in_between(tmp_path):
    with pytest.raises(
        InputError, match=r"the checkpoint has no .*model.safetensors; resume from another one"
    ):
        checkpoint.read(tmp_path, torch.nn.Linear(1, 1), lambda states: None)


# --------------------------------------------------------------------------------------------------- killed while saving


def test_a_checkpoint_that_is_written_again_does_not_look_whole(copied):
    checkpoint.begin(copied / "checkpoint-4")
    with pytest.raises(InputError, match=r"no trainer_state\.json"):
        checkpoint.check(copied / "checkpoint-4")


def test_an_unfinished_critic_is_replaced(tmp_path):
    (tmp_path / "critic.unfinished").mkdir()
    (tmp_path / "critic.unfinished" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "critic").mkdir()
    (tmp_path / "critic" / "of_an_earlier_run").touch()
    checkpoint.write(tmp_path / "critic", torch.nn.Linear(1, 1), {})
    assert [path.name for path in tmp_path.iterdir()] == ["critic"]
    assert [path.name for path in (tmp_path / "critic").iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("where", killed.PLACES)
def test_killed_while_saving(tiny, tmp_path, where):
    """The last checkpoint is refused by name, the one before is there, and a run from it ends as if uninterrupted."""
    script = Path(killed.__file__)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tiny), str(tmp_path / "run"), where],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    refused(
        tmp_path / "run",
        tiny,
        r"checkpoint-4 cannot be resumed from.*resume from .*checkpoint-2$",
        **killed.SETTINGS,
    )
    whole, resumed = (make(tmp_path / name, tiny, **killed.SETTINGS) for name in ("whole", "run"))
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    equal(everything(resumed), everything(whole))
    # What was half written has been written anew, and counts again.
    assert (tmp_path / "run" / "checkpoint-6" / "critic" / "optimizer.pt").is_file()
    checkpoint.check(tmp_path / "run" / "checkpoint-6")
