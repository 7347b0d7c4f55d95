"""Value losses, one per file: what the critic minimises. Importing registers them."""

from rl_estimators.value_losses.clipped import clipped
from rl_estimators.value_losses.huber import huber
from rl_estimators.value_losses.mse import mse

__all__ = ["clipped", "huber", "mse"]
