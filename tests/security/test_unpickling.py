"""Nothing that a user may have downloaded is unpickled: a planted object is refused where we read a file, and not run."""

import pytest
import torch
from security.planted import poisons, sets_off

from rl_estimators import cli
from rl_estimators.errors import InputError

HOW = ("torch.save", "torch.save before 1.6", "pickle")


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "unpickled"


@pytest.fixture(params=HOW)
def poison(request, marker):
    yield poisons(marker)[request.param]
    assert not marker.exists()


@pytest.mark.parametrize("how", HOW)
def test_the_planted_object_works(marker, how):
    """Else the other tests would show nothing."""
    assert sets_off(how, marker)


@pytest.mark.trl
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "model.safetensors"])
def test_a_critics_checkpoint(tmp_path, poison, name):
    pytest.importorskip("trl")
    from rl_estimators.trl.critic import checkpoint

    folder, module, loaded = tmp_path / "critic", torch.nn.Linear(2, 1), []
    checkpoint.write(folder, module, {"optimizer.pt": {"state": {}}, "scheduler.pt": {"last_epoch": 1}})
    checkpoint.read(folder, module, loaded.append)
    assert len(loaded) == 1
    (folder / name).write_bytes(poison)
    with pytest.raises(
        InputError, match=rf"critic/{name} cannot be loaded \(.*\): it is damaged, or of a run"
    ):
        checkpoint.read(folder, module, loaded.append)
    assert len(loaded) == 1


@pytest.mark.trl
def test_a_generation_batch(tmp_path, poison):
    pytest.importorskip("trl")
    from rl_estimators.trl import rollouts

    file = tmp_path / "generation_batch_0.pt"
    file.write_bytes(poison)
    with pytest.raises(InputError, match=r"generation_batch_0\.pt cannot be loaded \(.*\): it is damaged"):
        rollouts._read(file)


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "jsonl", "parquet", "txt"])
def test_rollouts(tmp_path, poison, suffix, capsys):
    """Whatever a file calls itself, in every way to name it."""
    path = tmp_path / f"rollouts.{suffix}"
    path.write_bytes(poison)
    folder = [] if suffix == "txt" else [["compare", str(tmp_path)]]
    for words in (
        ["compare", str(path)],
        *folder,
        *(["compare", str(path), "--format", name] for name in ("verl", "trl", "jsonl", "tensors")),
    ):
        assert cli.main(words) == 2
        assert "rl-estimators compare: " in capsys.readouterr().err


def test_what_lies_beside_a_runs_log(tmp_path, poison, capsys):
    pytest.importorskip("tensorboard")
    (tmp_path / "log.jsonl").write_text('{"step": 1, "data": {"critic/score/mean": 1.0}}\n')
    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth", "events.out.tfevents.1"):
        (tmp_path / name).write_bytes(poison)
    cli.main(["plot", str(tmp_path), "--list"])
    capsys.readouterr()
