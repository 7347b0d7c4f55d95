"""`+algorithm=rle_...` on verl's command line: what each preset sets, that the rest wins over it, that none is lost."""

import os
import subprocess
import sys

import pytest

from rl_estimators.errors import InputError

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

ACTOR = "actor_rollout_ref.actor"
CLIP = {
    f"{ACTOR}.clip_ratio": 0.2,
    f"{ACTOR}.clip_ratio_low": 0.2,
    f"{ACTOR}.clip_ratio_high": 0.2,
    "rl_estimators.policy_loss.name": "ppo_clip",
    "rl_estimators.policy_loss.clip_ratio_c": None,
}
KL_IN_REWARD = {
    "algorithm.use_kl_in_reward": True,
    "algorithm.kl_penalty": "kl",
    "algorithm.kl_ctrl.type": "fixed",
    f"{ACTOR}.use_kl_loss": False,
}
PRESETS = {
    "rle_gae": {
        "algorithm.adv_estimator": "rle_gae",
        "algorithm.gamma": 1.0,
        "algorithm.lam": 0.95,
        "algorithm.kl_ctrl.kl_coef": 0.02,
        "critic.enable": True,
        "critic.cliprange_value": 0.2,
        "rl_estimators.value_loss.name": "clipped",
        **CLIP,
        **KL_IN_REWARD,
    },
    "rle_grpo": {
        "algorithm.adv_estimator": "rle_grpo",
        "algorithm.norm_adv_by_std_in_grpo": True,
        "algorithm.use_kl_in_reward": False,
        "critic.enable": False,
        "actor_rollout_ref.rollout.n": 64,
        f"{ACTOR}.use_kl_loss": True,
        f"{ACTOR}.kl_loss_type": "low_var_kl",
        f"{ACTOR}.kl_loss_coef": 0.04,
        f"{ACTOR}.loss_agg_mode": "seq-mean-token-mean",
        **CLIP,
    },
    "rle_reinforce_pp": {
        "algorithm.adv_estimator": "reinforce_pp",
        "algorithm.gamma": 1.0,
        "algorithm.kl_ctrl.kl_coef": 0.01,
        "critic.enable": False,
        **CLIP,
        **KL_IN_REWARD,
    },
    "rle_remax": {
        "algorithm.adv_estimator": "rle_remax",
        "algorithm.gamma": 1.0,
        "algorithm.kl_ctrl.kl_coef": 0.05,
        "critic.enable": False,
        f"{ACTOR}.loss_agg_mode": "token-mean",
        f"{ACTOR}.ppo_mini_batch_size": 1024,  # that of data.train_batch_size
        f"{ACTOR}.ppo_epochs": 1,
        "rl_estimators.policy_loss.name": "reinforce",
        **KL_IN_REWARD,
    },
}


@pytest.fixture(scope="module")
def compose():
    """verl's real configuration as Hydra composes it from a command line."""
    core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
    import hydra.core.config_store
    from hydra import compose, initialize_config_module

    from rl_estimators.verl import policy_losses, presets

    presets.offer(hydra.core.config_store)
    policy_losses.offer(core_algos)

    def with_overrides(*overrides):
        with initialize_config_module("verl.trainer.config", version_base=None):
            return compose("ppo_trainer", overrides=list(overrides))

    return with_overrides


def flat(config, prefix=""):
    """Every value by its full key, interpolations as they resolve."""
    from omegaconf import DictConfig, OmegaConf

    for key in config:
        if OmegaConf.is_missing(config, key):
            yield f"{prefix}{key}", "???"
        elif isinstance(config[key], DictConfig):
            yield from flat(config[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", config[key]


@pytest.fixture(scope="module")
def stock(compose):
    return dict(flat(compose()))


def test_the_table_is_complete():
    from rl_estimators.verl import presets

    assert list(presets.texts()) == sorted(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_each_sets_what_its_paper_has(compose, stock, name):
    """And touches nothing else but what refers to it."""
    found = dict(flat(compose(f"+algorithm={name}")))
    assert {key: found[key] for key in PRESETS[name]} == PRESETS[name]
    changed = {key for key in found if key not in stock or found[key] != stock[key]}
    follow = {  # verl's interpolations
        "actor_rollout_ref.ref.use_kl_loss",
        f"{ACTOR}.rollout_n",
        "actor_rollout_ref.ref.rollout_n",
        "critic.rollout_n",
        "critic.loss_agg_mode",
        "critic.ppo_mini_batch_size",
        "actor_rollout_ref.rollout.n",
    }
    assert changed - {*PRESETS[name]} <= follow


@pytest.mark.parametrize("name", PRESETS)
def test_no_key_is_misspelt(stock, name):
    """Hydra would add it. What verl's configuration does not have is ours."""
    from omegaconf import OmegaConf

    from rl_estimators.verl import presets

    node = OmegaConf.create(presets.texts()[name])
    node.setdefault("data", {"train_batch_size": 1024})
    ours = {key for key, _ in flat(node) if key not in stock}
    assert all(key.startswith("rl_estimators.") for key in ours)


@pytest.mark.parametrize("name", PRESETS)
def test_verl_and_we_accept_each(compose, name):
    from verl.utils.config import omega_conf_to_dataclass

    from rl_estimators.verl import settings

    config = compose(f"+algorithm={name}", f"{ACTOR}.ppo_micro_batch_size_per_gpu=1")
    found = settings.apply(config)
    assert (found.value_loss is not None) == (name == "rle_gae")
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert actor.policy_loss.loss_mode == ("rle_reinforce" if name == "rle_remax" else "rle_ppo_clip")
    assert actor.policy_loss.get("options", {}) == ({} if name == "rle_remax" else {"clip_ratio_c": None})
    omega_conf_to_dataclass(config.algorithm)


def test_another_loss_than_the_presets(compose):
    """What the preset says of the loss that was replaced, null, is no option of the other one and does not matter."""
    from rl_estimators.verl import settings

    config = compose("+algorithm=rle_gae", "rl_estimators.policy_loss.name=gspo")
    assert settings.apply(config).policy_loss == settings.Loss("gspo", {})
    config = compose("+algorithm=rle_remax", "rl_estimators.policy_loss.name=ppo_clip")
    assert settings.apply(config).policy_loss == settings.Loss("ppo_clip", {})
    with pytest.raises(InputError, match=r"rl_estimators.policy_loss.clip_ratio_x"):
        settings.apply(compose("+algorithm=rle_gae", "++rl_estimators.policy_loss.clip_ratio_x=null"))


def test_the_command_line_wins(compose):
    overrides = [
        "algorithm.lam=0.5",
        "rl_estimators.value_loss.name=huber",
        "+rl_estimators.value_loss.delta=2",
        "++rl_estimators.policy_loss.clip_ratio_c=3",
        "actor_rollout_ref.actor.clip_ratio_high=0.28",
    ]
    for order in ([*overrides, "+algorithm=rle_gae"], ["+algorithm=rle_gae", *overrides]):
        config = compose(*order)
        assert (config.algorithm.adv_estimator, config.algorithm.lam) == ("rle_gae", 0.5)
        assert config.rl_estimators.value_loss == {"name": "huber", "delta": 2}
        assert config.rl_estimators.policy_loss.clip_ratio_c == 3
        assert config.actor_rollout_ref.actor.clip_ratio_high == 0.28


def test_a_loss_of_a_preset_can_be_taken_out(compose):
    from rl_estimators.verl import settings

    mode = f"{ACTOR}.policy_loss.loss_mode=gspo"
    with pytest.raises(
        InputError, match=r"two policy losses are named.*from a preset: ~rl_estimators.policy_loss"
    ):
        settings.apply(compose("+algorithm=rle_grpo", mode))
    config = compose("+algorithm=rle_grpo", mode, "~rl_estimators.policy_loss")
    assert settings.apply(config).policy_loss is None


def test_verls_own_use_of_the_group_still_works(compose):
    config = compose("+algorithm=rle_gae", "algorithm.rollout_correction.rollout_is=token")
    assert config.algorithm.rollout_correction.rollout_is == "token"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+algorithm=rle_gea", r"Could not find 'algorithm/rle_gea'\s+Available options in 'algorithm':\s+rle_gae\s+rle_grpo"),
        ("+algorithm=gae", "Could not find 'algorithm/gae'"),
        ("algorithm=rle_gae", r"To append to your default list use \+algorithm=rle_gae"),
    ],
)  # fmt: skip
def test_hydra_refuses_what_it_does_not_find(compose, override, message):
    from hydra.errors import HydraException

    with pytest.raises(HydraException, match=message):
        compose(override)


def test_no_presets_without_the_hook_that_reads_them(monkeypatch):
    """Their losses would not be trained with; Hydra says that there is no such preset."""
    import hydra.core.config_store
    from hydra.core.config_store import ConfigStore

    from rl_estimators import patching
    from rl_estimators.verl import presets

    stored = []
    monkeypatch.setattr(ConfigStore, "store", lambda self, **given: stored.append(given["name"]))
    presets.offer(hydra.core.config_store)
    assert stored == sorted(PRESETS)
    stored.clear()
    (status,) = (status for status in patching.report() if status.patch.name == "verl_need_critic")
    off = patching.Status(status.patch, patching.State.DISABLED, "by hand")
    monkeypatch.setitem(patching._statuses, "verl_need_critic", off)
    presets.offer(hydra.core.config_store)
    assert stored == []


def test_a_disabled_hook_makes_a_preset_an_error():
    """In a process of its own."""
    done = main_ppo("--cfg", "job", "+algorithm=rle_gae", RL_ESTIMATORS_DISABLE_PATCHES="verl_need_critic")
    assert done.returncode == 1
    assert "Could not find 'algorithm/rle_gae'" in done.stderr


def test_hydra_may_be_there_before_verl():
    code = "import hydra._internal.core_plugins, verl; from hydra.core.config_store import ConfigStore as C; print(*C.instance().list('algorithm'))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines()[-1].split() == [f"{name}.yaml" for name in sorted(PRESETS)], done.stderr


def main_ppo(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "verl.trainer.main_ppo", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=300,
    )


def test_main_ppo_finds_them(tmp_path):
    """In a process of its own, where nobody but the plugin has told Hydra."""
    done = main_ppo("--cfg", "job", "--package", "algorithm", "+algorithm=rle_gae", "algorithm.lam=0.5")
    assert "adv_estimator: rle_gae\n" in done.stdout, done.stderr
    assert "lam: 0.5\n" in done.stdout


def test_without_the_plugin_a_preset_is_an_error():
    done = main_ppo("--cfg", "job", "+algorithm=rle_gae", VERL_USE_EXTERNAL_PLUGINS="none")
    assert done.returncode == 1
    assert "Could not find 'algorithm/rle_gae'" in done.stderr


def test_a_preset_spelt_as_a_value_ends_the_run_at_once(tmp_path):
    """Hydra accepts `+rl_estimators=gae`; nothing has been started when we do not."""
    done = main_ppo("+rl_estimators=gae", f"hydra.run.dir={tmp_path}", HOME=str(tmp_path))
    assert done.returncode == 1
    assert "rl_estimators=gae names no preset" in done.stderr
    assert "Did you mean 'rle_gae'?" in done.stderr
    assert "Started a local Ray instance" not in done.stderr
