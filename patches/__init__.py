"""One file per hook into upstream code. Installs as ``rl_estimators.patches``; nothing imports it by statement.

Each file holds a `Patch`: what it replaces, what it was reviewed against, and when it can go.
"""

if __name__ != "rl_estimators.patches":
    raise ImportError(f"imported as {__name__!r}: install the package and use rl_estimators.patches")

from . import (
    verl_bootstrap,
    verl_cpu_offload_policy,
    verl_cpu_process_group,
    verl_critic_attention,
    verl_greedy_baselines,
    verl_greedy_colocated,
    verl_greedy_session,
    verl_inputs,
    verl_log,
    verl_metrics,
    verl_need_critic,
    verl_reward_model_extra,
    verl_sessions,
    verl_trl_value_head,
    verl_value_head_error,
    verl_value_loss_legacy,
    verl_value_loss_v1,
)

VERL = (
    verl_trl_value_head.PATCH,
    verl_value_head_error.PATCH,
    verl_need_critic.PATCH,
    verl_inputs.PATCH,
    verl_sessions.PATCH,
    verl_bootstrap.PATCH,
    verl_greedy_session.PATCH,
    verl_greedy_colocated.PATCH,
    verl_greedy_baselines.PATCH,
    verl_value_loss_v1.PATCH,
    verl_value_loss_legacy.PATCH,
    verl_metrics.PATCH,
    verl_log.PATCH,
    verl_reward_model_extra.PATCH,
    verl_cpu_process_group.PATCH,
    verl_critic_attention.PATCH,
    verl_cpu_offload_policy.PATCH,
)
