"""A comparison for programs, as JSON: ``rl-estimators compare --json``."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rl_estimators.compare.overall import add_up
from rl_estimators.compare.summary import Summary
from rl_estimators.files.problems import Problems

__all__ = ["as_json"]


def as_json(summaries: Sequence[Summary], problems: Problems) -> str:
    """One object. What is not finite is null, for JSON has no name for it.

    ``estimators``
        By name, numbers over all batches, see :class:`~rl_estimators.compare.overall.Row`.
    ``not_run``
        By name, why.
    ``rank_agreement``, ``sign_disagreement``
        By name and name.
    ``prompt_kinds``
        How many there are of each, see :class:`~rl_estimators.compare.summary.Prompt`.
    ``skipped``
        ``count`` and the first ``reasons``.
    ``batches``
        For each step ``source``, ``step``, ``format``, ``exact``, ``notes``, ``prompts`` and ``responses``, each with the
        advantages, or the shares of the signal, by estimator.
    """
    overall = add_up(summaries, shown=0)
    names = [*overall.rows]
    found = {
        "estimators": {name: asdict(row) for name, row in overall.rows.items()},
        "not_run": dict(overall.not_run),
        "rank_agreement": _named(names, overall.ranks.tolist()),
        "sign_disagreement": _named(names, overall.signs.tolist()),
        "prompt_kinds": dict(overall.kinds),
        "skipped": {"count": problems.count, "reasons": problems.reasons, "notes": problems.notes},
        "batches": [_batch(summary) for summary in summaries],
    }
    return json.dumps(_finite(found), allow_nan=False) + "\n"


def _named(names: list[str], table: list[list[float]]) -> dict[str, dict[str, float]]:
    return {name: dict(zip(names, row, strict=True)) for name, row in zip(names, table, strict=True)}


def _batch(summary: Summary) -> dict[str, Any]:
    rollouts = summary.rollouts
    columns = {name: column.tolist() for name, column in summary.columns.items()}
    shares = {name: column.tolist() for name, column in summary.shares.items()}
    prompts = [
        {**asdict(prompt), "signal": {name: column[at] for name, column in shares.items()}}
        for at, prompt in enumerate(summary.prompts)
    ]
    rows = zip(summary.groups.tolist(), summary.scores.tolist(), summary.lengths.tolist(), strict=True)
    responses = [
        {
            "prompt": group,
            "reward": score,
            "tokens": length,
            "advantages": {name: column[at] for name, column in columns.items()},
        }
        for at, (group, score, length) in enumerate(rows)
    ]
    return {
        "source": rollouts.source,
        "step": rollouts.step,
        "format": rollouts.format,
        "exact": rollouts.exact,
        "notes": list(rollouts.notes),
        "not_run": dict(summary.not_run),
        "prompts": prompts,
        "responses": responses,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list) else value
