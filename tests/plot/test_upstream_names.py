"""The table of names against what verl and TRL really log."""

import inspect
from pathlib import Path

import numpy as np
import pytest

from rl_estimators import cli
from rl_estimators.files.problems import Problems
from rl_estimators.plot.concepts import CONCEPTS
from rl_estimators.plot.find import load

OURS = {"critic/explained_variance"}  # of the trainers in rl_estimators.trl
NOT_IN_A_PPO_RUN = {"cispo_clip_ratio"}  # of TRL's own loss_type="cispo"


@pytest.mark.verl
def test_each_name_of_verl_stands_in_its_source():
    """Where a metric is made: the steps of both trainers, the losses, the metrics of the data."""
    import verl

    folder = Path(verl.__file__).parent
    files = [
        *("trainer/ppo/metric_utils.py", "trainer/ppo/ray_trainer.py", "trainer/ppo/core_algos.py"),
        *("trainer/ppo/v1/trainer_base.py", "workers/utils/losses.py"),
    ]
    sources = "\n".join((folder / file).read_text() for file in files)
    for concept in CONCEPTS:
        for name in concept.verl:
            assert f'"{name}"' in sources or name == "actor/kl_loss", name


@pytest.mark.verl
@pytest.mark.filterwarnings("ignore")
def test_the_name_that_verl_puts_together():
    """Its actor's loss says ``kl_loss``, and its trainers put ``actor/`` before what does not have it yet."""
    from verl.trainer.ppo import ray_trainer
    from verl.trainer.ppo.v1 import trainer_base
    from verl.utils.py_functional import rename_dict
    from verl.workers.utils import losses

    assert 'metrics["kl_loss"] =' in inspect.getsource(losses)
    assert 'output = rename_dict(output["metrics"], "actor/")' in inspect.getsource(trainer_base)
    assert 'actor_output = rename_dict(actor_output, "actor/")' in inspect.getsource(ray_trainer)
    assert [*rename_dict({"kl_loss": 1, "actor/pg_clipfrac": 2}, "actor/")] == [
        "actor/kl_loss",
        "actor/pg_clipfrac",
    ]


@pytest.mark.verl
@pytest.mark.filterwarnings("ignore")
def test_names_in_verls_metrics_of_a_batch():
    import torch
    from verl import DataProto
    from verl.trainer.ppo.metric_utils import compute_data_metrics

    rows, width = 4, 6
    random = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.rand(rows, width, generator=random)
        for name in ("token_level_scores", "token_level_rewards", "advantages", "returns", "values")
    }
    mask = torch.ones(rows, 2 * width, dtype=torch.long)
    tokens = {
        "prompts": mask[:, :width],
        "responses": mask[:, :width],
        "attention_mask": mask,
        "response_mask": mask[:, :width],
    }
    logged = compute_data_metrics(DataProto.from_single_dict({**tensors, **tokens}), use_critic=True)
    for name in ("reward", "explained_variance", "response_length"):
        (concept,) = (concept for concept in CONCEPTS if concept.name == name)
        assert set(concept.verl) <= logged.keys()


@pytest.mark.verl
def test_a_log_of_verls_own_tracking(tmp_path, monkeypatch, capsys):
    from verl.utils.tracking import Tracking

    pytest.importorskip("tensorboard")
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "log.jsonl"))
    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path / "board"))
    tracking = Tracking("project", "experiment", ["file", "tensorboard"])
    for step in (1, 2, 3):
        data = {"critic/score/mean": np.float32(step / 4), "actor/entropy": float("nan"), "perf/mfu": step}
        tracking.log(data, step)
    tracking.finish()
    capsys.readouterr()
    runs = load([tmp_path], Problems(strict=True))
    assert [run.name for run in runs] == ["board", "log"]
    for run in runs:
        assert run.metrics["critic/score/mean"].steps.tolist() == [1, 2, 3]
        assert run.metrics["critic/score/mean"].values.tolist() == [0.25, 0.5, 0.75]
        assert run.metrics["actor/entropy"].gaps.all()
    assert cli.main(["plot", str(tmp_path), "--list"]) == 0
    assert capsys.readouterr().out == "actor/entropy\ncritic/score/mean\nperf/mfu\n"


def first_token(completion_ids, **_):
    """A reward that differs among the answers of a model that has learned nothing."""
    return [float(ids[0] % 2) for ids in completion_ids]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which PPO has trained in TRL for two steps."""
    pytest.importorskip("trl")
    pytest.importorskip("tensorboard")
    import toy

    from rl_estimators.trl import PPOConfig, PPOTrainer

    folder = tmp_path_factory.mktemp("trl")
    steps, toy.WARM_UP_STEPS = toy.WARM_UP_STEPS, 2
    try:
        toy.build(folder / "model")
    finally:
        toy.WARM_UP_STEPS = steps
    wanted = {
        "report_to": "tensorboard",
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 2,
        "beta": 0.05,
        "num_iterations": 1,
    }
    config = PPOConfig(**toy.settings(folder / "out", **wanted))
    run = toy.train(PPOTrainer, config, folder / "model", reward_funcs=first_token)
    return folder / "out", run.trainer.state.log_history


@pytest.mark.trl
@pytest.mark.filterwarnings("ignore")
class TestTRL:
    def test_names(self, trained):
        _, history = trained
        logged = {name for row in history for name in row}
        names = {name for concept in CONCEPTS for name in concept.trl}
        assert names - NOT_IN_A_PPO_RUN <= logged
        assert names >= OURS

    def test_the_name_that_only_another_loss_logs(self):
        from trl import GRPOTrainer

        for name in NOT_IN_A_PPO_RUN:
            assert f'"{name}"' in inspect.getsource(GRPOTrainer)

    def test_both_logs_of_a_run_hold_the_same(self, trained, capsys, tmp_path):
        folder, history = trained
        state = folder / "checkpoint-2" / "trainer_state.json"
        (events,) = load([folder / "runs"], Problems(strict=True))
        (kept,) = load([state], Problems(strict=True))
        for name in ("reward", "kl", "entropy", "completions/mean_length", "critic/explained_variance"):
            expected = [row[name] for row in history if name in row]
            np.testing.assert_array_equal(kept.metrics[name].values, np.array(expected, dtype=float))
            np.testing.assert_allclose(events.metrics[name].values, kept.metrics[name].values, rtol=1e-6)
        assert cli.main(["plot", str(folder), "-o", str(tmp_path / "x.png")]) == 0
        printed = capsys.readouterr()
        curves = [line.split()[:3] for line in printed.out.splitlines()[1:-1]]
        assert curves == [[concept.name, "out", "2"] for concept in CONCEPTS]
        assert "its trainer_state.json is left out: the event files in" in printed.err
