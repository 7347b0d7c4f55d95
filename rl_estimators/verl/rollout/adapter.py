"""Lives in the training worker and pushes its weights to the server of its replica."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from typing import Any

import ray
import torch
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.utils import ensure_async_iterator

from rl_estimators.errors import InputError
from rl_estimators.verl.rollout.options import check, server_name

__all__ = ["HFAdapter"]

Weights = Iterable[tuple[str, torch.Tensor]] | AsyncIterator[tuple[str, torch.Tensor]]


class HFAdapter(BaseRollout):
    """Speaks to the server of this worker's replica. Takes the arguments of verl's own adapters.

    Raises:
        InputError: the configuration asks for something this engine cannot do.
    """

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1) -> None:
        super().__init__(config, model_config, device_mesh)
        check(self.config, self.model_config)
        # one worker per replica, so their ranks agree; verl names the rank of standalone replicas
        self.replica_rank = int(os.environ["RANK"]) if replica_rank == -1 else replica_rank
        self.is_leader_rank = True

    async def resume(self, tags: list[str]) -> None:
        """Wake the server up for "weights" or "kv_cache"."""
        if self.config.free_cache_engine:
            await self._server().wake_up.remote(tags=tags)

    async def release(self) -> None:
        """Send the server to sleep."""
        if self.config.free_cache_engine:
            await self._server().sleep.remote()

    async def update_weights(
        self,
        weights: Weights,
        global_steps: int | None = None,
        wire_format: str = "named_tensors",
        peft_config: object = None,
        **kwargs: object,
    ) -> None:
        """Replace all weights of the server.

        Args:
            weights: Pairs of name and full tensor. It may run collectives, so it is always used up.
            global_steps: Version of the weights.
            wire_format: Full tensors only.
            peft_config: None; this engine has no LoRA.
            kwargs: What verl tells engines with LoRA.

        Raises:
            InputError: another format, LoRA, or weights that do not fit the server's model.
        """
        if wire_format != "named_tensors":
            raise InputError(f"rollout.name=hf takes full tensors, and wire_format={wire_format!r}")
        if peft_config is not None:
            raise InputError("rollout.name=hf has no LoRA; set actor_rollout_ref.model.lora_rank=0")
        server = self._server()
        await server.begin_update.remote()
        limit = self.config.checkpoint_engine.update_weights_bucket_megabytes << 20
        async for part in _parts(weights, limit):
            await server.load_weights.remote(part)
        await server.finish_update.remote(global_steps)

    def _server(self) -> Any:
        return ray.get_actor(server_name(self.replica_rank))  # it is started after this worker


async def _parts(weights: Weights, limit: int) -> AsyncIterator[dict[str, torch.Tensor]]:
    """Gather the weights in host memory, in parts of about ``limit`` bytes."""
    part: dict[str, torch.Tensor] = {}
    size = 0
    async for name, value in ensure_async_iterator(weights):
        part[name] = value.detach().cpu()
        size += value.nbytes
        if size >= limit:
            yield part
            part, size = {}, 0
    if part:
        yield part
