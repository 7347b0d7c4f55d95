"""What the page embeds of a large batch, so that it stays small enough to open.

The numbers of the overview are of all responses; texts and tokens only of some. Prompts are kept with all their
responses, for an advantage is a comparison: those that carry most of the signal, those on which the estimators differ
most, and examples of those without signal.
"""

from itertools import chain, zip_longest

import numpy as np

from rl_estimators.compare.page.digest import Array, Digest

__all__ = ["MAX_RESPONSES", "contested", "kept_responses", "kept_steps", "prompt_order"]

MAX_RESPONSES = 200
_MAX_STEPS = 25  # 8 responses each


def kept_steps(number: int) -> list[int]:
    """Which of so many steps show responses: all, or 25 evenly spaced with the first and the last among them."""
    if number <= _MAX_STEPS:
        return list(range(number))
    return sorted({round(i * (number - 1) / (_MAX_STEPS - 1)) for i in range(_MAX_STEPS)})


def kept_responses(digest: Digest, limit: int) -> list[int]:
    """Rows of at most ``limit`` responses, in their order in the batch; all if they fit."""
    if len(digest.mask) <= limit:
        return list(range(len(digest.mask)))
    sizes = np.bincount(digest.summary.groups)
    rows: list[int] = []
    for group in _wanted(digest):
        if not rows and sizes[group] > limit:  # one prompt alone is too much
            return sorted(_strongest(digest, np.flatnonzero(digest.summary.groups == group), limit))
        if len(rows) + sizes[group] <= limit:
            rows.extend(np.flatnonzero(digest.summary.groups == group).tolist())
    return sorted(rows)


def prompt_order(digest: Digest) -> list[int]:
    """Prompts by the share of the signal they carry, averaged over the estimators; the largest first."""
    return [int(group) for group in np.argsort(-_carried(digest), kind="stable")]


def contested(digest: Digest) -> Array:
    """``(B,)`` share of the pairs of estimators of which one praises the response and the other blames it."""
    if not digest.summary.columns:
        return np.zeros(len(digest.mask))
    means = np.array(list(digest.summary.columns.values()))
    praised, blamed = (means > 0).sum(0), (means < 0).sum(0)
    pairs = max(len(means) * (len(means) - 1) // 2, 1)
    return np.asarray(praised * blamed / pairs)


def _wanted(digest: Digest) -> list[int]:
    """Prompts in the order in which they are taken."""
    kinds = np.array([prompt.kind for prompt in digest.summary.prompts])
    heat = np.zeros(len(kinds))
    np.maximum.at(heat, digest.summary.groups, contested(digest))
    most, hottest = prompt_order(digest), np.argsort(-heat, kind="stable").tolist()
    examples = [int(np.flatnonzero(kinds == kind)[0]) for kind in ("right", "wrong", "same") if kind in kinds]
    alternating = chain.from_iterable(zip_longest(most, hottest))
    return list(dict.fromkeys([*most[:1], *examples, *alternating]))


def _strongest(digest: Digest, rows: Array, limit: int) -> list[int]:
    """Responses by their mean advantage, each estimator's in units of its largest."""
    pull = np.zeros(len(digest.mask))
    for means in digest.summary.columns.values():
        sizes = np.abs(np.nan_to_num(means, nan=0, posinf=0, neginf=0))
        pull += sizes / max(sizes.max(initial=0), np.finfo(float).tiny)
    order = np.argsort(-pull[rows], kind="stable")
    return [int(row) for row in rows[order[:limit]]]


def _carried(digest: Digest) -> Array:
    shares = list(digest.summary.shares.values())
    return np.mean(shares, axis=0) if shares else np.zeros(len(digest.summary.prompts))
