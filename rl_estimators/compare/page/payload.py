"""What the page embeds: overviews of whole batches, and of some responses every token."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from rl_estimators.compare.model import Comparison
from rl_estimators.compare.page.choose import (
    MAX_RESPONSES,
    contested,
    kept_responses,
    kept_steps,
    prompt_order,
)
from rl_estimators.compare.page.digest import Array, Digest, digest
from rl_estimators.compare.page.encode import number, row, text_of_json
from rl_estimators.compare.page.overview import overview

__all__ = ["MAX_BYTES", "MAX_PIECE", "MAX_PROMPT", "MAX_TOKENS", "payload"]

MAX_BYTES = 9_000_000  # of all data together
MAX_TOKENS = 1000  # of one response: its beginning and its end
MAX_PIECE = 200  # characters of one token; a word may be a long one
MAX_PROMPT = 4000  # characters of a prompt
_MAX_PROMPTS = 40  # listed by what they carry
_LEAST_TOKENS = 60
_SNIPPET = 300  # characters of a prompt none of whose responses are kept
_MAX_SCORES = 24  # shown one by one


def payload(comparisons: Sequence[Comparison], title: str) -> str:
    """The page's data as JSON that may stand in a ``<script>`` element.

    Responses are cut to fewer tokens until the data is small enough.

    Raises:
        InputError: the parts of a comparison do not fit each other.
    """
    chosen = kept_steps(len(comparisons))
    digests = [digest(comparisons[i]) for i in chosen]
    limit = MAX_RESPONSES // max(len(digests), 1)
    rows = [kept_responses(each, limit) for each in digests]
    overviews = [overview(each) for each in digests]
    tokens = MAX_TOKENS
    while True:
        steps = [
            {**numbers, **_step(each, kept, tokens)}
            for numbers, each, kept in zip(overviews, digests, rows, strict=True)
        ]
        limits = {"tokens": tokens, "piece": MAX_PIECE, "prompt": MAX_PROMPT, "steps": len(comparisons)}
        text = text_of_json({"title": title, "limits": limits, "steps": steps})
        if len(text.encode()) <= MAX_BYTES or tokens <= _LEAST_TOKENS:
            return text
        tokens //= 2


def _step(digest: Digest, kept: list[int], tokens: int) -> dict[str, Any]:
    rollouts = digest.comparison.rollouts
    split = contested(digest)
    return {
        "source": rollouts.source,
        "step": rollouts.step,
        "exact": rollouts.exact,
        "notes": list(rollouts.notes),
        "prompts": _prompts(digest, kept),
        "responses": [{**_response(digest, i, tokens), "split": number(split[i])} for i in kept],
    }


def _prompts(digest: Digest, kept: list[int]) -> list[dict[str, Any]]:
    with_responses = {int(digest.summary.groups[i]) for i in kept}
    order = prompt_order(digest)
    listed = set(order[:_MAX_PROMPTS]) | with_responses
    prompts = []
    for group in (group for group in order if group in listed):
        rows = np.flatnonzero(digest.summary.groups == group)
        text = digest.comparison.rollouts.prompts[rows[0]]
        longest = MAX_PROMPT if group in with_responses else _SNIPPET
        prompts.append(
            {
                "id": group,
                "text": None if text is None else shortened(text, longest),
                "kind": digest.summary.prompts[group].kind,
                "size": len(rows),
                "scores": sorted(
                    (number(s) for s in digest.summary.scores[rows][:_MAX_SCORES]), key=_descending
                ),
                "shares": [number(shares[group]) for shares in digest.summary.shares.values()],
            }
        )
    return prompts


def _descending(score: float | str) -> float:
    """NaN, the only score that differs from itself as a number, comes last."""
    value = float(score)
    return -value if value == value else float("inf")


def _response(digest: Digest, i: int, tokens: int) -> dict[str, Any]:
    rollouts = digest.comparison.rollouts
    pieces = rollouts.pieces[i]
    kept, cut = _kept_positions(len(pieces), tokens)
    inputs = rollouts.inputs
    response: dict[str, Any] = {
        "row": i,
        "prompt": int(digest.summary.groups[i]),
        "score": number(digest.summary.scores[i]),
        "counts": bool(digest.counts[i]),
        "tokens": int(digest.summary.lengths[i]),
        "inner": _praised_and_blamed(digest, i),
        "means": [number(means[i]) for means in digest.summary.columns.values()],
        "pieces": [shortened(pieces[t], MAX_PIECE) for t in kept],
        "cut": cut,
        "mask": row(digest.mask[i][kept]),
        "rewards": row(_floats(inputs["token_level_rewards"][i])[kept]),
        "advantages": [row(digest.advantages(name, i)[kept]) for name in digest.names],
    }
    if inputs.get("values") is not None:
        response["values"] = row(_floats(inputs["values"][i])[kept])
    if inputs.get("truncated") is not None:
        response["truncated"] = bool(inputs["truncated"][i])
    if inputs.get("reward_baselines") is not None:
        response["greedy"] = number(inputs["reward_baselines"][i])
    if inputs.get("reward_components") is not None:
        parts = [number(part) for part in _floats(inputs["reward_components"][i])]
        names = rollouts.components or [f"reward {k + 1}" for k in range(len(parts))]
        response["components"] = list(zip(names, parts, strict=True))
    return response


def _praised_and_blamed(digest: Digest, i: int) -> int:
    """How many estimators both praise and blame within the response."""
    rows = (digest.advantages(name, i) for name in digest.names)
    return sum(bool((row > 0).any() and (row < 0).any()) for row in rows)


def _kept_positions(length: int, limit: int) -> tuple[Array, list[int]]:
    """Which positions are shown, and after how many of them how many are missing.

    The end is kept as well as the beginning: there stand the answer and, mostly, the reward.
    """
    if length <= limit:
        return np.arange(length), [length, 0]
    head = limit * 2 // 3
    tail = limit - head
    return np.r_[:head, length - tail : length], [head, length - limit]


def shortened(text: str, limit: int) -> str:
    """The text, or its two ends if it is long, and how much is missing between them."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} [… {len(text) - 2 * half:,} characters left out …] {text[-half:]}"


def _floats(tensor: Tensor) -> Array:
    return tensor.detach().cpu().double().numpy()
