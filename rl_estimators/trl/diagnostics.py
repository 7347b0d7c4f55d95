"""Diagnostics in TRL's log: of a batch of completions when its advantages are there, of the updates once it is used up.

A batch of completions is trained on in one or more optimizer steps, each of one or more micro-batches, in several
processes. What the updates say is added up over all of them and logged once a batch, with the last of its steps.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather
from torch import Tensor

from rl_estimators.diagnostics import PREFIX, loggable, measure
from rl_estimators.diagnostics.updates import (
    add_sums,
    policy_numbers,
    policy_sums,
    value_numbers,
    value_sums,
)
from rl_estimators.registry import VALUE_LOSSES, Estimate
from rl_estimators.trl import upstream
from rl_estimators.trl.rewards import Scored

if TYPE_CHECKING:
    from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["SOUND", "Diagnostics"]

SOUND = "sound_rows"  # in TRL's batch: completions that the estimator did not leave out, (B,) bool


class Diagnostics:
    """What a trainer logs of :data:`~rl_estimators.diagnostics.DIAGNOSTICS`.

    Args:
        trainer: The trainer that logs.
    """

    def __init__(self, trainer: "EstimatorTrainer") -> None:
        self._trainer = trainer
        self._policy: dict[str, Tensor] = {}
        self._critic: dict[str, Tensor] = {}
        self._seen: list[Tensor] | None = None  # log-probabilities, while a loss is computed

    def log_batch(self, everywhere: Mapping[str, Any], result: Estimate, scored: Scored, mode: str) -> None:
        """Log what a batch of completions, of all processes, says; every process must call.

        Args:
            everywhere: The estimator's inputs, of all processes.
            result: What it returned.
            scored: Of this process: scores, and which completions were cut off.
            mode: ``train`` or ``eval``.
        """
        own = {"scores": scored.scores, "truncated": scored.truncated}
        given = {name: self._all(x) for name, x in own.items() if x is not None}
        given |= {name: everywhere[name] for name in ("response_mask", "index")}
        found = measure({**given, "advantages": result.advantages}, clean=self._trainer.estimator.is_ours)
        del found["excluded_responses"]  # the estimator has counted them
        self._log(found, mode)

    @contextmanager
    def watching(self, batch: Mapping[str, Any]) -> Iterator[None]:
        """Around the policy loss of a training micro-batch: add up its ratios, from the log-probabilities it computes.

        A loss that computes them otherwise than by TRL's method, or more than once, is left out.
        """
        self._seen = []
        try:
            yield
            seen = [x for x in self._seen if x.shape == batch["completion_ids"].shape]
        finally:
            self._seen = None
        if len(seen) == 1:
            old = batch.get("old_per_token_logps")
            old = (
                seen[0] if old is None else old
            )  # as for TRL's loss: the policy is still the one that sampled
            reference = batch.get("ref_per_token_logps")
            sums = policy_sums(seen[0], old, upstream.response_mask(batch), reference)
            self._policy = add_sums(self._policy, sums)

    def see(self, log_prob: Tensor) -> None:
        """Take note of log-probabilities that TRL has computed; only while :meth:`watching`."""
        if self._seen is not None:
            self._seen.append(log_prob.detach())

    def see_values(self, vpreds: Tensor, rows: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Add up the critic's errors on some completions while it trains on them; ``options`` are its loss's."""
        spec, mask, reach = (
            VALUE_LOSSES.spec(self._trainer.args.value_loss),
            upstream.response_mask(rows),
            None,
        )
        if spec.is_ours and "cliprange_value" in spec.options:
            reach = options.get("cliprange_value", spec.options["cliprange_value"])
        if SOUND in rows:  # a checkpoint of an earlier release has batches without
            mask = mask & rows[SOUND][:, None]
        sums = value_sums(rows["values"], rows["returns"], mask, vpreds.detach(), reach)
        self._critic = add_sums(self._critic, sums)

    def step(self) -> None:
        """After a micro-batch: log what the updates say, if it was the last of its batch; every process must call."""
        trainer = self._trainer
        if trainer._step % (trainer.args.steps_per_generation * trainer.num_iterations) != 0:
            return
        policy, critic = self._everywhere(self._policy), self._everywhere(self._critic)
        self._policy, self._critic = {}, {}
        found = {**(policy_numbers(policy) if policy else {}), **(value_numbers(critic) if critic else {})}
        self._log(found, "train")

    def _everywhere(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums of all processes together."""
        if self._trainer.accelerator.num_processes == 1 or not sums:
            return dict(sums)
        rows = gather(torch.stack(list(sums.values()))[None])
        total: dict[str, Tensor] = {}
        for row in rows:
            total = add_sums(total, dict(zip(sums, row, strict=True)))
        return total

    def _all(self, x: Tensor) -> Tensor:
        """The rows of all processes."""
        return x if self._trainer.accelerator.num_processes == 1 else gather(x.contiguous())

    def _log(self, found: Mapping[str, Tensor], mode: str) -> None:
        metrics = self._trainer._metrics[mode]
        for name, number in loggable(found).items():
            metrics[PREFIX + name].append(number)
