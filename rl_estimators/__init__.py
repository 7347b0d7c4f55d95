"""Advantage estimators, policy losses and value losses for training language models with verl and TRL.

The policy gradient with the raw return has two flaws: absolute returns make it noisy, and one return for
a whole response is coarse credit. `rl_estimators.estimators` holds the answers; a policy loss turns their
advantages into a gradient, a value loss trains the critic of those that have one.

    >>> import rl_estimators
    >>> "reinforce_pp" in rl_estimators.list_adv_est()
    True

`rl_estimators.shaping` changes rewards before an estimator sees them; `rl_estimators.lab` measures estimators
against the true gradient of a tiny language.
"""

from importlib.metadata import version

import rl_estimators.estimators
import rl_estimators.policy_losses
import rl_estimators.value_losses  # noqa: F401  these three register what the package ships
from rl_estimators.calls import (
    estimate,
    get_adv_est,
    get_policy_loss,
    get_value_loss,
    list_adv_est,
    list_policy_loss,
    list_value_loss,
    policy_loss,
    register_adv_est,
    register_policy_loss,
    register_value_loss,
    value_loss,
)
from rl_estimators.diagnostics import diagnose
from rl_estimators.errors import EstimatorError
from rl_estimators.metrics import collect_metrics
from rl_estimators.registry import Estimate
from rl_estimators.shaping import (
    AdaptiveKLController,
    FixedKLController,
    kl_in_reward,
    kl_penalty,
    overlong_penalty,
)

__all__ = [
    "AdaptiveKLController",
    "Estimate",
    "EstimatorError",
    "FixedKLController",
    "collect_metrics",
    "diagnose",
    "estimate",
    "get_adv_est",
    "get_policy_loss",
    "get_value_loss",
    "kl_in_reward",
    "kl_penalty",
    "list_adv_est",
    "list_policy_loss",
    "list_value_loss",
    "overlong_penalty",
    "policy_loss",
    "register_adv_est",
    "register_policy_loss",
    "register_value_loss",
    "value_loss",
]
__version__ = version("rl-estimators")
