"""Starts the server of a replica beside its training worker: on the same node, on the same device."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.plugin.platform import get_platform
from verl.workers.rollout.replica import RolloutReplica

from rl_estimators.errors import InputError
from rl_estimators.verl.rollout.options import check, server_name
from rl_estimators.verl.rollout.server import HFServer

__all__ = ["HFReplica"]


class HFReplica(RolloutReplica):
    """One server for one training worker. Takes the arguments of verl's `RolloutReplica`.

    Raises:
        InputError: the configuration asks for something this engine cannot do.
    """

    def __init__(
        self,
        replica_rank: int,
        config: Any,
        model_config: Any,
        gpus_per_node: int = 8,
        is_reward_model: bool = False,
        is_teacher_model: bool = False,
        name_suffix: str = "",
    ) -> None:
        super().__init__(
            replica_rank, config, model_config, gpus_per_node, is_reward_model, is_teacher_model, name_suffix
        )
        if is_reward_model or is_teacher_model:
            role = "reward model" if is_reward_model else "teacher"
            raise InputError(f"rollout.name=hf serves the actor only; choose another engine for the {role}")
        check(self.config, self.model_config)

    async def launch_servers(self) -> None:
        """Start the server; called by verl once the worker is there."""
        (worker,) = self.workers
        node, devices = await worker.__ray_call__.remote(_whereabouts)
        server = (
            ray.remote(HFServer)
            .options(
                name=server_name(self.replica_rank),
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False),
                runtime_env={"env_vars": _environment(devices)},
                num_cpus=0,  # it idles while its worker trains, and must not wait for a CPU to be free
                max_concurrency=self.max_concurrency,
            )
            .remote(self.config, self.model_config, self.replica_rank, self.rollout_mode)
        )
        await server.wait_for_requests_to_drain.remote()  # returns once the model is built, or raises
        self.servers = [server]
        self._server_handle = server
        self._server_address = server_name(self.replica_rank)  # a label: there is no HTTP interface


def _whereabouts(worker: Any) -> tuple[str, list[str]]:
    """Node and accelerators of the worker this runs in."""
    context = ray.get_runtime_context()
    return context.get_node_id(), context.get_accelerator_ids().get(get_platform().ray_resource_name(), [])


def _environment(devices: list[str]) -> dict[str, str]:
    """Let the server see its worker's device without reserving one: Ray would show it none.

    Set before the process starts, because CUDA reads it once and verl's import already asks CUDA.
    """
    platform = get_platform()
    if platform.device_name == "cpu":
        return {}
    show = {platform.visible_devices_envvar(): ",".join(devices)}
    return {**dict.fromkeys(platform.ray_noset_envvars(), "1"), **show, **platform.rollout_env_vars()}
