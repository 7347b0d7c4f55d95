"""The configuration: what it refuses and how it says so, the command line, YAML, and what is saved."""

import dataclasses
import json
import re

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import torch  # noqa: E402
import toy  # noqa: E402
import yaml  # noqa: E402
from trl import GRPOConfig, TrlParser  # noqa: E402

from rl_estimators import list_policy_loss, policy_loss, register_adv_est  # noqa: E402
from rl_estimators.errors import InputError, UnknownNameError  # noqa: E402
from rl_estimators.registry import ADV_ESTIMATORS  # noqa: E402
from rl_estimators.trl import (  # noqa: E402
    EstimatorConfig,
    EstimatorTrainer,
    GRPOTrainer,
    PPOConfig,
    ReinforcePPBaselineConfig,
    ReinforcePPConfig,
    ReMaxConfig,
)

CONFIGS = (EstimatorConfig, PPOConfig, ReinforcePPConfig, ReinforcePPBaselineConfig, ReMaxConfig)
OURS = {one.name for one in dataclasses.fields(EstimatorConfig)} - {
    one.name for one in dataclasses.fields(GRPOConfig)
}


def made(cls=EstimatorConfig, **fields):
    return cls(**{"output_dir": "out", "report_to": "none", "bf16": False, "use_cpu": True, **fields})


# --------------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gamma": 1.5}, "EstimatorConfig: gamma is 1.5, expected a number in [0, 1]"),
        ({"lam": -0.1}, "EstimatorConfig: lam is -0.1, expected a number in [0, 1]"),
        ({"vf_coef": -1.0}, "EstimatorConfig: vf_coef is -1.0, expected a number in [0, inf]"),
        ({"critic_learning_rate": -1.0}, "critic_learning_rate is -1.0, expected a number in [0, inf]"),
        ({"cliprange_value": -0.5}, "cliprange_value is -0.5, expected a number in [0, inf]"),
        ({"critic_warmup_steps": -1}, "critic_warmup_steps is -1, expected a number in [0, inf]"),
        ({"critic_micro_batch_size": 0}, "critic_micro_batch_size is 0, expected a number in [1, inf]"),
        (
            {"critic": "seperate"},
            "critic is 'seperate', expected one of separate, shared. Did you mean 'separate'",
        ),
        (
            {"critic": "shared", "critic_model_name_or_path": "m"},
            "critic='shared' is a head on the policy, so nobody would load critic_model_name_or_path='m'; drop one",
        ),
        ({"kl_penalty": "k4"}, "kl_penalty is 'k4', expected one of k1"),
        (
            {"kl_in_reward": True},
            "kl_in_reward=True with beta=0 charges nothing: set beta, or kl_in_reward=False",
        ),
        (
            {"kl_target": 0.1},
            "kl_target=0.1 steers the KL divergence in the reward: set kl_in_reward=True, or drop",
        ),
        (
            {"policy_loss_kwargs": {"x": 1}},
            "policy_loss_kwargs={'x': 1} with policy_loss='trl': TRL's own loss",
        ),
        (
            {"loss_agg_mode": "token-mean"},
            "loss_agg_mode='token-mean' with policy_loss='trl': TRL's own loss",
        ),
        (
            {"policy_loss": "ppo_clip", "loss_type": "bnpo"},
            "loss_type='bnpo' with policy_loss='ppo_clip': only TRL's own loss (policy_loss='trl') reads it",
        ),
        (
            {"policy_loss": "ppo_clip", "importance_sampling_level": "sequence"},
            "importance_sampling_level='sequence' with policy_loss='ppo_clip': only TRL's own loss",
        ),
        (
            {"policy_loss": "ppo_clip", "top_entropy_quantile": 0.2},
            "top_entropy_quantile=0.2 with policy_loss='ppo_clip': only TRL's own loss",
        ),
        (
            {"policy_loss": "ppo_clip", "off_policy_mask_threshold": 0.5},
            "off_policy_mask_threshold=0.5 with policy_loss='ppo_clip': only TRL's own loss",
        ),
        (
            {"policy_loss": "ppo_clip", "loss_agg_mode": "mean"},
            "loss_agg_mode is 'mean', expected one of token-mean",
        ),
        (
            {"policy_loss": "ppo_clip", "policy_loss_kwargs": {"clip": 1}},
            "policy_loss='ppo_clip' with policy_loss_kwargs: ppo_clip has no option 'clip'",
        ),
        (
            {"policy_loss": "reinforce", "epsilon_high": 0.3},
            "epsilon_high=0.3: policy_loss 'reinforce' has no clip_",
        ),
        ({"policy_loss": "gspo", "delta": 2.0}, "delta=2.0: policy_loss 'gspo' has no clip_ratio_c; drop it"),
        (
            {"value_loss_kwargs": {"cliprange_value": 0.1}, "cliprange_value": 0.2},
            "value_loss 'clipped': cliprange_value is 0.1 among its options, but cliprange_value says 0.2",
        ),
        (
            {"value_loss": "mse", "cliprange_value": 0.2},
            "cliprange_value is set, but value_loss 'mse' has no cliprange_value; its options:",
        ),
        (
            {"value_loss_kwargs": {"deltas": 1}},
            "value_loss='clipped' with value_loss_kwargs: clipped has no option 'deltas'",
        ),
        (
            {"adv_estimator": "grpo", "gamma": 0.9},
            "gamma is set, but adv_estimator 'grpo' has no gamma; its options",
        ),
        (
            {"adv_estimator": "mc", "lam": 0.9},
            "lam is set, but adv_estimator 'mc' has no lam; its options: gamma",
        ),
        (
            {"adv_estimator": "gae", "lam": 0.9, "adv_estimator_kwargs": {"lam": 0.8}},
            "adv_estimator 'gae': lam is 0.8 among its options, but lam says 0.9",
        ),
        (
            {"adv_estimator": "grpo", "adv_estimator_kwargs": {"eps": 1}},
            "adv_estimator='grpo' with adv_estimator_kwargs: grpo has no option 'eps'",
        ),
        (
            {"adv_estimator": "grpo", "adv_estimator_kwargs": "compat=trl"},
            "adv_estimator_kwargs is 'compat=trl', expected options by name, for example {\"epsilon\": 1e-4}",
        ),
        (
            {"adv_estimator": "grpo", "adv_estimator_kwargs": {"epsilon": "1e-4"}},  # what YAML makes of 1e-4
            "adv_estimator='grpo' with adv_estimator_kwargs: grpo: epsilon is '1e-4', expected a number",
        ),
        (
            {
                "adv_estimator": "grpo",
                "scale_rewards": "batch",
                "adv_estimator_kwargs": {"norm_by_std": False},
            },
            "grpo: std_over='batch' with norm_by_std=False, which divides by nothing; drop one of them",
        ),
        (
            {"policy_loss": "ppo_clip", "policy_loss_kwargs": {"clip_ratio_high": -0.3}},
            "policy_loss='ppo_clip' with policy_loss_kwargs: ppo_clip: clip_ratio_high is -0.3, expected a number in",
        ),
        (
            {"adv_estimator": "rloo", "scale_rewards": "batch"},
            "scale_rewards='batch' with adv_estimator='rloo', which does not divide by the batch's standard deviation",
        ),
        (
            {"adv_estimator": "reinforce_pp", "scale_rewards": "none"},
            "scale_rewards='none' is set, but adv_estimator 'reinforce_pp' has no norm_by_std",
        ),
        (
            {"adv_estimator": "gae", "scale_rewards": "none"},
            "scale_rewards='none' is set, but adv_estimator 'gae' has no norm_by_std",
        ),
        (
            {"policy_loss": "reinforce", "epsilon": 0.3},
            "epsilon=0.3: policy_loss 'reinforce' has no clip_ratio; drop it",
        ),
        (
            {"policy_loss": "sapo", "sapo_temperature_pos": 2.0},
            "sapo_temperature_pos=2.0 with policy_loss='sapo': only TRL's own loss (policy_loss='trl') reads it; "
            "set policy_loss_kwargs={'tau_pos': 2.0} instead",
        ),
        (
            {"policy_loss": "sapo", "sapo_temperature_neg": 2.0},
            "set policy_loss_kwargs={'tau_neg': 2.0} instead",
        ),
        (
            {"policy_loss": "ppo_clip", "sapo_temperature_pos": 2.0},
            "sapo_temperature_pos=2.0 with policy_loss='ppo_clip': only TRL's own loss (policy_loss='trl') reads it; "
            "set loss_agg_mode and policy_loss_kwargs instead",
        ),
        *(
            (
                {"policy_loss": "ppo_clip", name: 0.5},
                f"{name}=0.5 with policy_loss='ppo_clip': only TRL's own",
            )
            for name in ("vespo_k_pos", "vespo_k_neg", "vespo_lambda_pos", "vespo_lambda_neg")
        ),
        (
            {"kl_in_reward": True, "beta": 0.1, "use_bias_correction_kl": False},
            "use_bias_correction_kl=False with kl_in_reward=True: it corrects the KL divergence in the loss",
        ),
        ({"kl_penalty": "k2"}, "kl_penalty='k2' without kl_in_reward=True does nothing: set it, or drop"),
        (
            {"kl_in_reward": True, "beta": 0.1, "kl_horizon": 5.0},
            "kl_horizon=5.0 without kl_target does nothing: set it, or drop kl_horizon",
        ),
        (
            {"kl_in_reward": True, "beta": 0.1, "kl_target": 0.1, "kl_horizon": 0.0},
            "EstimatorConfig: kl_horizon is 0.0, expected a number above 0",
        ),
        (
            {"kl_in_reward": True, "beta": 0.1, "kl_target": -0.1},
            "EstimatorConfig: kl_target is -0.1, expected a number above 0",
        ),
        (
            {"kl_in_reward": True, "beta": 0.1, "kl_target": "0.1"},
            "EstimatorConfig: kl_target is '0.1', expected a number",
        ),
        (
            {"critic": "shared", "critic_micro_batch_size": 4},
            "critic='shared' reads the policy's own forward pass, so critic_micro_batch_size=4 would set nothing",
        ),
        (
            {"policy_loss": "reinforce", "num_iterations": 2},
            "num_iterations=2 with policy_loss='reinforce', which has no ratio: it would learn from completions of "
            "older weights as if they were its own. Set num_iterations to 1, or take a policy loss with a ratio: "
            "'cispo', 'clip_cov', 'gmpo', 'gspo', 'importance_sampling', 'kl_cov', 'ppo_clip', 'sapo'",
        ),
        ({"policy_loss": "gpg", "num_iterations": 2}, "num_iterations=2 with policy_loss='gpg'"),
        (
            {"policy_loss": "gpg", "gradient_accumulation_steps": 2, "steps_per_generation": 4},
            "steps_per_generation=4 (or the generation_batch_size that makes it so) and "
            "gradient_accumulation_steps=2 with policy_loss='gpg', which has no ratio",
        ),
        (
            {"policy_loss": "gpg", "gradient_accumulation_steps": 4, "steps_per_generation": 3},
            "steps_per_generation=3 (or the generation_batch_size that makes it so) and "
            "gradient_accumulation_steps=4 with policy_loss='gpg'",
        ),
        (
            {
                "adv_estimator": "gdpo",
                "reward_weights": [1.0, 2.0],
                "adv_estimator_kwargs": {"weights": [1.0, 3.0]},
            },
            "adv_estimator 'gdpo': weights is [1.0, 3.0] among its options, but reward_weights says [1.0, 2.0]",
        ),
        (
            {"adv_estimator": "rloo", "multi_objective_aggregation": "normalize_then_sum"},
            "multi_objective_aggregation='normalize_then_sum' with adv_estimator='rloo': only 'grpo' and 'gdpo'",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refusals(fields, message):
    with pytest.raises(InputError, match=re.escape(message)):
        made(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"adv_estimator": "grop"},
            "adv_estimator='grop': no advantage estimator is named 'grop'. Did you mean 'grpo'",
        ),
        (
            {"policy_loss": "ppo_clap"},
            "policy_loss='ppo_clap': no policy loss is named 'ppo_clap'. Did you mean",
        ),
        ({"value_loss": "clip"}, "value_loss='clip': no value loss is named 'clip'"),
    ],
)
def test_unknown_names(fields, message):
    with pytest.raises(UnknownNameError, match=re.escape(message)):
        made(**fields)


def test_a_configuration_of_trls_own_is_refused(tiny, tmp_path):
    message = (
        "args is a GRPOConfig, expected EstimatorConfig (or another EstimatorConfig), which has all of its"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        toy.make(EstimatorTrainer, GRPOConfig(**toy.settings(tmp_path)), tiny)


# ------------------------------------------------------------------------------------------------ what it passes on


def test_options_reach_the_functions():
    config = made(
        adv_estimator="gae", gamma=0.9, adv_estimator_kwargs={"whiten": False}, scale_rewards="group"
    )
    assert config.estimator_options(ADV_ESTIMATORS.spec("gae")) == {"whiten": False, "gamma": 0.9}
    config = made(adv_estimator="grpo", scale_rewards=False)
    assert config.estimator_options(ADV_ESTIMATORS.spec("grpo")) == {"norm_by_std": False}
    config = made(value_loss="clipped", cliprange_value=0.3)
    assert config.value_loss_options() == {"cliprange_value": 0.3}


def test_trls_clip_ratios_are_those_of_our_losses():
    config = made(policy_loss="ppo_clip", epsilon=0.1, epsilon_high=0.3, delta=4.0)
    options = config.policy_loss_options()
    assert options == {"clip_ratio_low": 0.1, "clip_ratio_high": 0.3, "clip_ratio_c": 4.0}
    assert made(policy_loss="ppo_clip", epsilon=0.1).policy_loss_options()["clip_ratio_high"] == 0.1
    config = made(policy_loss="ppo_clip", epsilon=0.1, policy_loss_kwargs={"clip_ratio_low": 0.05})
    assert config.policy_loss_options() == {"clip_ratio_low": 0.05, "clip_ratio_high": 0.1}


@pytest.mark.parametrize("name", sorted(list_policy_loss()))
def test_which_losses_have_a_ratio(name):
    """Those without have the same gradient whatever the old policy was; they are refused several updates a batch."""
    tensors = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0)).double()
    gradients = []
    for shift in (0.0, 0.7):
        new = tensors[0].clone().requires_grad_()
        old = tensors[0] - shift * tensors[1]
        loss, _ = policy_loss(
            name, old_log_prob=old, log_prob=new, advantages=tensors[2], response_mask=torch.ones(6, 5)
        )
        gradients.append(torch.autograd.grad(loss, new)[0])
    several = {"policy_loss": name, "num_iterations": 2}
    if torch.allclose(*gradients):
        with pytest.raises(InputError, match="has no ratio"):
            made(**several)
    else:
        assert made(**several).num_iterations == 2


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_several_generations_to_an_update_are_on_policy(steps):
    fields = {"gradient_accumulation_steps": 4, "steps_per_generation": steps, "num_generations": 2}
    assert made(policy_loss="reinforce", **fields).steps_per_generation == steps


def test_a_default_of_the_class_gives_way():
    """One field changed: what the others are by default is nobody's contradiction; what a user sets is."""
    assert made(PPOConfig, value_loss="mse").value_loss_options() == {}
    config = made(PPOConfig, adv_estimator="mc")
    assert config.estimator_options(ADV_ESTIMATORS.spec("mc")) == {"gamma": 1.0}
    with pytest.raises(InputError, match="cliprange_value is set, but value_loss 'mse' has no"):
        made(PPOConfig, value_loss="mse", cliprange_value=0.3)
    with pytest.raises(InputError, match="lam is set, but adv_estimator 'mc' has no lam"):
        made(PPOConfig, adv_estimator="mc", lam=0.9)


def test_an_option_by_name_wins_over_a_default_of_the_class():
    """PPOConfig has lam 0.95, gamma 1 and cliprange_value 0.2: who sets one by name has set it once."""
    options = {"lam": 0.9, "gamma": 0.99}
    config = made(PPOConfig, adv_estimator_kwargs=options)
    assert config.estimator_options(ADV_ESTIMATORS.spec("gae")) == options
    config = made(PPOConfig, value_loss_kwargs={"cliprange_value": 0.1})
    assert config.value_loss_options() == {"cliprange_value": 0.1}
    message = "adv_estimator 'gae': lam is 0.9 among its options, but lam says 0.8"
    with pytest.raises(InputError, match=message):
        made(PPOConfig, adv_estimator="gae", adv_estimator_kwargs=options, lam=0.8)


@pytest.mark.parametrize("name", ["rloo", "opo", "remax", "reinforce"])
def test_unscaled_as_they_are(name):
    config = made(adv_estimator=name, scale_rewards="none")
    assert config.estimator_options(ADV_ESTIMATORS.spec(name)) == {}


def test_whitening_scales():
    options = {"whiten": False}
    config = made(adv_estimator="gae", scale_rewards="none", adv_estimator_kwargs=options)
    assert config.estimator_options(ADV_ESTIMATORS.spec("gae")) == options
    with pytest.raises(InputError, match="scale_rewards='none' is set"):
        made(adv_estimator="reinforce", scale_rewards="none", adv_estimator_kwargs={"whiten": True})


def test_a_separate_critic_weighs_in_full():
    """TRL's .1 was for a sum of both losses; Adam takes the factor out again, but for gradient clipping."""
    assert (made(PPOConfig).critic, made(PPOConfig).vf_coef) == ("separate", 1.0)


# ---------------------------------------------------------------------------------------------- one completion a prompt


@pytest.mark.parametrize("batch", [2, 3, 8])
@pytest.mark.parametrize("cls", [PPOConfig, ReinforcePPConfig, ReMaxConfig])
def test_one_generation(cls, batch):
    config = made(cls, per_device_train_batch_size=batch)
    assert (config.num_generations, config.num_generations_eval) == (1, None)
    assert config.generation_batch_size == batch


@pytest.mark.parametrize(
    "fields",
    [
        {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 3},
        {
            "eval_strategy": "steps",
            "eval_steps": 1,
            "per_device_eval_batch_size": 4,
            "num_generations_eval": 2,
        },
        {"gradient_accumulation_steps": 3, "steps_per_generation": 5},
        {"generation_batch_size": 12},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_one_generation_beside_other_sizes(fields):
    config = made(num_generations=1, per_device_train_batch_size=4, **fields)
    assert config.num_generations == 1
    assert config.num_generations_eval == fields.get("num_generations_eval")


def test_one_generation_needs_a_batch_of_two():
    made(num_generations=1, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    message = (
        "num_generations=1 with a batch of a single completion: TRL wants two or more between two generations"
    )
    with pytest.raises(InputError, match=message):
        made(num_generations=1, per_device_train_batch_size=1, gradient_accumulation_steps=1)


def test_one_generation_is_still_checked_in_evaluation():
    with pytest.raises(ValueError, match=re.escape("The global eval batch size (3 * 1) must be divisible")):
        made(num_generations=1, eval_strategy="steps", per_device_eval_batch_size=3, num_generations_eval=2)


def test_one_generation_trains_and_evaluates(tiny, tmp_path):
    fields = toy.settings(
        tmp_path, max_steps=2, per_device_train_batch_size=3, num_generations=1, per_device_eval_batch_size=3
    )
    config = EstimatorConfig(**fields, adv_estimator="reinforce", eval_strategy="steps", eval_steps=1)
    run = toy.train(EstimatorTrainer, config, tiny)
    assert len(run.column("reward")) == len(run.column("eval_reward")) == 2
    assert min(run.column("grad_norm")) > 0


# ------------------------------------------------------------------------------------------- command line, YAML, saving


def test_every_field_has_help():
    for cls in CONFIGS:
        for one in dataclasses.fields(cls):
            if one.name in OURS:
                assert len(one.metadata.get("help", "")) > 20, (cls, one.name)


def test_another_default_keeps_its_help():
    assert PPOConfig.num_iterations == 4  # TRL has 1
    for cls in CONFIGS[1:]:
        known = {one.name: one.metadata for one in dataclasses.fields(EstimatorConfig)}
        for one in dataclasses.fields(cls):
            assert one.metadata == known[one.name], (cls, one.name)


def test_every_field_is_documented():
    assert not [name for name in OURS if f"        {name}: " not in EstimatorConfig.__doc__]


COMMAND = [
    *("--output_dir", "out", "--report_to", "none", "--bf16", "False", "--use_cpu"),
    *("--adv_estimator", "gae", "--adv_estimator_kwargs", '{"whiten": false}', "--gamma", "0.9"),
    *("--policy_loss", "ppo_clip", "--policy_loss_kwargs", '{"clip_ratio_low": 0.1}', "--kl_in_reward"),
    *("--beta", "0.05", "--critic_warmup_steps", "3", "--token_reward_weights", "0.5", "2"),
    *("--num_generations", "1", "--loss_agg_mode", "seq-mean-token-sum", "--bootstrap_truncated", "True"),
]
MEANT = {
    "adv_estimator": "gae",
    "adv_estimator_kwargs": {"whiten": False},
    "gamma": 0.9,
    "policy_loss": "ppo_clip",
    "policy_loss_kwargs": {"clip_ratio_low": 0.1},
    "kl_in_reward": True,
    "beta": 0.05,
    "critic_warmup_steps": 3,
    "token_reward_weights": [0.5, 2.0],
    "num_generations": 1,
    "loss_agg_mode": "seq-mean-token-sum",
    "bootstrap_truncated": True,
}


def test_command_line():
    (config,) = TrlParser((EstimatorConfig,)).parse_args_and_config(COMMAND)
    assert {name: getattr(config, name) for name in MEANT} == MEANT


@pytest.mark.parametrize("cls", CONFIGS)
def test_yaml(tmp_path, cls):
    """Options by name are mappings there; the command line wins."""
    base = {"output_dir": "out", "report_to": "none", "bf16": False, "use_cpu": True}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**base, **MEANT}))
    parser = TrlParser((cls,))
    (config,) = parser.parse_args_and_config(["--config", str(tmp_path / "run.yaml")])
    assert {name: getattr(config, name) for name in MEANT} == MEANT
    more = ["--config", str(tmp_path / "run.yaml"), "--gamma", "0.5"]
    (config,) = parser.parse_args_and_config(more)
    assert config.gamma == 0.5


def test_a_slip_on_the_command_line_is_refused():
    slip = ["--adv_estimator_kwargs", '{"whitten": false}']
    with pytest.raises(InputError, match=r"gae has no option 'whitten'\. Did you mean 'whiten'"):
        TrlParser((EstimatorConfig,)).parse_args_and_config([*COMMAND, *slip])


@pytest.mark.parametrize("cls", CONFIGS)
def test_saved_as_transformers_saves_it(tmp_path, cls):
    config = made(cls, adv_estimator="gae", adv_estimator_kwargs={"whiten": False}, gamma=0.9)
    torch.save(config, tmp_path / "training_args.bin")
    again = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert again == config
    assert type(again) is cls
    for saved in (json.loads(config.to_json_string()), config.to_dict()):
        for name in OURS:
            assert saved[name] == getattr(config, name), name
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name in OURS}
    assert {name: getattr(made(cls, **fields), name) for name in OURS} == fields


# ------------------------------------------------------------------------------------------------ a user's own trainer


def centred(token_level_rewards, response_mask, index=None, config=None, **kwargs):
    """As verl's users write them: everything else in ``**kwargs``, options in ``config``."""
    scores = token_level_rewards.sum(-1)
    scores = (scores - scores.mean()) * config.get("scale", 1.0)
    advantages = scores[:, None] * response_mask
    return advantages, advantages


def test_a_subclass_of_three_lines(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(ADV_ESTIMATORS, "_specs", dict(ADV_ESTIMATORS._specs))
    register_adv_est("centred_in_tests")(centred)

    class Mine(EstimatorTrainer):
        adv_estimator = "centred_in_tests"

    fields = toy.settings(tmp_path, max_steps=1, adv_estimator_kwargs={"scale": 2.0})
    run = toy.train(Mine, EstimatorConfig(**fields), tiny)
    column = torch.tensor(list(run.trainer._logs["advantages"]))
    scores = torch.tensor(list(run.trainer._logs["rewards"]["reward"]))
    torch.testing.assert_close(column, 2 * (scores - scores.mean()))
    assert run.column("grad_norm")[0] > 0


def test_the_configuration_names_another_estimator(tiny, tmp_path):
    """Both ways are open; the configuration wins over the class."""
    config = EstimatorConfig(**toy.settings(tmp_path), adv_estimator="rloo")
    assert toy.make(GRPOTrainer, config, tiny).estimator.name == "rloo"
    config = EstimatorConfig(**toy.settings(tmp_path))
    assert toy.make(GRPOTrainer, config, tiny).estimator.name == "grpo"


@pytest.mark.parametrize("as_path", [True, False])
def test_without_arguments(tiny, tmp_path, monkeypatch, as_path):
    """As ``trl.GRPOTrainer`` may be called: the folder is named after the model and the trainer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    # bf16 is TRL's default, and transformers has no words for a machine without a GPU
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    model = str(tiny) if as_path else AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    trainer = EstimatorTrainer(
        model=model,
        reward_funcs=toy.reward,
        train_dataset=toy.rows(),
        processing_class=AutoTokenizer.from_pretrained(tiny),
    )
    assert type(trainer.args) is EstimatorConfig
    assert trainer.args.output_dir == f"{tiny.name}-EstimatorTrainer"
