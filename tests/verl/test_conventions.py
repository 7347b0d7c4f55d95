"""Conventions and presets of the estimators from verl's configuration: `+algorithm.adv_estimator_kwargs.*`."""

import numpy as np
import pytest
import torch

import rl_estimators
from rl_estimators.errors import InputError

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

KEY = "+algorithm.adv_estimator_kwargs"


def start(config):
    from verl.trainer.ppo.utils import need_critic

    return need_critic(config)


MASK = torch.tensor([[1.0, 1, 0], [1, 1, 1], [1, 0, 0]])
TENSORS = {
    "token_level_rewards": torch.tensor([[0.0, 1, 4], [0, 0, 3], [2, 0, 0]]),
    "response_mask": MASK,
    "values": torch.tensor([[0.5, 1, 0], [1, 1, 2], [1, 0, 0]]),
    "reward_baselines": torch.tensor([0.5, 1, 1]),
    "old_log_probs": torch.tensor([[-1.0, -2, 0], [-1, -1, -1], [-3, 0, 0]]),
    "ref_log_prob": torch.tensor([[-1.5, -1, 0], [-2, -1, -1], [-3, 0, 0]]),
}
UIDS = ["q", "q", "alone"]


def through_verl(name, config):
    """Advantages as verl's trainer computes them."""
    from verl import DataProto
    from verl.trainer.ppo.ray_trainer import compute_advantage

    given = {key: value.clone() for key, value in TENSORS.items()}
    data = DataProto.from_dict(tensors=given, non_tensors={"uid": np.array(UIDS, dtype=object)})
    return compute_advantage(data, adv_estimator=name, config=config.algorithm).batch["advantages"]


def direct(name, **options):
    return rl_estimators.estimate(name, **TENSORS, index=UIDS, **options).advantages


@pytest.mark.parametrize(
    ("name", "overrides", "options"),
    [
        ("rloo", ["compat=verl"], {"singleton": "raw"}),
        ("grpo", ["compat=trl"], {"epsilon": 1e-4, "arithmetic": "trl"}),
        ("reinforce_pp", ["whitening.ddof=0", "whitening.weighting=sequence"], {"whitening": {"ddof": 0, "weighting": "sequence"}}),
        ("reinforce_pp", ["whitening={eps: 1e-4, eps_in: std}"], {"whitening": {"eps": 1e-4, "eps_in": "std"}}),
        ("gae", ["masked_rewards=drop"], {"masked_rewards": "drop"}),
        ("rloo", ["masked_rewards=drop", "singleton=raw"], {"masked_rewards": "drop", "singleton": "raw"}),
        ("remax", ["beta=0.1"], {"beta": 0.1}),
    ],
)  # fmt: skip
def test_an_option_arrives(compose, name, overrides, options):
    """Checked at start, and with the numbers of a direct call; rewards on masked tokens are carried unless dropped."""
    config = compose(
        f"algorithm.adv_estimator=rle_{name}",
        "actor_rollout_ref.actor.use_kl_loss=True",
        *(f"{KEY}.{o}" for o in overrides),
    )
    start(config)
    settings = {"lam": config.algorithm.lam} if name == "gae" else {}
    wanted = direct(name, **{"masked_rewards": "carry", **settings, **options})
    assert torch.equal(through_verl(f"rle_{name}", config), wanted)
    assert not torch.equal(wanted, direct(name, masked_rewards="carry", **settings)), (
        "the case would show nothing"
    )


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("remax", ["algorithm.gamma=0.9", f"{KEY}.compat=verl"], "remax: gamma=0.9 contradicts compat='verl', which has 1.0; drop one"),
        ("rloo", [f"{KEY}.compat=vrl"], "rloo: compat is 'vrl', expected one of verl, trl. Did you mean 'verl'"),
        ("mc", [f"{KEY}.compat=verl"], "mc has no .*option"),
        ("gae", [f"{KEY}.whitening.dof=0"], "gae: a name in whitening is 'dof', expected one of eps, ddof"),
        ("gae", [f"{KEY}.masked_rewards=carried"], "masked_rewards is 'carried', expected one of drop, carry"),
        ("remax", [f"{KEY}.beta=0.1"], "remax is missing ref_log_prob\n.*in verl: `algorithm.use_kl_in_reward=True`"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_at_start(compose, name, overrides, message):
    import re

    with pytest.raises(InputError) as caught:
        start(compose(f"algorithm.adv_estimator=rle_{name}", *overrides))
    assert re.search(message, str(caught.value), re.DOTALL), caught.value
