"""The node `rl_estimators` of verl's configuration: what is read, what is refused and how, what becomes of it."""

import pickle
import re
from typing import Literal

import pytest
import torch

import rl_estimators
from rl_estimators import patching
from rl_estimators.errors import DuplicateNameError, EntryPointError, InputError, PatchError, UnknownNameError
from rl_estimators.registry import POLICY_LOSSES, VALUE_LOSSES

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

VALUE, POLICY = "+rl_estimators.value_loss", "+rl_estimators.policy_loss"
MODE = "actor_rollout_ref.actor.policy_loss.loss_mode"
HUBER = [f"{VALUE}.name=huber"]
PPO = [f"{POLICY}.name=ppo_clip"]


@pytest.fixture(scope="module")
def stock():
    """verl's real configuration as it is, in struct mode as `main_ppo` has it."""
    core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
    from hydra import compose, initialize_config_module

    from rl_estimators.verl import policy_losses

    policy_losses.offer(core_algos)
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer")


@pytest.fixture
def settings():
    from rl_estimators.verl import settings

    return settings


def actor_of(config):
    """The actor's configuration as verl's workers build it."""
    from verl.utils.config import omega_conf_to_dataclass

    config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu = 1
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def test_nothing_said_changes_nothing(compose, settings):
    config = compose()
    before = config.copy()
    assert settings.apply(config) == settings.Settings()
    assert config == before


def test_null_is_nothing(compose, settings):
    assert settings.read(compose("+rl_estimators=null")) == settings.Settings()
    assert settings.read(compose(f"{VALUE}=null")) == settings.Settings()


def test_losses_with_options(compose, settings):
    found = settings.read(compose(*HUBER, f"{VALUE}.delta=2", *PPO, f"{POLICY}.clip_ratio_c=null"))
    assert found.value_loss == settings.Loss("huber", {"delta": 2})
    assert found.policy_loss == settings.Loss("ppo_clip", {"clip_ratio_c": None})


def test_options_may_refer_to_verls_keys(compose, settings):
    config = compose(f"{VALUE}.name=clipped", f"{VALUE}.cliprange_value=${{critic.cliprange_value}}")
    assert settings.read(config).value_loss.options == {"cliprange_value": 0.5}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["+rl_estimators=gae"],
            "rl_estimators=gae names no preset: Hydra took it as a plain value, so nothing of it is in force. Presets "
            "are spelled +algorithm=NAME, where Hydra refuses names it does not find. Did you mean 'rle_gae'? Known: "
            "rle_gae, rle_grpo, rle_reinforce_pp, rle_remax. The keys of rl_estimators itself: "
            "rl_estimators.policy_loss.name, rl_estimators.value_loss.name.",
        ),
        (["+rl_estimators=[huber]"], "rl_estimators=['huber'] names no preset: Hydra took it as a plain value"),
        (
            ["+rl_estimators.value_los.name=huber"],
            "rl_estimators.value_los: no such key. Did you mean 'value_loss'? Known: policy_loss, value_loss, diagnostics, bootstrap_truncated.",
        ),
        (
            [f"{VALUE}=huber"],
            "rl_estimators.value_loss is 'huber', expected a name and options by key: "
            "+rl_estimators.value_loss.name=huber",
        ),
        ([f"{VALUE}=[huber]"], "rl_estimators.value_loss is ['huber'], expected a name and options by key: "),
        ([*HUBER, f"{VALUE}.vpreds=1"], "rl_estimators.value_loss.vpreds: verl hands that to huber itself; leave it out"),
        (
            [f"{VALUE}.delta=3"],
            "rl_estimators.value_loss.name is missing, so this would have no effect: rl_estimators.value_loss.delta; set "
            "the name to one of clipped, huber, mse",
        ),
        ([f"{VALUE}={{}}"], "rl_estimators.value_loss.name is missing"),
        (
            [*HUBER, f"{VALUE}.dleta=3"],
            "rl_estimators.value_loss.dleta: huber has no such option. Did you mean 'delta'? Its options: delta=1.0. "
            "If a preset brought it along, ~rl_estimators.value_loss.dleta removes it.",
        ),
        ([f"{VALUE}.name=mse", f"{VALUE}.delta=3"], "mse has no such option. Its options: none."),
        (
            [*HUBER, f"{VALUE}.delta=wide"],
            "rl_estimators.value_loss.delta is 'wide' (str), expected a number; its default is 1.0",
        ),
        ([*HUBER, f"{VALUE}.delta=true"], "delta is True (bool), expected a number"),
        ([*HUBER, f"{VALUE}.delta=null"], "delta is None (NoneType), expected a number"),
        ([*HUBER, f"{VALUE}.delta=[1]"], "delta is [1] (list), expected a number"),
        (
            [*PPO, f"{POLICY}.clip_ratio_c=none"],
            "rl_estimators.policy_loss.clip_ratio_c is 'none' (str), expected a number or null; its default is None",
        ),
        (
            [*HUBER, f"{VALUE}.delta=-1"],
            "rl_estimators.value_loss: huber: delta is -1, expected a number in [0, inf]; what is not given comes from "
            "critic",
        ),
        (
            [f"{VALUE}.name=clipped", "critic.cliprange_value=-1"],
            "clipped: cliprange_value is -1, expected a number in [0, inf]; what is not given comes from critic",
        ),
        (
            [*PPO, "actor_rollout_ref.actor.clip_ratio_c=0.5"],
            "rl_estimators.policy_loss: ppo_clip: clip_ratio_c is 0.5, expected a number in [1, inf]; what is not "
            "given comes from actor_rollout_ref.actor",
        ),
        (
            [*PPO, f"{POLICY}.loss_agg_mode=token-sum"],
            "rl_estimators.policy_loss.loss_agg_mode: verl owns it; set "
            "actor_rollout_ref.actor.loss_agg_mode=token-sum instead",
        ),
        ([*HUBER, f"{VALUE}.loss_agg_mode=x"], "value_loss.loss_agg_mode: verl owns it; set critic.loss_agg_mode=x"),
        (
            [*PPO, f"{POLICY}.global_batch_info={{}}"],
            "rl_estimators.policy_loss.global_batch_info: verl counts it itself in every update; leave it out",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(compose, settings, overrides, message):
    with pytest.raises(InputError) as raised:
        settings.read(compose(*overrides))
    assert message in str(raised.value)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            f"{VALUE}.name=hubr",
            "rl_estimators.value_loss.name=hubr: no value loss is named 'hubr'. Did you mean 'huber'? Known: clipped, "
            "huber, mse.",
        ),
        (
            f"{POLICY}.name=dppo_tv",
            f"verl's own are chosen with {MODE}.",
        ),
        (
            f"{POLICY}.name=dppo_tv",
            "rl_estimators.policy_loss.name=dppo_tv: no policy loss is named 'dppo_tv'.",
        ),
        (f"{POLICY}.name=rle_ppo_clip", "Did you mean 'ppo_clip'?"),
        (f"{VALUE}.name=3", "rl_estimators.value_loss.name=3: no value loss is named '3'."),
    ],
)
def test_unknown_losses(compose, settings, override, message):
    with pytest.raises(UnknownNameError) as raised:
        settings.read(compose(override))
    assert message in str(raised.value)


def test_a_loss_mode_that_nobody_has(compose, settings):
    """verl would say so after the first rollout."""
    message = rf"{MODE}=rle_ppo_clp: no such policy loss. Did you mean 'rle_ppo_clip'\? Known: bypass_mode, "
    with pytest.raises(UnknownNameError, match=message):
        settings.apply(compose(f"{MODE}=rle_ppo_clp"))


def test_a_loss_mode_like_none(compose, settings, caplog):
    """It may be some other trainer's own."""
    from omegaconf import OmegaConf

    settings.apply(compose(f"{MODE}=xyz"))
    assert f"{MODE}=xyz: no such policy loss. Known: bypass_mode, " in caplog.text
    settings.apply(compose(f"{MODE}=xyz", "actor_rollout_ref.model.external_lib=mine"))
    settings.apply(OmegaConf.create({"actor_rollout_ref": compose(f"{MODE}=xyz").actor_rollout_ref}))


@pytest.mark.parametrize("key", ["rl_estimator", "rl_estimatos", "rlestimators"])
def test_a_node_misspelt(compose, settings, key):
    with pytest.raises(InputError, match=rf"^{key}: no such key. Did you mean 'rl_estimators'\?$"):
        settings.apply(compose(f"+{key}.policy_loss.name=ppo_clip"))


def test_verls_clip_ratios_are_checked_for_our_loss_too(compose, settings):
    message = (
        rf"{MODE}=rle_ppo_clip: ppo_clip: clip_ratio_low is 2.0, expected a number in \[0, 1\]; what is not"
    )
    with pytest.raises(InputError, match=message):
        settings.apply(compose(f"{MODE}=rle_ppo_clip", "actor_rollout_ref.actor.clip_ratio_low=2.0"))


@pytest.fixture
def losses(monkeypatch):
    """Losses of somebody else's, for the length of a test."""
    for registry in (POLICY_LOSSES, VALUE_LOSSES):
        monkeypatch.setattr(registry, "_specs", dict(registry._specs))
        monkeypatch.setattr(registry, "_listeners", [])

    @rl_estimators.register_value_loss("typed")
    def typed(vpreds, returns, response_mask, loss_agg_mode="token-mean", global_batch_info=None,
              number=0.5, count=3, switch=True, word="a", anything=None):  # fmt: skip
        raise RuntimeError("somebody else's loss is not tried out at start")

    @rl_estimators.register_value_loss("oddly_typed")
    def oddly_typed(vpreds, returns, response_mask, loss_agg_mode="token-mean", global_batch_info=None,
                    odd: "Unheard" = 1, choice: Literal["a", 2] = "a", rows: list[int] = ()):  # fmt: skip # noqa: F821
        raise RuntimeError

    @rl_estimators.register_value_loss("sees_all")
    def sees_all(vpreds, returns, response_mask, **kwargs):
        raise RuntimeError

    @rl_estimators.register_value_loss("wants_reference")
    def wants_reference(vpreds, ref_log_prob, loss_agg_mode="token-mean", global_batch_info=None):
        raise RuntimeError

    @rl_estimators.register_value_loss("own_mean")
    def own_mean(vpreds, returns, response_mask, loss_agg_mode="token-mean"):
        raise RuntimeError

    @rl_estimators.register_value_loss("no_modes")
    def no_modes(vpreds, returns, response_mask, global_batch_info=None):
        raise RuntimeError

    @rl_estimators.register_policy_loss("verl_style")
    def verl_style(
        old_log_prob, log_prob, advantages, response_mask, loss_agg_mode="token-mean", config=None
    ):
        raise RuntimeError


@pytest.mark.parametrize(
    "option", ["number=1", "number=1e-3", "count=2", "switch=false", "word=b", "anything=[1]"]
)
def test_the_default_shows_the_type(compose, settings, losses, option):  # fmt: skip
    name = option.partition("=")[0]
    assert name in settings.read(compose(f"{VALUE}.name=typed", f"{VALUE}.{option}")).value_loss.options


@pytest.mark.parametrize(
    ("option", "wanted"),
    [("number=x", "a number"), ("count=1.5", "an integer"), ("switch=1", "true or false"), ("word=1", "a string")],
)  # fmt: skip
def test_a_value_of_another_type_than_the_default(compose, settings, losses, option, wanted):
    with pytest.raises(
        InputError, match=rf"value_loss.{option.partition('=')[0]} is .*, expected {wanted}; its"
    ):
        settings.read(compose(f"{VALUE}.name=typed", f"{VALUE}.{option}"))


def test_an_annotation_that_cannot_be_read_asks_for_nothing(compose, settings, losses):
    options = [f"{VALUE}.odd=x", f"{VALUE}.rows=[1]", f"{VALUE}.choice=b"]
    assert len(settings.read(compose(f"{VALUE}.name=oddly_typed", *options)).value_loss.options) == 3


def test_a_loss_that_takes_anything_gets_anything(compose, settings, losses):
    found = settings.read(compose(f"{VALUE}.name=sees_all", f"{VALUE}.whatever=1"))
    assert found.value_loss.options == {"whatever": 1}


def test_a_loss_in_verls_style_finds_the_counts_in_its_config(compose, settings, losses):
    settings.read(compose(f"{POLICY}.name=verl_style"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "wants_reference",
            "rl_estimators.value_loss: wants_reference needs ref_log_prob, which verl does not hand to a loss; it has "
            "vpreds, values, returns, response_mask",
        ),
        (
            "own_mean",
            "own_mean has no parameter global_batch_info, without which verl's micro-batches do not add up to the "
            "batch: give it one and hand it to rl_estimators.aggregation.aggregate",
        ),
        ("no_modes", "no_modes has no parameter loss_agg_mode, without which"),
    ],
)
def test_losses_that_cannot_work_in_verl(compose, settings, losses, name, message):
    with pytest.raises(InputError, match=re.escape(message)):
        settings.read(compose(f"{VALUE}.name={name}"))


@pytest.mark.parametrize("error", [EntryPointError, DuplicateNameError])
def test_a_loss_whose_owner_is_in_trouble(compose, settings, monkeypatch, error):
    def spec(name):
        raise error("what went wrong")

    monkeypatch.setattr(VALUE_LOSSES, "spec", spec)
    with pytest.raises(error, match=r"rl_estimators.value_loss.name=huber: what went wrong"):
        settings.read(compose(*HUBER))


def test_the_policy_loss_arrives_in_the_actors_configuration(compose, settings):
    """Also after a second call, on the copy that travels to the trainer's process."""
    config = compose(*PPO, f"{POLICY}.clip_ratio_c=1.5")
    first = settings.apply(config)
    travelled = pickle.loads(pickle.dumps(config))
    assert settings.apply(travelled) == first
    assert travelled == config
    actor = actor_of(travelled)
    assert actor.policy_loss.loss_mode == "rle_ppo_clip"
    assert actor.policy_loss.options == {"clip_ratio_c": 1.5}
    assert type(actor.policy_loss.options) is dict
    assert actor.policy_loss.get("clip_cov_ratio") == 0.0002


def test_it_also_works_on_a_resolved_configuration(compose, settings):
    """As verl's trainers have it: `OmegaConf.resolve`."""
    from omegaconf import OmegaConf

    config = compose(*PPO, f"{POLICY}.clip_ratio_c=${{actor_rollout_ref.actor.clip_ratio_c}}")
    OmegaConf.resolve(config)
    settings.apply(config)
    assert actor_of(config).policy_loss.options == {"clip_ratio_c": 3.0}


def test_other_keys_stay_locked(compose, settings):
    from omegaconf.errors import ConfigAttributeError

    config = compose(*PPO)
    settings.apply(config)
    with pytest.raises(ConfigAttributeError):
        config.actor_rollout_ref.actor.policy_loss.loss_mod = "vanilla"


@pytest.mark.parametrize("mode", ["vanilla", "ppo_clip", "rle_ppo_clip"])
def test_the_same_loss_by_both_keys_is_no_contradiction(compose, settings, mode):
    config = compose(*PPO, f"{MODE}={mode}")
    settings.apply(config)
    assert actor_of(config).policy_loss.loss_mode == "rle_ppo_clip"


def test_two_policy_losses(compose, settings):
    message = (
        rf"two policy losses are named: rl_estimators.policy_loss.name=ppo_clip and {MODE}=gspo; remove one "
        r"\(from a preset: ~rl_estimators.policy_loss\)"
    )
    with pytest.raises(InputError, match=message):
        settings.apply(compose(*PPO, f"{MODE}=gspo"))


def test_somebody_elses_policy_loss_configuration(compose, settings):
    target = "actor_rollout_ref.actor.policy_loss._target_"
    message = rf"policy_loss.name=ppo_clip needs {target} to hold its options, and that is set to mine.Config; remove"
    with pytest.raises(InputError, match=message):
        settings.apply(compose(*PPO, f"{target}=mine.Config"))


def test_a_policy_loss_that_did_not_get_into_verl(compose, settings, monkeypatch):
    from verl.trainer.ppo import core_algos

    monkeypatch.setattr(core_algos, "POLICY_LOSS_REGISTRY", {"vanilla": None})
    message = "policy_loss.name=ppo_clip: verl does not know it as rle_ppo_clip; see `rl-estimators doctor`"
    with pytest.raises(PatchError, match=message):
        settings.apply(compose(*PPO))


def test_a_value_loss_without_a_critic(compose, settings):
    config = compose(*HUBER)
    assert settings.apply(config, use_critic=True).value_loss.name == "huber"
    message = (
        r"rl_estimators.value_loss.name=huber: this run has no critic that it could train; choose an estimator with "
        r"values, set critic.enable=True, or remove rl_estimators.value_loss"
    )
    with pytest.raises(InputError, match=message):
        settings.apply(config, use_critic=False)


@pytest.mark.parametrize(
    ("use_v1", "patch"), [(True, "verl_value_loss_v1"), (False, "verl_value_loss_legacy")]
)
def test_a_hook_that_is_not_in_force(compose, settings, monkeypatch, use_v1, patch):
    (status,) = (status for status in patching.report() if status.patch.name == patch)
    drifted = patching.Status(status.patch, patching.State.DRIFTED, "expected (self), found (me)")
    monkeypatch.setitem(patching._statuses, patch, drifted)
    settings.apply(compose(f"trainer.use_v1={use_v1}"))  # nobody needs it
    settings.apply(compose(f"trainer.use_v1={not use_v1}", *HUBER))
    message = rf"value_loss.name=huber needs a hook that is not in force. {patch}: drifted.*expected \(self\)"
    with pytest.raises(PatchError, match=message):
        settings.apply(compose(f"trainer.use_v1={use_v1}", *HUBER))


@pytest.mark.parametrize("key", ["policy_loss.name=cispo", "value_loss.name=huber"])
def test_settings_that_nobody_has_read(compose, monkeypatch, key):
    """The hook that reads them may be off, or not fit this verl: no estimator of ours goes on without them."""
    from rl_estimators.verl.estimators import as_verl

    config = compose("algorithm.adv_estimator=rle_grpo", f"+rl_estimators.{key}").algorithm
    given = {"token_level_rewards": torch.ones(2, 1), "response_mask": torch.ones(2, 1), "index": ["a", "a"]}
    as_verl("grpo")(**given, config=config)

    def require(name, purpose):
        raise PatchError(f"{purpose} needs {name}")

    monkeypatch.setattr(patching, "require", require)
    with pytest.raises(PatchError, match=f"^rl_estimators.{key.split('.')[0]} needs verl_need_critic"):
        as_verl("grpo")(**given, config=config)


def test_a_loss_that_would_leave_out_the_rollouts_weights(compose, settings, monkeypatch):
    """At start: the first update would say the same, after a rollout."""
    from verl.trainer.ppo import core_algos

    monkeypatch.setattr(POLICY_LOSSES, "_specs", dict(POLICY_LOSSES._specs))
    monkeypatch.setattr(core_algos, "POLICY_LOSS_REGISTRY", dict(core_algos.POLICY_LOSS_REGISTRY))

    @rl_estimators.register_policy_loss("unweighted_here")
    def unweighted_here(log_prob, response_mask, loss_agg_mode="token-mean", global_batch_info=None):
        return log_prob.sum(), {}

    chosen = "+rl_estimators.policy_loss.name=unweighted_here"
    weights = "algorithm.rollout_correction.rollout_is=token"
    probs = "actor_rollout_ref.rollout.calculate_log_probs=True"
    with pytest.raises(
        InputError, match="unweighted_here has no parameter rollout_is_weights, so it would leave out"
    ):
        settings.apply(compose(chosen, weights, probs))
    settings.apply(compose(chosen, weights, probs, "algorithm.rollout_correction.bypass_mode=True"))
    settings.apply(compose(chosen))


def test_our_variables_reach_the_workers_of_a_cluster_that_was_there_before(compose, settings, monkeypatch):
    """verl merges this list of the configuration's with its own, and hands Ray the whole."""
    from omegaconf import OmegaConf

    for name in ("RL_ESTIMATORS_BACKEND", "RL_ESTIMATORS_DISABLE_PATCHES", "RL_ESTIMATORS_STRICT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RL_ESTIMATORS_OF_A_TEST", "1")  # not one that the package reads
    config = compose()
    before = OmegaConf.to_container(config.ray_kwargs)
    settings.apply(config)
    assert OmegaConf.to_container(config.ray_kwargs) == before
    monkeypatch.setenv("RL_ESTIMATORS_BACKEND", "torch")
    monkeypatch.setenv("RL_ESTIMATORS_STRICT", "1")
    config = compose("+ray_kwargs.ray_init.runtime_env.env_vars.RL_ESTIMATORS_STRICT='0'")
    settings.apply(config)
    found = OmegaConf.to_container(config.ray_kwargs.ray_init.runtime_env.env_vars)
    assert found == {"RL_ESTIMATORS_BACKEND": "torch", "RL_ESTIMATORS_STRICT": "0"}
