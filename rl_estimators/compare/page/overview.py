"""What the whole batch says, before a single response is looked at."""

from typing import Any

import numpy as np

from rl_estimators.compare.page.digest import Array, Digest
from rl_estimators.compare.page.encode import number
from rl_estimators.compare.summary import KINDS

__all__ = ["overview"]

_PERCENTILE = 95  # of the numbers other than 0: a few extreme ones must not leave all others pale


def overview(digest: Digest) -> dict[str, Any]:
    """Numbers of the batch, of each estimator, and of each pair of them, over every response.

    Returns:
        What the page's script reads: ``counts``; ``kinds``, the prompts of each kind; ``estimators``; ``not_run``;
        ``rank`` and ``sign``, matrices over the estimators in their order.
    """
    summary = digest.summary
    kinds = [prompt.kind for prompt in summary.prompts]
    return {
        "counts": {
            "responses": len(digest.mask),
            "prompts": len(kinds),
            "tokens": int(summary.lengths.sum()),
            "left_out": int((~digest.counts).sum()),
        },
        "kinds": {kind: kinds.count(kind) for kind in KINDS},
        "estimators": [_estimator(digest, name) for name in digest.names],
        "not_run": [[name, reason] for name, reason in summary.not_run.items()],
        "rank": _matrix(summary.ranks),
        "sign": _matrix(summary.signs),
    }


def _estimator(digest: Digest, name: str) -> dict[str, Any]:
    """One row of the overview. ``quiet_zero`` counts the prompts answered all alike whose responses all get 0."""
    standing, shares = digest.summary.standings[name], digest.summary.shares[name]
    own = digest.comparison.advantages[name].float().numpy()[digest.mask]
    alike = np.array([prompt.kind in ("right", "wrong", "same") for prompt in digest.summary.prompts], bool)
    tokens = max(standing.tokens, 1)
    return {
        "name": name,
        "zero_tokens": number(standing.zero_tokens / tokens),
        "zero_responses": number(standing.zero_responses / max(standing.responses, 1)),
        "spread": number((standing.apart / tokens) ** 0.5),
        "positive": number(standing.praised_tokens / tokens),
        "prompts": int((shares > 0).sum()),
        "largest": number(shares.max(initial=0)),
        "quiet_zero": int((shares[alike] == 0).sum()),
        "excluded": standing.excluded,
        "odd": int((~np.isfinite(own)).sum()),
        "token_scale": _scale(own),
        "response_scale": _scale(digest.summary.columns[name]),
    }


def _scale(numbers: Array) -> float | str:
    """Where bars and colours are at their fullest: nearly the largest absolute number, 0 if all are 0."""
    sizes = np.abs(numbers[np.isfinite(numbers) & (numbers != 0)])
    return number(np.percentile(sizes, _PERCENTILE, method="higher")) if sizes.size else 0


def _matrix(numbers: Array) -> list[list[float | str]]:
    return [[number(value) for value in row] for row in numbers]
