"""The server of one replica: a Ray actor that turns token ids into token ids.

It runs on the actor's event loop alone. A model step blocks the loop; between any two steps other calls get
their turn, so a batch can be aborted while it runs. Requests that arrive together are generated together, up
to ``max_num_seqs``; later ones wait for the next batch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from verl.plugin.platform import get_platform
from verl.utils import normalize_token_ids
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import HFModelConfig
from verl.workers.rollout.replica import RolloutMode, TokenOutput

from rl_estimators.errors import EstimatorError, InputError
from rl_estimators.verl.rollout.generation import Batch, Row
from rl_estimators.verl.rollout.model import WeightUpdate, build
from rl_estimators.verl.rollout.options import Options
from rl_estimators.verl.rollout.request import read
from rl_estimators.verl.rollout.sampling import Streams

__all__ = ["HFServer"]

GATHER_SECONDS = 0.01  # how long the first request of a batch waits for company

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Pending:
    """A request that was admitted and has no answer yet."""

    request_id: str
    row: Row
    answer: asyncio.Future[TokenOutput]


class Gate:
    """Where requests wait while generation is paused, or are turned away."""

    def __init__(self) -> None:
        self._open, self._rejecting = True, False
        self._changed = asyncio.Event()

    def set(self, *, open: bool, rejecting: bool = False) -> None:
        self._open, self._rejecting = open, rejecting
        self._changed.set()
        self._changed = asyncio.Event()

    async def admits(self) -> bool:
        """Wait until the gate is open (True) or turns requests away (False)."""
        while not self._open and not self._rejecting:
            await self._changed.wait()
        return self._open


class HFServer:
    """Generates with a transformers model, and keeps its weights up to date.

    Args:
        config: verl's ``RolloutConfig``.
        model_config: verl's ``HFModelConfig``, or the `DictConfig` it is made from.
        replica_rank: Rank of the replica, part of every random stream.
        rollout_mode: verl's `RolloutMode`; a standalone server never sleeps.
    """

    def __init__(
        self,
        config: Any,
        model_config: Any,
        replica_rank: int = 0,
        rollout_mode: RolloutMode = RolloutMode.HYBRID,
    ) -> None:
        model_config = omega_conf_to_dataclass(model_config, dataclass_type=HFModelConfig)
        self.options = Options.read(omega_conf_to_dataclass(config), model_config)
        self.device = _device()
        self.model = build(model_config, self.options, self.device)
        self.global_steps: int | None = None
        self._sleeps = self.options.free_cache_engine and rollout_mode is not RolloutMode.STANDALONE
        self._asleep: set[str] = set()
        self._why_not = "has no weights yet" if self.options.load_format == "dummy" else ""
        self._update: WeightUpdate | None = None
        self._streams = Streams(self.options.seed, replica_rank)
        self._gate = Gate()
        self._queue: list[Pending] = []
        self._outstanding: set[Pending] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._pump: asyncio.Task[None] | None = None

    # ---- generation

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling_params: Mapping[str, Any],
        request_id: str,
        image_data: object = None,
        video_data: object = None,
        audio_data: object = None,
        mm_processor_kwargs: object = None,
    ) -> TokenOutput:
        """Generate one response, as verl's `LLMServerClient` asks for it.

        Returns:
            The tokens, with the one that ended the response; their log-probabilities if asked for;
            ``stop_reason`` "completed" (ended or at its limit) or "aborted".

        Raises:
            InputError: the request asks for something this engine cannot do.
            EstimatorError: the server is asleep or without weights.
        """
        if any((image_data, video_data, audio_data, mm_processor_kwargs)):
            raise InputError("rollout.name=hf takes text only, and this request has images, video or audio")
        prompt = normalize_token_ids(prompt_ids)
        sampling = read(sampling_params, len(prompt), self.options)
        if not await self._gate.admits():
            return self._output(Row(prompt, sampling, None), "aborted")
        self._require_ready()

        stream = None if sampling.greedy else self._streams.next_for(prompt)
        row = Row(prompt, sampling, stream)
        return await self._submit(Pending(request_id, row, asyncio.get_running_loop().create_future()))

    async def _submit(self, pending: Pending) -> TokenOutput:
        self._outstanding.add(pending)
        self._idle.clear()
        self._queue.append(pending)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._serve())
        try:
            return await pending.answer
        finally:
            pending.row.done = True  # also when the caller has been cancelled
            self._outstanding.discard(pending)
            if not self._outstanding:
                self._idle.set()

    async def _serve(self) -> None:
        """Work off the queue, batch by batch."""
        await asyncio.sleep(GATHER_SECONDS)
        while self._queue:
            size = self.options.max_num_seqs
            batch, self._queue = self._queue[:size], self._queue[size:]
            try:
                await self._run(batch)
            except Exception as error:  # whatever it was, its callers must not wait for ever
                for pending in batch:
                    if not pending.answer.done():
                        pending.answer.set_exception(error)

    async def _run(self, pendings: Sequence[Pending]) -> None:
        batch = Batch(self.model, [pending.row for pending in pendings], self.options)
        while batch.drop_done():
            batch.step()
            for pending in pendings:
                if pending.row.done and not pending.answer.done():
                    pending.answer.set_result(self._output(pending.row, "completed"))
            await asyncio.sleep(0)

    def _output(self, row: Row, stop_reason: str) -> TokenOutput:
        return TokenOutput(
            token_ids=row.tokens,
            log_probs=row.log_probs if row.sampling.log_probs else None,
            stop_reason=stop_reason,
            extra_fields={"global_steps": self.global_steps},
        )

    def _require_ready(self) -> None:
        why_not = "is asleep" if self._asleep else self._why_not
        if why_not:
            raise EstimatorError(f"the rollout server cannot generate: it {why_not}")

    # ---- weights

    async def begin_update(self) -> None:
        """Let running requests finish and refuse new ones until all weights have been replaced."""
        self._why_not = "is being sent new weights, or the last transfer failed half-way"
        await self._idle.wait()
        self._update = WeightUpdate(self.model)

    async def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over a part of the weights, between `begin_update` and `finish_update`.

        Raises:
            InputError: as `WeightUpdate.load`.
        """
        self._running_update().load(weights)

    async def finish_update(self, global_steps: int | None = None) -> None:
        """Go into service with the new weights; ``global_steps`` is their version, if the trainer tells.

        Raises:
            InputError: as `WeightUpdate.finish`.
        """
        self._running_update().finish()
        self._update, self._why_not = None, ""
        self._streams.weights_changed(global_steps)
        if global_steps is not None:
            self.global_steps = global_steps

    def _running_update(self) -> WeightUpdate:
        if self._update is None:
            raise EstimatorError("weights were sent without a begin_update; call that first")
        return self._update

    async def set_global_steps(self, global_steps: int) -> None:
        """Give the present weights another version."""
        self.global_steps = global_steps
        self._streams.weights_changed(global_steps)

    # ---- pausing

    async def abort_all_requests(
        self, reset_prefix_cache: bool = True, reject_request: bool = False
    ) -> dict[str, Any]:
        """Answer all requests with what they have so far, and admit none until `resume_generation`.

        Args:
            reset_prefix_cache: Without effect; no cache outlives its batch.
            reject_request: Answer later requests as aborted at once, instead of letting them wait.
        """
        self._gate.set(open=False, rejecting=reject_request)
        aborted = [pending for pending in self._outstanding if not pending.answer.done()]
        for pending in aborted:
            pending.row.done = True
            pending.answer.set_result(self._output(pending.row, "aborted"))
        await self._idle.wait()
        return {"aborted_count": len(aborted), "request_ids": [pending.request_id for pending in aborted]}

    async def resume_generation(self) -> None:
        """Admit requests again, also those that have been waiting."""
        self._gate.set(open=True)

    async def wait_for_requests_to_drain(self) -> None:
        """Wait until no request is outstanding."""
        await self._idle.wait()

    # ---- memory

    async def sleep(self) -> None:
        """Wait for outstanding requests, then free the device: the weights move to host memory."""
        if self._sleeps:
            self._asleep = {"weights", "kv_cache"}
            await self._idle.wait()
            self._move_to(torch.device("cpu"))

    async def wake_up(self, tags: Sequence[str] | None = None) -> None:
        """Undo `sleep`; with ``tags``, only for "weights" or only for "kv_cache"."""
        self._asleep -= set(tags or ("weights", "kv_cache"))
        if "weights" not in self._asleep:
            self._move_to(self.device)

    def _move_to(self, device: torch.device) -> None:
        self.model.to(device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    async def clear_kv_cache(self) -> None:
        """Nothing to clear: no cache outlives its batch."""

    async def release_kv_cache(self) -> None:
        """Wait for outstanding requests; their caches go with them."""
        await self._idle.wait()

    async def resume_kv_cache(self) -> None:
        """Nothing to restore: a batch makes its own cache."""

    # ---- profiling

    async def start_profile(self, **kwargs: object) -> None:
        logger.warning("rollout.name=hf has no profiler of its own; the trainer's is not affected")

    async def stop_profile(self) -> None:
        pass


def _device() -> torch.device:
    """The platform's device: `HFReplica` lets this process see no other than its worker's."""
    name = get_platform().device_name
    if name not in ("cpu", "cuda"):
        raise InputError(f"rollout.name=hf runs on cpu and cuda, and verl's platform is {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "verl's platform is cuda and no CUDA device is visible; set VERL_PLATFORM=cpu to do without"
        )
    return torch.device(name)
