"""Value losses, one per file: what the critic minimises. Importing registers them.

There is no distributional one (two-hot or HL-Gauss cross-entropy over bins). It needs a logit for each bin and token,
and the frameworks' critics have one number per token: verl builds them with ``num_labels=1`` and drops the last
dimension before a loss sees anything, so `vpreds` is ``(B, T)``. Nor can the bins be made up from that number: a
distribution around it whose shape is fixed has nothing to learn but its place. For Gaussians of one width that
cross-entropy is ``(V - R)**2 / (2 sigma**2)`` and a constant, which is `mse`. It would take another head, other values
in the checkpoint, and a reading of bins wherever values are used, in each framework. What it is wanted for, gradients
that one large return cannot blow up, `huber` gives without.
"""

from rl_estimators.value_losses.clipped import clipped
from rl_estimators.value_losses.huber import huber
from rl_estimators.value_losses.mse import mse

__all__ = ["clipped", "huber", "mse"]
