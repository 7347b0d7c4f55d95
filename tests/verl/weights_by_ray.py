"""A checkpoint engine for verl that needs no GPU: the weights go through a queue of Ray's.

Set ``actor_rollout_ref.rollout.checkpoint_engine.backend=ray`` and ``custom_backend_module=weights_by_ray``.
verl's own engines that reach a rollout in other processes need NCCL, NIXL or the like.
"""

from ray.util.queue import Queue
from verl.checkpoint_engine import CheckpointEngine, CheckpointEngineRegistry

made = []  # in the trainer's process; a queue is a process, so it is kept


@CheckpointEngineRegistry.register("ray")
class WeightsByRay(CheckpointEngine):
    """The first trainer's worker sends, every rollout worker receives."""

    def __init__(self, bucket_size, is_master=False):
        self.queues = []

    def prepare(self):
        return {}

    @classmethod
    def build_topology(cls, actor_wg_world_size, rollout_world_size, metadata):
        while len(made) < rollout_world_size:
            made.append(Queue(actor_options={"num_cpus": 0}))
        queues = made[:rollout_world_size]
        senders = [queues] + [[]] * (actor_wg_world_size - 1)
        return {"queues": senders}, {"queues": [[queue] for queue in queues]}

    def init_process_group(self, queues):
        self.queues = queues

    def finalize(self):
        self.queues = []

    async def send_weights(self, weights, global_steps=None):
        for name, value in weights:
            for queue in self.queues:
                await queue.put_async((name, value.detach().cpu().clone()))
        for queue in self.queues:
            await queue.put_async(None)

    async def receive_weights(self, global_steps=None):
        (queue,) = self.queues
        while (item := await queue.get_async()) is not None:
            yield item
