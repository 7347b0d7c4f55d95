"""Huber's loss: squared for small errors, linear for large ones.

Source: Huber, Robust Estimation of a Location Parameter, Annals of Mathematical Statistics 35, 1964
(https://doi.org/10.1214/aoms/1177703732). DQN clips its error to [-1, 1] to the same effect (Mnih et al., Human-level
control through deep reinforcement learning, Nature 518, 2015).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from rl_estimators.aggregation import aggregate_terms
from rl_estimators.backends.torch_blocks import compare
from rl_estimators.calls import register_value_loss
from rl_estimators.fields import check_range


@register_value_loss("huber", source="https://doi.org/10.1214/aoms/1177703732")
def huber(
    vpreds: Tensor,
    returns: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    delta: float = 1.0,
    global_batch_info: Mapping[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Half the squared error up to delta, and from there on a line of slope delta.

    .. math::
        L = \begin{cases}
            \tfrac12 e^2 & |e| \le \delta \\
            \delta (|e| - \tfrac12 \delta) & \text{otherwise}
        \end{cases}
        \qquad e = V - R

    The gradient is e clipped to [-delta, delta], so no single return can tear the critic away. The factor 1/2 is
    that of `mse` and `clipped`: where no error exceeds delta, this is `mse` to the last bit. That makes it
    :func:`torch.nn.functional.huber_loss`, and not ``smooth_l1_loss``, which divides by its beta.

    Args:
        vpreds: ``(B, T)`` values in training, in units of reward.
        returns: ``(B, T)`` targets.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        loss_agg_mode: See :func:`rl_estimators.aggregation.aggregate`.
        delta: The error at which the parabola becomes a line, at least 0, in units of reward.
        global_batch_info: See :func:`rl_estimators.aggregation.aggregate`.

    Returns:
        The loss, 0-dim, and metrics: ``vf_linear_frac`` (share of valid tokens on the linear part) and
        ``vpred_mean``.

    Raises:
        InputError: ``delta`` below 0, an unknown ``loss_agg_mode``.
    """
    check_range("huber", delta=delta)
    term = partial(_term, delta=delta)
    loss, (linear, mean) = aggregate_terms(
        term, vpreds, response_mask, loss_agg_mode, global_batch_info, returns
    )
    return loss, {"vf_linear_frac": linear, "vpred_mean": mean}


def _term(valid: Tensor, new: Tensor, target: Tensor, *, delta: float) -> tuple[Tensor, ...]:
    """A block's losses, their slopes, V - R but at most delta in size; where that is less; and the values."""
    error = new - target
    slopes, size = error.clamp(-delta, delta), error.abs_()
    near = slopes.abs()
    linear = compare("greater", size, delta)
    # both branches at once: no square that could overflow in either
    losses = size.sub_(near, alpha=0.5).mul_(near)
    return losses, slopes, linear, new
