"""Several batches in one: what the tables say of a whole run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl_estimators.compare.summary import KINDS, Contested, Standing, Summary

__all__ = ["Overall", "Row", "add_up"]


@dataclass(frozen=True)
class Row:
    """An estimator over all batches that it ran on.

    Attributes:
        batches: How many.
        responses: How many.
        zero_responses: Share with the advantage 0 at every token.
        zero_tokens: Share of valid tokens with the advantage 0.
        praised_tokens: Share of valid tokens with an advantage above 0.
        spread: Standard deviation of the valid tokens' advantages.
        carrying: Share of prompts with any advantage other than 0.
        largest: The largest prompt's part of a batch's sum of absolute advantages; the mean over batches.
        excluded: Responses it left out.
        quiet: Prompts with several responses of one score, all of which it gives 0.
    """

    batches: int
    responses: int
    zero_responses: float
    zero_tokens: float
    praised_tokens: float
    spread: float
    carrying: float
    largest: float
    excluded: int
    quiet: int


@dataclass(frozen=True)
class Overall:
    """All batches.

    Attributes:
        rows: For each estimator that ran.
        ranks: ``(K, K)`` rank agreement, the mean over batches where it is defined: the scales of steps differ.
        signs: ``(K, K)`` share of responses that one praises and the other blames.
        kinds: How many prompts are of each kind, see :class:`~rl_estimators.compare.summary.Prompt`.
        carriers: Prompts with the batch they are of, those that carry most of it first.
        silent: Prompts all of whose responses have one score, likewise.
        contested: The most contested responses.
        not_run: For each estimator that ran on no batch, why.
    """

    rows: Mapping[str, Row]
    ranks: NDArray[np.float64]
    signs: NDArray[np.float64]
    kinds: Mapping[str, int]
    carriers: Sequence[tuple[Summary, int]]
    silent: Sequence[tuple[Summary, int]]
    contested: Sequence[Contested]
    not_run: Mapping[str, str]


def add_up(summaries: Sequence[Summary], shown: int = 10) -> Overall:
    """What all batches say together.

    Args:
        summaries: At least one.
        shown: How many prompts and responses are listed.
    """
    names = [*dict.fromkeys(name for summary in summaries for name in summary.columns)]
    prompts = [prompt for summary in summaries for prompt in summary.prompts]
    contested = [one for summary in summaries for one in summary.contested]
    reasons = {name: reason for summary in summaries for name, reason in summary.not_run.items()}
    return Overall(
        rows={name: _row(name, [one for one in summaries if name in one.columns]) for name in names},
        ranks=_mean(summaries, names, "ranks"),
        signs=_mean(summaries, names, "signs"),
        kinds={kind: sum(prompt.kind == kind for prompt in prompts) for kind in KINDS},
        carriers=_carriers(summaries, shown),
        silent=_silent(summaries, shown),
        contested=sorted(contested, key=lambda one: (-round(one.heat, 1), -one.apart))[:shown],
        not_run={name: reason for name, reason in reasons.items() if name not in names},
    )


def _row(name: str, summaries: Sequence[Summary]) -> Row:
    standings = [summary.standings[name] for summary in summaries]
    responses, tokens = _sum(standings, "responses"), _sum(standings, "tokens")
    prompts = sum(len(summary.prompts) for summary in summaries)
    carrying = sum(int((summary.shares[name] > 0).sum()) for summary in summaries)
    return Row(
        batches=len(summaries),
        responses=responses,
        zero_responses=_share(_sum(standings, "zero_responses"), responses),
        zero_tokens=_share(_sum(standings, "zero_tokens"), tokens),
        praised_tokens=_share(_sum(standings, "praised_tokens"), tokens),
        spread=_spread(standings),
        carrying=_share(carrying, prompts),
        largest=float(np.mean([summary.shares[name].max(initial=0) for summary in summaries])),
        excluded=_sum(standings, "excluded"),
        quiet=sum(
            bool(prompt.kind in ("right", "wrong", "same") and share == 0)
            for summary in summaries
            for prompt, share in zip(summary.prompts, summary.shares[name], strict=True)
        ),
    )


def _spread(standings: Sequence[Standing]) -> float:
    """From what batches have inside and what lies between their means."""
    sizes = np.array([standing.tokens for standing in standings], dtype=float)
    means = np.array([standing.mean for standing in standings]) - standings[0].mean
    inside = sum(standing.apart for standing in standings)
    between = float((sizes * (means - _share(float(sizes @ means), sizes.sum())) ** 2).sum())
    return math.sqrt(_share(inside + between, sizes.sum()))


def _sum(standings: Sequence[Standing], field: str) -> int:
    return sum(int(getattr(standing, field)) for standing in standings)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _mean(summaries: Sequence[Summary], names: list[str], field: str) -> NDArray[np.float64]:
    """Of a matrix over the estimators, entry by entry where it is a number; signs are weighted by responses."""
    total, weight = np.zeros((len(names),) * 2), np.zeros((len(names),) * 2)
    for summary in summaries:
        at = [names.index(name) for name in summary.columns]
        table = getattr(summary, field)
        size = len(summary.scores) if field == "signs" else 1
        place = np.ix_(at, at)
        total[place] += np.where(np.isnan(table), 0, table) * size
        weight[place] += ~np.isnan(table) * size
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1), np.nan)


def _carriers(summaries: Sequence[Summary], shown: int) -> list[tuple[Summary, int]]:
    """By the mean over the estimators of a prompt's part of its batch."""
    found: list[tuple[float, Summary, int]] = []
    for summary in summaries:
        if not summary.shares:
            continue
        means = np.mean([*summary.shares.values()], axis=0)
        order = np.argsort(-means, kind="stable")[:shown].tolist()
        found += [(float(means[at]), summary, at) for at in order if means[at] > 0]
    found.sort(key=lambda entry: -entry[0])
    return [(summary, at) for _, summary, at in found[:shown]]


def _silent(summaries: Sequence[Summary], shown: int) -> list[tuple[Summary, int]]:
    found = [
        (summary, at)
        for summary in summaries
        for at, prompt in enumerate(summary.prompts)
        if prompt.kind in ("right", "wrong", "same")
    ]
    found.sort(key=lambda entry: -entry[0].prompts[entry[1]].size)
    return found[:shown]
