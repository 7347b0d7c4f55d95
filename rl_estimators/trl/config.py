"""The configuration of :class:`~rl_estimators.trl.trainer.EstimatorTrainer`: TRL's, and what TRL has no word for."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar

from trl import GRPOConfig

from rl_estimators import aggregation, shaping
from rl_estimators.errors import InputError
from rl_estimators.fields import check_choice, check_positive, check_range
from rl_estimators.registry import ADV_ESTIMATORS, POLICY_LOSSES, VALUE_LOSSES, Spec
from rl_estimators.trl.one_generation import accepting_one_generation
from rl_estimators.trl.options import Options, changed, look_up

__all__ = ["TRL_LOSS", "EstimatorConfig"]

TRL_LOSS = "trl"  # as policy_loss: TRL's own losses, untouched
CRITICS = ("separate", "shared")
_KWARGS = ("adv_estimator_kwargs", "policy_loss_kwargs", "value_loss_kwargs")
_WITHOUT_RATIO = ("gpg", "reinforce")  # policy losses that take the batch for the current policy's own
# TRL's clip ratios, and the options of a policy loss that one of them sets.
_CLIPS: Mapping[str, tuple[str, ...]] = {
    "epsilon": ("clip_ratio", "clip_ratio_low", "clip_ratio_high"),
    "epsilon_high": ("clip_ratio_high",),
    "delta": ("clip_ratio_c",),
}
_UNSCALED = ("opo", "remax", "rloo")  # estimators that divide by nothing, whatever their options
# Settings of TRL that only its own losses read, and the value at which they do nothing.
_OF_TRL_LOSSES: Mapping[str, Any] = {
    "loss_type": "dapo",
    "importance_sampling_level": "token",
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "use_adaptive_entropy": False,
    **{
        one.name: one.default
        for one in fields(GRPOConfig)
        if one.name.startswith(("sapo_temperature_", "vespo_"))
    },
}


@dataclass
class EstimatorConfig(GRPOConfig):
    r"""Everything of :class:`trl.GRPOConfig`, and where advantages, losses and the critic come from.

    ``num_generations`` may be 1: only estimators that compare a prompt's completions need more. TRL's ``beta`` weighs
    the KL divergence wherever it goes; ``epsilon``, ``epsilon_high`` and ``delta`` are the clip ratios of our losses
    too, where those have them (``delta`` is ``clip_ratio_c``); an ``epsilon`` left at TRL's default leaves a loss its
    own.

    A default of a configuration class gives way to an ``adv_estimator`` or ``value_loss`` that has no such option, and
    to the same option in ``adv_estimator_kwargs`` or ``value_loss_kwargs``; only a value of your own is refused there.

    Args:
        adv_estimator: Name of an advantage estimator; None for the trainer's own.
        adv_estimator_kwargs: Its options.
        gamma: Discount per token, in [0, 1]; None for the estimator's default.
        lam: GAE's lambda, in [0, 1]; None for the estimator's default.
        bootstrap_truncated: A completion cut off by the length limit ends in the critic's value, not in 0.
        kl_in_reward: Charge the KL divergence to the rewards, token by token, instead of adding it to the loss.
        kl_penalty: The form it has in the rewards: k1, k2 or k3.
        kl_target: KL divergence per token, in nats, that ``beta`` is steered to after each batch; None: beta stays.
        kl_horizon: Over how many completions beta may change by about a fifth.
        token_reward_weights: Factors of the trainer's ``token_reward_funcs``; None for 1 each.
        policy_loss: ``"trl"``, or the name of a policy loss.
        policy_loss_kwargs: Its options.
        loss_agg_mode: How its tokens are averaged; None for token-mean.
        value_loss: Name of a value loss.
        value_loss_kwargs: Its options.
        cliprange_value: How far a value may move in an update, in units of reward; None for the value loss's default.
        greedy_with_samples: For estimators with a greedy baseline: decode greedily in the same batch as the samples,
            where transformers generates text without tools; otherwise afterwards.
        critic: ``"separate"``: a model of its own; ``"shared"``: a head on the policy's hidden states.
        critic_model_name_or_path: What a separate critic starts from; None for the policy's own weights.
        critic_learning_rate: Peak learning rate of the critic, which follows the policy's schedule.
        vf_coef: Factor of the value loss.
        critic_warmup_steps: Optimizer steps in which only the critic learns.
        critic_micro_batch_size: Completions per forward pass of a separate critic; None for the policy's.
        diagnostics: Log the numbers of :data:`rl_estimators.diagnostics.DIAGNOSTICS`.

    Raises:
        UnknownNameError: no such estimator or loss.
        InputError: a value out of range, an unknown option, or fields that contradict each other; the message
            names the fields.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *GRPOConfig._VALID_DICT_FIELDS,
        *_KWARGS,
    ]  # JSON on the command line

    adv_estimator: str | None = field(
        default=None,
        metadata={
            "help": "Advantage estimator, see `rl-estimators list`. Unset, the trainer's own: grpo for EstimatorTrainer."
        },
    )
    adv_estimator_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of the advantage estimator, by name."}
    )
    gamma: float | None = field(
        default=None,
        metadata={"help": "Discount per token, in [0, 1]. Unset, the estimator's default."},
    )
    lam: float | None = field(
        default=None,
        metadata={
            "help": "GAE's lambda in [0, 1]: 0 is TD (bias), 1 Monte Carlo (variance). Unset, the estimator's default."
        },
    )
    bootstrap_truncated: bool = field(
        default=False,
        metadata={
            "help": "End a completion that the length limit cut off in the critic's value instead of 0. For tasks "
            "where a truncated answer would have gone on, not for those where it counts as failed."
        },
    )
    kl_in_reward: bool = field(
        default=False,
        metadata={
            "help": "Charge the KL divergence from the reference model, times beta, to each token's reward, instead "
            "of adding it to the loss as TRL does."
        },
    )
    kl_penalty: str = field(
        default="k1",
        metadata={
            "help": "Estimate of the KL divergence in the rewards: k1 (unbiased), k2, k3 (never negative).",
            "choices": list(shaping.PENALTIES),
        },
    )
    kl_target: float | None = field(
        default=None,
        metadata={
            "help": "KL divergence per token, in nats, that beta is steered to from batch to batch. Unset, beta stays. "
            "Needs kl_in_reward."
        },
    )
    kl_horizon: float = field(
        default=10000.0,
        metadata={"help": "Over how many completions kl_target may change beta by about a fifth."},
    )
    token_reward_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Factors of the trainer's token_reward_funcs, in their order. Unset, 1 each."},
    )
    policy_loss: str = field(
        default=TRL_LOSS,
        metadata={
            "help": "Policy loss, see `rl-estimators list`; 'trl' for TRL's own losses, chosen by loss_type."
        },
    )
    policy_loss_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of the policy loss, by name. Not with policy_loss 'trl'."}
    )
    loss_agg_mode: str | None = field(
        default=None,
        metadata={
            "help": "How policy_loss averages over tokens. Unset, token-mean. Not with policy_loss 'trl'.",
            "choices": list(aggregation.MODES),
        },
    )
    value_loss: str = field(
        default="clipped", metadata={"help": "Value loss of the critic, see `rl-estimators list`."}
    )
    value_loss_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of the value loss, by name."}
    )
    cliprange_value: float | None = field(
        default=None,
        metadata={
            "help": "How far the clipped value loss lets a value move in an update, in units of reward. Unset, 0.5."
        },
    )
    greedy_with_samples: bool = field(
        default=True,
        metadata={
            "help": "For estimators with a greedy baseline (remax): decode a prompt's greedy completion in the same "
            "batch as its samples, which is faster and needs memory for both, instead of afterwards. Generation by "
            "vLLM, with tools or from images always decodes afterwards."
        },
    )
    critic: str = field(
        default="separate",
        metadata={
            "help": "For estimators with values: 'separate', a value model of its own, or 'shared', a value head on "
            "the policy's hidden states.",
            "choices": list(CRITICS),
        },
    )
    critic_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Weights that a separate critic starts from. Unset, the policy's own backbone."},
    )
    critic_learning_rate: float = field(
        default=1e-5,
        metadata={"help": "Peak learning rate of the critic. It follows the policy's schedule."},
    )
    vf_coef: float = field(default=1.0, metadata={"help": "Factor of the value loss."})
    critic_warmup_steps: int = field(
        default=0,
        metadata={"help": "Optimizer steps at the start in which the critic learns and the policy stays."},
    )
    critic_micro_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Completions per forward pass of a separate critic. Unset, per_device_train_batch_size."
        },
    )
    diagnostics: bool = field(
        default=True,
        metadata={
            "help": "Log numbers that tell whether advantages and updates can be trusted; `rl-estimators diagnostics` "
            "says what each means."
        },
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A subclass that sets another default, ``gamma: float | None = 1.0``, keeps the field's help text."""
        super().__init_subclass__(**kwargs)
        for one in fields(cls):  # those of its bases: @dataclass has not seen the class yet
            default = vars(cls).get(one.name, MISSING)
            if default is not MISSING and not isinstance(default, Field):
                setattr(cls, one.name, field(default=default, metadata=one.metadata))

    def __post_init__(self) -> None:
        with accepting_one_generation(self):
            super().__post_init__()
        self._check_numbers()
        self._check_kl()
        self._check_policy_loss()
        self.value_loss_options()
        if self.adv_estimator is not None:
            name = self.estimator_name(self.adv_estimator)
            self.estimator_options(look_up(ADV_ESTIMATORS, "adv_estimator", name))

    def estimator_name(self, own: str) -> str:
        """The estimator to use: ``adv_estimator``, else the trainer's ``own``.

        TRL's ``multi_objective_aggregation="normalize_then_sum"`` makes GDPO of GRPO.

        Raises:
            InputError: it is set, and the estimator is neither.
        """
        name = self.adv_estimator or own
        if self.multi_objective_aggregation == "sum_then_normalize":
            return name
        if name not in ("grpo", "gdpo"):
            raise InputError(
                f"multi_objective_aggregation={self.multi_objective_aggregation!r} with adv_estimator={name!r}: only "
                "'grpo' and 'gdpo' normalise each reward by itself; choose one of them, or drop it"
            )
        return "gdpo"

    def estimator_options(self, spec: Spec) -> dict[str, Any]:
        """The options of an estimator: ``adv_estimator_kwargs``, ``gamma``, ``lam``, ``scale_rewards``, ``reward_weights``.

        Raises:
            InputError: it has no such option, or two fields set the same one.
        """
        options = Options(self, "adv_estimator", spec)
        options.take("gamma")
        options.take("lam")
        if spec.asks_for("reward_components") and "weights" in spec.options:
            options.add("weights", self.reward_weights, "reward_weights")
        self._add_scaling(options, spec)
        return options.checked()

    def _add_scaling(self, options: Options, spec: Spec) -> None:
        said = f"scale_rewards={self.scale_rewards!r}"
        if self.scale_rewards == "none" and not _never_scales(spec, options.found):
            options.add("norm_by_std", False, "scale_rewards", said)
        elif self.scale_rewards == "batch" and "std_over" in spec.options:
            options.add("std_over", "batch", "scale_rewards", said)
        elif self.scale_rewards == "batch":
            raise InputError(
                f"{said} with adv_estimator={spec.name!r}, which does not divide by the batch's standard deviation: "
                "'grpo' and 'reinforce_pp_baseline' can; choose one, or drop it"
            )

    def policy_loss_options(self) -> dict[str, Any]:
        """The options of ``policy_loss``: its own, and TRL's clip ratios where those are not given."""
        spec = look_up(POLICY_LOSSES, "policy_loss", self.policy_loss)
        options = Options(self, "policy_loss", spec)
        # untouched, the loss's own default stands
        low = None if self.epsilon == GRPOConfig.epsilon else self.epsilon
        high = low if self.epsilon_high is None else self.epsilon_high
        for key, value in (("epsilon", low), ("epsilon_high", self.epsilon_high), ("delta", self.delta)):
            if value is not None and not any(option in spec.options for option in _CLIPS[key]):
                raise InputError(f"{key}={value}: policy_loss {spec.name!r} has no {_CLIPS[key][0]}; drop it")
        clips = {
            "clip_ratio": low,
            "clip_ratio_low": low,
            "clip_ratio_high": high,
            "clip_ratio_c": self.delta,
        }
        theirs = {name: value for name, value in clips.items() if name in spec.options and value is not None}
        options.found = theirs | options.found
        return options.checked()

    def value_loss_options(self) -> dict[str, Any]:
        """The options of ``value_loss``, ``cliprange_value`` among them."""
        spec = look_up(VALUE_LOSSES, "value_loss", self.value_loss)
        options = Options(self, "value_loss", spec)
        options.take("cliprange_value")
        return options.checked()

    def _check_numbers(self) -> None:
        owner = type(self).__name__
        check_range(owner, high=1.0, gamma=self.gamma, lam=self.lam)
        check_range(owner, vf_coef=self.vf_coef, critic_learning_rate=self.critic_learning_rate)
        check_range(owner, cliprange_value=self.cliprange_value, critic_warmup_steps=self.critic_warmup_steps)
        check_range(owner, low=1.0, critic_micro_batch_size=self.critic_micro_batch_size)
        check_choice(owner, "critic", self.critic, CRITICS)
        if self.critic == "shared" and self.critic_model_name_or_path is not None:
            raise InputError(
                f"critic='shared' is a head on the policy, so nobody would load "
                f"critic_model_name_or_path={self.critic_model_name_or_path!r}; drop one of the two"
            )
        if self.critic == "shared" and self.critic_micro_batch_size is not None:
            raise InputError(
                f"critic='shared' reads the policy's own forward pass, so critic_micro_batch_size="
                f"{self.critic_micro_batch_size} would set nothing; drop one of the two"
            )

    def _check_kl(self) -> None:
        check_choice(type(self).__name__, "kl_penalty", self.kl_penalty, shaping.PENALTIES)
        if self.kl_in_reward and self.beta == 0:
            raise InputError("kl_in_reward=True with beta=0 charges nothing: set beta, or kl_in_reward=False")
        if self.kl_target is not None and not self.kl_in_reward:
            raise InputError(
                f"kl_target={self.kl_target} steers the KL divergence in the reward: set kl_in_reward=True, or drop it"
            )
        for name, needs, idle in (
            ("kl_penalty", "kl_in_reward=True", not self.kl_in_reward),
            ("kl_horizon", "kl_target", self.kl_target is None),
        ):
            if idle and changed(self, [name]):
                raise InputError(
                    f"{name}={getattr(self, name)!r} without {needs} does nothing: set it, or drop {name}"
                )
        for name in ("kl_target", "kl_horizon"):
            value = getattr(self, name)
            if value is not None:
                check_positive(type(self).__name__, **{name: value})
        if self.kl_in_reward and changed(self, ["use_bias_correction_kl"]):
            raise InputError(
                f"use_bias_correction_kl={self.use_bias_correction_kl} with kl_in_reward=True: it corrects the KL "
                "divergence in the loss, which is not there; drop one of the two"
            )
        self.kl_controller()

    def kl_controller(self) -> shaping.AdaptiveKLController | shaping.FixedKLController:
        """What decides on the factor of the KL divergence in the reward, from batch to batch; it starts at beta."""
        if self.kl_target is None:
            return shaping.FixedKLController(self.beta)
        return shaping.AdaptiveKLController(self.beta, self.kl_target, self.kl_horizon)

    def _check_policy_loss(self) -> None:
        if self.policy_loss == TRL_LOSS:
            for name in ("policy_loss_kwargs", "loss_agg_mode"):
                if getattr(self, name):
                    raise InputError(
                        f"{name}={getattr(self, name)!r} with policy_loss='trl': TRL's own loss, which loss_type and "
                        "epsilon set, would not read it; name a loss of ours in policy_loss, or drop it"
                    )
            return
        for name, idle in _OF_TRL_LOSSES.items():
            if getattr(self, name, idle) != idle:
                raise InputError(
                    f"{name}={getattr(self, name)!r} with policy_loss={self.policy_loss!r}: only TRL's own loss "
                    f"(policy_loss='trl') reads it; set {self._instead_of(name)} instead, or drop it"
                )
        if self.loss_agg_mode is not None:
            check_choice(type(self).__name__, "loss_agg_mode", self.loss_agg_mode, aggregation.MODES)
        self.policy_loss_options()
        if self.policy_loss in _WITHOUT_RATIO:
            self._check_on_policy()

    def _instead_of(self, name: str) -> str:
        """What a policy loss of ours has in place of a setting of TRL's losses."""
        if name.startswith("sapo_temperature_") and self.policy_loss == "sapo":
            return f"policy_loss_kwargs={{'tau_{name.rsplit('_', 1)[1]}': {getattr(self, name)!r}}}"
        return "loss_agg_mode and policy_loss_kwargs"

    def _check_on_policy(self) -> None:
        """A loss without a ratio is right for completions of the very weights that it updates.

        They are older where TRL, too, keeps the log-probabilities of the policy that wrote them.
        """
        if self.gradient_accumulation_steps % (self.steps_per_generation * self.num_iterations) == 0:
            return
        several = self.num_iterations > 1
        wrong, right = (
            (f"num_iterations={self.num_iterations}", "num_iterations to 1")
            if several
            else (
                f"steps_per_generation={self.steps_per_generation} (or the generation_batch_size that makes it so) and "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}",
                "steps_per_generation to gradient_accumulation_steps or a divisor of it",
            )
        )
        known = ", ".join(repr(name) for name in POLICY_LOSSES.names() if name not in _WITHOUT_RATIO)
        raise InputError(
            f"{wrong} with policy_loss={self.policy_loss!r}, which has no ratio: it would learn from completions of "
            f"older weights as if they were its own. Set {right}, or take a policy loss with a ratio: {known}"
        )


def _never_scales(spec: Spec, options: Mapping[str, Any]) -> bool:
    """Whether the estimator, with these options, leaves advantages in units of reward."""
    return spec.name in _UNSCALED or options.get("whiten", spec.options.get("whiten")) is False
