"""verl's own keys for options of ours that have the same name and the same meaning.

verl's losses read their options from the actor's configuration, some from ``actor_rollout_ref.actor`` itself and some
from its ``policy_loss``. A loss of ours that takes an option of that name gets the value that stands there, as it gets
verl's clip ratios, so that ``loss_mode=rle_sapo`` and ``loss_mode=sapo`` train with the same numbers. verl's defaults are
the papers', but for ``ppo_kl_coef``: 0.1, where the paper and `kl_cov` have 1.
"""

from collections.abc import Mapping
from typing import Any

from rl_estimators.registry import Spec

__all__ = ["OF_ACTOR", "OF_POLICY_LOSS", "options_of_verl"]

OF_ACTOR = ("tau_pos", "tau_neg")
OF_POLICY_LOSS = ("clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio", "ppo_kl_coef")


def options_of_verl(spec: Spec, actor: Any) -> Mapping[str, Any]:
    """What verl's configuration says about the options of a policy loss, its clip ratios aside.

    Args:
        spec: The loss.
        actor: verl's actor configuration, as ``DictConfig`` or ``ActorConfig``.

    Returns:
        Option by name; nothing for what the loss does not take or verl leaves null.
    """
    own = actor.get("policy_loss")
    found = {name: actor.get(name) for name in OF_ACTOR}
    found |= {name: own.get(name) for name in OF_POLICY_LOSS} if own is not None else {}
    return {name: value for name, value in found.items() if name in spec.options and value is not None}
