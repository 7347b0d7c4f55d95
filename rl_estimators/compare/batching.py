"""The responses of one step, made the batch that an estimator takes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl_estimators.compare.limits import MOST_TOKENS, check_size
from rl_estimators.compare.model import Rollouts
from rl_estimators.compare.record import Pieces, Record
from rl_estimators.compare.weights import Weights
from rl_estimators.compare.words import Splitter
from rl_estimators.errors import InputError
from rl_estimators.files.problems import Problems

__all__ = ["batch"]

_MASK = "response_mask"
_REWARDS = "token_level_rewards"


def batch(
    source: str,
    records: Sequence[Record],
    splitter: Splitter,
    weights: Weights,
    problems: Problems,
    format: str,
    notes: Sequence[str] = (),
) -> Rollouts | None:
    """Lay out responses as ``(B, T)`` tensors in fp32, as training would; None if none is left.

    A response's reward stands on the last token that the policy wrote.

    Raises:
        InputError: the batch is too large; ``weights`` are given and there is nothing to weigh.
    """
    records, masks = _fitting(records, splitter, problems)
    if not records:
        return None
    if weights.given and not any(record.components and _REWARDS not in record.tokens for record in records):
        raise InputError(f"{source}: --reward-weights is given, but there are no several rewards to weigh")
    check_size(source, records[0].step, len(records), max(map(len, masks)))
    notes = list(notes)
    inputs, names = _inputs(records, masks, weights, notes)
    return Rollouts(
        source=source,
        step=records[0].step,
        prompts=[record.prompt for record in records],
        pieces=Pieces([record.response for record in records], splitter),
        exact=all(isinstance(record.response, list) for record in records) or splitter.exact,
        inputs=inputs,
        components=names,
        logged=_logged(records),
        notes=notes,
        format=format,
    )


def _inputs(
    records: Sequence[Record], masks: Sequence[NDArray[np.float64]], weights: Weights, notes: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """What estimators ask for by name, and the names of several rewards."""
    width = max(1, *map(len, masks))
    mask = _rows(masks, width) > 0
    silent = int((~mask.any(-1)).sum())
    if silent:
        told = "response holds no token of the policy's: it counts"
        told = told if silent == 1 else "responses hold no token of the policy's: they count"
        notes.append(f"{silent:,} {told} for nothing")
    components, names = _components(records, weights, notes)
    inputs = {
        _MASK: mask,
        _REWARDS: _rewards(records, mask, weights, width),
        "index": _index(records, notes),
        **_columns(records, width, notes),
        **components,
    }
    columns = _shared([record.columns for record in records], [], "")
    if columns:
        inputs["non_tensor_batch"] = {name: np.array(numbers) for name, numbers in columns.items()}
    return inputs, names


def _fitting(
    records: Sequence[Record], splitter: Splitter, problems: Problems
) -> tuple[list[Record], list[NDArray[np.float64]]]:
    """The responses whose lists fit their tokens, and for each token of them whether the policy wrote it."""
    texts = [
        text for record in records if not isinstance(record.response, list) for text, _ in record.response
    ]
    counts = iter(splitter.counts(texts))
    kept: list[Record] = []
    masks = []
    for record in records:
        written = _written(record, counts)
        reason = _misfit(record, len(written))
        if reason:
            problems.skip(record.place, reason)
            continue
        kept.append(record)
        masks.append(record.tokens.get(_MASK, written))
    return kept, masks


def _written(record: Record, counts: Any) -> NDArray[np.float64]:
    """1 on each token of the policy's, 0 on those of others."""
    if isinstance(record.response, list):
        return np.ones(len(record.response))
    own = [(next(counts), written) for _, written in record.response]
    if not any(count for count, _ in own):
        return np.ones(1)  # as Pieces has it
    return np.concatenate([np.full(count, float(written)) for count, written in own])


def _misfit(record: Record, tokens: int) -> str:
    if tokens > MOST_TOKENS:
        return f"its response has {tokens:,} tokens, more than {MOST_TOKENS:,}"
    for name, numbers in record.tokens.items():
        if len(numbers) != tokens:
            split = (
                ""
                if isinstance(record.response, list)
                else " as split here; give response as a list of its tokens"
            )
            return f"{name} has {len(numbers)} numbers, but the response {tokens} tokens{split}"
    return ""


def _rows(rows: Sequence[NDArray[np.float64]], width: int) -> Tensor:
    table = np.zeros((len(rows), width), dtype=np.float32)
    for at, row in enumerate(rows):
        with np.errstate(over="ignore"):  # beyond fp32 it is inf, which estimators leave out and count
            table[at, : len(row)] = row
    return torch.from_numpy(table)


def _rewards(records: Sequence[Record], mask: Tensor, weights: Weights, width: int) -> Tensor:
    """``(B, T)``; rewards of responses on their last written token, those of tokens where they stand."""
    rewards = _rows([record.tokens.get(_REWARDS, np.zeros(0)) for record in records], width)
    scores = np.array([_score(record, weights) for record in records])
    whole = torch.tensor([_REWARDS not in record.tokens for record in records]) & mask.any(-1)
    last = (mask * torch.arange(width)).amax(-1)
    with np.errstate(over="ignore"):
        numbers = torch.from_numpy(scores.astype(np.float32))
    rewards[whole, last[whole]] = numbers[whole]
    return rewards


def _score(record: Record, weights: Weights) -> float:
    if record.components and (weights.given or record.reward is None):
        return weights.reward(record.components)
    return 0.0 if record.reward is None else record.reward


def _index(records: Sequence[Record], notes: list[str]) -> "NDArray[Any]":
    alone = sum(record.group is None for record in records)
    if alone:
        told = "response without prompt and uid is a group of its own"
        told = told if alone == 1 else "responses without prompt and uid are groups of their own"
        notes.append(f"{alone:,} {told}")
    names = [f"response {at}" if record.group is None else record.group for at, record in enumerate(records)]
    return np.fromiter(names, dtype=object, count=len(names))


def _columns(records: Sequence[Record], width: int, notes: list[str]) -> dict[str, Tensor]:
    """Whatever else stands in every response."""
    lists = _shared([record.tokens for record in records], notes, "", but=(_MASK, _REWARDS))
    found = {name: _rows(rows, width) for name, rows in lists.items()}
    numbers = _shared([record.numbers for record in records], notes, "")
    for name, column in numbers.items():
        with np.errstate(over="ignore"):
            tensor = torch.from_numpy(np.array(column, dtype=np.float32))
        found[name] = tensor > 0 if name == "truncated" else tensor
    return found


def _components(
    records: Sequence[Record], weights: Weights, notes: list[str]
) -> tuple[dict[str, Tensor], list[str]]:
    columns = _shared([record.components for record in records], notes, "the reward ")
    if not columns:
        return {}, []
    if all(record.reward is None for record in records) or weights.given:
        own = weights.of([*columns])
        parts = [name if weight == 1 else f"{weight:g} * {name}" for name, weight in own.items()]
        notes.append(f"reward = {' + '.join(parts)}")
    table = np.array([*columns.values()], dtype=np.float64).T
    with np.errstate(over="ignore"):
        return {"reward_components": torch.from_numpy(table.astype(np.float32))}, [*columns]


def _shared(
    rows: Sequence[Mapping[str, Any]], notes: list[str], what: str, but: Sequence[str] = ()
) -> dict[str, list[Any]]:
    """The entries that every row has, column by column; of those that only some have a note is made."""
    counts: dict[str, int] = {}
    for row in rows:
        for name in row:
            counts[name] = counts.get(name, 0) + 1
    for name, count in counts.items():
        if count < len(rows) and name not in but:
            notes.append(
                f"{what}{name} is left out: {len(rows) - count:,} of {len(rows):,} responses lack it"
            )
    return {
        name: [row[name] for row in rows]
        for name, count in counts.items()
        if count == len(rows) and name not in but
    }


def _logged(records: Sequence[Record]) -> Tensor | None:
    numbers = [record.logged for record in records]
    if any(number is None for number in numbers):
        return None
    return torch.tensor(numbers, dtype=torch.float64)
