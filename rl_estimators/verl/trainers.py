"""Which of verl's trainers a configuration is for."""

from typing import Any

__all__ = ["EXTERNAL_LIB", "is_complete", "is_experimental", "loads_more"]

EXTERNAL_LIB = "actor_rollout_ref.model.external_lib"
_MODULES = (  # where verl 0.9's configuration names files and modules of the user's, but for reward functions
    EXTERNAL_LIB,
    "critic.model.external_lib",
    "data.custom_cls.path",
    "trainer.v1.sampler.custom_sampler.path",
    "reward.reward_manager.module.path",
    "actor_rollout_ref.rollout.agent.agent_loop_config_path",
    "actor_rollout_ref.rollout.agent.custom_async_server.path",
    "actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module",
)


def is_experimental(config: Any) -> bool:
    """Whether it is for ``verl/experimental``, whose configurations place the rollout in a node of its own.

    Those trainers take no value loss and decode nothing greedily: they build their critic and their batches
    without the functions that our hooks replace. In verl 0.9.1 no critic at all starts there: its worker has no
    ``init_model``, which both of them call.
    """
    return config.get("rollout") is not None


def is_complete(config: Any) -> bool:
    """Whether it is a whole configuration of ``main_ppo``, for verl's own trainers, and no part of one."""
    sections = ("trainer", "algorithm", "actor_rollout_ref", "data")
    return all(config.get(name) is not None for name in sections) and not is_experimental(config)


def loads_more(config: Any) -> bool:
    """Whether verl will import a module of the user's later than now, which may register anything."""
    from omegaconf import OmegaConf

    return any(OmegaConf.select(config, key) is not None for key in _MODULES)
