"""What a reward function returns beside its score, brought to the v1 trainer's advantage step.

verl's legacy trainer puts it into the batch. The v1 trainer leaves it in its queue and fetches a few fixed columns
only: it stands in ``extra_fields`` of each row, or, where a reward model shares its devices with the policy, in columns
of its own. The hook `verl_sessions`, which is where the rows' keys are known, has it fetched for an estimator that is
registered with us and asks for ``reward_components`` or ``non_tensor_batch``; for all others nothing is read.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rl_estimators.errors import InputError
from rl_estimators.hints import did_you_mean
from rl_estimators.verl import reward_keys
from rl_estimators.verl.core_algos import estimator_name
from rl_estimators.verl.estimators import options, spec_of

__all__ = ["attach"]

_PARTITION = "train"  # the one of verl's queue that is trained on


def attach(data: Any, batch_keys: Sequence[str], adv_estimator: Any, config: Any) -> None:
    """Put what every response's reward came with into verl's ``DataProto``, as columns of its ``non_tensor_batch``.

    Args:
        data: The batch, a row for each key. A column that it has already is left as it is.
        batch_keys: The rows' keys in verl's queue.
        adv_estimator: The estimator, as verl's configuration names it.
        config: verl's ``algorithm`` configuration.

    Raises:
        InputError: ``reward_keys`` names what the reward function did not return for every response.
    """
    name = estimator_name(adv_estimator)
    spec = spec_of(name)
    keys = [] if spec is None else reward_keys.names(spec, options(spec, config))
    if spec is None or not (keys or spec.asks_for("non_tensor_batch")):
        return
    infos = _infos(batch_keys)
    shared = [key for key in infos[0] if all(key in info for info in infos)]
    columns = {key: [info[key] for info in infos] for key in shared}
    if keys and not any(infos):  # verl's trainer has asked a reward model itself, after the rollout
        columns = _read(batch_keys, keys)
    _require(name, keys, columns, infos)
    for key, column in columns.items():
        data.non_tensor_batch.setdefault(key, np.fromiter(column, dtype=object, count=len(column)))


def _infos(batch_keys: Sequence[str]) -> list[Mapping[str, Any]]:
    """Each row's ``reward_extra_info``; empty where there is none."""
    extra = _read(batch_keys, ["extra_fields"]).get("extra_fields", [{}] * len(batch_keys))
    return [fields.get("reward_extra_info") or {} for fields in extra]


def _read(batch_keys: Sequence[str], columns: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of the queue as lists. It leaves out what not all of the rows have."""
    queue = importlib.import_module("transfer_queue")
    found = queue.kv_batch_get(keys=list(batch_keys), partition_id=_PARTITION, select_fields=list(columns))
    return {name: _listed(found[name]) for name in columns if name in found}


def _listed(column: Any) -> list[Any]:
    """A column is a tensor, an array, a stack of tensordict's or a list, whatever the queue's back end makes of it."""
    return list(column.tolist() if hasattr(column, "tolist") else column)


def _require(
    name: str, keys: Sequence[str], columns: Mapping[str, Any], infos: Sequence[Mapping[str, Any]]
) -> None:
    for key in keys:
        if key not in columns:
            number = sum(key in info for info in infos)
            raise InputError(
                f"algorithm.adv_estimator={name}: reward_keys names {key!r}, which the reward function returned for "
                f"{number} of {len(infos)} responses.{did_you_mean(key, columns)} For each it returned "
                f"{', '.join(sorted(columns)) or 'nothing'}; components stand beside the score in the dictionary that it "
                "returns"
            )
