"""A language small enough to enumerate: its responses, values and gradient, all exact.

The policy gradient is that of Sutton et al., Policy Gradient Methods for Reinforcement Learning with Function
Approximation, theorem 1 (https://papers.nips.cc/paper/1713), for episodes without a discount.
"""

import itertools
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from rl_estimators.errors import InputError
from rl_estimators.fields import check_range

__all__ = ["LanguageMDP", "Responses", "Values"]

MOST_RESPONSES = 1000  # to a prompt; what is tabulated grows with its square


class Values(NamedTuple):
    """What is still to be earned, in units of reward; P prompts, S prefixes, V tokens.

    Attributes:
        v: ``(P, S)`` the expected return from each prefix on.
        q: ``(P, S, V)`` the expected return after each token.
        a: ``(P, S, V)`` the advantage of each token, q - v.
    """

    v: Tensor
    q: Tensor
    a: Tensor


class Responses(NamedTuple):
    """Every response to one prompt; N responses, T tokens, right-padded with 0.

    Attributes:
        tokens: ``(N, T)`` token numbers; 0 is the end token.
        prefixes: ``(N, T)`` the number of the prefix before each token.
        mask: ``(N, T)`` bool, true on tokens.
    """

    tokens: Tensor
    prefixes: Tensor
    mask: Tensor


class LanguageMDP:
    r"""Some prompts, a few tokens, and a policy that is a table.

    A response is a string over ``vocabulary`` tokens that stops at the end token, number 0, or at
    ``max_length``, so responses are ragged. After prompt p and the prefix s the policy writes token a with

    .. math:: \pi_p(a \mid s) = \mathrm{softmax}(\mathrm{logits}_{p s})_a

    and earns ``rewards[p, s, a]``, the sum of two ``components``: a small reward for each token, and one for the
    whole response at its last token. What is maximised is the mean over prompts of the expected return, without a
    discount.

    Args:
        vocabulary: Number of tokens, the end token included; at least 2.
        max_length: Most tokens a response may have; at least 1.
        prompts: Number of prompts, each with its own table; at least 1.
        sharpness: Standard deviation of the logits: how decided the policy is.
        token_reward: Standard deviation of the reward of each token.
        terminal_reward: Standard deviation of the reward of a whole response around its prompt's mean.
        prompt_spread: Standard deviation of these means: how much prompts differ in what they pay.
        shift: A constant added to the reward of every response. The true gradient does not depend on it.
        seed: Everything random follows from it, and nothing else does: two languages that differ in ``shift``
            alone have the same policy.

    Attributes:
        logits: ``(P, S, V)`` fp64, the policy's parameters; not to be changed, for tables are kept.
        components: ``(2, P, S, V)`` fp64, what each token earns: for itself, and for the
            whole response if that ends with it.
        responses: Every response a prompt can have; the same strings for each prompt.

    Raises:
        InputError: a size or a standard deviation out of range, or more than 1,000 responses to a prompt.
    """

    def __init__(
        self,
        vocabulary: int = 3,
        max_length: int = 4,
        prompts: int = 2,
        *,
        sharpness: float = 1.0,
        token_reward: float = 0.3,
        terminal_reward: float = 1.0,
        prompt_spread: float = 1.0,
        shift: float = 0.0,
        seed: int = 0,
    ) -> None:
        check_range("LanguageMDP", low=2, vocabulary=vocabulary)
        check_range("LanguageMDP", low=1, max_length=max_length, prompts=prompts)
        check_range("LanguageMDP", token_reward=token_reward, terminal_reward=terminal_reward)
        check_range("LanguageMDP", prompt_spread=prompt_spread, sharpness=sharpness)
        number = sum((vocabulary - 1) ** length for length in range(max_length + 1))
        if number > MOST_RESPONSES:
            raise InputError(
                f"LanguageMDP: vocabulary={vocabulary} and max_length={max_length} make {number:,} responses, "
                f"more than {MOST_RESPONSES:,}; choose smaller ones"
            )
        self.vocabulary, self.max_length, self.prompts = vocabulary, max_length, prompts
        stops = _prefixes(vocabulary, max_length)[1]
        shape = (prompts, *stops.shape)
        random = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=random, dtype=torch.float64)

        self.logits = sharpness * normal(*shape)
        terminal = shift + prompt_spread * normal(prompts, 1, 1) + terminal_reward * normal(*shape)
        self.components = torch.stack([token_reward * normal(*shape), torch.where(stops, terminal, 0)])
        self.responses = _responses(vocabulary, max_length)

    @property
    def rewards(self) -> Tensor:
        """``(P, S, V)`` what each token earns."""
        return self.components.sum(0)

    @cached_property
    def probabilities(self) -> Tensor:
        """``(P, N)`` the probability of each response to each prompt; rows sum to 1."""
        return self.at_tokens(self.logits.log_softmax(-1)).sum(-1).exp()

    def values(self) -> Values:
        r"""What each prefix and each token is worth, backwards from the longest prefixes.

        .. math:: Q(s, a) = r(s, a) + V(sa), \quad V(s) = \sum_a \pi(a \mid s) Q(s, a), \quad A = Q - V

        with V = 0 once the response has ended.
        """
        follow, stops = _prefixes(self.vocabulary, self.max_length)
        policy = self.logits.softmax(-1)
        v = self.rewards.new_zeros(self.rewards.shape[:-1])
        q = self.rewards.clone()
        for s in range(len(follow) - 1, -1, -1):  # a prefix comes before the longer ones
            q[:, s] += torch.where(stops[s], 0, v[:, follow[s]])
            v[:, s] = (policy[:, s] * q[:, s]).sum(-1)
        return Values(v, q, q - v[..., None])

    def true_gradient(self) -> Tensor:
        r"""The gradient of the expected return in the logits, ``(P, S, V)``.

        .. math:: \frac{\partial J}{\partial \mathrm{logits}_{psa}} =
            \frac1P d_p(s) \, \pi_p(a \mid s) \, A_p(s, a)

        with :math:`d_p(s)` the probability that a response to p has the prefix s.
        """
        follow, stops = _prefixes(self.vocabulary, self.max_length)
        policy = self.logits.softmax(-1)
        reach = torch.zeros_like(self.logits[..., 0])
        reach[:, 0] = 1
        for s in range(len(follow)):
            on = ~stops[s]
            reach[:, follow[s, on]] = reach[:, s, None] * policy[:, s, on]
        return reach[..., None] * policy * self.values().a / self.prompts

    def critic(self, noise: float = 0.0, seed: int = 0) -> Tensor:
        """V of every prefix, ``(P, S)``, off by normal errors of standard deviation ``noise``.

        The errors are a fixed table, as those of a trained critic are: they do not average out over responses.
        """
        check_range("critic", noise=noise)
        random = torch.Generator().manual_seed(seed)
        v = self.values().v
        return v + noise * torch.randn(v.shape, generator=random, dtype=v.dtype)

    def greedy_returns(self) -> Tensor:
        """``(P,)`` what the most likely token at every step earns in all: ReMax's baseline."""
        choice = self.logits.argmax(-1)  # (P, S)
        taken = choice[:, self.responses.prefixes] == self.responses.tokens
        row = (taken | ~self.responses.mask).all(-1).int().argmax(-1)
        return self.at_tokens(self.rewards).sum(-1).gather(-1, row[:, None])[:, 0]

    def at_tokens(self, table: Tensor) -> Tensor:
        """Look up a table ``(P, S, V)``, or ``(P, S)``, at every token of every response: ``(P, N, T)``."""
        tokens, prefixes, mask = self.responses
        found = table[:, prefixes] if table.ndim == 2 else table[:, prefixes, tokens]
        return torch.where(mask, found, 0)

    @cached_property
    def scores(self) -> Tensor:
        r"""The gradient of each token's log-probability, ``(P, N, T, P * S * V)``.

        .. math:: \frac{\partial \log \pi_p(a \mid s)}{\partial \mathrm{logits}_{p s b}} =
            [a = b] - \pi_p(b \mid s)
        """
        tokens, prefixes, mask = self.responses
        prompts, size, vocabulary = self.logits.shape
        own = torch.nn.functional.one_hot(tokens, vocabulary) - self.logits.softmax(-1)[:, prefixes]
        own = torch.where(mask[..., None], own, 0)  # (P, N, T, V)
        place = prefixes + size * torch.arange(prompts)[:, None, None]  # (P, N, T)
        scores = own.new_zeros(*place.shape, prompts * size, vocabulary)
        index = place[..., None, None].expand(*place.shape, 1, vocabulary)
        return scores.scatter_(-2, index, own[..., None, :]).flatten(-2)


def _strings(vocabulary: int, length: int) -> list[tuple[int, ...]]:
    """All strings of ``length`` tokens other than the end token."""
    return list(itertools.product(range(1, vocabulary), repeat=length))


def _prefixes(vocabulary: int, max_length: int) -> tuple[Tensor, Tensor]:
    """The prefix that each token leads to, ``(S, V)``, and whether the response stops there instead, ``(S, V)``."""
    strings = [s for length in range(max_length) for s in _strings(vocabulary, length)]
    number = {s: i for i, s in enumerate(strings)}
    follow = [[number.get((*s, a), 0) for a in range(vocabulary)] for s in strings]
    stops = [[(*s, a) not in number for a in range(vocabulary)] for s in strings]
    return torch.tensor(follow), torch.tensor(stops)


def _responses(vocabulary: int, max_length: int) -> Responses:
    """Every path from the empty prefix to where it stops."""
    follow, stops = _prefixes(vocabulary, max_length)
    found: list[list[tuple[int, int]]] = []  # (prefix, token) of each step

    def write(prefix: int, steps: list[tuple[int, int]]) -> None:
        for token in range(vocabulary):
            path = [*steps, (prefix, token)]
            if stops[prefix, token]:
                found.append(path)
            else:
                write(int(follow[prefix, token]), path)

    write(0, [])
    padded = torch.tensor([path + [(0, 0)] * (max_length - len(path)) for path in found])
    mask = torch.arange(max_length) < torch.tensor([len(path) for path in found])[:, None]
    return Responses(padded[..., 1], padded[..., 0], mask)
