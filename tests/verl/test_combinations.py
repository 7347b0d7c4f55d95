"""Settings of verl's that do not go with an estimator of ours are refused by `need_critic`, with the way out."""

import re

import numpy as np
import pytest
import torch

import rl_estimators
from rl_estimators.errors import InputError
from rl_estimators.registry import ADV_ESTIMATORS

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

OPTIONS = "+algorithm.adv_estimator_kwargs"
TWO = "actor_rollout_ref.rollout.n=2"
KL = ["algorithm.use_kl_in_reward=True", "algorithm.kl_ctrl.kl_coef=0.1"]
GROUPS = ("gdpo", "gpg", "grpo", "grpo_passk", "maxrl", "opo", "reinforce_pp_baseline", "rloo")


@pytest.fixture(scope="module")
def start():
    """What `main_ppo` asks first, on verl's real configuration with an estimator and overrides."""
    pytest.importorskip("verl.trainer.ppo.utils")
    from hydra import compose, initialize_config_module
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import need_critic

    with initialize_config_module("verl.trainer.config", version_base=None):
        stock = compose("ppo_trainer")

    def with_overrides(name, *overrides):
        config = stock.copy()
        config.algorithm.adv_estimator = name
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            OmegaConf.update(config, override.key_or_group, override.value(), force_add=override.is_add())
        need_critic(config)
        return config

    return with_overrides


def keys(name):
    return [f"{OPTIONS}.reward_keys=[a]"] if name == "gdpo" else []


def test_the_table_is_complete():
    groups = [name for name in rl_estimators.list_adv_est() if "index" in ADV_ESTIMATORS.spec(name).required]
    assert groups == list(GROUPS)


@pytest.mark.parametrize("name", GROUPS)
def test_groups_of_one(start, name):
    """verl's default of one response per prompt; all these would train on zeros."""
    message = (
        rf"algorithm.adv_estimator=rle_{name} compares the responses to a prompt, and actor_rollout_ref.rollout.n=1 gives "
        r"it one: every advantage would be exactly 0; set actor_rollout_ref.rollout.n to 2 or more"
    )
    with pytest.raises(InputError, match=message) as caught:
        start(f"rle_{name}", *keys(name))
    offered = str(caught.value).endswith(
        "or keep their raw scores: +algorithm.adv_estimator_kwargs.singleton=raw"
    )
    assert offered == (name not in ("grpo_passk", "maxrl"))
    start(f"rle_{name}", *keys(name), TWO)
    if offered:
        start(f"rle_{name}", *keys(name), f"{OPTIONS}.singleton=raw")
        start(f"rle_{name}", *keys(name), f"{OPTIONS}.compat=verl")


def test_the_others_take_one_response(start):
    for name in ("grpo", "reinforce_pp", "rle_gae", "rle_remax"):  # the first is verl's own
        start(name)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("maxrl", [TWO], "its scores may not be negative, which the penalty makes them; use the loss's instead: "
         "algorithm.use_kl_in_reward=False actor_rollout_ref.actor.use_kl_loss=True"),
        ("gdpo", [TWO, *keys("gdpo")], "it reads the rewards before they are summed, so the penalty would have no effect; "
         "use the loss's instead: algorithm.use_kl_in_reward=False actor_rollout_ref.actor.use_kl_loss=True"),
        ("remax", [f"{OPTIONS}.beta=0.05"], "its option beta=0.05 charges the KL, too; keep one: "
         "algorithm.kl_ctrl.kl_coef=0, or algorithm.adv_estimator_kwargs.beta=0"),
    ],
)  # fmt: skip
def test_the_kl_penalty_in_the_reward(start, name, overrides, message):
    whole = re.escape(f"algorithm.adv_estimator=rle_{name} and algorithm.use_kl_in_reward=True: {message}")
    with pytest.raises(InputError, match=f"^{whole}$"):
        start(f"rle_{name}", *overrides, *KL)
    start(f"rle_{name}", *overrides, "algorithm.use_kl_in_reward=True", "algorithm.kl_ctrl.kl_coef=0")
    start(f"rle_{name}", *overrides, "actor_rollout_ref.actor.use_kl_loss=True")


def test_the_kl_penalty_in_the_reward_of_the_others(start):
    start("rle_remax", *KL)
    start("rle_remax", f"{OPTIONS}.beta=0", *KL)
    start("rle_grpo", TWO, *KL)


def test_pf_ppo_is_for_verls_gae_only(start):
    start("gae", "algorithm.use_pf_ppo=True")
    for name in ("rle_gae", "reinforce_pp"):
        message = rf"^algorithm.use_pf_ppo=True and algorithm.adv_estimator={name}: verl reweighs .* no effect; set "
        with pytest.raises(InputError, match=message):
            start(name, "algorithm.use_pf_ppo=True")


def test_gdpos_keys_of_verl(start):
    """They name the columns and weigh them, as for verl's own; options of ours win over them."""
    from verl import DataProto
    from verl.trainer.ppo.ray_trainer import compute_advantage

    columns = {"a": [0.0, 1.0, 1.0, 0.0], "b": [1.0, 0.0, 1.0, 0.0]}
    tensors = {"token_level_rewards": torch.rand(4, 3), "response_mask": torch.ones(4, 3)}
    uids = list("ppqq")

    def through_verl(*overrides):
        config = start("rle_gdpo", TWO, *overrides)
        non_tensors = {
            name: np.array(column, dtype=object) for name, column in (*columns.items(), ("uid", uids))
        }
        data = DataProto.from_dict(
            tensors={k: v.clone() for k, v in tensors.items()}, non_tensors=non_tensors
        )
        return compute_advantage(data, "rle_gdpo", config=config.algorithm).batch["advantages"]

    def direct(names, **options):
        components = torch.tensor([columns[name] for name in names]).T
        return rl_estimators.estimate(
            "gdpo", **tensors, index=uids, reward_components=components, **options
        ).advantages

    verls = ["+algorithm.gdpo_reward_keys=[a,b]", "+algorithm.gdpo_reward_weights=[1.0,3.0]"]
    assert torch.allclose(through_verl(*verls), direct("ab", weights=[1.0, 3.0]))
    assert not torch.allclose(direct("ab", weights=[1.0, 3.0]), direct("ab"))
    both = [*verls, f"{OPTIONS}.reward_keys=[b]", f"{OPTIONS}.weights=[2.0]"]
    assert torch.allclose(through_verl(*both), direct("b", weights=[2.0]))


def test_another_estimator_with_weights_is_not_gdpo(start):
    from rl_estimators.registry import Spec
    from rl_estimators.verl.estimators import options

    spec = Spec("weighs", len, "", (), (), {"weights": None})
    assert options(spec, {"gdpo_reward_weights": [1.0]}) == {}
