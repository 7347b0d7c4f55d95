"""verl's own keys for options that our policy losses have as well."""

import dataclasses

import pytest

from rl_estimators.registry import POLICY_LOSSES
from rl_estimators.verl.policy_loss_keys import OF_ACTOR, OF_POLICY_LOSS, options_of_verl

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

SAID = {
    "sapo": {"tau_pos": 0.5, "tau_neg": 3.0},
    "clip_cov": {"clip_cov_ratio": 0.1, "clip_cov_lb": 0.5, "clip_cov_ub": 2.0},
    "kl_cov": {"kl_cov_ratio": 0.2, "ppo_kl_coef": 0.7},
}
EVERYTHING = {name: value for options in SAID.values() for name, value in options.items()}


def actor_config():
    """As the actor's worker has it."""
    pytest.importorskip("verl")
    from verl.workers.config import ActorConfig, PolicyLossConfig

    own = PolicyLossConfig(**{name: EVERYTHING[name] for name in OF_POLICY_LOSS})
    of_actor = {name: EVERYTHING[name] for name in OF_ACTOR}
    return ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=own, **of_actor
    )


def dict_config():
    """As the driver has it."""
    omegaconf = pytest.importorskip("omegaconf")
    return omegaconf.OmegaConf.create(
        {
            **{name: EVERYTHING[name] for name in OF_ACTOR},
            "policy_loss": {name: EVERYTHING[name] for name in OF_POLICY_LOSS},
        }
    )


@pytest.mark.parametrize("config", [actor_config, dict_config])
@pytest.mark.parametrize("name", POLICY_LOSSES.names())
def test_a_loss_gets_what_it_has(name, config):
    assert options_of_verl(POLICY_LOSSES.spec(name), config()) == SAID.get(name, {})


def test_what_is_null_or_not_there_is_left_to_the_loss():
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({"tau_pos": None, "policy_loss": {"kl_cov_ratio": None}})
    assert options_of_verl(POLICY_LOSSES.spec("sapo"), config) == {}
    assert options_of_verl(POLICY_LOSSES.spec("kl_cov"), config) == {}
    assert options_of_verl(POLICY_LOSSES.spec("kl_cov"), omegaconf.OmegaConf.create({})) == {}


def test_verl_has_these_keys_and_no_other_of_ours():
    """The table against verl's dataclasses: a key that moves, or a new one of a name of ours, shows up here."""
    pytest.importorskip("verl")
    from verl.workers.config import ActorConfig, PolicyLossConfig

    ours = {o for name in POLICY_LOSSES.names() for o in POLICY_LOSSES.spec(name).options}
    clip_ratios = {
        "clip_ratio_low",
        "clip_ratio_high",
        "clip_ratio_c",
    }  # mapped where clip_ratio is their default
    elsewhere = {"loss_agg_mode", "global_batch_info", *clip_ratios}
    for config, keys in ((ActorConfig, OF_ACTOR), (PolicyLossConfig, OF_POLICY_LOSS)):
        assert {field.name for field in dataclasses.fields(config)} & ours - elsewhere == set(keys)


@pytest.mark.parametrize("name", SAID)
def test_the_adapter_hands_them_over_and_ours_win(name):
    from rl_estimators.verl import policy_losses

    spec, option = POLICY_LOSSES.spec(name), next(iter(SAID[name]))
    found = policy_losses.options(spec, actor_config(), {option: 0.25})
    assert found.items() >= {**SAID[name], option: 0.25}.items()
