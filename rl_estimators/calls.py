"""The functions that users and framework adapters call: register, get, list and run, for each registry."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from rl_estimators.backends import packed, use_backend
from rl_estimators.carry import carry_rewards
from rl_estimators.errors import DefinitionError
from rl_estimators.fields import check, check_choice
from rl_estimators.registry import ADV_ESTIMATORS, POLICY_LOSSES, VALUE_LOSSES, Estimate, Registry

__all__ = [
    "OF_ESTIMATE",
    "estimate",
    "get_adv_est",
    "get_policy_loss",
    "get_value_loss",
    "list_adv_est",
    "list_policy_loss",
    "list_value_loss",
    "policy_loss",
    "register_adv_est",
    "register_policy_loss",
    "register_value_loss",
    "value_loss",
]

OF_ESTIMATE = ("masked_rewards", "backend")  # options of `estimate` itself, whatever the estimator
register_adv_est = ADV_ESTIMATORS.register
register_policy_loss = POLICY_LOSSES.register
register_value_loss = VALUE_LOSSES.register
list_adv_est = ADV_ESTIMATORS.names
list_policy_loss = POLICY_LOSSES.names
list_value_loss = VALUE_LOSSES.names


def get_adv_est(name: str) -> Callable[..., Any]:
    """The function registered as advantage estimator ``name``, unchanged.

    :func:`estimate` also checks its inputs and keeps gradients out.
    """
    return ADV_ESTIMATORS.spec(name).function


def get_policy_loss(name: str) -> Callable[..., Any]:
    """The function registered as policy loss ``name``, unchanged; :func:`policy_loss` also checks its inputs."""
    return POLICY_LOSSES.spec(name).function


def get_value_loss(name: str) -> Callable[..., Any]:
    """The function registered as value loss ``name``, unchanged; :func:`value_loss` also checks its inputs."""
    return VALUE_LOSSES.spec(name).function


def estimate(
    name: str,
    *,
    token_level_rewards: Tensor,
    response_mask: Tensor,
    masked_rewards: Literal["drop", "carry"] = "drop",
    backend: str | None = None,
    **inputs_and_options: Any,
) -> Estimate:
    """Compute advantages and returns with the estimator ``name``.

    Args:
        name: One of :func:`list_adv_est`.
        token_level_rewards: ``(B, T)`` reward of each token.
        response_mask: ``(B, T)``, 1 on the tokens the policy wrote and 0 elsewhere, in any dtype.
        masked_rewards: What becomes of rewards at masked positions, whatever the estimator: with ``"drop"`` they do
            not count; with ``"carry"`` each goes to the last valid token before it, see
            :func:`~rl_estimators.carry.carry_rewards`. In verl ``"carry"`` is the default; in TRL the trainer always
            carries them. Of verl's own estimators those that compare within a group count them and the others drop them.
        backend: ``"torch"``, ``"numba"`` or ``"triton"``, whatever ``RL_ESTIMATORS_BACKEND`` says; None: see
            :mod:`rl_estimators.backends.choose`.
        **inputs_and_options: Further inputs (see :data:`rl_estimators.fields.FIELDS`) and the estimator's own
            options. Inputs it does not ask for are left aside, so one call serves every estimator.

    Returns:
        ``(advantages, returns)``, each ``(B, T)``, 0 on masked positions, without a gradient.

    Raises:
        UnknownNameError: no such estimator.
        InputError: an input is missing or does not fit; an option, ``masked_rewards`` or ``backend`` is unknown.

    Example:
        >>> import rl_estimators, torch
        >>> rewards, mask = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.ones(2, 2)
        >>> rl_estimators.estimate("grpo", token_level_rewards=rewards, response_mask=mask, index=["q", "q"],
        ...     norm_by_std=False).advantages
        tensor([[ 0.5000,  0.5000],
                [-0.5000, -0.5000]])
    """
    spec = ADV_ESTIMATORS.spec(name)
    check_choice(spec.name, "masked_rewards", masked_rewards, ("drop", "carry"))
    mask, carry = response_mask, masked_rewards == "carry"
    # An advantage is a weight: no gradient may leak through the critic's values.
    with torch.no_grad(), use_backend(backend):
        if carry or spec.is_ours:
            mask = packed(response_mask)
        if carry:
            check(spec.name, {"token_level_rewards": token_level_rewards, "response_mask": mask}, ())
            token_level_rewards = carry_rewards(token_level_rewards, mask)
        given = {
            "token_level_rewards": token_level_rewards,
            "response_mask": mask if spec.is_ours else response_mask,  # a user's function gets it as it is
            **inputs_and_options,
        }
        result = spec(given, also=OF_ESTIMATE)
    return _estimate(spec.name, result, token_level_rewards)


def _estimate(name: str, result: Any, rewards: Tensor) -> Estimate:
    if not (isinstance(result, (tuple, list)) and len(result) == 2):
        raise DefinitionError(
            f"advantage estimator {name!r} returned {type(result).__name__}, expected (advantages, returns)"
        )
    for label, tensor in zip(("advantages", "returns"), result, strict=True):
        if not isinstance(tensor, Tensor) or tensor.shape != rewards.shape:
            found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise DefinitionError(
                f"advantage estimator {name!r} returned {found} as {label}, expected a tensor {tuple(rewards.shape)}"
            )
    return Estimate(*result)


def policy_loss(
    name: str,
    *,
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str | None = None,
    **options: Any,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Compute the policy loss ``name``: a 0-dim tensor to minimise, and metrics as 0-dim tensors.

    Args:
        name: One of :func:`list_policy_loss`.
        old_log_prob: ``(B, T)`` log-probabilities (nats) before the update.
        log_prob: ``(B, T)`` log-probabilities in training, with their gradient.
        advantages: ``(B, T)``.
        response_mask: ``(B, T)``, 1 on the tokens the policy wrote and 0 elsewhere, in any dtype.
        loss_agg_mode: See :func:`rl_estimators.aggregation.aggregate`; None: the function's own default,
            the paper's, see :mod:`rl_estimators.policy_losses`.
        **options: The loss's own options, ``rollout_is_weights`` and ``global_batch_info``.

    Raises:
        UnknownNameError: no such loss.
        InputError: an input is missing or does not fit; an option is unknown.
    """
    given = {
        "old_log_prob": old_log_prob,
        "log_prob": log_prob,
        "advantages": advantages,
        "response_mask": response_mask,
        "loss_agg_mode": loss_agg_mode,
        **options,
    }
    return _run_loss(POLICY_LOSSES, name, given)


def value_loss(
    name: str,
    *,
    vpreds: Tensor,
    values: Tensor,
    returns: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str | None = None,
    **options: Any,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Compute the value loss ``name``: a 0-dim tensor to minimise, and metrics as 0-dim tensors.

    Args:
        name: One of :func:`list_value_loss`.
        vpreds: ``(B, T)`` the critic's values in training, with their gradient.
        values: ``(B, T)`` the critic's values when the rollouts were made.
        returns: ``(B, T)`` the critic's targets.
        response_mask: ``(B, T)``, 1 on the tokens the policy wrote and 0 elsewhere, in any dtype.
        loss_agg_mode: See :func:`rl_estimators.aggregation.aggregate`; None: the function's own default, ``token-mean`` in
            all of ours.
        **options: The loss's own options, and ``global_batch_info``.

    Raises:
        UnknownNameError: no such loss.
        InputError: an input is missing or does not fit; an option is unknown.
    """
    given = {
        "vpreds": vpreds,
        "values": values,
        "returns": returns,
        "response_mask": response_mask,
        "loss_agg_mode": loss_agg_mode,
        **options,
    }
    return _run_loss(VALUE_LOSSES, name, given)


def _run_loss(registry: Registry, name: str, given: dict[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
    spec = registry.spec(name)
    if spec.is_ours:
        given["response_mask"] = packed(given["response_mask"])
    own_way = "loss_agg_mode" not in spec.options and not spec.takes_config
    if given["loss_agg_mode"] is None or (given["loss_agg_mode"] == "token-mean" and own_way):
        del given["loss_agg_mode"]  # nobody asked, or a framework passes its default on
    result = spec(given)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)):
        raise DefinitionError(
            f"{registry.kind} {spec.name!r} returned {type(result).__name__}, expected (loss, metrics)"
        )
    loss, metrics = result
    if not isinstance(loss, Tensor) or loss.ndim:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"type {type(loss).__name__}"
        raise DefinitionError(
            f"{registry.kind} {spec.name!r} returned a loss of {found}, expected a 0-dim tensor"
        )
    return loss, metrics
