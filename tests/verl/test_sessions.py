"""Agent loops that return several outputs for one session."""

import numpy as np
import pytest
import torch

from rl_estimators.errors import InputError
from rl_estimators.verl import sessions

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

# Prompt q: session 0 gave three outputs (the last stands first), session 1 gave one; prompt r is alone.
KEYS = ["q_0_2", "q_0_0", "q_0_1", "q_1_0", "r_0_0"]
SCORES = [2.0, 2.0, 2.0, 4.0, 9.0]
MASK = [[1, 1], [1, 0], [0, 1], [1, 1], [1, 1]]


def test_final_rows():
    assert sessions.final_rows(KEYS) == ([0, 3, 4], [0, 0, 0, 1, 2])


@pytest.mark.parametrize("key", ["q", "q_0", "q_0_x", "q_0_", "q_0_-1"])
def test_keys_of_another_form(key):
    message = rf"verl's key of a row is '{key}', expected {{uid}}_{{session}}_{{output}} with a number at the end: without"
    with pytest.raises(InputError, match=message):
        sessions.final_rows(["q_0_0", key])


def test_uids_may_hold_underscores_and_sessions_be_negative():
    """The greedy session of a prompt is its session -1."""
    assert sessions.final_rows(["a_b_0_0", "a_b_0_1", "a_b_-1_0"]) == ([1, 2], [0, 0, 1])


def compute(name, mask=MASK, **config):
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    rewards = torch.zeros(5, 2)
    for row, score in enumerate(SCORES):
        rewards[row, max(t for t in (0, 1) if mask[row][t])] = score
    data = DataProto.from_dict(
        tensors={"token_level_rewards": rewards, "response_mask": torch.tensor(mask)},
        non_tensors={"uid": np.array([key.split("_")[0] for key in KEYS], dtype=object)},
    )
    config = OmegaConf.create({"gamma": 1.0, "lam": 1.0, "norm_adv_by_std_in_grpo": False, **config})
    return compute_advantage_for_multi_trajectories(
        data, batch_keys=KEYS, adv_estimator=name, norm_adv_by_std_in_grpo=False, config=config
    ).batch


def test_a_session_counts_once():
    """Mean of q's two sessions is 3, not (2 + 2 + 2 + 4) / 4; every output of session 0 gets -1."""
    batch = compute("rle_grpo")
    assert batch["advantages"].tolist() == [[-1, -1], [-1, 0], [0, -1], [1, 1], [0, 0]]
    assert torch.equal(batch["returns"], batch["advantages"])


def test_as_verl_does_for_its_own():
    """But for the group of one, to which verl gives its raw score."""
    ours, theirs = compute("rle_grpo")["advantages"], compute("grpo")["advantages"]
    assert torch.equal(ours[:4], theirs[:4].float())
    assert theirs[4].tolist() == [9, 9]


def test_others_see_every_output():
    """Mean over all eight valid tokens of the rewards-to-go."""
    advantages = compute("reinforce_pp")["advantages"]
    valid = torch.tensor(MASK).bool()
    returns = torch.tensor(SCORES)[:, None].expand(5, 2)[valid]
    expected = (returns - returns.mean()) / (returns.var() + 1e-8).sqrt()
    torch.testing.assert_close(advantages[valid], expected)


def test_a_name_that_is_not_ours():
    assert not sessions.is_group_estimator("grpo")
    assert not sessions.is_group_estimator("nobody")
    assert sessions.is_group_estimator("rle_grpo")
