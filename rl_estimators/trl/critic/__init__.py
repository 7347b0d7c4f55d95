"""The critic: which one a trainer gets."""

from typing import TYPE_CHECKING

from torch import nn

from rl_estimators.trl.critic import support
from rl_estimators.trl.critic.base import Critic
from rl_estimators.trl.critic.separate import SeparateCritic
from rl_estimators.trl.critic.shared import SharedCritic

if TYPE_CHECKING:
    from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["Critic", "make_critic"]


def make_critic(trainer: "EstimatorTrainer", value_model: nn.Module | None) -> Critic:
    """The critic that ``config.critic`` asks for.

    Args:
        trainer: The trainer, complete but for the critic.
        value_model: A model of the user's to train as critic.

    Raises:
        InputError: settings that a critic does not support.
    """
    support.check(trainer, value_model)
    return SharedCritic(trainer) if trainer.args.critic == "shared" else SeparateCritic(trainer, value_model)
