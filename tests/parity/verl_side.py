"""The recording through verl: its advantage step, its actor's loss and its critic's.

Real: verl's composed configuration, `DataProto`, `compute_advantage_for_multi_trajectories` with the hooks of the plugin,
`apply_kl_penalty`, `ppo_loss`, and `value_loss` with ours inside, on jagged tensors and counts as the FSDP engine hands
them to a loss. Fed: the columns of the batch, what its queue would answer about rewards, and the models' outputs.
"""

import functools
import importlib
from contextlib import contextmanager

import numpy as np
import torch

from parity import recorded
from rl_estimators.registry import ADV_ESTIMATORS

NAN = float("nan")
PROMPT = 2
ALL = tuple(range(recorded.ROWS))


@functools.cache
def stock():
    """What `main_ppo` composes."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", ["actor_rollout_ref.rollout.n=4"])


def algorithm(name):
    """verl's ``algorithm`` section as a user would set it for this estimator."""
    from omegaconf import OmegaConf, open_dict

    config = stock().algorithm.copy()
    known = ADV_ESTIMATORS.spec(name).options
    with open_dict(config):
        config.adv_estimator = f"rle_{name}"
        # verl's keys have a value always: where TRL leaves the default, it must be said here
        config.gamma = recorded.GAMMA if "gamma" in known else 1.0
        config.lam = recorded.LAM if "lam" in known else 1.0
        config.adv_estimator_kwargs = OmegaConf.create(recorded.OPTIONS.get(name, {}))
        if name == "gdpo":
            config.gdpo_reward_keys = list(recorded.NAMES)
            config.gdpo_reward_weights = list(recorded.WEIGHTS)
    return config


def padded(array, width, dirty=False):
    """A tensor of ``width`` columns, NaN in the added ones; with ``dirty`` also on what the policy did not write."""
    array = np.where(recorded.MASK, array, NAN) if dirty else np.where(recorded.WITHIN, array, NAN)
    more = np.full((recorded.ROWS, width - recorded.WIDTH), NAN)
    return torch.tensor(np.concatenate([array, more], axis=1), dtype=torch.float32)


def batch(name, width=recorded.WIDTH):
    """The columns of verl's batch, tensors and others; NaN in padding."""
    process = name != "gdpo"  # TRL's trainer refuses rewards of tokens there
    mask = np.concatenate([recorded.MASK, np.zeros((recorded.ROWS, width - recorded.WIDTH))], axis=1)
    tensors = {
        "token_level_scores": padded(recorded.rewards(process), width),
        "response_mask": torch.tensor(mask, dtype=torch.float32),
        "values": padded(recorded.VALUES, width, dirty=True),
        "old_log_probs": padded(recorded.OLD, width, dirty=True),
        "ref_log_prob": padded(recorded.REFERENCE, width, dirty=True),
        "truncated": torch.tensor(recorded.TRUNCATED),
        "bootstrap_values": torch.tensor(np.where(recorded.TRUNCATED, recorded.AFTER, NAN)).float(),
        "reward_baselines": torch.tensor(recorded.BASELINES),
    }
    tensors["token_level_rewards"] = tensors["token_level_scores"].clone()
    return tensors, {"uid": recorded.UIDS.copy()}


@contextmanager
def queue(rows):
    """verl's queue answers with what the reward functions returned beside the score of each of these rows."""
    found = importlib.import_module("transfer_queue")
    infos = [dict(zip(recorded.NAMES, recorded.COMPONENTS[row].tolist(), strict=True)) for row in rows]
    original = found.kv_batch_get
    found.kv_batch_get = lambda keys, partition_id, select_fields: {
        "extra_fields": [{"reward_extra_info": info} for info in infos[: len(keys)]]
    }
    try:
        yield
    finally:
        found.kv_batch_get = original


def advantages(name, width=recorded.WIDTH, rows=ALL, kl=None, keys=None, given=None):
    """``(advantages, returns)`` by verl's own advantage step.

    Args:
        name: One of ours; verl knows it as ``rle_NAME``.
        width: Columns of the batch.
        rows: Which rows, in which order.
        kl: verl's ``algorithm.kl_ctrl.kl_coef``, with the KL divergence in the rewards; None for none.
        keys: verl's keys of the rows; by default each row is a session of its own.
        given: The batch in place of :func:`batch`'s.
    """
    from verl import DataProto
    from verl.trainer.ppo.core_algos import FixedKLController
    from verl.trainer.ppo.ray_trainer import apply_kl_penalty
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    tensors, columns = given or batch(name, width)
    if kl is not None:  # verl multiplies by the mask, and NaN times 0 is NaN
        for column in ("old_log_probs", "ref_log_prob"):
            tensors[column] = tensors[column].nan_to_num(nan=0.0)
    rows = list(rows)
    data = DataProto.from_dict(
        tensors={key: tensor[rows].clone() for key, tensor in tensors.items()},
        non_tensors={key: column[rows] for key, column in columns.items()},
    )
    if kl is not None:
        data, _ = apply_kl_penalty(data, FixedKLController(kl), kl_penalty="kl")
    config = algorithm(name)
    keys = keys or [f"{uid}_{row}_0" for row, uid in enumerate(columns["uid"][rows])]
    with queue(rows):
        found = compute_advantage_for_multi_trajectories(
            data,
            keys,
            adv_estimator=config.adv_estimator,
            gamma=config.gamma,
            lam=config.lam,
            num_repeat=recorded.GROUP,
            norm_adv_by_std_in_grpo=config.norm_adv_by_std_in_grpo,
            config=config,
        ).batch
    return found["advantages"], found["returns"]


def jagged(array, rows):
    """The responses of some rows as verl's engines have them: nested, without padding."""
    columns = [torch.tensor(array[row, : recorded.LENGTHS[row]]) for row in rows]
    return torch.nested.as_nested_tensor(columns, layout=torch.jagged)


def micro_batch(rows, output, dp_size, **columns):
    """Data of a micro-batch, and the model's output with a leaf for each row.

    The counts are those of the whole mini-batch, as the engine gives them. verl counts the sequences of a mini-batch by
    its configured size, TRL's trainer those with a valid token; here both have the latter.
    """
    from verl.utils import tensordict_utils as tu

    tensors = {name: jagged(array, rows) for name, array in columns.items()}
    tensors["response_mask"] = jagged(recorded.MASK.astype(np.int64), rows)
    prompts = [torch.zeros(PROMPT, dtype=torch.long)] * len(rows)
    tensors["prompts"] = torch.nested.as_nested_tensor(prompts, layout=torch.jagged)
    tensors["responses"] = jagged(np.zeros(recorded.MASK.shape, dtype=np.int64), rows)
    counts = {"batch_num_tokens": recorded.TOKENS, "global_batch_size": recorded.SEQUENCES}
    # a model's output for a token stands one place before it
    empty = [torch.full((PROMPT - 1,), NAN), torch.full((1,), NAN)]
    leaves = [
        torch.cat([empty[0], torch.tensor(output[row, : recorded.LENGTHS[row]]), empty[1]]).requires_grad_()
        for row in rows
    ]
    nested = torch.nested.as_nested_tensor(leaves, layout=torch.jagged)
    return tu.get_tensordict(tensors, {"dp_size": dp_size, **counts}), nested, leaves


def whole(leaves, rows):
    """``(B, T)`` gradients by what was fed, 0 in rows of others."""
    found = torch.zeros(recorded.ROWS, recorded.WIDTH)
    for row, leaf in zip(rows, leaves, strict=True):
        length = recorded.LENGTHS[row]
        found[row, :length] = leaf.grad[PROMPT - 1 : PROMPT - 1 + length]
    return found


def policy_loss(name, mode, parts=(ALL,), dp_size=1, kl=None):
    """Loss and its gradient by the log-probabilities ``(B, T)``, summed over micro-batches, by verl's `ppo_loss`."""
    from verl.workers.config import ActorConfig
    from verl.workers.utils.losses import ppo_loss

    from rl_estimators.verl.actor_config import PolicyLossConfig

    loss = PolicyLossConfig(loss_mode=f"rle_{name}", options=dict(recorded.POLICY_OPTIONS[name]))
    in_loss = {} if kl is None else {"use_kl_loss": True, "kl_loss_coef": kl, "kl_loss_type": "low_var_kl"}
    config = ActorConfig(
        strategy="fsdp", ppo_micro_batch_size_per_gpu=1, rollout_n=1, policy_loss=loss,
        loss_agg_mode=mode, loss_scale_factor=recorded.WIDTH, **in_loss,
    )  # fmt: skip
    total, gradient = 0.0, torch.zeros(recorded.ROWS, recorded.WIDTH)
    for rows in parts:
        columns = {"old_log_probs": recorded.OLD, "advantages": recorded.ADVANTAGES}
        if kl is not None:
            columns["ref_log_prob"] = recorded.REFERENCE
        data, nested, leaves = micro_batch(rows, recorded.NEW, dp_size, **columns)
        found, _ = ppo_loss(config, {"log_probs": nested}, data)
        found.backward()
        total += found.item()
        gradient += whole(leaves, rows)
    return total, gradient


def value_loss(name, mode, parts=(ALL,), dp_size=1):
    """The same by the critic's values, by verl's `value_loss` with ours inside."""
    from verl.workers.config import CriticConfig

    from rl_estimators.verl.value_loss import value_loss as ours

    config = CriticConfig(
        strategy="fsdp", ppo_micro_batch_size_per_gpu=1, loss_agg_mode=mode, loss_scale_factor=recorded.WIDTH
    )
    total, gradient = 0.0, torch.zeros(recorded.ROWS, recorded.WIDTH)
    for rows in parts:
        columns = {"values": recorded.VALUES, "returns": recorded.RETURNS}
        data, nested, leaves = micro_batch(rows, recorded.PREDICTED, dp_size, **columns)
        given = {"name": name, "own": recorded.VALUE_OPTIONS[name]}
        found, _ = ours(config, {"values": nested}, data, **given)
        found.backward()
        total += found.item()
        gradient += whole(leaves, rows)
    return total, gradient
