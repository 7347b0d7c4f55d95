"""A replica for verl's reward model without vLLM: vLLM's ``/classify`` over HTTP, a function of the text behind.

It writes down what is done to it in ``reward_model.log`` in the folder ``RLE_TEST_REQUESTS``: "sleep", "wake_up"
and "score" with the text. Asked while it sleeps, it refuses, which ends the run.
"""

import json
import os
from pathlib import Path

import ray
from aiohttp import web
from stand_in_reward_model import opinion
from verl.single_controller.base import Worker
from verl.single_controller.ray import RayClassWithInitArgs
from verl.workers.rollout.replica import RolloutReplica

LOG = Path(os.environ["RLE_TEST_REQUESTS"]) / "reward_model.log"


class Server:
    """Scores a conversation of one question and one answer; the chat template of the smoke task joins them."""

    async def start(self):
        """Start to listen; returns the address."""
        self.awake = True
        app = web.Application()
        app.router.add_post("/classify", self.classify)
        runner = web.AppRunner(app)
        await runner.setup()
        host = ray.util.get_node_ip_address()
        await web.TCPSite(runner, host, 0).start()
        return f"{host}:{runner.addresses[0][1]}"

    async def classify(self, request):
        text = (await request.json())["input"]
        note("score", text)
        if not self.awake:
            raise web.HTTPConflict(text="the reward model is asleep")
        prompt, sign, answer = text.partition("=")
        return web.json_response({"data": [{"probs": [opinion(prompt + sign, answer)]}]})

    async def sleep(self):
        note("sleep")
        self.awake = False

    async def wake_up(self):
        note("wake_up")
        self.awake = True


def note(*event):
    with LOG.open("a") as file:
        file.write(json.dumps(event) + "\n")


class StandIn(RolloutReplica):
    """verl places its worker, which here only holds the place; the server is an actor of its own."""

    def get_ray_class_with_init_args(self):
        return RayClassWithInitArgs(cls=ray.remote(Worker))

    async def launch_servers(self):
        server = ray.remote(Server).options(num_cpus=0).remote()
        self._server_address = await server.start.remote()
        self._server_handle = server
        self.servers = [server]
