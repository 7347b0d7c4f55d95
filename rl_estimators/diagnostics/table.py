"""The table of diagnostics: what each number is, what a bad value means, and what to do.

The logs' names, the command ``rl-estimators diagnostics``, the documentation and the tests all read it from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["DIAGNOSTICS", "PREFIX", "Diagnostic"]

PREFIX = "rl_estimators/"


@dataclass(frozen=True)
class Diagnostic:
    """One number.

    Attributes:
        what: What it is, with its formula and unit.
        bad: What a bad value looks like and means.
        remedy: What to do then.
        needs: What it is computed from; without it, it is left out.
        joined: How the numbers of several batches become one, where a framework logs once for all of them.
    """

    what: str
    bad: str
    remedy: str
    needs: str
    joined: Literal["mean", "min", "max", "sum"] = "mean"


_ADVANTAGES = "advantages"
_GROUPS = "scores, and several responses a prompt"
_UPDATE = "log-probabilities while the policy trains"
_CRITIC = "a critic"

DIAGNOSTICS: Mapping[str, Diagnostic] = {
    "zero_advantage_token_share": Diagnostic(
        "share of valid tokens whose advantage is exactly 0, those of excluded responses among them",
        "near 1: most of what was generated teaches nothing, and the gradient is noisier than the batch's size promises",
        "prompts that are neither solved nor failed by every sample (see all_right_group_share and "
        "all_wrong_group_share), more samples a prompt, or an estimator with a baseline over the batch (reinforce_pp)",
        _ADVANTAGES,
    ),
    "zero_advantage_prompt_share": Diagnostic(
        "share of prompts all of whose responses have the advantage 0 at every token",
        "near 1: groups of equal scores, from which an estimator that compares within a group learns nothing",
        "drop such prompts and refill (verl: algorithm.filter_groups), take harder or easier ones, or use gpg, which "
        "scales the others up, or an estimator with a baseline over the batch",
        "advantages and the prompt of each response",
    ),
    "all_right_group_share": Diagnostic(
        "share of groups of two or more responses whose scores all reach 1 (to 1e-6), full marks for rewards of 0 or 1 "
        "and of -1 or 1; rewards on another scale, such as a reward model's, make it meaningless",
        "near 1: the task is solved, and what is left is exploitation of the reward's details",
        "harder prompts, or stop",
        _GROUPS,
    ),
    "all_wrong_group_share": Diagnostic(
        "share of groups of two or more responses none of whose scores exceeds 0 (to 1e-6), no marks at all; as for "
        "all_right_group_share, for rewards between 0 and 1 or of -1 and 1",
        "near 1: the policy never finds a right answer, so nothing can tell it apart from the wrong ones",
        "easier prompts, more samples a prompt, a warm-up on examples, a reward with partial marks",
        _GROUPS,
    ),
    "advantage_mean": Diagnostic(
        "mean advantage over valid tokens, in units of reward unless the estimator whitens",
        "far from 0 compared with advantage_std: the baseline is off, so every response is pushed up, or every one down",
        "an estimator with a better baseline, whitening, or a longer warm-up of the critic",
        _ADVANTAGES,
    ),
    "advantage_std": Diagnostic(
        "standard deviation (unbiased) of the advantages over valid tokens",
        "0 or near: no gradient; far above 1: steps as large as the rewards' scale, that differ from batch to batch",
        "whitening or a division by the group's deviation; a smaller learning rate",
        _ADVANTAGES,
    ),
    "advantage_min": Diagnostic(
        "smallest advantage of a valid token",
        "far below -5 standard deviations: a single response decides the step",
        "look at that response's reward; clip or rescale rewards; dual clip (clip_ratio_c)",
        _ADVANTAGES,
        "min",
    ),
    "advantage_max": Diagnostic(
        "largest advantage of a valid token",
        "far above 5 standard deviations: a single response decides the step",
        "look at that response's reward: a hole in the reward function is found by luck first; clip or rescale rewards",
        _ADVANTAGES,
        "max",
    ),
    "reward_mean": Diagnostic(
        "mean score of a response, without a KL penalty",
        "it does not rise over many steps: nothing is learnt; it jumps: the reward function may have been exploited",
        "look at the numbers above and below, and read some responses",
        "scores",
    ),
    "reward_std": Diagnostic(
        "standard deviation (unbiased) of the scores over responses",
        "0: all scores of the batch are equal, and no estimator can learn from it",
        "look at the reward function; see all_wrong_group_share",
        "scores",
    ),
    "reward_std_within_groups": Diagnostic(
        "standard deviation of the scores around the mean of their group, sqrt(sum (s - mean_g)^2 / sum (n_g - 1)) over "
        "groups of two or more",
        "near 0: the answers to a prompt score alike, so a comparison within the group has no signal",
        "a higher sampling temperature, more samples a prompt, a reward with more levels",
        _GROUPS,
    ),
    "reward_std_between_groups": Diagnostic(
        "standard deviation (unbiased) of the groups' mean scores",
        "much larger than reward_std_within_groups: prompts differ more than answers do, and a baseline over the batch "
        "mistakes an easy prompt for a good answer",
        "an estimator that compares within a group (grpo, rloo) or has a critic",
        _GROUPS,
    ),
    "explained_variance_before": Diagnostic(
        "1 - Var(R - V) / Var(R) over valid tokens, V the values when the rollouts were made and R the critic's "
        "targets: 1 is perfect, 0 no better than a constant, below 0 worse; in verl a response that was left out counts as "
        "foreseen, for its targets are its old values",
        "at or below 0 after the first hundred steps: the critic is useless, and its advantages are noisier than the "
        "rewards alone",
        "a higher learning rate or more epochs for the critic, a warm-up (verl: trainer.critic_warmup, TRL: "
        "critic_warmup_steps), lam nearer to 1; or an estimator without a critic",
        _CRITIC,
    ),
    "explained_variance_after": Diagnostic(
        "the same with V as the critic predicts it while it trains on the batch, over all its passes: each mini-batch "
        "before its own step and after those of the others; with one step a batch it equals explained_variance_before",
        "not above explained_variance_before: the critic does not learn; far above, step after step: it memorises the "
        "batch",
        "not above: as there; far above: fewer epochs, a smaller learning rate for the critic",
        "a critic, while it trains",
    ),
    "value_clip_share": Diagnostic(
        "share of valid tokens where the clipped value loss has replaced the squared error, so that the critic does not "
        "learn from them",
        "above a third: cliprange_value is small compared with the rewards' scale, and the critic is held back",
        "raise cliprange_value (it is in units of reward), rescale rewards, or value_loss=mse",
        "a critic with the value loss `clipped`, while it trains",
    ),
    "ratio_mean": Diagnostic(
        "mean importance ratio rho = exp(log pi - log pi_old) over valid tokens and all updates on the batch; the "
        "log-ratio is clamped to [-20, 20]",
        "far from 1 (below 0.9, above 1.1): the policy that trains is no longer the one that sampled",
        "fewer epochs or mini-batches, a smaller learning rate, a KL penalty; from the first update on: the engine's and "
        "the trainer's log-probabilities differ",
        _UPDATE,
    ),
    "ratio_std": Diagnostic(
        "standard deviation of rho, sqrt(mean (rho - mean rho)^2)",
        "above 0.5: the clip decides more than the advantages do",
        "as for ratio_mean",
        _UPDATE,
    ),
    "ratio_min": Diagnostic(
        "smallest rho of a valid token",
        "near 0: tokens that the policy has stopped producing, and that a negative advantage pushes down further",
        "as for ratio_mean; dual clip (clip_ratio_c) bounds their loss, not their ratio",
        _UPDATE,
        "min",
    ),
    "ratio_max": Diagnostic(
        "largest rho of a valid token",
        "above 10: a few tokens outweigh all others where the loss does not clip them",
        "a loss with a clip (ppo_clip, cispo); as for ratio_mean",
        _UPDATE,
        "max",
    ),
    "effective_sample_size": Diagnostic(
        "effective sample size of the importance ratios as a share of the valid tokens, "
        "(sum rho)^2 / (N sum rho^2), in (0, 1]: 1 if all are equal",
        "below 0.5: half of the batch's information is lost to a few large ratios",
        "as for ratio_mean",
        _UPDATE,
    ),
    "policy_kl": Diagnostic(
        "KL divergence of the policy in training from the one before the update, in nats per token: mean of "
        "rho - 1 - log rho (k3), at least 0, over all updates on the batch",
        "above 0.1: the update is too large for a surrogate that holds near the old policy",
        "as for ratio_mean",
        _UPDATE,
    ),
    "reference_kl": Diagnostic(
        "KL divergence of the policy before the update from the reference model, in nats per token: mean of "
        "log pi_old - log pi_ref (k1), which has no bias and may come out below 0",
        "it grows without bound while the reward rises: the policy may be leaving the language for the reward's sake",
        "a larger factor of the KL penalty, a kl_target; read some responses",
        "log-probabilities under a reference model",
    ),
    "truncated_response_share": Diagnostic(
        "share of responses that the length limit cut off; in verl those whose last token is the last that "
        "data.max_response_length allows, and with bootstrap_truncated is no end token",
        "above 0.2: answers are lost with their endings, and whether they would have been right is unknown",
        "raise the limit, overlong_penalty, bootstrap_truncated with a critic, or leave them out (TRL: "
        "mask_truncated_completions)",
        "which responses were cut off",
    ),
    "excluded_responses": Diagnostic(
        "number of responses left out because their score was not finite; counted with diagnostics switched off, too",
        "above 0: the reward function returned NaN or infinity, or a reward model's number overflowed",
        "look at the reward function; the other responses are not affected",
        "scores",
        "sum",
    ),
}
"""What :func:`~rl_estimators.diagnostics.diagnose` computes and the frameworks log, by name without :data:`PREFIX`."""
