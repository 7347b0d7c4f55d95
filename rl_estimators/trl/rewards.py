"""From TRL's rewards, one per completion and reward function, to a reward per token."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rl_estimators.carry import carry_rewards
from rl_estimators.errors import InputError

if TYPE_CHECKING:
    from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["Scored", "TokenReward", "call_token_rewards", "scores", "token_level", "token_rewards"]

TokenReward = Callable[..., Sequence[Sequence[float | None]]]


@dataclass
class Scored:
    """What is learnt about a batch of completions while TRL scores it.

    Attributes:
        rewards_per_func: ``(N, F)`` of all processes, NaN where a function returned None.
        truncated: ``(B,)`` bool, of this process: cut off by the length limit.
        token_rewards: Of this process: for each ``token_reward_funcs``, a number per token of each completion.
        reward_baselines: ``(N,)`` of all processes: reward of the prompt's greedy completion.
        scores: ``(B,)`` of this process: the sum of each completion's rewards, without the KL divergence.
    """

    rewards_per_func: Tensor | None = None
    truncated: Tensor | None = None
    token_rewards: list[list[Tensor]] = field(default_factory=list)
    reward_baselines: Tensor | None = None
    scores: Tensor | None = None


def scores(rewards_per_func: Tensor, weights: Tensor) -> Tensor:
    r"""``(N,)`` each completion's score: the weighted sum of its rewards, :math:`\sum_k w_k r_k`.

    As TRL has it: a function that returned None for a completion adds nothing to it, and where all of them did, the
    score is NaN. An estimator leaves such a completion out.

    Args:
        rewards_per_func: ``(N, F)``.
        weights: ``(F,)``.
    """
    total = (rewards_per_func * weights.to(rewards_per_func.device)).nansum(dim=1)
    return torch.where(rewards_per_func.isnan().all(dim=1), torch.nan, total)


def token_level(
    completion_scores: Tensor,
    response_mask: Tensor,
    token_rewards: Sequence[Sequence[Tensor]] = (),
    weights: Sequence[float] | None = None,
) -> Tensor:
    """``(B, T)`` rewards by token: the score on the last token the policy wrote, as in verl, and the tokens' own.

    A token's reward on tool output is carried to the last valid token before it. A completion without valid tokens
    (TRL's ``mask_truncated_completions``) has no rewards.

    Args:
        completion_scores: ``(B,)``.
        response_mask: ``(B, T)`` bool.
        token_rewards: For each function, each completion's rewards.
        weights: One per function; 1 each by default.
    """
    rewards = completion_scores.new_zeros(response_mask.shape)
    positions = torch.arange(response_mask.shape[1], device=response_mask.device)
    for function, weight in zip(token_rewards, weights or [1.0] * len(token_rewards), strict=True):
        for row, numbers in enumerate(function):
            rewards[row, : len(numbers)] += weight * numbers.to(rewards)
    if token_rewards:
        rewards = torch.where(response_mask.any(-1, keepdim=True), carry_rewards(rewards, response_mask), 0)
    last = torch.where(response_mask, positions, -1).amax(-1, keepdim=True)
    return rewards + torch.where(positions == last, completion_scores[:, None], 0)


def token_rewards(
    trainer: "EstimatorTrainer",
    prompts: Sequence[Any],
    completions: Sequence[Any],
    ids: Sequence[Sequence[int]],
    inputs: Sequence[Mapping[str, Any]],
) -> list[list[Tensor]]:
    """For each of ``token_reward_funcs``, a number per token of each completion of this process."""
    shared = {
        "trainer_state": trainer.state,
        "log_extra": trainer._log_completion_extra,
        "log_metric": trainer._log_metric,
    }
    if trainer.environments is not None:
        shared["environments"] = trainer.environments
    return [
        call_token_rewards(function, prompts, completions, ids, inputs, **shared)
        for function in trainer._token_reward_funcs
    ]


def call_token_rewards(
    function: TokenReward,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    ids: Sequence[Sequence[int]],
    inputs: Sequence[Mapping[str, Any]],
    **shared: Any,
) -> list[Tensor]:
    """Ask a per-token reward function, with the arguments that TRL hands to a reward function.

    None for a token is not a number: on a token that the policy wrote, an estimator leaves the completion out.

    Args:
        function: Returns a number per token of each completion, tool output included.
        prompts: One per completion, as are the others.
        completions: Texts or messages.
        ids: Their tokens.
        inputs: Rows of the data set.
        **shared: What is the same for all completions.

    Raises:
        InputError: it did not return a number for each token of each completion.
    """
    columns = {
        key: [row[key] for row in inputs]
        for key in inputs[0]
        if key not in ("prompt", "completion", "completion_ids")
    }
    found = function(prompts=prompts, completions=completions, completion_ids=ids, **columns, **shared)
    owner = f"token reward function {getattr(function, '__name__', type(function).__name__)!r}"
    if not hasattr(found, "__len__"):
        raise InputError(f"{owner} returned a {type(found).__name__}, expected a list for each completion")
    if len(found) != len(ids):
        raise InputError(f"{owner} returned {len(found)} lists for {len(ids)} completions")
    return [_numbers(owner, row, *pair) for row, pair in enumerate(zip(found, ids, strict=True))]


def _numbers(owner: str, row: int, numbers: Any, tokens: Sequence[int]) -> Tensor:
    """``(T,)`` one completion's rewards."""
    if not hasattr(numbers, "__len__"):
        raise InputError(
            f"{owner} returned {numbers!r} for completion {row}, expected a list of {len(tokens)} numbers, one per "
            "entry of completion_ids; 0 where it has nothing to say"
        )
    if len(numbers) != len(tokens):
        raise InputError(
            f"{owner} returned {len(numbers)} numbers for completion {row}, which has {len(tokens)} tokens; return "
            "one per entry of completion_ids"
        )
    return torch.tensor([torch.nan if n is None else float(n) for n in numbers])
