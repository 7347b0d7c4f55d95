"""Every option of every estimator and loss, with its documented range.

What is registered and has an option that is not here fails, see ``test_every_option_is_drawn``.
"""

from typing import get_args

from hypothesis import strategies as st

from rl_estimators.aggregation import MODES
from rl_estimators.registry import ADV_ESTIMATORS

UNIT = st.sampled_from([1.0, 0.0, 0.5, 0.95, 0.99, 1e-3])
AT_LEAST_0 = st.sampled_from([0.0, 1e-8, 1e-3, 0.2, 1.0, 30.0])
SINGLETON = st.sampled_from(["zero", "raw"])
DDOF = st.sampled_from([0, 1])
YES_OR_NO = st.booleans()


def whitenings(weighting=("token", "sequence")):
    return st.fixed_dictionaries(
        {},
        optional={
            "eps": st.sampled_from([0.0, 1e-8, 1e-4, 1.0]),
            "ddof": DDOF,
            "weighting": st.sampled_from(weighting),
            "eps_in": st.sampled_from(["variance", "std"]),
        },
    )


CRITIC = {"gamma": UNIT, "whiten": YES_OR_NO, "whitening": whitenings()}
CLIP = {"clip_ratio_low": UNIT, "clip_ratio_high": AT_LEAST_0}
ESTIMATORS = {
    "gae": {**CRITIC, "lam": UNIT},
    "decoupled_gae": {**CRITIC, "lam": UNIT, "critic_lam": UNIT},
    "length_adaptive_gae": {**CRITIC, "alpha": AT_LEAST_0, "critic_lam": UNIT},
    "turn_gae": {**CRITIC, "lam": UNIT},
    "td": CRITIC,
    "mc": CRITIC,
    "k_step_td": {**CRITIC, "k": st.sampled_from([1, 2, 3, 7, 100])},
    "reinforce": CRITIC,
    "reinforce_pp": {"gamma": UNIT, "whitening": whitenings()},
    "remax": {
        "gamma": UNIT,
        "beta": st.sampled_from([0.0, 1e-3, 0.5]),
        "penalty": st.sampled_from(["k1", "k2", "k3"]),
    },
    "grpo": {
        "norm_by_std": YES_OR_NO,
        "std_over": st.sampled_from(["group", "batch"]),
        "epsilon": AT_LEAST_0,
        "singleton": SINGLETON,
        "ddof": DDOF,
        "arithmetic": st.sampled_from(["pivot", "pivot", "trl"]),
    },
    "grpo_passk": {"norm_by_std": YES_OR_NO, "epsilon": AT_LEAST_0, "ddof": DDOF},
    "rloo": {"singleton": SINGLETON},
    "opo": {"singleton": SINGLETON},
    "maxrl": {},
    "gpg": {
        "f_norm": st.sampled_from([1.0, 1e-12, 1e-3, 1e3]),
        "alpha": st.one_of(st.none(), AT_LEAST_0),
        "singleton": SINGLETON,
        "dead": st.sampled_from(["equal_scores", "zero_score"]),
    },
    "gdpo": {
        "weights": st.one_of(
            st.none(), st.sampled_from([[1.0, 0.5, 2.0], [0.0, 0.0, 0.0], [-1.0, 30.0, 1e-8]])
        ),
        "norm_by_std": YES_OR_NO,
        "epsilon": AT_LEAST_0,
        "norm_level": st.sampled_from(["sequence", "token"]),
        "ddof": DDOF,
        "singleton": SINGLETON,
        "whitening": whitenings(["token"]),
    },
    "reinforce_pp_baseline": {
        "norm_level": st.sampled_from(["sequence", "token"]),
        "singleton": SINGLETON,
        "whitening": whitenings(["token"]),
    },
}
LOSSES = {
    "ppo_clip": {**CLIP, "clip_ratio_c": st.sampled_from([None, 1.0, 3.0, 1e3]), "fused": YES_OR_NO},
    "cispo": CLIP,
    "gspo": {**CLIP, "token_level": YES_OR_NO},
    "gmpo": {"clip_ratio_low": AT_LEAST_0, "clip_ratio_high": AT_LEAST_0},
    "sapo": {"tau_pos": st.sampled_from([1.0, 1e-6, 30.0]), "tau_neg": st.sampled_from([1.05, 1e-6, 30.0])},
    "clip_cov": {
        **CLIP,
        "clip_cov_ratio": UNIT,
        # not 0: the covariance of an advantage that equals the mean is 0 but for its rounding, and that would decide
        "clip_cov_lb": st.sampled_from([-1e3, 0.1, 1.0]),
        "clip_cov_ub": st.sampled_from([1.0, 5.0, 1e9]),
    },
    "kl_cov": {"kl_cov_ratio": UNIT, "ppo_kl_coef": AT_LEAST_0},
    "importance_sampling": {},
    "reinforce": {},
    "gpg": {},
    "clipped": {"cliprange_value": AT_LEAST_0},
    "huber": {"delta": AT_LEAST_0},
    "mse": {},
}
# Drawn below; or which column to take, and where chance comes from.
ELSEWHERE = {"compat", "reward_keys", "generator", "loss_agg_mode", "global_batch_info"}


def libraries(name):
    """Whose numbers an estimator can give: what its option ``compat`` takes beside None."""
    parameter = ADV_ESTIMATORS.spec(name).function.__signature__.parameters["compat"]
    return get_args(get_args(parameter.annotation)[0])


@st.composite
def for_estimator(draw, name):
    """Some of the options, never two that contradict each other."""
    if "compat" in ADV_ESTIMATORS.spec(name).options and draw(st.integers(0, 4)) == 4:
        return {"compat": draw(st.sampled_from(libraries(name)))}
    options = draw(st.fixed_dictionaries({}, optional=ESTIMATORS[name]))
    if options.get("whitening") and "whiten" in ESTIMATORS[name]:
        options["whiten"] = True
    if options.get("arithmetic") == "trl":
        options["singleton"] = "zero"
    if options.get("norm_by_std") is False:
        options.pop("std_over", None)
    return options


@st.composite
def for_loss(draw, name):
    """Some of the options, a way to average, and what a framework says of the whole batch."""
    options = draw(
        st.fixed_dictionaries({}, optional={**LOSSES[name], "loss_agg_mode": st.sampled_from(MODES)})
    )
    info = {"batch_num_tokens": 1000, "global_batch_size": 64}
    shares = st.sampled_from([None, info, {**info, "dp_size": 8, "loss_scale_factor": 128}])
    return {**options, "global_batch_info": draw(shares)}
