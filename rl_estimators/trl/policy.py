"""A policy loss of ours in TRL's step."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rl_estimators.aggregation import aggregate, masked_mean
from rl_estimators.calls import policy_loss
from rl_estimators.masked import select
from rl_estimators.trl import clip_ratios, counts, upstream

if TYPE_CHECKING:
    from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["loss"]


def loss(trainer: "EstimatorTrainer", model: Any, batch: dict[str, Any]) -> Tensor:
    """``config.policy_loss`` of one micro-batch, with the KL divergence and the entropy bonus where TRL adds them.

    Averages are taken over an optimizer step's whole batch, by TRL's way of counting for its ``dapo`` loss: the
    generation batch's tokens, scaled to one step. So the sum over micro-batches and processes is the batch's loss.
    """
    name, mode, mask = trainer.args.policy_loss, trainer.mode, upstream.response_mask(batch)
    with_aux = trainer.aux_loss_enabled  # a MoE model's load balancing
    log_prob, entropy, aux = upstream.log_probs(trainer, model, batch, entropy=True, aux_loss=with_aux)
    assert entropy is not None
    old = batch.get("old_per_token_logps")
    old = log_prob.detach() if old is None else old
    advantages = batch["advantages"]
    mean: dict[str, Any] = {
        "loss_agg_mode": trainer.args.loss_agg_mode or "token-mean",
        "global_batch_info": counts.per_step(trainer, batch, mode),
    }
    advantages = (advantages[:, None] if advantages.ndim == 1 else advantages).expand_as(log_prob)
    total, metrics = policy_loss(
        name,
        old_log_prob=old,
        log_prob=log_prob,
        advantages=advantages,
        response_mask=mask,
        **mean,
        **_rollout_weights(batch, log_prob),
        **trainer.policy_loss_options,
    )
    if trainer.beta != 0.0:
        new = select(log_prob, mask)  # cut off first: a NaN's gradient would come through any later selection
        difference = select(batch["ref_per_token_logps"], mask) - new
        kl = torch.expm1(difference) - difference  # k3, as in TRL
        if trainer.args.use_bias_correction_kl:
            kl = kl * torch.exp(new - select(old, mask))
        total = total + trainer.beta * aggregate(kl, mask, **mean)
        metrics = {**metrics, "kl": masked_mean(kl, mask)}
    if trainer.args.entropy_coef:
        total = total - trainer.args.entropy_coef * aggregate(
            select(entropy, mask), mask, global_batch_info=mean["global_batch_info"]
        )
    if aux is not None:
        steps = trainer.current_gradient_accumulation_steps if mode == "train" else 1
        total = total + trainer.router_aux_loss_coef * aux / steps
        trainer._metrics[mode]["aux_loss"].append(trainer.accelerator.gather_for_metrics(aux).mean().item())
    held = clip_ratios.held(name, trainer.policy_loss_options, old, log_prob, advantages, mask)
    shares = {} if held is None else clip_ratios.shares(name, held, mask)
    _log(trainer, mode, {**metrics, "entropy": masked_mean(entropy, mask)}, shares, mask)
    if held is not None and name != "cispo":
        _log_extremes(trainer, mode, held, mask)
    return total


def _rollout_weights(batch: dict[str, Any], like: Tensor) -> dict[str, Any]:
    """Importance weights that correct for vLLM's log-probabilities, if TRL has them.

    A loss without a parameter for them was refused when the trainer was made.
    """
    weights = batch.get("importance_sampling_ratio")
    return {} if weights is None else {"rollout_is_weights": weights.expand_as(like)}


def _log(
    trainer: "EstimatorTrainer", mode: str, metrics: dict[str, Any], shares: dict[str, Any], mask: Tensor
) -> None:
    """Means over the tokens of all processes, under TRL's names where it has them: ``shares`` have them already."""
    names = {"pg_clipfrac": "clip_ratio/region_mean", "kl": "kl", "entropy": "entropy"}
    numbers = {names.get(name, f"rl_estimators/{name}"): number for name, number in metrics.items()} | shares
    means = torch.stack([torch.as_tensor(n, device=mask.device).float() for n in numbers.values()])
    tokens = mask.sum()
    sums = trainer.accelerator.reduce(torch.cat([means * tokens, tokens[None].float()]), reduction="sum")
    *totals, number = sums.tolist()
    for name, total in zip(numbers, totals, strict=True):
        trainer._metrics[mode][name].append(total / max(number, 1.0))


def _log_extremes(trainer: "EstimatorTrainer", mode: str, held: clip_ratios.Held, mask: Tensor) -> None:
    """Over the responses of all processes; NaN, which TRL does not log, where none has a token."""
    shares = trainer.accelerator.gather(torch.stack([clip_ratios.per_response(x, mask) for x in held]).T)
    some = shares[~shares.isnan().any(-1)]
    nothing = shares.new_full((1, 2), torch.nan)
    low, high = (some if len(some) else nothing).unbind(-1)
    trainer._metrics[mode]["clip_ratio/low_min"].append(low.min().item())
    trainer._metrics[mode]["clip_ratio/high_max"].append(high.max().item())
