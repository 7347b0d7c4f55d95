"""The disk is full while a checkpoint is written: an error, the one before is whole, and a run from it is exact."""

import hashlib
import os
import resource
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import test_critic_checkpoint as checkpoints  # noqa: E402
import toy  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from faults import fills_disk  # noqa: E402
from rl_estimators.errors import CheckpointError, InputError  # noqa: E402
from rl_estimators.trl import EstimatorConfig, EstimatorTrainer  # noqa: E402

FULL = r"{} cannot be written \(.+\): the disk may be full; make room, and resume from the last whole"
SAVING = fills_disk.SAVING


class FullFrom(TrainerCallback):
    """From a step on no file gets longer than ``size`` bytes: what the system calls answer is an error.

    Stands in for a full disk where a test has no rights to make one; the writers see the same kind of failure.
    """

    def __init__(self, step, size):
        self.step, self.size = step, size
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            self.begin()

    def begin(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def end(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def digests(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def sizes(folder):
    return {
        str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()
    }


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """An uninterrupted run, and the sizes of a checkpoint's files."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = checkpoints.make(folder, tiny, **SAVING)
    trainer.train()
    return checkpoints.everything(trainer), sizes(folder / "checkpoint-6")


@pytest.mark.parametrize("hit", ["critic/model.safetensors", "critic/optimizer.pt"])
def test_full_while_the_critic_is_written(tiny, tmp_path, whole, hit):
    """Nothing that looks like a critic is left; the checkpoint before is untouched, though but one was to be kept."""
    expected, size = whole
    limit = size[hit] - 1
    # the weights fit into what the optimizer's states do not fit into
    assert (size["critic/model.safetensors"] > limit) == (hit == "critic/model.safetensors")
    run = tmp_path / "run"
    trainer = checkpoints.make(run, tiny, **SAVING)
    full = FullFrom(4, limit)
    before = {}

    class Noting(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                before.update(digests(run / "checkpoint-2"))

    trainer.add_callback(Noting())
    trainer.add_callback(full)
    try:
        with pytest.raises(CheckpointError, match=FULL.format("checkpoint-4/critic")):
            trainer.train()
    finally:
        full.end()
    assert before
    assert digests(run / "checkpoint-2") == before
    assert not (run / "checkpoint-4" / "critic").exists()
    with pytest.raises(
        InputError, match=r"checkpoint-4 cannot be resumed from: .*; resume from .*checkpoint-2$"
    ):
        checkpoints.make(run, tiny, **SAVING).train(resume_from_checkpoint=True)
    resumed = checkpoints.make(run, tiny, **SAVING)
    resumed.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    checkpoints.equal(checkpoints.everything(resumed), expected)
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-6"}


def on_a_disk(size, folder, *command):
    """Run a command that has a disk of so many bytes at ``folder``; skip where that is not allowed."""
    mount = 'mount -t tmpfs -o size="$0" none "$1" && shift && exec "$@"'
    disk = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, str(size), str(folder)]
    if not shutil.which("unshare") or subprocess.run([*disk, "true"], capture_output=True).returncode:
        pytest.skip("no rights to mount a disk")
    return subprocess.run(
        [*disk, *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def room(sizes):
    """What files of these sizes take on such a disk: whole pages, and one for each folder."""
    return sum(-(-size // 4096) * 4096 for size in sizes) + 16 * 4096


@pytest.mark.parametrize("hit", ["critic", "policy"])
def test_a_disk_that_is_full(tiny, tmp_path, whole, hit):
    """A real one: room for a checkpoint, and for half of the next critic or of the next policy's optimizer."""
    expected, size = whole
    critics = [size[name] for name in size if name.startswith("critic/")]
    second = [size["critic/model.safetensors"], size["critic/optimizer.pt"] // 2]
    if hit == "policy":
        second = [*critics, size["model.safetensors"], size["optimizer.pt"] // 2]
    disk, kept = tmp_path / "disk", tmp_path / "run"
    disk.mkdir()
    command = [sys.executable, fills_disk.__file__, tiny, disk, kept]
    done = on_a_disk(room([*size.values(), *second]), disk, *command)
    assert done.returncode == 0, done.stderr
    error = done.stdout.splitlines()[-1]
    assert error.startswith("CheckpointError ") == (hit == "critic"), error
    assert (kept / "checkpoint-4" / "critic" / "optimizer.pt").is_file() == (hit == "policy")
    with pytest.raises(
        InputError, match=r"checkpoint-4 cannot be resumed from: .*; resume from .*checkpoint-2$"
    ):
        checkpoints.make(kept, tiny, **SAVING).train(resume_from_checkpoint=True)
    resumed = checkpoints.make(kept, tiny, **SAVING)
    resumed.train(resume_from_checkpoint=str(kept / "checkpoint-2"))
    checkpoints.equal(checkpoints.everything(resumed), expected)


def test_without_a_critic_it_is_the_trainers_own_error(tiny, tmp_path):
    """No silent start from half a checkpoint there either."""
    fields = toy.settings(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    toy.make(EstimatorTrainer, EstimatorConfig(**fields), tiny).train()
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    trainer = toy.make(EstimatorTrainer, EstimatorConfig(**fields), tiny)
    with pytest.raises(Exception, match=r"checkpoint-4.*trainer_state\.json"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 0


def test_full_while_the_critic_is_exported(tiny, tmp_path):
    """`save_model`: what was in the folder stays."""
    trainer = checkpoints.make(tmp_path, tiny, max_steps=1, save_strategy="no")
    trainer.train()
    trainer.save_model()
    before = digests(tmp_path / "critic")
    full = FullFrom(1, 1000)
    full.begin()
    try:
        with pytest.raises(CheckpointError, match=FULL.format("critic")):
            trainer.save_model()
    finally:
        full.end()
    kept = digests(tmp_path / "critic")
    assert {name: kept[name] for name in before} == before
