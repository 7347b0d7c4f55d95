"""How far the gradient that an estimator gives lies from the true one, and how much it scatters.

The decomposition into bias and variance is that of any statistical estimator; for GAE see Schulman et al.,
section 3 (https://arxiv.org/abs/1506.02438).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl_estimators.calls import estimate
from rl_estimators.errors import InputError
from rl_estimators.fields import check_range
from rl_estimators.lab.mdp import LanguageMDP

__all__ = ["Measurement", "measure"]

MOST_BATCHES = 100_000  # enumerated in some 20 seconds


@dataclass(frozen=True)
class Measurement:
    r"""What :func:`measure` found, with :math:`\hat g` the estimate from one batch and g the truth.

    Attributes:
        truth: ``(P, S, V)``, :math:`g`.
        mean: ``(P, S, V)``, :math:`E \hat g`.
        variance: :math:`E \lVert \hat g - E \hat g \rVert^2`, summed over all logits.
        standard_error: Of ``mean``: the root of its expected squared distance from :math:`E \hat g`. A bias of
            this size is none that was seen. 0 if exact.
        variance_error: Standard error of ``variance``; 0 if exact.
        responses: Responses in a batch.
        exact: Every possible batch was looked at; otherwise the numbers come from random ones.
    """

    truth: Tensor
    mean: Tensor
    variance: float
    standard_error: float
    variance_error: float
    responses: int
    exact: bool

    @property
    def bias(self) -> float:
        r""":math:`\lVert E \hat g - g \rVert`; of little meaning where the scale is arbitrary, as after whitening."""
        return float((self.mean - self.truth).norm())

    @property
    def relative_bias(self) -> float:
        """``bias`` in units of the true gradient's length."""
        return self.bias / float(self.truth.norm())

    @property
    def cosine(self) -> float:
        r"""Cosine of the angle between :math:`E \hat g` and g; 0 if either is 0."""
        lengths = float(self.mean.norm() * self.truth.norm())
        return float((self.mean * self.truth).sum()) / lengths if lengths else 0.0

    @property
    def scale(self) -> float:
        r"""The c for which :math:`c g` is closest to :math:`E \hat g`."""
        return float((self.mean * self.truth).sum() / self.truth.square().sum())

    @property
    def bias_up_to_scale(self) -> float:
        r""":math:`\lVert E \hat g / c - g \rVert / \lVert g \rVert` with c = ``scale``: the tangent of the angle.

        Infinite where :math:`E \hat g` is 0 or at a right angle to g.
        """
        if not self.scale:
            return float("inf")
        return float((self.mean / self.scale - self.truth).norm() / self.truth.norm())

    @property
    def noise_to_signal(self) -> float:
        r"""Variance of one response over the squared length of the mean gradient, blind to the estimator's scale.

        .. math:: M \, E \lVert \hat g - E \hat g \rVert^2 / \lVert E \hat g \rVert^2

        with M responses in a batch: how many responses it takes until signal and noise are equally strong. Part of
        it is the luck of the prompts, so compare only measurements with equal ``group_size``. Infinite where
        :math:`E \hat g` is 0.
        """
        signal = float(self.mean.square().sum())
        return self.responses * self.variance / signal if signal else float("inf")


def measure(
    name: str,
    mdp: LanguageMDP,
    *,
    group_size: int = 1,
    batch_size: int = 1,
    critic: Tensor | None = None,
    options: Mapping[str, Any] | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> Measurement:
    r"""Compare an estimator's gradient with the true one.

    .. math:: \hat g = \frac1M \sum_{b=1}^{M} \sum_t A_{bt} \nabla \log \pi(a_{bt} \mid s_{bt})

    over a batch of ``batch_size`` prompts, drawn with replacement, with ``group_size`` responses each. The
    estimator is called once for each batch, as a trainer would.

    The truth is undiscounted: a gamma below 1 in ``options`` shows as the bias it is. An estimator that divides
    by a standard deviation (`grpo`, `reinforce_pp`, `gae` with ``whiten``) gives a gradient of arbitrary length;
    for it ``bias`` says nothing, and ``cosine``, ``bias_up_to_scale`` and ``noise_to_signal`` are the measures.

    Args:
        name: One of :func:`rl_estimators.list_adv_est`.
        mdp: The language.
        group_size: Responses to each prompt; they share an entry in ``index``.
        batch_size: Prompts in a batch.
        critic: ``(P, S)`` the value of each prefix, see :meth:`LanguageMDP.critic`; None is the exact V.
        options: The estimator's options.
        samples: Batches to draw; None looks at every possible batch instead, which is exact.
        seed: Of the draws.

    Raises:
        InputError: a size below 1, fewer than 2 samples, a critic of the wrong shape, more than 100,000 possible
            batches, or what the estimator refuses.
    """
    check_range("measure", low=1, group_size=group_size, batch_size=batch_size)
    check_range("measure", low=2, samples=samples)
    if critic is not None and critic.shape != mdp.logits.shape[:2]:
        raise InputError(
            f"measure: critic has shape {tuple(critic.shape)}, expected {tuple(mdp.logits.shape[:2])}: "
            "a value for each prompt and prefix, as from LanguageMDP.critic"
        )
    if samples is None:
        rows, weights = _every_batch(mdp, group_size, batch_size)
    else:
        rows = _draw(mdp, group_size, batch_size, samples, seed)
        weights = torch.full((samples,), 1 / samples, dtype=torch.float64)
    gradients = _gradients(name, mdp, rows, group_size, critic, options or {})
    mean = weights @ gradients
    distances = (gradients - mean).square().sum(-1)
    variance = float(weights @ distances)
    error, variance_error = 0.0, 0.0
    if samples is not None:
        variance *= samples / (samples - 1)
        error, variance_error = (variance / samples) ** 0.5, float(distances.std() / samples**0.5)
    mean = mean.view_as(mdp.logits)
    return Measurement(
        mdp.true_gradient(), mean, variance, error, variance_error, rows.shape[1], samples is None
    )


def _every_batch(mdp: LanguageMDP, group_size: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """All batches as ``(K, M)`` row numbers of ``_inputs``, and the probability of each, ``(K,)``."""
    prompts, number = mdp.probabilities.shape
    batches = (prompts * number**group_size) ** batch_size
    if batches > MOST_BATCHES:
        raise InputError(
            f"measure: {batches:,} possible batches of {batch_size} x {group_size} responses, more than "
            f"{MOST_BATCHES:,}; give samples, or smaller sizes"
        )
    choices = torch.cartesian_prod(*[torch.arange(number)] * group_size).view(-1, group_size)
    offsets = number * torch.arange(prompts)[:, None, None]
    groups = (choices + offsets).flatten(0, 1)  # (P * N^n, n)
    picks = torch.cartesian_prod(*[torch.arange(len(groups))] * batch_size).view(-1, batch_size)
    rows = groups[picks].flatten(1)
    return rows, mdp.probabilities.flatten()[rows].prod(-1) / prompts**batch_size


def _draw(mdp: LanguageMDP, group_size: int, batch_size: int, samples: int, seed: int) -> Tensor:
    """``samples`` random batches, as ``(K, M)`` row numbers of ``_inputs``."""
    random = torch.Generator().manual_seed(seed)
    prompts, number = mdp.probabilities.shape
    prompt = torch.randint(prompts, (samples * batch_size,), generator=random)
    response = mdp.probabilities[prompt].multinomial(group_size, replacement=True, generator=random)
    return (number * prompt[:, None] + response).view(samples, batch_size * group_size)


def _inputs(mdp: LanguageMDP, critic: Tensor | None) -> dict[str, Any]:
    """What an estimator may ask for, for every prompt and response: ``(P * N, ...)``."""
    log_probs = mdp.logits.log_softmax(-1)
    own = mdp.at_tokens(log_probs)
    tables = {
        "token_level_rewards": mdp.at_tokens(mdp.rewards),
        "response_mask": mdp.responses.mask.expand(mdp.prompts, -1, -1),
        "reward_components": torch.stack([mdp.at_tokens(part).sum(-1) for part in mdp.components], -1),
        "values": mdp.at_tokens(mdp.values().v if critic is None else critic.double()),
        "reward_baselines": mdp.greedy_returns()[:, None].expand(own.shape[:2]),
        "old_log_probs": own,
        "rollout_log_probs": own,
        "ref_log_prob": own,
        "sum_pi_squared": mdp.at_tokens(log_probs.exp().square().sum(-1)),
    }
    return {name: table.flatten(0, 1) for name, table in tables.items()}


def _gradients(
    name: str,
    mdp: LanguageMDP,
    rows: Tensor,
    group_size: int,
    critic: Tensor | None,
    options: Mapping[str, Any],
) -> Tensor:
    """The gradient from each batch, ``(K, P * S * V)``."""
    inputs = _inputs(mdp, critic)
    index = [f"prompt {i // group_size}" for i in range(rows.shape[1])]
    advantages = torch.stack(
        [
            estimate(name, **{n: x[batch] for n, x in inputs.items()}, index=index, **options).advantages
            for batch in rows
        ]
    ).double()
    scores = mdp.scores.flatten(0, 1)  # (P * N, T, D)
    gradients = []
    for some, of in zip(advantages.split(1000), rows.split(1000), strict=True):
        weights = some.new_zeros(len(some), len(scores), some.shape[-1])  # of each token of each response
        weights.scatter_add_(1, of[..., None].expand_as(some), some)
        gradients.append(weights.flatten(1) @ scores.flatten(0, 1))
    return torch.cat(gradients) / rows.shape[1]
