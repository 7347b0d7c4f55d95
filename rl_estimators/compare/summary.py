"""A comparison in numbers, small enough to keep for every step of a long run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl_estimators.carry import carry_rewards
from rl_estimators.compare.agreement import per_response, rank_matrix, sign_disagreement, signal
from rl_estimators.compare.model import Comparison, Rollouts
from rl_estimators.masked import as_mask, scored

__all__ = ["KINDS", "Contested", "Prompt", "Standing", "Summary", "summarise"]

Array = NDArray[np.float64]
KINDS = ("mixed", "right", "wrong", "same", "single")
_EXCERPT = 400  # characters of a text that is shown


@dataclass(frozen=True)
class Standing:
    """What an estimator makes of a batch, so that batches can be added up.

    Attributes:
        responses: How many.
        zero_responses: Those of them with the advantage 0 at every token.
        tokens: Valid ones.
        zero_tokens: Those of them with the advantage 0.
        praised_tokens: Those with an advantage above 0.
        mean: Of the tokens' advantages; 0 without tokens.
        apart: Sum of the squares of what they differ from it.
        excluded: Responses it left out, with a number that is not finite.
    """

    responses: int
    zero_responses: int
    tokens: int
    zero_tokens: int
    praised_tokens: int
    mean: float
    apart: float
    excluded: int


@dataclass(frozen=True)
class Prompt:
    """A group of responses.

    Attributes:
        text: What they answer, cut short; None where the file does not say.
        name: The group's name.
        size: How many responses count: their score is finite, and the policy wrote a token of them.
        mean: Their mean score; NaN if none counts.
        kind: One of ``mixed``; ``right`` and ``wrong``, all at the batch's best or worst score; ``same``, all at another,
            or the batch has one score only; ``single``, at most one response counts.
    """

    text: str | None
    name: str | int
    size: int
    mean: float
    kind: str


@dataclass(frozen=True)
class Contested:
    """A response on which the estimators differ.

    Attributes:
        heat: How strongly one estimator praises what another blames: the smaller of the strongest praise and the
            strongest blame, each in units of its estimator's largest advantage. 0: none does the opposite of another.
        apart: The distance between the two.
        alike: How many other responses to the prompt are praised and blamed by the same estimators.
        row: Its place in the batch, from 0.
        source: Where it is from.
        step: The training step.
        prompt: Cut short.
        response: Cut short.
        score: Its reward.
        advantages: For each estimator, mean over its tokens.
    """

    heat: float
    apart: float
    alike: int
    row: int
    source: str
    step: int | None
    prompt: str | None
    response: str
    score: float
    advantages: Mapping[str, float]


@dataclass(frozen=True)
class Summary:
    """One batch.

    Attributes:
        rollouts: What it was made of, without texts and tensors: source, step, format, notes and exactness.
        scores: ``(B,)``; not finite where a response is left out.
        lengths: ``(B,)`` valid tokens.
        groups: ``(B,)`` which of ``prompts`` each response answers.
        prompts: In order of appearance.
        columns: ``(B,)`` for each estimator: mean advantage over a response's tokens.
        standings: For each estimator.
        shares: ``(G,)`` for each estimator: each prompt's part of the sum of absolute advantages.
        ranks: ``(K, K)`` rank agreement of the estimators in their order.
        signs: ``(K, K)`` share of responses that one praises and the other blames.
        contested: The most contested responses, the most contested first.
        not_run: For each estimator that could not run, why.
    """

    rollouts: Rollouts
    scores: Array
    lengths: NDArray[np.int64]
    groups: NDArray[np.int64]
    prompts: Sequence[Prompt]
    columns: Mapping[str, Array]
    standings: Mapping[str, Standing]
    shares: Mapping[str, Array]
    ranks: Array
    signs: Array
    contested: Sequence[Contested]
    not_run: Mapping[str, str]


def summarise(comparison: Comparison, contested: int = 10) -> Summary:
    """Count, rank and add up what the estimators made of a batch.

    Args:
        comparison: What they made of it.
        contested: How many responses are shown side by side.
    """
    rollouts = comparison.rollouts
    mask = as_mask(rollouts.inputs["response_mask"])
    scores, groups, counts = _scores(rollouts, mask)
    columns, standings, shares = {}, {}, {}
    for name, given in comparison.advantages.items():  # one at a time: a batch may fill much of the memory
        advantages = _finite(given, mask)
        columns[name] = per_response(advantages, mask).numpy()
        standings[name] = _standing(advantages, mask, comparison.excluded.get(name, 0))
        shares[name] = signal(advantages, mask, rollouts.inputs["index"]).shares
    return Summary(
        rollouts=Rollouts(
            rollouts.source,
            rollouts.step,
            (),
            (),
            rollouts.exact,
            {},
            notes=rollouts.notes,
            format=rollouts.format,
        ),
        scores=scores,
        lengths=mask.sum(-1).numpy(),
        groups=groups,
        prompts=_prompts(rollouts, scores, groups, counts),
        columns=columns,
        standings=standings,
        shares=shares,
        ranks=rank_matrix([*columns.values()]) if columns else np.zeros((0, 0)),
        signs=_signs([*columns.values()]),
        contested=_contested(rollouts, scores, groups, columns, contested),
        not_run=comparison.not_run,
    )


def _scores(rollouts: Rollouts, mask: Tensor) -> tuple[Array, NDArray[np.int64], NDArray[np.bool_]]:
    """Each response's score, the number of its group, and whether it counts."""
    rewards = carry_rewards(rollouts.inputs["token_level_rewards"], mask)
    scores, ids, counts = scored(rewards, mask, rollouts.inputs["index"])
    shown = torch.where(counts, scores.double(), torch.where(mask, rewards, 0).sum(-1, dtype=torch.float64))
    return shown.numpy(), ids.numpy(), counts.numpy()


def _finite(advantages: Tensor, mask: Tensor) -> Tensor:
    """0 where masked, and where somebody else's estimator gives no finite number."""
    return torch.where(mask & torch.isfinite(advantages), advantages, 0)


def _standing(advantages: Tensor, mask: Tensor, excluded: int) -> Standing:
    own = advantages[mask].double()
    shifted = own - own[:1]  # equal numbers differ by exactly 0, and so from their mean
    offset = shifted.mean() if own.numel() else own.sum()
    return Standing(
        responses=len(mask),
        zero_responses=int((advantages == 0).all(-1).sum()),
        tokens=own.numel(),
        zero_tokens=int((own == 0).sum()),
        praised_tokens=int((own > 0).sum()),
        mean=float(own[:1].sum() + offset),
        apart=float((shifted - offset).square().sum()),
        excluded=excluded,
    )


def _prompts(
    rollouts: Rollouts, scores: Array, groups: NDArray[np.int64], counts: NDArray[np.bool_]
) -> list[Prompt]:
    names = dict(zip(groups.tolist(), list(rollouts.inputs["index"]), strict=True))
    texts = dict(zip(groups.tolist(), rollouts.prompts, strict=True))
    number = len(names)
    known, own = groups[counts], scores[counts]
    low, high = np.full(number, np.inf), np.full(number, -np.inf)
    np.minimum.at(low, known, own)
    np.maximum.at(high, known, own)
    sizes = np.bincount(known, minlength=number)
    means = np.bincount(known, own, number) / np.where(sizes > 0, sizes, np.nan)
    worst, best = (own.min(), own.max()) if own.size else (0.0, 0.0)
    kinds = np.select(
        [sizes < 2, low < high, np.full(number, worst == best), low == best, high == worst],
        ["single", "mixed", "same", "right", "wrong"],
        "same",
    )
    return [
        Prompt(_cut(texts[at]), _plain(names[at]), int(sizes[at]), float(means[at]), str(kinds[at]))
        for at in range(number)
    ]


def _plain(name: Any) -> str | int:
    value = name.item() if hasattr(name, "item") else name
    return value if isinstance(value, (str, int)) else str(value)


def _cut(text: str | None) -> str | None:
    return text if text is None else text[:_EXCERPT]


def _signs(columns: list[Array]) -> Array:
    table = np.zeros((len(columns), len(columns)))
    for at, column in enumerate(columns):
        for other in range(at):
            table[at, other] = table[other, at] = sign_disagreement(column, columns[other])
    return table


def _contested(
    rollouts: Rollouts, scores: Array, groups: NDArray[np.int64], columns: Mapping[str, Array], number: int
) -> list[Contested]:
    """One response for each prompt and each way to praise and blame; the hottest first."""
    if not columns or not number or not len(scores):
        return []
    table = np.array([*columns.values()])
    largest = np.abs(table).max(-1, keepdims=True)
    scaled = table / np.where(largest > 0, largest, 1)
    highest, lowest = scaled.max(0), scaled.min(0)
    heat, apart = np.maximum(np.minimum(highest, -lowest), 0), highest - lowest
    ways = np.concatenate([groups[None].astype(float), np.sign(table)])
    _, way, counts = np.unique(ways, axis=1, return_inverse=True, return_counts=True)
    chosen: dict[int, int] = {}
    for row in np.lexsort((-apart, -np.round(heat, 1))).tolist():  # a heat of a few hundredths is none
        if len(chosen) < number and apart[row] > 0:
            chosen.setdefault(int(way.flat[row]), row)
    return [
        Contested(
            heat=float(heat[row]),
            apart=float(apart[row]),
            alike=int(counts[which]) - 1,
            row=row,
            source=rollouts.source,
            step=rollouts.step,
            prompt=_cut(rollouts.prompts[row]),
            response=_beginning(rollouts.pieces[row]),
            score=float(scores[row]),
            advantages={name: float(column[row]) for name, column in columns.items()},
        )
        for which, row in chosen.items()
    ]


def _beginning(pieces: Sequence[str]) -> str:
    """Begin and end of a response: the answer often stands at its end."""
    text = "".join(pieces)
    half = _EXCERPT // 2
    return text if len(text) <= _EXCERPT else f"{text[:half]} ... {text[-half:]}"
