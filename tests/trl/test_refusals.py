"""What a trainer refuses when it is made: each message names the setting, the reason and what works."""

import inspect

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import torch  # noqa: E402
import toy  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from rl_estimators.errors import InputError  # noqa: E402
from rl_estimators.fields import FIELDS  # noqa: E402
from rl_estimators.registry import ADV_ESTIMATORS, POLICY_LOSSES, Estimate  # noqa: E402
from rl_estimators.trl import EstimatorConfig, EstimatorTrainer, PPOConfig, PPOTrainer, refusals  # noqa: E402


def make(tmp_path, cls=EstimatorTrainer, config_cls=EstimatorConfig, arguments=None, **fields):
    """Make a trainer on a model that does not exist: a refusal comes before anybody looks for it."""
    config = config_cls(**toy.settings(tmp_path, **fields))
    return cls("no/such/model", reward_funcs=toy.reward, args=config, **(arguments or {}))


def refused(tmp_path, message, **more):
    with pytest.raises(InputError, match=message):
        make(tmp_path, **more)


@pytest.fixture
def needy(monkeypatch):
    """Register, for one test, an estimator that cannot do without the inputs named."""
    monkeypatch.setattr(ADV_ESTIMATORS, "_specs", dict(ADV_ESTIMATORS._specs))

    def register(*names):
        def needy(**given):
            return Estimate(given["token_level_rewards"], given["token_level_rewards"])

        asked = ("token_level_rewards", "response_mask", *names)
        parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in asked]
        needy.__signature__ = inspect.Signature(parameters)
        ADV_ESTIMATORS.register("needy")(needy)

    return register


def test_nothing_is_refused_without_a_reason(tmp_path):
    """The control of all that follows: it gets as far as the model."""
    for fields in (
        {},
        {"adv_estimator": "reinforce_pp", "num_generations": 1},
        {"adv_estimator": "gae", "num_generations": 1, "bootstrap_truncated": True, "vf_coef": 0.5},
        {"adv_estimator": "remax", "num_generations": 1},
        {"adv_estimator": "gdpo", "reward_weights": [1.0]},
    ):
        with pytest.raises(OSError, match="no/such/model"):
            make(tmp_path, **fields)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sum_pi_squared", r"\(sum over the vocabulary of the squared probabilities\): not available"),
        ("non_tensor_batch", r"\(verl's other columns of the batch\): not available"),
        ("ref_log_prob", r"\(.*reference policy\): `beta` other than 0"),
        ("rollout_log_probs", r"\(.*sampled\): `use_vllm=True`"),
        ("truncated", r"\(.*\): `bootstrap_truncated=True`, with an estimator that asks for values"),
        ("bootstrap_values", r"\(.*\): `bootstrap_truncated=True`"),
        ("log_prob", r"\(.*\): losses get it, advantage estimators come before it"),
        ("rollout_is_weights", r"\(.*\): losses get it"),
    ],
)
def test_inputs_that_trl_does_not_supply(tmp_path, needy, name, text):
    needy(name)
    refused(
        tmp_path,
        rf"adv_estimator='needy' needs what this trainer cannot supply:\n  {name} {text}",
        adv_estimator="needy",
    )


@pytest.mark.parametrize("name", ["ref_log_prob", "truncated"])
def test_inputs_that_a_setting_supplies(tmp_path, needy, name):
    needy("values", name)
    setting = {"ref_log_prob": {"beta": 0.1}, "truncated": {"bootstrap_truncated": True}}[name]
    refused(tmp_path, "cannot supply", adv_estimator="needy")
    with pytest.raises(OSError, match="no/such/model"):
        make(tmp_path, adv_estimator="needy", **setting)


def test_no_text_of_the_vocabulary_puts_trl_off():
    """The trainers are there now."""
    for name, field in FIELDS.items():
        assert "until then" not in field.trl
        assert "yourself" not in field.trl, name


@pytest.mark.parametrize(
    "name", ["grpo", "rloo", "opo", "gpg", "grpo_passk", "maxrl", "reinforce_pp_baseline"]
)
def test_one_completion_for_an_estimator_that_compares(tmp_path, name):
    message = (
        rf"num_generations=1 with adv_estimator='{name}', which compares .*Set num_generations to 2 or more"
    )
    refused(tmp_path, message, adv_estimator=name, num_generations=1)


def test_the_trainers_own_estimator_counts(tmp_path):
    """GRPO's, where the configuration names none."""
    refused(tmp_path, r"num_generations=1 with adv_estimator='grpo'", num_generations=1)


def test_one_completion_in_evaluation(tmp_path):
    """TRL allows it: nobody minimises that loss, and the rewards are what is asked for."""
    with pytest.raises(OSError, match="no/such/model"):
        make(tmp_path, num_generations_eval=1)


@pytest.mark.parametrize(
    ("name", "owner"), [("environment_factory", "an environment"), ("rollout_func", "a rollout function")]
)
def test_greedy_completions_of_what_cannot_be_repeated(tmp_path, name, owner):
    message = rf"{name} with adv_estimator='remax': its baseline is a greedy completion, and {owner} .*'rloo'"
    refused(tmp_path, message, adv_estimator="remax", arguments={name: lambda *_: None})


@pytest.mark.parametrize(
    "field",
    [
        {"critic": "shared"},
        {"critic_learning_rate": 1e-4},
        {"vf_coef": 0.1},
        {"critic_warmup_steps": 3},
        {"critic_micro_batch_size": 2},
        {"critic_model_name_or_path": "some/model"},
        {"value_loss": "mse"},
        {"cliprange_value": 0.3},
    ],
    ids=lambda field: next(iter(field)),
)
def test_settings_of_a_critic_that_is_not_there(tmp_path, field):
    name, value = next(iter(field.items()))
    message = rf"{name}={value!r} with adv_estimator='grpo': it asks for no values, .* such as 'gae'"
    refused(tmp_path, message, **field)


def test_a_class_whose_defaults_are_a_critics(tmp_path):
    """What nobody set is nobody's mistake."""
    with pytest.raises(OSError, match="no/such/model"):
        make(tmp_path, PPOTrainer, PPOConfig, adv_estimator="reinforce_pp", num_generations=1, lam=None)
    message = r"vf_coef=0.7 with adv_estimator='reinforce_pp'"
    refused(
        tmp_path,
        message,
        cls=PPOTrainer,
        config_cls=PPOConfig,
        adv_estimator="reinforce_pp",
        num_generations=1,
        lam=None,
        vf_coef=0.7,
    )


def test_a_critic_for_an_estimator_without_values(tmp_path):
    refused(
        tmp_path,
        r"value_model with adv_estimator='grpo': it asks for no values",
        arguments={"value_model": torch.nn.Linear(1, 1)},
    )


def test_a_critic_of_ones_own_beside_a_shared_one(tiny, tmp_path):
    config = EstimatorConfig(**toy.settings(tmp_path, adv_estimator="gae", critic="shared"))
    with pytest.raises(InputError, match=r"critic='shared' is a head on the policy, so value_model"):
        toy.make(EstimatorTrainer, config, tiny, value_model=torch.nn.Linear(1, 1))


def test_bootstrapping(tmp_path):
    refused(
        tmp_path,
        r"bootstrap_truncated=True with adv_estimator='grpo', which knows nothing of truncated .* such as 'gae'",
        bootstrap_truncated=True,
    )
    refused(
        tmp_path,
        r"bootstrap_truncated=True with mask_truncated_completions=True, .*keep one of the two",
        adv_estimator="gae",
        bootstrap_truncated=True,
        mask_truncated_completions=True,
    )


def test_weights_of_token_rewards(tmp_path):
    refused(
        tmp_path, r"token_reward_weights has 1 numbers for 0 token_reward_funcs", token_reward_weights=[1.0]
    )
    refused(
        tmp_path,
        r"token_reward_weights has 1 numbers for 2 token_reward_funcs; give one for each",
        token_reward_weights=[1.0],
        arguments={"token_reward_funcs": [toy.reward, toy.reward]},
    )


def test_a_token_reward_function_that_is_none(tmp_path):
    refused(
        tmp_path,
        r"token_reward_funcs holds 'some/model', expected functions .* belong in reward_funcs",
        arguments={"token_reward_funcs": ["some/model"]},
    )


def test_maxrl_takes_no_negative_scores(tmp_path):
    refused(
        tmp_path,
        r"kl_in_reward=True with adv_estimator='maxrl', .* may not be negative.* Set kl_in_reward=False",
        **{"adv_estimator": "maxrl", "kl_in_reward": True, "beta": 0.1},
    )


def test_gdpo_reads_no_rewards_of_tokens(tmp_path):
    refused(
        tmp_path,
        r"kl_in_reward=True with adv_estimator='gdpo', .* no effect. Set kl_in_reward=False",
        **{"adv_estimator": "gdpo", "kl_in_reward": True, "beta": 0.1},
    )
    refused(
        tmp_path,
        r"token_reward_funcs with adv_estimator='gdpo', .* or take 'grpo'",
        adv_estimator="gdpo",
        arguments={"token_reward_funcs": toy.reward},
    )


def test_two_weights_for_a_reward(tmp_path):
    refused(
        tmp_path,
        r"weights is \[2.0\] among its options, but reward_weights says \[1.0\]",
        **{"adv_estimator": "gdpo", "reward_weights": [1.0], "adv_estimator_kwargs": {"weights": [2.0]}},
    )


def test_the_kl_of_remax_twice_or_of_nothing(tmp_path):
    own = {"adv_estimator": "remax", "adv_estimator_kwargs": {"beta": 0.05}}
    refused(tmp_path, r"\{'beta': 0.05\} with beta=0: there is no reference model .*kl_in_reward=True", **own)
    refused(
        tmp_path,
        r"\{'beta': 0.05\} with kl_in_reward=True and beta=0.1: .* charged twice. Drop the option",
        **own,
        beta=0.1,
        kl_in_reward=True,
    )


def test_ligers_own_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(refusals, "version", lambda _: "1.13.0")
    refused(
        tmp_path,
        r"use_liger_kernel=True: in TRL 1.13.0 Liger computes the whole loss, .* install trl>=1.14",
        use_liger_kernel=True,
    )
    monkeypatch.setattr(refusals, "version", lambda _: "1.14.0")
    with pytest.raises(OSError, match="no/such/model"):
        make(tmp_path, use_liger_kernel=True)


def test_a_policy_loss_without_vllms_weights(tmp_path, monkeypatch):
    def plain(old_log_prob, log_prob, advantages, response_mask):
        return log_prob.sum(), {}

    monkeypatch.setattr(POLICY_LOSSES, "_specs", dict(POLICY_LOSSES._specs))
    POLICY_LOSSES.register("plain")(plain)
    refused(
        tmp_path,
        r"policy_loss='plain' with use_vllm=True: .*rollout_is_weights, .* choose another policy loss",
        policy_loss="plain",
        use_vllm=True,
    )


def test_who_can_do_without_greedy_completions_gets_none(tmp_path, needy):
    """As in verl: each would cost a completion more a prompt."""
    needy()
    named = inspect.Parameter("reward_baselines", inspect.Parameter.KEYWORD_ONLY, default=None)
    function = ADV_ESTIMATORS.spec("needy").function
    function.__signature__ = inspect.Signature([*function.__signature__.parameters.values(), named])
    ADV_ESTIMATORS._specs.pop("needy")
    ADV_ESTIMATORS.register("needy")(function)
    assert ADV_ESTIMATORS.spec("needy").optional == ("reward_baselines",)
    refused(
        tmp_path, "for which nothing is decoded greedily", adv_estimator="needy", greedy_with_samples=False
    )


def test_greedy_completions_that_nobody_asks_for(tmp_path):
    refused(
        tmp_path,
        r"greedy_with_samples=False with adv_estimator='grpo', for which nothing is decoded greedily. .* 'remax'",
        greedy_with_samples=False,
    )
    with pytest.raises(OSError, match="no/such/model"):
        make(tmp_path, adv_estimator="remax", greedy_with_samples=False)


@pytest.fixture(scope="module")
def experts(tiny, tmp_path_factory):
    """The folder of a tiny mixture of experts."""
    from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

    folder = tmp_path_factory.mktemp("experts")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": len(tokenizer)}
    sizes |= {"num_experts": 2, "num_experts_per_tok": 1, "router_aux_loss_coef": 0.5}
    sizes |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_routers_loss_is_not_left_out(experts, tmp_path):
    """A mixture of experts under a policy loss of ours: TRL's auxiliary loss, weighed and logged as TRL does."""
    steps = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    fields = toy.settings(tmp_path, max_steps=3, **steps, router_aux_loss_coef=0.5)
    theirs = toy.train(GRPOTrainer, GRPOConfig(**fields, loss_type="dapo"), experts)
    config = EstimatorConfig(**fields, policy_loss="ppo_clip", adv_estimator_kwargs={"compat": "trl"})
    ours = toy.train(EstimatorTrainer, config, experts)
    for column in ("loss", "aux_loss", "grad_norm"):
        assert len(theirs.column(column)) == 3
        assert ours.column(column) == pytest.approx(theirs.column(column), rel=1e-6, abs=1e-6), column
    assert min(theirs.column("aux_loss")) > 0.1
    plain = EstimatorConfig(
        **{**fields, "router_aux_loss_coef": 0.0},
        policy_loss="ppo_clip",
        adv_estimator_kwargs={"compat": "trl"},
    )
    without = toy.train(EstimatorTrainer, plain, experts)
    assert without.column("aux_loss") == []
    assert abs(without.column("loss")[0] - ours.column("loss")[0]) > 0.1
