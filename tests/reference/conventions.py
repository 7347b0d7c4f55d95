"""Conventions on which frameworks differ, written out from their equations: explicit sums over lists, float64."""

import math

import numpy as np

from reference.definitions import Estimate, counted, valid


def whitened_rows(rows, eps=1e-8, ddof=1, weighting="token", eps_in="variance"):
    """Mean 0 and variance 1 over a batch given as lists of each response's valid numbers.

    A token weighs 1, or with "sequence" 1 over the length of its response; the weights sum up to the number of tokens,
    or of responses. Numbers that are all equal become 0.
    """
    weights = [[1.0 if weighting == "token" else 1 / len(row)] * len(row) for row in rows]
    number = sum(len(row) if weighting == "token" else 1 for row in rows)
    everything = [x for row in rows for x in row]
    if not everything or all(x == everything[0] for x in everything):
        return [[0.0] * len(row) for row in rows]
    pairs = [(w, x) for ws, row in zip(weights, rows, strict=True) for w, x in zip(ws, row, strict=True)]
    mean = math.fsum(w * x for w, x in pairs) / number
    variance = math.fsum(w * (x - mean) ** 2 for w, x in pairs) / max(number - ddof, 1)
    divisor = math.sqrt(variance + eps) if eps_in == "variance" else math.sqrt(variance) + eps
    return [[(x - mean) / divisor for x in row] for row in rows]


def whitened(advantages, places, **how):
    """``advantages`` with the positions ``places[b]`` of each row whitened together, the others 0."""
    counts = [b for b, at in enumerate(places) if len(at)]
    rows = whitened_rows([list(advantages[b, places[b]]) for b in counts], **how)
    out = np.zeros(advantages.shape)
    for b, row in zip(counts, rows, strict=True):
        out[b, places[b]] = row
    return out


def places_of(rewards, mask, *others):
    """Valid positions of the responses that count: all their valid numbers are finite, in ``others`` as well."""
    sound = [
        counted(r, m) and all(np.isfinite(x[b][valid(m)]).all() for x in others)
        for b, (r, m) in enumerate(zip(rewards, mask, strict=True))
    ]
    return [valid(m) if good else np.array([], dtype=int) for m, good in zip(mask, sound, strict=True)]


def scores_by_group(rewards, mask, index):
    """{uid: {row: score}} of the responses that count."""
    groups = {}
    for b, at in enumerate(places_of(rewards, mask)):
        if len(at):
            groups.setdefault(index[b], {})[b] = math.fsum(rewards[b, at])
    return groups


def standing(scores, row, epsilon=None, ddof=1, singleton="zero", baseline="mean", lengths=None):
    """One response's score against its group's, ``scores`` by row.

    ``baseline``: the mean, the mean of the others, or the mean weighted by ``lengths``. Divided by the deviation plus
    ``epsilon`` unless that is None. A group of one: 0, or its score over 1 + epsilon.
    """
    mine = scores[row]
    if len(scores) == 1:
        return 0.0 if singleton == "zero" else mine / (1 + (epsilon or 0.0))
    if len(set(scores.values())) == 1:
        return 0.0
    others = [s for b, s in scores.items() if b != row]
    mean = math.fsum(scores.values()) / len(scores)
    if baseline == "others":
        centred = mine - math.fsum(others) / len(others)
    elif baseline == "lengths":
        centred = mine - math.fsum(lengths[b] * s for b, s in scores.items()) / math.fsum(
            lengths[b] for b in scores
        )
    else:
        centred = mine - mean
    if epsilon is None:
        return centred
    variance = math.fsum((s - mean) ** 2 for s in scores.values()) / max(len(scores) - ddof, 1)
    return centred / (math.sqrt(variance) + epsilon)


def by_row(rewards, mask, numbers):
    """A number per row on its valid tokens."""
    advantages = np.zeros(rewards.shape)
    for b, number in numbers.items():
        advantages[b, valid(mask[b])] = number
    return Estimate(advantages, advantages.copy())


def within_groups(rewards, mask, index, **how):
    """:func:`standing` of every response."""
    lengths = [len(valid(m)) for m in mask]
    numbers = {
        b: standing(scores, b, lengths=lengths, **how)
        for scores in scores_by_group(rewards, mask, index).values()
        for b in scores
    }
    return by_row(rewards, mask, numbers)
