"""verl's experimental trainers: what they cannot give is said at start, on their own configurations and classes."""

import functools
import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest

from rl_estimators.errors import InputError

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

TRAINERS = {
    "one_step_off_policy": "one_step_off_ppo_trainer",
    "fully_async_policy": "fully_async_ppo_trainer",
}
OVERRIDES = ["hydra.searchpath=[pkg://verl.trainer.config]", "actor_rollout_ref.rollout.n=2"]
VALUE = ["critic.enable=True", "+rl_estimators.value_loss.name=huber"]
NO_VALUE_LOSS = (
    r"rl_estimators.value_loss.name=huber: this configuration has a top-level key rollout, so it is for verl's "
    r"experimental trainers, and those give their critic no loss of ours; remove rl_estimators.value_loss, or train with "
    r"verl.trainer.main_ppo"
)
NO_BASELINES = (
    r"algorithm.adv_estimator=rle_remax needs reward_baselines \(.*\). This configuration has a top-level key rollout, "
    r"so it is for verl's experimental trainers, and those do not provide them; train with verl.trainer.main_ppo"
)


@pytest.fixture(scope="module")
def compose(overridden):
    """A trainer's own configuration, whose ``searchpath`` is written for verl's repository as working directory."""
    pytest.importorskip("verl.trainer.ppo.core_algos")
    from hydra import compose, initialize_config_dir

    @functools.cache
    def stock(trainer):
        folder = Path(importlib.util.find_spec("verl").origin).parent / "experimental" / trainer / "config"
        with initialize_config_dir(str(folder), version_base=None):
            return compose(TRAINERS[trainer], overrides=OVERRIDES)

    return lambda trainer, *overrides: overridden(stock(trainer), *overrides)


def need_critic(config):
    from verl.trainer.ppo.utils import need_critic

    return need_critic(config)


@pytest.mark.parametrize("trainer", TRAINERS)
class TestAtStart:
    def test_estimators_and_policy_losses_are_taken(self, compose, trainer):
        config = compose(
            trainer, "algorithm.adv_estimator=rle_grpo", "+rl_estimators.policy_loss.name=ppo_clip"
        )
        assert need_critic(config) is False
        assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "rle_ppo_clip"

    def test_a_value_loss(self, compose, trainer):
        config = compose(trainer, "algorithm.adv_estimator=rle_grpo", *VALUE)
        with pytest.raises(InputError, match=NO_VALUE_LOSS):
            need_critic(config)

    def test_greedy_responses(self, compose, trainer):
        with pytest.raises(InputError, match=NO_BASELINES):
            need_critic(compose(trainer, "algorithm.adv_estimator=rle_remax"))

    def test_verls_own_remax_is_verls(self, compose, trainer):
        assert need_critic(compose(trainer, "algorithm.adv_estimator=remax")) is False


def test_main_ppos_configuration_is_another(compose):
    from hydra import compose as compose_config
    from hydra import initialize_config_module

    from rl_estimators.verl.trainers import is_experimental

    with initialize_config_module("verl.trainer.config", version_base=None):
        assert not is_experimental(compose_config("ppo_trainer"))
    assert all(is_experimental(compose(trainer)) for trainer in TRAINERS)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("one_step_off_policy.ray_trainer", "OneStepOffRayTrainer"),
        ("fully_async_policy.fully_async_trainer", "FullyAsyncTrainer"),
    ],
)
@pytest.mark.parametrize(
    ("overrides", "message"),
    [(VALUE, NO_VALUE_LOSS), (["algorithm.adv_estimator=rle_remax"], NO_BASELINES)],
)
def test_the_trainers_ask_before_they_build_anything(compose, module, name, overrides, message):
    """Their real ``__init__``, which has no dataset, tokenizer or Ray at that point."""
    found = importlib.import_module(f"verl.experimental.{module}")
    trainer = getattr(found, name)
    trainer = getattr(getattr(trainer, "__ray_metadata__", None), "modified_class", trainer)
    config = compose(module.partition(".")[0], "actor_rollout_ref.hybrid_engine=False", *overrides)
    with pytest.raises(InputError, match=message):
        trainer(config, tokenizer=None, role_worker_mapping={}, resource_pool_manager=None)


def test_why_there_is_no_value_loss(compose):
    """Their critic cannot start in this release: once it can, a hook of ours may give it a loss."""
    from verl.workers.engine_workers import TrainingWorker

    for module, name in (
        ("one_step_off_policy.ray_trainer", "OneStepOffRayTrainer"),
        ("fully_async_policy.fully_async_trainer", "FullyAsyncTrainer"),
    ):
        trainer = getattr(importlib.import_module(f"verl.experimental.{module}"), name)
        trainer = getattr(getattr(trainer, "__ray_metadata__", None), "modified_class", trainer)
        assert "self.critic_wg.init_model()" in inspect.getsource(trainer._init_models)
    assert not hasattr(TrainingWorker, "init_model")
