"""Pure functions on logits, and each request's own random stream.

Letters: B responses in the batch, V tokens in the vocabulary. Every row depends on nothing but itself.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["Streams", "draw", "keep_top_k", "keep_top_p", "log_probabilities"]


def log_probabilities(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities after temperature, then top-k, then top-p (vLLM's order), in float64.

    Args:
        logits: [B, V], of any floating type.
        temperature: [B]; 0, for greedy rows, counts as 1.
        top_k: [B] integers; 0 for off.
        top_p: [B]; 1 for off.

    Returns:
        [B, V], -inf for the tokens left out.
    """
    scaled = logits.double() / torch.where(temperature > 0, temperature, 1.0).double().unsqueeze(-1)
    return keep_top_p(keep_top_k(scaled, top_k), top_p).log_softmax(dim=-1)


def keep_top_k(logits: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Set all but the ``top_k`` greatest logits of each row to -inf; ties with the last of them stay, as in vLLM.

    Args:
        logits: [B, V].
        top_k: [B] integers; 0, or V and more, leaves the row as it is.
    """
    limited = (top_k > 0) & (top_k < logits.shape[-1])
    if not limited.any():
        return logits
    order = torch.where(limited, top_k, logits.shape[-1])
    descending = logits.sort(dim=-1, descending=True).values
    least = descending.gather(-1, order.long().unsqueeze(-1) - 1)
    return logits.masked_fill(logits < least, -torch.inf)


def keep_top_p(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Keep, in each row, the fewest most probable tokens that hold at least ``top_p``; the rest become -inf.

    Equally probable tokens are taken in the order of their ids.

    Args:
        logits: [B, V].
        top_p: [B], above 0; 1 leaves the row as it is.
    """
    limited = top_p < 1
    if not limited.any():
        return logits
    descending, ids = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = descending.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    surplus = (before >= top_p.unsqueeze(-1)) & limited.unsqueeze(-1)
    surplus[:, 0] = False
    return logits.masked_fill(torch.zeros_like(surplus).scatter(-1, ids, surplus), -torch.inf)


def draw(log_probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One token per row by inverting the cumulative distribution; a token of probability 0 is never drawn.

    Args:
        log_probs: [B, V] float64.
        uniforms: [B] float64 in [0, 1).

    Returns:
        [B] token ids.
    """
    cumulative = log_probs.exp().cumsum(dim=-1)
    # u < 1 keeps the product below the total in IEEE arithmetic, so a token is always found
    targets = uniforms.unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True).squeeze(-1)


class Streams:
    """Hands every request a random stream that depends on what is asked, not on when or with what else.

    The stream is derived from the seed, the replica, the version of the weights, the prompt, and how often
    this replica was asked to sample from that prompt at that version: repeated prompts get different
    responses, and a run repeats itself as far as its prompts reach the same replicas. Copies of a prompt that
    are asked at the same time get the same responses in every run, but which gets which depends on the order
    in which they arrive. The replica takes part because verl spreads the copies of one prompt over the
    replicas, which must not answer alike.

    Args:
        seed: The configured seed of the rollout.
        replica: Rank of the replica.
    """

    def __init__(self, seed: int, replica: int) -> None:
        self._origin = f"{seed}/{replica}"
        self._version: int | None = None
        self._asked: Counter[bytes] = Counter()

    def weights_changed(self, version: int | None) -> None:
        """Begin anew for ``version``. Without a number, or with the same one, go on counting."""
        if version is not None and version != self._version:
            self._version = version
            self._asked.clear()

    def next_for(self, prompt: Sequence[int]) -> np.random.Generator:
        """The stream for one more response to ``prompt``."""
        key = hashlib.sha256(np.asarray(prompt, dtype="<i8").tobytes()).digest()
        origin = f"{self._origin}/{self._version}/{self._asked[key]}/".encode()
        self._asked[key] += 1
        state = int.from_bytes(hashlib.sha256(origin + key).digest()[:16], "little")
        return np.random.Generator(np.random.Philox(key=state))
